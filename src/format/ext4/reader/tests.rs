use std::{collections::HashSet, path::Path};

use super::*;
use crate::{
    error::{Classify as _, Kind},
    format::ext4::{
        dirent::DirentFault,
        fixture::{
            BLOCK, BLOCKS, Fixture, at, block_at, file_data, ino, inode_at, log, log_at, seed, super_at,
        },
        fuzz_image, read_all,
    },
    tree::{Device, Xattr},
};

fn open(fixture: &Fixture) -> Image<&[u8]> {
    Image::open(&fixture.bytes[..]).unwrap()
}

fn find(image: &Image<&[u8]>, path: &str) -> Node {
    image.find(path.as_bytes()).unwrap().unwrap()
}

fn data(image: &Image<&[u8]>, path: &str) -> Vec<u8> {
    let node = find(image, path);
    let mut data = vec![1; usize::try_from(node.inode.size_bytes).unwrap()];
    image.read_data(&node, 0, &mut data).unwrap();
    data
}

fn xattrs(image: &Image<&[u8]>, path: &str) -> Vec<(String, Vec<u8>)> {
    let named = |Xattr { name, value }| (String::from_utf8(name).unwrap(), value);
    image.xattrs(&find(image, path)).unwrap().into_iter().map(named).collect()
}

/// Reason id of the first error of reading everything.
fn verdict(bytes: &[u8]) -> &'static str {
    read_all(bytes).map_or_else(|error| error.reason(), |_| "ok")
}

#[test]
fn one_of_everything_is_read() {
    let fixture = Fixture::new(false);
    let image = open(&fixture);
    assert_eq!(image.replayed(), None);
    assert_eq!(data(&image, "upper/file"), file_data());
    assert_eq!(data(&image, "upper/map"), [vec![0; 12 * BLOCK], vec![b'm'; BLOCK]].concat());
    assert_eq!(data(&image, "upper/small"), [b's'; 70]);
    assert_eq!(data(&image, "upper/tiny/inner"), b"");
    for (path, target) in [("upper/link", &[b't'; 100][..]), ("upper/short", b"small")] {
        assert_eq!(image.symlink_target(&find(&image, path)).unwrap(), target);
    }
    let gone = find(&image, "upper/gone");
    assert_eq!(gone.inode.content(), Content::Device(Device::WHITEOUT));
    assert_eq!(gone.inode.file_type, FileType::CharDevice);
    let map = find(&image, "upper/map").inode.attributes;
    assert_eq!((map.mode, map.uid, map.gid), (0o4755, 70_000, 0));
    assert_eq!((map.mtime.seconds, map.mtime.nanoseconds), (1_700_000_000, 7));
    assert_eq!(xattrs(&image, "upper/small"), [("user.a".to_owned(), b"1".to_vec())]);
    let list = [&[2, 0, 0, 0, 1, 0, 6, 0][..], &[0xFF; 4]].concat();
    assert_eq!(
        xattrs(&image, "upper/file"),
        [
            ("system.posix_acl_access".to_owned(), list),
            ("trusted.b".to_owned(), b"two".to_vec()),
            ("user.large".to_owned(), vec![b'v'; 700]),
        ]
    );
    assert_eq!(image.find(b"upper/nothing").unwrap(), None);
    assert_eq!(image.find(b"upper/file/below").unwrap(), None);
    assert_eq!(find(&image, "upper/tiny/..").number, InodeNumber(ino::UPPER));
    assert_eq!(read_all(&fixture.bytes).unwrap(), 10);
}

#[test]
fn extents_tell_where_data_and_holes_are() {
    let fixture = Fixture::new(false);
    let image = open(&fixture);
    let extents = |path: &str, offset| -> Vec<_> {
        let extents = image.extents(&find(&image, path), offset).map(Result::unwrap);
        extents.map(|extent| (extent.offset, extent.len, extent.place)).collect()
    };
    let block = |number: usize| Place::Blocks { start: Block(u64::try_from(number).unwrap()) };
    let want = [(0, 1024, block(at::FILE)), (1024, 1024, Place::Hole), (2048, 452, block(at::FILE_END))];
    assert_eq!(extents("upper/file", 0), want);
    assert_eq!(extents("upper/file", 2000), [(2000, 48, Place::Hole), want[2]]);
    assert_eq!(extents("upper/file", 2500), []);
    assert_eq!(extents("upper/map", 0), [(0, 12288, Place::Hole), (12288, 1024, block(at::MAPPED))]);
    assert_eq!(extents("upper/small", 0), [(0, 70, Place::Inline)]);
    assert_eq!(extents("upper/tiny/inner", 0), []);
}

