//! Layers in snapshots of devices.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::Mutex,
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};

use super::*;
use crate::{
    apply::{Options, OrdinaryLayers, Overlaybd},
    digest::Digest,
    error::Kind,
    kind::overlaybd::{BLOB_DIGEST, CONVERT, TURBO_TARGET_TYPES, TURBO_TARGETS},
    limits::Limits,
    pipeline::{Resources, budget::SHARE_BYTES, helpers::Helpers},
    snapshot::{Durability, Mount, Record, Records},
    store::Memory,
};

const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const WRAPPED: &[u8] = include_bytes!("../../tests/fixtures/overlaybd/tarwrap/obd-commit-t.tar");
const USTAR: &[u8] = include_bytes!("../../tests/fixtures/overlaybd/tarwrap/plain-ustar.tar");
const TURBO: &[u8] = include_bytes!("../../tests/fixtures/overlaybd/turbo/turboOCIv1.tar.gz");

/// A root of the overlaybd snapshotter with active snapshots, a store, and the snapshotter's records.
struct Fixture {
    scratch: tempfile::TempDir,
    store: Memory,
    overlaybd: Overlaybd,
    limits: Limits,
    known: Arc<Known>,
}

/// Answers as the snapshotter would.
#[derive(Default)]
struct Known {
    record: Mutex<Option<Record>>,
    view: Mutex<Vec<Mount>>,
}

impl Records for Known {
    fn find(&self, _: &Call, _: &[Mount]) -> Result<Option<Record>> {
        Ok(self.record.lock().unwrap().clone())
    }

    fn view(&self, _: &Call, name: &str) -> Result<Vec<Mount>> {
        assert_eq!(name, "parent");
        Ok(self.view.lock().unwrap().clone())
    }
}

fn fixture() -> Fixture {
    let scratch = tempfile::tempdir().unwrap();
    for id in ["1", "2", "3"] {
        for name in ["fs", "work", "block/mountpoint"] {
            fs::create_dir_all(scratch.path().join("snapshots").join(id).join(name)).unwrap();
        }
    }
    let overlaybd = Overlaybd { virtual_bytes: 1 << 30, ..Overlaybd::default() };
    let limits = Limits::without_reserve();
    Fixture { scratch, store: Memory::new(), overlaybd, limits, known: Arc::default() }
}

fn mount(kind: &str, source: &Path, options: &[String]) -> Mount {
    let source = source.to_str().unwrap().to_owned();
    Mount { kind: kind.into(), source, target: String::new(), options: options.to_vec() }
}

impl Fixture {
    fn snapshot(&self, id: &str) -> PathBuf {
        self.scratch.path().join("snapshots").join(id)
    }

    fn bind(&self, id: &str, access: &str) -> Vec<Mount> {
        vec![mount("bind", &self.snapshot(id).join("fs"), &[access.to_owned(), "rbind".to_owned()])]
    }

    fn over(&self, id: &str, lower: &str) -> Vec<Mount> {
        let at = |id: &str, name: &str| self.snapshot(id).join(name).display().to_string();
        let options = [
            format!("workdir={}", at(id, "work")),
            format!("upperdir={}", at(id, "fs")),
            format!("lowerdir={}", at(lower, "fs")),
        ];
        vec![mount("overlay", Path::new("overlay"), &options)]
    }

    fn apply(
        &self,
        mounts: Vec<Mount>,
        media_type: &str,
        annotations: &[(&str, &str)],
        blob: &[u8],
    ) -> Result<Applied> {
        let resources = Resources::new(self.limits.clone(), Helpers::default_threads());
        let overlaybd = self.overlaybd.clone();
        let options = Options { durability: Durability::Never, overlaybd, ..Options::default() };
        let roots = Roots::open(&[]).unwrap().with_overlaybd(&[self.scratch.path().to_owned()]).unwrap();
        let snapshotter = Snapshotter { name: "overlaybd".to_owned(), records: Arc::clone(&self.known) as _ };
        let applier =
            Applier::new(Arc::new(self.store.clone()), Arc::new(roots), Converter::new(options, resources))
                .with_snapshotter(snapshotter);
        let digest = self.store.insert(blob);
        let pairs = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let diff = Descriptor::new(media_type, digest, i64::try_from(blob.len()).unwrap()).unwrap();
        let diff = diff.annotated(pairs.collect()).unwrap();
        let request = Request { diff, mounts, payloads: BTreeMap::new(), sync_fs: false };
        applier.apply(&Call::new("default".parse().unwrap()), &request)
    }

