//! Every kind of change, one layer on top of others, in images.

use super::{
    Counts, Options, RootEntry, XattrFilter,
    fixture::{compare, on_top},
};
use crate::{
    error::{Error, Kind},
    limits::Limits,
    tree::{Body, Extent, Timestamp},
    view::{
        At, View,
        fixture::{Entries, Subvolumes, erofs, respelled},
    },
};

fn changes(layers: &[&Entries]) -> String {
    on_top(layers).unwrap()
}

fn refused(layers: &[&Entries]) -> (Kind, &'static str) {
    let error = on_top(layers).unwrap_err();
    (error.kind(), error.reason())
}

#[test]
fn a_first_layer_is_emitted_whole_in_byte_order_depth_first() {
    let first = Entries::new()
        .dir("b")
        .file("b/z", "1")
        .dir("b/a")
        .file("b/a/x", "2")
        .symlink("b.link", "b/z")
        .fifo("a")
        .char_device("c", 1, 3)
        .block_device("B", 8, 300)
        .file("B-", "");
    let want = "block B 8:300\nfile B- \"\"\nfifo a\ndir b\ndir b/a\nfile b/a/x \"2\"\nfile b/z \"1\"\n\
                symlink b.link b/z\nchar c 1:3\n";
    assert_eq!(changes(&[&first]), want);
}

#[test]
fn nothing_is_emitted_for_an_unchanged_stack() {
    let entries = Entries::new().dir("a").file("a/b", "x");
    let image = entries.image();
    let layer = erofs(&image, 1);
    for stack in [&[][..], &[&layer as &dyn View]] {
        let (recorded, counts) = compare(stack, stack, &Options::default()).unwrap();
        assert_eq!((recorded.text().as_str(), counts), ("", Counts::default()));
    }
    assert_eq!(changes(&[&Entries::new(), &entries]), "");
}

#[test]
fn attributes_that_no_file_can_have_are_not_emitted() {
    // As an image may have them that others made.
    let upper = Entries::new()
        .symlink("link", "t")
        .xattr("user.a", "1")
        .file("file", "x")
        .xattr("security.capability", "none")
        .xattr("system.posix_acl_default", "")
        .xattr("user.a", "1");
    assert_eq!(changes(&[&upper]), "file file \"x\" user.a=1\nsymlink link t\n");
}

#[test]
fn every_attribute_of_an_entry_is_emitted() {
    let capability = format!("\x01\0\0\x02{}", "\0".repeat(16));
    let upper = Entries::new()
        .dir("d")
        .mode(0o1777)
        .owner(1, 2)
        .time(-5, 7)
        .xattr("user.d", "v")
        .file("d/f", "x")
        .mode(0o6755)
        .owner(4_000_000_000, 3)
        .time(1 << 33, 999_999_999)
        .xattr("user.b", "2")
        .xattr("security.capability", &capability)
        .xattr("user.a", "1");
    let want = format!(
        "dir d 1777 1:2 @-5.7 user.d=v\n\
         file d/f \"x\" 6755 4000000000:3 @8589934592.999999999 \
         security.capability={} user.a=1 user.b=2\n",
        capability.as_bytes().escape_ascii()
    );
    assert_eq!(changes(&[&upper]), want);
}

#[test]
fn whiteouts_are_emitted_where_there_is_something_to_delete() {
    let lower = Entries::new().dir("d").file("d/f", "x").file("g", "y").dir("h").file("h/i", "z");
    let upper = Entries::new()
        .dir("d")
        .whiteout("d/f")
        .whiteout("d/never")
        .whiteout("g")
        .whiteout("h")
        .whiteout("gone-before");
    assert_eq!(changes(&[&upper, &lower]), "dir d\nmark d/.wh.f\nmark .wh.g\nmark .wh.h\n");
    assert_eq!(changes(&[&upper]), "dir d\n");
    // Deleted in between, and there below that: there is nothing any more.
    let between = Entries::new().whiteout("g").dir("d").whiteout("d/f");
    assert_eq!(changes(&[&upper, &between, &lower]), "mark .wh.h\n");
}

#[test]
fn the_longest_name_can_be_deleted() {
    let name = "n".repeat(255);
    let lower = Entries::new().file(&name, "x");
    assert_eq!(changes(&[&Entries::new().whiteout(&name), &lower]), format!("mark .wh.{name}\n"));
}