#[test]
fn reads_end_where_the_file_does() {
    let fixture = Fixture::new(false);
    let image = open(&fixture);
    let node = find(&image, "upper/file");
    let mut buf = [0; 100];
    image.read_data(&node, 2400, &mut buf).unwrap();
    assert_eq!(buf, [b'g'; 100]);
    image.read_data(&node, 2500, &mut []).unwrap();
    for offset in [2401, 2500, u64::MAX] {
        assert_eq!(image.read_data(&node, offset, &mut buf).unwrap_err().reason(), "ext4.inode.end");
    }
    let fifo = find(&image, "upper/fifo");
    assert!(image.extents(&fifo, 0).next().is_none(), "a fifo has no bytes");
    assert_eq!(image.directory(&node).err().unwrap().reason(), "ext4.inode.type");
    assert_eq!(image.symlink_target(&node).unwrap_err().reason(), "ext4.inode.type");
}

#[test]
fn a_small_file_that_grew_ends_in_zeros() {
    let mut fixture = Fixture::new(false);
    fixture.le32(inode_at(ino::SMALL, 0x04), 5000);
    fixture.seal();
    let image = open(&fixture);
    assert_eq!(data(&image, "upper/small"), [vec![b's'; 70], vec![0; 4930]].concat());
    let node = find(&image, "upper/small");
    let extents: Vec<_> = image.extents(&node, 0).map(Result::unwrap).collect();
    let extent = |offset, len, place| Extent { offset, len, place };
    assert_eq!(extents, [extent(0, 70, Place::Inline), extent(70, 4930, Place::Hole)]);
}

#[test]
fn the_first_byte_of_a_small_file_behind_its_inode_is_in_its_attribute() {
    for (size, want) in [(60, 60), (61, 61), (64, 64), (70, 70), (71, 70)] {
        let mut fixture = Fixture::new(false);
        fixture.le32(inode_at(ino::SMALL, 0x04), size);
        fixture.seal();
        let bytes = data(&open(&fixture), "upper/small");
        assert_eq!(bytes.iter().filter(|byte| **byte == b's').count(), want, "{size}");
    }
}

#[test]
fn holes_of_a_block_map_end_where_the_next_map_begins() {
    // A hole in the inode, a hole in the first map, and in the second map only its second part.
    let mut fixture = Fixture::new(false);
    let second = 12 + 256 + 256;
    fixture.le32(inode_at(ino::MAP, 0x04), u32::try_from((second + 1) * BLOCK).unwrap());
    fixture.le32(inode_at(ino::MAP, 0x28 + 48), 0);
    fixture.le32(inode_at(ino::MAP, 0x28 + 52), u32::try_from(at::NUMBERS).unwrap());
    fixture.le32(block_at(at::NUMBERS, 0), 0);
    fixture.le32(block_at(at::NUMBERS, 4), u32::try_from(at::MAPPED).unwrap());
    fixture.put(block_at(at::MAPPED, 0), &[0; BLOCK]);
    fixture.le32(block_at(at::MAPPED, 0), u32::try_from(at::FILE).unwrap());
    fixture.seal();
    let image = open(&fixture);
    let extents: Vec<_> = image.extents(&find(&image, "upper/map"), 0).map(Result::unwrap).collect();
    let hole = Extent { offset: 0, len: (second * BLOCK) as u64, place: Place::Hole };
    let block = Block(u64::try_from(at::FILE).unwrap());
    let end = Extent { offset: hole.len, len: BLOCK as u64, place: Place::Blocks { start: block } };
    assert_eq!(extents, [hole, end]);
    assert_eq!(data(&image, "upper/map")[second * BLOCK..], file_data()[..BLOCK]);
}

#[test]
fn one_name_in_the_inode_and_in_the_block_is_refused() {
    let mut fixture = Fixture::new(false);
    let place = |offset: usize| inode_at(ino::FILE, 0xA0 + offset);
    // trusted.b = two, which the block has too.
    fixture.le32(place(0), 0xEA02_0000);
    fixture.put(place(4), &[1, 4, 60, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, b'b']);
    fixture.put(place(64), b"two");
    fixture.seal();
    assert_eq!(verdict(&fixture.bytes), "ext4.xattr.name");
    fixture.put(place(4 + 16), b"c");
    fixture.seal();
    assert_eq!(xattrs(&open(&fixture), "upper/file").len(), 4);
}

