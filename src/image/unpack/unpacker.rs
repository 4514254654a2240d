//! The parts that every unpacking needs, and the layers that go in and come out.

use std::sync::Arc;

use crate::{
    containerd::{Containerd, Differ},
    descriptor::Descriptor,
    digest::Digest,
    image::progress::Board,
};

/// Snapshotter, differ, and how they are used.
#[derive(Clone)]
pub struct Unpacker {
    /// The containerd that has the layers and gets the snapshots.
    pub containerd: Arc<Containerd>,
    /// The differ that applies layers.
    pub differ: Differ,
    /// Name of the snapshotter.
    pub snapshotter: String,
    /// Most layers that are applied at a time. Only one where the snapshotter needs the parent at the beginning.
    pub at_once: usize,
    /// Command that brings layers that are missing, for messages.
    pub fetch: Option<String>,
    /// Where the progress is shown.
    pub board: Board,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The blob.
    pub descriptor: Descriptor,
    /// Digest of the uncompressed layer, by the configuration of the image.
    pub diff_id: Digest,
}

/// A layer that is a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Name of the snapshot.
    pub chain_id: Digest,
    /// Whether the snapshot was not there before.
    pub is_new: bool,
}

impl Applied {
    /// A layer whose snapshot was there.
    pub(super) fn before(chain_id: Digest) -> Self {
        Self { chain_id, is_new: false }
    }
}
