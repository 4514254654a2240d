//! Layers of devices that we build, read by us and by the kernel: those over the archives of overlaybd's vectors, and some
//! whose layers replace each other's files and directories.

use std::{fs, path::PathBuf};

use libtest_mimic::Failed;
use plywood::{
    call::{Cancel, Progress, Work},
    digest::{Algorithm, Hasher},
    error::{Error, Kind},
    format::{
        ReadAt,
        erofs::{
            check::{Policy, verify},
            reader::Image,
        },
        lsmt::{Device, Layer},
        zfile::writer::Options,
    },
    kind::overlaybd::Flavour,
    limits::Limits,
    overlaybd::{
        blob::Blob,
        build::{Base, DataPlace, LayerWriter},
        options::DeviceOptions,
    },
    pipeline::{Pipeline, Plan, Resources, Source, unpack::Unpack},
    snapshot::NewFile,
    tree::{Extent, FileType},
};
use serde_json::Value;
use testkit::{Need, Suite, archive::gzip};

use super::{
    erofs_writer::MountPoint,
    layer_model::{Listed, Listing},
    listing,
};

pub fn add(suite: &mut Suite) {
    let kernel = [Need::Root, Need::FileSystem("erofs")];
    suite.test("layers_over_the_vectors_archives_have_the_expected_tree", &[], expected_tree);
    suite.test("needs_kernel_erofs_layers_over_the_vectors_archives_mount", &kernel, expected_mount);
    suite.test("a_layer_above_one_of_overlaybd_has_the_expected_tree", &[], above_upstreams);
    suite.test("threads_and_compression_do_not_change_a_layer", &[], same_bytes);
    suite.test("directory_file_and_directory_replace_each_other", &[], replaced_types);
    suite.test("a_small_layer_above_many_files_is_small", &[], small_above_many);
    suite.test("a_hard_link_to_a_file_below_is_one_more_name_of_it", &[], links_below);
    suite.test("needs_kernel_a_hard_link_to_a_file_below_counts_in_the_kernel", &kernel, links_below_mount);
    suite.test("a_hard_link_to_nothing_below_is_refused", &[], links_to_nothing);
}

const PLACES: [DataPlace; 2] = [DataPlace::Layer, DataPlace::Target];
const OPTIONS: DeviceOptions = DeviceOptions { flavour: Flavour::Erofs, virtual_bytes: 64 << 20 };

/// A layer's file, and the archive that it was made of.
type Made = (Vec<u8>, Vec<u8>);

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/overlaybd").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn stack(layers: &[Made], place: DataPlace) -> Device<Blob<&[u8]>> {
    let mut opened = Vec::new();
    for (layer, archive) in layers {
        let layer = Blob::layer(layer.as_slice()).unwrap();
        let target = Blob::target(archive.as_slice()).unwrap();
        opened.push(match place {
            DataPlace::Layer => Layer::open(layer).unwrap(),
            DataPlace::Target => Layer::open_turbo(layer, target).unwrap(),
        });
    }
    Device::new(opened).unwrap()
}

fn build(blob: &[u8], below: &[Made], place: DataPlace, threads: usize) -> Vec<u8> {
    try_build(blob, below, place, threads).unwrap()
}

/// Builds the layer of `blob`, a layer's archive in any compression, above `below`.
fn try_build(blob: &[u8], below: &[Made], place: DataPlace, threads: usize) -> Result<Vec<u8>, Error> {
    // The disk of a test may be nearly full.
    let limits = Limits { reserve_percent: 0, reserve_bytes: 0, ..Limits::default() };
    let resources = Resources::new(limits, threads - 1);
    let (cancel, progress) = (Cancel::new(), Progress::default());
    let lease = resources.budget.lease(&cancel).unwrap();
    let work = Work { cancel: &cancel, progress: &progress };
    let plan = Plan { resources: &resources, lease: &lease, work };
    let device = if below.is_empty() { None } else { Some(stack(below, place)) };
    let base = match &device {
        Some(device) => Base::open(device, &OPTIONS).unwrap(),
        None => Base::new(&OPTIONS).unwrap(),
    };
    let dir = tempfile::tempdir().unwrap();
    let scratch = NewFile::scratch(dir.path(), &resources.limits).unwrap();
    let writer = LayerWriter::new(scratch, &base, place, plan).unwrap();
    let source = Source { reader: &mut &blob[..], size_bytes: None, digest: None };
    let ran = Pipeline::new(source, plan).run(Unpack::new(writer, u64::MAX))?;
    let layer = ran.output.writer.finish(&base, plan)?;
    let mut out = Vec::new();
    layer.write(Options::default(), &resources.helpers, &mut out)?;
    Ok(out)
}

