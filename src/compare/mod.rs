//! Compare: two stacks of layers in, one layer out that turns the first into the second.
//!
//! ```text
//! mounts ──> snapshot::Stack ──> view::View ──> changes ──> output::Output ──> content store or file
//! ```
//!
//! [`crate::view`] makes directories and images look alike, [`changes`] walks two stacks of views and emits the
//! entries of a layer, and an [`output::Output`] writes those. Nothing here mounts.
//!
//! Described in `docs/formats/containerd.md`, "Diff".

pub mod changes;
mod chunked;
mod compose;
mod differ;
pub mod erofs;
mod indexed;
pub mod output;
mod overlaybd;
mod send;
pub mod tar;

pub use compose::{Composed, Composer, Form, Options, Sides};
pub use differ::Differ;

use std::{collections::BTreeMap, time::Duration};

use crate::{
    call::Call, codec::Coding, descriptor::Descriptor, digest::Digest, error::Result, snapshot::Mount,
    tree::Timestamp,
};

/// A Diff: write the layer that turns `left` into `right`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The older snapshot, usually a view of the newer one's parent.
    pub left: Vec<Mount>,
    /// The newer snapshot.
    pub right: Vec<Mount>,
    /// Type of the layer to write; empty for a gzip-compressed tar.
    pub media_type: String,
    /// Name of the ingest. Empty for a name of our own, whose ingest is aborted on failure.
    pub reference: String,
    /// Labels for the blob.
    pub labels: BTreeMap<String, String>,
    /// Times later than this one are lowered to it.
    pub source_date_epoch: Option<Timestamp>,
}

/// The blob that was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// Descriptor of the blob in the store.
    pub descriptor: Descriptor,
    /// Figures for logs, metrics and people.
    pub stats: Stats,
}

/// Figures of one Diff.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Digest of the uncompressed layer.
    pub diff_id: Digest,
    /// Size of the uncompressed layer in bytes.
    pub uncompressed_bytes: u64,
    /// Compression of the blob.
    pub coding: Coding,
    /// Numbers of the layer's entries.
    pub contents: Contents,
    /// Work time of each step.
    pub times: Times,
    /// Time from the opened layers to the committed blob.
    pub total: Duration,
}

/// Numbers of the entries in a layer that was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Entries, whiteouts included.
    pub entries: u64,
    /// Entries that delete something below.
    pub whiteouts: u64,
    /// Sockets left out, because no layer can hold them.
    pub sockets: u64,
}

/// Work time of each step, without its waiting. Steps overlap when threads are free.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    /// Opening the layers of both sides.
    pub open: Duration,
    /// Walking both sides, reading the changed files, and laying them out as an archive or image.
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
    /// Name and time of every step, in the order of the work.
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

/// The Diff service as the edges see it.
pub trait Compare: Send + Sync + 'static {
    /// Writes one layer. Blocks; ends within a second of the call's cancellation.
    fn compare(&self, call: &Call, request: &Request) -> Result<Compared>;
}
