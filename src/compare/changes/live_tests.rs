//! Live directories: layers that change at the worst moment, and what a walk over them costs.
//!
//! Nothing here needs root: overlayfs's attributes, whiteouts included, are `user.overlay.` ones.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs,
    os::unix::{
        fs::{FileExt as _, PermissionsExt as _, symlink},
        net::UnixListener,
    },
    path::Path,
    time::Duration,
};

use tempfile::TempDir;

use super::{
    Counts, Options,
    fixture::{Recorded, compare},
};
use crate::{
    call::Cancel,
    compare::changes,
    error::{Error, Kind, Result},
    limits::Limits,
    sys::dir::Dir,
    tree::{Body, Extent, Timestamp},
    view::{
        At, Control, DirectoryView, View,
        fixture::{Entries, Watched, erofs},
    },
};

fn directory(path: &Path) -> DirectoryView {
    DirectoryView::new(Dir::open_root(path).unwrap(), "upper".to_owned(), Control::User, &Cancel::new())
        .unwrap()
}

fn set(path: &Path, name: &str, value: &str) {
    rustix::fs::lsetxattr(path, name, value.as_bytes(), rustix::fs::XattrFlags::empty()).unwrap();
}

/// A directory of a layer's usual mode.
fn scratch() -> TempDir {
    let scratch = tempfile::tempdir().unwrap();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    scratch
}

/// The entries as text, without owners and times, which come from the test's user and clock.
fn text_of(recorded: &Recorded) -> String {
    let mut recorded = recorded.clone();
    for (entry, _) in &mut recorded.entries {
        (entry.attributes.uid, entry.attributes.gid) = (0, 0);
        entry.attributes.mtime = Timestamp::default();
    }
    recorded.text()
}

/// The entries of the layer in `root` when `meddle` runs before the first call of that name and path.
fn meddled(root: &Path, call: &str, path: &str, meddle: impl FnOnce()) -> Result<Recorded> {
    let meddle = Cell::new(Some(meddle));
    let inner = directory(root);
    let upper = Watched::new(&inner, |called, at| {
        if called == call && at == path.as_bytes() {
            meddle.take().into_iter().for_each(|meddle| meddle());
        }
    });
    Ok(compare(&[], &[&upper], &Options::default())?.0)
}

fn refusal(error: &Error) -> (Kind, &'static str) {
    (error.kind(), error.reason())
}

const CHANGED: (Kind, &str) = (Kind::Changed, "compare.changed");

#[test]
fn an_upper_directory_is_compared_with_images() {
    let scratch = scratch();
    let root = scratch.path();
    let lower = Entries::new()
        .dir("d")
        .file("d/gone", "x")
        .file("d/kept", "y")
        .file("socket", "z")
        .dir("hidden")
        .file("hidden/f", "x");
    fs::create_dir(root.join("d")).unwrap();
    set(&root.join("d"), "user.overlay.opaque", "x");
    fs::write(root.join("d/gone"), "").unwrap();
    set(&root.join("d/gone"), "user.overlay.whiteout", "");
    fs::write(root.join("d/never"), "").unwrap();
    set(&root.join("d/never"), "user.overlay.whiteout", "y");
    fs::create_dir(root.join("hidden")).unwrap();
    set(&root.join("hidden"), "user.overlay.opaque", "y");
    fs::write(root.join("hidden/new"), "data").unwrap();
    set(&root.join("hidden/new"), "user.mine", "1");
    fs::hard_link(root.join("hidden/new"), root.join("joined")).unwrap();
    symlink("../out", root.join("link")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, root.join("pipe"), rustix::fs::Mode::from_raw_mode(0o644)).unwrap();
    let _listening = UnixListener::bind(root.join("socket")).unwrap();
    let _new = UnixListener::bind(root.join("socket2")).unwrap();

    let image = lower.image();
    let lower = erofs(&image, 1);
    let upper = directory(root);
    let (recorded, counts) = compare(&[&lower], &[&upper, &lower], &Options::default()).unwrap();
    let want = "dir d\nmark d/.wh.gone\ndir hidden\nmark hidden/.wh..wh..opq\n\
                file hidden/new \"data\" user.mine=1\nlink joined hidden/new\nsymlink link ../out\n\
                fifo pipe\nmark .wh.socket\n";
    let text = text_of(&recorded);
    assert_eq!(text, want);
    let want = Counts { changed: 6, deleted: 2, opaque: 1, parents: 0, sockets: 2, data_bytes: 4 };
    assert_eq!(counts, want);
}

