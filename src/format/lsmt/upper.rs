//! The files of a writable layer: what new ones hold, and more data for existing ones.
//!
//! Source: `docs/formats/overlaybd.md`, "Writable layers"; overlaybd `src/overlaybd/lsmt/file.cpp`.

use std::ops::Range;

use super::{
    HEADER_BLOCK, Header, Layer, LsmtError, SECTOR, Uuid,
    entry::Entry,
    header::flags,
    index::{Place, Segment},
    layer::{Blob, device_end},
};
use crate::format::{ReadAt, Sink};

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;
/// Smallest hole of most file systems, in bytes.
const BLOCK_BYTES: u64 = 4096;

/// Kinds of writable layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writable {
    /// Data in the order of arrival, and an index file.
    Append,
    /// Data at its place on the device, in a file with holes, and an empty index file.
    Sparse,
    /// Files of a turboOCI layer: data at its place on the device without a header, and an index file.
    Turbo,
}

/// Identity of a new writable layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewUpper {
    /// Kind of its files.
    pub kind: Writable,
    /// Size of the device in bytes; 0 takes that of the layers below, once there are some.
    pub virtual_size: u64,
    /// Identity of the layer.
    pub uuid: Uuid,
    /// Identity of the layer below.
    pub parent_uuid: Uuid,
}

impl NewUpper {
    /// Errors: the device is too large.
    pub fn check(&self) -> Result<(), LsmtError> {
        device_end(self.virtual_size).map(drop)
    }
}

/// Writable layer on its two files.
#[derive(Debug)]
pub struct Upper<D, I> {
    data: D,
    index: I,
    kind: Writable,
    header: Header,
    /// Tag of the layer's own file: the number of layers below.
    tag: u8,
    /// End of the data file, in bytes.
    data_end: u64,
    /// End of the index file, in bytes.
    index_end: u64,
    /// Smallest hole of a sparse data file, in bytes.
    block_bytes: u64,
}

impl<D: ReadAt + Sink, I: ReadAt + Sink> Upper<D, I> {
    /// Makes two empty files those of a new layer.
    pub fn create(new: NewUpper, mut data: D, mut index: I) -> Result<Self, LsmtError> {
        new.check()?;
        let sparse = if new.kind == Writable::Sparse { flags::SPARSE } else { 0 };
        let header = Header {
            uuid: new.uuid,
            parent_uuid: new.parent_uuid,
            ..Header::new(flags::HEADER | flags::DATA | sparse, new.virtual_size)
        };
        let data_end = match new.kind {
            Writable::Append => HEADER_BLOCK,
            Writable::Sparse => HEADER_BLOCK + new.virtual_size,
            Writable::Turbo => new.virtual_size,
        };
        if new.kind != Writable::Turbo {
            data.write_at(0, &header.encode()).map_err(LsmtError::write)?;
        }
        data.set_len(data_end).map_err(LsmtError::write)?;
        let mut index_end = 0;
        if new.kind != Writable::Sparse {
            index.write_at(0, &index_header(&header).encode()).map_err(LsmtError::write)?;
            index_end = HEADER_BLOCK;
        }
        let block_bytes = BLOCK_BYTES;
        Ok(Self { data, index, kind: new.kind, header, tag: 0, data_end, index_end, block_bytes })
    }

    /// Opens the files of a layer above `lowers` other ones. `turbo` says that it is a turboOCI layer, which its files
    /// do not.
    pub fn open(data: D, index: I, turbo: bool, lowers: u8) -> Result<Self, LsmtError> {
        let blob = Blob::new(&index);
        let (kind, header, index_end) = if turbo {
            let header = blob.first_header(flags::HEADER, "a writable layer's index file")?;
            (Writable::Turbo, header, blob.size_bytes())
        } else {
            let of_data = Blob::new(&data);
            let header = of_data.first_header(flags::HEADER | flags::DATA, "a writable layer's data file")?;
            match header.flags & (flags::SPARSE | flags::SEALED) {
                0 => (Writable::Append, header, blob.size_bytes()),
                flags::SPARSE => (Writable::Sparse, header, 0),
                _ => {
                    let want = "a writable layer's data file";
                    return Err(LsmtError::Flags { what: "header", offset: 0, found: header.flags, want });
                }
            }
        };
        // A record that was cut off gives way to the next one.
        let index_end = index_end - index_end.saturating_sub(HEADER_BLOCK) % Entry::LEN as u64;
        let data_end = data.size_bytes().next_multiple_of(SECTOR);
        let block_bytes = BLOCK_BYTES;
        Ok(Self { data, index, kind, header, tag: lowers, data_end, index_end, block_bytes })
    }

