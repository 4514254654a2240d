//! Tests of the reader on images put together by hand.

use proptest::prelude::*;

use super::*;
use crate::{
    format::erofs::{
        Block, Nid,
        chunk::{BlockMapEntry, ChunkFormat, ChunkIndex},
        fixture::{ACL, Child, DATA_BLOCK, Fixture, ROOT_AT, inode, plain_bytes, sample, seal, xattr_body},
    },
    tree::{Device, FileType, Xattr},
};

fn open(bytes: &[u8]) -> Image<&[u8]> {
    Image::open(bytes).unwrap()
}

fn names(image: &Image<&[u8]>, node: &Node) -> Vec<String> {
    let mut directory = image.directory(node).unwrap();
    let mut names = Vec::new();
    while let Some(entry) = directory.next_entry().unwrap() {
        names.push(String::from_utf8(entry.name.to_vec()).unwrap());
    }
    names
}

fn contents(image: &Image<&[u8]>, node: &Node) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(node.inode.size_bytes).unwrap()];
    image.read_data(node, 0, &mut bytes).unwrap();
    bytes
}

/// Reads the example image that `docs/formats/erofs.md` spells out.
#[test]
fn the_documented_example_reads_as_documented() {
    let mut bytes = vec![0; 8192];
    for (at, hex) in [
        (0x400, "e2e1f5e0395b74e6070000000c002400"),
        (0x410, "03000000000000000000000000000000"),
        (0x420, "00000000020000000000000000000000"),
        (0x480, "05000600ed4100003b00000000000000"),
        (0x490, "ffffffff000000000000000000000000"),
        (0x4a0, "00000000000000000000000002000000"),
        (0x4c0, "fffffbff00000000000000000e040000"),
        (0x4d0, "6f7665726c61792e6f726967696e0000"),
        (0x4e0, "24000000000000003000020024000000"),
        (0x4f0, "00000000310002008000000000000000"),
        (0x500, "33000100830000000000000038000300"),
        (0x510, "2e2e2e68656c6c6f6f6c640000000000"),
        (0x1000, "05000000a48100000600000000000000"),
        (0x1010, "ffffffff01000000e8030000e8030000"),
        (0x1020, "00f15365000000000000000001000000"),
        (0x1040, "776f726c640a00000000000000000000"),
        (0x1060, "01000000a42100000000000000000000"),
        (0x1070, "00000000020000000000000000000000"),
        (0x1080, "00f15365000000000000000001000000"),
    ] {
        for (index, pair) in hex.as_bytes().chunks(2).enumerate() {
            bytes[at + index] = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        }
    }
    let image = open(&bytes);
    let root = image.root().unwrap();
    assert_eq!(root.nid, Nid(0x24));
    assert_eq!(names(&image, &root), [".", "..", "hello", "old"]);
    assert_eq!(
        image.xattrs(&root).unwrap(),
        [Xattr { name: b"trusted.overlay.origin".to_vec(), value: Vec::new() }]
    );
    let (nid, file_type) = image.lookup(&root, b"hello").unwrap().unwrap();
    assert_eq!((nid, file_type), (Nid(0x80), FileType::Regular));
    assert_eq!(contents(&image, &image.node(nid).unwrap()), b"world\n");
    let (nid, _) = image.lookup(&root, b"old").unwrap().unwrap();
    assert_eq!(image.node(nid).unwrap().inode.data, Data::Device(Device::WHITEOUT));
}

