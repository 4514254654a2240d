use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
};

use super::*;
use crate::snapshot::{DEVICE_LAYER, LAYER, MERGED};

/// A root with the snapshots 1 to 3, each with a layer.
struct Fixture {
    scratch: tempfile::TempDir,
    roots: Roots,
}

fn fixture() -> Fixture {
    let scratch = tempfile::Builder::new().suffix(".survey").tempdir().unwrap();
    for id in ["1", "2", "3"] {
        let directory = scratch.path().join("snapshots").join(id);
        fs::create_dir_all(directory.join("fs")).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(directory.join(".erofslayer"), "").unwrap();
        fs::write(directory.join("layer.erofs"), id).unwrap();
    }
    let roots = Roots::open(&[scratch.path().to_owned()]).unwrap();
    Fixture { scratch, roots }
}

impl Fixture {
    fn survey(&self) -> Survey<'_> {
        self.roots.surveys().next().unwrap()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.scratch.path().join("snapshots").join(name)
    }
}

#[test]
fn the_mounts_of_a_survey_are_those_of_the_snapshotter() {
    let fixture = fixture();
    let survey = fixture.survey();
    for parents in [&[][..], &[1], &[2, 1]] {
        let mounts = survey.active(3, parents);
        let found = fixture.roots.resolve(&mounts).unwrap();
        assert_eq!(found.id(), "3");
        assert_eq!(found.publishes(), [&LAYER, &MERGED]);
        let below = fixture.roots.parents(&mounts).unwrap().layers;
        let below: Vec<_> = below.iter().map(|layer| layer.path.clone()).collect();
        let want: Vec<_> = parents.iter().map(|id| survey.layer(*id)).collect();
        assert_eq!(below, want);
    }
    assert_eq!(fixture.roots.stack(&survey.view(2)).unwrap().layers.len(), 1);
    assert!(survey.is_in(&survey.view(2), 2) && !survey.is_in(&survey.view(2), 1));
}

#[test]
fn only_directories_with_numbers_are_snapshots() {
    let fixture = fixture();
    fs::create_dir(fixture.at("new-17")).unwrap();
    fs::create_dir(fixture.at("007")).unwrap();
    fs::write(fixture.at("4"), "").unwrap();
    symlink("/", fixture.at("5")).unwrap();
    let listed = fixture.survey().list().unwrap();
    let found: Vec<_> = listed.iter().map(|entry| (entry.name.as_str(), entry.id, entry.what)).collect();
    assert_eq!(
        found,
        [
            ("007", None, "a directory"),
            ("1", Some(1), "a directory"),
            ("2", Some(2), "a directory"),
            ("3", Some(3), "a directory"),
            ("4", None, "a file"),
            ("5", None, "a link"),
            ("new-17", None, "a directory"),
        ]
    );
}

#[test]
fn what_is_missing_is_made_as_the_snapshotter_makes_it() {
    let fixture = fixture();
    let survey = fixture.survey();
    assert!(survey.missing(1).unwrap().is_empty());
    fs::remove_file(fixture.at("1/.erofslayer")).unwrap();
    fs::remove_dir(fixture.at("1/fs")).unwrap();
    assert_eq!(survey.missing(1).unwrap(), ["fs", ".erofslayer"]);
    survey.mend(1, &["fs", ".erofslayer"]).unwrap();
    assert!(survey.missing(1).unwrap().is_empty());
    let mode = |name: &str| fs::metadata(fixture.at(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("1/fs"), mode("1/.erofslayer")), (0o755, 0o644));

    fs::remove_dir_all(fixture.at("2")).unwrap();
    assert_eq!(survey.missing(2).unwrap(), [""]);
    survey.mend(2, &[""]).unwrap();
    assert!(survey.missing(2).unwrap().is_empty());
    assert_eq!(mode("2"), 0o700);

    // Something else in the place is not followed, and not removed.
    fs::remove_file(fixture.at("3/.erofslayer")).unwrap();
    symlink(fixture.at("1/layer.erofs"), fixture.at("3/.erofslayer")).unwrap();
    assert_eq!(survey.missing(3).unwrap(), [".erofslayer"]);
    assert!(survey.mend(3, &[".erofslayer"]).is_err());
    assert_eq!(fs::read_to_string(fixture.at("1/layer.erofs")).unwrap(), "1");
}

