//! Tests of the writer on whole images.

use std::{collections::BTreeMap, io};

use sha2::{Digest, Sha256};

use super::*;
use crate::{
    error::{Classify, Kind},
    format::{
        ReadAt,
        erofs::{
            Block,
            check::{Policy, verify},
            reader::Image,
        },
    },
    limits,
    tree::{Attributes, Body, Timestamp, Xattr},
};

fn entry(path: &str, body: Body) -> Entry {
    let attributes = Attributes { mode: 0o644, ..Attributes::default() };
    Entry { path: path.into(), attributes, xattrs: Vec::new(), body }
}

fn regular(path: &str, data: &[u8]) -> (Entry, Vec<u8>) {
    (entry(path, Body::Regular { size_bytes: data.len() as u64, extents: None }), data.to_vec())
}

/// Writes an image of `entries`, with their data handed over in slices of `step` bytes.
fn write_in_steps(options: &Options, entries: &[(Entry, Vec<u8>)], step: usize) -> (Vec<u8>, Summary) {
    let mut writer = Writer::new(Vec::new(), options.clone());
    for (entry, data) in entries {
        writer.entry(entry).unwrap();
        let mut offset = 0;
        for bytes in data.chunks(step) {
            writer.data(offset, bytes).unwrap();
            offset += bytes.len() as u64;
        }
        writer.end_entry().unwrap();
    }
    writer.finish().unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |byte| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let digits: Vec<u8> = text.bytes().filter_map(digit).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// The example of `docs/formats/erofs.md`, "An example".
#[test]
fn golden_a_file_and_a_whiteout() {
    let (mut hello, data) = regular("hello", b"world\n");
    hello.attributes.uid = 1000;
    hello.attributes.gid = 1000;
    let mut old = entry(".wh.old", Body::Regular { size_bytes: 0, extents: None });
    for entry in [&mut hello, &mut old] {
        entry.attributes.mtime = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };
    }
    let mut want = vec![0; 8192];
    for (offset, bytes) in [
        (0x0400, "e2e1f5e0 395b74e6 07000000 0c002400 03000000 00000000 00000000 00000000"),
        (0x0420, "00000000 02000000"),
        (0x0480, "05000600 ed410000 3b000000 00000000 ffffffff 00000000 00000000 00000000"),
        (0x04a8, "00000000 02000000"),
        (0x04c0, "fffffbff 00000000 00000000 0e040000 6f766572 6c61792e 6f726967 696e0000"),
        (0x04e0, "24000000 00000000 30000200 24000000 00000000 31000200 80000000 00000000"),
        (0x0500, "33000100 83000000 00000000 38000300 2e2e2e68 656c6c6f 6f6c6400 00000000"),
        (0x1000, "05000000 a4810000 06000000 00000000 ffffffff 01000000 e8030000 e8030000"),
        (0x1020, "00f15365 00000000 00000000 01000000"),
        (0x1040, "776f726c 640a0000"),
        (0x1060, "01000000 a4210000 00000000 00000000 00000000 02000000 00000000 00000000"),
        (0x1080, "00f15365 00000000 00000000 01000000"),
    ] {
        let bytes = hex(bytes);
        want[offset..offset + bytes.len()].copy_from_slice(&bytes);
    }
    let (image, summary) = write_in_steps(&Options::default(), &[(hello, data), (old, Vec::new())], 4);
    for (offset, (got, want)) in image.chunks(16).zip(want.chunks(16)).enumerate() {
        assert_eq!(got, want, "at {:#x}", offset * 16);
    }
    assert_eq!(image.len(), want.len());
    let sha256: Vec<u8> = Sha256::digest(&image).to_vec();
    assert_eq!(sha256, hex("8d9f0527fdbf2f751c0ab6737c28777bf94c6e9d0c1452b69c69b03892c27e38"));
    assert_eq!((summary.nodes, summary.whiteouts, summary.names), (3, 1, 2));
}

/// A sink that keeps small writes by page. Large writes are file data, all bytes of which are one
/// value.
#[derive(Default)]
struct Pages {
    pages: BTreeMap<u64, Vec<u8>>,
    len: u64,
}

