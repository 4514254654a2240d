//! Generated code: the gRPC servers of the Diff service and of the progress service, and its ttrpc messages, server and client.

/// gRPC: module `diff_server`, whose messages are those of `containerd_client`.
#[allow(missing_docs, unused_qualifications, clippy::all)] // generated
pub mod grpc {
    include!(concat!(env!("OUT_DIR"), "/containerd.services.diff.v1.rs"));
}

/// gRPC: module `progress_server`, whose messages are those of [`crate::containerd::progress`].
#[allow(missing_docs, unused_qualifications, clippy::all)] // generated
pub mod progress {
    include!(concat!(env!("OUT_DIR"), "/plywood.progress.v1.rs"));
}

/// ttrpc: messages of rust-protobuf, `diff_ttrpc` with the service trait and a client.
#[allow(missing_docs, unused_qualifications, clippy::all)] // generated
#[allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
#[allow(clippy::cast_sign_loss)]
pub mod ttrpc {
    include!(concat!(env!("OUT_DIR"), "/ttrpc_modules.rs"));
}
