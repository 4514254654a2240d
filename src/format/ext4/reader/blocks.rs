//! Blocks of a file system after its journal was replayed: most in their places, some still in the
//! journal.
//!
//! Keeps metadata blocks for a while, but no data.
//!
//! Described in `docs/formats/ext4.md`, "Journal".

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use super::error::ReadError;
use crate::format::{
    ReadAt,
    ext4::{Block, BlockBits, journal::Header},
};

/// Most bytes of metadata blocks that are kept.
const KEPT_BYTES: u64 = 1 << 20;

/// Copy of a block in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    /// Block of the image that holds the copy.
    pub(super) place: Block,
    /// True when the journal's magic number has to replace the first four bytes.
    pub(super) escaped: bool,
}

/// Image, addressed by blocks.
#[derive(Debug)]
pub(super) struct Blocks<R> {
    file: R,
    bits: BlockBits,
    /// Number of blocks in the file system. All of them lie within the file.
    count: u64,
    /// Blocks whose newest bytes are in the journal, with the places of these.
    copies: BTreeMap<Block, Copy>,
    kept: RefCell<Kept>,
}

/// Metadata blocks that were read, most recently used last.
#[derive(Debug, Default)]
struct Kept {
    blocks: Vec<(Block, Arc<[u8]>)>,
}

impl<R: ReadAt> Blocks<R> {
    pub(super) fn new(file: R, bits: BlockBits, count: u64) -> Self {
        Self { file, bits, count, copies: BTreeMap::new(), kept: RefCell::default() }
    }

    /// Lets copies in the journal take the place of the blocks that they replace.
    pub(super) fn overlay(&mut self, copies: BTreeMap<Block, Copy>) {
        self.copies = copies;
        self.kept.get_mut().blocks.clear();
    }

    pub(super) fn copies(&self) -> usize {
        self.copies.len()
    }

    /// Changes the number of blocks, all of which lie within the file.
    pub(super) fn set_count(&mut self, count: u64) {
        self.count = count;
    }

    /// Refuses `len` blocks from `start` on when some of them lie outside the file system.
    pub(super) fn contains(&self, start: Block, len: u64, what: &'static str) -> Result<(), ReadError> {
        match start.0.checked_add(len) {
            Some(end) if end <= self.count => Ok(()),
            _ => Err(ReadError::Outside { what, block: start, len, blocks: self.count }),
        }
    }

    /// Reads one block of metadata.
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

    /// Fills `buf` with data, from byte `skip` of block `start` on and across the blocks that
    /// follow.
    pub(super) fn read_run(&self, start: Block, skip: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let len = self.bits.blocks_for(skip.saturating_add(buf.len() as u64));
        self.contains(start, len, "file data")?;
        let end = Block(start.0 + len);
        let (mut next, mut skip, mut rest) = (start, skip, buf);
        // The image up to each copy, then that copy.
        for (number, copy) in self.copies.range(start..end) {
            let before = (number.0 - next.0) << self.bits.get();
            // Bytes are skipped in the first block only, and nothing comes before a copy of that.
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

    /// Fills `buf` from byte `skip` of one block.
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

    /// Fills `buf` with bytes of the image, ignoring copies in the journal.
    fn read_file(&self, block: Block, skip: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        if buf.is_empty() {
            return Ok(());
        }
        // The caller has checked that the block lies within the file.
        let offset = (block.0 << self.bits.get()) + skip;
        let len = buf.len() as u64;
        self.file.read_exact_at(offset, buf).map_err(|source| ReadError::Io { offset, len, source })
    }
}
