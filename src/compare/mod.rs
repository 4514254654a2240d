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

pub mod layer;
pub mod output;

use std::collections::BTreeMap;

use crate::{call::Call, descriptor::Descriptor, error::Result, snapshot::Mount, tree::Timestamp};

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

/// The blob that was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// As the store knows it.
    pub descriptor: Descriptor,
}

/// The service as the edges see it.
pub trait Compare: Send + Sync + 'static {
    /// Writes one layer. Blocks; ends within a second of the call's cancellation.
    fn compare(&self, call: &Call, request: &Request) -> Result<Compared>;
}
