//! A small file system put together by hand for tests: every record where the test wants it, right or
//! wrong, and sealed with the checksums that make the reader look at it.
//!
//! Described in `docs/formats/ext4.md`.

use super::checksum::{START, crc32c};

/// Length of a block, in bytes.
pub(super) const BLOCK: usize = 1024;
/// Number of blocks in the file system.
pub(super) const BLOCKS: u32 = 27;
/// Length of an inode, in bytes.
const INODE_LEN: usize = 256;
const INODES: u32 = 16;
const INODE_TABLE: usize = 3;
const UUID: [u8; 16] = *b"plywood ext4 uid";
const JOURNAL_UUID: [u8; 16] = *b"plywood jbd2 uid";
const GENERATION: u32 = 7;

/// Numbers of the fixture's inodes.
pub(super) mod ino {
    pub const ROOT: u32 = 2;
    pub const UPPER: u32 = 3;
    pub const FILE: u32 = 4;
    pub const MAP: u32 = 5;
    pub const SMALL: u32 = 6;
    pub const LINK: u32 = 7;
    pub const JOURNAL: u32 = 8;
    pub const SHORT: u32 = 9;
    pub const WHITEOUT: u32 = 10;
    pub const VALUE: u32 = 11;
    pub const TINY: u32 = 12;
    pub const INNER: u32 = 13;
    pub const FIFO: u32 = 14;
}

/// Numbers of the fixture's blocks.
pub(super) mod at {
    pub const ROOT: usize = 7;
    pub const UPPER: usize = 8;
    pub const LEAF: usize = 9;
    /// First data block of the file. The other one comes after a hole.
    pub const FILE: usize = 10;
    pub const FILE_END: usize = 11;
    pub const NUMBERS: usize = 12;
    pub const MAPPED: usize = 13;
    pub const LINK: usize = 14;
    pub const XATTRS: usize = 15;
    pub const VALUE: usize = 16;
    pub const JOURNAL: usize = 17;
}

/// Block numbers inside the journal.
pub(super) mod log {
    pub const LEN: usize = 9;
    pub const DESCRIPTOR: usize = 1;
    /// Copy of the file's first block, escaped.
    pub const COPY: usize = 2;
    /// Copy of the file's last block, which the second transaction revokes.
    pub const REVOKED_COPY: usize = 3;
    pub const COMMIT: usize = 4;
    pub const REVOCATIONS: usize = 5;
    pub const SECOND_COMMIT: usize = 6;
    /// Number of the first transaction; the second has the next.
    pub const FIRST: u32 = 5;
}

/// A file system under construction.
#[derive(Clone)]
pub(super) struct Fixture {
    pub bytes: Vec<u8>,
}

/// Byte of the image for byte `offset` of inode `number`.
pub(super) fn inode_at(number: u32, offset: usize) -> usize {
    INODE_TABLE * BLOCK + (usize::try_from(number).unwrap() - 1) * INODE_LEN + offset
}

/// Byte of the image for byte `offset` of `block`.
pub(super) fn block_at(block: usize, offset: usize) -> usize {
    block * BLOCK + offset
}

/// Byte of the image for byte `offset` of block `block` of the journal.
pub(super) fn log_at(block: usize, offset: usize) -> usize {
    block_at(at::JOURNAL + block, offset)
}

/// Byte of the image for byte `offset` of the superblock.
pub(super) fn super_at(offset: usize) -> usize {
    1024 + offset
}

/// Data of the file: three blocks, of which the middle one is a hole.
pub(super) fn file_data() -> Vec<u8> {
    let mut data = vec![b'f'; BLOCK];
    data.extend([0; BLOCK]);
    data.extend([b'g'; 452]);
    data
}

