//! Client of containerd's content store and snapshotters, over gRPC on its unix socket.
//!
//! Calls block their thread; the sockets live on the runtime that the caller hands in. The first call opens the
//! connection, and the next one opens it again after it was lost. Where containerd reports the store's directory and
//! its blobs can be opened there, `store::local` reads them instead.
//!
//! Source: docs/formats/containerd.md, "The content store"; containerd
//! `api/services/content/v1/content.proto`.

mod blobs;
mod client;
mod contact;
mod content;
mod differ;
mod images;
mod ingest;
mod inventory;
mod layers;
mod lease;
mod name;
pub mod progress;
mod read;
mod snapshots;
mod sweep;
mod upload;
mod watch;
mod write;

pub use self::{
    blobs::UNCOMPRESSED,
    content::{Containerd, Direct},
    differ::{Applying, Differ},
    inventory::Snapshotter,
    layers::{EXTRACT, Place, Prepared},
    snapshots::Snapshots,
    sweep::Swept,
};
