//! A device: a stack of layers with one merged index.
//!
//! Source: `docs/formats/overlaybd.md`, "Stacking".

use std::io;

use super::{
    Layer, LsmtError, SECTOR,
    index::{Index, Place, Segment, Source},
    layer::{Blob, device_end},
};
use crate::{
    format::ReadAt,
    limits::{LSMT_LAYERS, LSMT_STACK_ENTRIES},
    tree::Extent,
};

/// The block device that a stack of layers describes, to be read.
///
/// The device's size is that of the topmost layer that has one. A sector reads as the topmost layer that maps it says, and as
/// zeros where none does. The order of the layers cannot be verified: in a wrong one, the contents are wrong.
#[derive(Debug)]
pub struct Device<R> {
    /// Their indexes went into `index`.
    pub(super) layers: Vec<Layer<R>>,
    pub(super) index: Index,
    size_bytes: u64,
}

impl<R> Device<R> {
    /// Stacks `layers`, which come bottom first.
    pub fn new(mut layers: Vec<Layer<R>>) -> Result<Self, LsmtError> {
        let read_only = layers.iter().filter(|layer| layer.is_read_only()).count();
        if layers.is_empty() || read_only > LSMT_LAYERS || layers.len() > LSMT_LAYERS + 1 {
            return Err(LsmtError::Layers { layers: layers.len() });
        }
        let entries = layers.iter().map(Layer::entries).fold(0, u64::saturating_add);
        if entries > LSMT_STACK_ENTRIES {
            return Err(LsmtError::StackCount { entries });
        }
        let sizes = layers.iter().rev().map(|layer| layer.header().virtual_size);
        let size_bytes = sizes.into_iter().find(|size| *size != 0).unwrap_or(0);
        let indexes = layers
            .iter_mut()
            .zip(0..)
            .map(|(layer, number): (_, Source)| std::mem::take(&mut layer.index).in_layer(number));
        let index = Index::merged(indexes.collect()).cut(device_end(size_bytes)?);
        Ok(Self { layers, index, size_bytes })
    }

    /// The topmost layer, with what all layers map. Of a device with one layer it is that layer.
    pub fn into_layer(mut self) -> Option<Layer<R>> {
        let mut layer = self.layers.pop()?;
        layer.index = self.index;
        Some(layer)
    }

    /// The layers, bottom first.
    pub fn layers(&self) -> &[Layer<R>] {
        &self.layers
    }

    /// Number of entries of the merged index.
    pub fn entries(&self) -> u64 {
        self.index.segments().len() as u64
    }

    /// The ranges from byte `start` to byte `end` that hold data: ascending, not touching, in whole sectors. All other
    /// bytes read as zeros.
    pub fn data(&self, start: u64, end: u64) -> impl Iterator<Item = Extent> {
        let (first, end) = (start / SECTOR, end.min(self.size_bytes).div_ceil(SECTOR));
        let segments = self.index.from(first).iter().take_while(move |segment| segment.start() < end);
        let with_data = segments.filter(|segment| matches!(segment.place(), Place::Data { .. }));
        let mut parts = with_data.filter_map(move |segment| segment.within(first, end)).peekable();
        std::iter::from_fn(move || {
            let first = parts.next()?;
            let (start, mut end) = (first.start(), first.end());
            while let Some(next) = parts.next_if(|next| next.start() == end) {
                end = next.end();
            }
            Some(Extent { offset: start * SECTOR, len: (end - start) * SECTOR })
        })
    }

    /// The file that holds data of `source`.
    fn blob(&self, source: Source) -> Option<&Blob<R>> {
        let layer = self.layers.get(usize::from(source / 2))?;
        if source.is_multiple_of(2) { Some(&layer.blob) } else { layer.target.as_ref() }
    }
}

impl<R: ReadAt> Device<R> {
    /// Fills `buf` with the bytes of `segment` from byte `skip` of it on.
    pub(super) fn read_segment(&self, segment: Segment, skip: u64, buf: &mut [u8]) -> io::Result<()> {
        let Place::Data { source, at } = segment.place() else {
            buf.fill(0);
            return Ok(());
        };
        // A layer that was just written has no target yet.
        let Some(blob) = self.blob(source) else {
            buf.fill(0);
            return Ok(());
        };
        blob.read_at(at * SECTOR + skip, buf)
    }
}

impl<R: ReadAt> ReadAt for Device<R> {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.size_bytes);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (mut next, mut rest) = (offset, buf);
        for segment in self.index.from(offset / SECTOR) {
            let (start, stop) = (segment.start() * SECTOR, segment.end() * SECTOR);
            if start >= end {
                break;
            }
            let gap = start.saturating_sub(next);
            let (zeros, behind) =
                rest.split_at_mut(usize::try_from(gap).unwrap_or(usize::MAX).min(rest.len()));
            zeros.fill(0);
            next += gap;
            let len = stop.min(end) - next;
            let (piece, behind) =
                behind.split_at_mut(usize::try_from(len).unwrap_or(usize::MAX).min(behind.len()));
            self.read_segment(*segment, next - start, piece)?;
            next += len;
            rest = behind;
        }
        rest.fill(0);
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}
