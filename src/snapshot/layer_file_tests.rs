use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    process::Command,
};

use super::*;

const NAME: &CStr = c"layer.erofs";

/// Limits that leave the test machine's disk alone.
fn limits() -> Limits {
    Limits { reserve_bytes: 0, reserve_percent: 0, ..Limits::default() }
}

struct Scratch {
    _dir: tempfile::TempDir,
    dir: Arc<Dir>,
    path: PathBuf,
}

fn scratch() -> Scratch {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("1");
    fs::create_dir(&path).unwrap();
    Scratch { dir: Arc::new(Dir::open(&path).unwrap()), path, _dir: root }
}

impl Scratch {
    fn begin(&self) -> Result<LayerFile, LayerError> {
        let parent = Dir::open(self.path.parent().unwrap()).unwrap();
        LayerFile::in_snapshot(&self.dir, parent, NAME, &self.path.join("layer.erofs"), &limits())
    }

    fn layer(&self) -> PathBuf {
        self.path.join("layer.erofs")
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn a_committed_file_has_its_bytes_mode_and_no_neighbours() {
    let scratch = scratch();
    for durability in [Durability::Always, Durability::Request, Durability::Never] {
        for sync_fs in [false, true] {
            let mut layer = scratch.begin().unwrap();
            layer.write_at(3, b"def").unwrap();
            layer.write_at(0, b"abc").unwrap();
            assert_eq!(ReadAt::size_bytes(&layer), 6);
            layer.set_len(8).unwrap();
            assert_eq!(ReadAt::size_bytes(&layer), 8);
            assert!(!scratch.names().iter().any(|name| name.starts_with('.')));
            layer.commit(durability, sync_fs).unwrap();
            assert_eq!(fs::read(scratch.layer()).unwrap(), b"abcdef\0\0");
            assert_eq!(fs::metadata(scratch.layer()).unwrap().permissions().mode() & 0o7777, 0o644);
            assert_eq!(scratch.names(), ["layer.erofs"]);
        }
    }
}

#[test]
fn a_scratch_file_has_no_name_and_respects_the_reserve() {
    let scratch = scratch();
    let mut file = LayerFile::scratch(&scratch.path, &limits()).unwrap();
    file.write_at(0, b"image").unwrap();
    assert!(scratch.names().is_empty());
    let mut back = [0; 5];
    file.read_exact_at(0, &mut back).unwrap();
    assert_eq!((&back, ReadAt::size_bytes(&file)), (b"image", 5));

    let full = Limits { reserve_bytes: u64::MAX, ..limits() };
    let error = LayerFile::scratch(&scratch.path, &full).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.free-space"));
    let error = LayerFile::scratch(&scratch.path.join("none"), &limits()).unwrap_err();
    assert!(error.to_string().contains("open the work directory"), "{error}");
}

#[test]
fn what_is_dropped_leaves_nothing() {
    let scratch = scratch();
    let mut layer = scratch.begin().unwrap();
    layer.write_at(0, &[1; 4096]).unwrap();
    drop(layer);
    assert!(scratch.names().is_empty());
    let named = LayerFile::create(&scratch.dir, NAME, &scratch.layer(), PRIVATE_MODE, Naming::Named).unwrap();
    assert_eq!(scratch.names().len(), 1);
    drop(named);
    assert!(scratch.names().is_empty());
}

#[test]
fn a_named_temporary_is_private_locked_and_recognised_by_the_sweep() {
    let scratch = scratch();
    let mut layer =
        LayerFile::create(&scratch.dir, NAME, &scratch.layer(), PRIVATE_MODE, Naming::Named).unwrap();
    layer.mode = Some(LAYER_MODE);
    layer.write_at(0, b"x").unwrap();
    let names = scratch.names();
    let name = names.first().unwrap();
    assert!(is_temporary(&CString::new(name.as_str()).unwrap()), "{name}");
    let path = scratch.path.join(name);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(!file::lock_exclusive(File::open(&path).unwrap()).unwrap());
    layer.commit(Durability::Never, false).unwrap();
    assert_eq!(scratch.names(), ["layer.erofs"]);
}

#[test]
fn other_names_are_not_temporaries() {
    for name in [
        c".plywood-.tmp",
        c".plywood-0123456789abcdef0123456789abcdeF.tmp",
        c".plywood-0123456789abcdef0123456789abcdef.tm",
        c"plywood-0123456789abcdef0123456789abcdef.tmp",
        c".plywood-0123456789abcdef0123456789abcdef0.tmp",
        c"layer.erofs",
    ] {
        assert!(!is_temporary(name), "{name:?}");
    }
    assert!(is_temporary(c".plywood-0123456789abcdef0123456789abcdef.tmp"));
}

#[test]
fn an_existing_entry_is_replaced_and_never_written_through() {
    let scratch = scratch();
    let outside = scratch.path.parent().unwrap().join("cache-blob");
    fs::write(&outside, "shared").unwrap();
    type Make<'m> = &'m dyn Fn(&Path);
    let make: [(&str, Make<'_>); 4] = [
        ("file", &|path| fs::write(path, "old").unwrap()),
        ("link", &|path| symlink(&outside, path).unwrap()),
        ("hard link", &|path| fs::hard_link(&outside, path).unwrap()),
        ("fifo", &|path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success())),
    ];
    for (kind, make) in make {
        make(&scratch.layer());
        let mut layer = scratch.begin().unwrap();
        layer.write_at(0, b"new").unwrap();
        layer.commit(Durability::Always, false).unwrap();
        assert!(fs::symlink_metadata(scratch.layer()).unwrap().is_file(), "{kind}");
        assert_eq!(fs::read(scratch.layer()).unwrap(), b"new", "{kind}");
        assert_eq!(fs::read(&outside).unwrap(), b"shared", "{kind}");
        assert_eq!(scratch.names(), ["layer.erofs"], "{kind}");
        fs::remove_file(scratch.layer()).unwrap();
    }
}

#[test]
fn a_directory_in_that_place_is_a_conflict_before_and_at_the_end() {
    let scratch = scratch();
    let layer = scratch.begin().unwrap();
    fs::create_dir(scratch.layer()).unwrap();
    let late = layer.commit(Durability::Always, false).unwrap_err();
    assert!(matches!(late, LayerError::Occupied(_)), "{late:?}");
    let early = scratch.begin().unwrap_err();
    assert_eq!((early.kind(), early.reason()), (Kind::Conflict, "snapshot.occupied"));
    assert_eq!(scratch.names(), ["layer.erofs"]);
}

#[test]
fn a_directory_has_one_writer_at_a_time() {
    let scratch = scratch();
    let layer = scratch.begin().unwrap();
    let error = scratch.begin().unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Conflict, "snapshot.busy"));
    // The same directory by another descriptor, as a second process sees it.
    assert!(!file::lock_exclusive(Dir::open(&scratch.path).unwrap()).unwrap());
    drop(layer);
    assert!(file::lock_exclusive(Dir::open(&scratch.path).unwrap()).unwrap());
    assert!(scratch.begin().is_ok());
}

