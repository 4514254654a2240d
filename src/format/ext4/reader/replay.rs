//! Replays the journal into an index of the blocks that have a newer copy in it.
//!
//! Walks the log three times, as the kernel does: to find its end, the revoked blocks, and the
//! copies that count.
//!
//! Described in `docs/formats/ext4.md`, "Journal". Source: Linux `fs/jbd2/recovery.c` (`do_one_pass`).

use std::collections::BTreeMap;

use super::{Image, Replayed, blocks::Copy, error::ReadError, map::Map};
use crate::{
    format::{
        ReadAt,
        ext4::{
            Block, checksum,
            journal::{
                self, BlockKind, Commit, Header, JournalError, Superblock as Journal, Tags, incompat,
                revocations,
            },
            superblock::{Superblock, SuperblockError},
        },
    },
    limits::JOURNAL_ENTRIES,
};

/// Log of the journal, read block by block.
struct Log<'i, R> {
    image: &'i Image<R>,
    journal: Journal,
    map: Map,
    /// Bytes of the block read last.
    block: Vec<u8>,
    /// Journal block number of that block.
    at: u32,
    next: u32,
    /// Blocks passed since the start, to detect a log without an end.
    passed: u32,
    /// Number of the transaction whose blocks are expected next.
    sequence: u32,
}

/// Search for the end of the finished transactions.
struct Scan<'l, 'i, R> {
    log: &'l mut Log<'i, R>,
    /// Transaction that is not finished although its commit may be there.
    end: Option<u32>,
    /// Checksum that did not match. The time of the next commit decides: earlier means old blocks,
    /// later damage.
    suspect: Option<JournalError>,
    /// Time of the last commit, in seconds since 1970.
    seconds: u64,
    /// CRC-32 of the transaction so far.
    sum: u32,
}

impl<R: ReadAt> Image<R> {
    /// Replays the journal: blocks with a copy in it are read from there afterwards.
    pub(super) fn replay(&mut self, size_bytes: u64) -> Result<(), ReadError> {
        let Some(number) = self.superblock.journal else { return Err(JournalError::External.into()) };
        let node = self.node(number)?;
        if !node.inode.has_blocks() {
            return Err(JournalError::Magic.into());
        }
        let mut log = Log::open(self, Map::new(node))?;
        let Some(start) = log.journal.start else {
            self.replayed = Some(Replayed { transactions: 0, blocks: 0, revoked: 0 });
            return Ok(());
        };
        let first = log.journal.sequence;
        let end = Scan { log: &mut log, end: None, suspect: None, seconds: 0, sum: !0 }.run(start)?;
        log.refuse_fast_commits(end)?;
        let revoked = log.revoked(start, end)?;
        let copies = log.copies(start, end, &revoked, size_bytes >> self.superblock.block_bits.get())?;
        let revoked = revoked.len();
        self.blocks.overlay(copies);
        self.reread(size_bytes)?;
        let (transactions, blocks) = (end.wrapping_sub(first), self.blocks.copies());
        self.replayed = Some(Replayed { transactions, blocks, revoked });
        Ok(())
    }

    /// Decodes the superblock again when the journal holds a copy of it.
    fn reread(&mut self, size_bytes: u64) -> Result<(), ReadError> {
        let bits = self.superblock.block_bits;
        let block = self.blocks.read(Block(Superblock::OFFSET >> bits.get()), "superblock")?;
        let start = usize::try_from(bits.within(Superblock::OFFSET)).unwrap_or_default();
        let record = block.get(start..).and_then(|rest| rest.first_chunk()).copied();
        let superblock = Superblock::decode(&record.unwrap_or([0; Superblock::LEN]))?;
        if superblock.block_bits != bits {
            return Err(SuperblockError::Field {
                field: "s_log_block_size",
                found: superblock.block_bits.size(),
                want: "the same in the journal",
            }
            .into());
        }
        if superblock.size_bytes() > size_bytes {
            return Err(ReadError::Truncated { size_bytes, want: superblock.size_bytes() });
        }
        self.blocks.set_count(superblock.blocks);
        self.superblock = superblock;
        Ok(())
    }
}

impl<'i, R: ReadAt> Log<'i, R> {
    fn open(image: &'i Image<R>, mut map: Map) -> Result<Self, ReadError> {
        let place = place(image, &mut map, 0)?;
        let block = image.blocks.read(place, "journal")?;
        let record = block.first_chunk().ok_or(JournalError::Magic)?;
        let journal = Journal::decode(record, image.superblock.block_bits.size())?;
        let sequence = journal.sequence;
        let block = vec![0; image.superblock.block_bits.buffer_len()];
        Ok(Self { image, journal, map, block, at: 0, next: 0, passed: 0, sequence })
    }

    /// Returns to the start of the log.
    fn begin(&mut self, start: u32) {
        (self.next, self.passed, self.sequence) = (start, 0, self.journal.sequence);
    }

