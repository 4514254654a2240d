//! Every rule broken once, on images put together by hand.

use proptest::prelude::*;

use super::*;
use crate::{
    error::Classify as _,
    format::erofs::{
        Block, Nid,
        chunk::ChunkFormat,
        device::DeviceSlot,
        fixture::{
            ACL, Child, DATA_BLOCK, Fixture, ROOT_AT, Sample, directory_blocks, inode, sample, seal,
            xattr_body, xattr_entry,
        },
        fuzz_image,
        inode::{Data, Inode, TimeBase},
        superblock::{Superblock, incompat},
    },
    tree::{Attributes, Device, FileType},
};

const BLOCK: u64 = 4096;

/// Reason id of the refusal, or "fine".
fn verdict(bytes: &[u8], policy: &Policy) -> String {
    match verify(bytes, policy) {
        Ok(_) => "fine".into(),
        Err(error) => error.reason().into(),
    }
}

/// The sample image with the bytes at `at` replaced.
fn with(at: u64, change: &[u8]) -> Vec<u8> {
    let (mut bytes, _) = sample(12);
    let at = usize::try_from(at).unwrap();
    bytes[at..at + change.len()].copy_from_slice(change);
    seal(&mut bytes);
    bytes
}

/// Byte of the image for a byte of the superblock.
fn field(offset: u64) -> u64 {
    Superblock::OFFSET + offset
}

fn at(nid: Nid) -> u64 {
    nid.byte_offset(0)
}

fn lints(bytes: &[u8]) -> Vec<Rule> {
    verify(bytes, &Policy::any()).unwrap().lints.into_iter().map(|lint| lint.rule).collect()
}

/// An image whose root lists the children that `fill` creates.
fn image(fill: impl FnOnce(&mut Fixture) -> Vec<Child>) -> Vec<u8> {
    let mut image = Fixture::new(12);
    let children = fill(&mut image);
    let root = image.superblock.root;
    image.superblock.inos = 1 + children.len() as u64;
    image.directory_at(ROOT_AT, root, b"", &children);
    image.finish()
}

fn file(size: u64, data: Data) -> Inode {
    inode(FileType::Regular, size, data)
}

#[test]
fn a_good_image_passes_at_every_block_size_without_a_lint() {
    for bits in 9..=16 {
        let (bytes, _) = sample(bits);
        let mut policy = Policy::layer();
        policy.max_block_bits = 16;
        let report = verify(bytes.as_slice(), &policy).unwrap_or_else(|error| panic!("2^{bits}: {error}"));
        assert_eq!(report.lints, [], "2^{bits}");
        assert_eq!((report.names, report.inodes, report.directories), (9, 9, 2));
        assert_eq!((report.files, report.symlinks, report.whiteouts, report.specials), (3, 1, 1, 2));
        assert_eq!(report.image_bytes, bytes.len() as u64);
        assert_eq!(verify(bytes.as_slice(), &Policy::any()).unwrap(), report);
    }
}

#[test]
fn the_superblock_level_looks_no_further() {
    let (_, Sample { plain, .. }) = sample(12);
    let bytes = with(at(plain), &[0xff, 0xff]);
    assert_eq!(verdict(&bytes, &Policy::layer()), "erofs.inode.format");
    let superblock = Policy { level: Level::Superblock, ..Policy::layer() };
    assert_eq!(verdict(&bytes, &superblock), "fine");
    assert_eq!(verdict(&with(field(0x24), &[0xff]), &superblock), "erofs.superblock.blocks");
}

#[test]
fn superblocks_are_held_to_the_policy() {
    let layer = Policy::layer();
    let (good, _) = sample(12);
    assert_eq!(verdict(&good[..1000], &layer), "erofs.superblock.truncated");
    assert_eq!(verdict(&good[..good.len() - 1], &layer), "erofs.superblock.blocks");
    let (mut bytes, _) = sample(12);
    bytes[1024 + 0x31] ^= 1;
    assert_eq!(verdict(&bytes, &layer), "erofs.superblock.checksum");
    for (offset, change, reason) in [
        (0x00, &[0][..], "erofs.superblock.magic"),
        (0x0D, &[0xff], "erofs.superblock.field"),
        (0x0E, &[0xff, 0xff], "erofs.bounds"),
        (0x24, &[0, 0, 0, 0], "erofs.superblock.blocks"),
        (0x24, &[0xff, 0xff, 0xff, 0xff], "erofs.superblock.blocks"),
        (0x50, &[0x05], "fine"),
        (0x50, &[0x24], "fine"),
        (0x50, &[0x84], "fine"),
        (0x51, &[0x01], "erofs.superblock.feature"),
        (0x08, &[0x27], "erofs.policy.feature"),
        (0x0B, &[0x80], "erofs.policy.feature"),
        (0x5A, &[1], "erofs.superblock.field"),
    ] {
        assert_eq!(verdict(&with(field(offset), change), &layer), reason, "{offset:#x} {change:?}");
    }
    let (wide_blocks, _) = sample(13);
    assert_eq!(verdict(&wide_blocks, &layer), "erofs.policy.block-size");
    // The root is made a file.
    assert_eq!(verdict(&with(ROOT_AT + 4, &[0xa4, 0x81]), &layer), "erofs.inode.type");
}