#[test]
fn every_layout_reads_at_every_block_size() {
    for bits in 9..=16 {
        let (bytes, at) = sample(bits);
        let image = open(&bytes);
        let block = 1_usize << bits;
        let root = image.root().unwrap();
        assert_eq!(
            names(&image, &root),
            ["!first", ".", "..", "chunks", "dir", "fifo", "plain", "tail"],
            "block bits {bits}"
        );
        let node = |nid| image.node(nid).unwrap();
        assert_eq!(contents(&image, &node(at.plain)), plain_bytes(3 * block - 100));
        assert_eq!(contents(&image, &node(at.tail)), [&plain_bytes(block)[..], b"hello"].concat());
        let want = [&plain_bytes(2 * block)[..], &vec![0; 2 * block], b"end"].concat();
        assert_eq!(contents(&image, &node(at.chunks)), want);
        assert_eq!(image.symlink_target(&node(at.link)).unwrap(), b"target");
        let device = Data::Device(Device { major: 8, minor: 300 });
        assert_eq!(node(at.device).inode.data, device);
        assert_eq!(names(&image, &node(at.directory)), [".", "..", "again", "gone", "sda"]);
    }
}

#[test]
fn extents_show_holes_and_join_neighbours() {
    let (bytes, at) = sample(12);
    let image = open(&bytes);
    let extents = |nid, from| -> Vec<Extent> {
        image.extents(&image.node(nid).unwrap(), from).map(Result::unwrap).collect()
    };
    let blocks =
        |offset, len, block| Extent { offset, len, place: Place::Blocks { device: 0, offset: block * 4096 } };
    assert_eq!(extents(at.plain, 0), [blocks(0, 3 * 4096 - 100, DATA_BLOCK)]);
    let tail = extents(at.tail, 0);
    assert_eq!(tail[0], blocks(0, 4096, DATA_BLOCK + 3));
    assert!(matches!(tail[1], Extent { offset: 4096, len: 5, place: Place::Inline { .. } }));
    assert_eq!(
        extents(at.chunks, 0),
        [
            blocks(0, 8192, DATA_BLOCK + 4),
            Extent { offset: 8192, len: 8192, place: Place::Hole },
            blocks(16384, 3, DATA_BLOCK + 6),
        ]
    );
    // From the middle, and from behind the end.
    assert_eq!(
        extents(at.chunks, 16385),
        [Extent {
            offset: 16385,
            len: 2,
            place: Place::Blocks { device: 0, offset: (DATA_BLOCK + 6) * 4096 + 1 }
        }]
    );
    assert_eq!(extents(at.chunks, 16387), []);
}

#[test]
fn neighbouring_chunks_become_one_extent() {
    let mut image = Fixture::new(12);
    let start = image.data(&plain_bytes(5 * 4096));
    let records: Vec<u8> =
        (0..5).flat_map(|n| BlockMapEntry { start: Some(Block(start.0 + n)) }.encode()).collect();
    let format = ChunkFormat::new(0, false).unwrap();
    let file = inode(FileType::Regular, 5 * 4096 - 1, Data::Chunks(format));
    let nid = image.node(file, b"", 4, &records);
    let root = image.superblock.root;
    image.directory_at(ROOT_AT, root, b"", &[("f", nid, FileType::Regular)]);
    let bytes = image.finish();
    let image = open(&bytes);
    let node = image.node(nid).unwrap();
    let extents: Vec<_> = image.extents(&node, 0).map(Result::unwrap).collect();
    assert_eq!(extents.len(), 1);
    assert_eq!(extents[0].len, 5 * 4096 - 1);
    assert_eq!(contents(&image, &node), plain_bytes(5 * 4096 - 1));
}

#[test]
fn shared_and_own_attributes_are_listed_together() {
    let (bytes, at) = sample(12);
    let image = open(&bytes);
    let node = image.node(at.tail).unwrap();
    let xattrs = image.xattrs(&node).unwrap();
    let listed: Vec<(&[u8], &[u8])> =
        xattrs.iter().map(|xattr| (xattr.name.as_slice(), xattr.value.as_slice())).collect();
    assert_eq!(
        listed,
        [
            (&b"security.selinux"[..], &b"label"[..]),
            (b"user.shared", b"twice"),
            (b"user.own", b"value"),
            (b"system.posix_acl_access", &ACL),
        ]
    );
    assert_eq!(image.xattr(&node, b"user.own").unwrap(), Some(b"value".to_vec()));
    assert_eq!(image.xattr(&node, b"user.none").unwrap(), None);
}

