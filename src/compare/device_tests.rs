//! Layers of devices: what a container wrote to one, or changed in an overlay above one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::*;
use crate::{
    compare::Options,
    format::{
        ReadAt,
        erofs::{check, reader::Image},
        lsmt,
    },
    limits::Limits,
    overlaybd::blob::Blob,
    pipeline::Resources,
    snapshot::Mount,
    store::{Ingest, Memory},
};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

fn vector(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/overlaybd").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A root of the overlaybd snapshotter with three snapshots: 1 and 2 are the two layers of a device, of which 3 has
/// the writable one.
struct Fixture {
    scratch: tempfile::TempDir,
    store: Memory,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self { scratch: tempfile::tempdir().unwrap(), store: Memory::new() };
        for id in ["1", "2", "3", "4"] {
            for name in ["fs", "work", "block/mountpoint"] {
                fs::create_dir_all(fixture.at(id, name)).unwrap();
            }
        }
        fixture
    }

    /// The device of the vectors that layers write to in sectors.
    fn written() -> Self {
        let fixture = Self::new();
        fixture.put("1", "fs/overlaybd.commit", &vector("lsmt/ops2.commit"));
        fixture.describe("1", &["1"], "");
        fixture.put("3", "block/writable_data", &vector("lsmt/over2.rw.data"));
        fixture.put("3", "block/writable_index", &vector("lsmt/over2.rw.index"));
        let at = |name| fixture.at("3", name);
        let upper = format!(
            ", \"upper\": {{\"data\": {:?}, \"index\": {:?}, \"vsize\": 64}}",
            at("block/writable_data"),
            at("block/writable_index")
        );
        fixture.describe("3", &["1"], &upper);
        fixture
    }

    /// A device with a file system, and the upper directory of a container above it.
    fn changed() -> Self {
        let fixture = Self::new();
        fixture.put("1", "layer.tar", &vector("turbo/base.tar"));
        fixture.put("1", "fs/overlaybd.commit", &vector("turbo/base.erofs.fs.meta"));
        fixture.describe("1", &["1"], "");
        fs::create_dir(fixture.at("3", "fs/app")).unwrap();
        fs::write(fixture.at("3", "fs/app/new"), vec![7; 100_000]).unwrap();
        fs::write(fixture.at("3", "fs/etc"), "a file now").unwrap();
        fixture
    }

    fn at(&self, id: &str, name: &str) -> PathBuf {
        self.scratch.path().join("snapshots").join(id).join(name)
    }

    fn put(&self, id: &str, name: &str, bytes: &[u8]) {
        fs::write(self.at(id, name), bytes).unwrap();
    }

    fn describe(&self, id: &str, lowers: &[&str], more: &str) {
        let lower = |id: &&str| match self.at(id, "layer.tar").exists() {
            true => format!(
                "{{\"file\": {:?}, \"targetFile\": {:?}}}",
                self.at(id, "fs/overlaybd.commit"),
                self.at(id, "layer.tar")
            ),
            false => format!("{{\"dir\": {:?}}}", self.at(id, "fs")),
        };
        let lowers: Vec<_> = lowers.iter().map(lower).collect();
        self.put(
            id,
            "block/config.v1.json",
            format!("{{\"lowers\": [{}]{more}}}", lowers.join(", ")).as_bytes(),
        );
    }

    fn bind(&self, id: &str, name: &str, access: &str) -> Vec<Mount> {
        let source = self.at(id, name).display().to_string();
        let options = vec![access.to_owned(), "rbind".to_owned()];
        vec![Mount { kind: "bind".into(), source, target: String::new(), options }]
    }

    fn over(&self, id: &str, lower: &str) -> Vec<Mount> {
        let options = vec![
            format!("workdir={}", self.at(id, "work").display()),
            format!("upperdir={}", self.at(id, "fs").display()),
            format!("lowerdir={}", self.at(lower, "fs").display()),
        ];
        vec![Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options }]
    }

    /// The layer that leads from the device of snapshot 1 to what container 3 wrote to it.
    fn of_writable(&self) -> Request {
        self.request(self.bind("1", "fs", "ro"), self.bind("3", "block/mountpoint", "rw"))
    }

    /// The layer of the changes in the upper directory of container 3.
    fn of_upper(&self) -> Request {
        let mut request = self.request(self.bind("1", "fs", "ro"), self.over("3", "1"));
        request.labels.insert(VERSION.to_owned(), NATIVE_VERSION.to_owned());
        request
    }

    fn request(&self, left: Vec<Mount>, right: Vec<Mount>) -> Request {
        Request {
            left,
            right,
            media_type: TAR.to_owned(),
            reference: String::new(),
            labels: BTreeMap::new(),
            source_date_epoch: None,
        }
    }

    fn differ(&self, sink: Arc<dyn BlobSink>, helpers: usize) -> Differ {
        let roots = Roots::open(&[]).unwrap().with_overlaybd(&[self.scratch.path().to_owned()]).unwrap();
        let limits = Limits::without_reserve();
        let options = Options::in_directory(self.scratch.path().to_owned());
        Differ::new(sink, Arc::new(roots), Composer::new(options, Resources::new(limits, helpers)))
    }

    /// The descriptor and the bytes of the layer.
    fn layer(&self, request: &Request) -> (Descriptor, Vec<u8>) {
        let mut all = Vec::new();
        for helpers in [0, 1, 7] {
            let differ = self.differ(Arc::new(self.store.clone()), helpers);
            let compared = differ.compare(&call(), request).unwrap();
            assert_eq!(compared.stats.diff_id, compared.descriptor.digest);
            let bytes = self.store.bytes(&compared.descriptor.digest).unwrap().to_vec();
            all.push((compared.descriptor, bytes));
        }
        assert!(all.iter().all(|found| *found == all[0]), "threads change the layer");
        all.swap_remove(0)
    }

    fn refused(&self, request: &Request) -> (Kind, &'static str) {
        let error = self.differ(Arc::new(Discarding), 0).compare(&call(), request).unwrap_err();
        (error.kind(), error.reason())
    }
}

