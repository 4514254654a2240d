//! The index: the stored length of each block, from which its place follows.
//!
//! A terabyte in blocks of 4 KiB has an index of a gigabyte. So the index stays in the file: only the start of every
//! 1024th block is kept, and the lengths of a group are read again when one of its blocks is.
//!
//! Source: `docs/formats/overlaybd.md`, "ZFile, blocks and index".

use super::{ZfileError, header::Header};
use crate::format::{ReadAt, crc32c};

/// Most blocks of a file: the limit of all readers.
pub(super) const BLOCKS_MAX: u64 = 1_000_000_000;
/// Length of an entry in bytes.
pub(super) const ENTRY_LEN: usize = 4;
/// Blocks whose lengths are read together: a page of the index.
pub(super) const GROUP: u64 = 1024;
/// Bytes of the index that are read at a time while it is checked. A multiple of a group.
const CHUNK: usize = 64 << 10;

/// Places of all blocks.
#[derive(Debug)]
pub(super) struct Index {
    offset: u64,
    blocks: u64,
    /// Start of the first block of each group, and the end of the last block.
    starts: Vec<u64>,
    lengths: Lengths,
}

/// Range of a block's stored length in bytes.
#[derive(Clone, Copy, Debug)]
struct Lengths {
    min: u32,
    max: u32,
}

impl Lengths {
    fn of(header: &Header) -> Self {
        // A block has at least one compressed byte.
        let min = if header.verify { 5 } else { 1 };
        Self { min, max: header.block_size.stored_max() }
    }

    fn check(self, block: u64, found: u32) -> Result<u64, ZfileError> {
        if found < self.min || found > self.max {
            return Err(ZfileError::BlockLength { block, found, min: self.min, max: self.max });
        }
        Ok(u64::from(found))
    }
}

impl Index {
    /// Reads and checks the whole index. `header` is the record that counts, and the trailer begins at byte `end`.
    pub(super) fn read(
        source: &(impl ReadAt + ?Sized),
        header: &Header,
        end: u64,
    ) -> Result<Self, ZfileError> {
        let start = Header::LEN as u64 + u64::from(header.dictionary_bytes);
        let (offset, blocks) = (header.index_offset, header.blocks);
        let block_bytes = u64::from(header.block_size.bytes());
        if blocks > BLOCKS_MAX {
            return Err(ZfileError::TooManyBlocks { blocks, max: BLOCKS_MAX });
        }
        let want = header.contents_bytes.div_ceil(block_bytes);
        if blocks != want {
            let (contents_bytes, block_bytes) = (header.contents_bytes, header.block_size.bytes());
            return Err(ZfileError::Blocks { blocks, want, contents_bytes, block_bytes });
        }
        let is_inside = offset >= start
            && offset.checked_add(blocks * ENTRY_LEN as u64).is_some_and(|index_end| index_end <= end);
        if !is_inside {
            return Err(ZfileError::IndexBounds { offset, blocks, start, end });
        }
        let mut index = Self { offset, blocks, starts: Vec::new(), lengths: Lengths::of(header) };
        let (crc, fault) = index.scan(source, start)?;
        if header.has_digest() && crc != header.index_crc {
            return Err(ZfileError::IndexChecksum { offset, stored: header.index_crc, computed: crc });
        }
        if let Some(fault) = fault {
            return Err(fault);
        }
        let end = index.starts.last().copied().unwrap_or(start);
        if end != offset {
            return Err(ZfileError::BlocksEnd { end, index_offset: offset });
        }
        Ok(index)
    }

    /// Fills [`Self::starts`]. Returns the checksum of the index, which goes before the first length out of range.
    fn scan(
        &mut self,
        source: &(impl ReadAt + ?Sized),
        start: u64,
    ) -> Result<(u32, Option<ZfileError>), ZfileError> {
        let (mut at, mut crc, mut block) = (start, 0, 0);
        let mut buffer = vec![0; CHUNK];
        let mut first_fault = None;
        while block < self.blocks {
            let entries = (self.blocks - block).min((CHUNK / ENTRY_LEN) as u64);
            let entries = usize::try_from(entries).unwrap_or_default();
            let chunk = buffer.get_mut(..entries * ENTRY_LEN).unwrap_or_default();
            read(source, self.offset + block * ENTRY_LEN as u64, chunk)?;
            crc = crc32c::raw(crc, chunk);
            for entry in chunk.as_chunks::<ENTRY_LEN>().0 {
                if block % GROUP == 0 {
                    self.starts.push(at);
                }
                match self.lengths.check(block, u32::from_le_bytes(*entry)) {
                    // At most 10^9 blocks of 128 KiB: no overflow.
                    Ok(len) => at += len,
                    Err(fault) => {
                        first_fault.get_or_insert(fault);
                    }
                }
                block += 1;
            }
        }
        self.starts.push(at);
        Ok((crc, first_fault))
    }

    /// Offsets of the blocks of a group, and the end of the last one.
    pub(super) fn group(&self, source: &(impl ReadAt + ?Sized), group: u64) -> Result<Vec<u64>, ZfileError> {
        let first = group * GROUP;
        let entries = self.blocks.saturating_sub(first).min(GROUP);
        let changed = || ZfileError::Changed { block: first };
        let slot = usize::try_from(group).unwrap_or(usize::MAX);
        let (Some(start), Some(end)) = (self.starts.get(slot), self.starts.get(slot.saturating_add(1)))
        else {
            return Err(changed());
        };
        let mut bytes = vec![0; usize::try_from(entries).unwrap_or_default() * ENTRY_LEN];
        read(source, self.offset + first * ENTRY_LEN as u64, &mut bytes)?;
        let mut offsets = vec![*start];
        let mut at = *start;
        for entry in bytes.as_chunks::<ENTRY_LEN>().0 {
            at += self.lengths.check(first, u32::from_le_bytes(*entry)).map_err(|_range| changed())?;
            offsets.push(at);
        }
        if at != *end {
            return Err(changed());
        }
        Ok(offsets)
    }
}

/// Reads a part of the file.
pub(super) fn read(source: &(impl ReadAt + ?Sized), offset: u64, buf: &mut [u8]) -> Result<(), ZfileError> {
    let len = buf.len() as u64;
    source.read_exact_at(offset, buf).map_err(|source| ZfileError::Io { offset, len, source })
}