    /// Applies to snapshot 1, which has nothing below it.
    fn lowest(&self, media_type: &str, annotations: &[(&str, &str)], blob: &[u8]) -> Result<Applied> {
        self.apply(self.bind("1", "rw"), media_type, annotations, blob)
    }

    /// The files in a snapshot, with their contents.
    fn files(&self, id: &str) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        for directory in ["", "fs", "block"] {
            for entry in fs::read_dir(self.snapshot(id).join(directory)).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_file() {
                    let name = entry.file_name().into_string().unwrap();
                    let name = if directory.is_empty() { name } else { format!("{directory}/{name}") };
                    found.insert(name, fs::read(entry.path()).unwrap());
                }
            }
        }
        found
    }

    fn names(&self, id: &str) -> Vec<String> {
        self.files(id).into_keys().collect()
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    plain
}

/// An archive of regular files.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = ::tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        // `append_data` refuses names with `..`.
        let field = &mut header.as_mut_bytes()[..100];
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

/// The members of the published turboOCI layer.
fn members() -> BTreeMap<String, Vec<u8>> {
    let plain = gunzip(TURBO);
    let mut archive = ::tar::Archive::new(&plain[..]);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut data = Vec::new();
        entry.read_to_end(&mut data).unwrap();
        (String::from_utf8(entry.path_bytes().into_owned()).unwrap(), data)
    });
    entries.collect()
}

const NATIVE: (&str, &str) = (BLOB_DIGEST, "sha256:x");

#[test]
fn a_native_layer_is_published_bare_whatever_archive_it_came_in() {
    let payload = &USTAR[512..][..usize::from_str_radix(
        std::str::from_utf8(&USTAR[124..135]).unwrap().trim_matches(['\0', ' ']),
        8,
    )
    .unwrap()];
    // As `tar -C DIRECTORY .` writes it.
    let mut dotted = archive(&[("./", b""), ("./overlaybd.commit", payload)]);
    dotted[156] = b'5';
    let sum: u32 = dotted[..512]
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
        .sum();
    dotted[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    for blob in [WRAPPED, USTAR, &[USTAR, &[0; 4096]].concat(), &gzip(WRAPPED), &dotted] {
        let fixture = fixture();
        let applied = fixture.lowest(PLAIN, &[NATIVE], blob).unwrap();
        let files = fixture.files("1");
        assert_eq!(files.keys().collect::<Vec<_>>(), ["fs/overlaybd.commit"]);
        assert!(files["fs/overlaybd.commit"] == payload);
        let plain = if blob.starts_with(&[0x1f, 0x8b]) { gunzip(blob) } else { blob.to_vec() };
        assert_eq!(applied.descriptor.digest, Digest::sha256(&plain));
        assert_eq!(
            (applied.descriptor.media_type.as_str(), applied.descriptor.size_bytes),
            (PLAIN, plain.len() as u64)
        );
        assert_eq!(applied.stats.image_bytes, payload.len() as u64);
    }
}

#[test]
fn a_native_layer_is_checked_from_end_to_end() {
    let flip = |at: usize| {
        let mut blob = USTAR.to_vec();
        blob[at] ^= 1;
        blob
    };
    for (blob, reason) in [
        // A block that is no part of the index, and that nobody has asked for yet.
        (flip(512 + 512 + 40), "zfile.block.checksum"),
        (flip(512 + 100), "zfile.digest"),
        (archive(&[("overlaybd.commit", b"no layer")]), "lsmt.short"),
        (archive(&[("overlaybd.commit", &WRAPPED[..1536])]), "lsmt.short"),
        (archive(&[("etc/passwd", b"root")]), "overlaybd.wrapper.name"),
        (archive(&[]), "overlaybd.wrapper.empty"),
        (USTAR[..40_000].to_vec(), "tar.truncated.data"),
    ] {
        let fixture = fixture();
        let error = fixture.lowest(PLAIN, &[NATIVE], &blob).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, reason), "{error}");
        assert!(fixture.names("1").is_empty(), "{reason}");
    }
}