fn call() -> Call {
    Call::new("default".parse().unwrap())
}

/// A store in which no blob may appear.
struct Discarding;

impl BlobSink for Discarding {
    fn ingest(&self, _: &Call, _: &str) -> Result<Box<dyn Ingest>> {
        Ok(Box::new(Self))
    }
}

impl Ingest for Discarding {
    fn write(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn commit(self: Box<Self>, _: &Digest, _: &BTreeMap<String, String>) -> Result<Stored> {
        panic!("committed")
    }
}

fn annotation<'a>(descriptor: &'a Descriptor, name: &str) -> Option<&'a str> {
    descriptor.annotations.get(name).map(String::as_str)
}

fn sha256(device: &impl ReadAt) -> String {
    let mut bytes = vec![0; usize::try_from(device.size_bytes()).unwrap()];
    device.read_exact_at(0, &mut bytes).unwrap();
    Digest::sha256(&bytes).hex().to_owned()
}

#[test]
fn what_a_container_wrote_to_a_device_is_one_layer_of_it() {
    let fixture = Fixture::written();
    let (descriptor, blob) = fixture.layer(&fixture.of_writable());
    assert_eq!(annotation(&descriptor, VERSION), Some("0.1.0"));
    assert_eq!(annotation(&descriptor, BLOB_DIGEST), Some(descriptor.digest.to_string().as_str()));
    assert_eq!(annotation(&descriptor, BLOB_SIZE), Some(descriptor.size_bytes.to_string().as_str()));
    // The layer holds no superblock.
    assert_eq!(annotation(&descriptor, FS_TYPE), None);
    let layers = [vector("lsmt/ops2.commit"), blob];
    let layers = layers.iter().map(|layer| lsmt::Layer::open(Blob::layer(&layer[..]).unwrap()).unwrap());
    let device = lsmt::Device::new(layers.collect()).unwrap();
    // `chain ops2<over2` of the vectors.
    assert_eq!(sha256(&device), "7e9c7e9d7462e0de33b3a7727b5bd33c7155c38a31faafca63ea5e9af5e1aa74");
}

#[test]
fn a_layer_is_the_same_before_and_after_it_is_sealed_and_committed() {
    let fixture = Fixture::written();
    let (want, _) = fixture.layer(&fixture.of_writable());
    fixture.put("3", "fs/overlaybd.sealed", &vector("lsmt/over2.sealed"));
    for name in ["block/writable_data", "block/writable_index"] {
        fs::remove_file(fixture.at("3", name)).unwrap();
    }
    assert_eq!(fixture.layer(&fixture.of_writable()).0, want);
    fixture.describe("3", &["1", "3"], "");
    let mut request = fixture.request(fixture.bind("1", "fs", "ro"), fixture.bind("3", "fs", "ro"));
    request.labels.insert(VERSION.to_owned(), NATIVE_VERSION.to_owned());
    assert_eq!(fixture.layer(&request).0, want);
    // Without a parent its lowest layer.
    request.right = fixture.bind("1", "fs", "ro");
    request.left = Vec::new();
    let (_, blob) = fixture.layer(&request);
    let layer = Blob::layer(&blob[..]).unwrap();
    let device = lsmt::Device::new(vec![lsmt::Layer::open(layer).unwrap()]).unwrap();
    assert_eq!(sha256(&device), "ce38b8d7033e9645567cc3a99cd0109667a295b6e738be621841c2e38d9fea31");
}

