//! The vectors of overlaybd: each is read as what it is, and refused with what is wrong once it is damaged. A file without
//! an expectation fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use libtest_mimic::Failed;
use plywood::{
    call::{Cancel, Progress, Work},
    digest::{Algorithm, Digest, Hasher},
    error::{Error, Kind, Result},
    format::{ReadAt, Sink, ext4, gzindex, tar::metadata::Exporter, zfile::reader::Reader},
    overlaybd::{
        blob::Blob,
        config::{ImageConfig, LowerConfig, Mode, UpperConfig, anywhere},
        device,
    },
    tree::Extent,
    view::LayeredDevice,
};
use serde_json::Value;
use testkit::{Need, Suite, mounts::Looped};

use super::{
    erofs_writer::MountPoint,
    ext4::of_image,
    listing,
    overlaybd_build::{compare, wanted},
};

pub fn add(suite: &mut Suite) {
    let mounts = [Need::Root, Need::LoopDevices, Need::FileSystem("ext4"), Need::FileSystem("erofs")];
    suite.test("every_vector_has_an_expectation", &[], all_are_known);
    suite.test("every_stack_of_the_vectors_is_the_expected_device", &[], stacks);
    suite.test("every_layer_of_the_vectors_is_refused_once_it_is_damaged", &[], damaged);
    suite.test("devices_of_the_vectors_have_the_expected_tree", &[], trees);
    suite.test("needs_kernel_devices_of_the_vectors_mount_with_the_expected_tree", &mounts, mounted);
    suite.test("wrappers_and_zfiles_hold_the_expected_contents", &[], contents);
    suite.test("random_reads_through_an_index_give_the_expected_bytes", &[], random_reads);
    suite.test("the_metadata_of_an_archive_is_the_expected_file", &[], metadata);
    suite.test("a_target_of_another_size_is_refused", &[], other_targets);
}

