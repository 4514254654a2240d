//! Compare: two stacks of layers in, one layer out that turns the first into the second.
//!
//! ```text
//! mounts ──> snapshot::Stack ──> layer::Layer ──> changes ──> output::Output ──> content store or file
//! ```
//!
//! [`layer`] makes directories and images look alike, [`changes`] walks two stacks of them and tells what
//! differs as the entries of a layer, and an [`output::Output`] writes those. Nothing here mounts.
//!
//! Described in `docs/formats/containerd.md`, "Diff".

pub mod changes;
mod compose;
mod differ;
pub mod erofs;
pub mod layer;
mod mapped;
mod open;
pub mod output;
pub mod tar;
mod viewed;

pub use compose::{Composed, Composer, Options, Sides};
pub use differ::{CompareError, Differ};
pub use viewed::viewed;

use std::{collections::BTreeMap, time::Duration};

use crate::{
    call::Call, codec::Coding, descriptor::Descriptor, digest::Digest, error::Result, snapshot::Mount,
    tree::Timestamp,
};

/// Write what turns `left` into `right`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The older snapshot, usually a view of the newer one's parent.
    pub left: Vec<Mount>,
    /// The newer snapshot.
    pub right: Vec<Mount>,
    /// Type of the layer to write; empty for a gzip-compressed tar.
    pub media_type: String,
    /// Name of the ingest; empty for one of our own, which is aborted on failure.
    pub reference: String,
    /// Labels for the blob.
    pub labels: BTreeMap<String, String>,
    /// Later times are lowered to this one.
    pub source_date_epoch: Option<Timestamp>,
}

/// The blob that was written, and what it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// As the store knows it.
    pub descriptor: Descriptor,
    /// Figures for logs, metrics and people.
    pub stats: Stats,
}

/// What the layer is, uncompressed, and how long it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Digest of the uncompressed layer.
    pub diff_id: Digest,
    /// Its size in bytes.
    pub uncompressed_bytes: u64,
    /// How the blob is compressed.
    pub coding: Coding,
    /// What the layer holds.
    pub contents: Contents,
    /// Time at work in each step.
    pub times: Times,
    /// From the opened layers to the blob in its place.
    pub total: Duration,
}

/// What a layer that was written holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Entries, whiteouts included.
    pub entries: u64,
    /// Of these, markers that delete something below.
    pub whiteouts: u64,
    /// Sockets, which no layer can hold.
    pub sockets: u64,
}

/// Seconds that each step was at work, waiting not counted. They overlap when threads are free.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    /// Opening the layers of both sides.
    pub open: Duration,
    /// Walking both sides, reading what changed, and laying it out as an archive or image.
    pub build: Duration,
    /// Digest of the uncompressed layer.
    pub diff_id: Duration,
    /// Compression, all threads together.
    pub encode: Duration,
    /// Digest of the blob; zero when it is uncompressed.
    pub blob_digest: Duration,
    /// Handing the blob to the store, waiting for it included.
    pub store: Duration,
    /// Giving the blob its name.
    pub commit: Duration,
}

impl Times {
    /// Every step by its name, in the order of the work.
    pub fn steps(&self) -> [(&'static str, Duration); 7] {
        [
            ("open", self.open),
            ("build", self.build),
            ("diff_id", self.diff_id),
            ("encode", self.encode),
            ("blob_digest", self.blob_digest),
            ("store", self.store),
            ("commit", self.commit),
        ]
    }
}

/// The service as the edges see it.
pub trait Compare: Send + Sync + 'static {
    /// Writes one layer. Blocks; ends within a second of the call's cancellation.
    fn compare(&self, call: &Call, request: &Request) -> Result<Compared>;
}
