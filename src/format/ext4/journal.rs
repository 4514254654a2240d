//! The journal: copies of blocks on their way to their places, in transactions.
//!
//! All numbers are big-endian. The reader decides how transactions follow each other.
//!
//! Source: Linux `include/linux/jbd2.h`; `fs/jbd2/recovery.c`, `fs/jbd2/journal.c`,
//! `Documentation/filesystems/ext4/journal.rst`; for fast commits `fs/ext4/fast_commit.h`.

use super::{Block, checksum};
use crate::{
    error::{Classify, Kind},
    format::record::get,
};

/// Header of the journal's own blocks, big-endian, 12 bytes.
///
/// | offset | size | field       | unit and meaning                                                 |
/// |-------:|-----:|-------------|------------------------------------------------------------------|
/// |      0 |    4 | h_magic     | 0xC03B3998                                                       |
/// |      4 |    4 | h_blocktype | 1 descriptor, 2 commit, 3 and 4 superblock, 5 revocations        |
/// |      8 |    4 | h_sequence  | number of the transaction                                        |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Kind of block that follows the header.
    pub kind: BlockKind,
    /// Number of the transaction that the block belongs to.
    pub sequence: u32,
}

/// Kind of a journal block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Tags of the blocks that follow.
    Descriptor,
    /// End of a transaction.
    Commit,
    /// Superblock in its first version, without features.
    SuperblockV1,
    /// Superblock with features.
    SuperblockV2,
    /// Numbers of blocks whose earlier copies do not count.
    Revoke,
}

impl Header {
    /// Length of the record, in bytes.
    pub const LEN: usize = 12;
    /// First four bytes of every journal block, big-endian.
    pub const MAGIC: u32 = 0xC03B_3998;

    /// Reads the header of a block; `None` for a block without the magic number or of an unknown
    /// kind.
    pub fn decode(block: &[u8]) -> Option<Self> {
        let record = block.first_chunk::<{ Self::LEN }>()?;
        let kind = match u32::from_be_bytes(get::<4, _, _>(record)) {
            1 => BlockKind::Descriptor,
            2 => BlockKind::Commit,
            3 => BlockKind::SuperblockV1,
            4 => BlockKind::SuperblockV2,
            5 => BlockKind::Revoke,
            _ => return None,
        };
        let magic = u32::from_be_bytes(get::<0, _, _>(record));
        (magic == Self::MAGIC).then(|| Self { kind, sequence: u32::from_be_bytes(get::<8, _, _>(record)) })
    }
}

/// The journal's superblock: its block 0, big-endian, 1024 bytes; the fields that are read.
///
/// | offset | size | field              | unit and meaning                                          |
/// |-------:|-----:|--------------------|-----------------------------------------------------------|
/// |   0x00 |   12 | s_header           | [`Header`]                                                |
/// |   0x0C |    4 | s_blocksize        | bytes, that of the file system                            |
/// |   0x10 |    4 | s_maxlen           | blocks of the journal, this one included                  |
/// |   0x14 |    4 | s_first            | first block of the log                                    |
/// |   0x18 |    4 | s_sequence         | number of the first transaction in the log                |
/// |   0x1C |    4 | s_start            | block at which it starts; 0: there is none                |
/// |   0x24 |    4 | s_feature_compat   | bit 0: commit blocks have a checksum of the transaction   |
/// |   0x28 |    4 | s_feature_incompat | [`incompat`]                                              |
/// |   0x30 |   16 | s_uuid             | what checksums start from                                 |
/// |   0x50 |    1 | s_checksum_type    | 4: CRC-32C                                                |
/// |   0x54 |    4 | s_num_fc_blks      | blocks for fast commits, at the end; 0: 256               |
/// |   0xFC |    4 | s_checksum         | CRC-32C of all 1024 bytes, itself as zero                 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Length of the journal, in blocks.
    pub blocks: u32,
    /// First block of the log.
    pub first: u32,
    /// Block after the last one of the log.
    pub end: u32,
    /// Number of the first transaction in the log.
    pub sequence: u32,
    /// Block at which the first transaction starts; `None` for an empty log.
    pub start: Option<u32>,
    /// Bits of [`incompat`].
    pub feature_incompat: u32,
    /// True when commit blocks hold a CRC-32 of all blocks of the transaction.
    pub sums_transactions: bool,
    /// Start value of the checksums of blocks.
    pub checksum_seed: u32,
    /// First block of fast commits; `None` without room for any.
    pub fast_commits: Option<u32>,
}

