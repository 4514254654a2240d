//! Directories in the merged tree of a stack: the rules of overlayfs, one by one.

use std::fs;

use super::*;
use crate::{
    error::Kind,
    sys::dir::Dir,
    tree::Timestamp,
    view::{
        Control, DirectoryView,
        fixture::{Entries, Watched, erofs, respelled},
    },
};

/// Owner, mode, time and attributes of the directory at `path` in `layers`, the newest first; `None` without such
/// a directory.
fn described(layers: &[&dyn View], path: &str) -> Result<Option<(Attributes, Vec<Xattr>)>> {
    let (cancel, mut charge) = (Cancel::new(), |_| Ok(()));
    let mut tree = MergedTree::new(layers, &cancel, &mut charge);
    let mut at = tree.root()?;
    let mut walked = String::new();
    for name in path.split('/') {
        walked = format!("{walked}/{name}").trim_start_matches('/').to_owned();
        match tree.child(&at, walked.as_bytes(), name.as_bytes())? {
            Some(found) => at = found,
            None => return Ok(None),
        }
    }
    tree.describe(&at, path.as_bytes()).map(Some)
}

/// Owner of the directory at `path` in a stack of images, the newest first.
fn owner(stack: &[&Entries], path: &str) -> Result<Option<u32>> {
    // Marks that the writer does not write are spelled so that it does.
    let images: Vec<_> =
        stack.iter().map(|entries| respelled(entries.image(), "overlaX.", "overlay.")).collect();
    let layers: Vec<_> = (0..).zip(&images).map(|(key, image)| erofs(image, key)).collect();
    let layers: Vec<&dyn View> = layers.iter().map(|layer| layer as &dyn View).collect();
    Ok(described(&layers, path)?.map(|(attributes, _)| attributes.uid))
}

#[test]
fn the_topmost_layer_that_has_the_directory_decides_about_all_of_it() {
    let upper = Entries::new().dir("d").owner(1, 2).mode(0o1777).time(-7, 999_999_999).xattr("user.new", "1");
    let lower = Entries::new().dir("d").owner(3, 4).xattr("user.old", "2").dir("d/below").owner(5, 5);
    let images = [upper.image(), lower.image()];
    let [upper, lower] = [erofs(&images[0], 1), erofs(&images[1], 2)];
    let layers: [&dyn View; 2] = [&upper, &lower];
    let (attributes, xattrs) = described(&layers, "d").unwrap().unwrap();
    let mtime = Timestamp { seconds: -7, nanoseconds: 999_999_999 };
    assert_eq!(attributes, Attributes { mode: 0o1777, uid: 1, gid: 2, mtime });
    assert_eq!(xattrs, [Xattr { name: b"user.new".to_vec(), value: b"1".to_vec() }]);
    assert_eq!(described(&layers, "d/below").unwrap().unwrap().0.uid, 5);
    assert_eq!(described(&layers, "d/none").unwrap(), None);
    assert_eq!(described(&[], "d").unwrap(), None);
}

#[test]
fn whiteouts_opaque_directories_and_other_files_in_between_hide_what_is_below() {
    let base = Entries::new().dir("a").owner(1, 1).dir("a/b").owner(2, 2);
    let passing = Entries::new().file("other", "x");
    for (between, path, want) in [
        (Entries::new().whiteout("a"), "a", None),
        (Entries::new().whiteout("a"), "a/b", None),
        (Entries::new().dir("a").owner(9, 9).whiteout("a/b"), "a/b", None),
        (Entries::new().dir("a").owner(9, 9).opaque("a"), "a", Some(9)),
        (Entries::new().dir("a").owner(9, 9).opaque("a"), "a/b", None),
        (Entries::new().file("a", "x"), "a", None),
        (Entries::new().file("a", "x"), "a/b", None),
        (Entries::new().symlink("a", "elsewhere").dir("elsewhere"), "a", None),
        (Entries::new().symlink("a", "c").dir("c").dir("c/b").owner(9, 9), "a/b", None),
        (Entries::new().fifo("a"), "a/b", None),
        (Entries::new().dir("a").owner(9, 9), "a/b", Some(2)),
        (Entries::new().file("f", "x"), "a/b", Some(2)),
    ] {
        let found = owner(&[&passing, &between, &base], path).unwrap();
        assert_eq!(found, want, "{path} below {:?}", between.0);
        // Hidden directories stay hidden when a layer above has one of its own.
        let again = Entries::new().dir("a").owner(7, 7);
        let again = owner(&[&again, &between, &base], "a/b").unwrap();
        assert_eq!(again, if path == "a/b" { want } else { again }, "{path} below {:?}", between.0);
    }
}

#[test]
fn attributes_that_steer_overlayfs_are_not_handed_out() {
    let layer = Entries::new().dir("d").xattr("trusted.kept", "1").xattr("security.selinux", "l");
    // The writer marks the directory as opaque and as holding a whiteout.
    let layer = layer.opaque("d").whiteout("d/gone");
    let image = layer.image();
    let layer = erofs(&image, 1);
    let (_, xattrs) = described(&[&layer], "d").unwrap().unwrap();
    let names: Vec<_> = xattrs.iter().map(|xattr| xattr.name.as_slice()).collect();
    assert_eq!(names, [&b"security.selinux"[..], b"trusted.kept"]);
}

