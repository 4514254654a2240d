//! Merged images, read by the kernel, fsck.erofs, the erofs-rs crate and our own reader: each has to find what overlayfs
//! shows of the same layers.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
};

use erofs_rs::{EroFS, backend::SliceImage};
use libtest_mimic::Failed;
use plywood::{
    call::Cancel,
    error::Error,
    format::erofs::{
        check::{Policy, verify_image},
        reader::Image,
        writer::{Options, WriteOptions},
    },
    limits::Limits,
    merge,
    pipeline::budget::Budget,
    tree::{Attributes, Body, Device, Entry, FileType, Xattr},
    view::ErofsView,
};
use proptest::{prelude::*, test_runner::TestCaseError};
use testkit::{
    Need, Suite,
    host::{self, program},
    images,
    mounts::Overlay,
};

use super::{
    erofs_elsewhere::{Archive, index},
    erofs_writer::{Item, MountPoint, Shown, accepted, assert_same, check, layers, write},
    layer_model::Listing,
    listing,
};

pub fn add(suite: &mut Suite) {
    let erofs = [Need::Root, Need::FileSystem("erofs")];
    let overlay = [Need::Root, Need::FileSystem("erofs"), Need::FileSystem("overlay")];
    suite.test("random_layers_merge_to_what_the_model_says", &[], random_layers_in_memory);
    let name = "needs_kernel_erofs_merged_layers_mount_with_their_devices_and_on_one_disk";
    suite.test(name, &erofs, random_layers_in_the_kernel);
    let name = "needs_kernel_overlay_a_merged_image_is_what_overlayfs_shows_of_its_layers";
    suite.test(name, &overlay, random_layers_in_an_overlay);
    suite.test("needs_fsck_erofs_merged_layers_pass", &[Need::Tool("fsck.erofs")], random_layers_pass_fsck);
    suite.test(
        "a_directory_above_a_file_above_a_directory_is_the_upper_one_alone",
        &[],
        directory_file_directory,
    );
    suite.test("layers_of_another_writer_merge_to_the_listing_of_their_archives", &[], listed_layers);
    suite.test("layers_of_thirty_devices_have_room_before_the_root", &[], many_layers);
    let mkfs = [Need::Root, Need::FileSystem("erofs"), Need::FileSystem("overlay"), Need::Tool("mkfs.erofs")];
    suite.test("needs_mkfs_erofs_layers_of_mkfs_merge", &mkfs, layers_of_mkfs);
    suite.test(
        "needs_mkfs_erofs_compressed_layers_are_refused",
        &[Need::Tool("mkfs.erofs")],
        compressed_layers,
    );
}

/// Merges images, the bottom one first.
pub fn merged(images: &[Vec<u8>]) -> Result<Vec<u8>, Error> {
    let (cancel, limits) = (Cancel::new(), Limits::default());
    let budget = Budget::new(&limits);
    let lease = budget.lease(&cancel)?;
    let open = |(number, image): (u64, &'_ Vec<u8>)| {
        ErofsView::open(image.clone(), Vec::new(), (0, number), format!("layer {number}"), &cancel)
    };
    let views = (0..).zip(images).map(open).collect::<Result<Vec<_>, _>>()?;
    Ok(merge::write(&views, Vec::new(), &limits, &lease, &cancel)?.0)
}

/// The merged image and its devices on one disk.
fn on_one_disk(image: &[u8], layers: &[Vec<u8>]) -> Vec<u8> {
    let mut disk = image.to_vec();
    let opened = Image::open_with_devices(image, layers.iter().map(Vec::as_slice).collect()).unwrap();
    for (layer, slot) in layers.iter().zip(opened.slots()) {
        let bits = opened.superblock().block_bits;
        assert_eq!(disk.len() as u64, slot.unified_start << bits.get(), "devices follow each other");
        let len = usize::try_from(slot.blocks << bits.get()).unwrap();
        disk.extend_from_slice(&layer[..len.min(layer.len())]);
        disk.resize(disk.len().next_multiple_of(usize::try_from(bits.size()).unwrap()), 0);
    }
    disk
}

/// Layers of one image, the bottom one first.
#[derive(Clone, Debug)]
struct Stack(Vec<(Vec<Item>, Options)>);

impl Shown for Stack {
    fn shown(&self) -> String {
        self.0.iter().map(Shown::shown).collect::<Vec<_>>().join("\nbelow ")
    }
}