    fn read(&mut self, at: u32) -> Result<(), ReadError> {
        let place = place(self.image, &mut self.map, at)?;
        self.at = at;
        self.image.blocks.read_run(place, 0, &mut self.block)
    }

    /// Moves on by one block. Returns the number of the block passed.
    fn pass(&mut self) -> Result<u32, ReadError> {
        let blocks = self.journal.end - self.journal.first;
        if self.passed > blocks {
            return Err(JournalError::Endless { blocks }.into());
        }
        self.passed += 1;
        let passed = self.next;
        self.next = self.journal.after(passed);
        Ok(passed)
    }

    /// Reads the next block. Returns its kind, or `None` when it does not belong to the
    /// transaction.
    fn next_block(&mut self) -> Result<Option<BlockKind>, ReadError> {
        let at = self.pass()?;
        self.read(at)?;
        let header = Header::decode(&self.block).filter(|header| header.sequence == self.sequence);
        Ok(header.map(|header| header.kind))
    }

    /// Like [`Self::next_block`], in a transaction that is known to be finished: other blocks there
    /// are an error.
    fn next_known(&mut self, end: u32) -> Result<Option<BlockKind>, ReadError> {
        if reached(self.sequence, end) {
            return Ok(None);
        }
        let kind = self.next_block()?;
        if kind.is_none() {
            return Err(JournalError::Changed { block: self.at, sequence: self.sequence }.into());
        }
        Ok(kind)
    }

    fn next_transaction(&mut self) {
        self.sequence = self.sequence.wrapping_add(1);
    }

    /// Fault in the checksum of the descriptor or the revocations read last, if there is one.
    fn tail_fault(&self, what: &'static str) -> Option<JournalError> {
        let (stored, computed) = self.journal.tail_checksum(&self.block)?;
        (stored != computed).then_some(JournalError::Checksum { what, block: self.at, stored, computed })
    }

    fn refuse_fast_commits(&mut self, end: u32) -> Result<(), ReadError> {
        if let Some(at) = self.journal.fast_commits.filter(|at| *at < self.journal.blocks) {
            self.read(at)?;
            if journal::is_fast_commit(&self.block, end) {
                return Err(JournalError::FastCommit { sequence: end }.into());
            }
        }
        Ok(())
    }

    /// Blocks that are revoked, each with the last transaction that revokes it.
    fn revoked(&mut self, start: u32, end: u32) -> Result<BTreeMap<Block, u32>, ReadError> {
        let mut revoked = BTreeMap::new();
        self.begin(start);
        while let Some(kind) = self.next_known(end)? {
            match kind {
                BlockKind::Commit => self.next_transaction(),
                BlockKind::Descriptor => {
                    for _ in 0..Tags::new(&self.block, &self.journal).count() {
                        self.pass()?;
                    }
                }
                BlockKind::Revoke => {
                    let found = revocations(&self.block, &self.journal)
                        .map_err(|found| JournalError::Revocations { block: self.at, found })?;
                    revoked.extend(found.map(|block| (block, self.sequence)));
                    if revoked.len() > JOURNAL_ENTRIES {
                        return Err(JournalError::Entries.into());
                    }
                }
                BlockKind::SuperblockV1 | BlockKind::SuperblockV2 => break,
            }
        }
        Ok(revoked)
    }

    /// Last copy of each block that no later transaction revokes, by the block that it replaces.
    fn copies(
        &mut self,
        start: u32,
        end: u32,
        revoked: &BTreeMap<Block, u32>,
        blocks: u64,
    ) -> Result<BTreeMap<Block, Copy>, ReadError> {
        let mut copies = BTreeMap::new();
        let mut buffer = vec![0; self.block.len()];
        self.begin(start);
        while let Some(kind) = self.next_known(end)? {
            match kind {
                BlockKind::Commit => self.next_transaction(),
                BlockKind::Descriptor => {
                    if let Some(fault) = self.tail_fault("a descriptor") {
                        return Err(fault.into());
                    }
                    let (descriptor, journal, at) = (self.block.clone(), self.journal, self.at);
                    for tag in Tags::new(&descriptor, &journal) {
                        let copy_at = self.pass()?;
                        // A revocation applies to copies in its own transaction and in earlier
                        // ones.
                        let revoked = revoked.get(&tag.target);
                        if revoked.is_some_and(|until| reached(*until, self.sequence)) {
                            continue;
                        }
                        if tag.target.0 >= blocks {
                            let target = tag.target;
                            let what = "the descriptor in block";
                            return Err(JournalError::Target { what, block: at, target, blocks }.into());
                        }
                        let place = place(self.image, &mut self.map, copy_at)?;
                        if journal.has_checksums() {
                            self.image.blocks.read_run(place, 0, &mut buffer)?;
                            verify_copy(&journal, &tag, self.sequence, copy_at, &buffer)?;
                        }
                        copies.insert(tag.target, Copy { place, escaped: tag.escaped });
                        if copies.len() > JOURNAL_ENTRIES {
                            return Err(JournalError::Entries.into());
                        }
                    }
                }
                BlockKind::Revoke => {}
                BlockKind::SuperblockV1 | BlockKind::SuperblockV2 => break,
            }
        }
        Ok(copies)
    }
}

