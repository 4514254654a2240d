use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{FileTypeExt, PermissionsExt, symlink},
    process::Command,
};

use rustix::fs::inotify::{self, ReadFlags, WatchFlags};

use super::{
    super::{
        DEVICE_LAYER, LAYER, MERGED_NAME, OVERLAYBD_NAME, TAR_NAME,
        scratch_tests::{limits, names, scratch},
    },
    *,
};
use crate::{
    error::{Classify, Kind},
    format::{ReadAt, Sink},
};

#[test]
fn a_committed_file_has_its_bytes_mode_and_no_neighbours() {
    let scratch = scratch();
    for durability in [Durability::Always, Durability::Request, Durability::Never] {
        for sync_fs in [false, true] {
            let (publication, mut layer) = scratch.begin().unwrap();
            layer.write_at(3, b"def").unwrap();
            layer.write_at(0, b"abc").unwrap();
            assert_eq!(ReadAt::size_bytes(&layer), 6);
            layer.set_len(8).unwrap();
            assert_eq!(ReadAt::size_bytes(&layer), 8);
            assert!(!scratch.names().iter().any(|name| name.starts_with('.')));
            publication.commit([layer], durability, sync_fs).unwrap();
            assert_eq!(fs::read(scratch.layer()).unwrap(), b"abcdef\0\0");
            assert_eq!(fs::metadata(scratch.layer()).unwrap().permissions().mode() & 0o7777, 0o644);
            assert_eq!(scratch.names(), ["layer.erofs"]);
        }
    }
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
        let (publication, mut layer) = scratch.begin().unwrap();
        layer.write_at(0, b"new").unwrap();
        publication.commit([layer], Durability::Always, false).unwrap();
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
    let (publication, layer) = scratch.begin().unwrap();
    fs::create_dir(scratch.layer()).unwrap();
    let late = publication.commit([layer], Durability::Always, false).unwrap_err();
    assert!(matches!(late, PublishError::Occupied(_)), "{late:?}");
    let early = scratch.begin().unwrap_err();
    assert_eq!((early.kind(), early.reason()), (Kind::Conflict, "snapshot.occupied"));
    assert_eq!(scratch.names(), ["layer.erofs"]);
}

#[test]
fn a_directory_has_one_writer_at_a_time() {
    let scratch = scratch();
    let (publication, layer) = scratch.begin().unwrap();
    let error = scratch.begin().unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Conflict, "snapshot.busy"));
    // Locked also through another descriptor, as a second process opens it.
    assert!(!file::lock_exclusive(Dir::open(&scratch.path).unwrap()).unwrap());
    drop(publication);
    assert!(matches!(scratch.begin(), Err(PublishError::Busy(_))), "a file outlives its publication");
    drop(layer);
    assert!(file::lock_exclusive(Dir::open(&scratch.path).unwrap()).unwrap());
    assert!(scratch.begin().is_ok());
}

#[test]
fn the_lock_of_another_process_is_respected() {
    let scratch = scratch();
    let other = Dir::open(&scratch.path).unwrap();
    assert!(file::lock_exclusive(&other).unwrap());
    assert!(matches!(scratch.begin(), Err(PublishError::Busy(_))));
    drop(other);
    assert!(scratch.begin().is_ok());
}

#[test]
fn the_reserve_is_kept_free_from_the_first_byte_on() {
    let scratch = scratch();
    let full = Limits { reserve_bytes: u64::MAX, ..limits() };
    let error = scratch.publish(&LAYER, &full).unwrap().file(LAYER_NAME).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.free-space"));
    assert!(scratch.begin().is_ok(), "the refusal gave the lock back");
    let text = error.to_string();
    assert!(text.contains("iB are free, 16 EiB of ") && text.ends_with("limits.reserve_bytes"), "{text}");
}

#[test]
fn the_command_line_replaces_files_but_nothing_else() {
    let scratch = scratch();
    let path = scratch.path.join("out.erofs");
    for naming in [Naming::Preferred, Naming::Named] {
        for want in [b"one".as_slice(), b"two"] {
            let mut publication = Publication::beside(&path).unwrap();
            publication.naming = naming;
            let mut layer = publication.file(LAYER_NAME).unwrap();
            layer.write_at(0, want).unwrap();
            publication.commit([layer], Durability::Request, false).unwrap();
            assert_eq!(fs::read(&path).unwrap(), want);
        }
    }
    assert_eq!(scratch.names(), ["out.erofs"]);
    for path in ["/dev/null", "/dev", "/", "..", ""] {
        let begun = Publication::beside(Path::new(path)).and_then(|publication| publication.file(LAYER_NAME));
        assert!(begun.is_err(), "{path}");
    }
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    let missing = Publication::beside(&scratch.path.join("none/out")).unwrap_err();
    assert!(matches!(missing, PublishError::Io { .. }), "{missing:?}");
}