#[test]
fn what_becomes_another_file_while_it_is_looked_at_is_looked_at_again() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "SECRET").unwrap();
    set(&outside.path().join("secret"), "user.secret", "SECRET");
    let to_link = |path: &Path| {
        fs::remove_file(path).unwrap();
        symlink(outside.path().join("secret"), path).unwrap();
    };
    let to_fifo = |path: &Path| {
        fs::remove_file(path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::from_raw_mode(0o644)).unwrap();
    };
    for call in ["lookup", "xattrs", "extents"] {
        let shrink = |path: &Path| fs::write(path, "shorter").unwrap();
        let swaps: [&dyn Fn(&Path); 3] = [&to_link, &to_fifo, &shrink];
        let wants = ["symlink f ", "fifo f", "file f \"shorter\""];
        for (swap, want) in swaps.iter().zip(wants) {
            let scratch = scratch();
            let path = scratch.path().join("f");
            fs::write(&path, "before ".repeat(1000)).unwrap();
            let outcome = meddled(scratch.path(), call, "f", || swap(&path));
            let text = text_of(&outcome.unwrap_or_else(|error| panic!("{call} {want}: {error}")));
            assert!(text.contains(want) && !text.contains("SECRET"), "{call}: {text}");
        }
    }
}

#[test]
fn a_directory_that_becomes_a_link_leads_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "SECRET").unwrap();
    for (call, path) in [("lookup", "d"), ("xattrs", "d"), ("names", "d"), ("lookup", "d/f"), ("read", "d/f")]
    {
        let scratch = scratch();
        let at = scratch.path().join("d");
        fs::create_dir(&at).unwrap();
        fs::write(at.join("f"), "x").unwrap();
        let outcome = meddled(scratch.path(), call, path, || {
            fs::rename(&at, scratch.path().join("moved")).unwrap();
            symlink(outside.path(), &at).unwrap();
        });
        match outcome {
            Ok(recorded) => {
                let text = text_of(&recorded);
                let followed = text.contains("secret") || text.contains("SECRET");
                assert!(!followed, "{call} {path}: {text}");
            }
            Err(error) => assert_eq!(refusal(&error), CHANGED, "{call} {path}: {error}"),
        }
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_refused() {
    let grow = |path: &Path| {
        let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
        std::io::Write::write_all(&mut file, b"more").unwrap();
    };
    let shrink = |path: &Path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(5).unwrap();
    let rewrite = |path: &Path| {
        fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"other", 0).unwrap();
    };
    let replace = |path: &Path| {
        fs::write(path.with_extension("new"), vec![b'x'; 1 << 20]).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    };
    let ways: [&dyn Fn(&Path); 4] = [&grow, &shrink, &rewrite, &replace];
    for call in ["read", "reading"] {
        for (n, way) in ways.iter().enumerate() {
            let scratch = scratch();
            let path = scratch.path().join("f");
            fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
            let outcome = meddled(scratch.path(), call, "f", || {
                // Clocks of files tick every few milliseconds on kernels before 6.13.
                std::thread::sleep(Duration::from_millis(11));
                way(&path);
            });
            match outcome {
                // The open file is the one that was looked at, whatever its name is now.
                Ok(recorded) => assert!(n == 3 && recorded.entries[0].1 == vec![b'x'; 1 << 20], "{call} {n}"),
                Err(error) => assert_eq!(refusal(&error), CHANGED, "{call} {n}: {error}"),
            }
        }
    }
}