#[test]
fn an_access_control_list_without_entries_is_none() {
    let mut fixture = Fixture::new(false);
    fixture.le32(block_at(at::XATTRS, 56 + 8), 4);
    fixture.seal();
    let names: Vec<_> = xattrs(&open(&fixture), "upper/file").into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["trusted.b", "user.large"]);
}

#[test]
fn values_that_are_shared_inodes_are_limited_in_their_sum() {
    // Four names of 60 KiB each, all of one inode: 244 KiB and a few bytes of names.
    for (len, fits) in [(60 << 10, false), (59 << 10, true)] {
        let mut fixture = Fixture::new(false);
        let value = vec![0; usize::try_from(len).unwrap()];
        fixture.le32(inode_at(ino::VALUE, 0x04), len);
        fixture.put(inode_at(ino::VALUE, 0x28 + 2), &[0]);
        fixture.le32(inode_at(ino::VALUE, 0x08), crate::format::ext4::checksum::crc32c(seed(), &value));
        fixture.put(block_at(at::XATTRS, 32), &[0; 992]);
        for n in 0..4_u8 {
            let record = [&[1, 1, 0, 0, 11, 0, 0, 0][..], &len.to_le_bytes(), &[0; 4], &[b'a' + n]].concat();
            fixture.put(block_at(at::XATTRS, 32 + 20 * usize::from(n)), &record);
        }
        fixture.seal();
        let image = open(&fixture);
        let outcome = image.xattrs(&find(&image, "upper/file"));
        let refused = outcome.err().map(|error| (error.kind(), error.reason()));
        assert_eq!(refused, (!fits).then_some((Kind::Exhausted, "limit.xattrs")), "{len}");
    }
}

#[test]
fn the_journal_is_read_in_the_place_of_its_blocks() {
    let fixture = Fixture::new(true);
    let image = open(&fixture);
    assert_eq!(image.replayed(), Some(Replayed { transactions: 2, blocks: 1, revoked: 1 }));
    let mut want = file_data();
    want[..4].copy_from_slice(&[0xC0, 0x3B, 0x39, 0x98]);
    want[4..BLOCK].fill(b'j');
    assert_eq!(data(&image, "upper/file"), want);
    // Parts of a copy, with the escaped bytes and without them.
    let node = find(&image, "upper/file");
    for (offset, len) in [(0, 2), (2, 4), (3, 1), (4, 3), (1000, 100), (1023, 1030)] {
        let mut buf = vec![0; len];
        image.read_data(&node, offset, &mut buf).unwrap();
        let start = usize::try_from(offset).unwrap();
        assert_eq!(buf, want[start..start + len], "{offset} {len}");
    }
}

#[test]
fn a_transaction_without_its_end_does_not_count() {
    for (changed, transactions, blocks) in [
        // Without the revocation, the other copy counts too.
        (log::SECOND_COMMIT, 1, 2),
        (log::COMMIT, 0, 0),
        (log::DESCRIPTOR, 0, 0),
    ] {
        let mut fixture = Fixture::new(true);
        fixture.put(log_at(changed, 0), &[0; 4]);
        fixture.seal();
        let image = open(&fixture);
        assert_eq!(image.replayed(), Some(Replayed { transactions, blocks, revoked: 0 }), "{changed}");
        let tail = if blocks == 2 { b'r' } else { b'g' };
        assert_eq!(data(&image, "upper/file")[2 * BLOCK], tail, "{changed}");
    }
}