fn stacks() -> impl Strategy<Value = Stack> {
    prop::collection::vec(layers(), 1..5).prop_map(|mut stack| {
        let bits = stack[0].1.image.block_bits;
        for (items, options) in &mut stack {
            let inline_limit = options.image.inline_limit.min(u16::try_from(bits.size()).unwrap());
            options.image = WriteOptions { block_bits: bits, inline_limit };
            // overlayfs ignores that a root is opaque.
            items.retain(|(entry, _)| !entry.path.ends_with(b".wh..wh..opq") || entry.path.len() > 20);
        }
        Stack(stack)
    })
}

/// Images of the layers, and the tree of each with its whiteouts. With blocks of 512 bytes every other layer is an index
/// in one file with its archive.
fn made(stack: Stack) -> Result<(Vec<Vec<u8>>, Vec<Listing>), TestCaseError> {
    let mut images = Vec::new();
    let mut listings = Vec::new();
    for (number, (items, options)) in stack.0.into_iter().enumerate() {
        let (items, listing) = accepted(items);
        let failed = |error| TestCaseError::fail(format!("the writer refuses: {error}"));
        let image = if options.image.block_bits.size() == 512 && number % 2 == 1 {
            let archive = Archive::of(&items);
            let image = index(&items, &archive, options).map_err(failed)?;
            [image, archive.bytes].concat()
        } else {
            write(&items, &options).map_err(failed)?.0
        };
        images.push(image);
        listings.push(listing);
    }
    Ok((images, listings))
}

/// What overlayfs shows of layers, the bottom one first.
fn model(layers: &[Listing]) -> Listing {
    let mut tree = Listing::new();
    for (number, layer) in layers.iter().enumerate() {
        for (path, node) in layer {
            let is_directory = node.file_type == FileType::Directory;
            let opaque = node.xattrs.contains_key(&b"trusted.overlay.opaque"[..]);
            let merges =
                tree.get(path).is_some_and(|found| found.file_type == FileType::Directory) && !opaque;
            if !(path.is_empty() || is_directory && merges) {
                let below = [path, &b"/"[..]].concat();
                tree.retain(|name, _| name != path && !name.starts_with(&below));
            }
            if node.file_type == FileType::CharDevice && node.device == Some(Device::WHITEOUT) {
                continue;
            }
            let mut node = node.clone();
            node.xattrs.retain(|name, _| !name.starts_with(b"trusted.overlay."));
            // Which inode it is.
            node.first_name = [number.to_string().as_bytes(), b"/", &node.first_name].concat();
            tree.insert(path.clone(), node);
        }
    }
    let mut names: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    let mut inside: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    for (path, node) in &tree {
        names.entry(node.first_name.clone()).or_default().push(path.clone());
        if node.file_type == FileType::Directory && !path.is_empty() {
            let parent = path.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |at| &path[..at]);
            *inside.entry(parent.to_vec()).or_default() += 1;
        }
    }
    for (path, node) in &mut tree {
        let same = &names[&node.first_name];
        if node.file_type == FileType::Directory {
            node.nlink = 2 + inside.get(path).copied().unwrap_or(0);
            node.first_name = path.clone();
        } else {
            node.nlink = u32::try_from(same.len()).unwrap();
            node.first_name = same[0].clone();
        }
    }
    tree
}

fn failed(error: impl std::fmt::Debug) -> TestCaseError {
    TestCaseError::fail(format!("{error:?}"))
}

fn random_layers_in_memory() -> Result<(), Failed> {
    check(200, stacks(), |stack| {
        let (layers, listings) = made(stack)?;
        let want = model(&listings);
        let image = merged(&layers).map_err(failed)?;
        let devices = layers.iter().map(Vec::as_slice).collect();
        let opened = Image::open_with_devices(image.as_slice(), devices).map_err(failed)?;
        assert_same(listing::of_image(&opened), &want, "our reader, files")?;
        let report = verify_image(&opened, &Policy { devices: true, ..Policy::layer() }).map_err(failed)?;
        prop_assert!(report.lints.is_empty(), "our check: {:?}", report.lints);
        let disk = on_one_disk(&image, &layers);
        assert_same(listing::by_our_reader(&disk), &want, "our reader, one disk")?;
        let devices = layers.iter().map(|layer| SliceImage::new(layer)).collect();
        let by_others = EroFS::new_with_devices(SliceImage::new(&image), devices).map_err(failed)?;
        assert_same(listing::of_erofs_rs(&by_others), &want, "erofs-rs, files")?;
        prop_assert!(merged(&layers).map_err(failed)? == image, "not the same bytes again");
        Ok(())
    })
}