    /// Identity and device size.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Sets the size of the device in both files: that of the layers below, for a layer that has none.
    pub fn set_virtual_size(&mut self, bytes: u64) -> Result<(), LsmtError> {
        device_end(bytes)?;
        self.header.virtual_size = bytes;
        let block = self.header.encode();
        match self.kind {
            Writable::Append => self.data.write_at(0, &block).map_err(LsmtError::write)?,
            Writable::Sparse => {
                self.data.write_at(0, &block).map_err(LsmtError::write)?;
                self.data_end = HEADER_BLOCK + bytes;
                return self.data.set_len(self.data_end).map_err(LsmtError::write);
            }
            Writable::Turbo => {
                self.data_end = bytes;
                self.data.set_len(bytes).map_err(LsmtError::write)?;
            }
        }
        self.index.write_at(0, &index_header(&self.header).encode()).map_err(LsmtError::write)
    }

    /// Sets the size of the blocks that the file system of the data file has, in bytes: a hole of a sparse file is as large
    /// at least.
    pub fn set_block_bytes(&mut self, bytes: u64) {
        self.block_bytes = bytes.max(BLOCK_BYTES);
    }

    /// Writes everything that `layer` maps to the files: the data, then the records in the order of the device. `below` is
    /// the device as it is now, with this layer and all that are below it.
    ///
    /// Data that has its place in the file is written from the end of the device to its start. There may be a file system
    /// already, and what changes of it comes before what is new: a disk that is full is found so while the old file system
    /// is whole.
    ///
    /// Errors: the layer has data in a target, and this is no turboOCI layer; something is behind the end of the device.
    pub fn write(&mut self, layer: &Layer<impl ReadAt>, below: &impl ReadAt) -> Result<(), LsmtError> {
        let segments = layer.index.segments();
        let end = device_end(self.header.virtual_size)?;
        for segment in segments {
            let refused = |fault| {
                let (offset, len) = (segment.start() * SECTOR, segment.sectors() * SECTOR);
                Err(LsmtError::Range { offset, len, fault })
            };
            if segment.end() > end {
                return refused("the device is smaller");
            }
            if matches!(segment.place(), Place::Data { source: 1, .. }) && self.kind != Writable::Turbo {
                return refused("only a turboOCI layer has data in a target");
            }
        }
        let mut buffer = vec![0; COPY_BYTES];
        let mut records = Vec::with_capacity(segments.len());
        match self.kind {
            Writable::Sparse => return self.write_blocks(layer, below, &mut buffer),
            Writable::Append => {
                for segment in segments {
                    records.push(self.write_segment(*segment, layer, &mut buffer)?.encode());
                }
            }
            Writable::Turbo => {
                for segment in segments.iter().rev() {
                    records.push(self.write_segment(*segment, layer, &mut buffer)?.encode());
                }
                records.reverse();
            }
        }
        let records = records.concat();
        self.index.write_at(self.index_end, &records).map_err(LsmtError::write)?;
        self.index_end += records.len() as u64;
        Ok(())
    }

