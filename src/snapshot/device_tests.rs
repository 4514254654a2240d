use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
};

use super::{
    super::{Access, Roots, lists_tests::mounts},
    *,
};
use crate::error::{Classify, Kind};

/// A root of the overlaybd snapshotter, `B` in lists, with the snapshots 1 and 2, committed, and 3, active.
struct Fixture {
    scratch: tempfile::TempDir,
    roots: Roots,
}

fn fixture() -> Fixture {
    let scratch = tempfile::Builder::new().suffix(".device").tempdir().unwrap();
    for id in ["1", "2", "3"] {
        let snapshot = scratch.path().join("overlaybd/snapshots").join(id);
        for name in ["fs", "work", "block/mountpoint"] {
            fs::create_dir_all(snapshot.join(name)).unwrap();
        }
        fs::set_permissions(&snapshot, fs::Permissions::from_mode(0o700)).unwrap();
        if id != "3" {
            fs::write(snapshot.join("fs/overlaybd.commit"), id).unwrap();
            fs::write(snapshot.join(DEVICE_CONFIG), "{}").unwrap();
        }
    }
    let (there, absent) = (scratch.path().join("overlaybd"), scratch.path().join("absent"));
    let roots = Roots::open(&[]).unwrap().with_overlaybd(&[there, absent]).unwrap();
    Fixture { scratch, roots }
}

impl Fixture {
    fn mounts(&self, list: &str) -> Vec<Mount> {
        mounts(list, &[("B", &self.scratch.path().join("overlaybd"))])
    }

    fn snapshot(&self, id: &str) -> PathBuf {
        self.scratch.path().join("overlaybd/snapshots").join(id)
    }

    fn below(&self, list: &str) -> Result<Option<String>, MountError> {
        let found = self.roots.device_below(&self.mounts(list))?;
        Ok(found.map(|found| found.path().rsplit('/').next().unwrap().to_owned()))
    }
}

const OVERLAY: &str = "overlay overlay [workdir=B/snapshots/3/work upperdir=B/snapshots/3/fs";

#[test]
fn every_form_the_overlaybd_snapshotter_emits_leads_to_its_directory_and_the_one_below() {
    let fixture = fixture();
    for (case, list, id, access, below) in [
        (
            "first layer, or a conversion",
            "bind B/snapshots/3/fs [rw rbind]".to_owned(),
            "3",
            Access::Active,
            None,
        ),
        (
            "layer",
            format!("{OVERLAY} lowerdir=B/snapshots/2/fs:B/snapshots/1/fs]"),
            "3",
            Access::Active,
            Some("2"),
        ),
        (
            "container",
            format!("{OVERLAY} lowerdir=B/snapshots/2/block/mountpoint]"),
            "3",
            Access::Active,
            Some("2"),
        ),
        ("view", "bind B/snapshots/2/fs [ro rbind]".to_owned(), "2", Access::View, None),
    ] {
        let found = fixture.roots.resolve(&fixture.mounts(&list)).unwrap();
        assert_eq!((found.id(), found.access()), (id, access), "{case}");
        assert_eq!(fixture.below(&list).unwrap().as_deref(), below, "{case}");
        let sets = found.publishes().iter().map(|set| *set.names.last().unwrap()).collect::<Vec<_>>();
        assert_eq!(sets, ["fs/overlaybd.commit", "fs/trace", "fs/.turbo.ociv1"], "{case}");
    }
    for list in ["bind B/snapshots/2/block/mountpoint [ro rbind]", "bind B/snapshots/2/fs [ro rbind]"] {
        let device = fixture.roots.device_of(&fixture.mounts(list)).unwrap();
        assert!(device.path().ends_with("/snapshots/2"), "{list}");
        assert!(device.config().unwrap().is_some() && device.is_described());
    }
}

