//! File data: maps a file to bytes of devices, and reads it.
//!
//! Source: Linux `fs/erofs/data.c`, `erofs_map_blocks`.

use super::{
    Image, Node,
    devices::Stretch,
    error::{NodeFault, ReadError},
};
use crate::format::{
    ReadAt,
    erofs::{
        Block,
        chunk::{BlockMapEntry, ChunkFormat, ChunkIndex},
        inode::Data,
        superblock::compat,
    },
};

/// Stretch of a file whose bytes are consecutive on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Byte offset in the file.
    pub offset: u64,
    /// Length in bytes, not zero. The last block of a file is cut at the file's end.
    pub len: u64,
    /// Place of the bytes, or that they are a hole.
    pub place: Place,
}

/// Place of an extent's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Hole: all bytes are zero.
    Hole,
    /// Blocks of a device.
    Blocks {
        /// Number of the device; 0 for the image's own file.
        device: u16,
        /// Byte offset in the device's file, a multiple of the block size.
        offset: u64,
    },
    /// Tail after the inode, in the image's own file.
    Inline {
        /// Byte offset in the image's own file.
        offset: u64,
    },
}

/// Iterator over the extents of a file, in order, neighbours joined. It stops after the first
/// error.
#[derive(Debug)]
pub struct Extents<'i, R> {
    image: &'i Image<R>,
    node: Node,
    /// Byte of the file at which the next extent starts.
    position: u64,
    /// Extent that was read but may be longer than known so far.
    ahead: Option<Extent>,
    failed: bool,
}

