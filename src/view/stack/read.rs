//! The merged tree of a snapshot's layers, for a new layer on top.

use super::tree::MergedTree;
use crate::{
    call::Cancel,
    error::Result,
    pipeline::budget::{Lease, Use},
    snapshot::{DeviceDir, LayerSource, MountError, Stack, StackLayer},
    view::{
        Volume,
        open::{self, reading, references},
    },
};

/// Most memory that the reader of one image takes.
const READER_BYTES: u64 = 1 << 20;

/// The layers of a device are never below one that is an image.
fn no_device(dir: &DeviceDir) -> Result<Volume> {
    Err(MountError::NoDevice(dir.path().to_owned(), DeviceDir::CONFIG).into())
}

/// Opens the layers of `stack` and passes their merged tree to `work`. Memory is charged to `lease` as that of a
/// window, and is free again afterwards.
pub(crate) fn read_merged<T>(
    stack: Stack,
    lease: &Lease,
    cancel: &Cancel,
    work: impl FnOnce(&mut MergedTree<'_>) -> Result<T>,
) -> Result<T> {
    let readers = READER_BYTES.saturating_mul(stack.layers.len() as u64);
    let mut charge = |bytes: u64| lease.charge(Use::Window, readers.saturating_add(bytes), cancel);
    charge(0)?;
    let watch = stack.watch()?;
    // Images belong to root; directories hold what containers wrote.
    let is_directory = |layer: &StackLayer| matches!(layer.source, LayerSource::Directory { .. });
    let takes_capabilities = stack.layers.iter().any(is_directory);
    let read = || {
        let layers = open::layers(stack, &no_device, cancel)?;
        work(&mut MergedTree::new(&references(&layers), cancel, &mut charge))
    };
    let outcome = if takes_capabilities { reading(read) } else { read() }?;
    watch.check()?;
    lease.charge(Use::Window, 0, cancel)?;
    Ok(outcome)
}