#[test]
fn the_lock_of_another_process_is_respected() {
    let scratch = scratch();
    let other = Dir::open(&scratch.path).unwrap();
    assert!(file::lock_exclusive(&other).unwrap());
    assert!(matches!(scratch.begin(), Err(LayerError::Busy(_))));
    drop(other);
    assert!(scratch.begin().is_ok());
}

#[test]
fn the_reserve_is_kept_free_from_the_first_byte_on() {
    let scratch = scratch();
    let parent = Dir::open(scratch.path.parent().unwrap()).unwrap();
    let limits = Limits { reserve_bytes: u64::MAX, ..limits() };
    let error = LayerFile::in_snapshot(&scratch.dir, parent, NAME, &scratch.layer(), &limits).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.free-space"));
    assert!(scratch.begin().is_ok(), "the refusal gave the lock back");
    let text = error.to_string();
    assert!(text.contains("iB are free, 16 EiB of ") && text.ends_with("limits.reserve_bytes"), "{text}");
}

#[test]
fn a_reserve_reached_while_writing_ends_the_writing() {
    let scratch = scratch();
    let mut layer = scratch.begin().unwrap();
    layer.reserve = Some(Reserve { bytes: u64::MAX, percent: 0, unchecked: SPACE_EVERY - 8 });
    layer.write_at(0, b"1234").unwrap();
    let error = Error::disk(layer.write_at(4, b"5678").unwrap_err());
    assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.free-space"));
}