#[test]
fn a_file_that_changes_between_two_of_its_names_is_refused() {
    let scratch = scratch();
    let path = scratch.path().join("a");
    fs::write(&path, "x").unwrap();
    fs::hard_link(&path, scratch.path().join("b")).unwrap();
    let error = meddled(scratch.path(), "lookup", "b", || fs::write(&path, "longer").unwrap()).unwrap_err();
    assert_eq!(refusal(&error), CHANGED, "{error}");
}

#[test]
fn a_directory_in_the_place_of_another_is_not_mixed_with_it() {
    let replaced = |call, path| {
        let scratch = scratch();
        let at = scratch.path().join("d");
        fs::create_dir_all(at.join("a/b")).unwrap();
        fs::write(at.join("f"), "x").unwrap();
        meddled(scratch.path(), call, path, || {
            fs::rename(&at, scratch.path().join("0")).unwrap();
            fs::create_dir(&at).unwrap();
            fs::set_permissions(&at, fs::Permissions::from_mode(0o700)).unwrap();
            fs::write(at.join("f"), "y").unwrap();
        })
    };
    let wants = ["dir d\ndir d/a\ndir d/a/b\nfile d/f \"x\"\n", "dir d 700\nfile d/f \"y\"\n"];
    for (call, path) in [("xattrs", "d"), ("names", "d"), ("lookup", "d/a"), ("lookup", "d/f")] {
        match replaced(call, path) {
            Ok(recorded) => {
                assert!(wants.contains(&text_of(&recorded).as_str()), "{call} {path}: {recorded:?}")
            }
            Err(error) => assert_eq!(refusal(&error), CHANGED, "{call} {path}: {error}"),
        }
    }
}

#[test]
fn a_file_that_never_comes_to_rest_is_refused_in_the_end() {
    let scratch = scratch();
    let path = scratch.path().join("f");
    fs::write(&path, "").unwrap();
    let times = Cell::new(0);
    let inner = directory(scratch.path());
    let upper = Watched::new(&inner, |call, _| {
        if call == "xattrs" {
            times.set(times.get() + 1);
            fs::write(&path, "x".repeat(times.get())).unwrap();
        }
    });
    // The root's attributes are read as well.
    let error = compare(&[], &[&upper], &Options::default()).unwrap_err();
    assert_eq!((refusal(&error), times.get()), (CHANGED, 6));
}

#[test]
fn names_that_vanish_are_left_out_but_renamed_files_are_not_missed() {
    let prepared = || {
        let scratch = scratch();
        for name in ["a", "b", "c"] {
            fs::write(scratch.path().join(name), name).unwrap();
        }
        scratch
    };
    let scratch = prepared();
    let path = scratch.path();
    let recorded = meddled(path, "lookup", "b", || fs::remove_file(path.join("b")).unwrap()).unwrap();
    assert!(text_of(&recorded).ends_with("file a \"a\"\nfile c \"c\"\n"));
    // "b" was not emitted yet, and its new name was not listed.
    let scratch = prepared();
    let path = scratch.path();
    let error = meddled(path, "lookup", "b", || fs::rename(path.join("b"), path.join("0")).unwrap());
    assert_eq!(refusal(&error.unwrap_err()), CHANGED);
    // Editors save a file by removing and making it again: it is gone for a moment.
    let scratch = prepared();
    let path = scratch.path();
    let inner = directory(path);
    let upper = Watched::new(&inner, |call, at| match (call, at) {
        ("lookup", b"b") => drop(fs::remove_file(path.join("b"))),
        ("lookup", b"c") => fs::write(path.join("b"), "again").unwrap(),
        _ => {}
    });
    let error = compare(&[], &[&upper], &Options::default()).unwrap_err();
    assert_eq!(refusal(&error), CHANGED);
}