const FIRST: &str = "layer.tar";
const LAST: &str = "fs/overlaybd.commit";
/// A set of two files in two directories, of which the second one belongs to a container.
static TWO: FileSet = FileSet::of(&[FIRST, LAST]);
/// A set of two files in one directory.
static BESIDE: FileSet = FileSet::of(&["layer.erofs.side", LAYER_NAME]);

/// Begins the files of `set`, each with `text` in it.
fn begin(publication: &Publication, set: &FileSet, text: &str) -> Vec<NewFile> {
    let begin = |name: &&str| {
        let mut file = publication.file(name).unwrap();
        file.write_at(0, text.as_bytes()).unwrap();
        file
    };
    set.names.iter().map(begin).collect()
}

#[test]
fn the_files_of_a_set_appear_together() {
    for set in [&TWO, &BESIDE] {
        for naming in [Naming::Preferred, Naming::Named] {
            let scratch = scratch();
            fs::create_dir(scratch.path.join("fs")).unwrap();
            for text in ["new", "newer"] {
                let before = scratch.names();
                let mut publication = scratch.publish(set, &limits()).unwrap();
                publication.naming = naming;
                let mut files = begin(&publication, set, text);
                // No random name is where a container writes, and none at all where files have no names.
                let random = if naming == Naming::Named { 2 } else { 0 };
                assert_eq!(scratch.names().len(), before.len() + random);
                assert!(names(&scratch.path.join("fs")).iter().all(|name| !name.starts_with('.')));
                // Any order will do: the set has its own.
                files.reverse();
                publication.commit(files, Durability::Always, true).unwrap();
                for name in set.names {
                    let path = scratch.path.join(name);
                    assert_eq!(fs::read_to_string(&path).unwrap(), text, "{name}");
                    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644, "{name}");
                }
                let all = scratch.names().len() + names(&scratch.path.join("fs")).len();
                assert_eq!(all, set.names.len() + 1, "{:?}", scratch.names());
            }
        }
    }
}

#[test]
fn a_set_that_is_dropped_leaves_what_was_there() {
    for naming in [Naming::Preferred, Naming::Named] {
        let scratch = scratch();
        fs::create_dir(scratch.path.join("fs")).unwrap();
        for name in TWO.names {
            fs::write(scratch.path.join(name), "old").unwrap();
        }
        let mut publication = scratch.publish(&TWO, &limits()).unwrap();
        publication.naming = naming;
        let files = begin(&publication, &TWO, "new");
        drop((publication, files));
        assert_eq!(scratch.names(), ["fs", FIRST]);
        assert!(TWO.names.iter().all(|name| fs::read_to_string(scratch.path.join(name)).unwrap() == "old"));
    }
}

/// Watches the directories of `set` while its files replace older ones, and returns the names that were there after
/// each step, `+` before those that the new set has brought.
fn states(set: &FileSet) -> Vec<BTreeSet<String>> {
    let scratch = scratch();
    fs::create_dir(scratch.path.join("fs")).unwrap();
    let mut there: BTreeSet<String> = set.names.iter().map(|name| (*name).to_owned()).collect();
    for name in set.names {
        fs::write(scratch.path.join(name), "old").unwrap();
    }
    let publication = scratch.publish(set, &limits()).unwrap();
    let files = begin(&publication, set, "new");
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
    let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM;
    inotify::add_watch(&watch, &scratch.path, flags).unwrap();
    let below = inotify::add_watch(&watch, scratch.path.join("fs"), flags).unwrap();
    publication.commit(files, Durability::Always, false).unwrap();

    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(&watch, &mut buffer);
    let mut states = vec![there.clone()];
    while let Ok(event) = events.next() {
        let name = event.file_name().unwrap().to_str().unwrap();
        let name = if event.wd() == below { format!("fs/{name}") } else { name.to_owned() };
        if !set.names.contains(&name.as_str()) {
            // The random name of a replacement.
            continue;
        }
        there.remove(&name);
        if event.events().intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            there.insert(format!("+{name}"));
        }
        states.push(there.clone());
    }
    states
}

/// Each state is what a crash at that moment leaves.
#[test]
fn a_layer_is_never_seen_beside_files_of_another_one() {
    for set in [&TWO, &BESIDE, &LAYER] {
        let [first, last] = *set.names else { panic!("{set:?}") };
        let (new_first, new_last) = (format!("+{first}"), format!("+{last}"));
        let want = [vec![first, last], vec![first], vec![&new_first], vec![&new_first, &new_last]];
        let want = want.map(|names| names.into_iter().map(String::from).collect::<BTreeSet<_>>());
        assert_eq!(states(set), want);
    }
    // A single file is replaced at once.
    let state = |name: &str| BTreeSet::from([name.to_owned()]);
    assert_eq!(states(&FileSet::of(&[LAYER_NAME])), [state(LAYER_NAME), state("+layer.erofs")]);
}