#[test]
fn changes_above_a_device_are_one_layer_of_it_when_that_is_asked_for() {
    let fixture = Fixture::changed();
    let (descriptor, blob) = fixture.layer(&fixture.of_upper());
    assert_eq!(annotation(&descriptor, FS_TYPE), Some("erofs"));
    assert_eq!(annotation(&descriptor, BLOB_DIGEST), Some(descriptor.digest.to_string().as_str()));
    let (metadata, archive) = (vector("turbo/base.erofs.fs.meta"), vector("turbo/base.tar"));
    let open = |bytes| Blob::layer(bytes).unwrap();
    let lower = lsmt::Layer::open_turbo(open(&metadata[..]), Blob::target(&archive[..]).unwrap()).unwrap();
    let device = lsmt::Device::new(vec![lower, lsmt::Layer::open(open(&blob[..])).unwrap()]).unwrap();
    check::verify(&device, &check::Policy::layer()).unwrap();
    let image = Image::open(&device).unwrap();
    let read = |path: &[u8]| {
        let node = image.find(path).unwrap()?;
        let mut bytes = vec![0; usize::try_from(node.inode.size_bytes).unwrap()];
        image.read_data(&node, 0, &mut bytes).unwrap();
        Some(bytes)
    };
    assert_eq!(read(b"app/new"), Some(vec![7; 100_000]));
    assert_eq!(read(b"etc").as_deref(), Some(&b"a file now"[..]));
    assert!(read(b"app/lib/libx.so").is_some(), "the rest of the device");
    // Without the label it is an ordinary layer.
    let mut request = fixture.of_upper();
    request.labels.clear();
    let (descriptor, _) = fixture.layer(&request);
    assert!(descriptor.annotations.is_empty());
    // Every other type is what its name says.
    let request = Request { media_type: format!("{TAR}+gzip"), ..fixture.of_upper() };
    let compared = fixture.differ(Arc::new(fixture.store.clone()), 0).compare(&call(), &request).unwrap();
    assert!(compared.descriptor.annotations.is_empty());
}

#[test]
fn a_layer_of_a_device_leads_from_the_device_below_and_from_no_other() {
    let conflict = (Kind::Conflict, "diff.device");
    let fixture = Fixture::written();
    fixture.put("2", "fs/overlaybd.commit", &vector("lsmt/over2.commit"));
    fixture.describe("2", &["1", "2"], "");
    let sides = |left, right| fixture.refused(&fixture.request(left, right));
    let writable = || fixture.bind("3", "block/mountpoint", "rw");
    assert_eq!(sides(fixture.bind("2", "fs", "ro"), writable()), conflict, "another device");
    assert_eq!(sides(Vec::new(), writable()), conflict, "nothing");
    assert_eq!(sides(fixture.bind("4", "fs", "ro"), writable()), conflict, "no device");
    let asked = |left, right| {
        let mut request = fixture.request(left, right);
        request.labels.insert(VERSION.to_owned(), String::new());
        fixture.refused(&request)
    };
    assert_eq!(asked(Vec::new(), fixture.bind("2", "fs", "ro")), conflict, "two layers at once");
    assert_eq!(asked(fixture.bind("2", "fs", "ro"), fixture.bind("1", "fs", "ro")), conflict, "backwards");
    let fixture = Fixture::changed();
    let mut request = fixture.of_upper();
    request.left = Vec::new();
    assert_eq!(fixture.refused(&request), conflict);
    // A lowest layer needs no older side.
    let fixture = Fixture::written();
    fixture.describe("3", &[], ", \"upper\": {\"data\": \"x\", \"index\": \"y\"}");
    let request = Request { left: Vec::new(), ..fixture.of_writable() };
    fixture.layer(&request);
}

type Damage = fn(&Fixture);