/// Builds layers of these archives, each above those before it.
fn build_all(archives: &[Vec<u8>], place: DataPlace) -> Vec<Made> {
    let mut made: Vec<Made> = Vec::new();
    for archive in archives {
        let layer = build(archive, &made, place, 1);
        made.push((layer, archive.clone()));
    }
    made
}

/// The file system on the device, without what is behind it.
fn flatten<R: ReadAt>(device: &Device<R>) -> Vec<u8> {
    let end = u64::from(u32::try_from(Image::open(device).unwrap().superblock().blocks).unwrap()) * 4096;
    let mut bytes = vec![0; usize::try_from(end).unwrap()];
    for Extent { offset, len } in device.data(0, end) {
        let start = usize::try_from(offset).unwrap();
        let end = start + usize::try_from(len).unwrap();
        device.read_exact_at(offset, &mut bytes[start..end]).unwrap();
    }
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(bytes);
    hasher.finish().hex().to_owned()
}

/// Compares with a tree of the vectors, which lists everything but the root.
pub fn compare(found: &Listing, want: &Value) {
    let want = want.as_array().unwrap();
    let names = want.iter().map(|node| node["path"].as_str().unwrap().as_bytes().to_vec());
    let found_names = found.keys().filter(|name| !name.is_empty()).cloned();
    assert_eq!(found_names.collect::<Vec<_>>(), names.collect::<Vec<_>>());
    for node in want {
        let path = node["path"].as_str().unwrap();
        let listed: &Listed = &found[path.as_bytes()];
        let mode = u32::from(listed.file_type.mode_bits() | listed.attributes.mode);
        assert_eq!(format!("0o{mode:o}"), node["mode"].as_str().unwrap(), "{path}");
        let numbers =
            [u64::from(listed.attributes.uid), u64::from(listed.attributes.gid), u64::from(listed.nlink)];
        assert_eq!(numbers, ["uid", "gid", "nlink"].map(|field| node[field].as_u64().unwrap()), "{path}");
        assert_eq!(listed.attributes.mtime.seconds, node["mtime"].as_i64().unwrap(), "{path}");
        if listed.file_type == FileType::Regular {
            assert_eq!(listed.data.len() as u64, node["size"].as_u64().unwrap(), "{path}");
            assert_eq!(sha256(&listed.data), node["sha256"].as_str().unwrap(), "{path}");
        }
        if listed.file_type == FileType::Symlink {
            assert_eq!(listed.data, node["link"].as_str().unwrap().as_bytes(), "{path}");
        }
        let empty = serde_json::Map::new();
        let xattrs = node["xattrs"].as_object().unwrap_or(&empty);
        assert_eq!(listed.xattrs.len(), xattrs.len(), "{path}");
        for (name, value) in xattrs {
            let found: String =
                listed.xattrs[name.as_bytes()].iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(&found, value.as_str().unwrap(), "{path}");
        }
    }
}

/// The tree of both layers. The one time that differs is that of a file with a hard link: overlaybd's ext4 unpacker takes
/// it from the link's entry, whose attributes mean nothing to containerd, to its EROFS one and to us.
pub fn wanted() -> Value {
    let mut want: Value = serde_json::from_slice(&fixture("turbo/expected-tree.ext4.json")).unwrap();
    for node in want.as_array_mut().unwrap() {
        if node["path"] == "app/lib/libx.so" {
            node["mtime"] = 1_600_000_002.into();
        }
    }
    want
}

/// The vectors' layers, as devices with one and with both.
fn vectors() -> Vec<(DataPlace, Vec<u8>)> {
    let archives = ["turbo/base.tar", "turbo/top.tar"].map(fixture);
    PLACES.into_iter().map(|place| (place, flatten(&stack(&build_all(&archives, place), place)))).collect()
}

/// Upstream's own EROFS layers lose the attributes of the directories that an archive does not list. Its ext4 layers
/// keep them.
fn expected_tree() {
    let want = wanted();
    for (_, flat) in vectors() {
        let report = verify(flat.as_slice(), &Policy::layer()).unwrap();
        assert!(report.lints.is_empty(), "{:?}", report.lints);
        compare(&listing::by_our_reader(&flat), &want);
        compare(&listing::by_erofs_rs(&flat), &want);
        let superblock = *Image::open(flat.as_slice()).unwrap().superblock();
        assert_eq!((superblock.uuid, superblock.epoch), ([0; 16], 0));
    }
}

