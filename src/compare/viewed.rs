//! A stack of layers as one tree, for whoever puts another layer on top.

use super::{
    changes::View,
    compose::{reading, references},
    open,
};
use crate::{
    call::Cancel,
    error::Result,
    pipeline::budget::{Lease, Use},
    snapshot::{LayerSource, Stack, StackLayer},
};

/// Most memory that the reader of one image takes.
const READER_BYTES: u64 = 1 << 20;

/// Opens the layers of `stack` and hands their merged tree to `work`. Memory is charged to `lease` as that of a
/// window, and is free again afterwards.
pub fn viewed<T>(
    stack: Stack,
    lease: &Lease,
    cancel: &Cancel,
    work: impl FnOnce(&mut View<'_>) -> Result<T>,
) -> Result<T> {
    let readers = READER_BYTES.saturating_mul(stack.layers.len() as u64);
    let mut charge = |bytes: u64| lease.charge(Use::Window, readers.saturating_add(bytes), cancel);
    charge(0)?;
    let watch = stack.watch()?;
    // Images belong to root; directories hold what containers wrote.
    let is_directory = |layer: &StackLayer| matches!(layer.source, LayerSource::Directory { .. });
    let takes_capabilities = stack.layers.iter().any(is_directory);
    let view = || {
        let layers = open::layers(stack, cancel)?;
        work(&mut View::new(&references(&layers), cancel, &mut charge))
    };
    let outcome = if takes_capabilities { reading(view) } else { view() }?;
    watch.check()?;
    lease.charge(Use::Window, 0, cancel)?;
    Ok(outcome)
}