/// The kernel mounts a published file system unchecked.
#[test]
fn published_ext4_is_refused_where_the_operator_does_not_want_it_and_erofs_is_not() {
    const NATIVE_EXT4: &[u8] =
        include_bytes!("../../tests/fixtures/overlaybd/native-ext4/base.overlaybd.tar");
    const EXT4_META: &[u8] = include_bytes!("../../tests/fixtures/overlaybd/turbo/base.ext4.fs.meta");
    const TURBO_LAYER: &[u8] =
        include_bytes!("../../tests/fixtures/overlaybd/turbo/base.erofs.fs.meta.uncompressed");
    let members = members();
    let (meta, index) = (&members["erofs.fs.meta"][..], &members["gzip.meta"][..]);
    let erofs =
        archive(&[("overlaybd.commit", include_bytes!("../../tests/fixtures/overlaybd/lsmt/erofs.commit"))]);
    let both = archive(&[("erofs.fs.meta", meta), ("ext4.fs.meta", EXT4_META), ("gzip.meta", index)]);
    let ext4 = archive(&[("ext4.fs.meta", EXT4_META), ("gzip.meta", index)]);
    let misnamed = archive(&[("erofs.fs.meta", EXT4_META), ("gzip.meta", index)]);
    let plain = archive(&[("erofs.fs.meta", TURBO_LAYER), ("gzip.meta", index)]);
    // The entry of the superblock's sector, the first of the index, points into the original layer.
    let mut elsewhere = TURBO_LAYER.to_vec();
    let trailer = elsewhere.len() - 4096;
    let at = HEADER_INDEX_OFFSET + trailer;
    let first = usize::try_from(u64::from_le_bytes(*elsewhere[at..].first_chunk().unwrap())).unwrap();
    elsewhere[first + 15] = 1;
    let elsewhere = archive(&[("erofs.fs.meta", &elsewhere), ("gzip.meta", index)]);
    let turbo = [NATIVE, TARGET, (TURBO_TARGET_TYPES[0], GZIP)];
    for (annotations, blob, is_refused) in [
        (&[NATIVE][..], NATIVE_EXT4, true),
        (&[NATIVE], &erofs, false),
        (&turbo, &ext4, true),
        (&turbo, &both, true),
        (&turbo, &misnamed, true),
        (&turbo, &elsewhere, true),
        (&turbo, &plain, false),
        (&turbo, TURBO, false),
    ] {
        let mut fixture = fixture();
        let blob = if blob.starts_with(&[0x1f, 0x8b]) { blob.to_vec() } else { gzip(blob) };
        fixture.overlaybd.published_ext4 = false;
        let outcome = fixture.lowest(GZIP, annotations, &blob);
        let refused = outcome.as_ref().err().map(|error| (error.kind(), error.reason()));
        assert_eq!(refused, is_refused.then_some((Kind::Denied, "overlaybd.published-ext4")), "{outcome:?}");
        assert_eq!(fixture.names("1").is_empty(), is_refused);
        fixture.overlaybd.published_ext4 = true;
        fixture.lowest(GZIP, annotations, &blob).unwrap();
    }
}

/// Place of the index's offset in a layer's trailer.
const HEADER_INDEX_OFFSET: usize = 32;