/// Features of a journal that a reader must know.
pub mod incompat {
    /// Revocation blocks exist.
    pub const REVOKE: u32 = 0x1;
    /// Block numbers have 64 bits.
    pub const WIDE: u32 = 0x2;
    /// A transaction's blocks may be written after its commit.
    pub const ASYNC_COMMIT: u32 = 0x4;
    /// Blocks have checksums. Tags hold the low half of those of copies.
    pub const CSUM_V2: u32 = 0x8;
    /// Blocks have checksums. Tags hold those of copies in full.
    pub const CSUM_V3: u32 = 0x10;
    /// Fast commits exist.
    pub const FAST_COMMIT: u32 = 0x20;

    /// All bits that are read. Journals with others are refused.
    pub const KNOWN: u32 = REVOKE | WIDE | ASYNC_COMMIT | CSUM_V2 | CSUM_V3 | FAST_COMMIT;
}

/// Refusal or failure to replay a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// Block 0 of the journal is no superblock.
    #[error("it does not start with a superblock")]
    Magic,
    /// The stored checksum is not that of the bytes.
    #[error("the checksum {stored:#010x} of {what}, block {block}, is not the computed {computed:#010x}")]
    Checksum {
        /// Kind of the block, in words.
        what: &'static str,
        /// Block of the journal, counted from its superblock.
        block: u32,
        /// Checksum that is stored in the journal.
        stored: u32,
        /// Checksum of the covered bytes.
        computed: u32,
    },
    /// A field of the superblock has a value that no kernel accepts.
    #[error("superblock field {field} is {found}, not {want}")]
    Field {
        /// Name of the field, as the kernel spells it.
        field: &'static str,
        /// Value that was found in the field.
        found: u64,
        /// Values that are accepted, in words.
        want: &'static str,
    },
    /// Incompatible features that are unknown.
    #[error("its features {bits:#x} are not known")]
    Feature {
        /// Bits of the unknown features.
        bits: u32,
    },
    /// Fast commits follow the last transaction and would have to be replayed.
    #[error("it holds fast commits of transaction {sequence}, which are not supported")]
    FastCommit {
        /// Number of the transaction after which they come.
        sequence: u32,
    },
    /// The journal lies on another device.
    #[error("it is on a device of its own, and has to be replayed")]
    External,
    /// A tag or a revocation names a block outside the file system.
    #[error("{what} {block} is about block {target} of {blocks}")]
    Target {
        /// Kind of the record, in words.
        what: &'static str,
        /// Block of the journal that holds the record.
        block: u32,
        /// Block of the file system that it names.
        target: Block,
        /// Number of blocks in the file system.
        blocks: u64,
    },
    /// The log runs through all its blocks without an end.
    #[error("its transactions are longer than its {blocks} blocks")]
    Endless {
        /// Number of blocks in the log.
        blocks: u32,
    },
    /// A block of revocations claims more bytes than it has.
    #[error("the revocations in block {block} take {found} bytes")]
    Revocations {
        /// Block of the journal, counted from its superblock.
        block: u32,
        /// Bytes that its header claims.
        found: u32,
    },
    /// The journal holds copies of, or revokes, more blocks than the index may hold.
    #[error("it holds more than {} blocks", crate::limits::JOURNAL_ENTRIES)]
    Entries,
    /// A block differs from what the scan for the end found: the journal is being written.
    #[error("block {block} is no longer one of transaction {sequence}")]
    Changed {
        /// Block of the journal, counted from its superblock.
        block: u32,
        /// Number of the transaction that was expected.
        sequence: u32,
    },
    /// The journal's file has a hole, or fewer blocks than its superblock says.
    #[error("its block {block} is not there")]
    Hole {
        /// Block of the journal, counted from its superblock.
        block: u32,
    },
}

impl Classify for JournalError {
    fn kind(&self) -> Kind {
        match self {
            Self::Feature { .. } | Self::FastCommit { .. } | Self::External => Kind::NotImplemented,
            Self::Entries => Kind::Exhausted,
            Self::Changed { .. } => Kind::Changed,
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Magic | Self::Field { .. } => "ext4.journal.superblock",
            Self::Checksum { .. } => "ext4.journal.checksum",
            Self::Feature { .. } => "ext4.journal.feature",
            Self::FastCommit { .. } => "ext4.journal.fast-commit",
            Self::External => "ext4.journal.external",
            Self::Target { .. } => "ext4.journal.target",
            Self::Endless { .. } => "ext4.journal.endless",
            Self::Revocations { .. } => "ext4.journal.revocations",
            Self::Hole { .. } => "ext4.journal.hole",
            Self::Changed { .. } => "ext4.journal.changed",
            Self::Entries => "limit.journal",
        }
    }
}

