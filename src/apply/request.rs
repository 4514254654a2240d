//! The Apply service: request, reply, and the errors that refuse a request before it begins.

use std::{collections::BTreeMap, fmt, time::Duration};

use prost::Message as _;

use crate::{
    call::Call,
    codec::Coding,
    descriptor::Descriptor,
    digest::Digest,
    error::{Classify, Kind, Result},
    pipeline::{AheadFacts, StageTimes, processor::Secret},
    snapshot::Mount,
};

/// Request to apply a blob to a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// Descriptor of the layer's blob.
    pub diff: Descriptor,
    /// Mounts of the snapshot, as its snapshotter lists them.
    pub mounts: Vec<Mount>,
    /// Messages for the stream processors of the layer, by the processor's name.
    pub payloads: BTreeMap<String, Payload>,
    /// Sync the published layer to disk before the reply.
    pub sync_fs: bool,
}

/// A message for a stream processor. Nothing else decodes it. It may hold keys, so it is overwritten with zeros when it is
/// dropped, and never shown.
///
/// Source: protobuf's `google.protobuf.Any`.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Payload {
    /// URL of the message's type.
    pub type_url: String,
    /// Encoded bytes of the message.
    pub value: Vec<u8>,
}

impl Payload {
    /// The whole message as a processor reads it.
    pub(super) fn encoded(&self) -> Secret {
        let mut any = prost_types::Any { type_url: self.type_url.clone(), value: self.value.clone() };
        let encoded = Secret::new(any.encode_to_vec());
        any.value.fill(0);
        std::hint::black_box(&any);
        encoded
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        self.value.fill(0);
        // Without a look at them, the compiler may leave the zeros out.
        std::hint::black_box(&self.value);
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({}, {} bytes)", self.type_url, self.value.len())
    }
}

/// The result of an Apply.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// Descriptor of the uncompressed layer. Its digest is the diffID.
    pub descriptor: Descriptor,
    /// Sizes and times for logs, metrics and the command line.
    pub stats: Stats,
}

/// Sizes of blob and image, and the time that each step took.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Digest of the blob.
    pub blob: Digest,
    /// Size of the blob in bytes.
    pub blob_bytes: u64,
    /// Compression of the blob.
    pub coding: Coding,
    /// Size of the image in bytes.
    pub image_bytes: u64,
    /// Counts of the image's contents; zeros for a layer that was an EROFS image already.
    pub contents: Contents,
    /// Busy time of each step.
    pub times: StageTimes,
    /// Work of helpers that decoded ahead.
    pub ahead: AheadFacts,
    /// Time from the first byte read to the published files.
    pub total: Duration,
}

/// Counts of the contents of an image made from a tar layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Inodes. Whiteouts and implied directories are included.
    pub nodes: u64,
    /// Whiteouts among the inodes: markers that delete a name below.
    pub whiteouts: u64,
    /// Extended attributes of the archive that were left out of the image.
    pub dropped_xattrs: u64,
    /// Directories that names of the archive imply and no entry describes. The root is not counted.
    pub implied_directories: u64,
    /// Implied directories that took owner, mode, time and attributes from the layers below.
    pub inherited_directories: u64,
    /// Layers, this one included, that merged metadata was written of; 0 for none.
    pub merged_layers: u64,
    /// There are implied directories, and the layers below were unknown, unreadable or not to be read.
    pub without_parents: bool,
}

/// Apply as the edges call it.
pub trait Apply: Send + Sync + 'static {
    /// Applies one layer. Blocks. Returns within a second of the call's cancellation.
    fn apply(&self, call: &Call, request: &Request) -> Result<Applied>;
}

/// Reason to refuse a request before its blob is opened.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The media type is none of [`crate::kind::TABLE`]. Another differ may know it.
    #[error("this differ does not apply layers of type {0:?}")]
    MediaType(String),
    /// The snapshotter of the directory has no use for the files that the layer would become.
    #[error("this differ does not put layers of type {0:?} into snapshots of this kind")]
    Snapshot(String),
    /// The layer is to become one of a device, and the device below is not known.
    #[error(
        "the layers below the snapshot are not known: its mounts do not show them, and containerd has no active snapshot of \
         the snapshotter {snapshotter:?} with these mounts (overlaybd.snapshotter)"
    )]
    Parent {
        /// The name of the snapshotter in the configuration.
        snapshotter: String,
    },
    /// A conversion of another layer to the same directory is running.
    #[error("another layer, {digest} ({media_type}), is being applied to the same directory")]
    Busy {
        /// Digest of the layer that is being applied.
        digest: Digest,
        /// Media type of that layer.
        media_type: String,
    },
}

impl Classify for ApplyError {
    fn kind(&self) -> Kind {
        match self {
            Self::MediaType(_) | Self::Snapshot(_) => Kind::NotImplemented,
            Self::Busy { .. } | Self::Parent { .. } => Kind::Conflict,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::MediaType(_) => "apply.media-type",
            Self::Snapshot(_) => "apply.snapshot",
            Self::Busy { .. } => "apply.busy",
            Self::Parent { .. } => "overlaybd.parent",
        }
    }
}