impl Sink for Pages {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() < 512 << 10 {
            for (at, byte) in (offset..).zip(bytes) {
                let page = self.pages.entry(at >> 12).or_insert_with(|| vec![0; 4096]);
                page[usize::try_from(at & 4095).unwrap()] = *byte;
            }
        }
        Ok(())
    }
    fn discard(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.len = len;
        Ok(())
    }
}

impl ReadAt for Pages {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        for (at, byte) in (offset..).zip(buf) {
            *byte = self.pages.get(&(at >> 12)).map_or(0, |page| page[usize::try_from(at & 4095).unwrap()]);
        }
        Ok(())
    }
    fn size_bytes(&self) -> u64 {
        self.len
    }
}

fn occurrences(image: &[u8], needle: &[u8]) -> usize {
    image.windows(needle.len()).filter(|window| *window == needle).count()
}

fn write(entries: &[(Entry, Vec<u8>)]) -> (Vec<u8>, Summary) {
    write_in_steps(&Options::default(), entries, usize::MAX)
}

fn with_xattr((mut entry, data): (Entry, Vec<u8>), name: &str, value: &[u8]) -> (Entry, Vec<u8>) {
    entry.xattrs.push(Xattr { name: name.into(), value: value.into() });
    (entry, data)
}

fn directory(path: &str) -> (Entry, Vec<u8>) {
    (entry(path, Body::Directory), Vec::new())
}

fn reason(result: Result<(), WriterError>) -> (&'static str, Kind) {
    let error = result.expect_err("it is refused");
    (error.reason(), error.kind())
}

#[test]
fn nothing_of_what_was_replaced_is_left_in_the_image() {
    let secret = b"a secret of sixteen bytes";
    let large = secret.repeat(400_000 / secret.len());
    let filler = vec![b'.'; 700_000];
    // Once while all of the data is buffered, once after it went to the sink.
    for fill in [0, 700_000] {
        let entries = [
            with_xattr(regular("d/small", secret), "user.secret", secret),
            regular("d/large", &large),
            (entry("d/link", Body::Symlink { target: secret.to_vec() }), Vec::new()),
            (entry("d/long", Body::Symlink { target: secret.repeat(150) }), Vec::new()),
            with_xattr(regular("e", &secret.repeat(200)), "user.long", &secret.repeat(300)),
            regular("filler", &filler[..fill]),
            regular("d", b"d"),
            regular("e", b"e"),
        ];
        let (image, summary) = write(&entries);
        assert_eq!(occurrences(&image, secret), 0, "after {fill} bytes");
        // The image holds neither data nor a name: every byte left has a use.
        let report = verify(image.as_slice(), &Policy::layer()).unwrap();
        assert_eq!((report.inodes, report.lints, summary.nodes), (4, vec![], 4));
        let (without, _) =
            write(&[regular("filler", &filler[..fill]), regular("d", b"d"), regular("e", b"e")]);
        let used = |image: &[u8]| image.iter().filter(|byte| **byte != 0).count();
        assert!(used(&image) < used(&without) + 64, "{} and {}", used(&image), used(&without));
    }
}

#[test]
fn the_second_user_of_an_attribute_shares_it() {
    let label = b"system_u:object_r:usr_t:s0";
    let users = |count: usize, named: fn(&str) -> (Entry, Vec<u8>)| {
        let entries: Vec<_> =
            (0..count).map(|n| with_xattr(named(&format!("n{n}")), "security.selinux", label)).collect();
        let (image, _) = write(&entries);
        verify(image.as_slice(), &Policy::layer()).unwrap();
        occurrences(&image, label)
    };
    // The first file is written before a second is known, and keeps its attribute inline.
    assert_eq!([1, 2, 3, 50].map(|count| users(count, |path| regular(path, b""))), [1, 2, 2, 2]);
    assert_eq!([1, 2, 3, 50].map(|count| users(count, directory)), [1, 1, 1, 1]);
}