#[test]
fn devices_stay_beside_the_image_and_inside_their_file() {
    let with_device = |unified_start: u64, blocks: u64, padding: usize| {
        let mut bytes = image(|image| {
            image.superblock.feature_incompat |= incompat::DEVICE_TABLE | incompat::CHUNKED_FILE;
            image.superblock.extra_devices = 1;
            image.superblock.device_slot_offset = 7 * 32;
            image.put(7 * BLOCK, &DeviceSlot { tag: [0; 64], blocks, unified_start }.encode());
            image.put(DATA_BLOCK * BLOCK - 1, &[0]);
            let chunk = crate::format::erofs::chunk::ChunkIndex { device_id: 1, start: Some(Block(0)) };
            let data = Data::Chunks(ChunkFormat::new(0, true).unwrap());
            vec![("c", image.node(file(5, data), b"", 8, &chunk.encode(false)), FileType::Regular)]
        });
        bytes.resize(bytes.len() + padding, 0);
        bytes
    };
    let good = with_device(DATA_BLOCK, 1, 4096);
    assert_eq!(verdict(&good, &Policy::any()), "fine");
    assert_eq!(lints(&good), []);
    assert_eq!(verdict(&good, &Policy::layer()), "erofs.policy.devices");
    assert_eq!(verdict(&with_device(DATA_BLOCK, 1, 4095), &Policy::any()), "erofs.device.range");
    assert_eq!(verdict(&with_device(DATA_BLOCK - 1, 1, 4096), &Policy::any()), "erofs.device.range");
    assert_eq!(verdict(&with_device(0, 1, 4096), &Policy::any()), "erofs.device.range");
    // Bytes are there, but no slot declares them.
    assert_eq!(verdict(&with_device(DATA_BLOCK + 1, 0, 8192), &Policy::any()), "erofs.undeclared");
    let apart = Image::open_with_devices(&good[..good.len() - 4096], vec![&[0; 4096][..]]).unwrap();
    assert!(verify_image(&apart, &Policy::any()).is_ok());
}

#[test]
fn inodes_are_held_to_their_format() {
    let (_, Sample { plain, tail, link, chunks, device, directory, .. }) = sample(12);
    // Chunk records follow 20 bytes of attributes, aligned to 8.
    let first_chunk = at(chunks) + 64 + 24;
    for (place, change, reason) in [
        (at(plain), &[0x0b, 0][..], "erofs.inode.format"),
        (at(plain), &[0x21, 0], "erofs.inode.format"),
        (at(plain), &[0x03, 0], "erofs.compressed.header"),
        (at(plain), &[0x07, 0], "erofs.compressed.header"),
        (at(link), &[0x03, 0], "erofs.compressed"),
        (at(device), &[0x03, 0], "erofs.inode.layout"),
        (at(device), &[0x09, 0], "erofs.inode.layout"),
        (at(plain), &[0x11, 0], "erofs.inode.format"),
        (at(directory), &[0x15, 0], "erofs.inode.format"),
        (at(plain) + 8, &[1, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], "erofs.inode.size"),
        (at(plain) + 0x18, &[0xff, 0xff, 0xff, 0xff], "erofs.inode.owner"),
        (at(plain) + 0x1C, &[0xff, 0xff, 0xff, 0xff], "erofs.inode.owner"),
        (at(plain) + 4, &[0xa4, 0x01], "erofs.inode.mode"),
        (at(plain) + 4, &[0xa4, 0x11], "erofs.dirent.mismatch"),
        (at(plain) + 8, &[0, 0, 0, 0, 0, 0, 0, 0x80], "erofs.inode.size"),
        (at(plain) + 8, &[0, 0, 0, 0, 1], "erofs.bounds"),
        (at(plain) + 0x10, &[0xff, 0xff], "erofs.bounds"),
        (at(tail) + 8, &[0, 0x20], "erofs.inode.whole-tail"),
        (at(tail) + 8, &[0xff, 0x1f], "erofs.inode.tail"),
        (at(link) + 8, &[0], "erofs.symlink.length"),
        (at(link) + 8, &[1, 0x10], "erofs.symlink.length"),
        (at(link) + 66, &[0], "erofs.symlink.nul"),
        (at(chunks) + 0x10, &[0x80], "erofs.chunk.format"),
        (at(chunks) + 8, &[0, 0, 0, 0, 0, 0, 0, 1], "erofs.bounds"),
        (first_chunk + 4, &[0xff, 0xff, 0x80], "erofs.bounds"),
        (first_chunk + 2, &[9, 0], "erofs.chunk.device"),
    ] {
        assert_eq!(verdict(&with(place, change), &Policy::layer()), reason, "{place} {change:?}");
    }
    for file_type in [FileType::Symlink, FileType::Directory] {
        let bytes = image(|image| {
            let data = Data::Chunks(ChunkFormat::new(0, false).unwrap());
            vec![("x", image.node(inode(file_type, 27, data), b"", 4, &[0xff; 4]), file_type)]
        });
        assert_eq!(verdict(&bytes, &Policy::layer()), "erofs.inode.layout", "{file_type:?}");
    }
}

#[test]
fn a_compact_inode_may_end_its_block() {
    let bytes = image(|image| {
        let compact = Inode { attributes: Attributes::default(), ..file(0, Data::Plain { start: None }) };
        image.put(2 * BLOCK - 32, &compact.encode_compact(TimeBase::default()).unwrap());
        vec![("c", Nid(2 * 128 - 1), FileType::Regular)]
    });
    assert_eq!(verdict(&bytes, &Policy::layer()), "fine");
}