#[test]
fn long_prefixes_stand_between_the_base_and_the_rest_of_a_name() {
    let mut image = Fixture::new(12);
    image.superblock.feature_incompat |= incompat::XATTR_PREFIXES;
    image.superblock.feature_compat |= compat::PLAIN_XATTR_PFX;
    image.superblock.xattr_prefix_count = 2;
    image.superblock.xattr_prefix_start = 7 * 4096 / 4;
    image.put(7 * 4096, &[2, 0, 1, b'x', 0, 0, 0, 0]);
    image.put(7 * 4096 + 4, &[9, 0, 4, b'o', b'v', b'e', b'r', b'l', b'a', b'y', b'.', 0]);
    let mut body = xattr_body(&[], &[]);
    body.extend([6, 0x81, 1, 0, b'o', b'p', b'a', b'q', b'u', b'e', b'y', 0]);
    let root = image.superblock.root;
    image.directory_at(ROOT_AT, root, &body, &[]);
    let bytes = image.finish();
    let image = open(&bytes);
    let root = image.root().unwrap();
    assert_eq!(image.xattr(&root, b"trusted.overlay.opaque").unwrap(), Some(b"y".to_vec()));
    let prefixes: Vec<_> = image.name_prefixes().collect();
    assert_eq!(prefixes, [(xattr::Prefix::User, &b"x"[..]), (xattr::Prefix::Trusted, b"overlay.")]);
}

/// Two blocks of the image, three of device 1, one of device 2; see `image_over_devices`.
fn image_over_devices() -> (Vec<u8>, Vec<Vec<u8>>, Vec<u8>, [Nid; 2]) {
    let mut image = Fixture::new(12);
    image.superblock.feature_incompat |= incompat::CHUNKED_FILE | incompat::DEVICE_TABLE;
    image.superblock.extra_devices = 2;
    image.superblock.device_slot_offset = 7 * 4096 / 128;
    let primary_blocks = DATA_BLOCK;
    let slot = |unified_start, blocks| DeviceSlot { tag: [b'd'; 64], blocks, unified_start }.encode();
    image.put(7 * 4096, &slot(primary_blocks, 3));
    image.put(7 * 4096 + 128, &slot(primary_blocks + 3, 1));
    let record = |device_id, block| ChunkIndex { device_id, start: Some(Block(block)) }.encode(false);
    let records = [record(2, 0), record(1, 1), record(0, primary_blocks)].concat();
    let format = ChunkFormat::new(0, true).unwrap();
    let file = inode(FileType::Regular, 3 * 4096 - 1, Data::Chunks(format));
    let chunks = image.node(file, b"", 8, &records);
    let flat = Data::Plain { start: Some(Block(primary_blocks + 1)) };
    let flat = image.node(inode(FileType::Regular, 8192, flat), b"", 1, b"");
    let root = image.superblock.root;
    let children: [Child; 2] = [("c", chunks, FileType::Regular), ("f", flat, FileType::Regular)];
    image.directory_at(ROOT_AT, root, b"", &children);
    image.put(primary_blocks * 4096 - 1, &[0]);
    let image = image.finish();
    let device = |seed: u8, blocks: usize| -> Vec<u8> {
        (0..blocks).flat_map(|n| vec![seed + u8::try_from(n).unwrap(); 4096]).collect()
    };
    let devices = vec![device(10, 3), device(20, 1)];
    let want = [vec![20; 4096], vec![11; 4096], vec![10; 4095]].concat();
    (image, devices, want, [chunks, flat])
}

