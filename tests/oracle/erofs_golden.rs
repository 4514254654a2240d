//! Small images as text, kept in `tests/fixtures/erofs/golden/`: a change of the layout shows in review, line by line.
//!
//! The text is that of `plywood dump --tree`, and after it the length and the digest of the image. With `PLYWOOD_GOLDEN`
//! set to `write` the files are written anew instead of compared.

use std::{fmt::Write as _, fs, path::Path};

use plywood::{
    digest::Digest,
    format::erofs::{
        BlockBits, dump,
        reader::Image,
        writer::{Options, WriteOptions, Writer},
    },
    tree::{Attributes, Body, Device, Entry, Extent, Timestamp, Xattr},
};
use testkit::Suite;

/// One entry of a layer, and the data of its file with its holes left out.
struct Item {
    entry: Entry,
    data: Vec<u8>,
}

pub fn add(suite: &mut Suite) {
    let default = WriteOptions::default();
    let sized = |bits| WriteOptions { block_bits: BlockBits::new(bits).unwrap(), ..default };
    for (name, options, layer) in [
        ("plain", default, plain()),
        ("plain-512", sized(9), plain()),
        ("plain-no-inline", WriteOptions { inline_limit: 0, ..default }, plain()),
        ("tails", default, tails()),
        ("tails-512", sized(9), tails()),
        ("directory-512", sized(9), wide_directory()),
        ("whiteouts", default, whiteouts()),
        ("xattrs", default, xattrs()),
        ("links-and-devices", default, links_and_devices()),
        ("sparse", default, sparse()),
        ("sparse-512", sized(9), sparse()),
    ] {
        suite.test(name, &[], move || compare(name, options, &layer));
    }
}

fn compare(name: &str, layout: WriteOptions, layer: &[Item]) {
    let found = text(&write(layout, layer));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/erofs/golden/{name}.txt"));
    if std::env::var_os("PLYWOOD_GOLDEN").is_some_and(|value| value == "write") {
        fs::write(&path, &found).unwrap();
    }
    let want = fs::read_to_string(&path).unwrap_or_default();
    // The first line that differs says more than two whole texts.
    let differs = found.lines().zip(want.lines()).find(|(found, want)| found != want);
    if let Some((found, want)) = differs {
        panic!(
            "{name}: the image has\n  {found}\nand the text that is kept\n  {want}\nPLYWOOD_GOLDEN=write keeps the new one"
        );
    }
    assert_eq!(found.lines().count(), want.lines().count(), "{name}: one text has more lines");
}

fn write(layout: WriteOptions, layer: &[Item]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), Options { image: layout, ..Options::default() });
    for Item { entry, data } in layer {
        writer.entry(entry).unwrap();
        if let Body::Regular { size_bytes, extents } = &entry.body {
            let whole = [Extent { offset: 0, len: *size_bytes }];
            let mut rest = &data[..];
            for extent in extents.as_deref().unwrap_or(&whole) {
                let (stretch, behind) = rest.split_at(usize::try_from(extent.len).unwrap());
                writer.data(extent.offset, stretch).unwrap();
                rest = behind;
            }
            writer.end_entry().unwrap();
        }
    }
    writer.finish().unwrap().0
}

fn text(image: &[u8]) -> String {
    let open = Image::open(image).unwrap();
    let mut text = String::new();
    for fact in dump::facts(&open) {
        writeln!(text, "{}: {}", fact.name, fact.value).unwrap();
    }
    let root = open.root().unwrap();
    dump::walk(&open, root, b"", |entry| writeln!(text, "{entry}")).unwrap();
    writeln!(text, "{} bytes, {}", image.len(), Digest::sha256(image)).unwrap();
    text
}

fn item(path: &str, body: Body) -> Item {
    let mtime = Timestamp { seconds: 1_700_000_000, nanoseconds: 5 };
    let attributes = Attributes { mode: 0o644, uid: 1000, gid: 100, mtime };
    Item { entry: Entry { path: path.into(), attributes, xattrs: Vec::new(), body }, data: Vec::new() }
}

