//! Device addressing: whether a block lies in the image's own file, on a device inside it, or in a
//! separate file.
//!
//! Source: Linux `fs/erofs/data.c`, `erofs_map_dev`.

use super::error::ReadError;
use crate::format::{
    ReadAt,
    erofs::{Block, BlockBits, device::DeviceSlot},
};

/// Files that make up an image.
#[derive(Debug)]
pub(super) struct Devices<R> {
    primary: R,
    slots: Vec<DeviceSlot>,
    /// One file per slot; empty when all devices lie in the primary file.
    files: Vec<R>,
    /// Slots on the unified line as (first block, blocks, number), sorted by first block.
    line: Vec<(u64, u64, u16)>,
}

/// A stretch of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Number of the device that the file holds; 0 for the primary.
    pub(super) device: u16,
    /// Byte offset in the file.
    pub(super) offset: u64,
}

impl<R: ReadAt> Devices<R> {
    pub(super) fn none(primary: R) -> Self {
        Self { primary, slots: Vec::new(), files: Vec::new(), line: Vec::new() }
    }

    pub(super) fn attach(&mut self, slots: Vec<DeviceSlot>, files: Vec<R>) -> Result<(), ReadError> {
        if !files.is_empty() && files.len() != slots.len() {
            let count = u16::try_from(slots.len()).unwrap_or(u16::MAX);
            return Err(ReadError::DeviceCount { slots: count, given: files.len() });
        }
        let mut line = Vec::new();
        for (id, slot) in (1_u16..).zip(&slots) {
            if slot.unified_start != 0 {
                line.push((slot.unified_start, slot.blocks, id));
            }
        }
        line.sort_unstable();
        for pair in line.windows(2) {
            if let [(start, blocks, _), (next, _, id)] = pair
                && start + blocks > *next
            {
                return Err(ReadError::Device { id: *id, fault: "its addresses overlap another device's" });
            }
        }
        (self.slots, self.files, self.line) = (slots, files, line);
        Ok(())
    }

    pub(super) fn primary(&self) -> &R {
        &self.primary
    }

    pub(super) fn slots(&self) -> &[DeviceSlot] {
        &self.slots
    }

    pub(super) fn has_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// First block of the unified line that is a device's.
    pub(super) fn first_on_line(&self) -> Option<u64> {
        self.line.first().map(|(first, ..)| *first)
    }

    /// True when the blocks `start..end` of the file of `device` lie inside the slot of one device.
    pub(super) fn declare(&self, device: u16, start: u64, end: u64) -> bool {
        if device == 0 {
            let after = self.line.partition_point(|(first, ..)| *first <= start);
            let found = after.checked_sub(1).and_then(|index| self.line.get(index));
            return !self.has_files() && found.is_some_and(|(first, blocks, _)| end - first <= *blocks);
        }
        let slot = usize::from(device).checked_sub(1).and_then(|index| self.slots.get(index));
        slot.is_some_and(|slot| end <= slot.blocks)
    }

    /// Number of extra devices; the primary is not counted.
    pub(super) fn count(&self) -> u16 {
        u16::try_from(self.slots.len()).unwrap_or(u16::MAX)
    }

    /// File that holds `device`; `None` without that device.
    pub(super) fn file(&self, device: u16) -> Option<&R> {
        match usize::from(device).checked_sub(1) {
            None => Some(&self.primary),
            Some(index) if self.files.is_empty() => self.slots.get(index).map(|_| &self.primary),
            Some(index) => self.files.get(index),
        }
    }

    pub(super) fn size_bytes(&self, device: u16) -> Option<u64> {
        self.file(device).map(ReadAt::size_bytes)
    }

    /// Place of `blocks` blocks from the unified address `start` on; `None` past 2^64 bytes.
    ///
    /// The start alone selects the device, as in the kernel.
    pub(super) fn unified(&self, bits: BlockBits, start: Block) -> Option<Stretch> {
        if self.files.is_empty() {
            return Some(Stretch { device: 0, offset: bits.offset(start.0)? });
        }
        let after = self.line.partition_point(|(first, _, _)| *first <= start.0);
        match after.checked_sub(1).and_then(|index| self.line.get(index)) {
            Some((first, blocks, device)) if start.0 - first < *blocks => {
                Some(Stretch { device: *device, offset: bits.offset(start.0 - first)? })
            }
            _ => Some(Stretch { device: 0, offset: bits.offset(start.0)? }),
        }
    }

    /// Place of block `start` of device `id`, counted from 1; `None` without that device.
    pub(super) fn on_device(&self, bits: BlockBits, id: u16, start: Block) -> Option<Stretch> {
        let slot = self.slots.get(usize::from(id).checked_sub(1)?)?;
        if self.files.is_empty() {
            let block = slot.unified_start.checked_add(start.0)?;
            return Some(Stretch { device: 0, offset: bits.offset(block)? });
        }
        Some(Stretch { device: id, offset: bits.offset(start.0)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BITS: BlockBits = BlockBits::DEFAULT;

    fn slot(unified_start: u64, blocks: u64) -> DeviceSlot {
        DeviceSlot { tag: [0; 64], blocks, unified_start }
    }

    fn devices(files: usize) -> Devices<&'static [u8]> {
        let mut devices = Devices::none(&[][..]);
        let slots = vec![slot(30, 5), slot(10, 20), slot(0, 7)];
        devices.attach(slots, vec![&[][..]; files]).unwrap();
        devices
    }

    #[test]
    fn in_one_file_a_device_block_is_offset_by_its_place_on_the_line() {
        let devices = devices(0);
        let at = |block: u64| Some(Stretch { device: 0, offset: block * 4096 });
        assert_eq!(devices.unified(BITS, Block(31)), at(31));
        assert_eq!(devices.on_device(BITS, 1, Block(1)), at(31));
        assert_eq!(devices.on_device(BITS, 4, Block(1)), None);
        assert_eq!(devices.on_device(BITS, 0, Block(1)), None);
    }

    #[test]
    fn with_files_of_their_own_unified_addresses_find_their_device() {
        let devices = devices(3);
        for (block, device, local) in
            [(0, 0, 0), (9, 0, 9), (10, 2, 0), (29, 2, 19), (30, 1, 0), (34, 1, 4), (35, 0, 35)]
        {
            let want = Some(Stretch { device, offset: local * 4096 });
            assert_eq!(devices.unified(BITS, Block(block)), want, "{block}");
        }
        assert_eq!(devices.on_device(BITS, 3, Block(6)), Some(Stretch { device: 3, offset: 6 * 4096 }));
    }

    #[test]
    fn overlapping_devices_and_wrong_counts_are_refused() {
        let mut devices = Devices::none(&[][..]);
        let error = devices.attach(vec![slot(10, 20), slot(29, 1)], Vec::new()).unwrap_err();
        assert!(matches!(error, ReadError::Device { id: 2, .. }), "{error}");
        let error = devices.attach(vec![slot(10, 20)], vec![&[][..], &[][..]]).unwrap_err();
        assert!(matches!(error, ReadError::DeviceCount { slots: 1, given: 2 }), "{error}");
    }
}