#[test]
fn maps_of_compressed_files_are_held_to_what_the_kernel_does_with_them() {
    let good = include_bytes!("../../../../tests/fixtures/erofs/lz4.erofs");
    let image = Image::open(&good[..]).unwrap();
    let node = image.find(b"sparse").unwrap().unwrap();
    // A plain block, then one pcluster for the other seven lclusters; two records in a pack of eight bytes.
    let map = usize::try_from(node.xattr_end().next_multiple_of(8)).unwrap();
    let packs = map + 8;
    let verdict = |changes: &[(usize, &[u8])]| {
        let mut bytes = good.to_vec();
        for (at, change) in changes {
            bytes[*at..*at + change.len()].copy_from_slice(change);
        }
        seal(&mut bytes);
        verdict(&bytes, &Policy::layer())
    };
    assert_eq!(verdict(&[]), "fine");
    let features = 1024 + 0x50;
    for (changes, reason) in [
        // No algorithm, then one that is not there.
        (&[(features, &[0][..]), (features + 4, &[0, 0])][..], "erofs.compressed.header"),
        (&[(map + 6, &[1])], "erofs.compressed.algorithm"),
        (&[(map + 6, &[0x40])], "erofs.compressed.algorithm"),
        (&[(features, &[3]), (features + 4, &[16])], "erofs.superblock.compression"),
        // Unknown bits; lclusters of 32 KiB; forms without their feature.
        (&[(map + 4, &[0x40])], "erofs.compressed.header"),
        (&[(map + 7, &[0x10])], "erofs.compressed.header"),
        (&[(map + 7, &[3])], "erofs.compressed.header"),
        (&[(map + 4, &[0x06])], "erofs.compressed.header"),
        (&[(map + 4, &[0x08])], "erofs.compressed.header"),
        (&[(map + 4, &[0x20])], "erofs.compressed.header"),
        // A fragment at the end of the file, then as all of it, in a packed file that does not
        // exist.
        (&[(features, &[0x21]), (map + 4, &[0x20])], "erofs.compressed.fragment"),
        (&[(map + 7, &[0x80])], "erofs.compressed.fragment"),
        // An empty inline pcluster, then one that does not fit its block.
        (&[(features, &[0x11]), (map + 4, &[0x08])], "erofs.compressed.inline"),
        (&[(features, &[0x11]), (map, &[0, 0, 0, 0x10, 0x08])], "erofs.compressed.inline"),
        // The file does not start with its first record; one starts outside its lcluster.
        (&[(packs, &[1])], "erofs.compressed.map"),
        (&[(packs + 1, &[0x20])], "erofs.compressed.map"),
        // A distance back beyond the start of the file, then 0, then a block count.
        (&[(packs + 8, &[5, 0x20])], "erofs.compressed.map"),
        (&[(packs + 8, &[0, 0x20])], "erofs.compressed.map"),
        (&[(packs + 8, &[2, 0x28])], "erofs.compressed.map"),
        // 24676 bytes of one plain block.
        (&[(packs + 3, &[0])], "erofs.compressed.size"),
        // Blocks beyond the image, of the superblock, and of inodes.
        (&[(packs + 4, &[0xff, 0xff])], "erofs.bounds"),
        (&[(packs + 4, &[0xff, 0xff, 0xff, 0xff])], "erofs.overlap"),
    ] {
        assert_eq!(verdict(changes), reason, "{changes:?}");
    }
}

#[test]
fn the_largest_file_is_one_whose_blocks_the_kernel_can_count() {
    let hole = |size: u64| {
        image(|image| {
            let start = Data::Plain { start: None };
            vec![("h", image.node(file(size, start), b"", 1, b""), FileType::Regular)]
        })
    };
    assert_eq!(verdict(&hole((1 << 63) - 4096), &Policy::layer()), "fine");
    assert_eq!(verdict(&hole((1 << 63) - 4095), &Policy::layer()), "erofs.inode.size");
}

#[test]
fn an_inline_file_whose_whole_blocks_are_nowhere_is_no_hole() {
    let (mut bytes, Sample { tail, .. }) = sample(12);
    let at = usize::try_from(at(tail)).unwrap();
    bytes[at + 6..at + 8].fill(0xff);
    bytes[at + 0x10..at + 0x14].fill(0xff);
    let image = Image::open(bytes.as_slice()).unwrap();
    let node = image.find(b"tail").unwrap().unwrap();
    let error = image.read_data(&node, 0, &mut [0; 8]).unwrap_err();
    assert_eq!(error.reason(), "erofs.bounds", "{error}");
    assert_eq!(verdict(&bytes, &Policy::layer()), "erofs.bounds");
}

#[test]
fn an_inode_number_of_the_metabox_leads_nowhere() {
    // "!first" is the first record of the root.
    let bytes = with(ROOT_AT + 64 + 7, &[0x80]);
    assert_eq!(verdict(&bytes, &Policy::layer()), "erofs.inode.metabox");
}

#[test]
fn name_prefixes_need_their_feature() {
    let prefixes = |feature: u32| {
        image(|image| {
            image.superblock.feature_incompat |= feature;
            image.superblock.xattr_prefix_count = 1;
            image.superblock.xattr_prefix_start = u32::try_from(7 * BLOCK / 4).unwrap();
            image.put(7 * BLOCK, &[3, 0, 1, b'a', b'.']);
            Vec::new()
        })
    };
    assert_eq!(verdict(&prefixes(incompat::XATTR_PREFIXES), &Policy::layer()), "fine");
    assert_eq!(verdict(&prefixes(0), &Policy::any()), "erofs.superblock.field");
    // The kernel reads the table whatever the feature bit says, and does not mount this image.
    assert_eq!(verdict(&with(field(0x5B), &[1]), &Policy::any()), "erofs.xattr.prefix");
}

#[test]
fn the_packed_file_is_one_that_the_kernel_finds() {
    let packed = |nid: u64| {
        let (mut bytes, _) = sample(12);
        bytes[1024 + 0x50] |= 0x20;
        bytes[1024 + 0x60..1024 + 0x68].copy_from_slice(&nid.to_le_bytes());
        seal(&mut bytes);
        bytes
    };
    let (_, Sample { plain, whiteout, .. }) = sample(12);
    for level in [Level::Strict, Level::Superblock] {
        let policy = Policy { level, ..Policy::layer() };
        assert_eq!(verdict(&packed(1 << 40), &policy), "erofs.bounds");
        assert_eq!(verdict(&packed(whiteout.0), &policy), "erofs.packed");
    }
    // The packed file is listed in a directory too.
    assert_eq!(verdict(&packed(plain.0), &Policy::layer()), "erofs.overlap");
}