    /// Writes the blocks of a sparse file in which `layer` maps something. The rest of them is written as it is on the
    /// device now: it would be zeros otherwise, since the file system has no smaller holes.
    fn write_blocks(
        &mut self,
        layer: &Layer<impl ReadAt>,
        below: &impl ReadAt,
        buffer: &mut [u8],
    ) -> Result<(), LsmtError> {
        for Range { start, mut end } in self.blocks_of(layer).into_iter().rev() {
            while end > start {
                // Pieces begin a sector, also where the device ends within one.
                let from = start + (end - start - 1) / COPY_BYTES as u64 * COPY_BYTES as u64;
                let len = usize::try_from(end - from).unwrap_or(usize::MAX);
                let piece = buffer.get_mut(..len).unwrap_or_default();
                below.read_exact_at(from, piece).map_err(LsmtError::read("the device", from))?;
                let (first, last) = (from / SECTOR, end.div_ceil(SECTOR));
                let parts = layer.index.from(first).iter().map_while(|segment| segment.within(first, last));
                for part in parts {
                    let [at, stop] = [part.start(), part.end()]
                        .map(|sector| usize::try_from(sector * SECTOR - from).unwrap_or(usize::MAX).min(len));
                    let bytes = piece.get_mut(at..stop).unwrap_or_default();
                    match part.place() {
                        Place::Data { at, .. } => {
                            let offset = at * SECTOR;
                            layer
                                .blob
                                .read_at(offset, bytes)
                                .map_err(LsmtError::read("the new data", offset))?;
                        }
                        Place::Zero => bytes.fill(0),
                        Place::Hole => {}
                    }
                }
                self.data.write_at(HEADER_BLOCK + from, piece).map_err(LsmtError::write)?;
                end = from;
            }
        }
        Ok(())
    }

    /// Bytes of the device, in ascending order, that are in blocks of the sparse file in which `layer` maps something.
    fn blocks_of<R>(&self, layer: &Layer<R>) -> Vec<Range<u64>> {
        let mut blocks: Vec<Range<u64>> = Vec::new();
        for segment in layer.index.segments() {
            let [start, end] = [segment.start(), segment.end()].map(|sector| HEADER_BLOCK + sector * SECTOR);
            // The first block may hold the header, and the last one end behind the device.
            let start = (start - start % self.block_bytes).saturating_sub(HEADER_BLOCK);
            let end = (end.next_multiple_of(self.block_bytes) - HEADER_BLOCK).min(self.header.virtual_size);
            match blocks.last_mut() {
                Some(last) if last.end >= start => last.end = end,
                _ => blocks.push(start..end),
            }
        }
        blocks
    }

    /// Writes the data of a segment, and returns its record.
    fn write_segment(
        &mut self,
        segment: Segment,
        layer: &Layer<impl ReadAt>,
        buffer: &mut [u8],
    ) -> Result<Entry, LsmtError> {
        let (start, sectors) = (segment.start(), segment.sectors());
        let entry = |at, zeroed, tag| Entry { start, sectors, at, zeroed, tag };
        let is_in_place = self.kind != Writable::Append;
        let at = if is_in_place { start * SECTOR } else { self.data_end };
        let from = match segment.place() {
            Place::Data { source: 1, at } => return Ok(entry(at, false, self.tag.saturating_add(1))),
            Place::Data { at, .. } => at * SECTOR,
            Place::Zero | Place::Hole => return Ok(entry(at / SECTOR, true, self.tag)),
        };
        let (mut done, len) = (0, sectors * SECTOR);
        while done < len {
            let want = usize::try_from(len - done).unwrap_or(usize::MAX).min(buffer.len());
            let piece = buffer.get_mut(..want).unwrap_or_default();
            let begin = if is_in_place { len - done - want as u64 } else { done };
            let offset = from + begin;
            layer.blob.read_at(offset, piece).map_err(LsmtError::read("the new data", offset))?;
            self.data.write_at(at + begin, piece).map_err(LsmtError::write)?;
            done += want as u64;
        }
        if self.kind == Writable::Append {
            self.data_end += len;
        }
        Ok(entry(at / SECTOR, false, self.tag))
    }
}

/// The header of the index file of a layer whose data file has the header `data`.
fn index_header(data: &Header) -> Header {
    Header { flags: flags::HEADER, index_offset: HEADER_BLOCK, ..data.clone() }
}
