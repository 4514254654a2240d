//! The wires: one unix socket that speaks gRPC and ttrpc, and the conversions to and from the domain.
//!
//! A handler takes a message apart ([`metadata`], [`convert`]), calls the [`crate::service::Service`] once, and
//! puts the answer together ([`convert`], [`status`]). What each side must send is in
//! `docs/formats/containerd.md`.

mod authority;
pub mod convert;
pub mod grpc;
pub mod listener;
pub mod metadata;
pub mod proto;
pub mod socket;
pub mod status;
pub mod ttrpc;

/// Name of the service on both wires.
pub const DIFF_SERVICE: &str = "containerd.services.diff.v1.Diff";