#[test]
fn reserved_space_among_attributes_is_no_attribute() {
    let bytes = image(|image| {
        let mut body = xattr_body(&[], &[("user.a", b"1")]);
        body.extend([0; 8]);
        body.extend(xattr_entry("user.b", b""));
        body.extend([0; 480]);
        body[..4].fill(0);
        vec![("f", image.node(file(0, Data::Plain { start: None }), &body, 1, b""), FileType::Regular)]
    });
    assert_eq!(verdict(&bytes, &Policy::layer()), "fine");
    let image = Image::open(bytes.as_slice()).unwrap();
    let node = image.find(b"f").unwrap().unwrap();
    let names: Vec<_> = image.xattrs(&node).unwrap().into_iter().map(|xattr| xattr.name).collect();
    assert_eq!(names, [b"user.a", b"user.b"]);
    assert_eq!(image.xattr(&node, b"user.b").unwrap(), Some(Vec::new()));
}

#[test]
fn attributes_that_the_kernel_lists_but_does_not_read_are_refused() {
    let on = |file_type: FileType, name: &str, value: &[u8]| {
        let bytes = image(|image| {
            let body = xattr_body(&[], &[(name, value)]);
            let nid = match file_type {
                FileType::Symlink => {
                    image.node(inode(file_type, 1, Data::Inline { start: None }), &body, 1, b"t")
                }
                FileType::Fifo => image.node(inode(file_type, 0, Data::None), &body, 1, b""),
                _ => image.node(file(0, Data::Plain { start: None }), &body, 1, b""),
            };
            vec![("x", nid, file_type)]
        });
        verdict(&bytes, &Policy::layer())
    };
    let entry =
        |tag: u8, permissions: u8, id: u32| [&[tag, 0, permissions, 0][..], &id.to_le_bytes()].concat();
    let list = |entries: &[Vec<u8>]| [&[2, 0, 0, 0][..], &entries.concat()].concat();
    let none = u32::MAX;
    let (owner, group, others) = (entry(1, 6, none), entry(4, 4, none), entry(0x20, 4, none));
    let (user, mask) = (entry(2, 7, 1000), entry(0x10, 7, none));
    let full = list(&[owner.clone(), user.clone(), group.clone(), mask.clone(), others.clone()]);
    for (value, want) in [
        (ACL.to_vec(), "fine"),
        (full.clone(), "fine"),
        (vec![2, 0, 0, 0], "erofs.xattr.value"),
        ([&[1], &full[1..]].concat(), "erofs.xattr.value"),
        ([&full[..], &[0]].concat(), "erofs.xattr.value"),
        // Lists without a mask, out of order, with an unknown permission, with an id of 2^32 - 1.
        (list(&[owner.clone(), user.clone(), group.clone(), others.clone()]), "erofs.xattr.value"),
        (list(&[user, owner.clone(), group.clone(), mask.clone(), others.clone()]), "erofs.xattr.value"),
        (list(&[entry(1, 8, none), group.clone(), others.clone()]), "erofs.xattr.value"),
        (list(&[owner, entry(2, 7, none), group, mask, others]), "erofs.xattr.value"),
    ] {
        assert_eq!(on(FileType::Regular, "system.posix_acl_access", &value), want, "{value:?}");
    }
    assert_eq!(on(FileType::Symlink, "system.posix_acl_access", &full), "erofs.xattr.type");
    let capability = |revision: u8, len: usize, root: u32| {
        let mut value = vec![0; len];
        (value[0], value[3]) = (1, revision);
        if len == 24 {
            value[20..].copy_from_slice(&root.to_le_bytes());
        }
        on(FileType::Regular, "security.capability", &value)
    };
    assert_eq!((capability(2, 20, 0), capability(3, 24, 1000)), ("fine".into(), "fine".into()));
    for (revision, len, root) in [(2, 19, 0), (2, 24, 0), (1, 12, 0), (3, 20, 0), (3, 24, none)] {
        assert_eq!(capability(revision, len, root), "erofs.xattr.value", "{revision} {len}");
    }
    for (file_type, want) in [
        (FileType::Regular, "fine"),
        (FileType::Symlink, "erofs.xattr.type"),
        (FileType::Fifo, "erofs.xattr.type"),
    ] {
        assert_eq!(on(file_type, "user.a", b"1"), want, "{file_type:?}");
        assert_eq!(on(file_type, "trusted.a", b"1"), "fine", "{file_type:?}");
    }
}