#[test]
fn a_layer_for_a_mounted_device_is_left_to_a_differ_that_unpacks() {
    let fixture = fixture();
    let list = fixture.mounts("bind B/snapshots/3/block/mountpoint [rw nodev]");
    let error = fixture.roots.resolve(&list).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::NotImplemented, "mount.device"));
}

#[test]
fn what_is_below_an_overlaybd_root_but_odd_is_refused() {
    let fixture = fixture();
    let reason = |list: &str| fixture.roots.resolve(&fixture.mounts(list)).unwrap_err().reason();
    for list in [
        "bind B/snapshots/3/block [rw]",
        "bind B/snapshots/3/block/mountpoint/x [rw]",
        "bind B/snapshots/3/layer.tar [rw]",
        "bind B/snapshots/new-3/fs [rw]",
        "bind B/snapshots/../3/fs [rw]",
    ] {
        assert_eq!(reason(list), "mount.path", "{list}");
    }
    assert_eq!(reason("bind B/snapshots/9/fs [rw]"), "mount.missing");
    let below = |lower: &str| fixture.below(&format!("{OVERLAY} lowerdir={lower}]")).unwrap_err().reason();
    assert_eq!(below("/elsewhere/snapshots/1/fs"), "mount.outside-root");
    assert_eq!(below("B/snapshots/1/work"), "mount.path");
    fs::set_permissions(fixture.snapshot("2"), fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(below("B/snapshots/2/fs"), "mount.owner");
}

#[test]
fn a_description_names_files_of_snapshots_below_its_own_root_only() {
    let fixture = fixture();
    let device = fixture.roots.device_of(&fixture.mounts("bind B/snapshots/2/fs [ro]")).unwrap();
    let root = fixture.scratch.path().join("overlaybd");
    let open = |path: &str| device.open(&path.replace("B/", &format!("{}/", root.display())));
    assert!(open("B/snapshots/1/fs/overlaybd.commit").unwrap().is_some());
    assert!(open("B/snapshots/1/layer.tar").unwrap().is_none(), "absent");
    symlink("/etc/passwd", fixture.snapshot("1").join("fs/link")).unwrap();
    fs::write(fixture.snapshot("1").join("fs/writable"), "").unwrap();
    fs::set_permissions(fixture.snapshot("1").join("fs/writable"), fs::Permissions::from_mode(0o666))
        .unwrap();
    for (path, reason) in [
        ("/etc/passwd", "mount.foreign"),
        ("B/metadata.db", "mount.foreign"),
        ("B/snapshots/1", "mount.foreign"),
        ("B/snapshots/x/fs/overlaybd.commit", "mount.foreign"),
        ("B/snapshots/1/../1/fs/overlaybd.commit", "mount.foreign"),
        ("B/snapshots/1//fs/overlaybd.commit", "mount.foreign"),
        ("snapshots/1/fs/overlaybd.commit", "mount.foreign"),
        ("B/snapshots/1/fs/link", "mount.link"),
        ("B/snapshots/1/fs", "mount.file"),
        ("B/snapshots/1/fs/writable", "mount.owner"),
    ] {
        let error = open(path).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Denied, reason), "{path}: {error}");
    }
}

#[test]
fn the_writable_layer_is_the_sealed_file_or_the_pair() {
    let fixture = fixture();
    let device =
        || fixture.roots.device_of(&fixture.mounts("bind B/snapshots/3/block/mountpoint [rw]")).unwrap();
    assert!(device().writable().unwrap().is_none());
    let [data, index] = WRITABLE.map(|name| fixture.snapshot("3").join(name));
    fs::write(data, "").unwrap();
    assert_eq!(device().writable().unwrap_err().reason(), "mount.missing");
    fs::write(index, "").unwrap();
    assert!(matches!(device().writable().unwrap(), Some(Writable::Pair { .. })));
    fs::write(fixture.snapshot("3").join(SEALED), "").unwrap();
    assert!(matches!(device().writable().unwrap(), Some(Writable::Sealed(_))));
}