impl<R: ReadAt> Scan<'_, '_, R> {
    /// Returns the number of the first transaction that is not finished.
    fn run(mut self, start: u32) -> Result<u32, ReadError> {
        self.log.begin(start);
        while let Some(kind) = self.log.next_block()? {
            match kind {
                BlockKind::Descriptor => self.descriptor()?,
                BlockKind::Revoke => {
                    self.suspect = self.suspect.or(self.log.tail_fault("revocations"));
                }
                BlockKind::Commit => {
                    if !self.commit()? {
                        break;
                    }
                }
                BlockKind::SuperblockV1 | BlockKind::SuperblockV2 => break,
            }
        }
        Ok(self.end.unwrap_or(self.log.sequence))
    }

    fn descriptor(&mut self) -> Result<(), ReadError> {
        self.suspect = self.suspect.or(self.log.tail_fault("a descriptor"));
        let summed = self.log.journal.sums_transactions && self.suspect.is_none() && self.end.is_none();
        if summed {
            self.sum = checksum::crc32_be(self.sum, &self.log.block);
        }
        for _ in 0..Tags::new(&self.log.block, &self.log.journal).count() {
            let at = self.log.pass()?;
            if summed {
                self.log.read(at)?;
                self.sum = checksum::crc32_be(self.sum, &self.log.block);
            }
        }
        Ok(())
    }

    /// Handles the commit read last. Returns false when the log ends before it.
    fn commit(&mut self) -> Result<bool, ReadError> {
        let journal = self.log.journal;
        let record = self.log.block.first_chunk().copied().unwrap_or([0; Commit::LEN]);
        let commit = Commit::decode(&record);
        // Blocks of an earlier use of the log have a commit time before that of the last commit.
        let stale = commit.seconds < self.seconds;
        if let Some(fault) = self.suspect {
            return if stale { Ok(false) } else { Err(fault.into()) };
        }
        let fault = |stored, computed| JournalError::Checksum {
            what: "a transaction",
            block: self.log.at,
            stored,
            computed,
        };
        let mut wrong = None;
        if journal.sums_transactions {
            if self.end.is_some() {
                // A crash did not cut off the transaction before, because this one was written
                // after it.
                return Err(fault(commit.checksum, self.sum).into());
            }
            let unused = commit.checksum_form == (0, 0) && commit.checksum == 0;
            if !unused && (commit.checksum_form != (1, 4) || commit.checksum != self.sum) {
                wrong = Some(fault(commit.checksum, self.sum));
            }
            self.sum = !0;
        }
        let computed = Commit::block_checksum(&journal, &self.log.block);
        if let Some(computed) = computed.filter(|computed| *computed != commit.checksum) {
            wrong = Some(fault(commit.checksum, computed));
        }
        if let Some(fault) = wrong {
            if stale {
                return Ok(false);
            }
            if !journal.has(incompat::ASYNC_COMMIT) {
                return Err(fault.into());
            }
            self.end = self.end.or(Some(self.log.sequence));
        }
        self.seconds = commit.seconds;
        self.log.next_transaction();
        Ok(true)
    }
}

/// Block of the file system that holds block `at` of the journal.
fn place<R: ReadAt>(image: &Image<R>, map: &mut Map, at: u32) -> Result<Block, ReadError> {
    let run = map.find(image, at.into())?;
    run.start.ok_or_else(|| JournalError::Hole { block: at }.into())
}

/// True when transaction `sequence` is `end` or a later one. Numbers wrap at 2^32.
fn reached(sequence: u32, end: u32) -> bool {
    sequence.wrapping_sub(end) < 1 << 31
}

fn verify_copy(
    journal: &Journal,
    tag: &journal::Tag,
    sequence: u32,
    block: u32,
    copy: &[u8],
) -> Result<(), JournalError> {
    match journal.copy_checksum(tag, sequence, copy) {
        Some((stored, computed)) if stored != computed => {
            Err(JournalError::Checksum { what: "a copy", block, stored, computed })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_transactions_wrap() {
        for (sequence, end, want) in [
            (1, 1, true),
            (0, 1, false),
            (2, 1, true),
            (u32::MAX, 0, false),
            (0, u32::MAX, true),
            (5, u32::MAX - 5, true),
        ] {
            assert_eq!(reached(sequence, end), want, "{sequence} {end}");
        }
    }
}
