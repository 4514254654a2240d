//! Apply: a layer and the mounts of a snapshot in, a mountable image in the snapshot's directory out.
//!
//! [`Applier`] decides which strategy a layer type gets before anything is read or created, because
//! only then may a refusal send the caller to another differ. The strategies are functions of
//! [`Converter`], which the command line uses without store and snapshots. Nothing here knows a wire
//! message; blocking is fine, callers bring a thread.

mod convert;
mod flight;
mod native;
mod parents;
mod tar_to_erofs;

pub use convert::{Converter, ImpliedDirectories, Layer, NativeVerify, Options};
pub use parents::Parents;

use std::{collections::BTreeMap, fs::File, sync::Arc, time::Duration};

use crate::{
    call::Call,
    codec::Coding,
    descriptor::Descriptor,
    digest::Digest,
    error::{Classify, Error, Kind, Result},
    kind::{Container, LayerType},
    pipeline::{BlobError, StageTimes},
    snapshot::{LAYER, Mount, MountError, Roots, SnapshotDir},
    store::ContentStore,
    sys::thread::catch,
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
            Self::MediaType(_) => Kind::NotImplemented,
            Self::Busy { .. } => Kind::Conflict,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::MediaType(_) => "apply.media-type",
            Self::Busy { .. } => "apply.busy",
        }
    }
}

/// Applies layers from a content store to the snapshots below some roots.
pub struct Applier {
    store: Arc<dyn ContentStore>,
    roots: Arc<Roots>,
    converter: Converter,
    flights: flight::Flights,
}

impl Applier {
    /// Layers come from `store`, and go where `roots` allows.
    pub fn new(store: Arc<dyn ContentStore>, roots: Arc<Roots>, converter: Converter) -> Self {
        Self { store, roots, converter, flights: flight::Flights::default() }
    }

    fn apply_to(
        &self,
        call: &Call,
        request: &Request,
        kind: &'static LayerType,
        dir: &SnapshotDir,
    ) -> Result<Applied> {
        let limits = self.converter.limits();
        let (size_bytes, limit) = (request.diff.size_bytes, limits.blob_bytes);
        if size_bytes > limit {
            return Err(BlobError::Limit { size_bytes, limit }.into());
        }
        let mut blob = self.store.open(call, &request.diff)?;
        // Only an image that comes ready is copied as a file.
        let file = match (kind.container, kind.coding) {
            (Container::Erofs, Coding::Plain) => blob.file().map(File::try_clone).transpose(),
            _ => Ok(None),
        };
        let file = file.map_err(Error::disk)?;
        let publication = dir.publish(&LAYER, limits)?;
        let open = || Ok(self.roots.parents(&request.mounts)?);
        let layer = Layer {
            kind,
            size_bytes: Some(size_bytes),
            digest: Some(request.diff.digest.clone()),
            file: file.as_ref(),
            reader: &mut blob,
            parents: Some(Parents { open: &open, required: false }),
        };
        let sync_fs = request.sync_fs;
        self.converter.convert(call.work(), layer, publication, sync_fs)
    }
}

impl Apply for Applier {
    fn apply(&self, call: &Call, request: &Request) -> Result<Applied> {
        let Descriptor { digest, media_type, .. } = &request.diff;
        let layer = |error: Error| error.context(format!("apply {digest} ({media_type})"));
        // Up to here and including the directory, nothing has been read or created. Without mounts no other differ
        // may be asked, whatever the type: containerd's EROFS differ takes the first mount of none, and crashes.
        if request.mounts.is_empty() {
            return Err(layer(MountError::Empty.into()));
        }
        let kind = LayerType::of(media_type).ok_or_else(|| ApplyError::MediaType(media_type.clone()));
        let kind = kind.map_err(|error| layer(error.into()))?;
        let dir = self.roots.resolve(&request.mounts).map_err(|error| layer(error.into()))?;
        self.flights
            .fly(dir.key(), call, request, || catch(|| self.apply_to(call, request, kind, &dir)))
            .map_err(|error| {
                error.context(format!("apply {digest} ({media_type}) to {}", dir.path().display()))
            })
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