#[test]
fn directory_blocks_are_held_to_their_format() {
    // The root's eight records start after its inode: !first . .. chunks dir fifo plain tail.
    let records = ROOT_AT + 64;
    let names = records + 8 * 12;
    for (place, change, reason) in [
        (records + 8, &[0, 0][..], "erofs.dirent.offset"),
        (records + 8, &[95, 0], "erofs.dirent.offset"),
        (records + 8, &[0xf0, 0x0f], "erofs.dirent.offset"),
        (records + 12 + 8, &[95, 0], "erofs.dirent.offset"),
        (records + 12 + 8, &[0xff, 0xff], "erofs.dirent.offset"),
        (records + 10, &[0], "erofs.dirent.type"),
        (records + 10, &[8], "erofs.dirent.type"),
        (records + 10, &[1], "erofs.dirent.mismatch"),
        (names + 1, b"/", "erofs.dirent.name"),
        (names + 1, &[0], "erofs.dirent.name"),
        (names, b"~", "erofs.dirent.order"),
        // "chunks" becomes "..", so that name occurs twice.
        (names + 6, b"x", "erofs.dirent.order"),
        (names + 6, b"-", "erofs.directory.dot"),
        (names + 9, b"xhunkt", "erofs.dirent.order"),
        (records + 12, &[37], "erofs.directory.dot"),
        (records + 12 + 10, &[1], "erofs.directory.dot"),
        (records + 24, &[37], "erofs.directory.dotdot"),
    ] {
        let bytes = with(place, change);
        assert_eq!(verdict(&bytes, &Policy::layer()), reason, "{} {change:?}", place - records);
    }
    let empty = image(|_| Vec::new());
    assert_eq!(verdict(&empty, &Policy::layer()), "fine");
    let mut long_name = empty.clone();
    // A name of 300 bytes: the directory grows to hold it.
    let root = usize::try_from(ROOT_AT).unwrap();
    long_name[root + 8..root + 10].copy_from_slice(&(24_u16 + 301).to_le_bytes());
    long_name[root + 64 + 24 + 1..root + 64 + 24 + 301].fill(b'.');
    seal(&mut long_name);
    assert_eq!(verdict(&long_name, &Policy::layer()), "erofs.dirent.name");
    // Two records alone do not make a directory when one of the dots is missing.
    let mut no_dot = empty;
    no_dot[root + 8..root + 10].copy_from_slice(&14_u16.to_le_bytes());
    no_dot[root + 64 + 8..root + 64 + 10].copy_from_slice(&12_u16.to_le_bytes());
    no_dot[root + 64 + 12..root + 64 + 16].copy_from_slice(b"..\0\0");
    seal(&mut no_dot);
    assert_eq!(verdict(&no_dot, &Policy::layer()), "erofs.directory.dot");
}

#[test]
fn order_holds_across_blocks() {
    let names = |n: usize| -> &'static str { format!("{n:0200}").leak() };
    let wide = |swap: bool| {
        image(|image| {
            let nid = image.node(file(0, Data::Plain { start: None }), b"", 1, b"");
            let root = image.superblock.root;
            let mut entries: Vec<(&[u8], Nid, FileType)> =
                (0..40).map(|n| (names(n).as_bytes(), nid, FileType::Regular)).collect();
            entries.push((b".", Nid(7 * 128), FileType::Directory));
            entries.push((b"..", root, FileType::Directory));
            entries.sort_unstable();
            let mut blocks = directory_blocks(image.bits(), &entries);
            if swap {
                let (first, second) = blocks.split_at_mut(4096);
                first.swap_with_slice(&mut second[..4096]);
            }
            let start = Some(image.data(&blocks));
            let mut directory = inode(FileType::Directory, blocks.len() as u64, Data::Plain { start });
            directory.nlink = 2;
            let nid = image.node_at(7 * BLOCK, directory, b"", 1, b"");
            vec![("d", nid, FileType::Directory)]
        })
    };
    let error = verify(wide(true).as_slice(), &Policy::layer()).unwrap_err();
    assert_eq!(error.reason(), "erofs.dirent.order");
    assert!(error.to_string().starts_with("directory 896, block 1: name \".\""), "{error}");
    assert_eq!(verdict(&wide(false), &Policy::layer()), "fine");
}

#[test]
fn directories_form_a_tree() {
    let (_, Sample { directory, .. }) = sample(12);
    let records = ROOT_AT + 64;
    // "dir" becomes the root itself.
    assert_eq!(verdict(&with(records + 4 * 12, &[36, 0]), &Policy::layer()), "erofs.directory.twice");
    // "again" below "dir" becomes a directory: the root, then "dir" itself.
    let again = at(directory) + 64 + 52 + 2 * 12;
    let is_directory = |nid: u64| {
        let mut record = nid.to_le_bytes().to_vec();
        record.extend([60 + 3, 0, 2]);
        verdict(&with(again, &record), &Policy::layer())
    };
    let body = xattr_body(&[], &[("trusted.overlay.opaque", b"y"), ("trusted.overlay.origin", b"")]);
    assert_eq!(body.len(), 52, "the directory's attributes are where this test thinks they are");
    assert_eq!(is_directory(36), "erofs.directory.twice");
    assert_eq!(is_directory(directory.0), "erofs.directory.dotdot");
    let twice = image(|image| {
        let root = image.superblock.root;
        let nid = image.directory_at(7 * BLOCK, root, b"", &[]);
        vec![("a", nid, FileType::Directory), ("b", nid, FileType::Directory)]
    });
    assert_eq!(verdict(&twice, &Policy::layer()), "erofs.directory.twice");
}

#[test]
fn depth_is_bounded() {
    let deep = |depth: u64| {
        image(|image| {
            // One directory after the other, each with an inline block.
            let root = image.superblock.root;
            let first = (DATA_BLOCK + 1) * BLOCK;
            let place = |n: u64| first + n * 128;
            for n in 0..depth {
                let parent = if n == 0 { root } else { Nid(place(n - 1) / 32) };
                let child: &[Child] = &[("d", Nid(place(n + 1) / 32), FileType::Directory)];
                image.directory_at(place(n), parent, b"", if n + 1 < depth { child } else { &[] });
            }
            image.superblock.inos = depth + 1;
            vec![("d", Nid(first / 32), FileType::Directory)]
        })
    };
    assert_eq!(verdict(&deep(u64::from(crate::limits::DIRECTORY_DEPTH)), &Policy::layer()), "fine");
    let deeper = deep(u64::from(crate::limits::DIRECTORY_DEPTH) + 1);
    assert_eq!(verdict(&deeper, &Policy::layer()), "erofs.directory.depth");
}