#[test]
fn sparse_files_are_read_by_their_extents_and_eight_exabytes_are_refused_by_the_limit() {
    let scratch = scratch();
    let file = fs::File::create(scratch.path().join("f")).unwrap();
    let size_bytes = 1 << 40;
    file.set_len(size_bytes).unwrap();
    file.write_all_at(&[b'x'; 4096], 1 << 30).unwrap();
    let upper = directory(scratch.path());
    let (recorded, counts) = compare(&[], &[&upper], &Options::default()).unwrap();
    let Body::Regular { size_bytes: found, extents: Some(extents) } = &recorded.entries[0].0.body else {
        panic!("{recorded:?}")
    };
    assert_eq!(*found, size_bytes);
    assert!(matches!(extents[..], [Extent { offset, len }] if offset <= 1 << 30 && len <= 1 << 20));
    assert!(counts.data_bytes >= 4096 && counts.data_bytes <= 1 << 20);
    let limits = Limits { stream_bytes: size_bytes - 1, ..Limits::default() };
    let error = compare(&[], &[&upper], &Options { limits, ..Options::default() }).unwrap_err();
    assert_eq!(refusal(&error), (Kind::Exhausted, "limit.stream"));
}

#[test]
fn a_path_is_emitted_up_to_the_length_that_the_kernel_takes() {
    let mut entries = Entries::new();
    let mut path = String::from("a");
    for _ in 0..2047 {
        entries = entries.dir(&path);
        path += "/a";
    }
    assert_eq!(path.len(), 4095);
    let image = entries.file(&path, "x").image();
    let (recorded, _) = compare(&[], &[&erofs(&image, 1)], &Options::default()).unwrap();
    assert_eq!(recorded.entries.len(), 2048);
}

#[test]
fn a_layer_whose_directories_contain_each_other_is_refused() {
    // A directory that is its own child: found by pointing the record of "xx" at its parent.
    let image = Entries::new().dir("d").dir("d/xx").file("d/f", "x").image();
    let layer = erofs(&image, 1);
    let root = layer.root().unwrap();
    let parent = layer.lookup(At { path: b"", node: &root }, b"d").unwrap().unwrap();
    let child = layer.lookup(At { path: b"d", node: &parent }, b"xx").unwrap().unwrap();
    let mut looped = image.clone();
    let (from, to) = (child.inode.to_le_bytes(), parent.inode.to_le_bytes());
    let records: Vec<_> = (0..image.len() - 8).filter(|at| image[*at..at + 8] == from).collect();
    for at in records {
        looped[at..at + 8].copy_from_slice(&to);
    }
    crate::format::erofs::fixture::seal(&mut looped);
    let error = compare(&[], &[&erofs(&looped, 1)], &Options::default()).unwrap_err();
    assert_eq!(refusal(&error), (Kind::Exhausted, "limit.path"));
}

#[test]
fn a_walk_costs_what_the_upper_layer_holds_however_much_lies_below() {
    let mut upper = Entries::new();
    for directory in 0..10 {
        upper = upper.dir(&format!("d{directory}"));
        for n in 0..99 {
            let path = format!("d{directory}/{n}");
            upper = if n % 9 == 0 { upper.whiteout(&path) } else { upper.file(&path, "x") };
        }
    }
    let image = upper.image();
    let mut calls = Vec::new();
    for files in [1_000, 10_000, 60_000] {
        // Ten layers, each with every directory and its share of the files.
        let images: Vec<_> = (0..10)
            .map(|layer| {
                let mut entries = Entries::new();
                for directory in 0..10 {
                    entries = entries.dir(&format!("d{directory}"));
                    for n in (layer..files / 10).step_by(10) {
                        entries = entries.file(&format!("d{directory}/{n}"), "");
                    }
                }
                entries.image()
            })
            .collect();
        let counted = RefCell::new(BTreeMap::new());
        let layers: Vec<_> = (1..).zip(&images).map(|(key, image)| erofs(image, key)).collect();
        let count = |call, _: &[u8]| *counted.borrow_mut().entry(call).or_insert(0) += 1;
        let layers: Vec<_> = layers.iter().map(|layer| Watched::new(layer, count)).collect();
        let lower: Vec<&dyn View> = layers.iter().map(|layer| layer as &dyn View).collect();
        let top = erofs(&image, 99);
        let mut stack = lower.clone();
        stack.insert(0, &top);
        let (_, counts) = compare(&lower, &stack, &Options::default()).unwrap();
        assert_eq!((counts.changed, counts.deleted), (880, 110));
        calls.push(counted.take());
    }
    // Roots twice, the ten directories, and on average five layers until a deleted name is found.
    assert_eq!(calls[0], [("lookup", 100 + 560), ("root", 20), ("xattrs", 120)].into());
    assert_eq!(calls[0], calls[1]);
    assert_eq!(calls[0], calls[2]);
}