/// Writes the images to files.
fn files(dir: &Path, image: &[u8], layers: &[Vec<u8>]) -> (PathBuf, Vec<PathBuf>) {
    let write = |name: String, bytes: &[u8]| {
        let path = dir.join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let paths =
        layers.iter().enumerate().map(|(number, bytes)| write(format!("{number}.erofs"), bytes)).collect();
    (write("fsmeta.erofs".to_owned(), image), paths)
}

/// Options of the mount, as containerd makes them: a device for each layer, the bottom one first.
fn options(layers: &[PathBuf]) -> String {
    layers.iter().map(|path| format!("device={}", path.display())).collect::<Vec<_>>().join(",")
}

fn random_layers_in_the_kernel() -> Result<(), Failed> {
    check(60, stacks(), |stack| {
        let (layers, listings) = made(stack)?;
        let want = model(&listings);
        let image = merged(&layers).map_err(failed)?;
        let dir = tempfile::tempdir().unwrap();
        let (path, devices) = files(dir.path(), &image, &layers);
        let mounted = MountPoint::new("erofs", &path, dir, &options(&devices)).map_err(failed)?;
        assert_same(listing::by_kernel(&mounted.at()), &want, "the kernel, files")?;
        let disk = MountPoint::image(&on_one_disk(&image, &layers)).map_err(failed)?;
        assert_same(listing::by_kernel(&disk.at()), &want, "the kernel, one disk")
    })
}

/// The tree without what overlayfs counts otherwise: it has no links of directories, and counts the names of the lower
/// layer.
fn without_links(mut listing: Listing) -> Listing {
    for node in listing.values_mut() {
        node.nlink = 0;
        node.first_name.clear();
    }
    listing
}

/// Compares the kernel's mount of the merged image with its overlay of the layers.
fn compare_with_overlay(image: &[u8], layers: &[Vec<u8>]) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let (path, devices) = files(dir.path(), image, layers);
    let at = |name: &str| dir.path().join(name);
    let mounts =
        devices.iter().enumerate().map(|(n, path)| images::Mounted::new(path, at(&format!("mnt-{n}"))));
    let mounts = mounts.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    fs::create_dir(at("empty")).unwrap();
    let empty = at("empty");
    // An overlay without an upper directory takes two lower ones at least.
    let lowers: Vec<_> = mounts.iter().rev().map(images::Mounted::path).chain([empty.as_path()]).collect();
    let overlay = Overlay::new(at("overlay"), &lowers, None).map_err(failed)?;
    let want = without_links(listing::by_kernel(overlay.path()));
    let whole = tempfile::tempdir().unwrap();
    let mounted = MountPoint::new("erofs", &path, whole, &options(&devices)).map_err(failed)?;
    assert_same(without_links(listing::by_kernel(&mounted.at())), &want, "the kernel, like its overlay")
}

fn random_layers_in_an_overlay() -> Result<(), Failed> {
    check(40, stacks(), |stack| {
        let (layers, _) = made(stack)?;
        compare_with_overlay(&merged(&layers).map_err(failed)?, &layers)
    })
}

fn random_layers_pass_fsck() -> Result<(), Failed> {
    let fsck = program("fsck.erofs").unwrap();
    check(30, stacks(), |stack| {
        let (layers, _) = made(stack)?;
        let image = merged(&layers).map_err(failed)?;
        let dir = tempfile::tempdir().unwrap();
        let (path, devices) = files(dir.path(), &image, &layers);
        let devices = devices.iter().map(|path| format!("--device={}", path.display()));
        let output = Command::new(&fsck).arg("--extract").args(devices).arg(path).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        prop_assert!(output.status.success(), "fsck.erofs: {}", text);
        prop_assert!(!text.contains("<E>") && !text.contains("<W>"), "fsck.erofs: {}", text);
        Ok(())
    })
}

fn item(path: &str, body: Body, data: &[u8]) -> Item {
    let attributes = Attributes { mode: 0o755, ..Attributes::default() };
    (Entry { path: path.into(), attributes, xattrs: Vec::new(), body }, data.to_vec())
}

fn file(path: &str, data: &[u8]) -> Item {
    item(path, Body::Regular { size_bytes: data.len() as u64, extents: None }, data)
}

fn directory_file_directory() -> Result<(), Failed> {
    let layers = [
        vec![item("d", Body::Directory, b""), file("d/a", b"lower")],
        vec![file("d", b"a file")],
        vec![item("d", Body::Directory, b""), file("d/b", b"upper")],
    ];
    let images: Vec<_> = layers.iter().map(|items| write(items, &Options::default()).unwrap().0).collect();
    let image = merged(&images)?;
    let devices = images.iter().map(Vec::as_slice).collect();
    let found = listing::of_image(&Image::open_with_devices(image.as_slice(), devices).unwrap());
    let names: Vec<_> = found.keys().map(|name| name.escape_ascii().to_string()).collect();
    assert_eq!(names, ["", "d", "d/b"]);
    Ok(())
}