#[test]
fn owners_that_stand_for_none_are_refused() {
    let of = |uid, gid| {
        image(|image| {
            let mut inode = file(0, Data::Plain { start: None });
            (inode.attributes.uid, inode.attributes.gid) = (uid, gid);
            vec![("f", image.node(inode, b"", 1, b""), FileType::Regular)]
        })
    };
    assert_eq!(verdict(&of(u32::MAX - 1, u32::MAX - 1), &Policy::layer()), "fine");
    for (uid, gid) in [(u32::MAX, 0), (0, u32::MAX)] {
        assert_eq!(verdict(&of(uid, gid), &Policy::layer()), "erofs.inode.owner");
    }
}

#[test]
fn nothing_is_in_use_twice() {
    let plain = |start: u64, blocks: u64| file(blocks * BLOCK, Data::Plain { start: Some(Block(start)) });
    let one = |inode: Inode| {
        image(|image| {
            image.data(&[1; 4096]);
            vec![("f", image.node(inode, b"", 1, b""), FileType::Regular)]
        })
    };
    assert_eq!(verdict(&one(plain(DATA_BLOCK, 1)), &Policy::layer()), "fine");
    for (start, what) in [(0, "the superblock"), (1, "inodes")] {
        assert_eq!(verdict(&one(plain(start, 1)), &Policy::layer()), "erofs.overlap", "{what}");
    }
    let over_directory = image(|image| {
        let nid = image.node(plain(DATA_BLOCK, 1), b"", 1, b"");
        let root = image.superblock.root;
        let wide: Vec<Child> =
            (0..60).map(|n| (&*format!("{n:0200}").leak(), nid, FileType::Regular)).collect();
        let directory = image.directory_at(7 * BLOCK, root, b"", &wide);
        vec![("d", directory, FileType::Directory)]
    });
    assert_eq!(verdict(&over_directory, &Policy::layer()), "erofs.overlap");
    let inode_in_inode = image(|image| {
        let outer = image.node_at(7 * BLOCK, file(200, Data::Inline { start: None }), b"", 1, &[0; 200]);
        let inner = image.node_at(7 * BLOCK + 96, file(0, Data::Plain { start: None }), b"", 1, b"");
        vec![("a", outer, FileType::Regular), ("b", inner, FileType::Regular)]
    });
    assert_eq!(verdict(&inode_in_inode, &Policy::layer()), "erofs.overlap");
    let attribute_in_inode = image(|image| {
        image.superblock.xattr_block = 7;
        image.put(7 * BLOCK + 96, &xattr_entry("user.a", b""));
        let data = Data::Inline { start: None };
        let tail = [&[1; 32][..], &xattr_entry("user.a", b"")].concat();
        let outer = image.node_at(7 * BLOCK, file(tail.len() as u64, data), b"", 1, &tail);
        let body = xattr_body(&[(24, "user.a")], &[]);
        let user = image.node(file(0, Data::Plain { start: None }), &body, 1, b"");
        vec![("a", outer, FileType::Regular), ("b", user, FileType::Regular)]
    });
    assert_eq!(verdict(&attribute_in_inode, &Policy::layer()), "erofs.overlap");
}

#[test]
fn data_may_be_shared_and_is_remarked_upon() {
    let bytes = image(|image| {
        let start = image.data(&[1; 3 * 4096]);
        let whole = file(3 * BLOCK, Data::Plain { start: Some(start) });
        let part = file(BLOCK, Data::Plain { start: Some(Block(start.0 + 1)) });
        let (whole, part) = (image.node(whole, b"", 1, b""), image.node(part, b"", 1, b""));
        vec![("a", whole, FileType::Regular), ("b", part, FileType::Regular)]
    });
    let report = verify(bytes.as_slice(), &Policy::layer()).unwrap();
    assert_eq!(report.lints.len(), 1);
    assert_eq!((report.lints[0].rule, report.lints[0].count), (Rule::Shared, 1));
    assert_eq!(report.lints[0].first, "1 blocks of data belong to more than one file");
}

#[test]
fn bytes_behind_the_declared_blocks_belong_to_nobody() {
    let (mut bytes, _) = sample(12);
    let blocks = u32::try_from(bytes.len() / 4096).unwrap();
    // The last block holds the end of a chunked file.
    bytes[1024 + 0x24..1024 + 0x28].copy_from_slice(&(blocks - 1).to_le_bytes());
    seal(&mut bytes);
    assert_eq!(verdict(&bytes, &Policy::layer()), "erofs.undeclared");
    // An inode behind the end.
    let (mut bytes, Sample { link, .. }) = sample(12);
    let inode = usize::try_from(at(link)).unwrap();
    let record = bytes[inode..inode + 96].to_vec();
    let record_at = usize::try_from(ROOT_AT).unwrap() + 64;
    let behind = bytes.len() as u64 / 32;
    bytes[record_at..record_at + 8].copy_from_slice(&behind.to_le_bytes());
    bytes.extend(record);
    seal(&mut bytes);
    assert_eq!(verdict(&bytes, &Policy::layer()), "erofs.undeclared");
}

#[test]
fn attributes_are_held_to_their_format() {
    let (_, Sample { tail, .. }) = sample(12);
    let body = at(tail) + 64;
    // Header, two shared ids, then "user.own" (12 bytes) and the ACL (32 bytes).
    for (place, change, reason) in [
        (at(tail) + 2, &[1, 0][..], "erofs.xattr.body"),
        (at(tail) + 2, &[0xff, 0xff], "erofs.bounds"),
        (body + 4, &[255], "erofs.xattr.body"),
        (body + 12, &[0xff, 0xff, 0xff], "erofs.bounds"),
        (body + 20, &[200], "erofs.xattr.body"),
        (body + 21, &[0], "erofs.xattr.index"),
        (body + 21, &[7], "erofs.xattr.index"),
        (body + 21, &[0x80], "erofs.xattr.index"),
        (body + 21, &[2], "erofs.xattr.name"),
        (body + 25, &[0], "erofs.xattr.name"),
        (body, &[0xff, 0xff, 0xff, 0xff], "erofs.xattr.filter"),
        (body + 25, b"O", "erofs.xattr.filter"),
    ] {
        let bytes = with(place, change);
        assert_eq!(verdict(&bytes, &Policy::layer()), reason, "{} {change:?}", place - body);
    }
    let twice = |names: [&str; 2]| {
        image(|image| {
            let body = xattr_body(&[], &[(names[0], b"1"), (names[1], b"2")]);
            vec![("f", image.node(file(0, Data::Plain { start: None }), &body, 1, b""), FileType::Regular)]
        })
    };
    assert_eq!(verdict(&twice(["user.a", "user.a"]), &Policy::layer()), "erofs.xattr.twice");
    assert_eq!(verdict(&twice(["user.a", "user.b"]), &Policy::layer()), "fine");
}