impl Superblock {
    /// Length of the record, in bytes.
    pub const LEN: usize = 1024;
    /// Fewest blocks left to the log when fast commits get theirs: the kernel's
    /// `JBD2_MIN_JOURNAL_BLOCKS`.
    const LEAST_LOG: u32 = 1024;

    /// Reads the superblock. `block_len` is the block size of the file system in bytes.
    ///
    /// Errors: [`JournalError`] for a wrong magic number, checksum or field, or unknown features.
    pub fn decode(record: &[u8; Self::LEN], block_len: u64) -> Result<Self, JournalError> {
        let header = Header::decode(record).ok_or(JournalError::Magic)?;
        let featured = match header.kind {
            BlockKind::SuperblockV1 => false,
            BlockKind::SuperblockV2 => true,
            _ => return Err(JournalError::Magic),
        };
        let features = |bits: [u8; 4]| if featured { u32::from_be_bytes(bits) } else { 0 };
        let feature_incompat = features(get::<0x28, _, _>(record));
        let unknown = feature_incompat & !incompat::KNOWN;
        if unknown != 0 {
            return Err(JournalError::Feature { bits: unknown });
        }
        let field = |field, found: u32, want| JournalError::Field { field, found: found.into(), want };
        if feature_incompat & (incompat::CSUM_V2 | incompat::CSUM_V3) != 0 {
            Self::verify(record)?;
        }
        let len = u32::from_be_bytes(get::<0x0C, _, _>(record));
        if u64::from(len) != block_len {
            return Err(field("s_blocksize", len, "that of the file system"));
        }
        let blocks = u32::from_be_bytes(get::<0x10, _, _>(record));
        let first = u32::from_be_bytes(get::<0x14, _, _>(record));
        let (end, fast_commits) = Self::log_end(record, blocks, feature_incompat);
        if first == 0 || first >= end {
            return Err(field("s_first", first, "within the journal"));
        }
        let start = u32::from_be_bytes(get::<0x1C, _, _>(record));
        if start != 0 && !(first..end).contains(&start) {
            return Err(field("s_start", start, "within the log"));
        }
        Ok(Self {
            blocks,
            first,
            end,
            sequence: u32::from_be_bytes(get::<0x18, _, _>(record)),
            start: (start != 0).then_some(start),
            feature_incompat,
            sums_transactions: features(get::<0x24, _, _>(record)) & 1 != 0,
            checksum_seed: checksum::crc32c(checksum::START, &get::<0x30, 16, _>(record)),
            fast_commits,
        })
    }

    /// Block after the last one of the log, then the first block of fast commits behind it.
    fn log_end(record: &[u8; Self::LEN], blocks: u32, features: u32) -> (u32, Option<u32>) {
        if features & incompat::FAST_COMMIT == 0 {
            return (blocks, None);
        }
        let fast = match u32::from_be_bytes(get::<0x54, _, _>(record)) {
            0 => 256,
            fast => fast,
        };
        match blocks.checked_sub(fast) {
            Some(end) if end >= Self::LEAST_LOG => (end, end.checked_add(1)),
            // Without room for both, the kernel uses no fast commits.
            _ => (blocks, None),
        }
    }

    fn verify(record: &[u8; Self::LEN]) -> Result<(), JournalError> {
        let [kind] = get::<0x50, _, _>(record);
        if kind != 4 {
            return Err(JournalError::Field { field: "s_checksum_type", found: kind.into(), want: "4" });
        }
        let stored = u32::from_be_bytes(get::<0xFC, _, _>(record));
        let parts = [&get::<0, 0xFC, _>(record)[..], &[0; 4], &get::<0x100, 0x300, _>(record)];
        let computed = parts.iter().fold(checksum::START, |crc, part| checksum::crc32c(crc, part));
        if stored != computed {
            return Err(JournalError::Checksum { what: "the superblock", block: 0, stored, computed });
        }
        Ok(())
    }

    /// True when all bits of `features`, of [`incompat`], are set.
    pub fn has(&self, features: u32) -> bool {
        self.feature_incompat & features == features
    }