fn expected_mount() -> Result<(), Failed> {
    let want = wanted();
    for (_, flat) in vectors() {
        compare(&listing::by_kernel(&MountPoint::image(&flat)?.at()), &want);
    }
    Ok(())
}

fn above_upstreams() {
    let want = wanted();
    let [base, top] = ["turbo/base.tar", "turbo/top.tar"].map(fixture);
    let lower = vec![(fixture("turbo/base.erofs.fs.meta.uncompressed"), base)];
    let layer = build(&top, &lower, DataPlace::Target, 1);
    let made = [lower, vec![(layer, top)]].concat();
    compare(&listing::by_our_reader(&flatten(&stack(&made, DataPlace::Target))), &want);
}

fn same_bytes() {
    let tar = fixture("turbo/base.tar");
    for place in PLACES {
        let want = build(&tar, &[], place, 1);
        let zstd = zstd::encode_all(tar.as_slice(), 3).unwrap();
        for (blob, coding) in [(tar.clone(), "plain"), (gzip(&tar), "gzip"), (zstd, "zstd")] {
            for threads in [1, 2, 8] {
                assert!(build(&blob, &[], place, threads) == want, "{place:?}, {coding}, {threads} threads");
            }
        }
    }
}

fn archive(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, data) in entries {
        let mut header = tar::Header::new_ustar();
        let kind = if path.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular };
        header.set_entry_type(kind);
        header.set_mode(0o700);
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, path, data.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn replaced_types() {
    let layers = [
        archive(&[("d/", ""), ("d/a", "1"), ("d/e/", ""), ("d/e/f", "2"), ("f", "3"), ("keep/x", "4")]),
        archive(&[("d", "a file now"), ("f/", ""), ("f/g", "5"), ("keep/.wh.x", "")]),
        archive(&[("d/", ""), ("d/b", "6"), ("f/.wh..wh..opq", ""), ("f/h", "7")]),
    ];
    let after: [&[(&str, &str)]; 3] = [
        &[("d", ""), ("d/a", "1"), ("d/e", ""), ("d/e/f", "2"), ("f", "3"), ("keep", ""), ("keep/x", "4")],
        &[("d", "a file now"), ("f", ""), ("f/g", "5"), ("keep", "")],
        &[("d", ""), ("d/b", "6"), ("f", ""), ("f/h", "7"), ("keep", "")],
    ];
    for place in PLACES {
        let made = build_all(&layers, place);
        for (layers, want) in (1..).zip(after) {
            let flat = flatten(&stack(&made[..layers], place));
            let found = listing::by_our_reader(&flat);
            let found = found.iter().filter(|(name, _)| !name.is_empty());
            let found: Vec<_> =
                found.map(|(name, listed)| (name.as_slice(), listed.data.as_slice())).collect();
            let want: Vec<_> = want.iter().map(|(name, data)| (name.as_bytes(), data.as_bytes())).collect();
            assert_eq!(found, want, "{place:?}, {layers} layers");
        }
    }
}

fn small_above_many() {
    let names: Vec<String> = (0..20_000).map(|n| format!("d{:03}/file-{n:05}", n % 200)).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
    let [many, few] = [archive(&many), archive(&[("d007/file-00007", "new"), ("d009/.wh.file-00009", "")])];
    let made = build_all(&[many, few], DataPlace::Target);
    assert!(made[1].0.len() < 16 << 10, "{} bytes above {}", made[1].0.len(), made[0].0.len());
    let listing = listing::by_our_reader(&flatten(&stack(&made, DataPlace::Target)));
    assert_eq!(listing.len(), 1 + 200 + 20_000 - 1);
    assert_eq!(listing[&b"d007/file-00007"[..]].data, b"new");
}

/// A file, or a hard link where there is a target.
fn linked_archive(entries: &[(&str, Option<&str>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, target) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o600);
        let data = if target.is_some() || path.contains(".wh.") { "" } else { *path };
        header.set_size(data.len() as u64);
        match target {
            Some(target) => {
                header.set_entry_type(tar::EntryType::Link);
                builder.append_link(&mut header, path, target).unwrap();
            }
            None => builder.append_data(&mut header, path, data.as_bytes()).unwrap(),
        }
    }
    builder.into_inner().unwrap()
}

/// Name of a file, its data, and its link count.
type Linked = (&'static str, &'static str, u32);

