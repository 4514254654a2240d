//! File data: maps a file to blocks, and reads it.
//!
//! Source: Linux `fs/ext4/inode.c` (`ext4_map_blocks`), `fs/ext4/inline.c` (`ext4_read_inline_data`).

use super::{
    Image, Node,
    error::{NodeFault, ReadError},
    map::Map,
};
use crate::format::{
    ReadAt,
    ext4::{
        Block,
        inode::{Content, Inode},
    },
};

/// Stretch of a file whose bytes are consecutive in the image.
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
    /// Hole, or blocks that were allocated but never written: all bytes are zero.
    Hole,
    /// Consecutive blocks, some of which may have newer copies in the journal.
    Blocks {
        /// Block that holds the first byte.
        start: Block,
    },
    /// Data in the inode and its attributes.
    Inline,
}

/// Iterator over the extents of a file, in order, neighbours joined. It stops after the first
/// error.
#[derive(Debug)]
pub struct Extents<'i, R> {
    image: &'i Image<R>,
    map: Map,
    node: Node,
    /// Byte of the file at which the next extent starts.
    position: u64,
    /// Extent that was read but may be longer than known so far.
    ahead: Option<Extent>,
    failed: bool,
}

impl<R: ReadAt> Image<R> {
    /// Iterates over the extents of a regular file, directory or symbolic link, from the block that
    /// holds byte `offset` on. The first extent is cut to start at `offset`.
    ///
    /// An item is an error when the map of the file is malformed.
    pub fn extents(&self, node: &Node, offset: u64) -> Extents<'_, R> {
        let map = Map::new(*node);
        Extents { image: self, map, node: *node, position: offset, ahead: None, failed: false }
    }

    /// Fills `buf` with the file's bytes from `offset` on; holes read as zeros.
    ///
    /// Errors: [`NodeFault::End`] when the file ends before `buf` does.
    pub fn read_data(&self, node: &Node, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.extents(node, offset).read(offset, buf)
    }

    /// Data of a file that lies in its inode. The file may be longer; its other bytes are zeros.
    pub(super) fn inline_data(&self, node: &Node) -> Result<Vec<u8>, ReadError> {
        let mut data = node.inode.payload.to_vec();
        if node.inode.size_bytes > Inode::PAYLOAD_LEN as u64 {
            data.extend(self.inline_rest(node)?);
        }
        Ok(data)
    }
}

impl<R: ReadAt> Extents<'_, R> {
    /// Fills `buf` with the file's bytes from `offset` on. The position of the iteration is lost.
    ///
    /// Consecutive reads through one `Extents` are faster than [`Image::read_data`], because the
    /// map of the file is kept.
    ///
    /// Errors: as [`Image::read_data`].
    pub fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let len = buf.len() as u64;
        let size_bytes = self.node.inode.size_bytes;
        if offset.checked_add(len).is_none_or(|end| end > size_bytes) {
            let fault = NodeFault::End { offset, len, size_bytes };
            return Err(ReadError::Node { number: self.node.number, fault });
        }
        let bits = self.image.superblock.block_bits;
        let (mut rest, mut next) = (buf, offset);
        while !rest.is_empty() {
            let Some(extent) = self.at(next)? else { break };
            let len = usize::try_from(extent.len).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            match extent.place {
                Place::Hole => now.fill(0),
                Place::Blocks { start } => self.image.blocks.read_run(start, bits.within(next), now)?,
                Place::Inline => {
                    let data = self.image.inline_data(&self.node)?;
                    let start = usize::try_from(next).unwrap_or(usize::MAX);
                    // The data is as long as before, unless the image is being changed.
                    let data = data.get(start..).unwrap_or_default();
                    let (there, beyond) = now.split_at_mut(data.len().min(now.len()));
                    there.copy_from_slice(data.get(..there.len()).unwrap_or_default());
                    beyond.fill(0);
                }
            }
            next += len as u64;
            rest = later;
        }
        Ok(())
    }

    /// Extent that starts at byte `offset` of the file; `None` at or after the end of the file.
    fn at(&mut self, offset: u64) -> Result<Option<Extent>, ReadError> {
        let size = self.node.inode.size_bytes;
        if offset >= size {
            return Ok(None);
        }
        let (len, place) = match self.node.inode.content() {
            Content::Extents | Content::BlockMap => {
                let bits = self.image.superblock.block_bits;
                let run = self.map.find(self.image, offset >> bits.get())?;
                // Runs end at block 2^32 at most.
                let len = (run.end << bits.get()).min(size) - offset;
                (len, run.start.map_or(Place::Hole, |start| Place::Blocks { start }))
            }
            Content::Target => (size - offset, Place::Inline),
            Content::Inline => {
                // A file that grew without being written to still lies in its inode.
                let stored = (self.image.inline_data(&self.node)?.len() as u64).min(size);
                match stored.checked_sub(offset) {
                    None | Some(0) => (size - offset, Place::Hole),
                    Some(len) => (len, Place::Inline),
                }
            }
            Content::Device(_) | Content::None => {
                return Err(ReadError::Node { number: self.node.number, fault: NodeFault::NoData });
            }
        };
        Ok(Some(Extent { offset, len, place }))
    }

    /// First byte from `offset` on that is not in a hole; `None` when only a hole follows.
    pub(super) fn next_data(&mut self, mut offset: u64) -> Result<Option<u64>, ReadError> {
        while let Some(extent) = self.at(offset)? {
            if extent.place != Place::Hole {
                return Ok(Some(offset));
            }
            offset += extent.len;
        }
        Ok(None)
    }

    /// Next extent, joined with all that continue it.
    fn joined(&mut self) -> Result<Option<Extent>, ReadError> {
        let bits = self.image.superblock.block_bits;
        let mut whole = match self.ahead.take() {
            Some(extent) => extent,
            None => match self.at(self.position)? {
                Some(extent) => extent,
                None => return Ok(None),
            },
        };
        loop {
            self.position = whole.offset + whole.len;
            let Some(next) = self.at(self.position)? else { return Ok(Some(whole)) };
            let joins = match (whole.place, next.place) {
                (Place::Hole, Place::Hole) => true,
                (Place::Blocks { start }, Place::Blocks { start: next_start }) => {
                    let blocks = (next.offset >> bits.get()) - (whole.offset >> bits.get());
                    start.0 + blocks == next_start.0
                }
                _ => false,
            };
            if !joins {
                self.ahead = Some(next);
                return Ok(Some(whole));
            }
            whole.len += next.len;
        }
    }
}

impl<R: ReadAt> Iterator for Extents<'_, R> {
    type Item = Result<Extent, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.joined().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}
