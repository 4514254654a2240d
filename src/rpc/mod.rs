//! The wires: one unix socket that speaks gRPC and ttrpc, and the conversions to and from the domain.
//!
//! A handler converts a message ([`metadata`], [`convert`]), calls the [`crate::service::Service`]
//! once, and converts the answer ([`convert`], [`status`]). `docs/formats/containerd.md` lists what
//! each side must send.

mod authority;
pub mod convert;
pub mod grpc;
pub mod listener;
pub mod metadata;
mod progress;
pub mod proto;
pub mod socket;
pub mod status;
pub mod ttrpc;

/// Name of the Diff service on both wires.
pub const DIFF_SERVICE: &str = "containerd.services.diff.v1.Diff";
/// Name under which the health service reports whether stream processors can be started. Without any it has no status.
pub const PROCESSORS_SERVICE: &str = "plywood.processors";