#[test]
fn devices_read_the_same_in_files_of_their_own_and_in_one() {
    let (image, devices, want, [chunks, flat]) = image_over_devices();
    let together = [image.as_slice(), &devices[0], &devices[1]].concat();
    let one = open(&together);
    let files = devices.iter().map(Vec::as_slice).collect();
    let apart = Image::open_with_devices(image.as_slice(), files).unwrap();
    let flat_want = [vec![11; 4096], vec![12; 4096]].concat();
    for image in [&one, &apart] {
        assert_eq!(contents(image, &image.node(chunks).unwrap()), want);
        assert_eq!(contents(image, &image.node(flat).unwrap()), flat_want);
    }
    let places: Vec<Place> =
        apart.extents(&apart.node(chunks).unwrap(), 0).map(|extent| extent.unwrap().place).collect();
    assert_eq!(
        places,
        [
            Place::Blocks { device: 2, offset: 0 },
            Place::Blocks { device: 1, offset: 4096 },
            Place::Blocks { device: 1, offset: 0 }
        ]
    );
    let error = Image::open_with_devices(image.as_slice(), vec![&devices[0][..]]).unwrap_err();
    assert!(matches!(error, ReadError::DeviceCount { slots: 2, given: 1 }));
    // Without its devices, the file's data is outside the image.
    let alone = open(&image);
    let mut bytes = [0; 1];
    let error = alone.read_data(&alone.node(flat).unwrap(), 0, &mut bytes).unwrap_err();
    assert!(matches!(error, ReadError::Outside { .. }), "{error}");
}

#[test]
fn inodes_may_lie_before_the_metadata_start() {
    let (mut bytes, at) = sample(12);
    // Nid 0 moves to block 3; the root has to be found all the same, 16 bits are too few for it.
    bytes[1024 + 0x28] = 3;
    bytes[1024 + 0x50] |= 0x80;
    // As mkfs.erofs spells it: 59 bits. The topmost bit would be the metabox's.
    let before = |nid: u64| nid.wrapping_sub(3 * 128) & (u64::MAX >> 5);
    let root = before(36);
    bytes[1024 + 0x70..1024 + 0x78].copy_from_slice(&root.to_le_bytes());
    seal(&mut bytes);
    let image = open(&bytes);
    assert_eq!(image.root().unwrap().position, ROOT_AT);
    let node = image.node(Nid(before(at.link.0))).unwrap();
    assert_eq!(image.symlink_target(&node).unwrap(), b"target");
    let error = image.node(Nid(at.link.0.wrapping_sub(3 * 128))).unwrap_err();
    assert!(matches!(error, ReadError::Node { fault: NodeFault::Metabox, .. }), "{error}");
}

#[test]
fn wide_directories_are_found_by_bisection() {
    let mut image = Fixture::new(9);
    let file = image.node(inode(FileType::Regular, 0, Data::Plain { start: None }), b"", 1, b"");
    let root = image.superblock.root;
    let names: Vec<&'static str> = (0..500).map(|n| &*format!("name-{n:04}").leak()).collect();
    let mut children: Vec<Child> = names.iter().map(|name| (*name, file, FileType::Regular)).collect();
    children.push(("-", file, FileType::Regular));
    children.push(("..later", file, FileType::Regular));
    let at = 3072;
    let directory = image.directory_at(at, root, b"", &children);
    image.directory_at(ROOT_AT, root, b"", &[("d", directory, FileType::Directory)]);
    let bytes = image.finish();
    let image = open(&bytes);
    let node = image.node(directory).unwrap();
    for (name, ..) in &children {
        assert_eq!(image.lookup(&node, name.as_bytes()).unwrap(), Some((file, FileType::Regular)), "{name}");
    }
    assert_eq!(image.lookup(&node, b"..").unwrap(), Some((Nid(36), FileType::Directory)));
    for name in ["", " ", "name", "name-0000x", "name-9999", "zz"] {
        assert_eq!(image.lookup(&node, name.as_bytes()).unwrap(), None, "{name}");
    }
    let mut walk = image.directory(&node).unwrap();
    let mut count = 0;
    while let Some(entry) = walk.next_child().unwrap() {
        assert!(!entry.is_dot());
        count += 1;
    }
    assert_eq!(count, 502);
}