fn directory(path: &str) -> Item {
    let mut item = item(path, Body::Directory);
    item.entry.attributes.mode = 0o755;
    item
}

/// A file of so many bytes, which depend on its name.
fn file(path: &str, len: usize) -> Item {
    let first = path.bytes().fold(0_u8, u8::wrapping_add);
    let data = (0..len).map(|at| first.wrapping_add(u8::try_from(at % 251).unwrap())).collect();
    Item { data, ..item(path, Body::Regular { size_bytes: len as u64, extents: None }) }
}

fn symlink(path: &str, target: &str) -> Item {
    item(path, Body::Symlink { target: target.into() })
}

fn plain() -> Vec<Item> {
    vec![
        directory("etc"),
        file("etc/empty", 0),
        file("etc/hostname", 9),
        file("etc/two-blocks", 8192),
        symlink("etc/mtab", "../proc/self/mounts"),
        directory("usr/bin"),
        file("usr/bin/program", 10_000),
    ]
}

/// Files whose last part is just short enough to lie beside the inode, and just too long.
fn tails() -> Vec<Item> {
    [1, 511, 512, 513, 1023, 1024, 1025, 4095, 4096, 4097, 5120, 5121]
        .into_iter()
        .map(|len| file(&format!("{len}"), len))
        .collect()
}

fn wide_directory() -> Vec<Item> {
    (0..120).map(|number| symlink(&format!("wide/name-{number:03}"), "x")).collect()
}

fn whiteouts() -> Vec<Item> {
    vec![
        file("gone/.wh.file", 0),
        directory("hidden"),
        file("hidden/.wh..wh..opq", 0),
        file("hidden/new", 3),
        // The layer's own file of that name stays.
        file("kept", 3),
        file(".wh.kept", 0),
    ]
}

fn xattrs() -> Vec<Item> {
    let with = |mut item: Item, xattrs: &[(&str, &[u8])]| {
        let own = xattrs.iter().map(|(name, value)| Xattr { name: (*name).into(), value: value.to_vec() });
        item.entry.xattrs = own.collect();
        item
    };
    let capability: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let label: &[u8] = b"system_u:object_r:container_file_t:s0";
    vec![
        with(directory("d"), &[("user.d", b"")]),
        with(file("d/ping", 5), &[("security.capability", capability)]),
        // One attribute shared by several inodes, and beside it one that only the last has.
        with(file("d/one", 1), &[("security.selinux", label)]),
        with(file("d/two", 1), &[("security.selinux", label)]),
        with(file("d/three", 1), &[("security.selinux", label), ("user.own", b"value")]),
    ]
}

fn links_and_devices() -> Vec<Item> {
    let hard_link = |path: &str, target: &str| item(path, Body::HardLink { target: target.into() });
    vec![
        file("bin/busybox", 2000),
        hard_link("bin/sh", "bin/busybox"),
        hard_link("bin/ls", "bin/sh"),
        item("dev/null", Body::CharDevice(Device { major: 1, minor: 3 })),
        item("dev/sda", Body::BlockDevice(Device { major: 8, minor: 0 })),
        item("dev/wide", Body::CharDevice(Device { major: 0x123, minor: 0x4_5678 })),
        item("run/pipe", Body::Fifo),
        hard_link("run/pipe-too", "run/pipe"),
    ]
}

fn sparse() -> Vec<Item> {
    let holed = |path: &str, size_bytes: u64, stretches: &[(u64, u64)]| {
        let extents: Vec<_> =
            stretches.iter().map(|(offset, len)| Extent { offset: *offset, len: *len }).collect();
        let len = extents.iter().map(|extent| extent.len).sum::<u64>();
        let data = vec![0x5a; usize::try_from(len).unwrap()];
        Item { data, ..item(path, Body::Regular { size_bytes, extents: Some(extents) }) }
    };
    vec![
        holed("begins-with-a-hole", 3 << 20, &[(2 << 20, 4096)]),
        holed("ends-with-a-hole", 1 << 20, &[(0, 10)]),
        holed("nothing-but-a-hole", 1 << 30, &[]),
        holed("two-stretches", 200_000, &[(4096, 4096), (131_072, 5)]),
    ]
}