#[test]
fn only_harmless_overlay_attributes_may_be_in_a_layer() {
    let on = |file_type: FileType, name: &str, value: &[u8]| {
        image(|image| {
            let body = xattr_body(&[], &[(name, value)]);
            let root = image.superblock.root;
            let nid = match file_type {
                FileType::Directory => image.directory_at(7 * BLOCK, root, &body, &[]),
                _ => image.node(file(0, Data::Plain { start: None }), &body, 1, b""),
            };
            vec![("x", nid, file_type)]
        })
    };
    for (file_type, name, value, allowed) in [
        (FileType::Directory, "trusted.overlay.opaque", &b"y"[..], true),
        (FileType::Directory, "trusted.overlay.opaque", b"x", false),
        (FileType::Directory, "trusted.overlay.opaque", b"yy", false),
        (FileType::Directory, "trusted.overlay.origin", b"", true),
        (FileType::Directory, "trusted.overlay.origin", b"\0", false),
        (FileType::Directory, "trusted.overlay.redirect", b"/etc", false),
        (FileType::Directory, "user.overlay.redirect", b"/etc", false),
        (FileType::Regular, "trusted.overlay.opaque", b"y", false),
        (FileType::Regular, "trusted.overlay.origin", b"", false),
        (FileType::Regular, "trusted.overlay.metacopy", b"", false),
        (FileType::Regular, "user.overlay.metacopy", b"", false),
        (FileType::Regular, "trusted.overlay.whiteout", b"", false),
        (FileType::Regular, "trusted.overlayed", b"", true),
    ] {
        let bytes = on(file_type, name, value);
        let want = if allowed { "fine" } else { "erofs.policy.overlay" };
        assert_eq!(verdict(&bytes, &Policy::layer()), want, "{file_type:?} {name} {value:?}");
        assert_eq!(verdict(&bytes, &Policy::any()), "fine", "{name}");
    }
}

#[test]
fn what_is_merely_unusual_is_a_lint() {
    let (_, Sample { plain, tail, link, device, whiteout, directory, .. }) = sample(12);
    for (place, change, rule) in [
        (at(plain) + 0x2C, &[3][..], Rule::Links),
        (at(directory) + 0x2C, &[3], Rule::Links),
        (field(0x10), &[8], Rule::Inos),
        (field(0x78), &[1], Rule::Reserved),
        (at(plain) + 0x30, &[1], Rule::Reserved),
        (at(link) + 64 + 6, &[1], Rule::Padding),
        // The opaque mark of "dir" takes 19 bytes of 20.
        (at(directory) + 64 + 12 + 19, &[1], Rule::Padding),
        (at(directory) + 64 + 5, &[1], Rule::Reserved),
        (ROOT_AT + 64 + 11, &[1], Rule::Fill),
        (at(plain) + 0x28, &[0xff, 0xff, 0xff, 0xff], Rule::Time),
        (at(device) + 8, &[1], Rule::Special),
        (at(device), &[0x05], Rule::Special),
        (field(0x08), &[0x05], Rule::Unused),
        (field(0x50), &[0x00], Rule::Unused),
        (field(0x54), &[0x01], Rule::Unused),
        (at(tail) + 64 + 21, &[5], Rule::Prefix),
        (at(plain) + 0x10, &[0xff, 0xff, 0xff, 0xff], Rule::FlatHole),
    ] {
        let mut bytes = with(place, change);
        if rule == Rule::FlatHole {
            // An address is "no block" only when all 48 bits are set.
            let high = usize::try_from(at(plain)).unwrap() + 6;
            bytes[high..high + 2].fill(0xff);
        }
        if rule == Rule::Prefix {
            // The filter would hide the changed name.
            let filter = usize::try_from(at(tail)).unwrap() + 64;
            bytes[filter..filter + 4].fill(0);
        }
        assert_eq!(lints(&bytes), [rule], "{place} {change:?}");
    }
    let labelled = image(|image| {
        let body = xattr_body(&[], &[("trusted.a", b"")]);
        let device = inode(FileType::CharDevice, 0, Data::Device(Device::WHITEOUT));
        vec![("w", image.node(device, &body, 1, b""), FileType::CharDevice)]
    });
    assert_eq!(lints(&labelled), [Rule::Whiteout]);
    assert_eq!(at(whiteout) % 32, 0);
    let dirty = image(|image| {
        let root = image.superblock.root;
        let entries: [(&[u8], Nid, FileType); 2] =
            [(b".", Nid(7 * 128), FileType::Directory), (b"..", root, FileType::Directory)];
        let mut block = directory_blocks(image.bits(), &entries);
        block.resize(4096, 0);
        block[4000] = 1;
        let start = Some(image.data(&block));
        let directory = inode(FileType::Directory, 4096, Data::Plain { start });
        vec![("d", image.node_at(7 * BLOCK, directory, b"", 1, b""), FileType::Directory)]
    });
    assert_eq!(lints(&dirty), [Rule::Fill]);
}