#[test]
fn a_list_of_blocks_to_fetch_early_is_published_as_it_is() {
    let fixture = fixture();
    let blob = archive(&[("trace", b"0 4096")]);
    fixture
        .lowest(PLAIN, &[NATIVE, ("containerd.io/snapshot/overlaybd/acceleration-layer", "yes")], &blob)
        .unwrap();
    assert_eq!(fixture.files("1"), BTreeMap::from([("fs/trace".to_owned(), b"0 4096".to_vec())]));
}

const TARGET: (&str, &str) = ("containerd.io/snapshot/overlaybd/turbo-oci/target-digest", "sha256:y");

#[test]
fn a_turbo_layer_is_unpacked_into_its_members() {
    let fixture = fixture();
    let applied = fixture.lowest(GZIP, &[NATIVE, TARGET, (TURBO_TARGET_TYPES[0], GZIP)], TURBO).unwrap();
    let want = members().into_iter().map(|(name, data)| (format!("fs/{name}"), data));
    assert_eq!(fixture.files("1"), want.collect());
    assert_eq!(applied.descriptor.digest, Digest::sha256(&gunzip(TURBO)));
}

#[test]
fn a_turbo_layer_without_an_index_replaces_one_with_an_index() {
    let fixture = fixture();
    fixture.lowest(GZIP, &[TARGET], TURBO).unwrap();
    let members = members();
    let blob = archive(&[("erofs.fs.meta", &members["erofs.fs.meta"])]);
    fixture.lowest(PLAIN, &[TARGET, (TURBO_TARGET_TYPES[1], PLAIN)], &blob).unwrap();
    assert_eq!(fixture.names("1"), ["fs/.turbo.ociv1", "fs/erofs.fs.meta"]);
}

#[test]
fn what_is_no_turbo_layer_is_refused_and_leaves_nothing() {
    let members = members();
    let (meta, index) = (&members["erofs.fs.meta"][..], &members["gzip.meta"][..]);
    let mut flipped = meta.to_vec();
    flipped[600] ^= 1;
    let mut other_index = index.to_vec();
    other_index[340] ^= 1;
    for (files, target_type, reason) in [
        (&[("erofs.fs.meta", meta), ("etc/passwd", b"root")][..], GZIP, "turbo.member"),
        (&[("../erofs.fs.meta", meta)], GZIP, "turbo.member"),
        (&[("fs/erofs.fs.meta", meta)], GZIP, "turbo.member"),
        (&[("erofs.fs.meta", meta), ("erofs.fs.meta", meta)], GZIP, "turbo.member"),
        (&[(".turbo.ociv1", b"")], PLAIN, "turbo.empty"),
        (&[("erofs.fs.meta", meta)], GZIP, "turbo.index"),
        (&[("erofs.fs.meta", meta)], "application/vnd.oci.image.layer.v1.tar+zstd", "turbo.target"),
        (&[("erofs.fs.meta", &flipped), ("gzip.meta", index)], GZIP, "zfile.block.checksum"),
        (&[("erofs.fs.meta", meta), ("gzip.meta", &other_index)], GZIP, "gzindex.window"),
        (&[("erofs.fs.meta", b"?"), ("gzip.meta", index)], GZIP, "lsmt.short"),
    ] {
        let fixture = fixture();
        let annotations = [TARGET, (TURBO_TARGET_TYPES[0], target_type)];
        let error = fixture.lowest(GZIP, &annotations, &gzip(&archive(files))).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, reason), "{error}");
        assert!(fixture.names("1").is_empty(), "{reason}");
    }
}