#[test]
fn a_directory_of_another_users_is_not_looked_into() {
    let fixture = fixture();
    fs::set_permissions(fixture.at("1"), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(fixture.survey().missing(1), Err(MountError::Owner { .. })));
    fs::remove_dir_all(fixture.at("2")).unwrap();
    symlink(fixture.at("3"), fixture.at("2")).unwrap();
    assert!(matches!(fixture.survey().missing(2), Err(MountError::Link(_))));
    assert!(fixture.survey().temporaries(2).is_err());
}

#[test]
fn a_temporary_file_is_live_while_its_process_holds_the_lock() {
    let fixture = fixture();
    let name = format!(".plywood-{}.tmp", "a".repeat(32));
    let file = File::create(fixture.at("1").join(&name)).unwrap();
    let found = || fixture.survey().temporaries(1).unwrap();
    assert_eq!(found(), [Temporary { name: name.clone(), is_live: false }]);
    assert!(file::lock_exclusive(&file).unwrap());
    assert_eq!(found(), [Temporary { name, is_live: true }]);
    assert!(fixture.survey().temporaries(9).unwrap().is_empty());
}

#[test]
fn files_that_are_rehearsed_leave_the_layer_alone() {
    let fixture = fixture();
    let directory = fixture.roots.resolve(&fixture.survey().active(1, &[])).unwrap();
    let held = directory.publish(&LAYER, &Limits::default()).unwrap();
    let publication = directory.rehearse(&LAYER, &Limits::default());
    let mut file = publication.file(LAYER_NAME).unwrap();
    crate::format::Sink::write_at(&mut file, 0, b"other").unwrap();
    drop((file, publication, held));
    assert_eq!(fs::read_to_string(fixture.at("1/layer.erofs")).unwrap(), "1");
    assert_eq!(fs::read_dir(fixture.at("1")).unwrap().count(), 3);
}

#[test]
fn merged_metadata_and_side_files_are_found() {
    let fixture = fixture();
    let survey = fixture.survey();
    assert!(!survey.forget_merged(1).unwrap() && !survey.has_verity(1) && !survey.is_half(1));
    fs::write(fixture.at("1/fsmeta.erofs"), "x").unwrap();
    fs::write(fixture.at("1/layer.erofs.dmverity"), "{}").unwrap();
    assert!(survey.forget_merged(1).unwrap() && survey.has_verity(1));
    assert!(!fixture.at("1/fsmeta.erofs").exists());
    assert!(!survey.forget_merged(9).unwrap());
}

#[test]
fn a_devices_layer_is_half_there_while_only_its_archive_is() {
    let scratch = tempfile::Builder::new().suffix(".survey").tempdir().unwrap();
    let directory = scratch.path().join("snapshots/1");
    fs::create_dir_all(directory.join("fs")).unwrap();
    let roots = Roots::open(&[]).unwrap().with_overlaybd(&[scratch.path().to_owned()]).unwrap();
    let survey = roots.surveys().next().unwrap();
    assert_eq!(survey.holds(), Holds::Devices);
    fs::write(directory.join("layer.tar"), "").unwrap();
    assert!(survey.is_half(1));
    fs::write(directory.join("fs/overlaybd.commit"), "").unwrap();
    assert!(!survey.is_half(1));
    let found = roots.resolve(&survey.active(1, &[])).unwrap();
    assert!(found.publishes().contains(&&DEVICE_LAYER));
    assert!(survey.device(1).unwrap().open(&survey.layer(1).display().to_string()).unwrap().is_some());
}
