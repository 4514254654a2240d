//! Where images go: containerd, or a directory in the OCI layout.

use std::{collections::BTreeMap, io::Read};

use super::unpack::Layer;
use crate::{descriptor::Descriptor, digest::Digest, error::Result, store::Ingest};

/// A store of blobs and of names of images.
pub trait Target {
    /// Size of a blob in bytes, if the store has it. While a load is at work the blob stays from now on.
    fn have(&self, digest: &Digest) -> Result<Option<u64>>;

    /// A blob that holds the layer `diff_id` in a compressed form, and its size in bytes.
    fn have_layer(&self, diff_id: &Digest) -> Result<Option<(Digest, u64)>>;

    /// Reads a blob that the store has.
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read>>;

    /// Begins a blob. With `resume`, goes on where an earlier attempt under the same reference ended.
    fn begin(&self, reference: &str, resume: bool) -> Result<Box<dyn Ingest>>;

    /// Makes snapshots of the layers of an image, if that was asked for. Everything that the image needs is there.
    fn unpack(&self, config: &Digest, layers: &[Layer]) -> Result<()>;

    /// Records the images under their names; the last step.
    fn record(&self, images: &[(String, Descriptor)]) -> Result<()>;
}

/// No labels.
pub(super) fn none() -> BTreeMap<String, String> {
    BTreeMap::new()
}
