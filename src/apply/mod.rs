//! Apply: a layer and the mounts of a snapshot in, a mountable image in the snapshot's directory out.
//!
//! Nothing here knows a wire message; blocking is fine, callers bring a thread.

use std::time::Duration;

use crate::{
    call::Call, codec::Coding, descriptor::Descriptor, digest::Digest, error::Result, pipeline::StageTimes,
    snapshot::Mount,
};

/// Apply this blob to this snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The layer.
    pub diff: Descriptor,
    /// The snapshot, as its snapshotter describes it.
    pub mounts: Vec<Mount>,
    /// The layer must be on disk before the reply.
    pub sync_fs: bool,
}

/// What was applied: the descriptor of the uncompressed layer, and what it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// Type of the uncompressed layer.
    pub media_type: &'static str,
    /// Its digest: the diffID.
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Figures for logs, metrics and people.
    pub stats: Stats,
}

/// What went in, what came out, and how long it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Digest of the blob.
    pub blob: Digest,
    /// Size of the blob in bytes.
    pub blob_bytes: u64,
    /// How it was compressed.
    pub coding: Coding,
    /// Size of the image in bytes.
    pub image_bytes: u64,
    /// What the image holds; zeros for an image that came ready.
    pub contents: Contents,
    /// Time at work in each step.
    pub times: StageTimes,
    /// From the first byte read to the published file.
    pub total: Duration,
}

/// What an image made from a tar layer holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Inodes, whiteouts and implied directories included.
    pub nodes: u64,
    /// Of these, markers that delete something below.
    pub whiteouts: u64,
    /// Extended attributes of the archive that do not belong into an image.
    pub dropped_xattrs: u64,
}

/// The service as the edges see it.
pub trait Apply: Send + Sync + 'static {
    /// Applies one layer. Blocks; ends within a second of the call's cancellation.
    fn apply(&self, call: &Call, request: &Request) -> Result<Applied>;
}