#[test]
fn parents_are_emitted_once_and_only_on_the_way_to_a_change() {
    let lower = Entries::new()
        .dir("a")
        .dir("a/b")
        .dir("a/b/c")
        .file("a/b/c/f", "x")
        .dir("q")
        .dir("q/r")
        .file("q/r/f", "x");
    let upper = Entries::new()
        .dir("a")
        .dir("a/b")
        .dir("a/b/c")
        .file("a/b/c/f", "y")
        .file("a/b/c/g", "y")
        .file("a/b/h", "y")
        .dir("q")
        .dir("q/r");
    let want = "dir a\ndir a/b\ndir a/b/c\nfile a/b/c/f \"y\"\nfile a/b/c/g \"y\"\nfile a/b/h \"y\"\n";
    assert_eq!(changes(&[&upper, &lower]), want);
}

#[test]
fn a_directory_whose_attributes_changed_is_emitted_without_its_contents() {
    let lower = Entries::new().dir("a").dir("a/b").file("a/b/f", "x").dir("c").dir("e").dir("same");
    let upper = Entries::new()
        .dir("a")
        .dir("a/b")
        .mode(0o700)
        .dir("c")
        .xattr("user.a", "1")
        .dir("e")
        .time(0, 1)
        .dir("same");
    assert_eq!(changes(&[&upper, &lower]), "dir a\ndir a/b 700\ndir c user.a=1\ndir e @0.1\n");
}

#[test]
fn a_file_on_top_is_emitted_even_if_it_equals_the_one_below() {
    let lower = Entries::new().file("f", "x");
    assert_eq!(changes(&[&lower, &lower]), "file f \"x\"\n");
}

#[test]
fn an_opaque_directory_hides_what_was_in_it() {
    let lower = Entries::new().dir("d").file("d/a", "1").dir("d/sub").file("d/sub/x", "2");
    let upper = Entries::new().dir("d").opaque("d").file("d/!", "3").dir("d/sub").file("d/sub/y", "4");
    let want = "dir d\nmark d/.wh..wh..opq\nfile d/! \"3\"\ndir d/sub\nfile d/sub/y \"4\"\n";
    assert_eq!(changes(&[&upper, &lower]), want);
    // Overlayfs marks every new directory; without anything to hide the mark says nothing.
    let want = "dir d\nfile d/! \"3\"\ndir d/sub\nfile d/sub/y \"4\"\n";
    assert_eq!(changes(&[&upper]), want);
    assert_eq!(changes(&[&upper, &Entries::new().file("d", "no directory")]), want);
    assert_eq!(changes(&[&upper, &Entries::new().whiteout("d"), &lower]), want);
}

#[test]
fn every_type_replaces_every_other() {
    let kinds: [fn(Entries) -> Entries; 6] = [
        |entries| entries.dir("t").file("t/in", "x"),
        |entries| entries.file("t", "data"),
        |entries| entries.symlink("t", "to"),
        |entries| entries.fifo("t"),
        |entries| entries.char_device("t", 1, 3),
        |entries| entries.block_device("t", 7, 0),
    ];
    for (n, old) in kinds.iter().enumerate() {
        for (m, new) in kinds.iter().enumerate().filter(|(m, _)| *m != n) {
            let (lower, upper) = (old(Entries::new()), new(Entries::new()));
            assert_eq!(changes(&[&upper, &lower]), changes(&[&upper]), "{n} {m}");
        }
    }
}

#[test]
fn a_file_over_a_directory_ends_the_merge_for_the_layers_above() {
    let bottom = Entries::new().dir("d").file("d/old", "1");
    let file = Entries::new().file("d", "a file");
    let top = Entries::new().dir("d").file("d/new", "2").whiteout("d/old");
    // The bottom's entries in the directory are not seen through the file.
    assert_eq!(changes(&[&top, &file, &bottom]), "dir d\nfile d/new \"2\"\n");
}