#[test]
fn every_rule_has_a_reason_of_its_own() {
    let mut reasons: Vec<_> = Rule::ALL.iter().map(|rule| rule.reason()).collect();
    for (rule, reason) in Rule::ALL.iter().zip(&reasons) {
        assert_eq!(*rule >= Rule::Links, reason.starts_with("erofs.lint."), "{reason}");
    }
    reasons.sort_unstable();
    reasons.dedup();
    assert_eq!(reasons.len(), Rule::ALL.len());
}

/// Reason ids in the document's tables; `.x` after `a.b.c` stands for `a.b.x`.
#[test]
fn every_rule_is_documented() {
    let document = include_str!("../../../../docs/formats/erofs.md");
    let mut documented = std::collections::BTreeSet::new();
    let mut area = String::new();
    for word in document.split('`').skip(1).step_by(2) {
        match word.strip_prefix('.') {
            Some(rest) => drop(documented.insert(format!("{area}.{rest}"))),
            None => {
                area = word.rsplit_once('.').map_or(String::new(), |(area, _)| area.to_owned());
                documented.insert(word.to_owned());
            }
        }
    }
    let missing: Vec<_> =
        Rule::ALL.iter().map(|rule| rule.reason()).filter(|reason| !documented.contains(*reason)).collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn nodes_and_memory_are_bounded() {
    let (bytes, _) = sample(12);
    assert_eq!(verdict(&bytes, &Policy { max_nodes: 9, ..Policy::layer() }), "fine");
    assert_eq!(verdict(&bytes, &Policy { max_nodes: 8, ..Policy::layer() }), "limit.nodes");
    assert_eq!(verdict(&bytes, &Policy { max_memory_bytes: 100, ..Policy::layer() }), "limit.metadata");
}

#[test]
fn directories_that_share_blocks_are_not_walked_forever() {
    // Without a record `.`, two directories of one parent could share their blocks.
    let bytes = image(|image| {
        image.superblock.feature_incompat |= incompat::WIDE;
        let root = image.superblock.root;
        let entries: [(&[u8], Nid, FileType); 1] = [(b"..", root, FileType::Directory)];
        let mut block = directory_blocks(image.bits(), &entries);
        block.resize(4096, 0);
        let start = Some(image.data(&block));
        let directory = inode(FileType::Directory, 4096, Data::Plain { start });
        let directory = Inode { dot_omitted: true, ..directory };
        (0..100)
            .map(|n| {
                let name: &'static str = format!("{n:03}").leak();
                (name, image.node(directory, b"", 1, b""), FileType::Directory)
            })
            .collect()
    });
    assert_eq!(verdict(&bytes, &Policy::any()), "erofs.overlap");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]
    #[test]
    fn changed_images_are_refused_or_readable(
        bits in 9_u8..=12,
        changes in prop::collection::vec((any::<u32>(), any::<u8>()), 1..6),
        in_metadata in any::<bool>(),
    ) {
        let (mut bytes, _) = sample(bits);
        let len = if in_metadata { 1024 + 3 * (1 << bits) } else { bytes.len() };
        for (at, value) in changes {
            let at = 1024 + usize::try_from(at).unwrap() % (len - 1024);
            bytes[at] = value;
        }
        fuzz_image(&bytes);
    }
}

/// With PLYWOOD_WRITE_CORPUS set it writes them instead. Set it after a change of the records.
#[test]
fn the_inputs_of_the_fuzz_target_are_refused_for_what_they_are_named_after() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/erofs_image");
    let write = std::env::var_os("PLYWOOD_WRITE_CORPUS").is_some();
    let put = |name: &str, bytes: &[u8]| match write {
        true => std::fs::write(directory.join(name), bytes).unwrap(),
        false => assert!(std::fs::read(directory.join(name)).unwrap() == bytes, "{name} is of another time"),
    };
    let (good, Sample { plain, tail, link, chunks, directory: below, .. }) = sample(9);
    put("ok@one-of-everything", &good);
    let at = |nid: Nid, offset: u64| usize::try_from(at(nid) + offset).unwrap();
    let root = usize::try_from(ROOT_AT).unwrap();
    for (name, place, change) in [
        ("erofs.superblock.blocks@more", 1024 + 0x24, &[0xff][..]),
        ("erofs.policy.feature@fingerprints", 1024 + 0x08, &[0x27]),
        ("erofs.compressed.header@no-algorithm", at(plain, 0), &[0x03]),
        ("erofs.inode.format@unknown-bit", at(plain, 0), &[0x21]),
        ("erofs.bounds@start", at(plain, 0x10), &[0xff, 0xff]),
        ("erofs.overlap@superblock", at(plain, 0x10), &[2, 0, 0, 0]),
        ("erofs.inode.whole-tail@file", at(tail, 8), &[0, 4]),
        ("erofs.xattr.filter@all-ones", at(tail, 64), &[0xff; 4]),
        ("erofs.xattr.body@shared-ids", at(tail, 68), &[255]),
        ("erofs.symlink.nul@target", at(link, 66), &[0]),
        ("erofs.chunk.format@unknown-bit", at(chunks, 0x10), &[0x80]),
        ("erofs.chunk.device@nine", at(chunks, 64 + 24 + 2), &[9]),
        ("erofs.directory.dotdot@elsewhere", at(below, 64 + 52 + 12), &[37]),
        ("erofs.dirent.order@swapped", root + 64 + 8 * 12, b"~"),
        ("erofs.dirent.offset@zero", root + 64 + 8, &[0]),
        ("erofs.dirent.mismatch@type", root + 64 + 10, &[1]),
    ] {
        let mut bytes = good.clone();
        bytes[place..place + change.len()].copy_from_slice(change);
        seal(&mut bytes);
        assert_eq!(verdict(&bytes, &Policy::layer()), name.split('@').next().unwrap());
        put(name, &bytes);
    }
}