/// A lower of a stack: its file, and its target with the index of that, where it has them.
type Lower = (&'static str, &'static str, &'static str);

const LSMT: &str = "overlaybd/lsmt/expected.json";
const NATIVE: &str = "overlaybd/native-ext4/expected-device.json";
const TURBO: &str = "overlaybd/turbo/expected-device.json";

const fn plain(layer: &'static str) -> Lower {
    (layer, "", "")
}

const OPS2: Lower = plain("overlaybd/lsmt/ops2.commit");
const EXT4_BASE: Lower = plain("overlaybd/native-ext4/base.overlaybd.tar");
const EXT4_TOP: Lower = plain("overlaybd/native-ext4/top.overlaybd.tar");
const BASE_TAR: &str = "overlaybd/turbo/base.tar";
const TOP_TAR: &str = "overlaybd/turbo/top.tar";
const BASE_GZIP: &str = "gzindex/base.tar.gz";
const BASE_INDEX: &str = "gzindex/base.gzip.meta";
const TOP_GZIP: &str = "overlaybd/turbo/top.tar.gz";
const TOP_INDEX: &str = "overlaybd/turbo/top.gzip.meta";

/// Lowers, the name of the writable layer on top, and the device that they make.
const STACKS: &[(&[Lower], &str, &str, &str)] = &[
    (&[OPS2], "", LSMT, "ops2"),
    (&[plain("overlaybd/lsmt/ops2.sealed")], "", LSMT, "ops2"),
    (&[], "ops2", LSMT, "ops2"),
    (&[plain("overlaybd/lsmt/over2.commit")], "", LSMT, "over2 alone"),
    (&[plain("overlaybd/lsmt/over2.sealed")], "", LSMT, "over2 alone"),
    (&[], "over2", LSMT, "over2 alone"),
    (&[OPS2, plain("overlaybd/lsmt/over2.commit")], "", LSMT, "chain ops2<over2"),
    (&[OPS2, plain("overlaybd/lsmt/over2.sealed")], "", LSMT, "chain ops2<over2"),
    (&[OPS2], "over2", LSMT, "chain ops2<over2"),
    (&[plain("overlaybd/zfile/merged-ops2-over2.zfile")], "", LSMT, "chain ops2<over2"),
    (&[plain("overlaybd/lsmt/merged-ops2-over2.zfile")], "", LSMT, "chain ops2<over2"),
    (&[plain("overlaybd/lsmt/sparse.commit")], "", LSMT, "sparse"),
    (&[], "sparse", LSMT, "sparse"),
    (&[plain("overlaybd/lsmt/erofs.commit")], "", LSMT, "erofs"),
    (&[plain("overlaybd/lsmt/erofs.lz4-4k.zfile")], "", LSMT, "erofs"),
    (&[plain("overlaybd/lsmt/erofs.zstd-8k.zfile")], "", LSMT, "erofs"),
    (&[plain("overlaybd/zfile/erofs.lz4-4k.zfile")], "", LSMT, "erofs"),
    (&[plain("overlaybd/zfile/erofs.zstd-8k.zfile")], "", LSMT, "erofs"),
    (&[EXT4_BASE], "", NATIVE, "base"),
    (&[EXT4_BASE, EXT4_TOP], "", NATIVE, "base+top"),
    (&[("overlaybd/turbo/base.erofs.fs.meta.uncompressed", BASE_TAR, "")], "", TURBO, "erofs base"),
    (&[("overlaybd/turbo/base.erofs.fs.meta", BASE_TAR, "")], "", TURBO, "erofs base"),
    (&[("overlaybd/turbo/base.erofs.fs.meta", BASE_GZIP, BASE_INDEX)], "", TURBO, "erofs base"),
    (&[("overlaybd/turbo/base.ext4.fs.meta", BASE_TAR, "")], "", TURBO, "ext4 base"),
    (&[("overlaybd/turbo/base.ext4.fs.meta", BASE_GZIP, BASE_INDEX)], "", TURBO, "ext4 base"),
    (
        &[
            ("overlaybd/turbo/base.erofs.fs.meta", BASE_TAR, ""),
            ("overlaybd/turbo/top.erofs.fs.meta", TOP_GZIP, TOP_INDEX),
        ],
        "",
        TURBO,
        "erofs base+top",
    ),
    (
        &[
            ("overlaybd/turbo/base.ext4.fs.meta", BASE_GZIP, BASE_INDEX),
            ("overlaybd/turbo/top.ext4.fs.meta", TOP_TAR, ""),
        ],
        "",
        TURBO,
        "ext4 base+top",
    ),
];

/// Files that other tests here read: what they are compared with, and what is in no device.
const OTHERS: &[&str] = &[
    LSMT,
    NATIVE,
    TURBO,
    "gzindex/README.md",
    "gzindex/hex.expected.json",
    "gzindex/hex.gz",
    "gzindex/hex.gz_idx",
    "overlaybd/README.md",
    "overlaybd/native-ext4/expected-tree.json",
    "overlaybd/tarwrap/README.md",
    "overlaybd/tarwrap/obd-commit-t.tar",
    "overlaybd/tarwrap/plain-ustar.tar",
    "overlaybd/turbo/expected-tree.erofs.json",
    "overlaybd/turbo/expected-tree.ext4.json",
    "overlaybd/turbo/turboOCIv1.tar.gz",
    "overlaybd/zfile/README.md",
    "overlaybd/zfile/payload.bin",
    "overlaybd/zfile/payload.lz4-32k.zfile",
    "overlaybd/zfile/payload.lz4-4k.zfile",
    "overlaybd/zfile/payload.zstd-32k.zfile",
    "overlaybd/zfile/payload.zstd-4k.zfile",
    "tar/README.md",
    "tar/base.tar.meta",
];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn read(name: &str) -> Vec<u8> {
    fs::read(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&read(name)).unwrap()
}

fn files_of(dir: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(path(dir)).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{dir}/{}", entry.file_name().to_str().unwrap());
        match entry.file_type().unwrap().is_dir() {
            true => files_of(&name, found),
            false => drop(found.insert(name)),
        }
    }
}

/// The two files of a writable layer.
fn pair(name: &str) -> [String; 2] {
    match name {
        "sparse" => ["overlaybd/lsmt/sparse.rw.data.tar.gz".to_owned(), String::new()],
        name => ["data", "index"].map(|file| format!("overlaybd/lsmt/{name}.rw.{file}")),
    }
}