impl<R: ReadAt> Image<R> {
    /// Iterates over the extents of a regular file, directory or symbolic link from byte `offset`
    /// on.
    ///
    /// An item is an error when the data is compressed or lies outside its device.
    pub fn extents(&self, node: &Node, offset: u64) -> Extents<'_, R> {
        Extents { image: self, node: *node, position: offset, ahead: None, failed: false }
    }

    /// Fills `buf` with the file's bytes from `offset` on; holes read as zeros.
    ///
    /// Errors: [`ReadError::Outside`] when the file ends before `buf` does.
    pub fn read_data(&self, node: &Node, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let (mut rest, mut next) = (buf, offset);
        while !rest.is_empty() {
            let Some(extent) = self.extent_at(node, next)? else {
                return Err(ReadError::Outside {
                    what: "file data",
                    device: 0,
                    offset: next,
                    len: rest.len() as u64,
                    size_bytes: node.inode.size_bytes,
                });
            };
            let len = usize::try_from(extent.len).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            match extent.place {
                Place::Hole => now.fill(0),
                Place::Inline { offset } | Place::Blocks { device: 0, offset } => {
                    self.read_at(offset, now, "file data")?;
                }
                Place::Blocks { device, offset } => {
                    let len = now.len() as u64;
                    let file = self.devices.file(device).ok_or_else(|| self.no_device(node, device))?;
                    file.read_exact_at(offset, now).map_err(|source| ReadError::Io {
                        offset,
                        len,
                        source,
                    })?;
                }
            }
            next += len as u64;
            rest = later;
        }
        Ok(())
    }

    /// Extent that starts at byte `offset` of the file, not joined with those that follow it; `None` at or after the
    /// end of the file.
    pub fn extent_at(&self, node: &Node, offset: u64) -> Result<Option<Extent>, ReadError> {
        Self::uncompressed(node)?;
        let size = node.inode.size_bytes;
        if offset >= size {
            return Ok(None);
        }
        let bits = self.superblock.block_bits;
        let (len, place) = match node.inode.data {
            Data::Chunks(format) => self.chunk_at(node, format, offset)?,
            Data::Plain { start } => (size - offset, self.blocks_at(start, offset, size)?),
            Data::Inline { start } => {
                // The kernel takes the last block for the tail, even if it is whole.
                let body = (bits.blocks_for(size) - 1) << bits.get();
                if offset < body {
                    // No hole: the kernel looks for holes in plain files only.
                    let Some(start) = start else { return Err(self.outside("file data", u64::MAX, body)) };
                    (body - offset, self.blocks_at(Some(start), offset, body)?)
                } else {
                    (size - offset, self.tail_at(node, body, offset)?)
                }
            }
            Data::CompressedFull { .. } | Data::CompressedCompact { .. } | Data::Device(_) | Data::None => {
                return Ok(None);
            }
        };
        Ok(Some(Extent { offset, len, place }))
    }

    /// Place of byte `offset` in the run of blocks from `start` on, which holds the file up to byte
    /// `end`.
    fn blocks_at(&self, start: Option<Block>, offset: u64, end: u64) -> Result<Place, ReadError> {
        let Some(start) = start else { return Ok(Place::Hole) };
        let stretch = self.devices.unified(self.superblock.block_bits, start);
        self.inside(stretch, end)?;
        let stretch = stretch.unwrap_or(Stretch { device: 0, offset: 0 });
        Ok(Place::Blocks { device: stretch.device, offset: stretch.offset + offset })
    }

    /// Refuses a stretch whose `len` bytes, rounded up to blocks, end outside the device.
    fn inside(&self, stretch: Option<Stretch>, len: u64) -> Result<(), ReadError> {
        let bits = self.superblock.block_bits;
        let (device, offset) = stretch.map_or((0, u64::MAX), |stretch| (stretch.device, stretch.offset));
        let size_bytes =
            if device == 0 { self.size_bytes } else { self.device_size_bytes(device).unwrap_or(0) };
        let end = bits.offset(bits.blocks_for(len)).and_then(|len| offset.checked_add(len));
        if end.is_none_or(|end| end > size_bytes) {
            return Err(ReadError::Outside { what: "file data", device, offset, len, size_bytes });
        }
        Ok(())
    }

    fn tail_at(&self, node: &Node, body: u64, offset: u64) -> Result<Place, ReadError> {
        let bits = self.superblock.block_bits;
        let (start, len) = (node.xattr_end(), node.inode.size_bytes - body);
        if bits.within(start) + len > bits.size() {
            let fault = NodeFault::Tail { offset: start, len };
            return Err(ReadError::Node { nid: node.nid, fault });
        }
        if start + len > self.size_bytes {
            return Err(self.outside("inline tail", start, len));
        }
        Ok(Place::Inline { offset: start + (offset - body) })
    }

    fn chunk_at(&self, node: &Node, format: ChunkFormat, offset: u64) -> Result<(u64, Place), ReadError> {
        let bits = self.superblock.block_bits;
        let chunk_bits = bits.get() + format.bits();
        let index = offset >> chunk_bits;
        let chunk_start = index << chunk_bits;
        // The last chunk ends with the file.
        let chunk_len = (1_u64 << chunk_bits).min(node.inode.size_bytes - chunk_start);
        let (array, len) = self.chunk_array(node, format)?;
        let within = offset - chunk_start;
        let record_at = array + index * format.record_len();
        debug_assert!(record_at < array + len, "the file has this chunk");
        let (start, device_id) = if format.indexes {
            let mut record = [0; ChunkIndex::LEN];
            self.read_at(record_at, &mut record, "chunk index")?;
            let ChunkIndex { start, device_id } = ChunkIndex::decode(&record, format.wide);
            // RAFS has a part of a chunk's number there. The kernel masks it away in every image.
            let mask = if self.superblock.has_compat(compat::RAFS) { 0xff } else { u16::MAX };
            (start, device_id & mask)
        } else {
            let mut record = [0; BlockMapEntry::LEN];
            self.read_at(record_at, &mut record, "block map")?;
            (BlockMapEntry::decode(&record).start, 0)
        };
        let place = match start {
            None => Place::Hole,
            Some(start) if device_id == 0 => self.blocks_at(Some(start), within, chunk_len)?,
            Some(start) => {
                let stretch = self
                    .devices
                    .on_device(bits, device_id, start)
                    .ok_or_else(|| self.no_device(node, device_id))?;
                self.inside(Some(stretch), chunk_len)?;
                Place::Blocks { device: stretch.device, offset: stretch.offset + within }
            }
        };
        Ok((chunk_len - within, place))
    }

    /// Byte offset and length in bytes of a file's chunk array, which is inside the image.
    pub(in crate::format) fn chunk_array(
        &self,
        node: &Node,
        format: ChunkFormat,
    ) -> Result<(u64, u64), ReadError> {
        let record_len = format.record_len();
        let start = node.xattr_end().next_multiple_of(record_len);
        let chunks = node.inode.size_bytes.div_ceil(1 << (self.superblock.block_bits.get() + format.bits()));
        let len = chunks.saturating_mul(record_len);
        if start.checked_add(len).is_none_or(|end| end > self.size_bytes) {
            return Err(self.outside("chunk array", start, len));
        }
        Ok((start, len))
    }

    fn no_device(&self, node: &Node, id: u16) -> ReadError {
        let fault = NodeFault::ChunkDevice { id, count: self.devices.count() };
        ReadError::Node { nid: node.nid, fault }
    }
}

impl<R: ReadAt> Iterator for Extents<'_, R> {
    type Item = Result<Extent, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        loop {
            let next = match self.image.extent_at(&self.node, self.position) {
                Ok(next) => next,
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            };
            self.position = next.map_or(self.position, |extent| extent.offset + extent.len);
            match (self.ahead, next) {
                (None, None) => return None,
                (None, Some(extent)) => self.ahead = Some(extent),
                (Some(ahead), Some(extent)) if follows(ahead, extent) => {
                    self.ahead = Some(Extent { len: ahead.len + extent.len, ..ahead });
                }
                (Some(ahead), next) => {
                    self.ahead = next;
                    return Some(Ok(ahead));
                }
            }
        }
    }
}

/// True when `next` continues `extent` on the device as it does in the file.
fn follows(extent: Extent, next: Extent) -> bool {
    match (extent.place, next.place) {
        (Place::Hole, Place::Hole) => true,
        (Place::Blocks { device, offset }, Place::Blocks { device: next_device, offset: next_offset }) => {
            device == next_device && offset + extent.len == next_offset
        }
        _ => false,
    }
}
