//! Two stacks of which none is the other and a layer more: files are compared, not taken as they are.

use std::os::unix::net::UnixListener;

use super::{Options, fixture::compare};
use crate::{
    call::Cancel,
    sys::dir::Dir,
    view::{
        Control, DirectoryView, View,
        fixture::{Entries, erofs},
    },
};

/// The entries for one layer in the place of another.
fn replaced(old: &Entries, new: &Entries) -> String {
    let (old, new) = (old.image(), new.image());
    let (old, new) = (erofs(&old, 1), erofs(&new, 2));
    compare(&[&old], &[&new], &Options::default()).unwrap().0.text()
}

#[test]
fn files_without_a_difference_are_not_emitted() {
    let entries = |first: &str| {
        let data = "x".repeat(3 << 20);
        let all = Entries::new().file("big", &data).symlink("l", "to").char_device("c", 1, 3).fifo("p");
        all.dir("d").file("d/f", first).link("d/g", "d/f").file("e", "")
    };
    assert_eq!(replaced(&entries("x"), &entries("x")), "");
    assert_eq!(replaced(&entries("x"), &entries("y")), "dir d\nfile d/f \"y\"\nlink d/g d/f\n");
}

#[test]
fn a_difference_in_the_last_byte_alone_is_one() {
    for size in [1, 4096, 1 << 20, (1 << 20) + 1, 3 << 20] {
        let mut data = vec![b'x'; size];
        let old = Entries::new().bytes("f", &data);
        data[size - 1] = b'y';
        let text = replaced(&old, &Entries::new().bytes("f", &data));
        assert!(text.starts_with("file f ") && text.ends_with("y\"\n"), "{size}");
    }
}

#[test]
fn devices_differ_by_their_numbers_and_links_by_their_targets() {
    let old = Entries::new().char_device("a", 1, 3).block_device("b", 8, 1).symlink("c", "to");
    let new = Entries::new().char_device("a", 1, 5).block_device("b", 9, 1).symlink("c", "no");
    assert_eq!(replaced(&old, &new), "char a 1:5\nblock b 9:1\nsymlink c no\n");
}

#[test]
fn a_file_that_gained_or_lost_a_name_is_another() {
    let apart = Entries::new().file("a", "x").file("b", "x");
    let joined = Entries::new().file("a", "x").link("b", "a");
    assert_eq!(replaced(&apart, &joined), "file a \"x\"\nlink b a\n");
    assert_eq!(replaced(&joined, &apart), "file a \"x\"\nfile b \"x\"\n");
}

#[test]
fn a_stack_of_one_layer_more_is_on_top_of_another_only_with_the_same_layers() {
    let images = [
        Entries::new().dir("d").opaque("d").file("d/f", "x").image(),
        Entries::new().file("g", "y").image(),
        Entries::new().dir("d").file("d/f", "x").file("d/gone", "z").image(),
    ];
    let [top, below, other] = &images;
    let (top, below, other) = (erofs(top, 1), erofs(below, 2), erofs(other, 3));
    let (recorded, _) = compare(&[&other], &[&top, &below], &Options::default()).unwrap();
    assert_eq!(recorded.text(), "dir d\nmark d/.wh.gone\nfile g \"y\"\n");
}

#[test]
fn a_socket_that_was_there_before_is_not_deleted() {
    let scratch = tempfile::tempdir().unwrap();
    let _listening = UnixListener::bind(scratch.path().join("s")).unwrap();
    let root = Dir::open_root(scratch.path()).unwrap();
    let shared = DirectoryView::new(root, "shared".to_owned(), Control::User, &Cancel::new()).unwrap();
    let images = [Entries::new().file("f", "x").image(), Entries::new().file("f", "y").image()];
    let (old, new) = (erofs(&images[0], 1), erofs(&images[1], 2));
    // Below it the stacks differ, so that its names are listed.
    let (lower, upper): ([&dyn View; 2], [&dyn View; 2]) = ([&shared, &old], [&shared, &new]);
    let (recorded, counts) = compare(&lower, &upper, &Options::default()).unwrap();
    assert_eq!((recorded.text().as_str(), counts.sockets), ("file f \"y\"\n", 0));
    // A socket in the place of another file deletes that.
    let before = Entries::new().file("s", "x").image();
    let (recorded, counts) = compare(&[&erofs(&before, 3)], &[&shared, &new], &Options::default()).unwrap();
    assert!(recorded.text().contains("mark .wh.s\n"), "{}", recorded.text());
    assert_eq!((counts.sockets, counts.deleted), (1, 1));
}
