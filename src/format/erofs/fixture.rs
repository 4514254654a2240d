//! Images put together by hand for tests: every record where the test wants it, right or wrong.
//!
//! Described in `docs/formats/erofs.md`.

use super::{
    Block, BlockBits, Nid, SLOT_LEN,
    chunk::{ChunkFormat, ChunkIndex},
    dirent::Dirent,
    inode::{Data, Inode},
    superblock::{self, Superblock, compat, incompat},
    xattr::{BodyHeader, EntryHeader, Prefix, filter_bit, icount},
};
use crate::tree::{Attributes, Device, FileType, Timestamp};

/// An image under construction: metadata from block 1 on, data from `DATA_BLOCK` on.
pub(super) struct Fixture {
    pub(super) superblock: Superblock,
    pub(super) bytes: Vec<u8>,
    meta_cursor: u64,
    data_cursor: u64,
}

/// Access-control list with owner, group and others, which every list has.
pub(super) const ACL: [u8; 28] = [
    2, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff, 4, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, 0x20, 0, 4, 0, 0xff,
    0xff, 0xff, 0xff,
];

/// First block of file data in the fixture.
pub(super) const DATA_BLOCK: u64 = 16;
/// Byte of the root directory's inode: right behind the superblock.
pub(super) const ROOT_AT: u64 = 1152;

/// An inode of `file_type` without data, mode and owner filled in.
pub(super) fn inode(file_type: FileType, size_bytes: u64, data: Data) -> Inode {
    Inode {
        xattr_icount: 0,
        file_type,
        attributes: Attributes {
            mode: 0o644,
            uid: 1000,
            gid: 1001,
            mtime: Timestamp { seconds: 1_700_000_000, nanoseconds: 7 },
        },
        nlink: if file_type == FileType::Directory { 2 } else { 1 },
        size_bytes,
        ino: 1,
        dot_omitted: false,
        data,
    }
}

/// Directory blocks in valid form; `entries` are sorted and hold `.` and `..`.
pub(super) fn directory_blocks(bits: BlockBits, entries: &[(&[u8], Nid, FileType)]) -> Vec<u8> {
    let block = bits.buffer_len();
    let mut out = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        out.resize(out.len().next_multiple_of(block), 0);
        let mut used = 0;
        let fits = |(name, _, _): &&(&[u8], Nid, FileType)| {
            used += Dirent::LEN + name.len();
            used <= block
        };
        let (now, later) = rest.split_at(rest.iter().take_while(fits).count());
        let mut offset = now.len() * Dirent::LEN;
        for (name, nid, file_type) in now {
            let name_offset = u16::try_from(offset).unwrap();
            out.extend(Dirent { nid: *nid, name_offset, file_type: *file_type }.encode());
            offset += name.len();
        }
        for (name, ..) in now {
            out.extend(*name);
        }
        rest = later;
    }
    out
}

/// An attribute entry with its padding.
pub(super) fn xattr_entry(name: &str, value: &[u8]) -> Vec<u8> {
    let (prefix, rest) = Prefix::split(name.as_bytes()).unwrap();
    let header = EntryHeader {
        name_len: u8::try_from(rest.len()).unwrap(),
        name_index: prefix.index(),
        value_size: u16::try_from(value.len()).unwrap(),
    };
    let mut entry = [&header.encode(), rest, value].concat();
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry
}

/// An attribute body of shared ids, whose names are given for the filter, and inline entries.
pub(super) fn xattr_body(shared: &[(u32, &str)], inline: &[(&str, &[u8])]) -> Vec<u8> {
    let names = shared.iter().map(|(_, name)| *name).chain(inline.iter().map(|(name, _)| *name));
    let name_filter = names.fold(u32::MAX, |filter, name| {
        let (prefix, rest) = Prefix::split(name.as_bytes()).unwrap();
        filter & !filter_bit(prefix.index(), rest)
    });
    let header = BodyHeader { name_filter, shared_count: u8::try_from(shared.len()).unwrap() };
    let mut body = header.encode().to_vec();
    body.extend(shared.iter().flat_map(|(id, _)| id.to_le_bytes()));
    body.extend(inline.iter().flat_map(|(name, value)| xattr_entry(name, value)));
    body
}