    /// True when blocks have checksums of their own: CSUM_V2 or CSUM_V3.
    pub fn has_checksums(&self) -> bool {
        self.feature_incompat & (incompat::CSUM_V2 | incompat::CSUM_V3) != 0
    }

    /// Block after `block` in the log, which is a ring.
    pub fn after(&self, block: u32) -> u32 {
        match block.checked_add(1) {
            Some(next) if next < self.end => next,
            _ => self.first,
        }
    }

    /// Length of the checksum at the end of descriptors and revocations, in bytes; 0 without
    /// checksums.
    fn tail_len(&self) -> usize {
        if self.has_checksums() { 4 } else { 0 }
    }

    /// Stored and computed checksum of a descriptor or of revocations, from its last 4 bytes.
    pub fn tail_checksum(&self, block: &[u8]) -> Option<(u32, u32)> {
        let (covered, stored) = block.split_last_chunk().filter(|_| self.has_checksums())?;
        let crc = checksum::crc32c(self.checksum_seed, covered);
        Some((u32::from_be_bytes(*stored), checksum::crc32c(crc, &[0; 4])))
    }

    /// Stored and computed checksum of the copy that `tag` describes.
    pub fn copy_checksum(&self, tag: &Tag, sequence: u32, copy: &[u8]) -> Option<(u32, u32)> {
        if !self.has_checksums() {
            return None;
        }
        let crc = checksum::crc32c(self.checksum_seed, &sequence.to_be_bytes());
        let crc = checksum::crc32c(crc, copy);
        let mask = if self.has(incompat::CSUM_V3) { u32::MAX } else { 0xFFFF };
        Some((tag.checksum, crc & mask))
    }
}

/// Tag in a descriptor, which describes one of the copies that follow it, big-endian.
///
/// | first form, and v2 | v3 | size  | field          | unit and meaning                                  |
/// |-------------------:|---:|------:|----------------|---------------------------------------------------|
/// |                  0 |  0 |     4 | t_blocknr      | block of the file system                          |
/// |                  4 | 12 | 2 / 4 | t_checksum     | CRC-32C of the sequence and the copy, or its low half |
/// |                  6 |  4 | 2 / 4 | t_flags        | 1 escaped, 2 no uuid follows, 4 deleted, 8 the last |
/// |                  8 |  8 |     4 | t_blocknr_high | bits 32..63, with WIDE; else not there, but for v3 |
/// |                  – |  – |     2 |                | with v2 only                                      |
/// |                  – |  – |    16 | uuid           | without flag 2                                    |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Block of the file system that was copied.
    pub target: Block,
    /// True when the copy began with the journal's magic number, which is zeroed in the journal.
    pub escaped: bool,
    /// CRC-32C of the copy, or the low half of it.
    pub checksum: u32,
}

/// Iterator over the tags of a descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Tags<'b> {
    rest: &'b [u8],
    wide: bool,
    second: bool,
    third: bool,
}

impl<'b> Tags<'b> {
    /// Starts at the first tag of the descriptor `block`.
    pub fn new(block: &'b [u8], journal: &Superblock) -> Self {
        let end = block.len().saturating_sub(journal.tail_len());
        Self {
            rest: block.get(Header::LEN..end).unwrap_or_default(),
            wide: journal.has(incompat::WIDE),
            second: journal.has(incompat::CSUM_V2),
            third: journal.has(incompat::CSUM_V3),
        }
    }
}

impl Iterator for Tags<'_> {
    type Item = Tag;

    fn next(&mut self) -> Option<Tag> {
        let (head, rest) = self.rest.split_first_chunk::<8>()?;
        let low = u32::from_be_bytes(get::<0, _, _>(head));
        let (flags, high, checksum, rest) = if self.third {
            let (tail, rest) = rest.split_first_chunk::<8>()?;
            let high = u32::from_be_bytes(get::<0, _, _>(tail));
            let checksum = u32::from_be_bytes(get::<4, _, _>(tail));
            (u32::from_be_bytes(get::<4, _, _>(head)), high, checksum, rest)
        } else {
            let flags = u16::from_be_bytes(get::<6, _, _>(head)).into();
            let checksum = u16::from_be_bytes(get::<4, _, _>(head)).into();
            match rest.split_first_chunk() {
                Some((high, rest)) if self.wide => (flags, u32::from_be_bytes(*high), checksum, rest),
                None if self.wide => return None,
                _ => (flags, 0, checksum, rest),
            }
        };
        // Version 2 was meant to widen the checksum, but only made tags longer.
        let gap = if self.second && !self.third { 2 } else { 0 };
        let skipped = gap + if flags & 2 == 0 { 16 } else { 0 };
        let last = flags & 8 != 0;
        self.rest = if last { &[] } else { rest.get(skipped..).unwrap_or_default() };
        let high = if self.wide { u64::from(high) << 32 } else { 0 };
        Some(Tag { target: Block(high | u64::from(low)), escaped: flags & 1 != 0, checksum })
    }
}