#[test]
fn what_an_earlier_log_left_is_its_end() {
    // A wrong checksum of revocations, before a commit that is older than the last one.
    let mut fixture = Fixture::new(true);
    fixture.put(log_at(log::SECOND_COMMIT, 0x30), &99_u64.to_be_bytes());
    fixture.seal();
    fixture.put(log_at(log::REVOCATIONS, 100), &[1]);
    let image = open(&fixture);
    assert_eq!(image.replayed(), Some(Replayed { transactions: 1, blocks: 2, revoked: 0 }));
    // A wrong checksum of a commit that is older than the last one.
    let mut fixture = Fixture::new(true);
    fixture.put(log_at(log::SECOND_COMMIT, 0x30), &99_u64.to_be_bytes());
    assert_eq!(open(&fixture).replayed(), Some(Replayed { transactions: 1, blocks: 2, revoked: 0 }));
    // In a newer commit it is damage.
    let mut fixture = Fixture::new(true);
    fixture.put(log_at(log::SECOND_COMMIT, 0x30), &102_u64.to_be_bytes());
    assert_eq!(verdict(&fixture.bytes), "ext4.journal.checksum");
    // With ASYNC_COMMIT it is the last commit.
    fixture.be32(log_at(0, 0x28), 0x15);
    let damaged = fixture.clone();
    fixture.seal();
    fixture.put(log_at(log::SECOND_COMMIT, 0), &damaged.bytes[log_at(log::SECOND_COMMIT, 0)..][..BLOCK]);
    assert_eq!(open(&fixture).replayed(), Some(Replayed { transactions: 1, blocks: 2, revoked: 0 }));
}

#[test]
fn the_superblock_is_among_the_copies() {
    let mut fixture = Fixture::new(true);
    // One block fewer, which still has room for everything.
    let mut newer = fixture.bytes[super_at(0)..][..BLOCK].to_vec();
    newer[4..8].copy_from_slice(&(BLOCKS - 1).to_le_bytes());
    let crc = crate::format::ext4::checksum::crc32c(!0, &newer[..0x3FC]);
    newer[0x3FC..].copy_from_slice(&crc.to_le_bytes());
    fixture.put(log_at(log::COPY, 0), &newer);
    fixture.be32(log_at(log::DESCRIPTOR, 12), 1);
    fixture.be32(log_at(log::DESCRIPTOR, 16), 0);
    fixture.seal();
    let image = open(&fixture);
    assert_eq!(image.superblock().blocks, u64::from(BLOCKS - 1));
    assert_eq!(data(&image, "upper/file"), file_data());
}

#[test]
fn fast_commits_are_refused_only_when_they_would_count() {
    let with = |sequence: u32| {
        let mut fixture = Fixture::new(true);
        fixture.be32(log_at(0, 0x28), 0x31);
        // Too few blocks for a log of 1024 blocks and fast commits: there are none of the latter.
        fixture.be32(log_at(0, 0x54), 1);
        fixture.put(log_at(log::LEN - 1, 0), &[9, 0, 8, 0, 0, 0, 0, 0]);
        fixture.le32(log_at(log::LEN - 1, 8), sequence);
        fixture.seal();
        fixture
    };
    assert_eq!(verdict(&with(log::FIRST + 2).bytes), "ok");
    use crate::format::ext4::journal::{self, is_fast_commit};
    let journal = |fast: u32, blocks: u32| {
        let mut fixture = with(0);
        fixture.be32(log_at(0, 0x54), fast);
        fixture.be32(log_at(0, 0x10), blocks);
        fixture.seal();
        let record = fixture.bytes[log_at(0, 0)..].first_chunk().unwrap();
        let journal = journal::Superblock::decode(record, 1024).unwrap();
        (journal.end, journal.fast_commits)
    };
    assert_eq!(journal(0, 1280), (1024, Some(1025)));
    assert_eq!(journal(0, 1279), (1279, None));
    assert_eq!(journal(10, 1034), (1024, Some(1025)));
    assert_eq!(journal(2000, 1034), (1034, None));
    assert!(is_fast_commit(&[9, 0, 8, 0, 0, 0, 0, 0, 7, 0, 0, 0], 7));
    assert!(!is_fast_commit(&[9, 0, 8, 0, 0, 0, 0, 0, 7, 0, 0, 0], 8));
    assert!(!is_fast_commit(&[8, 0, 8, 0, 0, 0, 0, 0, 7, 0, 0, 0], 7));
    assert!(!is_fast_commit(&[9, 0], 7));
}

/// Change to the sample: `reason@name`, the byte at which it is made, and the new bytes.
type Damage = (&'static str, usize, &'static [u8]);