impl Fixture {
    /// An image with every record the reader knows, all checksums valid. With `dirty`, the first
    /// four bytes of the file are only in the journal.
    pub fn new(dirty: bool) -> Self {
        let blocks = usize::try_from(BLOCKS).unwrap();
        let mut fixture = Self { bytes: vec![0; blocks * BLOCK] };
        fixture.superblock(dirty);
        fixture.le32(block_at(2, 8), u32::try_from(INODE_TABLE).unwrap());
        fixture.directories();
        fixture.files();
        fixture.journal(dirty);
        fixture.seal();
        fixture
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn le32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    pub fn le16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    pub fn be32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_be_bytes());
    }

    fn superblock(&mut self, dirty: bool) {
        for (offset, value) in [
            (0x00, INODES),
            (0x04, BLOCKS),
            (0x14, 1),
            (0x20, 8192),
            (0x24, 8192),
            (0x28, INODES),
            (0x4C, 1),
            (0x58, u32::try_from(INODE_LEN).unwrap()),
            // HAS_JOURNAL, then FILETYPE, EXTENTS, EA_INODE, INLINE_DATA, then SPARSE_SUPER,
            // METADATA_CSUM.
            (0x5C, 0x4),
            (0x60, 0x2 | 0x40 | 0x400 | 0x8000 | if dirty { 0x4 } else { 0 }),
            (0x64, 0x1 | 0x400),
            (0xE0, ino::JOURNAL),
        ] {
            self.le32(super_at(offset), value);
        }
        self.le16(super_at(0x38), 0xEF53);
        self.put(super_at(0x68), &UUID);
        self.put(super_at(0x175), &[1]);
    }

    fn inode(&mut self, number: u32, mode: u16, size: usize, flags: u32, payload: &[u8]) {
        let at = |offset| inode_at(number, offset);
        self.le16(at(0x00), mode);
        self.le16(at(0x02), 0x1170);
        self.le16(at(0x78), 1);
        self.le32(at(0x04), u32::try_from(size).unwrap());
        self.le32(at(0x10), 1_700_000_000);
        self.le16(at(0x1A), 1);
        self.le32(at(0x20), flags);
        self.put(at(0x28), payload);
        self.le32(at(0x64), GENERATION);
        self.le16(at(0x80), 32);
        self.le32(at(0x88), 7 << 2);
    }

    fn directories(&mut self) {
        self.inode(ino::ROOT, 0o40755, BLOCK, 0x8_0000, &extents(&[(0, 1, at::ROOT)]));
        self.inode(ino::UPPER, 0o40755, BLOCK, 0x8_0000, &extents(&[(0, 1, at::UPPER)]));
        let root = [(ino::ROOT, ".", 2), (ino::ROOT, "..", 2), (ino::UPPER, "upper", 2)];
        self.put(block_at(at::ROOT, 0), &records(&root, BLOCK, true));
        let upper = [
            (ino::UPPER, ".", 2),
            (ino::ROOT, "..", 2),
            (ino::FILE, "file", 1),
            (ino::MAP, "map", 1),
            (ino::SMALL, "small", 1),
            (ino::LINK, "link", 7),
            (ino::SHORT, "short", 7),
            (ino::WHITEOUT, "gone", 3),
            (ino::TINY, "tiny", 2),
            (ino::FIFO, "fifo", 5),
        ];
        self.put(block_at(at::UPPER, 0), &records(&upper, BLOCK, true));
        // A directory in its inode: its parent, then records.
        let mut inline = ino::UPPER.to_le_bytes().to_vec();
        inline.extend(records(&[(ino::INNER, "inner", 1)], 56, false));
        self.inode(ino::TINY, 0o40700, 60, 0x1000_0000, &inline);
        self.inode(ino::INNER, 0o100_644, 0, 0x8_0000, &extents(&[]));
    }

    fn files(&mut self) {
        let data = file_data();
        // An extent tree with one level above the leaf.
        self.inode(ino::FILE, 0o100_644, data.len(), 0x8_0000, &index(&[(0, at::LEAF)]));
        self.put(block_at(at::LEAF, 0), &leaf(84, &[(0, 1, at::FILE), (2, 1, at::FILE_END)]));
        self.put(block_at(at::FILE, 0), &data[..BLOCK]);
        self.put(block_at(at::FILE_END, 0), &data[2 * BLOCK..]);
        self.le32(inode_at(ino::FILE, 0x68), u32::try_from(at::XATTRS).unwrap());
        self.xattr_block();
        // Twelve holes, then the numbers of map blocks.
        let mut map = vec![0; 60];
        map[48] = u8::try_from(at::NUMBERS).unwrap();
        self.inode(ino::MAP, 0o104_755, 13 * BLOCK, 0, &map);
        self.le32(block_at(at::NUMBERS, 0), u32::try_from(at::MAPPED).unwrap());
        self.put(block_at(at::MAPPED, 0), &[b'm'; BLOCK]);
        self.inode(ino::SMALL, 0o100_644, 70, 0x1000_0000, &[b's'; 60]);
        self.xattrs_in_inode();
        self.inode(ino::LINK, 0o120_777, 100, 0x8_0000, &extents(&[(0, 1, at::LINK)]));
        self.put(block_at(at::LINK, 0), &[b't'; 100]);
        self.inode(ino::SHORT, 0o120_777, 5, 0, b"small");
        self.inode(ino::WHITEOUT, 0o20_000, 0, 0, &[]);
        self.inode(ino::FIFO, 0o10_600, 0, 0, &[]);
        let value = [b'v'; 700];
        self.inode(ino::VALUE, 0o100_600, value.len(), 0x20_0000 | 0x8_0000, &extents(&[(0, 1, at::VALUE)]));
        self.put(block_at(at::VALUE, 0), &value);
        self.le32(inode_at(ino::VALUE, 0x08), crc32c(seed(), &value));
    }

    /// Puts `system.data`, and `user.a` = `1`, into the inode.
    fn xattrs_in_inode(&mut self) {
        let at = |offset: usize| inode_at(ino::SMALL, 0xA0 + offset);
        self.le32(at(0), 0xEA02_0000);
        self.put(at(4), &xattr(7, "data", 82, 10, 0));
        self.put(at(4 + 20), &xattr(1, "a", 80, 1, 0));
        self.put(at(4 + 80), b"1");
        self.put(at(4 + 82), b"ssssssssss");
    }

    /// Fills the attribute block: `user.large` in an inode, a default access control list,
    /// `trusted.b` = `two`.
    fn xattr_block(&mut self) {
        let at = |offset| block_at(at::XATTRS, offset);
        self.le32(at(0), 0xEA02_0000);
        self.le32(at(4), 1);
        self.le32(at(8), 1);
        self.put(at(32), &xattr(1, "large", 0, 700, ino::VALUE));
        self.put(at(56), &xattr(2, "", 900, 8, 0));
        self.put(at(72), &xattr(4, "b", 1000, 3, 0));
        self.put(at(900), &[1, 0, 0, 0, 1, 0, 6, 0]);
        self.put(at(1000), b"two");
    }

    fn journal(&mut self, dirty: bool) {
        let log_len = u16::try_from(log::LEN).unwrap();
        let size = log::LEN * BLOCK;
        self.inode(ino::JOURNAL, 0o100_600, size, 0x8_0000, &extents(&[(0, log_len, at::JOURNAL)]));
        let header = |fixture: &mut Self, block: usize, kind: u32, sequence: u32| {
            fixture.be32(log_at(block, 0), 0xC03B_3998);
            fixture.be32(log_at(block, 4), kind);
            fixture.be32(log_at(block, 8), sequence);
        };
        header(self, 0, 4, 0);
        for (offset, value) in [
            (0x0C, u32::try_from(BLOCK).unwrap()),
            (0x10, log_len.into()),
            (0x14, 1),
            (0x18, log::FIRST),
            (0x1C, u32::from(dirty)),
            // REVOKE and CSUM_V3.
            (0x28, 0x11),
        ] {
            self.be32(log_at(0, offset), value);
        }
        self.put(log_at(0, 0x30), &JOURNAL_UUID);
        self.put(log_at(0, 0x50), &[4]);
        if !dirty {
            return;
        }
        header(self, log::DESCRIPTOR, 1, log::FIRST);
        // The first tag is escaped and followed by a uuid; the second is the last and has none.
        self.be32(log_at(log::DESCRIPTOR, 12), u32::try_from(at::FILE).unwrap());
        self.be32(log_at(log::DESCRIPTOR, 16), 1);
        self.be32(log_at(log::DESCRIPTOR, 44), u32::try_from(at::FILE_END).unwrap());
        self.be32(log_at(log::DESCRIPTOR, 48), 2 | 8);
        self.put(log_at(log::COPY, 4), &[b'j'; BLOCK - 4]);
        self.put(log_at(log::REVOKED_COPY, 0), &[b'r'; BLOCK]);
        header(self, log::COMMIT, 2, log::FIRST);
        self.put(log_at(log::COMMIT, 0x30), &100_u64.to_be_bytes());
        header(self, log::REVOCATIONS, 5, log::FIRST + 1);
        self.be32(log_at(log::REVOCATIONS, 12), 20);
        self.be32(log_at(log::REVOCATIONS, 16), u32::try_from(at::FILE_END).unwrap());
        header(self, log::SECOND_COMMIT, 2, log::FIRST + 1);
        self.put(log_at(log::SECOND_COMMIT, 0x30), &101_u64.to_be_bytes());
    }

    fn block(&self, block: usize) -> &[u8] {
        &self.bytes[block * BLOCK..][..BLOCK]
    }

    /// Recomputes all checksums, given the structure as this fixture lays it out.
    pub fn seal(&mut self) {
        self.seal_journal();
        for (block, number) in [(at::ROOT, ino::ROOT), (at::UPPER, ino::UPPER)] {
            let crc = crc32c(inode_seed(number), &self.block(block)[..BLOCK - 12]);
            self.le32(block_at(block, BLOCK - 4), crc);
        }
        let crc = crc32c(inode_seed(ino::FILE), &self.block(at::LEAF)[..12 * 85 - 12]);
        self.le32(block_at(at::LEAF, 12 * 84), crc);
        self.le32(block_at(at::XATTRS, 0x10), 0);
        let crc = crc32c(seed(), &u64::try_from(at::XATTRS).unwrap().to_le_bytes());
        let crc = crc32c(crc, self.block(at::XATTRS));
        self.le32(block_at(at::XATTRS, 0x10), crc);
        for number in 1..=INODES {
            let at = |offset| inode_at(number, offset);
            let extra = u16::from_le_bytes([self.bytes[at(0x80)], self.bytes[at(0x81)]]);
            self.le16(at(0x7C), 0);
            if extra >= 4 {
                self.le16(at(0x82), 0);
            }
            let [c0, c1, c2, c3] =
                crc32c(inode_seed(number), &self.bytes[at(0)..at(INODE_LEN)]).to_le_bytes();
            self.put(at(0x7C), &[c0, c1]);
            if extra >= 4 {
                self.put(at(0x82), &[c2, c3]);
            }
        }
        self.le16(block_at(2, 0x1E), 0);
        let [c0, c1, ..] =
            crc32c(crc32c(seed(), &[0; 4]), &self.bytes[block_at(2, 0)..block_at(2, 32)]).to_le_bytes();
        self.put(block_at(2, 0x1E), &[c0, c1]);
        let crc = crc32c(START, &self.bytes[super_at(0)..super_at(0x3FC)]);
        self.le32(super_at(0x3FC), crc);
    }

    fn seal_journal(&mut self) {
        self.be32(log_at(0, 0xFC), 0);
        let crc = crc32c(START, self.block(at::JOURNAL));
        self.be32(log_at(0, 0xFC), crc);
        let seed = crc32c(START, &JOURNAL_UUID);
        for (tag, copy) in [(12, log::COPY), (44, log::REVOKED_COPY)] {
            let crc = crc32c(seed, &log::FIRST.to_be_bytes());
            let crc = crc32c(crc, self.block(at::JOURNAL + copy));
            self.be32(log_at(log::DESCRIPTOR, tag + 12), crc);
        }
        for block in [log::DESCRIPTOR, log::REVOCATIONS] {
            self.be32(log_at(block, BLOCK - 4), 0);
            let crc = crc32c(seed, self.block(at::JOURNAL + block));
            self.be32(log_at(block, BLOCK - 4), crc);
        }
        for block in [log::COMMIT, log::SECOND_COMMIT] {
            self.be32(log_at(block, 0x10), 0);
            let crc = crc32c(seed, self.block(at::JOURNAL + block));
            self.be32(log_at(block, 0x10), crc);
        }
    }
}