impl Fixture {
    pub(super) fn new(bits: u8) -> Self {
        let block_bits = BlockBits::new(bits).unwrap();
        let mut superblock = Superblock::new(block_bits);
        superblock.feature_compat = compat::SB_CHKSUM | compat::MTIME | compat::XATTR_FILTER;
        superblock.root = Nid(ROOT_AT / SLOT_LEN);
        let meta_cursor = block_bits.size().max(2048);
        Self { superblock, bytes: Vec::new(), meta_cursor, data_cursor: DATA_BLOCK }
    }

    pub(super) fn bits(&self) -> BlockBits {
        self.superblock.block_bits
    }

    pub(super) fn put(&mut self, at: u64, bytes: &[u8]) {
        let start = usize::try_from(at).unwrap();
        self.bytes.resize(self.bytes.len().max(start + bytes.len()), 0);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes an inode at byte `at`, then its attributes, then `after` aligned to `align` bytes.
    pub(super) fn node_at(&mut self, at: u64, inode: Inode, xattrs: &[u8], align: u64, after: &[u8]) -> Nid {
        let inode = Inode { xattr_icount: icount(xattrs.len() as u64).unwrap(), ..inode };
        let record = inode.encode_extended();
        self.put(at, &record);
        self.put(at + 64, xattrs);
        self.put((at + 64 + xattrs.len() as u64).next_multiple_of(align), after);
        Nid::at_byte_offset(at, self.superblock.meta_start()).unwrap()
    }

    /// Like [`Self::node_at`], at the next free slot where `after` does not cross a block.
    pub(super) fn node(&mut self, inode: Inode, xattrs: &[u8], align: u64, after: &[u8]) -> Nid {
        let bits = self.bits();
        let mut at = self.meta_cursor;
        let tail = |at: u64| at + 64 + xattrs.len() as u64;
        while bits.within(tail(at)) + after.len() as u64 > bits.size() {
            at += SLOT_LEN;
        }
        let nid = self.node_at(at, inode, xattrs, align, after);
        self.meta_cursor = (tail(at).next_multiple_of(align) + after.len() as u64).next_multiple_of(SLOT_LEN);
        nid
    }

    /// Appends data in whole blocks and returns the first.
    pub(super) fn data(&mut self, bytes: &[u8]) -> Block {
        let start = self.data_cursor;
        self.data_cursor += self.bits().blocks_for(bytes.len() as u64);
        self.put(self.bits().offset(start).unwrap(), bytes);
        Block(start)
    }

    /// Writes a directory at byte `at`; its last block is inline if it fits there.
    pub(super) fn directory_at(&mut self, at: u64, parent: Nid, xattrs: &[u8], children: &[Child]) -> Nid {
        let bits = self.bits();
        let own = Nid::at_byte_offset(at, self.superblock.meta_start()).unwrap();
        let mut entries: Vec<(&[u8], Nid, FileType)> =
            children.iter().map(|(name, nid, file_type)| (name.as_bytes(), *nid, *file_type)).collect();
        entries.push((b".", own, FileType::Directory));
        entries.push((b"..", parent, FileType::Directory));
        entries.sort_unstable_by_key(|(name, ..)| *name);
        let blocks = directory_blocks(bits, &entries);
        let tail_len = (blocks.len() % bits.buffer_len()) as u64;
        let fits = bits.within(at + 64 + xattrs.len() as u64) + tail_len <= bits.size();
        let inline_len = if fits { tail_len } else { 0 };
        let (body, tail) = blocks.split_at(blocks.len() - usize::try_from(inline_len).unwrap());
        let start = if body.is_empty() { Block::UNUSED } else { self.data(body) };
        let start = Some(start);
        let data = if inline_len > 0 { Data::Inline { start } } else { Data::Plain { start } };
        let subdirectories = children.iter().filter(|child| child.2 == FileType::Directory).count();
        let mut inode = inode(FileType::Directory, blocks.len() as u64, data);
        inode.nlink = 2 + u32::try_from(subdirectories).unwrap();
        self.node_at(at, inode, xattrs, 1, tail)
    }

    /// Finishes the image: whole blocks, checksum in the superblock.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let block = self.bits().buffer_len();
        self.bytes.resize(self.bytes.len().next_multiple_of(block), 0);
        self.superblock.blocks = (self.bytes.len() / block) as u64;
        let superblock = self.superblock;
        self.put(Superblock::OFFSET, &superblock.encode());
        seal(&mut self.bytes);
        self.bytes
    }
}