/// Commit block, which ends a transaction, big-endian, after the [`Header`].
///
/// | offset | size | field         | unit and meaning                                         |
/// |-------:|-----:|---------------|----------------------------------------------------------|
/// |   0x0C |    1 | h_chksum_type | 1: CRC-32, with checksums of transactions                |
/// |   0x0D |    1 | h_chksum_size | 4                                                        |
/// |   0x10 |   32 | h_chksum      | the first 4: of the transaction, or CRC-32C of the block |
/// |   0x30 |    8 | h_commit_sec  | seconds since 1970                                       |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Kind and length in bytes of the transaction's checksum.
    pub checksum_form: (u8, u8),
    /// Checksum of the transaction, or of this block.
    pub checksum: u32,
    /// Time of the commit, in seconds since 1970.
    pub seconds: u64,
}

impl Commit {
    /// Length of the record, in bytes.
    pub const LEN: usize = 0x38;

    /// Reads the commit from its block.
    pub fn decode(record: &[u8; Self::LEN]) -> Self {
        let [kind, size] = get::<0x0C, _, _>(record);
        Self {
            checksum_form: (kind, size),
            checksum: u32::from_be_bytes(get::<0x10, _, _>(record)),
            seconds: u64::from_be_bytes(get::<0x30, _, _>(record)),
        }
    }

    /// Computes the CRC-32C of a commit block; `None` when blocks have no checksums.
    pub fn block_checksum(journal: &Superblock, block: &[u8]) -> Option<u32> {
        if !journal.has_checksums() {
            return None;
        }
        let (head, rest) = block.split_at_checked(0x10)?;
        let parts = [head, &[0; 4], rest.get(4..)?];
        Some(parts.iter().fold(journal.checksum_seed, |crc, part| checksum::crc32c(crc, part)))
    }
}

/// Iterates over the blocks that a block of revocations names, big-endian.
///
/// | offset | size  | field    | unit and meaning                         |
/// |-------:|------:|----------|------------------------------------------|
/// |      0 |    12 | r_header | [`Header`]                               |
/// |     12 |     4 | r_count  | bytes in use, these 16 included          |
/// |     16 | 4 / 8 |          | block of the file system; 8 with WIDE    |
///
/// Errors: the number of bytes that it claims, when they go beyond the block.
pub fn revocations<'b>(block: &'b [u8], journal: &Superblock) -> Result<impl Iterator<Item = Block>, u32> {
    let field = block.get(Header::LEN..).and_then(|rest| rest.first_chunk());
    let count = field.map_or(0, |field| u32::from_be_bytes(*field));
    let most = block.len().saturating_sub(journal.tail_len());
    let end = usize::try_from(count).ok().filter(|end| *end <= most).ok_or(count)?;
    let width = if journal.has(incompat::WIDE) { 8 } else { 4 };
    let records: &'b [u8] = block.get(Header::LEN + 4..end).unwrap_or_default();
    Ok(records
        .chunks_exact(width)
        .map(|record| Block(record.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte)))))
}

/// True when the first fast-commit block holds fast commits that follow transaction `sequence` − 1.
///
/// | offset | size | field       | unit and meaning (little-endian)       |
/// |-------:|-----:|-------------|----------------------------------------|
/// |      0 |    2 | fc_tag      | 9: the head of a fast commit           |
/// |      2 |    2 | fc_len      | 8                                      |
/// |      4 |    4 | fc_features |                                        |
/// |      8 |    4 | fc_tid      | the full transaction it is part of     |
pub fn is_fast_commit(block: &[u8], sequence: u32) -> bool {
    let Some(record) = block.first_chunk::<12>() else { return false };
    u16::from_le_bytes(get::<0, _, _>(record)) == 9 && u32::from_le_bytes(get::<8, _, _>(record)) == sequence
}
