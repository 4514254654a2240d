//! A new layer, written through the addresses of its device in any order.
//!
//! Source: none; the layer becomes a file when it is committed.

use std::io;

use super::{
    Header, Layer, LsmtError, SECTOR,
    form::Form,
    header::flags,
    index::{Log, Segment},
    layer::{Blob, device_end},
};
use crate::format::{Remote, Sink};

/// Longest segment of the finished index, in sectors. Committing cuts data there, so that the entries of the
/// committed layer do not depend on the sizes of the writes.
const RUN_SECTORS: u64 = 255 * 64;

/// A layer that is being written: a [`Sink`] whose offsets are those of the device.
///
/// The data goes to a scratch file, each byte at its offset on the device, so that file is as sparse as the device and
/// no write leaves garbage behind. Writes may come in any order and size, and may overwrite each other. A sector that
/// was written in part reads as zeros in the rest, also when a layer below maps it: on top of other layers, write whole
/// sectors.
///
/// [`Sink::discard`] takes back what was written, and the layer does not map the whole sectors of the range; to hide
/// data of the layers below, call [`Writer::zero`]. [`Sink::set_len`] checks that a device has that size at least.
#[derive(Debug)]
pub struct Writer<S> {
    scratch: S,
    log: Log,
    virtual_size: u64,
    /// End of the scratch file, in bytes.
    end: u64,
}

impl<S: Sink> Writer<S> {
    /// Begins a layer of a device of `virtual_size` bytes, on an empty `scratch` file.
    pub fn new(scratch: S, virtual_size: u64) -> Self {
        Self { scratch, log: Log::default(), virtual_size, end: 0 }
    }

    /// Maps `len` bytes at `offset` of the device to the target, from `target_offset` on. Both offsets begin a sector,
    /// and the last sector is mapped whole.
    pub fn map_target(&mut self, offset: u64, len: u64, target_offset: u64) -> Result<(), LsmtError> {
        let refused = |fault| LsmtError::Range { offset, len, fault };
        if !offset.is_multiple_of(SECTOR) || !target_offset.is_multiple_of(SECTOR) {
            return Err(refused("only whole sectors can be mapped"));
        }
        let (start, end) = self.sectors(offset, len)?;
        let target = target_offset / SECTOR;
        if target + (end - start) > Segment::MAX_AT {
            return Err(refused("the target has no such sectors"));
        }
        self.log(start, end, |from, sectors| Segment::data(from, sectors, target + (from - start), 1));
        Ok(())
    }

    /// Makes `len` bytes at `offset` read as zeros, whatever is below the layer. Both are in whole sectors.
    pub fn zero(&mut self, offset: u64, len: u64) -> Result<(), LsmtError> {
        if !offset.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) {
            let fault = "only whole sectors can be zeroed";
            return Err(LsmtError::Range { offset, len, fault });
        }
        let (start, end) = self.sectors(offset, len)?;
        self.log(start, end, |from, sectors| Segment::zeros(from, sectors, 0));
        self.scratch.discard(offset, len).map_err(LsmtError::write)
    }

    /// The layer as it is now. Stack it on others to read it, or commit it.
    pub fn finish(mut self) -> Result<Layer<S>, LsmtError> {
        device_end(self.virtual_size)?;
        self.scratch.set_len(self.end).map_err(LsmtError::write)?;
        let header = Header::new(flags::HEADER | flags::DATA, self.virtual_size);
        let blob = Blob::with_size(self.scratch, self.end);
        Ok(Layer::from_parts(blob, None, self.log.finish().rejoined(RUN_SECTORS), header, Form::Scratch))
    }

    /// Notes the sectors from `start` to `end`, in segments made of first sector and length.
    fn log(&mut self, mut start: u64, end: u64, segment: impl Fn(u64, u64) -> Segment) {
        while start < end {
            let sectors = Segment::MAX_SECTORS.min(end - start);
            self.log.push_joining(segment(start, sectors));
            start += sectors;
        }
    }

    /// The sectors that `len` bytes at `offset` touch.
    fn sectors(&self, offset: u64, len: u64) -> Result<(u64, u64), LsmtError> {
        let refused = |fault| LsmtError::Range { offset, len, fault };
        let end = offset.checked_add(len).ok_or_else(|| refused("there are no such bytes"))?;
        if end > self.virtual_size {
            return Err(refused("the device is smaller"));
        }
        Ok((offset / SECTOR, end.div_ceil(SECTOR)))
    }
}

/// A refusal of a write, for the traits of `std::io`.
fn packed(error: LsmtError) -> io::Error {
    crate::error::Error::from(error).into_io()
}

impl<S: Sink> Sink for Writer<S> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (start, end) = self.sectors(offset, bytes.len() as u64).map_err(packed)?;
        self.scratch.write_at(offset, bytes)?;
        self.end = self.end.max(offset + bytes.len() as u64);
        self.log(start, end, |from, sectors| Segment::data(from, sectors, from, 0));
        Ok(())
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let len = len.min(self.virtual_size.saturating_sub(offset));
        self.scratch.discard(offset, len)?;
        let (start, end) = (offset.div_ceil(SECTOR), (offset + len) / SECTOR);
        self.log(start, end, Segment::hole);
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.sectors(0, len).map(drop).map_err(packed)
    }

    fn memory_bytes(&self) -> u64 {
        self.log.memory_bytes()
    }
}

impl<S: Sink> Remote for Writer<S> {
    fn map(&mut self, offset: u64, len: u64, target: u64) -> io::Result<()> {
        self.map_target(offset, len, target).map_err(packed)
    }
}