/// The store seldom has the original: that it need not be fetched is what the format is for.
#[test]
fn a_turbo_layer_is_for_an_original_of_its_size() {
    let members = members();
    let original = include_bytes!("../../tests/fixtures/gzindex/base.tar.gz");
    let plain = include_bytes!("../../tests/fixtures/overlaybd/turbo/base.tar");
    let only = archive(&[("erofs.fs.meta", &members["erofs.fs.meta"])]);
    for (blob, target_type, target, reason) in [
        (TURBO, GZIP, &original[..], None),
        (TURBO, GZIP, &original[..original.len() - 1], Some("turbo.target-size")),
        (&gzip(&only), PLAIN, &plain[..], None),
        (&gzip(&only), PLAIN, &plain[..4096], Some("turbo.end")),
    ] {
        let fixture = fixture();
        let digest = fixture.store.insert(target).to_string();
        for name in TURBO_TARGETS {
            let annotations = [(name, digest.as_str()), (TURBO_TARGET_TYPES[0], target_type)];
            let outcome = fixture.lowest(GZIP, &annotations, blob);
            let refused = outcome.as_ref().err().map(|error| (error.kind(), error.reason()));
            assert_eq!(refused, reason.map(|reason| (Kind::Malformed, reason)), "{outcome:?}");
            assert_eq!(fixture.names("1").is_empty(), reason.is_some());
        }
    }
}

#[test]
fn an_ordinary_layer_is_left_to_the_next_differ_unless_it_is_asked_for() {
    let fixture = fixture();
    let declined = |mounts| {
        let error = fixture.apply(mounts, GZIP, &[], b"not even read").unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::NotImplemented, "apply.snapshot"), "{error}");
        assert!(fixture.names("1").is_empty());
    };
    declined(fixture.bind("1", "rw"));
    *fixture.known.record.lock().unwrap() = Some(Record::default());
    declined(fixture.bind("1", "rw"));
    fs::write(fixture.snapshot("2").join("block/config.v1.json"), "{}").unwrap();
    declined(fixture.over("1", "2"));
}

#[test]
fn a_layer_whose_place_in_its_device_is_not_known_is_refused_before_it_is_read() {
    let fixture = Fixture {
        overlaybd: Overlaybd { layers: OrdinaryLayers::Turbo, ..Overlaybd::default() },
        ..fixture()
    };
    let refused = |mounts| {
        let error = fixture.apply(mounts, GZIP, &[], b"not even read").unwrap_err();
        assert!(fixture.names("1").is_empty());
        (error.kind(), error.reason())
    };
    let (convert, parent) =
        (BTreeMap::from([(CONVERT.to_owned(), String::new())]), Some("parent".to_owned()));
    assert_eq!(refused(fixture.bind("1", "rw")), (Kind::Conflict, "overlaybd.parent"));
    // A layer below that another differ unpacked: this one goes there as well.
    let directory = (Kind::NotImplemented, "mount.no-device");
    assert_eq!(refused(fixture.over("1", "2")), directory);
    *fixture.known.record.lock().unwrap() = Some(Record { parent, labels: convert });
    *fixture.known.view.lock().unwrap() = fixture.bind("2", "ro");
    assert_eq!(refused(fixture.bind("1", "rw")), directory);
    *fixture.known.view.lock().unwrap() = vec![mount("bind", Path::new("/elsewhere/snapshots/2/fs"), &[])];
    assert_eq!(refused(fixture.bind("1", "rw")), (Kind::NotImplemented, "mount.outside-root"));
}

mod converted {
    use super::*;
    use crate::{
        call::{Cancel, Progress, Work},
        format::{
            ReadAt as _,
            erofs::{check, reader::Image},
        },
        overlaybd::snapshot,
        pipeline::Plan,
        snapshot::DeviceDir,
        view::LayeredDevice,
    };

    impl Fixture {
        fn with(layers: OrdinaryLayers) -> Self {
            let overlaybd =
                Overlaybd { layers, virtual_bytes: 1 << 26, kernel_index: true, ..Overlaybd::default() };
            let fixture = Self { overlaybd, ..fixture() };
            *fixture.known.record.lock().unwrap() = Some(Record::default());
            fixture
        }