/// Changes after which all checksums are recomputed.
fn damages() -> Vec<Damage> {
    let inode = inode_at;
    let file = |offset| inode(ino::FILE, offset);
    let root = |offset| block_at(at::ROOT, offset);
    let leaf = |offset| block_at(at::LEAF, offset);
    let xattrs = |offset| block_at(at::XATTRS, offset);
    vec![
        ("ext4.superblock.magic@zero", super_at(0x38), &[0, 0]),
        ("ext4.superblock.field@log-block-size", super_at(0x18), &[7]),
        ("ext4.superblock.field@blocks-per-group", super_at(0x20), &[0; 4]),
        ("ext4.superblock.field@inodes-per-group", super_at(0x28), &[0; 4]),
        ("ext4.superblock.field@inode-size", super_at(0x58), &[0, 3]),
        ("ext4.superblock.field@inodes", super_at(0x00), &[17]),
        ("ext4.superblock.field@first-block", super_at(0x14), &[200]),
        ("ext4.superblock.field@hurd", super_at(0x48), &[1]),
        ("ext4.superblock.field@checksum-type", super_at(0x175), &[2]),
        ("ext4.superblock.feature@compression", super_at(0x60), &[0x43]),
        ("ext4.superblock.feature@journal-device", super_at(0x60), &[0x4A]),
        ("ext4.superblock.feature@dirdata", super_at(0x61), &[0x94]),
        ("ext4.superblock.feature@unknown", super_at(0x63), &[0x80]),
        ("ext4.truncated@blocks", super_at(0x04), &[28]),
        ("ext4.bounds@inode-table", block_at(2, 8), &[255]),
        ("ext4.bounds@extent", leaf(12 + 8), &[27]),
        ("ext4.bounds@extent-high", leaf(12 + 6), &[1]),
        ("ext4.bounds@node", file(0x28 + 16), &[99]),
        ("ext4.bounds@map", inode(ino::MAP, 0x28 + 48), &[99]),
        ("ext4.bounds@mapped", block_at(at::NUMBERS, 0), &[99]),
        ("ext4.bounds@attributes", file(0x68), &[99]),
        ("ext4.inode.number@record", root(24), &[17]),
        ("ext4.inode.free@links", file(0x1A), &[0, 0]),
        ("ext4.inode.mode@type", file(0x01), &[0x01]),
        ("ext4.inode.extra@odd", file(0x80), &[33]),
        ("ext4.inode.extra@long", file(0x80), &[132]),
        ("ext4.inode.size@negative", file(0x6F), &[0x80]),
        ("ext4.inode.size@blocks", file(0x6E), &[1]),
        ("ext4.inode.type@root", inode(ino::ROOT, 0x01), &[0x81]),
        ("ext4.extent.header@magic", leaf(0), &[0]),
        ("ext4.extent.header@entries", leaf(2), &[85]),
        ("ext4.extent.header@depth", leaf(6), &[1]),
        ("ext4.extent.header@deep", file(0x28 + 6), &[6]),
        ("ext4.extent.header@shallow", file(0x28 + 6), &[2]),
        ("ext4.extent.order@empty", leaf(12 + 4), &[0, 0]),
        ("ext4.extent.order@overlap", leaf(24), &[0]),
        ("ext4.extent.order@index", file(0x28 + 2), &[2]),
        ("ext4.extent.order@last-block", leaf(24), &[0xFF, 0xFF, 0xFF, 0xFF, 2]),
        ("ext4.directory.size@part", inode(ino::UPPER, 0x04), &[1]),
        ("ext4.directory.size@inline", inode(ino::TINY, 0x04), &[3]),
        ("ext4.directory.parent@elsewhere", block_at(at::UPPER, 12), &[4]),
        ("ext4.directory.parent@inline", inode(ino::TINY, 0x28), &[2]),
        ("ext4.directory.parent@none", block_at(at::UPPER, 12 + 9), b"x"),
        ("ext4.dirent.length@short", root(24 + 4), &[8, 0]),
        ("ext4.dirent.length@long", root(24 + 4), &[0, 8]),
        ("ext4.dirent.name@long", root(12 + 6), &[5]),
        ("ext4.dirent.name@empty", root(24 + 6), &[0]),
        ("ext4.dirent.name@slash", root(24 + 8), b"/"),
        ("ext4.dirent.type@unknown", root(24 + 7), &[9]),
        ("ext4.dirent.type@other", root(24 + 7), &[1]),
        ("ext4.dirent.repeated@name", block_at(at::UPPER, 24 + 8), b"fifo"),
        ("ext4.symlink.length@zero", inode(ino::LINK, 0x04), &[0]),
        ("ext4.symlink.length@long", inode(ino::LINK, 0x05), &[0x10]),
        ("ext4.symlink.length@first-too-long", inode(ino::LINK, 0x04), &[0x00, 0x10]),
        ("ext4.symlink.nul@block", block_at(at::LINK, 50), &[0]),
        ("ext4.symlink.nul@inode", inode(ino::SHORT, 0x28), &[0]),
        ("ext4.xattr.header@magic", xattrs(0), &[1]),
        ("ext4.xattr.header@blocks", xattrs(8), &[2]),
        ("ext4.xattr.bounds@value", xattrs(56 + 2), &[0, 4]),
        ("ext4.xattr.bounds@among-records", xattrs(72 + 2), &[80, 0]),
        ("ext4.xattr.bounds@size", xattrs(32 + 10), &[2]),
        ("ext4.xattr.bounds@inode", inode(ino::SMALL, 0xA0 + 4), &[200]),
        ("ext4.xattr.name@empty", xattrs(72), &[0]),
        ("ext4.xattr.name@nul", xattrs(72 + 16), &[0]),
        ("ext4.xattr.name@list", xattrs(32 + 1), &[3]),
        ("ext4.xattr.acl@version", xattrs(900), &[2]),
        ("ext4.xattr.acl@tag", xattrs(904), &[3]),
        ("ext4.xattr.inode@itself-no-value", xattrs(32 + 4), &[4]),
        ("ext4.xattr.inode@size", xattrs(32 + 8), &[1]),
        ("ext4.xattr.inode@hash", block_at(at::VALUE, 0), &[0]),
        ("ext4.xattr.inode@no-value", inode(ino::VALUE, 0x22), &[0x08]),
    ]
}

