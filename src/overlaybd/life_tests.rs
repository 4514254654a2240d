use std::collections::BTreeSet;

use super::*;
use crate::{
    call::{Cancel, Progress},
    format::{ReadAt, lsmt::Writer, zfile::writer::Options},
    overlaybd::config::{Files, ImageConfig},
};

const MIB: u64 = 1 << 20;

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

fn new(kind: Writable) -> NewUpper {
    NewUpper { kind, virtual_size: 64 * MIB, uuid: random_uuid().unwrap(), parent_uuid: Uuid::NULL }
}

/// Writes some data to the layer in a directory.
fn fill(dir: &Path, turbo: bool) {
    let mut writer = Writer::new(Vec::new(), 64 * MIB);
    writer.write_at(0, &[1; 4096]).unwrap();
    writer.write_at(40 * MIB, &vec![2; 300_000]).unwrap();
    writer.write_at(3 * MIB, &[3; 700]).unwrap();
    if turbo {
        writer.map_target(8 * MIB, 5000, 1024).unwrap();
    }
    let open = |name: &str| File::options().read(true).write(true).open(dir.join(name)).unwrap();
    let mut upper = Upper::open(open("writable_data"), open("writable_index"), turbo, 0).unwrap();
    upper.write(&writer.finish().unwrap(), &vec![0; 64 << 20]).unwrap();
}

fn all(layer: DeviceLayer) -> Vec<u8> {
    let device = LayeredDevice::new(vec![layer]).unwrap();
    let mut bytes = vec![0; usize::try_from(device.size_bytes()).unwrap()];
    device.read_exact_at(0, &mut bytes).unwrap();
    bytes
}

fn committed(dir: &Path, sealed: bool, wrapping: Wrapping, threads: usize, targets: Targets) -> Vec<u8> {
    let to = tempfile::tempdir().unwrap();
    let (cancel, progress) = (Cancel::new(), Progress::default());
    let helpers = Helpers::new(threads);
    let how = Commit {
        options: CommitOptions { targets, ..CommitOptions::default() },
        wrapping,
        helpers: &helpers,
    };
    commit(dir, to.path(), sealed, &how, Work { cancel: &cancel, progress: &progress }).unwrap();
    assert_eq!(names(to.path()), set(&["overlaybd.commit"]));
    fs::read(to.path().join("overlaybd.commit")).unwrap()
}

#[test]
fn every_step_leaves_the_files_of_the_upstream_tools_and_committing_gives_the_same_bytes() {
    for kind in [Writable::Append, Writable::Sparse] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        create(dir, new(kind)).unwrap();
        // An older layer makes way.
        create(dir, new(kind)).unwrap();
        assert_eq!(names(dir), set(&["writable_data", "writable_index"]), "{kind:?}");
        fill(dir, false);
        let pair = Pair::in_directory(dir);
        let before = [fs::read(&pair.data).unwrap(), fs::read(&pair.index).unwrap()];
        let want = all(pair.layer(false).unwrap());
        assert_eq!((want[0], want[4096], want[3 << 20], want[40 << 20]), (1, 0, 3, 2));
        let wrapped = Wrapping { zfile: Some(Options::default()), tar: true };
        let [plain, packed] =
            [Wrapping::default(), wrapped].map(|wrapping| committed(dir, false, wrapping, 0, Targets::Store));
        assert_eq!([fs::read(&pair.data).unwrap(), fs::read(&pair.index).unwrap()], before, "{kind:?}");

        let to = tempfile::tempdir().unwrap();
        seal(dir, to.path()).unwrap();
        assert_eq!((names(dir), names(to.path())), (set(&[]), set(&["overlaybd.sealed"])), "{kind:?}");
        // Again, as after a crash before anybody knew.
        seal(dir, to.path()).unwrap();
        for threads in [0, 1, 3] {
            assert!(committed(to.path(), true, Wrapping::default(), threads, Targets::Store) == plain);
            assert!(committed(to.path(), true, wrapped, threads, Targets::Store) == packed);
        }
        assert_eq!(names(to.path()), set(&["overlaybd.sealed"]));
        let sealed = read_only(&to.path().join("overlaybd.sealed")).unwrap();
        assert!(all(sealed) == want, "{kind:?}");
    }
}

