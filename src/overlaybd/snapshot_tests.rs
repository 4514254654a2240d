use std::{fs, path::PathBuf};

use super::*;
use crate::{
    call::{Cancel, Progress, Work},
    error::Kind,
    format::{
        ReadAt as _, Sink as _,
        lsmt::{CommitOptions, Device, Layer, NewUpper, Upper, Uuid, Writable as Form, Writer},
    },
    limits::Limits,
    pipeline::Resources,
    snapshot::{Mount, Roots},
};

const SIZE: u64 = 1 << 20;

/// A root of the overlaybd snapshotter.
struct Fixture(tempfile::TempDir);

impl Fixture {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, id: &str, name: &str) -> PathBuf {
        self.0.path().join("snapshots").join(id).join(name)
    }

    fn write(&self, id: &str, name: &str, bytes: &[u8]) {
        let path = self.path(id, name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::create_dir_all(self.path(id, "fs")).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// A committed snapshot whose layer has `byte` at the sector `byte`, described with these lowers.
    fn committed(&self, id: &str, byte: u8, lowers: &[&str]) {
        let mut layer = Vec::new();
        let device = Device::new(vec![layer_of(byte)]).unwrap();
        device.commit(&CommitOptions::default(), &mut layer).unwrap();
        self.write(id, "fs/overlaybd.commit", &layer);
        self.describe(id, lowers);
    }

    fn describe(&self, id: &str, lowers: &[&str]) {
        let lowers = lowers.iter().map(|id| serde_json::json!({"dir": self.path(id, "fs")}));
        let config = serde_json::json!({"lowers": lowers.collect::<Vec<_>>()});
        self.write(id, "block/config.v1.json", config.to_string().as_bytes());
    }

    /// A container's snapshot, whose writable layer has `byte` at the sector `byte`.
    fn writable(&self, id: &str, byte: u8) {
        let new = NewUpper {
            kind: Form::Append,
            virtual_size: SIZE,
            uuid: Uuid::parse("0b0b0b0b-1111-4111-8111-000000000001").unwrap(),
            parent_uuid: Uuid::NULL,
        };
        let (mut data, mut index) = (Vec::new(), Vec::new());
        Upper::create(new, &mut data, &mut index).unwrap().write(&layer_of(byte), &Vec::new()).unwrap();
        self.write(id, "block/writable_data", &data);
        self.write(id, "block/writable_index", &index);
    }

    fn dir(&self, id: &str) -> DeviceDir {
        let roots = Roots::open(&[]).unwrap().with_overlaybd(&[self.0.path().to_owned()]).unwrap();
        let options = ["ro", "rbind"].map(str::to_owned).to_vec();
        let source = self.path(id, "fs").display().to_string();
        let mount = Mount { kind: "bind".to_owned(), source, target: String::new(), options };
        roots.device_of(&[mount]).unwrap()
    }
}

fn planned<T>(work: impl FnOnce(Plan<'_>) -> T) -> T {
    let (resources, cancel, progress) =
        (Resources::new(Limits::default(), 0), Cancel::new(), Progress::default());
    let lease = resources.budget.lease(&cancel).unwrap();
    let plan = Work { cancel: &cancel, progress: &progress };
    work(Plan { resources: &resources, lease: &lease, work: plan })
}

fn written(dir: &DeviceDir) -> Result<LayeredDevice> {
    planned(|plan| written_layer(dir, plan))
}

fn layer_of(byte: u8) -> Layer<Vec<u8>> {
    let mut writer = Writer::new(Vec::new(), SIZE);
    writer.write_at(u64::from(byte) * 512, &[byte; 512]).unwrap();
    writer.finish().unwrap()
}

/// The sectors that are not zeros; each holds its number.
fn sectors(device: &LayeredDevice) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(device.size_bytes()).unwrap()];
    device.read_exact_at(0, &mut bytes).unwrap();
    bytes.chunks(512).filter(|sector| sector[0] != 0).map(|sector| sector[0]).collect()
}

#[test]
fn a_snapshot_is_the_next_one_when_it_adds_one_layer() {
    let fixture = Fixture::new();
    fixture.committed("1", 1, &["1"]);
    fixture.committed("2", 2, &["1", "2"]);
    fixture.committed("3", 3, &["1", "2", "3"]);
    fixture.committed("4", 4, &["1", "4"]);
    fixture.committed("5", 5, &["1", "2", "4"]);
    let next = |older: Option<&str>, newer: &str| {
        let older = older.map(|id| fixture.dir(id));
        is_next(older.as_ref(), &fixture.dir(newer))
    };
    for (older, newer, want) in [
        (None, "1", true),
        (None, "2", false),
        (Some("1"), "2", true),
        (Some("2"), "3", true),
        (Some("1"), "3", false),
        (Some("1"), "1", false),
        (Some("2"), "1", false),
        (Some("2"), "4", false),
        (Some("1"), "4", true),
        (Some("4"), "5", false),
        (Some("2"), "5", true),
    ] {
        assert_eq!(next(older, newer).unwrap(), want, "{older:?}, {newer}");
    }
    fixture.write("6", "fs/file", b"");
    for (older, newer) in [(None, "6"), (Some("6"), "1"), (Some("1"), "6")] {
        assert_eq!(next(older, newer).unwrap_err().reason(), "mount.no-device", "{older:?}, {newer}");
    }
}

#[test]
fn the_own_layer_of_a_snapshot_is_the_writable_one_sealed_or_not_or_the_topmost() {
    let fixture = Fixture::new();
    fixture.committed("1", 1, &["1"]);
    fixture.committed("2", 2, &["1", "2"]);
    assert_eq!(sectors(&planned(|plan| open(&fixture.dir("2"), plan)).unwrap()), [1, 2]);
    assert_eq!(sectors(&planned(|plan| top_layer(&fixture.dir("2"), plan)).unwrap()), [2]);
    fixture.writable("3", 3);
    fixture.describe("3", &["1", "2"]);
    assert_eq!(sectors(&written(&fixture.dir("3")).unwrap()), [3]);
    // Sealing leaves the data behind for a moment, which counts no more.
    let pair = crate::overlaybd::life::Pair {
        data: fixture.path("3", "block/writable_data"),
        index: fixture.path("3", "block/writable_index"),
    };
    pair.seal().unwrap();
    fs::rename(&pair.data, fixture.path("3", "fs/overlaybd.sealed")).unwrap();
    for index in [true, false] {
        assert_eq!(pair.index.exists(), index);
        assert_eq!(sectors(&written(&fixture.dir("3")).unwrap()), [3]);
        let _may_be_gone = fs::remove_file(&pair.index);
    }
    // A sealed layer that is cut is damaged, and named.
    let sealed = fixture.path("3", "fs/overlaybd.sealed");
    let bytes = fs::read(&sealed).unwrap();
    fs::write(&sealed, &bytes[..bytes.len() - 1]).unwrap();
    let error = written(&fixture.dir("3")).unwrap_err();
    assert_eq!(error.kind(), Kind::DataLoss, "{error}");
    assert!(error.to_string().contains("snapshots/3"), "{error}");
    // Half of a pair is no layer.
    fixture.write("4", "block/writable_data", &bytes);
    assert_eq!(written(&fixture.dir("4")).unwrap_err().reason(), "mount.missing");
}