fn all_are_known() {
    let mut found = BTreeSet::new();
    ["overlaybd", "gzindex", "tar"].iter().for_each(|dir| files_of(dir, &mut found));
    let mut known: BTreeSet<String> = OTHERS.iter().map(ToString::to_string).collect();
    for (lowers, upper, ..) in STACKS {
        known.extend(
            lowers.iter().flat_map(|(layer, target, index)| [*layer, *target, *index]).map(Into::into),
        );
        if !upper.is_empty() {
            known.extend(pair(upper));
        }
    }
    known.remove("");
    assert_eq!(found, known);
}

/// Opens a stack whose files are in `dir` where they have been changed.
fn open(lowers: &[Lower], upper: &str, dir: &Path) -> Result<LayeredDevice> {
    let file = |name: &str| match name {
        "" => String::new(),
        name => {
            let changed = dir.join(name.replace('/', "_"));
            let path = if changed.exists() { changed } else { path(name) };
            path.to_str().unwrap().to_owned()
        }
    };
    let lowers = lowers.iter().map(|(layer, target, index)| LowerConfig {
        file: file(layer),
        target_file: file(target),
        gzip_index: file(index),
        ..LowerConfig::default()
    });
    let upper = match upper {
        "" => UpperConfig::default(),
        "sparse" => unpack_sparse(dir),
        name => {
            let [data, index] = pair(name).map(|name| file(&name));
            UpperConfig { data, index, ..UpperConfig::default() }
        }
    };
    let config = ImageConfig { lowers: lowers.collect(), upper, ..ImageConfig::default() };
    config.open(&anywhere, Mode::Read).and_then(device::open)
}

/// The writable sparse layer, with its holes.
fn unpack_sparse(dir: &Path) -> UpperConfig {
    let packed = read("overlaybd/lsmt/sparse.rw.data.tar.gz");
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(packed.as_slice()));
    let mut bytes = Vec::new();
    archive.entries().unwrap().next().unwrap().unwrap().read_to_end(&mut bytes).unwrap();
    let [data, index] = ["sparse.data", "sparse.index"].map(|name| dir.join(name));
    let file = File::create(&data).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (at, block) in
        (0..).step_by(4096).zip(bytes.chunks(4096)).filter(|(_, block)| block.iter().any(|b| *b != 0))
    {
        file.write_all_at(block, at).unwrap();
    }
    fs::write(&index, "").unwrap();
    let [data, index] = [data, index].map(|path| path.to_str().unwrap().to_owned());
    UpperConfig { data, index, ..UpperConfig::default() }
}

/// SHA-256 of a device, hashed from end to end.
fn sha256(device: &LayeredDevice) -> Result<String> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let (mut at, mut buffer) = (0, vec![0; 1 << 20]);
    while at < device.size_bytes() {
        let len = usize::try_from(device.size_bytes() - at).unwrap().min(buffer.len());
        device.read_exact_at(at, &mut buffer[..len]).map_err(Error::disk)?;
        hasher.update(&buffer[..len]);
        at += len as u64;
    }
    Ok(hasher.finish().hex().to_owned())
}

/// Size of a device, its sectors that are not zeros, and the digest of these.
type Digested = (u64, Vec<(u64, u64)>, String);

/// What says as much of a device as a digest of all.
fn digest(device: &LayeredDevice) -> Result<Digested> {
    let (mut runs, mut hasher) = (Vec::<(u64, u64)>::new(), Hasher::new(Algorithm::Sha256));
    for Extent { offset, len } in device.data(0, device.size_bytes()) {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        device.read_exact_at(offset, &mut bytes).map_err(Error::disk)?;
        let sectors = (offset / 512..).zip(bytes.chunks(512));
        for (number, sector) in sectors.filter(|(_, sector)| sector.iter().any(|byte| *byte != 0)) {
            hasher.update(sector);
            match runs.last_mut() {
                Some((start, count)) if *start + *count == number => *count += 1,
                _ => runs.push((number, 1)),
            }
        }
    }
    Ok((device.size_bytes(), runs, hasher.finish().hex().to_owned()))
}

