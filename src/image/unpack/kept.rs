//! The layers of an image, and the label by which its configuration keeps their snapshots.

use super::{
    chain::prepare,
    unpacker::{Applied, Layer, Unpacker},
};
use crate::{
    call::Call,
    digest::Digest,
    error::{Error, Kind, Result},
    image::resolve::{Blob, Manifest},
};

/// Label of a configuration that keeps the snapshots of the image, followed by the name of the snapshotter.
const KEPT: &str = "containerd.io/gc.ref.snapshot.";

/// [`prepare`], and lets the configuration of the image keep the snapshots for as long as the image is there.
pub fn unpack_layers(
    unpacker: &Unpacker,
    call: &Call,
    config: &Digest,
    layers: &[Layer],
) -> Result<Vec<Applied>> {
    let applied = prepare(unpacker, call, layers)?;
    if let Some(top) = applied.last() {
        let key = format!("{KEPT}{}", unpacker.snapshotter);
        unpacker.containerd.set_label(call, config, &key, &top.chain_id.to_string())?;
    }
    Ok(applied)
}

/// The layers of a manifest, each with its diffID.
pub(in crate::image) fn layers_of(manifest: &Manifest, blobs: &[Blob]) -> Result<Vec<Layer>> {
    let unknown = || Error::new(Kind::Internal, "internal.layer", "a layer without a descriptor");
    let each = manifest.layers.iter().zip(&manifest.diff_ids).map(|(number, diff_id)| {
        let descriptor = blobs.get(*number).and_then(|blob| blob.descriptor.clone()).ok_or_else(unknown)?;
        Ok(Layer { descriptor, diff_id: diff_id.clone() })
    });
    each.collect()
}