#[test]
fn all_names_of_a_file_are_emitted_when_one_is() {
    let first = Entries::new()
        .dir("a")
        .file("a/kept", "x")
        .dir("b")
        .mode(0o700)
        .link("b/kept", "a/kept")
        .dir("c")
        .link("c/back", "a/kept")
        .link("d", "a/kept");
    let second = Entries::new().dir("c").whiteout("c/back").whiteout("d").file("e", "y").link("f", "e");
    let (first_image, second_image) = (first.image(), second.image());
    let (first, second) = (erofs(&first_image, 1), erofs(&second_image, 2));
    let (without, with): ([&dyn View; 2], [&dyn View; 1]) = ([&second, &first], [&first]);
    // The newer side has names again that the older one had deleted: "a" and "b" are not even listed.
    let (recorded, counts) = compare(&without, &with, &Options::default()).unwrap();
    let want = "dir c\nfile c/back \"x\"\nlink d c/back\nmark .wh.e\nmark .wh.f\n\
                dir a\nlink a/kept c/back\ndir b 700\nlink b/kept c/back\n";
    assert_eq!(recorded.text(), want);
    assert_eq!((counts.changed, counts.deleted, counts.parents), (4, 2, 3));
    // Names that are gone on the newer side are looked for in vain.
    let (recorded, _) = compare(&[], &without, &Options::default()).unwrap();
    let want = "dir a\nfile a/kept \"x\"\ndir b 700\nlink b/kept a/kept\ndir c\nfile e \"y\"\nlink f e\n";
    assert_eq!(recorded.text(), want);
}

#[test]
fn hard_links_are_joined_within_a_layer() {
    let upper = Entries::new()
        .dir("b")
        .file("b/1", "x")
        .link("a", "b/1")
        .link("b/2", "b/1")
        .symlink("s", "x")
        .link("t", "s")
        .fifo("p")
        .link("q", "p");
    let want = "file a \"x\"\ndir b\nlink b/1 a\nlink b/2 a\nfifo p\nlink q p\nsymlink s x\nlink t s 777\n";
    assert_eq!(changes(&[&upper]), want);
}

#[test]
fn one_inode_number_in_two_layers_or_file_systems_is_two_files() {
    let bottom = Entries::new().file("a", "1").link("c", "a").image();
    let top = Entries::new().file("b", "2").link("d", "b").image();
    let (bottom, top) = (erofs(&bottom, 1), erofs(&top, 2));
    let inode = |layer: &dyn View, name: &[u8]| {
        let root = layer.root().unwrap();
        layer.lookup(At { path: b"", node: &root }, name).unwrap().unwrap().inode
    };
    assert_eq!(inode(&bottom, b"a"), inode(&top, b"b"));
    let (recorded, _) = compare(&[], &[&top, &bottom], &Options::default()).unwrap();
    let want = "file a \"1\"\nfile b \"2\"\nlink c a\nlink d b\n";
    assert_eq!(recorded.text(), want);

    let image = Entries::new().file("a", "x").link("b", "a").link("c", "a").link("d", "a").image();
    let image = erofs(&image, 1);
    let layer = Subvolumes { inner: &image, file_system: |name| u64::from(name[0] % 2) };
    let (recorded, _) = compare(&[], &[&layer], &Options::default()).unwrap();
    assert_eq!(recorded.text(), "file a \"x\"\nfile b \"x\"\nlink c a\nlink d b\n");
}

#[test]
fn sparse_files_are_emitted_by_their_extents() {
    let data = [b'x'; 65_536];
    let upper =
        Entries::new().sparse("s", 1 << 30, &[(65_536, &data), (1 << 20, &data)]).sparse("t", 1 << 40, &[]);
    let image = upper.image();
    let layer = erofs(&image, 1);
    let limits = Limits { stream_bytes: 1 << 41, ..Limits::default() };
    let options = Options { limits, ..Options::default() };
    let (recorded, counts) = compare(&[], &[&layer], &options).unwrap();
    let bodies: Vec<_> = recorded.entries.iter().map(|(entry, _)| entry.body.clone()).collect();
    let extents = [65_536, 1 << 20].map(|offset| Extent { offset, len: 65_536 });
    let sparse = |size_bytes, extents| Body::Regular { size_bytes, extents: Some(extents) };
    assert_eq!(bodies, [sparse(1 << 30, extents.to_vec()), sparse(1 << 40, vec![])]);
    assert!(recorded.entries[0].1.iter().all(|byte| *byte == b'x'));
    assert_eq!((counts.changed, counts.data_bytes), (2, 131_072));
}

#[test]
fn the_size_of_all_files_is_limited_with_their_holes() {
    let upper = Entries::new().file("a", "x").sparse("b", 99, &[]).sparse("c", 1, &[]);
    let image = upper.image();
    let layer = erofs(&image, 1);
    for (stream_bytes, fits) in [(101, true), (100, false), (98, false)] {
        let options = Options { limits: Limits { stream_bytes, ..Limits::default() }, ..Options::default() };
        let outcome = compare(&[], &[&layer], &options);
        let refused = outcome.err().map(|error| (error.kind(), error.reason()));
        assert_eq!(refused, (!fits).then_some((Kind::Exhausted, "limit.stream")), "{stream_bytes}");
    }
}