#[test]
fn reserved_space_is_given_back_at_the_end() {
    let scratch = scratch();
    let mut layer = scratch.begin().unwrap();
    let piece = vec![7; 1 << 20];
    for number in 0..9 {
        layer.write_at(number << 20, &piece).unwrap();
    }
    let ahead = file::allocated_bytes(layer.file()).unwrap();
    assert!(ahead >= 9 << 20, "{ahead}");
    layer.commit(Durability::Always, false).unwrap();
    let kept = fs::metadata(scratch.layer()).unwrap();
    assert_eq!(kept.len(), 9 << 20);
    assert!(kept.blocks() * 512 <= (9 << 20) + (64 << 10), "{} blocks", kept.blocks());
}

#[test]
fn a_hole_in_the_image_stays_a_hole_in_the_file() {
    let scratch = scratch();
    let mut layer = scratch.begin().unwrap();
    let piece = vec![7; 2 << 20];
    layer.write_at(0, &piece).unwrap();
    layer.write_at(40 << 20, &piece).unwrap();
    layer.set_len(80 << 20).unwrap();
    assert_eq!(ReadAt::size_bytes(&layer), 80 << 20);
    layer.commit(Durability::Always, false).unwrap();
    let kept = fs::metadata(scratch.layer()).unwrap();
    assert!(kept.blocks() * 512 <= (4 << 20) + (128 << 10), "{} blocks", kept.blocks());
    let bytes = fs::read(scratch.layer()).unwrap();
    assert!(bytes[2 << 20..40 << 20].iter().all(|byte| *byte == 0));
    assert!(bytes[40 << 20..42 << 20].iter().all(|byte| *byte == 7));
}

#[test]
fn discarded_bytes_read_as_zeros() {
    let scratch = scratch();
    let mut layer = scratch.begin().unwrap();
    layer.write_at(0, &[9; 20_000]).unwrap();
    layer.discard(5_000, 10_000).unwrap();
    layer.discard(19_999, 1 << 40).unwrap();
    layer.discard(0, 0).unwrap();
    let mut read = vec![1; 20_000];
    ReadAt::read_exact_at(&layer, 0, &mut read).unwrap();
    let want: Vec<u8> =
        (0..20_000).map(|i| if (5_000..15_000).contains(&i) || i == 19_999 { 0 } else { 9 }).collect();
    assert!(read == want);
    assert!(ReadAt::read_exact_at(&layer, 19_999, &mut [0; 2]).is_err());
}

#[test]
fn a_copy_of_a_file_has_its_bytes_and_its_size() {
    let scratch = scratch();
    let source = scratch.path.parent().unwrap().join("blob");
    let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&source, &bytes).unwrap();
    let source = File::open(&source).unwrap();
    let mut layer = scratch.begin().unwrap();
    layer.copy_from(&source, bytes.len() as u64, |_| Ok(())).unwrap();
    assert_eq!(ReadAt::size_bytes(&layer), bytes.len() as u64);
    layer.commit(Durability::Never, false).unwrap();
    assert!(fs::read(scratch.layer()).unwrap() == bytes);

    let mut layer = scratch.begin().unwrap();
    let short = layer.copy_from(&source, bytes.len() as u64 + 1, |_| Ok(())).unwrap_err();
    assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    let mut stop = |_| Err(io::ErrorKind::Interrupted.into());
    match layer.copy_from(&source, bytes.len() as u64, &mut stop) {
        Ok(shared) => assert!(shared, "a copy takes the step that stops it"),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::Interrupted),
    }
}

#[test]
fn the_command_line_replaces_files_but_nothing_else() {
    let scratch = scratch();
    let path = scratch.path.join("out.erofs");
    for naming in [Naming::Preferred, Naming::Named] {
        for want in [b"one".as_slice(), b"two"] {
            let mut layer = LayerFile::beside_as(&path, naming).unwrap();
            layer.write_at(0, want).unwrap();
            layer.commit(Durability::Request, false).unwrap();
            assert_eq!(fs::read(&path).unwrap(), want);
        }
    }
    assert_eq!(scratch.names(), ["out.erofs"]);
    for path in ["/dev/null", "/dev", "/", "..", ""] {
        assert!(LayerFile::beside(Path::new(path)).is_err(), "{path}");
    }
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    let missing = LayerFile::beside(&scratch.path.join("none/out")).unwrap_err();
    assert!(matches!(missing, LayerError::Io { .. }), "{missing:?}");
}