#[test]
fn sealing_goes_on_where_it_was_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    create(dir, new(Writable::Append)).unwrap();
    fill(dir, false);
    let pair = Pair::in_directory(dir);
    let want = all(pair.layer(false).unwrap());
    pair.seal().unwrap();
    let sealed = fs::read(&pair.data).unwrap();
    // The index is there, the trailer is not.
    fs::write(&pair.data, &sealed[..sealed.len() - 4096]).unwrap();
    assert!(all(pair.layer(false).unwrap()) == want);
    // The trailer is there, and the file has its old name.
    pair.seal().unwrap();
    let size_bytes = fs::metadata(&pair.data).unwrap().len();
    pair.seal().unwrap();
    assert_eq!(fs::metadata(&pair.data).unwrap().len(), size_bytes, "it is not sealed twice");
    seal(dir, dir).unwrap();
    assert_eq!(names(dir), set(&["overlaybd.sealed"]));
    assert!(all(read_only(&dir.join("overlaybd.sealed")).unwrap()) == want);
    // The data has its new name, and the index file is still there.
    fs::write(&pair.index, "").unwrap();
    seal(dir, dir).unwrap();
    assert_eq!(names(dir), set(&["overlaybd.sealed"]));
    let error = seal(&dir.join("none"), dir.parent().unwrap()).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
}

#[test]
fn a_turbo_pair_is_committed_with_its_target_outside() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    create(dir, new(Writable::Turbo)).unwrap();
    fill(dir, true);
    let bytes = committed(dir, false, Wrapping::default(), 0, Targets::Keep);
    fs::write(dir.join("layer"), &bytes).unwrap();
    let target: Vec<u8> = (0..7000_u32).map(|n| u8::try_from(n % 251).unwrap() + 1).collect();
    fs::write(dir.join("target"), &target).unwrap();
    let json = format!(r#"{{"lowers":[{{"file":"{0}/layer","targetFile":"{0}/target"}}]}}"#, dir.display());
    let open = || {
        let config = ImageConfig::read(json.as_bytes()).unwrap();
        device::open(config.open(&crate::overlaybd::config::anywhere, Mode::Read)?)
    };
    let mut found = [0; 5000];
    open().unwrap().read_exact_at(8 * MIB, &mut found).unwrap();
    assert_eq!(found, target[1024..6024]);
    // A pair of this kind has no file that could be sealed.
    let error = Pair::in_directory(dir).seal().unwrap_err();
    assert_eq!(error.reason(), "lsmt.magic", "{error}");
    // Another target is shorter.
    fs::write(dir.join("target"), &target[..6143]).unwrap();
    open().unwrap();
    fs::write(dir.join("target"), &target[..5632]).unwrap();
    let error = open().unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "overlaybd.target.size"));
}