/// What [`digest`] returns for the device that a file of the vectors describes.
fn expected(want: &Value) -> (u64, Vec<(u64, u64)>, String) {
    let runs = serde_json::from_value(want["nonzero_extents_512B"].clone()).unwrap();
    let hash = want["sha256_of_nonzero_extents_concat"].as_str().unwrap().to_owned();
    (want["device_size"].as_u64().unwrap(), runs, hash)
}

fn stacks() {
    let dir = tempfile::tempdir().unwrap();
    let mut hashed = BTreeSet::new();
    for (lowers, upper, file, key) in STACKS {
        let want = json(file)[key].clone();
        let device = open(lowers, upper, dir.path()).unwrap_or_else(|error| panic!("{lowers:?}: {error}"));
        assert_eq!(digest(&device).unwrap(), expected(&want), "{lowers:?} {upper}");
        // All of a device takes a second for each gigabyte, and the other stacks of this name are the same as this one.
        if hashed.insert((file, key)) {
            assert_eq!(
                sha256(&device).unwrap(),
                want["sha256_device"].as_str().unwrap(),
                "{lowers:?} {upper}"
            );
        }
    }
}

/// A file of the vectors with one kind of damage, and the reasons for which it may be refused. Without reasons the file
/// may also be as good as before: not every byte means something.
fn damages(name: &str, bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut damages: Vec<(String, Vec<u8>)> =
        [0, 1, bytes.len() / 2, bytes.len() - 4096.min(bytes.len() / 4), bytes.len() - 1]
            .into_iter()
            .map(|len| (format!("{name}, the first {len} bytes"), bytes[..len].to_vec()))
            .collect();
    let step = (bytes.len() / 60).max(1);
    for at in
        (0..bytes.len()).step_by(step).chain([0, 24, 512, bytes.len().saturating_sub(512), bytes.len() - 400])
    {
        let mut changed = bytes.to_vec();
        if let Some(byte) = changed.get_mut(at) {
            *byte ^= 0x10;
        }
        damages.push((format!("{name}, byte {at}"), changed));
    }
    damages
}

/// Files that carry checksums of all that means something: there is no change that goes unnoticed.
fn is_covered(name: &str) -> bool {
    [".zfile", ".fs.meta", ".overlaybd.tar", ".gzip.meta"].iter().any(|end| name.ends_with(end))
}

fn damaged() {
    let mut reasons: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (lowers, _, file, key) in
        STACKS.iter().filter(|(lowers, upper, ..)| upper.is_empty() && !lowers.is_empty())
    {
        let want = expected(&json(file)[key]);
        for (layer, _, index) in *lowers {
            for name in [*layer, *index].into_iter().filter(|name| !name.is_empty() && seen.insert(*name)) {
                for (what, bytes) in damages(name, &read(name)) {
                    let dir = tempfile::tempdir().unwrap();
                    fs::write(dir.path().join(name.replace('/', "_")), &bytes).unwrap();
                    let is_cut = what.ends_with("bytes");
                    match open(lowers, "", dir.path()).and_then(|device| digest(&device)) {
                        Ok(found) => {
                            // Zeros end an archive.
                            let is_whole = found == want && name.ends_with(".tar");
                            assert!(!is_cut || is_whole, "{what} is taken for whole");
                            assert!(found == want || !is_covered(name), "{what} reads as something else");
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), Kind::DataLoss, "{what}: {error}");
                            let file = name.replace('/', "_");
                            let place = if name == *index { "target of lower" } else { file.as_str() };
                            assert!(error.to_string().contains(place), "{what}: {error}");
                            let known = ["lsmt.", "zfile.", "gzindex.", "overlaybd.", "tar."];
                            assert!(
                                known.iter().any(|family| error.reason().starts_with(family)),
                                "{what}: {error:?}"
                            );
                            reasons.entry(name).or_default().insert(error.reason());
                        }
                    }
                }
            }
        }
    }
    for (name, reasons) in &reasons {
        println!("{name}: {}", reasons.iter().copied().collect::<Vec<_>>().join(" "));
        assert!(reasons.len() >= 2, "{name} is refused for one reason alone");
    }
}

