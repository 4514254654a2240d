//! The wires: one unix socket that speaks gRPC and ttrpc, and the conversions to and from the domain.
//!
//! A handler takes a message apart ([`metadata`], [`convert`]), calls the [`crate::server::Service`] once, and
//! puts the answer together ([`convert`], [`status`]). What each side must send is in
//! `docs/formats/containerd.md`.

mod authority;
pub mod convert;
pub mod grpc;
pub mod listener;
pub mod metadata;
pub mod peer;
pub mod proto;
pub mod status;
pub mod ttrpc;

/// Name of the service on both wires.
pub const DIFF_SERVICE: &str = "containerd.services.diff.v1.Diff";

/// Which wire a request came over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wire {
    /// HTTP/2 with protobuf messages.
    Grpc,
    /// containerd's own framing for small machines.
    Ttrpc,
}

impl Wire {
    /// The name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Ttrpc => "ttrpc",
        }
    }
}