#[test]
fn a_device_with_missing_or_damaged_files_is_refused_and_no_blob_appears() {
    fn edit(fixture: &Fixture, id: &str, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(fixture.at(id, name)).unwrap();
        edit(&mut bytes);
        fixture.put(id, name, &bytes);
    }
    let cases: [(&str, Damage, (Kind, &str)); 10] = [
        (
            "the layer below is missing",
            |fixture| fs::remove_file(fixture.at("1", "fs/overlaybd.commit")).unwrap(),
            (Kind::NotFound, "overlaybd.lower.missing"),
        ),
        (
            "its archive is missing",
            |fixture| fs::remove_file(fixture.at("1", "layer.tar")).unwrap(),
            (Kind::NotFound, "overlaybd.lower.missing"),
        ),
        (
            "the layer below is damaged",
            |fixture| edit(fixture, "1", "fs/overlaybd.commit", |bytes| bytes[600] ^= 1),
            (Kind::DataLoss, "zfile.block.checksum"),
        ),
        (
            "its archive is another one",
            |fixture| edit(fixture, "1", "layer.tar", |bytes| bytes.truncate(2000)),
            (Kind::DataLoss, "overlaybd.target.size"),
        ),
        (
            "it is no layer",
            |fixture| fixture.put("1", "fs/overlaybd.commit", b"no layer"),
            (Kind::DataLoss, "lsmt.short"),
        ),
        (
            "it is its own archive",
            |fixture| {
                fs::remove_file(fixture.at("1", "layer.tar")).unwrap();
                fs::hard_link(fixture.at("1", "fs/overlaybd.commit"), fixture.at("1", "layer.tar")).unwrap();
            },
            (Kind::Malformed, "overlaybd.config.cycle"),
        ),
        (
            "its description names a file of the host",
            |fixture| {
                fixture.put("1", "block/config.v1.json", br#"{"lowers": [{"file": "/etc/passwd"}]}"#);
            },
            (Kind::Denied, "mount.foreign"),
        ),
        (
            "its description names an archive of the host",
            |fixture| {
                let file = fixture.at("1", "fs/overlaybd.commit");
                let text = format!(r#"{{"lowers": [{{"file": {file:?}, "targetFile": "/etc/passwd"}}]}}"#);
                fixture.put("1", "block/config.v1.json", text.as_bytes());
            },
            (Kind::Denied, "mount.foreign"),
        ),
        (
            "its description is none",
            |fixture| fixture.put("1", "block/config.v1.json", b"{"),
            (Kind::Malformed, "overlaybd.config.json"),
        ),
        (
            "its description is empty",
            |fixture| fixture.put("1", "block/config.v1.json", b"{}"),
            (Kind::Malformed, "overlaybd.config.empty"),
        ),
    ];
    for (case, damage, want) in cases {
        let fixture = Fixture::changed();
        damage(&fixture);
        assert_eq!(fixture.refused(&fixture.of_upper()), want, "{case}");
    }
    let cases: [(&str, Damage, (Kind, &str)); 5] = [
        (
            "the index of the writable layer is missing",
            |fixture| fs::remove_file(fixture.at("3", "block/writable_index")).unwrap(),
            (Kind::Conflict, "mount.missing"),
        ),
        (
            "its index is that of another layer",
            |fixture| fixture.put("3", "block/writable_index", &vector("lsmt/ops2.rw.index")),
            (Kind::DataLoss, "lsmt.pair"),
        ),
        (
            "its data is cut off",
            |fixture| edit(fixture, "3", "block/writable_data", |bytes| bytes.truncate(5000)),
            (Kind::DataLoss, "lsmt.entry.data"),
        ),
        (
            "it is sealed and damaged",
            |fixture| fixture.put("3", "fs/overlaybd.sealed", &vector("lsmt/over2.rw.data")),
            (Kind::DataLoss, "lsmt.magic"),
        ),
        (
            "it is outside the root",
            |fixture| {
                for name in ["block/writable_data", "block/writable_index"] {
                    fs::remove_file(fixture.at("3", name)).unwrap();
                }
                fixture.describe(
                    "3",
                    &["1"],
                    ", \"upper\": {\"data\": \"/etc/passwd\", \"index\": \"/etc/group\"}",
                );
            },
            (Kind::Denied, "mount.foreign"),
        ),
    ];
    for (case, damage, want) in cases {
        let fixture = Fixture::written();
        damage(&fixture);
        assert_eq!(fixture.refused(&fixture.of_writable()), want, "{case}");
    }
}