/// The device as a file with holes.
pub fn flatten_to_file(device: &LayeredDevice) -> tempfile::NamedTempFile {
    struct Out<'a>(&'a File);
    impl Sink for Out<'_> {
        fn write_at(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
            self.0.write_all_at(bytes, offset)
        }
        fn discard(&mut self, _: u64, _: u64) -> std::io::Result<()> {
            Ok(())
        }
        fn set_len(&mut self, len: u64) -> std::io::Result<()> {
            self.0.set_len(len)
        }
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let (cancel, progress) = (Cancel::new(), Progress::default());
    let work = Work { cancel: &cancel, progress: &progress };
    device::flatten(device, &mut Out(file.as_file()), work).unwrap();
    file
}

fn flattened(lowers: &[Lower]) -> tempfile::NamedTempFile {
    flatten_to_file(&open(lowers, "", tempfile::tempdir().unwrap().path()).unwrap())
}

/// The stacks with both layers, the type of the file system on each, and its tree.
fn both_layers() -> Vec<(&'static [Lower], &'static str, Value)> {
    let both = STACKS.iter().filter(|(_, _, file, key)| *file != LSMT && key.ends_with("base+top"));
    let tree = |key: &str, file| match (file, key) {
        (TURBO, "erofs base+top") => ("erofs", json("overlaybd/turbo/expected-tree.erofs.json")),
        (TURBO, _) => ("ext4", json("overlaybd/turbo/expected-tree.ext4.json")),
        _ => ("ext4", json("overlaybd/native-ext4/expected-tree.json")),
    };
    let both: Vec<_> = both
        .map(|(lowers, _, file, key)| {
            let (kind, tree) = tree(key, *file);
            (*lowers, kind, tree)
        })
        .collect();
    assert_eq!(both.len(), 3);
    both
}

fn trees() {
    for (lowers, kind, want) in both_layers() {
        let file = flattened(lowers);
        let mut found = match kind {
            "ext4" => of_image(&ext4::reader::Image::open(file.reopen().unwrap()).unwrap()),
            _ => {
                let mut head = vec![0; 4 << 20];
                file.reopen().unwrap().read_exact(&mut head).unwrap();
                listing::by_our_reader(&head)
            }
        };
        found.remove(&b"lost+found"[..]);
        compare(&found, &want);
    }
    // The trees of the flavours are the same, but for what our builder keeps.
    assert_ne!(wanted(), json("overlaybd/turbo/expected-tree.erofs.json"));
}

fn mounted() -> std::result::Result<(), Failed> {
    for (lowers, kind, want) in both_layers() {
        let file = flattened(lowers);
        let mut found = match kind {
            "ext4" => {
                let dir = tempfile::tempdir()?;
                listing::by_kernel(Looped::new(file.path(), dir.path().join("mnt"))?.path())
            }
            _ => {
                let mount = MountPoint::new(kind, file.path(), tempfile::tempdir()?, "")?;
                listing::by_kernel(&mount.at())
            }
        };
        found.remove(&b"lost+found"[..]);
        compare(&found, &want);
    }
    Ok(())
}

fn contents() {
    let payload = read("overlaybd/zfile/payload.bin");
    for name in ["lz4-4k", "lz4-32k", "zstd-4k", "zstd-32k"] {
        let file = read(&format!("overlaybd/zfile/payload.{name}.zfile"));
        let all = |file: &[u8]| -> Result<Vec<u8>> {
            let reader = Reader::open(file)?;
            let mut found = vec![0; usize::try_from(reader.size_bytes()).unwrap()];
            reader.read_exact_at(0, &mut found).map_err(Error::disk)?;
            Ok(found)
        };
        assert!(all(&file).unwrap() == payload, "{name}");
        for (what, damaged) in damages(name, &file) {
            match all(&damaged) {
                Ok(found) => assert!(found == payload && damaged.len() == file.len(), "{what}"),
                Err(error) => assert!(error.reason().starts_with("zfile."), "{what}: {error}"),
            }
        }
    }
    for name in ["obd-commit-t.tar", "plain-ustar.tar"] {
        let file = read(&format!("overlaybd/tarwrap/{name}"));
        let range = Blob::layer(file.as_slice()).unwrap().range();
        let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap());
        let want = "455681955a0c51535b9ebbd7e429fc14f4f0b77c767eebeb9de05d5219f85d4f";
        assert_eq!(Digest::sha256(&file[start..end]).hex(), want, "{name}");
        let cut = Blob::layer(&file[..file.len() / 2]).unwrap_err();
        assert_eq!(cut.reason(), "overlaybd.wrapper.truncated", "{cut}");
    }
}