#[test]
fn the_roots_attributes_fit_into_the_first_block_or_the_layer_is_refused() {
    let root = |count: usize, value: &[u8]| {
        let xattr = |n| Xattr { name: format!("user.{n:03}").into_bytes(), value: value.to_vec() };
        let (mut entry, _) = directory("/");
        entry.xattrs = (0..count).map(xattr).collect();
        let mut writer = Writer::new(Vec::new(), Options::default());
        writer.entry(&entry).unwrap();
        writer.finish().map(|(image, _)| {
            let image = Image::open(image.as_slice())
                .unwrap()
                .root()
                .map(|root| Image::open(image.as_slice()).unwrap().xattrs(&root).unwrap());
            image.unwrap().len()
        })
    };
    for (count, value) in [(0, 0), (1, 0), (100, 8), (255, 8), (255, 900), (3, 60_000)] {
        assert_eq!(root(count, &vec![1; value]).unwrap(), count, "{count} of {value} bytes");
    }
    assert_eq!(reason(root(600, b"value of some bytes").map(drop)), ("limit.root-xattrs", Kind::Exhausted));
}

#[test]
fn a_file_may_have_more_than_32_bits_of_bytes() {
    let size_bytes = (5 << 30) + 3;
    let mut writer = Writer::new(Pages::default(), Options::default());
    writer.entry(&entry("large", Body::Regular { size_bytes, extents: None })).unwrap();
    let piece = vec![7; 1 << 20];
    for offset in (0..5 << 30).step_by(piece.len()) {
        writer.data(offset, &piece).unwrap();
    }
    writer.data(5 << 30, b"end").unwrap();
    writer.end_entry().unwrap();
    writer.entry(&regular("next", b"").0).unwrap();
    writer.end_entry().unwrap();
    let (pages, summary) = writer.finish().unwrap();
    assert_eq!(summary.size_bytes, (5 << 30) + 2 * 4096);
    let image = Image::open(pages).unwrap();
    let (nid, _) = image.lookup(&image.root().unwrap(), b"large").unwrap().unwrap();
    let node = image.node(nid).unwrap();
    assert_eq!(
        (node.inode.size_bytes, node.inode.data),
        (size_bytes, Data::Inline { start: Some(Block(1)) })
    );
    let mut end = [0; 3];
    image.read_data(&node, 5 << 30, &mut end).unwrap();
    assert_eq!(&end, b"end");
}

#[test]
fn an_image_with_addresses_of_more_than_32_bits_is_refused_before_its_data() {
    let announce = |size_bytes, extents| {
        let mut writer = Writer::new(Vec::new(), Options::default());
        writer.entry(&entry("large", Body::Regular { size_bytes, extents }))
    };
    // Block 0 and the root, then 2^32 - 2 blocks: one too many.
    assert_eq!(reason(announce(((1 << 32) - 2) << 12, None)), ("limit.image-blocks", Kind::Exhausted));
    assert!(announce(((1 << 32) - 3) << 12, None).is_ok());
    assert_eq!(reason(announce(limits::FILE_BYTES, None)), ("limit.image-blocks", Kind::Exhausted));
    let holes = || Some(Vec::new());
    assert!(announce(limits::FILE_BYTES, holes()).is_ok());
    for size_bytes in [limits::FILE_BYTES + 1, i64::MAX.unsigned_abs()] {
        assert_eq!(reason(announce(size_bytes, holes())), ("limit.file-size", Kind::Exhausted));
    }
}

#[test]
fn holes_that_cannot_be_left_out_are_bounded() {
    let announce = |files: usize, size_bytes, extents: &[(u64, u64)]| {
        let mut writer = Writer::new(Pages::default(), Options::default());
        let extents: Vec<_> =
            extents.iter().map(|(offset, len)| tree::Extent { offset: *offset, len: *len }).collect();
        (0..files).try_for_each(|n| {
            let body = Body::Regular { size_bytes, extents: Some(extents.clone()) };
            writer.entry(&entry(&format!("{n}"), body))?;
            extents.iter().try_for_each(|extent| writer.data(extent.offset, b"x"))?;
            writer.end_entry()
        })
    };
    let end = limits::FILE_BYTES;
    assert!(announce(3, end, &[]).is_ok(), "a hole has no blocks");
    assert!(announce(10, 300 << 30, &[(1 << 30, 1)]).is_ok(), "a log by user number");
    let refused = ("limit.sparse-overhead", Kind::Exhausted);
    assert_eq!(reason(announce(1, end, &[(0, 1), (end - 1, 1)])), refused);
    let scattered: Vec<_> = (0..60_000).map(|n| (n * 4096, 1)).collect();
    assert!(announce(4, 60_000 * 4096, &scattered).is_ok());
    assert_eq!(reason(announce(5, 60_000 * 4096, &scattered)), refused);
}