/// Child of a directory: name, inode, type.
pub(super) type Child = (&'static str, Nid, FileType);

/// Corrects the checksum after a change to the first block.
pub(crate) fn seal(image: &mut [u8]) {
    let bits = BlockBits::new(image[1024 + 0x0C]).unwrap();
    superblock::seal(&mut image[1024..1024 + Superblock::checksummed_len(bits)]);
}

/// Byte offset of each inode in [`sample`].
#[derive(Clone, Copy)]
pub(super) struct Sample {
    pub(super) plain: Nid,
    pub(super) tail: Nid,
    pub(super) link: Nid,
    pub(super) chunks: Nid,
    pub(super) directory: Nid,
    pub(super) whiteout: Nid,
    pub(super) device: Nid,
}

/// Data of the file that `sample` calls `plain`.
pub(super) fn plain_bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n % 255).unwrap() + 1).collect()
}

/// An image with blocks of 2^`bits` bytes that holds files of several types and layouts.
pub(super) fn sample(bits: u8) -> (Vec<u8>, Sample) {
    let mut image = Fixture::new(bits);
    let block = image.bits().buffer_len();
    // Shared attributes have a block of their own, before the data.
    image.superblock.xattr_block = 15;
    image.put(15 * block as u64, &xattr_entry("security.selinux", b"label"));
    image.put(15 * block as u64 + 24, &xattr_entry("user.shared", b"twice"));
    let shared: [(u32, &str); 2] = [(0, "security.selinux"), (6, "user.shared")];

    let start = image.data(&plain_bytes(3 * block - 100));
    let plain = inode(FileType::Regular, 3 * block as u64 - 100, Data::Plain { start: Some(start) });
    let plain = image.node(Inode { nlink: 2, ..plain }, &xattr_body(&shared, &[]), 1, b"");
    let start = image.data(&plain_bytes(block));
    let tail = inode(FileType::Regular, block as u64 + 5, Data::Inline { start: Some(start) });
    let own = xattr_body(&shared, &[("user.own", b"value"), ("system.posix_acl_access", &ACL)]);
    let tail = image.node(tail, &own, 1, b"hello");
    let link = inode(FileType::Symlink, 6, Data::Inline { start: Some(Block::UNUSED) });
    let link = image.node(link, b"", 1, b"target");
    let first = image.data(&plain_bytes(2 * block));
    let second = image.data(b"end");
    let format = ChunkFormat::new(1, true).unwrap();
    image.superblock.feature_incompat |= incompat::CHUNKED_FILE;
    let indexes: Vec<u8> = [Some(first), None, Some(second)]
        .into_iter()
        .flat_map(|start| ChunkIndex { device_id: 0, start }.encode(false))
        .collect();
    let chunks = inode(FileType::Regular, 4 * block as u64 + 3, Data::Chunks(format));
    let chunks = image.node(chunks, &xattr_body(&[], &[("user.odd", b"v")]), 8, &indexes);
    let whiteout = inode(FileType::CharDevice, 0, Data::Device(Device::WHITEOUT));
    let whiteout = image.node(whiteout, b"", 1, b"");
    let device = inode(FileType::BlockDevice, 0, Data::Device(Device { major: 8, minor: 300 }));
    let device = image.node(device, b"", 1, b"");
    let fifo = image.node(inode(FileType::Fifo, 0, Data::None), b"", 1, b"");
    let root = image.superblock.root;
    let at = image.meta_cursor.next_multiple_of(image.bits().size());
    let origin = xattr_body(&[], &[("trusted.overlay.opaque", b"y"), ("trusted.overlay.origin", b"")]);
    let children: [Child; 3] = [
        ("again", plain, FileType::Regular),
        ("gone", whiteout, FileType::CharDevice),
        ("sda", device, FileType::BlockDevice),
    ];
    let directory = image.directory_at(at, root, &origin, &children);
    let children: [Child; 6] = [
        ("!first", link, FileType::Symlink),
        ("chunks", chunks, FileType::Regular),
        ("dir", directory, FileType::Directory),
        ("fifo", fifo, FileType::Fifo),
        ("plain", plain, FileType::Regular),
        ("tail", tail, FileType::Regular),
    ];
    image.directory_at(ROOT_AT, root, b"", &children);
    // Root, directory and seven others.
    image.superblock.inos = 9;
    (image.finish(), Sample { plain, tail, link, chunks, directory, whiteout, device })
}