#[test]
fn a_device_is_flattened_with_its_holes_and_a_lying_lower_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    create(dir, new(Writable::Append)).unwrap();
    fill(dir, false);
    fs::write(dir.join("a"), committed(dir, false, Wrapping::default(), 0, Targets::Store)).unwrap();
    create(dir, NewUpper { virtual_size: 0, ..new(Writable::Append) }).unwrap();
    let json = format!(
        r#"{{"lowers":[{{"file":"{0}/a"}}],"upper":{{"data":"{0}/writable_data","index":"{0}/writable_index"}}}}"#,
        dir.display()
    );
    let open = || {
        let config = ImageConfig::read(json.as_bytes()).unwrap();
        device::open(config.open(&crate::overlaybd::config::anywhere, Mode::Read)?)
    };
    let device = open().unwrap();
    assert_eq!(device.size_bytes(), 64 * MIB);
    let mut out = tempfile::tempfile().unwrap();
    let (cancel, progress) = (Cancel::new(), Progress::default());
    device::flatten(&device, &mut out, Work { cancel: &cancel, progress: &progress }).unwrap();
    assert_eq!(progress.look().done_bytes, device::data_bytes(&device));
    let mut bytes = vec![0; 64 << 20];
    ReadAt::read_exact_at(&out, 0, &mut bytes).unwrap();
    assert!(bytes == all(read_only(&dir.join("a")).unwrap()));
    let status = crate::sys::dir::status(&out).unwrap();
    assert!(status.size_bytes == 64 * MIB && status.allocated_bytes < MIB, "{status:?}");

    let mut lie = fs::read(dir.join("a")).unwrap();
    let index = lie.len() - 8192;
    lie[index + 16..index + 24].copy_from_slice(&(1_u64 | 1 << 50).to_le_bytes());
    fs::write(dir.join("a"), &lie).unwrap();
    let error = open().unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "lsmt.entry.order"));
    assert!(
        error.to_string().starts_with(&format!("lower 1, {}/a: index entry 1", dir.display())),
        "{error}"
    );
    fs::remove_file(dir.join("a")).unwrap();
    let error = open().unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::NotFound, "overlaybd.lower.missing"));
}

#[test]
fn a_writable_layer_without_a_size_takes_that_of_the_device_below() {
    for (kind, turbo) in [(Writable::Append, false), (Writable::Sparse, false), (Writable::Turbo, true)] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        create(dir, new(Writable::Append)).unwrap();
        fill(dir, false);
        fs::write(dir.join("a"), committed(dir, false, Wrapping::default(), 0, Targets::Store)).unwrap();
        fs::write(dir.join("t"), [9; 4096]).unwrap();
        create(dir, NewUpper { virtual_size: 0, ..new(kind) }).unwrap();
        let target = if turbo { format!(r#","target":"{}/t""#, dir.display()) } else { String::new() };
        let json = format!(
            r#"{{"lowers":[{{"file":"{0}/a"}}],"upper":{{"data":"{0}/writable_data","index":"{0}/writable_index"{target}}}}}"#,
            dir.display()
        );
        let open = || {
            let config = ImageConfig::read(json.as_bytes()).unwrap();
            config.open(&crate::overlaybd::config::anywhere, Mode::Write).unwrap()
        };
        let files = open();
        let below = device::open(Files { lowers: files.lowers, upper: None }).unwrap();
        let found = files.upper.unwrap();
        let mut upper = Upper::open(found.data, found.index, turbo, 1).unwrap();
        assert_eq!(upper.header().virtual_size, 0);
        upper.set_virtual_size(below.size_bytes()).unwrap();
        assert_eq!(upper.header().virtual_size, 64 * MIB);
        let mut writer = Writer::new(Vec::new(), 64 * MIB);
        writer.write_at(60 * MIB, &[5; 512]).unwrap();
        writer.zero(0, 4096).unwrap();
        writer.write_at(40 * MIB + 1024, &[6; 512]).unwrap();
        if turbo {
            writer.map_target(8 * MIB, 1000, 512).unwrap();
        }
        upper.write(&writer.finish().unwrap(), &below).unwrap();
        let device = device::open(open()).unwrap();
        assert_eq!(device.size_bytes(), 64 * MIB);
        let byte = |at: u64| {
            let mut byte = [0xff];
            device.read_exact_at(at, &mut byte).unwrap();
            byte[0]
        };
        assert_eq!((byte(60 * MIB), byte(0), byte(8 * MIB)), (5, 0, if turbo { 9 } else { 0 }), "{kind:?}");
        // Writing a part of a block leaves the rest of it as it was.
        let around = [0, 512, 1024, 1536].map(|at| byte(40 * MIB + at));
        assert_eq!(around, [2, 2, 6, 2], "{kind:?}");
    }
}