#[test]
fn a_renamed_directory_has_what_lay_under_its_old_name() {
    let lower = Entries::new().dir("p").dir("p/d").file("p/d/f", "x").file("p/d/g", "x").file("h", "y");
    let beside = || Entries::new().dir("p").whiteout("p/d").dir("p/e").xattr("trusted.overlay.redirect", "d");
    assert_eq!(
        changes(&[&beside().file("p/e/g", "new"), &lower]),
        "dir p\nmark p/.wh.d\ndir p/e\nfile p/e/f \"x\"\nfile p/e/g \"new\"\n"
    );
    // Elsewhere, with a path, and from a layer between.
    let moved = Entries::new().dir("q").xattr("trusted.overlay.redirect", "/p/e").dir("p").whiteout("p/e");
    let text = "dir p\nmark p/.wh.e\ndir q\nfile q/f \"x\"\nfile q/g \"x\"\n";
    assert_eq!(changes(&[&moved, &beside(), &lower]), text);
    // Entries below a directory that was renamed before are equal on both sides.
    let top = Entries::new().dir("p").dir("p/e").file("p/e/f", "z");
    assert_eq!(changes(&[&top, &beside(), &lower]), "dir p\ndir p/e\nfile p/e/f \"z\"\n");
}

#[test]
fn a_file_without_data_has_that_of_the_file_below() {
    let lower = Entries::new().dir("d").file("d/f", "x").file("g", "y");
    let upper = Entries::new().file("g", "\0").mode(0o600).xattr("trusted.overlay.metacopy", "");
    assert_eq!(changes(&[&upper, &lower]), "file g \"y\" 600\n");
    let moved = Entries::new().file("h", "\0").xattr("trusted.overlay.metacopy", "");
    let moved = moved.xattr("trusted.overlay.redirect", "/d/f");
    assert_eq!(changes(&[&moved, &upper, &lower]), "file h \"x\"\n");
    // The file between has none either.
    let again = Entries::new().file("g", "\0").xattr("trusted.overlay.metacopy", "");
    assert_eq!(changes(&[&again, &upper, &lower]), "file g \"y\"\n");
    // A file of another length is not the one that was below.
    let other = Entries::new().file("g", "\0\0").xattr("trusted.overlay.metacopy", "");
    assert_eq!(refused(&[&other, &lower]), (Kind::Conflict, "compare.metacopy"));
    // On a file with data a redirect says nothing.
    let copied = Entries::new().file("g", "z").xattr("trusted.overlay.redirect", "/none");
    assert_eq!(changes(&[&copied, &lower]), "file g \"z\"\n");
}

#[test]
fn names_of_an_inode_stay_together_when_the_directory_of_one_is_renamed() {
    let lower = Entries::new().dir("d").file("d/f", "x").link("g", "d/f");
    let upper = Entries::new().whiteout("d").dir("e").xattr("trusted.overlay.redirect", "d");
    assert_eq!(changes(&[&upper, &lower]), "mark .wh.d\ndir e\nfile e/f \"x\"\nlink g e/f\n");
}

#[test]
fn redirects_lead_downwards_only_and_must_lead_somewhere() {
    let lower = Entries::new().dir("d").file("d/f", "x").file("f", "x");
    for target in ["/e", "e", "/d/f", "..", "/d/..", "/", "", "/d/", "d/f", "./d"] {
        let redirect = Entries::new().dir("d").xattr("trusted.overlay.redirect", target);
        assert_eq!(refused(&[&redirect, &lower]), (Kind::Conflict, "compare.redirect"), "{target}");
        let top = Entries::new().dir("d").file("d/f", "y");
        assert_eq!(refused(&[&top, &redirect, &lower]), (Kind::Conflict, "compare.redirect"), "{target}");
    }
    let metacopy = Entries::new().file("h", "").xattr("trusted.overlay.metacopy", "");
    assert_eq!(refused(&[&metacopy, &lower]), (Kind::Conflict, "compare.metacopy"));
    // The other prefix is not this layer's.
    let other = Entries::new().dir("d").xattr("user.overlay.redirect", "/e").time(1, 0);
    assert_eq!(changes(&[&other, &lower]), "dir d @1.0\n");
}