fn journal_damages() -> Vec<Damage> {
    vec![
        ("ext4.journal.superblock@magic", log_at(0, 0), &[0]),
        ("ext4.journal.superblock@kind", log_at(0, 7), &[1]),
        ("ext4.journal.superblock@block-size", log_at(0, 0x0E), &[8]),
        ("ext4.journal.superblock@first", log_at(0, 0x17), &[9]),
        ("ext4.journal.superblock@start", log_at(0, 0x1F), &[9]),
        ("ext4.journal.superblock@checksum-type", log_at(0, 0x50), &[1]),
        ("ext4.journal.feature@unknown", log_at(0, 0x2B), &[0x51]),
        ("ext4.journal.external@number", super_at(0xE0), &[0]),
        ("ext4.journal.target@copy", log_at(log::DESCRIPTOR, 12), &[1]),
        ("ext4.journal.target@first-outside", log_at(log::DESCRIPTOR, 15), &[27]),
        ("ext4.journal.revocations@count", log_at(log::REVOCATIONS, 14), &[9]),
        ("ext4.journal.hole@inode", inode_at(ino::JOURNAL, 0x28 + 16), &[2]),
        ("ext4.inode.free@journal", inode_at(ino::JOURNAL, 0x1A), &[0]),
    ]
}

/// Changes of bytes that a checksum covers, which is not recomputed.
fn unsealed() -> Vec<Damage> {
    vec![
        ("ext4.superblock.checksum@name", super_at(0x78), &[1]),
        ("ext4.group.checksum@flags", block_at(2, 0x12), &[4]),
        ("ext4.inode.checksum@time", inode_at(ino::FILE, 0x90), &[1]),
        ("ext4.inode.checksum@after-the-fields", inode_at(ino::FILE, 0xFF), &[1]),
        ("ext4.extent.checksum@unused", block_at(at::LEAF, 500), &[1]),
        ("ext4.directory.checksum@padding", block_at(at::ROOT, 600), &[1]),
        ("ext4.directory.checksum@none", block_at(at::ROOT, BLOCK - 5), &[0]),
        ("ext4.xattr.checksum@between", block_at(at::XATTRS, 500), &[1]),
        ("ext4.journal.checksum@superblock", log_at(0, 0x100), &[1]),
        ("ext4.journal.checksum@descriptor", log_at(log::DESCRIPTOR, 500), &[1]),
        ("ext4.journal.checksum@copy", log_at(log::COPY, 500), &[1]),
        ("ext4.journal.checksum@commit", log_at(log::COMMIT, 500), &[1]),
        ("ext4.journal.checksum@revocations", log_at(log::REVOCATIONS, 500), &[1]),
    ]
}