/// Checksum seed of the fixture's metadata.
pub(super) fn seed() -> u32 {
    crc32c(START, &UUID)
}

fn inode_seed(number: u32) -> u32 {
    crc32c(crc32c(seed(), &number.to_le_bytes()), &GENERATION.to_le_bytes())
}

/// Encodes the header of a node.
fn node(entries: usize, max: u16, depth: u16) -> Vec<u8> {
    let fields = [0xF30A, u16::try_from(entries).unwrap(), max, depth, 0, 0];
    fields.into_iter().flat_map(u16::to_le_bytes).collect()
}

/// Encodes a leaf; entries are (first block of the file, length, first block).
fn leaf(max: u16, extents: &[(u32, u16, usize)]) -> Vec<u8> {
    let mut bytes = node(extents.len(), max, 0);
    for (first, len, start) in extents {
        bytes.extend(first.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(u32::try_from(*start).unwrap().to_le_bytes());
    }
    bytes
}

/// Encodes a leaf in an inode.
fn extents(extents: &[(u32, u16, usize)]) -> Vec<u8> {
    leaf(4, extents)
}

/// Encodes a node above the leaves, in an inode.
fn index(entries: &[(u32, usize)]) -> Vec<u8> {
    let mut bytes = node(entries.len(), 4, 1);
    for (first, block) in entries {
        bytes.extend(first.to_le_bytes());
        bytes.extend(u32::try_from(*block).unwrap().to_le_bytes());
        bytes.extend([0; 4]);
    }
    bytes
}

/// Encodes directory records over `len` bytes, with room for a checksum.
fn records(entries: &[(u32, &str, u8)], len: usize, checksum: bool) -> Vec<u8> {
    let end = if checksum { len - 12 } else { len };
    let mut bytes = Vec::new();
    for (index, (inode, name, kind)) in entries.iter().enumerate() {
        let short = (8 + name.len()).next_multiple_of(4);
        let record_len = if index + 1 == entries.len() { end - bytes.len() } else { short };
        let start = bytes.len();
        bytes.extend(inode.to_le_bytes());
        bytes.extend(u16::try_from(record_len).unwrap().to_le_bytes());
        bytes.extend([u8::try_from(name.len()).unwrap(), *kind]);
        bytes.extend(name.as_bytes());
        bytes.resize(start + record_len, 0);
    }
    if checksum {
        bytes.extend([0, 0, 0, 0, 12, 0, 0, 0xDE, 0, 0, 0, 0]);
    }
    bytes
}

/// Encodes the record of an attribute.
fn xattr(index: u8, name: &str, offset: u16, len: u32, inode: u32) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(name.len()).unwrap(), index];
    bytes.extend(offset.to_le_bytes());
    bytes.extend(inode.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(name.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