#[test]
fn a_redirect_in_a_shared_layer_leads_into_what_each_side_has_below() {
    let shared = Entries::new().whiteout("d").dir("e").xattr("trusted.overlay.redirect", "/d");
    let (old, new) = (Entries::new().dir("d").file("d/f", "x"), Entries::new().dir("d").file("d/f", "y"));
    let [shared, old, new] =
        [shared, old, new].map(|entries| respelled(entries.image(), "overlaX.", "overlay."));
    let (shared, old, new) = (erofs(&shared, 1), erofs(&old, 2), erofs(&new, 3));
    let (recorded, _) = compare(&[&shared, &old], &[&shared, &new], &Options::default()).unwrap();
    assert_eq!(recorded.text(), "dir e\nfile e/f \"y\"\n");
}

#[test]
fn attributes_of_overlayfs_and_of_the_host_are_neither_emitted_nor_changes() {
    let lower = Entries::new().dir("d").file("d/f", "x");
    let upper = Entries::new()
        .dir("d")
        .xattr("trusted.overlay.origin", "\0")
        .xattr("trusted.overlay.impure", "y")
        .xattr("security.selinux", "label")
        .file("g", "x")
        .xattr("user.overlay.opaque", "y")
        .xattr("trusted.overlay.origin", "\0")
        .xattr("security.ima", "sig")
        .xattr("trusted.mine", "1");
    assert_eq!(changes(&[&upper, &lower]), "file g \"x\" trusted.mine=1\n");
    let image = upper.image();
    let layer = erofs(&image, 1);
    let options = Options { xattrs: XattrFilter::new(["user.*"]).unwrap(), ..Options::default() };
    let (recorded, _) = compare(&[], &[&layer], &options).unwrap();
    assert_eq!(recorded.text(), "dir d\nfile g \"x\"\n");
}

#[test]
fn whiteouts_in_the_form_of_an_attribute_count_in_directories_marked_for_them() {
    let lower = Entries::new().dir("d").file("d/f", "x").file("d/g", "y").dir("e").file("e/f", "x");
    let upper = Entries::new()
        .dir("d")
        .xattr("trusted.overlaX.opaque", "x")
        .file("d/f", "")
        .xattr("trusted.overlay.whiteout", "")
        .file("d/g", "not empty")
        .xattr("trusted.overlay.whiteout", "")
        .file("d/h", "")
        .dir("e")
        .file("e/f", "")
        .xattr("trusted.overlay.whiteout", "");
    let want = "dir d\nmark d/.wh.f\nfile d/g \"not empty\"\nfile d/h \"\"\ndir e\nfile e/f \"\"\n";
    assert_eq!(changes(&[&upper, &lower]), want);
    let root = Entries::new()
        .dir("")
        .xattr("trusted.overlaX.opaque", "x")
        .file("g", "")
        .xattr("trusted.overlay.whiteout", "");
    assert_eq!(changes(&[&root, &Entries::new().file("g", "y")]), "mark .wh.g\n");
    // In a lower layer they delete for those above.
    let top = Entries::new().dir("d").whiteout("d/f").whiteout("d/h");
    assert_eq!(changes(&[&top, &upper, &lower]), "dir d\nmark d/.wh.h\n");
}

#[test]
fn names_that_layers_reserve_are_refused() {
    // Only by hand: our writer takes them for what they mean.
    let lower = Entries::new().file("f", "x");
    let upper = Entries::new().file("Xwh.f", "x").dir("d").file("d/Xwh.g", "x");
    let (lower, image) = (lower.image(), respelled(upper.image(), "Xwh.", ".wh."));
    let (lower, layer) = (erofs(&lower, 1), erofs(&image, 2));
    let refused = |error: Error| (error.kind(), error.reason(), error.to_string().contains(".wh.f"));
    let error = compare(&[&lower], &[&layer, &lower], &Options::default()).unwrap_err();
    assert_eq!(refused(error), (Kind::Conflict, "compare.reserved-name", true));
    // Deleting one would need a name that means something else again.
    let error = compare(&[&layer], &[], &Options::default()).unwrap_err();
    assert_eq!(refused(error), (Kind::Conflict, "compare.reserved-name", true));
    // Where it is on both sides, nobody needs to speak of it.
    assert!(compare(&[&layer], &[&layer], &Options::default()).is_ok());
    // Unless it leads to a change.
    let lower = respelled(Entries::new().dir("Xwh.d").image(), "Xwh.", ".wh.");
    let upper = respelled(Entries::new().dir("Xwh.d").file("Xwh.d/f", "x").image(), "Xwh.", ".wh.");
    let (lower, upper) = (erofs(&lower, 1), erofs(&upper, 2));
    let error = compare(&[&lower], &[&upper, &lower], &Options::default()).unwrap_err();
    assert_eq!(error.reason(), "compare.reserved-name", "{error}");
}