        /// Commits a snapshot as the snapshotter does, on top of another one.
        fn commit(&self, id: &str, parent: Option<&str>) {
            let at = |id: &str, name: &str| self.snapshot(id).join(name).display().to_string();
            let mut lowers = match parent {
                Some(parent) => {
                    let text = fs::read(self.snapshot(parent).join("block/config.v1.json")).unwrap();
                    let config: serde_json::Value = serde_json::from_slice(&text).unwrap();
                    config["lowers"].as_array().unwrap().clone()
                }
                None => Vec::new(),
            };
            lowers.push(match self.snapshot(id).join("layer.tar").exists() {
                true => serde_json::json!({"targetFile": at(id, "layer.tar"), "file": at(id, "fs/overlaybd.commit")}),
                false => serde_json::json!({"dir": at(id, "fs")}),
            });
            let config = serde_json::json!({"lowers": lowers}).to_string();
            fs::write(self.snapshot(id).join("block/config.v1.json"), config).unwrap();
        }

        fn dir(&self, id: &str) -> DeviceDir {
            let roots = Roots::open(&[]).unwrap().with_overlaybd(&[self.scratch.path().to_owned()]).unwrap();
            roots.device_of(&self.bind(id, "ro")).unwrap()
        }

        fn device(&self, id: &str) -> LayeredDevice {
            let resources = Resources::new(self.limits.clone(), 0);
            let (cancel, progress) = (Cancel::new(), Progress::default());
            let lease = resources.budget.lease(&cancel).unwrap();
            let work = Work { cancel: &cancel, progress: &progress };
            snapshot::open(&self.dir(id), Plan { resources: &resources, lease: &lease, work }).unwrap()
        }
    }

