//! The service: its request, its reply, and why a request is not begun.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    call::Call,
    codec::Coding,
    descriptor::Descriptor,
    digest::Digest,
    error::{Classify, Kind, Result},
    pipeline::StageTimes,
    snapshot::Mount,
};

/// Apply this blob to this snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// The layer.
    pub diff: Descriptor,
    /// The snapshot, as its snapshotter describes it.
    pub mounts: Vec<Mount>,
    /// Messages for the stream processors of the layer, by the processor's name.
    pub payloads: BTreeMap<String, Payload>,
    /// The layer must be on disk before the reply.
    pub sync_fs: bool,
}

/// A message that means something to a stream processor only.
///
/// Source: protobuf's `google.protobuf.Any`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Payload {
    /// URL of the message's type.
    pub type_url: String,
    /// The encoded message.
    pub value: Vec<u8>,
}

/// The result of an Apply.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The uncompressed layer; its digest is the diffID.
    pub descriptor: Descriptor,
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
    /// Directories that names of the archive imply and no entry describes; the root is not counted.
    pub implied_directories: u64,
    /// The implied directories that took owner, mode, time and attributes from the layers below.
    pub inherited_directories: u64,
    /// There are implied directories, and the layers below were not known, not readable or not asked.
    pub without_parents: bool,
}

/// The service as the edges see it.
pub trait Apply: Send + Sync + 'static {
    /// Applies one layer. Blocks; ends within a second of the call's cancellation.
    fn apply(&self, call: &Call, request: &Request) -> Result<Applied>;
}

/// Why a request is not begun.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// Another differ may know the type.
    #[error("this differ does not apply layers of type {0:?}")]
    MediaType(String),
    /// The snapshotter of the directory has no use for the files that the layer would become.
    #[error("this differ does not put layers of type {0:?} into snapshots of this kind")]
    Snapshot(String),
    /// The directory is taken.
    #[error("another layer, {digest} ({media_type}), is being applied to the same directory")]
    Busy {
        /// That layer.
        digest: Digest,
        /// Its type.
        media_type: String,
    },
}

impl Classify for ApplyError {
    fn kind(&self) -> Kind {
        match self {
            Self::MediaType(_) | Self::Snapshot(_) => Kind::NotImplemented,
            Self::Busy { .. } => Kind::Conflict,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::MediaType(_) => "apply.media-type",
            Self::Snapshot(_) => "apply.snapshot",
            Self::Busy { .. } => "apply.busy",
        }
    }
}