#[test]
fn times_later_than_the_epoch_are_lowered() {
    let upper = Entries::new().dir("d").time(5, 1).file("d/f", "x").time(4, 999).file("g", "").time(9, 0);
    let lower = Entries::new().file("w", "x");
    let top = upper.whiteout("w");
    let images = [top.image(), lower.image()];
    let (top, lower) = (erofs(&images[0], 1), erofs(&images[1], 2));
    let epoch = Some(Timestamp { seconds: 5, nanoseconds: 0 });
    let options = Options { epoch, ..Options::default() };
    let (recorded, _) = compare(&[&lower], &[&top, &lower], &options).unwrap();
    let want = "dir d @5.0\nfile d/f \"x\" @4.999\nfile g \"\" @5.0\nmark .wh.w\n";
    assert_eq!(recorded.text(), want);
}

#[test]
fn the_root_is_emitted_when_more_than_its_time_changed_or_when_asked_for() {
    let root = |mode| Entries::new().dir("").mode(mode).time(7, 0);
    let lower = Entries::new().dir("").time(6, 0);
    assert_eq!(changes(&[&root(0o755), &lower]), "");
    assert_eq!(changes(&[&root(0o755)]), "");
    assert_eq!(changes(&[&root(0o700), &lower]), "dir  700 @7.0\n");
    assert_eq!(changes(&[&root(0o755).xattr("user.a", "1"), &lower]), "dir  @7.0 user.a=1\n");
    assert_eq!(changes(&[&root(0o755).owner(1, 0)]), "dir  1:0 @7.0\n");
    let images = [root(0o755).image(), lower.image()];
    let (upper, lower) = (erofs(&images[0], 1), erofs(&images[1], 2));
    let options = Options { root: RootEntry::Always, ..Options::default() };
    let (recorded, counts) = compare(&[&lower], &[&upper, &lower], &options).unwrap();
    assert_eq!((recorded.text().as_str(), counts.parents), ("dir  @7.0\n", 1));
    let (recorded, _) = compare(&[&lower], &[&lower], &options).unwrap();
    assert_eq!(recorded.text(), "dir  @6.0\n");
    let (recorded, _) = compare(&[&lower], &[], &options).unwrap();
    assert_eq!(recorded.text(), "dir \n");
}

/// Containerd's walking differ has no entry for the root either.
#[test]
fn nothing_has_no_root_to_tell() {
    let image = Entries::new().dir("").mode(0o700).owner(1, 2).file("f", "x").image();
    let (recorded, _) = compare(&[&erofs(&image, 1)], &[], &Options::default()).unwrap();
    assert_eq!(recorded.text(), "mark .wh.f\n");
}

#[test]
fn emitted_entries_are_counted() {
    let lower = Entries::new().dir("d").file("d/f", "x").dir("o").file("o/f", "x").file("w", "");
    let upper =
        Entries::new().dir("d").file("d/f", "abc").link("l", "d/f").dir("o").opaque("o").whiteout("w");
    let images = [upper.image(), lower.image()];
    let (upper, lower) = (erofs(&images[0], 1), erofs(&images[1], 2));
    let (_, counts) = compare(&[&lower], &[&upper, &lower], &Options::default()).unwrap();
    let want = Counts { changed: 3, deleted: 1, opaque: 1, parents: 1, sockets: 0, data_bytes: 3 };
    assert_eq!(counts, want);
}

#[test]
fn the_number_of_names_is_limited() {
    let upper = Entries::new().file("a", "").file("b", "").file("c", "");
    let image = upper.image();
    let layer = erofs(&image, 1);
    for (nodes, fits) in [(3, true), (2, false)] {
        let options = Options { limits: Limits { nodes, ..Limits::default() }, ..Options::default() };
        let refused = compare(&[], &[&layer], &options).err().map(|error| (error.kind(), error.reason()));
        assert_eq!(refused, (!fits).then_some((Kind::Exhausted, "limit.nodes")));
    }
}