#[test]
fn memory_is_given_back_with_every_directory() {
    let mut entries = Entries::new();
    for directory in 0..40 {
        entries = entries.dir(&format!("{directory}"));
        for n in 0..1000 {
            entries = entries.symlink(&format!("{directory}/a-name-of-some-length-{n}"), "x");
        }
    }
    let image = entries.image();
    let layer = erofs(&image, 1);
    let most = Cell::new(0);
    let mut charge = |bytes| {
        most.set(bytes);
        Ok(())
    };
    let (options, cancel) = (Options::default(), Cancel::new());
    let write = |charge: &mut dyn FnMut(u64) -> Result<()>| {
        changes::write(&[], &[&layer], &options, &cancel, charge, &mut Recorded::default())
    };
    assert_eq!(write(&mut charge).unwrap().changed, 40_040);
    // All names together have more than one megabyte.
    assert_eq!(most.get(), 1 << 20);
    let mut refuse = |_| Err(Error::new(Kind::Exhausted, "limit.metadata", "no"));
    assert_eq!(write(&mut refuse).unwrap_err().reason(), "limit.metadata");
}

#[test]
fn a_directory_of_too_many_names_is_refused_before_they_are_held() {
    let mut entries = Entries::new();
    for n in 0..10_000 {
        entries = entries.symlink(&format!("{n:0200}"), "x");
    }
    let image = entries.image();
    let options = Options { limits: Limits { nodes: 100, ..Limits::default() }, ..Options::default() };
    let mut most = 0;
    let mut charge = |bytes| {
        most = bytes;
        Ok(())
    };
    let layer = erofs(&image, 1);
    let error =
        changes::write(&[], &[&layer], &options, &Cancel::new(), &mut charge, &mut Recorded::default());
    assert_eq!(refusal(&error.unwrap_err()), (Kind::Exhausted, "limit.nodes"));
    // All names together have two megabytes.
    assert_eq!(most, 1 << 20);
}

#[test]
fn a_cancellation_ends_listing_walking_and_reading() {
    let scratch = scratch();
    fs::create_dir(scratch.path().join("d")).unwrap();
    fs::write(scratch.path().join("d/f"), vec![b'x'; 4 << 20]).unwrap();
    for (call, path) in [("root", ""), ("names", "d"), ("lookup", "d/f"), ("read", "d/f"), ("reading", "d/f")]
    {
        let cancel = Cancel::new();
        let inner = directory(scratch.path());
        let upper = Watched::new(&inner, |called, at| {
            if (called, at) == (call, path.as_bytes()) {
                cancel.cancel();
            }
        });
        let (options, mut recorded) = (Options::default(), Recorded::default());
        let outcome = changes::write(&[], &[&upper], &options, &cancel, &mut |_| Ok(()), &mut recorded);
        assert_eq!(outcome.unwrap_err().kind(), Kind::Cancelled, "{call}");
        let read: usize = recorded.entries.iter().map(|(_, data)| data.len()).sum();
        assert!(read <= 1 << 20, "{call}: {read}");
    }
}