#[test]
fn calls_out_of_order_are_faults_of_the_caller() {
    let order = |calls: fn(&mut Writer<Vec<u8>>) -> Result<(), WriterError>| {
        reason(calls(&mut Writer::new(Vec::new(), Options::default())))
    };
    let fault = ("erofs.writer", Kind::Internal);
    assert_eq!(order(|writer| writer.data(0, b"a")), fault, "data of nothing");
    assert_eq!(
        order(|writer| writer.entry(&regular("a", b"1").0).and_then(|()| writer.data(0, b"12"))),
        fault,
        "more than announced"
    );
    assert_eq!(
        order(|writer| writer.entry(&regular("a", b"1").0).and_then(|()| writer.data(u64::MAX, b"1"))),
        fault,
        "beyond the end"
    );
    assert_eq!(
        order(|writer| {
            writer.entry(&regular("a", b"12").0)?;
            writer.data(0, b"1")?;
            writer.data(0, b"1")
        }),
        fault,
        "twice the same"
    );
    assert_eq!(
        order(|writer| writer.entry(&regular("a", b"1").0).and_then(|()| writer.end_entry())),
        fault,
        "less than announced"
    );
    assert_eq!(
        order(|writer| writer.entry(&regular("a", b"1").0).and_then(|()| writer.entry(&regular("b", b"").0))),
        fault,
        "no end"
    );
    let hole = |writer: &mut Writer<Vec<u8>>| {
        let extents = Some(vec![tree::Extent { offset: 0, len: 1 }]);
        writer.entry(&entry("a", Body::Regular { size_bytes: 1 << 20, extents }))?;
        writer.data(1 << 19, b"1")
    };
    assert_eq!(order(hole), fault, "data in a hole");
}

#[test]
fn data_behind_markers_and_links_means_nothing() {
    let hard_link = entry("b", Body::HardLink { target: b"a".to_vec() });
    let entries = [
        regular("a", b"1"),
        regular(".wh.x", b"body"),
        regular("d/.wh..wh..opq", b"body"),
        (hard_link, b"body".to_vec()),
    ];
    let (image, summary) = write(&entries);
    assert_eq!(occurrences(&image, b"body"), 0);
    assert_eq!((summary.names, summary.nodes, summary.opaque_directories), (4, 4, 1));
}

#[test]
fn an_attribute_that_cannot_be_stored_is_refused() {
    for (name, value) in [("btrfs.x", 1), ("user.", 1), ("user.a", 65_536)] {
        let (entry, _) = with_xattr(regular("a", b""), name, &vec![0; value]);
        let mut writer = Writer::new(Vec::new(), Options::default());
        assert_eq!(reason(writer.entry(&entry)), ("erofs.xattr.name", Kind::Malformed), "{name}");
    }
}

#[test]
fn metadata_is_bounded_in_memory() {
    let options = Options { max_metadata_bytes: 200_000, ..Options::default() };
    let mut writer = Writer::new(Vec::new(), options);
    let refused = (0..10_000).find_map(|n| {
        let (entry, _) = regular(&format!("name-{n}"), b"");
        writer.entry(&entry).and_then(|()| writer.end_entry()).err()
    });
    let error = refused.unwrap();
    assert_eq!((error.reason(), error.kind()), ("limit.metadata", Kind::Exhausted));
    assert!(writer.metadata_bytes() < 210_000, "{}", writer.metadata_bytes());
}

#[test]
fn every_block_size_mounts_a_root_of_many_names() {
    for bits in 9..=16 {
        let image = WriteOptions { block_bits: BlockBits::new(bits).unwrap(), ..WriteOptions::DEFAULT };
        let options = Options { image, ..Options::default() };
        let entries: Vec<_> = (0..3000).map(|n| regular(&format!("name-{n}"), b"data")).collect();
        let (image, _) = write_in_steps(&options, &entries, usize::MAX);
        let policy = Policy { max_block_bits: 16, ..Policy::layer() };
        let report = verify(image.as_slice(), &policy).unwrap();
        assert_eq!((report.names, report.lints), (3000, vec![]), "2^{bits}");
    }
}