/// Layers whose hard links name files of the layers below, and what comes of them.
fn linked_layers() -> (Vec<Vec<u8>>, Vec<Linked>) {
    let layers = [
        linked_archive(&[
            ("d/one", None),
            ("d/two", None),
            ("d/both", None),
            ("d/same", Some("d/both")),
            ("e/f", None),
        ]),
        linked_archive(&[
            // The target stays.
            ("x/one", Some("d/one")),
            // One more way to spell it, and a link to the link.
            ("x/again", Some("./x/../d/one")),
            ("x/third", Some("x/one")),
            // The target goes, also with the directory that it is in.
            ("two", Some("d/two")),
            ("d/.wh.two", None),
            ("f", Some("e/f")),
            (".wh.e", None),
            // The name is that of a name of the target.
            ("d/same", Some("d/both")),
            // A link that is replaced.
            ("x/gone", Some("d/both")),
            ("x/gone", None),
        ]),
        // Through two layers.
        linked_archive(&[("y/one", Some("x/third")), ("d/.wh.one", None), ("f", None)]),
    ];
    let after = vec![
        ("d/both", "d/both", 2),
        ("d/same", "d/both", 2),
        ("f", "f", 1),
        ("two", "d/two", 1),
        ("x/again", "d/one", 4),
        ("x/gone", "x/gone", 1),
        ("x/one", "d/one", 4),
        ("x/third", "d/one", 4),
        ("y/one", "d/one", 4),
    ];
    (layers.to_vec(), after)
}

fn files_of(listing: &Listing) -> Vec<(String, String, u32)> {
    let files = listing.iter().filter(|(_, listed)| listed.file_type == FileType::Regular);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    files.map(|(name, listed)| (text(name), text(&listed.data), listed.nlink)).collect()
}

fn links_below() {
    let (layers, want) = linked_layers();
    let want: Vec<_> =
        want.iter().map(|(name, data, nlink)| ((*name).into(), (*data).into(), *nlink)).collect();
    for place in PLACES {
        let flat = flatten(&stack(&build_all(&layers, place), place));
        let report = verify(flat.as_slice(), &Policy::layer()).unwrap();
        assert!(report.lints.is_empty(), "{:?}", report.lints);
        assert_eq!(report.inodes, Image::open(flat.as_slice()).unwrap().superblock().inos, "{place:?}");
        assert_eq!(files_of(&listing::by_our_reader(&flat)), want, "{place:?}");
        assert_eq!(files_of(&listing::by_erofs_rs(&flat)), want, "{place:?}");
    }
}

fn links_below_mount() -> Result<(), Failed> {
    let (layers, want) = linked_layers();
    let want: Vec<_> =
        want.iter().map(|(name, data, nlink)| ((*name).into(), (*data).into(), *nlink)).collect();
    for place in PLACES {
        let flat = flatten(&stack(&build_all(&layers, place), place));
        assert_eq!(files_of(&listing::by_kernel(&MountPoint::image(&flat)?.at())), want, "{place:?}");
    }
    Ok(())
}

fn links_to_nothing() {
    let bottom = linked_archive(&[("d/f", None), ("g", None)]);
    for place in PLACES {
        let below = build_all(std::slice::from_ref(&bottom), place);
        for (what, entries, reason) in [
            ("nothing", &[("x", Some("none"))][..], "tree.hardlink.target"),
            ("nothing in a directory", &[("x", Some("d/none"))], "tree.hardlink.target"),
            ("something below a file", &[("x", Some("g/f"))], "tree.hardlink.target"),
            ("a directory", &[("x", Some("d"))], "tree.hardlink.target"),
            ("what the layer has deleted", &[(".wh.g", None), ("x", Some("g"))], "tree.hardlink.target"),
            (
                "what it has deleted with a directory",
                &[(".wh.d", None), ("x", Some("d/f"))],
                "tree.hardlink.target",
            ),
            ("what it has hidden", &[("d/.wh..wh..opq", None), ("x", Some("d/f"))], "tree.hardlink.target"),
            ("what it has replaced by a file", &[("d", None), ("x", Some("d/f"))], "tree.parent"),
            ("nothing, and is replaced later", &[("x", Some("none")), ("x", None)], "tree.hardlink.target"),
        ] {
            let error = try_build(&linked_archive(entries), &below, place, 1).unwrap_err();
            assert_eq!((error.kind(), error.reason()), (Kind::Malformed, reason), "{what}");
            assert!(error.to_string().contains("entry \"x\": "), "{what}: {error}");
        }
        // Without a layer below there is nothing to name.
        let alone = try_build(&linked_archive(&[("x", Some("g"))]), &[], place, 1).unwrap_err();
        assert_eq!(alone.reason(), "tree.hardlink.target");
    }
}