fn listed_layers() -> Result<(), Failed> {
    let fixture = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/erofs/merge").join(name);
        fs::read(path).unwrap()
    };
    let image = |number: u32| {
        let packed = fixture(&format!("l{number}.erofs.xz"));
        let mut bytes = Vec::new();
        lzma_rust2::XzReader::new(packed.as_slice(), false).read_to_end(&mut bytes).unwrap();
        bytes
    };
    let layers = [1, 2, 3].map(image);
    let merged = merged(&layers)?;
    let devices = layers.iter().map(Vec::as_slice).collect();
    let found = listing::of_image(&Image::open_with_devices(merged.as_slice(), devices).unwrap());
    listing::assert_listed(&found, &String::from_utf8(fixture("merged.jsonl")).unwrap(), false);
    Ok(())
}

fn many_layers() -> Result<(), Failed> {
    for count in [1, 2, 22, 23, 30, 200] {
        let mut items = vec![item(".", Body::Directory, b""), file("shared", b"x")];
        items[0].0.xattrs = vec![Xattr { name: b"user.root".to_vec(), value: vec![7; 2000] }];
        let layer = |number: usize| {
            let mut items = items.clone();
            items.push(file(&format!("of-layer-{number}"), number.to_string().repeat(5000).as_bytes()));
            write(&items, &Options::default()).unwrap().0
        };
        let images: Vec<_> = (0..count).map(layer).collect();
        let image = merged(&images)?;
        let devices = images.iter().map(Vec::as_slice).collect();
        let opened = Image::open_with_devices(image.as_slice(), devices).unwrap();
        let report = verify_image(&opened, &Policy { devices: true, ..Policy::layer() }).unwrap();
        assert!(report.lints.is_empty(), "{:?}", report.lints);
        let found = listing::of_image(&opened);
        assert_eq!(found.len(), count + 2, "of {count} layers");
        let last = format!("of-layer-{}", count - 1);
        assert_eq!(found[last.as_bytes()].data, (count - 1).to_string().repeat(5000).as_bytes());
    }
    Ok(())
}

/// An image that mkfs.erofs makes of `fill`.
fn by_mkfs(arguments: &[&str], fill: impl FnOnce(&Path)) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fill(&tree);
    let mut mkfs = Command::new(program("mkfs.erofs").unwrap());
    host::run(mkfs.arg("--quiet").args(arguments).arg(dir.path().join("image")).arg(&tree)).unwrap();
    fs::read(dir.path().join("image")).unwrap()
}

fn layers_of_mkfs() -> Result<(), Failed> {
    let text = |seed: usize, len: usize| -> Vec<u8> {
        (0..len).map(|at| b'a' + u8::try_from((at * 7 + at / 4096 + seed) % 26).unwrap()).collect()
    };
    let fill = |seed: usize| {
        move |root: &Path| {
            fs::create_dir_all(root.join("a/b")).unwrap();
            for (number, len) in [0, 1, 4095, 4096, 4097, 9000, 70_000].into_iter().enumerate() {
                fs::write(root.join(format!("a/{seed}-{number}")), text(seed + number, len)).unwrap();
            }
            fs::write(root.join("a/b/common"), text(seed, 10_000)).unwrap();
            fs::hard_link(root.join("a/b/common"), root.join(format!("link-{seed}"))).unwrap();
        }
    };
    // Plain, with tails beside the inodes, in chunks with a block map and with indexes, without compact inodes.
    let layers = [
        by_mkfs(&["-E^inline_data"], fill(0)),
        by_mkfs(&[], fill(1)),
        by_mkfs(&["--chunksize=4096"], fill(2)),
        by_mkfs(&["-Eforce-chunk-indexes", "--chunksize=8192"], fill(3)),
        by_mkfs(&["-Eforce-inode-extended"], fill(4)),
    ];
    compare_with_overlay(&merged(&layers)?, &layers).map_err(|error| format!("{error}").into())
}

fn compressed_layers() -> Result<(), Failed> {
    let layer =
        by_mkfs(&["-zlz4"], |root| fs::write(root.join("text"), "the same again. ".repeat(10_000)).unwrap());
    let error = merged(&[layer]).unwrap_err();
    assert_eq!(error.reason(), "merge.compressed", "{error}");
    assert!(error.to_string().starts_with("\"text\" in layer 0 is compressed"), "{error}");
    Ok(())
}