#[test]
fn a_flat_file_without_blocks_reads_as_zeros() {
    let mut image = Fixture::new(12);
    let nid = image.node(inode(FileType::Regular, 9000, Data::Plain { start: None }), b"", 1, b"");
    let root = image.superblock.root;
    image.directory_at(ROOT_AT, root, b"", &[("hole", nid, FileType::Regular)]);
    let bytes = image.finish();
    let image = open(&bytes);
    let node = image.node(nid).unwrap();
    assert_eq!(contents(&image, &node), vec![0; 9000]);
    let extents: Vec<_> = image.extents(&node, 0).map(Result::unwrap).collect();
    assert_eq!(extents, [Extent { offset: 0, len: 9000, place: Place::Hole }]);
}

#[test]
fn a_wrong_checksum_stops_all_but_who_wants_to_look() {
    let (mut bytes, _) = sample(12);
    bytes[1024 + 0x30] ^= 1;
    let error = Image::open(bytes.as_slice()).unwrap_err();
    assert!(matches!(error, ReadError::Checksum { .. }), "{error}");
    let image = Image::open_despite_checksum(bytes.as_slice(), Vec::new()).unwrap();
    let (stored, computed) = image.checksum().unwrap().unwrap();
    assert_ne!(stored, computed);
}

#[test]
fn what_is_no_image_says_why() {
    let message = |bytes: &[u8]| Image::open(bytes).unwrap_err().to_string();
    assert_eq!(message(b"hello"), "5 bytes are too few for an EROFS image");
    assert_eq!(message(&[0; 4096]), "magic 0x00000000 is not EROFS's 0xe0f5e1e2");
    let (good, _) = sample(12);
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[1024 + at] = value;
        seal(&mut bytes);
        Image::open(bytes.as_slice()).unwrap_err().to_string()
    };
    assert_eq!(with(0x51, 0x01), "incompatible features 0x100 are not supported");
    assert_eq!(with(0x53, 0x80), "incompatible features 0x80000000 are not supported");
    assert_eq!(with(0x5A, 1), "superblock field dirblkbits is 1, not 0");
    assert_eq!(with(0x0D, 200), "superblock field sb_extslots is 200, more than fits the first page");
}

/// Reads everything in an image, as far as it is readable.
fn walk(bytes: &[u8]) {
    let Ok(image) = Image::open_despite_checksum(bytes, Vec::new()) else { return };
    let Ok(root) = image.root() else { return };
    let mut directories = vec![root];
    let mut budget = 64;
    while let Some(node) = directories.pop() {
        let Ok(mut walk) = image.directory(&node) else { continue };
        while let Ok(Some(entry)) = walk.next_child() {
            budget -= 1;
            if budget == 0 {
                return;
            }
            let Ok(child) = image.node(entry.nid) else { continue };
            let _ = image.xattrs(&child);
            let _ = image.symlink_target(&child);
            let _ = image.lookup(&child, b"x");
            let _ = image.extents(&child, 0).take(16).count();
            let _ = image.extents(&child, child.inode.size_bytes / 2).take(16).count();
            let mut buf = [0; 100];
            let _ = image.read_data(&child, child.inode.size_bytes.saturating_sub(50), &mut buf);
            if entry.file_type == FileType::Directory {
                directories.push(child);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn changed_images_never_panic(
        bits in 9_u8..=12,
        changes in prop::collection::vec((0_usize..40_000, any::<u8>()), 1..8),
        in_metadata in any::<bool>(),
    ) {
        let (mut bytes, _) = sample(bits);
        let len = if in_metadata { 1024 + 3 * (1 << bits) } else { bytes.len() };
        for (at, value) in changes {
            let at = 1024 + at % (len - 1024);
            bytes[at] = value;
        }
        walk(&bytes);
    }

    #[test]
    fn cut_images_never_panic(len in 0_usize..20_000) {
        let (bytes, _) = sample(9);
        walk(bytes.get(..len).unwrap_or(&bytes));
    }
}