fn random_reads() {
    let [blob, index] = ["gzindex/hex.gz", "gzindex/hex.gz_idx"].map(read);
    let want = json("gzindex/hex.expected.json");
    let reader = gzindex::Reader::open(blob.as_slice(), index.as_slice()).unwrap();
    assert_eq!(reader.size_bytes(), want["uncompressed_size"].as_u64().unwrap());
    let hash = |offset, len: u64| {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        reader.read_exact_at(offset, &mut bytes).unwrap();
        Digest::sha256(&bytes).hex().to_owned()
    };
    assert_eq!(hash(0, reader.size_bytes()), want["sha256"].as_str().unwrap());
    let reads = want["reads"].as_array().unwrap();
    assert!(!reads.is_empty());
    for read in reads {
        let [offset, len] = ["offset", "length"].map(|field| read[field].as_u64().unwrap());
        assert_eq!(hash(offset, len), read["sha256"].as_str().unwrap(), "{len} bytes at {offset}");
    }
}

fn metadata() {
    let (mut exporter, mut metadata) = (Exporter::new(), Vec::new());
    exporter.push(&read(BASE_TAR), &mut metadata).unwrap();
    exporter.finish(&mut metadata).unwrap();
    assert!(metadata == read("tar/base.tar.meta"));
}

fn other_targets() {
    let index = ("overlaybd/turbo/base.erofs.fs.meta", BASE_GZIP, BASE_INDEX);
    let plain = ("overlaybd/turbo/base.erofs.fs.meta", BASE_TAR, "");
    let (gzip, tar) = (read(BASE_GZIP), read(BASE_TAR));
    let more = |bytes: &[u8], len: usize| [bytes, &vec![0; len]].concat();
    for (lower, bytes, reason, said) in [
        (
            index,
            gzip[..gzip.len() - 1].to_vec(),
            "gzindex.blob-size",
            "has 52903 bytes, the index belongs to one of 52904",
        ),
        (index, more(&gzip, 1), "gzindex.blob-size", "has 52905 bytes, the index belongs to one of 52904"),
        (index, tar.clone(), "gzindex.blob-size", "has 184320 bytes, the index belongs to one of 52904"),
        (
            plain,
            tar[..179_000].to_vec(),
            "overlaybd.target.size",
            "has 179000 bytes, and the layer maps 180224",
        ),
        (plain, gzip.clone(), "overlaybd.target.coding", "is compressed with gzip, and no index"),
        (
            plain,
            zstd::encode_all(tar.as_slice(), 3).unwrap(),
            "overlaybd.target.coding",
            "is compressed with zstd",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(lower.1.replace('/', "_")), &bytes).unwrap();
        let error = open(&[lower], "", dir.path()).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, reason), "{error}");
        assert!(
            error.to_string().contains(said) && error.to_string().contains("target of lower 1"),
            "{error}"
        );
    }
    // The target of a writable layer is opened by the same door.
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let header = &read("overlaybd/lsmt/ops2.rw.index")[..4096];
    let mut index = header.to_vec();
    // Nothing but a header.
    index.truncate(4096);
    fs::write(at("index"), &index).unwrap();
    File::create(at("data")).unwrap().write_all(&[]).unwrap();
    fs::write(at("target"), &gzip[1..]).unwrap();
    let upper = UpperConfig {
        data: at("data"),
        index: at("index"),
        target: at("target"),
        gzip_index: path(BASE_INDEX).to_str().unwrap().to_owned(),
    };
    let config = ImageConfig { upper, ..ImageConfig::default() };
    let error = config.open(&anywhere, Mode::Read).and_then(device::open).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "gzindex.blob-size"), "{error}");
}