    fn contents(device: &LayeredDevice) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(device.size_bytes()).unwrap()];
        device.read_exact_at(0, &mut bytes).unwrap();
        bytes
    }

    /// The contents of a file in the root directory of a device.
    fn file(device: &LayeredDevice, name: &str) -> Option<Vec<u8>> {
        let view = crate::view::ErofsView::open(
            crate::view::Volume::from(memory(&contents(device))),
            Vec::new(),
            (0, 0),
            "device".to_owned(),
            &Cancel::new(),
        );
        let view = view.unwrap();
        use crate::view::{At, View as _};
        let root = view.root().unwrap();
        let node = view.lookup(At { path: b"", node: &root }, name.as_bytes()).unwrap()?;
        let mut bytes = Vec::new();
        let whole = crate::tree::Extent { offset: 0, len: node.size_bytes };
        view.read(At { path: name.as_bytes(), node: &node }, &[whole], &mut |_, piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
        Some(bytes)
    }

    fn memory(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn ordinary_layers_become_a_device_with_their_merged_tree() {
        let large: Vec<u8> =
            (0..300_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        let lower = archive(&[("kept", b"below"), ("large", &large), ("gone", b"x"), ("changed", b"old")]);
        let upper = archive(&[(".wh.gone", b""), ("changed", b"new"), ("added", &large[..5000])]);
        let mut devices = Vec::new();
        for layers in [OrdinaryLayers::Turbo, OrdinaryLayers::Native] {
            let fixture = Fixture::with(layers);
            let applied = fixture.lowest(GZIP, &[], &gzip(&lower)).unwrap();
            assert_eq!(applied.descriptor.digest, Digest::sha256(&lower));
            fixture.commit("1", None);
            fixture.apply(fixture.over("2", "1"), PLAIN, &[], &upper).unwrap();
            fixture.commit("2", Some("1"));
            let kept = fixture.files("2").remove("layer.tar");
            let names = match layers {
                OrdinaryLayers::Turbo => {
                    assert!(kept.unwrap() == upper);
                    &["block/config.v1.json", "fs/overlaybd.commit", "layer.tar", "layer.tar.erofs"][..]
                }
                _ => &["block/config.v1.json", "fs/overlaybd.commit"],
            };
            assert_eq!(fixture.names("2"), names);
            let device = fixture.device("2");
            assert_eq!(device.size_bytes(), 1 << 26);
            for (name, want) in [
                ("kept", Some(&b"below"[..])),
                ("large", Some(&large)),
                ("gone", None),
                (".wh.gone", None),
                ("changed", Some(b"new")),
                ("added", Some(&large[..5000])),
            ] {
                assert!(file(&device, name).as_deref() == want, "{layers:?}: {name}");
            }
            devices.push(contents(&device));
        }
    }

    #[test]
    fn the_same_layer_gives_the_same_files_on_any_number_of_threads_and_however_it_is_compressed() {
        let layer = archive(&[("a", &[7; 100_000]), ("b", b"small")]);
        let mut all = Vec::new();
        for blob in [layer.clone(), gzip(&layer)] {
            let fixture = Fixture::with(OrdinaryLayers::Turbo);
            fixture.lowest(PLAIN, &[], &blob).unwrap();
            all.push(fixture.files("1"));
        }
        assert!(all[0] == all[1]);
        let index = &all[0]["layer.tar.erofs"];
        let tar = &all[0]["layer.tar"];
        // The index says that the archive is behind it.
        let whole = [&index[..], &tar[..]].concat();
        assert_eq!(Image::open(&whole[..]).unwrap().superblock().block_bits.size(), 512);
        let policy = check::Policy { devices: true, ..check::Policy::layer() };
        check::verify(&whole[..], &policy).unwrap();
        assert!(tar == &layer);
    }

    /// An index is a layer of its own, without the layers below.
    #[test]
    fn a_hard_link_to_a_file_below_leaves_the_archive_without_an_index() {
        let fixture = Fixture::with(OrdinaryLayers::Turbo);
        fixture.lowest(PLAIN, &[], &archive(&[("kept", b"below")])).unwrap();
        fixture.commit("1", None);
        let mut upper = ::tar::Builder::new(Vec::new());
        for (name, target) in [("also", "kept"), ("and", "also")] {
            let mut header = ::tar::Header::new_ustar();
            header.set_entry_type(::tar::EntryType::Link);
            header.set_mode(0o644);
            header.set_size(0);
            upper.append_link(&mut header, name, target).unwrap();
        }
        let mut own = ::tar::Header::new_ustar();
        own.set_size(5);
        own.set_mode(0o644);
        upper.append_data(&mut own, "added", &b"above"[..]).unwrap();
        let upper = upper.into_inner().unwrap();
        // An index of an earlier layer would show another archive.
        fs::write(fixture.snapshot("2").join("layer.tar.erofs"), b"an earlier index").unwrap();
        fixture.apply(fixture.over("2", "1"), PLAIN, &[], &upper).unwrap();
        fixture.commit("2", Some("1"));
        assert_eq!(fixture.names("2"), ["block/config.v1.json", "fs/overlaybd.commit", "layer.tar"]);
        let device = fixture.device("2");
        for (name, want) in [("also", b"below"), ("and", b"below"), ("kept", b"below"), ("added", b"above")] {
            assert_eq!(file(&device, name).as_deref(), Some(&want[..]), "{name}");
        }
        // What no layer below has is an error all the same.
        let error = fixture.apply(fixture.bind("3", "rw"), PLAIN, &[], &upper).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "tree.hardlink.target"));
        assert!(fixture.names("3").is_empty());
    }

    /// Layers of strangers say how long the index of a device is.
    #[test]
    fn the_indexes_of_the_layers_below_count_against_the_memory_of_the_request() {
        let layer = archive(&[("a", b"x")]);
        let mut fixture = Fixture::with(OrdinaryLayers::Native);
        fixture.limits.metadata_bytes = SHARE_BYTES;
        fixture.lowest(PLAIN, &[], &layer).unwrap();
        fixture.commit("1", None);
        fixture.apply(fixture.over("2", "1"), PLAIN, &[], &layer).unwrap();
        fs::remove_file(fixture.snapshot("2").join("fs/overlaybd.commit")).unwrap();
        // Each of them takes a megabyte while it is open.
        let path = fixture.snapshot("1").join("block/config.v1.json");
        let config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let lowers = vec![config["lowers"][0].clone(); 30];
        fs::write(&path, serde_json::json!({ "lowers": lowers }).to_string()).unwrap();
        let error = fixture.apply(fixture.over("2", "1"), PLAIN, &[], &layer).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.metadata"), "{error}");
        fixture.limits.metadata_bytes = 4 * SHARE_BYTES;
        fixture.apply(fixture.over("2", "1"), PLAIN, &[], &layer).unwrap();
    }

    #[test]
    fn the_layer_below_is_found_through_the_snapshotter_where_the_mounts_do_not_show_it() {
        let fixture = Fixture::with(OrdinaryLayers::AsLabelled);
        let labels = BTreeMap::from([(CONVERT.to_owned(), String::new())]);
        *fixture.known.record.lock().unwrap() = Some(Record { parent: None, labels: labels.clone() });
        fixture.lowest(PLAIN, &[], &archive(&[("kept", b"below")])).unwrap();
        fixture.commit("1", None);
        *fixture.known.record.lock().unwrap() = Some(Record { parent: Some("parent".to_owned()), labels });
        *fixture.known.view.lock().unwrap() = fixture.bind("1", "ro");
        fixture.apply(fixture.bind("2", "rw"), PLAIN, &[], &archive(&[("added", b"above")])).unwrap();
        fixture.commit("2", Some("1"));
        let device = fixture.device("2");
        assert_eq!(file(&device, "kept").as_deref(), Some(&b"below"[..]));
        assert_eq!(file(&device, "added").as_deref(), Some(&b"above"[..]));
    }

    #[test]
    fn what_no_device_can_be_made_of_is_refused_and_leaves_nothing() {
        let layer = archive(&[("a", b"x")]);
        let fixture = Fixture::with(OrdinaryLayers::Native);
        let refused = |fixture: &Fixture, mounts, blob: &[u8]| {
            let error = fixture.apply(mounts, PLAIN, &[], blob).unwrap_err();
            assert!(fixture.names("2").iter().all(|name| name.starts_with("block/")), "{error}");
            (error.kind(), error.reason())
        };
        assert_eq!(refused(&fixture, fixture.bind("2", "rw"), &layer[..100]).0, Kind::Malformed);
        fixture.lowest(PLAIN, &[], &layer).unwrap();
        fixture.commit("1", None);
        let commit = fixture.snapshot("1").join("fs/overlaybd.commit");
        let good = fs::read(&commit).unwrap();
        let mut bad = good.clone();
        bad[600] ^= 1;
        fs::write(&commit, &bad).unwrap();
        let (kind, reason) = refused(&fixture, fixture.over("2", "1"), &layer);
        assert_eq!((kind, reason), (Kind::DataLoss, "zfile.block.checksum"));
        fs::remove_file(&commit).unwrap();
        let missing = (Kind::NotFound, "overlaybd.lower.missing");
        assert_eq!(refused(&fixture, fixture.over("2", "1"), &layer), missing);
        let config = r#"{"lowers": [{"file": "/etc/passwd"}]}"#;
        fs::write(fixture.snapshot("1").join("block/config.v1.json"), config).unwrap();
        assert_eq!(refused(&fixture, fixture.over("2", "1"), &layer), (Kind::Denied, "mount.foreign"));
        let ext4 = Fixture {
            overlaybd: Overlaybd {
                flavour: crate::kind::overlaybd::Flavour::Ext4,
                ..fixture.overlaybd.clone()
            },
            ..Fixture::with(OrdinaryLayers::Native)
        };
        assert_eq!(
            refused(&ext4, ext4.bind("2", "rw"), b"not even read"),
            (Kind::NotImplemented, "overlaybd.ext4")
        );
    }
}
