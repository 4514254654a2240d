//! containerd's content store, over gRPC on its unix socket.
//!
//! Calls block the thread that makes them; the sockets live on the runtime that was handed in. The
//! connection is made with the first call and again after it was lost. `store::local` is used
//! instead of the stream when containerd says where its blobs are and they can be opened there.
//!
//! Source: docs/formats/containerd.md, "The content store"; containerd
//! `api/services/content/v1/content.proto`.

mod client;
mod contact;
mod content;
mod ingest;
mod lease;
mod name;
mod read;
mod sweep;
mod upload;
mod watch;
mod write;

pub use self::{
    content::{Containerd, Direct},
    sweep::Swept,
};