#[test]
fn attributes_that_the_kernel_would_not_set_are_not_handed_out() {
    let layer = Entries::new().dir("d").xattr("security.capability", "all").xattr("user.kept", "1");
    let image = layer.image();
    let layer = erofs(&image, 1);
    let (_, xattrs) = described(&[&layer], "d").unwrap().unwrap();
    assert_eq!(xattrs, [Xattr { name: b"user.kept".to_vec(), value: b"1".to_vec() }]);
}

#[test]
fn a_directory_on_disk_is_read_like_an_image() {
    let scratch = tempfile::tempdir().unwrap();
    fs::create_dir_all(scratch.path().join("d/in")).unwrap();
    std::os::unix::fs::symlink("d", scratch.path().join("link")).unwrap();
    rustix::fs::setxattr(scratch.path().join("d"), "user.a", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    let root = Dir::open_root(scratch.path()).unwrap();
    let layer = DirectoryView::new(root, "dir".to_owned(), Control::User, &Cancel::new()).unwrap();
    let (attributes, xattrs) = described(&[&layer], "d").unwrap().unwrap();
    assert_eq!(xattrs, [Xattr { name: b"user.a".to_vec(), value: b"1".to_vec() }]);
    assert!(attributes.mtime.seconds > 0);
    assert!(described(&[&layer], "d/in").unwrap().is_some());
    // A link of the host is followed no more than one of an image.
    assert_eq!(described(&[&layer], "link").unwrap(), None);
    assert_eq!(described(&[&layer], "link/in").unwrap(), None);
}

#[test]
fn nothing_is_listed_and_no_other_name_is_looked_at() {
    let image = Entries::new().dir("a").dir("a/b").file("a/b/c", "x").dir("z").image();
    let calls = std::cell::RefCell::new(Vec::new());
    let inner = erofs(&image, 1);
    let layer = Watched::new(&inner, |call, path| calls.borrow_mut().push((call, path.to_vec())));
    described(&[&layer], "a/b").unwrap().unwrap();
    let want: [(&str, &[u8]); 6] = [
        ("root", b""),
        ("xattrs", b""),
        ("lookup", b"a"),
        ("xattrs", b"a"),
        ("lookup", b"a/b"),
        ("xattrs", b"a/b"),
    ];
    let calls = calls.into_inner();
    assert_eq!(calls.iter().map(|(call, path)| (*call, path.as_slice())).collect::<Vec<_>>(), want);
}

#[test]
fn the_work_of_very_many_directories_on_very_many_layers_is_bounded() {
    let image = Entries::new().dir("d").image();
    let layers: Vec<_> = (0..10).map(|key| erofs(&image, key)).collect();
    let layers: Vec<&dyn View> = layers.iter().map(|layer| layer as &dyn View).collect();
    let (cancel, mut charge) = (Cancel::new(), |_| Ok(()));
    let mut tree = MergedTree::new(&layers, &cancel, &mut charge);
    tree.max_lookups = 1000;
    let root = tree.root().unwrap();
    for _ in 0..100 {
        assert!(tree.child(&root, b"none", b"none").unwrap().is_none());
    }
    let error = tree.child(&root, b"d", b"d").err().unwrap();
    assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.parent-lookups"));
}

#[test]
fn memory_is_charged_while_directories_are_at_hand_and_a_refusal_ends_the_walk() {
    let image = Entries::new().dir("d").xattr("user.large", &"x".repeat(60_000)).image();
    let layers: Vec<_> = (0..40).map(|key| erofs(&image, key)).collect();
    let layers: Vec<&dyn View> = layers.iter().map(|layer| layer as &dyn View).collect();
    let cancel = Cancel::new();
    let mut most = 0;
    let mut charge = |bytes| {
        most = bytes;
        if bytes > 3 << 20 { Err(Error::new(Kind::Exhausted, "limit.metadata", "too much")) } else { Ok(()) }
    };
    let mut tree = MergedTree::new(&layers, &cancel, &mut charge);
    let root = tree.root().unwrap();
    for _ in 0..1000 {
        assert!(tree.child(&root, b"d", b"d").unwrap().is_some(), "what was dropped is free again");
    }
    let mut kept = Vec::new();
    let error = loop {
        match tree.child(&root, b"d", b"d") {
            Ok(found) => kept.push(found),
            Err(error) => break error,
        }
    };
    assert_eq!(error.reason(), "limit.metadata");
    assert!((40..60).contains(&kept.len()), "{}", kept.len());
    cancel.cancel();
    assert_eq!(tree.child(&root, b"d", b"d").err().unwrap().kind(), Kind::Cancelled);
    assert_eq!(most, 4 << 20);
}
