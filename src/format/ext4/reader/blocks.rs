//! Blocks of a file system as they are after its journal was replayed: some in their places, some still
//! in the journal.
//!
//! Blocks of metadata are kept for a while, data is not.
//!
//! Described in `docs/formats/ext4.md`, "Journal".

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use super::error::ReadError;
use crate::format::{
    ReadAt,
    ext4::{Block, BlockBits, journal::Header},
};

/// Most bytes of blocks that are kept.
const KEPT_BYTES: u64 = 1 << 20;

/// A copy of a block in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    /// Where the copy is.
    pub(super) place: Block,
    /// Whether its first four bytes are to be the journal's magic number.
    pub(super) escaped: bool,
}

/// The image, by blocks.
#[derive(Debug)]
pub(super) struct Blocks<R> {
    file: R,
    bits: BlockBits,
    /// Blocks of the file system, all within the file.
    count: u64,
    /// Blocks whose newest bytes are in the journal.
    copies: BTreeMap<Block, Copy>,
    kept: RefCell<Kept>,
}

/// Blocks that were read, newest use last.
#[derive(Debug, Default)]
struct Kept {
    blocks: Vec<(Block, Arc<[u8]>)>,
}

impl<R: ReadAt> Blocks<R> {
    pub(super) fn new(file: R, bits: BlockBits, count: u64) -> Self {
        Self { file, bits, count, copies: BTreeMap::new(), kept: RefCell::default() }
    }

    /// Puts copies from the journal in the place of the blocks they are of.
    pub(super) fn overlay(&mut self, copies: BTreeMap<Block, Copy>) {
        self.copies = copies;
        self.kept.get_mut().blocks.clear();
    }

    pub(super) fn copies(&self) -> usize {
        self.copies.len()
    }

    /// Takes another number of blocks, all within the file.
    pub(super) fn set_count(&mut self, count: u64) {
        self.count = count;
    }

    /// Checks that `len` blocks from `start` on exist.
    pub(super) fn contains(&self, start: Block, len: u64, what: &'static str) -> Result<(), ReadError> {
        match start.0.checked_add(len) {
            Some(end) if end <= self.count => Ok(()),
            _ => Err(ReadError::Outside { what, block: start, len, blocks: self.count }),
        }
    }

    /// One block of metadata.
    pub(super) fn read(&self, block: Block, what: &'static str) -> Result<Arc<[u8]>, ReadError> {
        self.contains(block, 1, what)?;
        let mut kept = self.kept.borrow_mut();
        if let Some(index) = kept.blocks.iter().rposition(|(number, _)| *number == block) {
            let found = kept.blocks.remove(index);
            let bytes = Arc::clone(&found.1);
            kept.blocks.push(found);
            return Ok(bytes);
        }
        let mut bytes = vec![0; self.bits.buffer_len()];
        self.fill(block, 0, &mut bytes)?;
        let bytes: Arc<[u8]> = bytes.into();
        let most = usize::try_from(KEPT_BYTES >> self.bits.get()).unwrap_or(1);
        if kept.blocks.len() >= most {
            kept.blocks.remove(0);
        }
        kept.blocks.push((block, Arc::clone(&bytes)));
        Ok(bytes)
    }

    /// Fills `buf` with data from byte `skip` of block `start` on, and of those that follow.
    pub(super) fn read_run(&self, start: Block, skip: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let len = self.bits.blocks_for(skip.saturating_add(buf.len() as u64));
        self.contains(start, len, "file data")?;
        let end = Block(start.0 + len);
        let (mut next, mut skip, mut rest) = (start, skip, buf);
        // Up to each copy the image itself, then the copy.
        for (number, copy) in self.copies.range(start..end) {
            let before = (number.0 - next.0) << self.bits.get();
            // Only the first block is skipped in; a copy of it has nothing before it.
            let before = usize::try_from(before.saturating_sub(skip)).unwrap_or(usize::MAX);
            let (plain, after) = rest.split_at_mut(before.min(rest.len()));
            if !plain.is_empty() {
                self.read_file(next, skip, plain)?;
                skip = 0;
            }
            let room = usize::try_from(self.bits.size() - skip).unwrap_or(usize::MAX);
            let (copied, after) = after.split_at_mut(room.min(after.len()));
            self.fill_copy(*copy, skip, copied)?;
            (next, skip, rest) = (Block(number.0 + 1), 0, after);
        }
        self.read_file(next, skip, rest)
    }

    /// A part of one block.
    fn fill(&self, block: Block, skip: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        match self.copies.get(&block) {
            Some(copy) => self.fill_copy(*copy, skip, buf),
            None => self.read_file(block, skip, buf),
        }
    }

    fn fill_copy(&self, copy: Copy, skip: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.read_file(copy.place, skip, buf)?;
        if copy.escaped {
            let magic = Header::MAGIC.to_be_bytes();
            let rest = usize::try_from(skip).ok().and_then(|skip| magic.get(skip..)).unwrap_or_default();
            buf.iter_mut().zip(rest).for_each(|(byte, magic)| *byte = *magic);
        }
        Ok(())
    }

    /// Bytes of the file as they are.
    fn read_file(&self, block: Block, skip: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        if buf.is_empty() {
            return Ok(());
        }
        // Blocks were checked to be within the file.
        let offset = (block.0 << self.bits.get()) + skip;
        let len = buf.len() as u64;
        self.file.read_exact_at(offset, buf).map_err(|source| ReadError::Io { offset, len, source })
    }
}