/// With PLYWOOD_WRITE_CORPUS set it writes them instead. Set it after a change of the sample.
#[test]
fn the_inputs_of_the_fuzz_target_are_refused_for_what_they_are_named_after() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/ext4_image");
    let write = std::env::var_os("PLYWOOD_WRITE_CORPUS").is_some();
    let mut shown = HashSet::new();
    let mut put = |name: &str, bytes: &[u8]| {
        let reason = name.split('@').next().unwrap();
        assert_eq!(verdict(bytes), reason, "{name}");
        // Keeps one input for each reason.
        if reason != "ok" && !shown.insert(reason.to_owned()) {
            return;
        }
        match write {
            true => std::fs::write(directory.join(name), bytes).unwrap(),
            false => {
                assert!(std::fs::read(directory.join(name)).unwrap() == bytes, "{name} is of another time")
            }
        }
    };
    put("ok@one-of-everything", &Fixture::new(false).bytes);
    put("ok@in-use", &Fixture::new(true).bytes);
    let sets = [(false, true, damages()), (true, true, journal_damages()), (true, false, unsealed())];
    for (dirty, sealed, damages) in sets {
        for (name, place, change) in damages {
            let mut fixture = Fixture::new(dirty);
            fixture.put(place, change);
            if sealed {
                fixture.seal();
            }
            put(name, &fixture.bytes);
        }
    }
    let mut sealed = Fixture::new(true);
    sealed.le32(super_at(0x60), 0x2 | 0x4 | 0x40 | 0x400 | 0x8000 | 0x1_0000 | 0x2_0000);
    let damaged = |place: usize, change: &[u8]| {
        let mut fixture = sealed.clone();
        fixture.put(place, change);
        fixture.seal();
        fixture.bytes
    };
    put("ext4.inode.encrypted@flag", &damaged(inode_at(ino::FILE, 0x21), &[8]));
    put("ext4.inode.casefold@flag", &damaged(inode_at(ino::UPPER, 0x23), &[0x40]));
    // A log of descriptors only: no transaction ever ends.
    let mut endless = Fixture::new(true);
    endless.be32(log_at(0, 0x28), 1);
    for block in 1..log::LEN {
        let descriptor = [&[0xC0, 0x3B, 0x39, 0x98, 0, 0, 0, 1, 0, 0, 0, 5][..], &[0; 1012]].concat();
        endless.put(log_at(block, 0), &descriptor);
        endless.be32(log_at(block, 16), 2 | 8);
    }
    endless.put(super_at(0x65), &[0]);
    put("ext4.journal.endless@descriptors", &endless.bytes);
}

#[test]
fn a_directory_has_one_name() {
    let mut fixture = Fixture::new(false);
    let upper = block_at(at::UPPER, 0);
    let fifo = fixture.bytes[upper..].windows(4).position(|name| name == b"fifo").unwrap();
    fixture.put(upper + fifo - 1, &[2]);
    fixture.le32(upper + fifo - 8, ino::TINY);
    fixture.seal();
    assert_eq!(verdict(&fixture.bytes), "ext4.directory.parent");
    let image = open(&fixture);
    let error = image.names(&find(&image, "upper")).unwrap_err();
    assert!(matches!(error, ReadError::Directory { fault: DirentFault::Linked { .. }, .. }), "{error}");
}

#[test]
fn unsupported_features_leave_it_to_others() {
    for (name, place, change) in damages() {
        let mut fixture = Fixture::new(false);
        fixture.put(place, change);
        fixture.seal();
        let kind = read_all(&fixture.bytes).unwrap_err().kind();
        let unsupported = name.starts_with("ext4.superblock.feature");
        assert_eq!(kind, if unsupported { Kind::NotImplemented } else { Kind::Malformed }, "{name}");
    }
}

#[test]
fn a_file_that_is_too_short_is_refused() {
    let fixture = Fixture::new(false);
    for len in [0, 1024, 2047, 2048, fixture.bytes.len() - 1] {
        assert_eq!(verdict(&fixture.bytes[..len]), "ext4.truncated", "{len}");
    }
}

#[test]
fn no_byte_that_is_different_makes_the_reader_panic() {
    for dirty in [false, true] {
        let good = Fixture::new(dirty).bytes;
        for place in (1024..good.len()).filter(|place| good[*place] != 0 || place % 64 == 0) {
            for bit in [0x01, 0x80, 0xFF] {
                let mut bytes = good.clone();
                bytes[place] ^= bit;
                fuzz_image(&bytes);
            }
        }
    }
}