#[test]
fn merged_metadata_of_an_older_layer_goes_before_that_is_replaced() {
    let scratch = scratch();
    for name in LAYER.names {
        fs::write(scratch.path.join(name), "old").unwrap();
    }
    let (publication, layer) = scratch.begin().unwrap();
    publication.commit([layer], Durability::Always, false).unwrap();
    assert_eq!(scratch.names(), [LAYER_NAME]);
    // With metadata in a place that cannot be had, the older layer stays whole.
    fs::create_dir(scratch.path.join(MERGED_NAME)).unwrap();
    fs::write(scratch.layer(), "old").unwrap();
    let (publication, layer) = scratch.begin().unwrap();
    let error = publication.commit([layer], Durability::Always, false).unwrap_err();
    assert!(matches!(&error, PublishError::Occupied(path) if path.ends_with(MERGED_NAME)), "{error}");
    assert_eq!(fs::read(scratch.layer()).unwrap(), b"old");
}

#[test]
fn a_failure_between_two_files_takes_the_first_one_back() {
    for (naming, replaced) in [(Naming::Preferred, false), (Naming::Preferred, true), (Naming::Named, true)] {
        let scratch = scratch();
        let below = scratch.path.join("fs");
        fs::create_dir(&below).unwrap();
        if replaced {
            fs::write(scratch.path.join(FIRST), "old").unwrap();
        }
        let mut publication = scratch.publish(&TWO, &limits()).unwrap();
        publication.naming = naming;
        let files = begin(&publication, &TWO, "new");
        // No file gets a name in a directory that is gone.
        fs::remove_dir(&below).unwrap();
        let error = publication.commit(files, Durability::Always, false).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, "snapshot.io"), "{error}");
        assert!(error.to_string().contains(LAST), "{error}");
        assert!(scratch.names().is_empty(), "{:?}", scratch.names());
    }
}

/// A native layer beside the archive of another one would be taken for a turboOCI layer that points into it.
#[test]
fn an_optional_file_of_an_older_set_goes_before_a_set_without_it_appears() {
    let all: BTreeSet<_> = DEVICE_LAYER.names.iter().copied().collect();
    for with_tar in [false, true] {
        let scratch = scratch();
        fs::create_dir(scratch.path.join("fs")).unwrap();
        for name in &all {
            fs::write(scratch.path.join(name), "old").unwrap();
        }
        let publication = scratch.publish(&DEVICE_LAYER, &limits()).unwrap();
        let given = if with_tar { &[TAR_NAME, OVERLAYBD_NAME][..] } else { &[OVERLAYBD_NAME] };
        let files: Vec<_> = given.iter().map(|name| publication.file(name).unwrap()).collect();
        publication.commit(files, Durability::Always, false).unwrap();
        for name in &all {
            let found = fs::read(scratch.path.join(name)).ok();
            assert_eq!(found.as_deref(), given.contains(name).then_some(&b""[..]), "{name}, {with_tar}");
        }
    }
}

#[test]
fn a_set_is_not_begun_over_what_cannot_be_replaced() {
    for name in TWO.names {
        let scratch = scratch();
        fs::create_dir(scratch.path.join("fs")).unwrap();
        let publication = scratch.publish(&TWO, &limits()).unwrap();
        let files = begin(&publication, &TWO, "new");
        for other in TWO.names.iter().filter(|other| *other != name) {
            fs::write(scratch.path.join(other), "old").unwrap();
        }
        fs::create_dir(scratch.path.join(name)).unwrap();
        let error = publication.commit(files, Durability::Always, false).unwrap_err();
        assert!(matches!(&error, PublishError::Occupied(path) if path.ends_with(name)), "{error}");
        let kept = TWO.names.iter().filter(|other| *other != name);
        assert!(kept.clone().all(|other| fs::read_to_string(scratch.path.join(other)).unwrap() == "old"));
    }
}

#[test]
fn the_directory_of_a_file_is_neither_a_link_nor_missing() {
    let scratch = scratch();
    let missing = scratch.publish(&TWO, &limits()).unwrap_err();
    assert!(missing.to_string().contains("open its directory"), "{missing}");
    let elsewhere = scratch.path.parent().unwrap().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, scratch.path.join("fs")).unwrap();
    assert!(scratch.publish(&TWO, &limits()).is_err());
    fs::remove_file(scratch.path.join("fs")).unwrap();
    fs::create_dir(scratch.path.join("fs")).unwrap();
    assert!(scratch.publish(&TWO, &limits()).is_ok(), "the refusals gave the lock back");
}
