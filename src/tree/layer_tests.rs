//! Tests of the tree's rules. Random layers are compared with a model in `tests/oracle/erofs_writer.rs`.

use super::{nodes::*, *};
use crate::error::{Classify, Kind};

const ROOMY: Limits = Limits { nodes: 1 << 20, memory_bytes: 1 << 30 };

fn entry(path: &str, body: Body) -> Entry {
    let attributes = Attributes { mode: 0o600, uid: 7, ..Attributes::default() };
    Entry { path: path.into(), attributes, xattrs: Vec::new(), body }
}

fn file(path: &str) -> Entry {
    entry(path, Body::Regular { size_bytes: 0, extents: None })
}

fn directory(path: &str) -> Entry {
    entry(path, Body::Directory)
}

fn symlink(path: &str, target: &str) -> Entry {
    entry(path, Body::Symlink { target: target.into() })
}

fn link(path: &str, target: &str) -> Entry {
    entry(path, Body::HardLink { target: target.into() })
}

/// Builds a tree of `entries`, whose payloads are the numbers of their entries. Returns the freed
/// payloads too.
fn tree_of(entries: &[Entry]) -> Result<(Tree<usize>, Vec<usize>), TreeError> {
    let mut tree = Tree::new(ROOMY);
    let mut freed = Vec::new();
    for (number, entry) in entries.iter().enumerate() {
        if let Inserted::File(id) | Inserted::Whiteout(id) = tree.insert(entry, &mut freed)? {
            tree.set_payload(id, number);
        }
    }
    Ok((tree, freed))
}

/// Tree as text, depth first: `name` or `name/`, then `!` if opaque, `~` for a whiteout.
fn shown(tree: &mut Tree<usize>) -> String {
    fn show(tree: &mut Tree<usize>, at: DirectoryId, path: &str, lines: &mut Vec<String>) {
        tree.sort(at);
        let children: Vec<(String, Node)> =
            tree.children(at).map(|(name, node)| (format!("{path}{}", name.escape_ascii()), node)).collect();
        for (name, node) in children {
            match node {
                Node::Directory(id) => {
                    let opaque = if tree.is_opaque(id) { "!" } else { "" };
                    lines.push(format!("{name}/{opaque}"));
                    show(tree, id, &format!("{name}/"), lines);
                }
                Node::File(id) => {
                    lines.push(format!("{name}{}", if tree.is_whiteout(id) { "~" } else { "" }));
                }
            }
        }
    }
    let mut lines = Vec::new();
    show(tree, DirectoryId::ROOT, "", &mut lines);
    lines.join(" ")
}

fn tree_text(entries: &[Entry]) -> String {
    match tree_of(entries) {
        Ok((mut tree, _)) => shown(&mut tree),
        Err(error) => format!("{}: {error}", error.reason()),
    }
}

#[test]
fn names_that_mean_nothing_are_refused_with_a_reason() {
    for (entries, reason) in [
        (vec![file("../a")], "tree.path.climb"),
        (vec![file("a\0")], "tree.path.nul"),
        (vec![file(&"a".repeat(256))], "tree.path.length"),
        (vec![file("/")], "tree.root.type"),
        (vec![link(".", "a")], "tree.root.type"),
        (vec![file(".wh.")], "tree.whiteout.name"),
        (vec![file(".wh.a/b")], "tree.whiteout.parent"),
        (vec![file("a"), file("a/b")], "tree.parent"),
        (vec![entry("a", Body::Fifo), file("a/b/c")], "tree.parent"),
        (vec![link("a", "b")], "tree.hardlink.target"),
        (vec![link("a", "a")], "tree.hardlink.target"),
        (vec![directory("b"), link("a", "b")], "tree.hardlink.target"),
        (vec![link("a", "/")], "tree.hardlink.target"),
        (vec![file(".wh.b"), link("a", "b")], "tree.hardlink.target"),
        (vec![file(".wh.b"), link("a", "b/c")], "tree.hardlink.target"),
        (vec![symlink("a", "")], "tree.symlink.target"),
        (vec![symlink("a", "b\0")], "tree.symlink.target"),
        (vec![symlink("a", &"b".repeat(4096))], "tree.symlink.target"),
        (vec![symlink("a", "a"), file("a/b")], "tree.symlink.loop"),
        (vec![symlink("a", "b"), symlink("b", "/a"), file("a/b")], "tree.symlink.loop"),
        (vec![symlink("a", ".wh.b"), file("a/c")], "tree.whiteout.parent"),
        (vec![symlink("a", &"b".repeat(256)), file("a/c")], "tree.path.length"),
    ] {
        let error = tree_of(&entries).expect_err(reason);
        assert_eq!((error.reason(), error.kind()), (reason, Kind::Malformed), "{error}");
    }
}

#[test]
fn the_last_entry_of_a_name_counts() {
    for (entries, want) in [
        (vec![file("a"), directory("a")], "a/"),
        (vec![directory("a/b"), file("a/c"), directory("a")], "a/ a/b/ a/c"),
        (vec![directory("a/b/c"), file("a/d"), file("a")], "a"),
        (vec![directory("a/b"), file("a"), file("./b/../a")], "a"),
        (vec![directory("a/b"), file("a"), directory("a"), file("a/c")], "a/ a/c"),
        (vec![symlink("a", "b"), directory("a"), file("a/c")], "a/ a/c"),
    ] {
        assert_eq!(tree_text(&entries), want);
    }
}

#[test]
fn whiteouts_delete_from_lower_layers_only_in_either_order() {
    for (entries, want) in [
        (vec![file(".wh.a")], "a~"),
        (vec![file("d/.wh.a"), file("d/.wh.a")], "d/ d/a~"),
        (vec![file(".wh.a"), file("a")], "a"),
        (vec![file("a"), file(".wh.a")], "a"),
        (vec![directory("a"), file(".wh.a")], "a/!"),
        (vec![file(".wh.a"), directory("a")], "a/!"),
        (vec![file(".wh.a"), file("a/b")], "a/! a/b"),
        (vec![file(".wh.a"), file("a"), directory("a")], "a/!"),
        (vec![file("a/.wh..wh..opq"), file("a/b")], "a/! a/b"),
        (vec![file("a/b"), file("a/.wh..wh..opq"), directory("a")], "a/! a/b"),
        (vec![file(".wh..wh.plnk"), file("x/.wh..wh.aufs")], ""),
        (vec![entry("a", Body::CharDevice(Device::WHITEOUT))], "a~"),
        (vec![directory("a"), entry("a", Body::CharDevice(Device::WHITEOUT))], "a/!"),
        (vec![entry("a", Body::CharDevice(Device { major: 1, minor: 0 }))], "a"),
        (vec![entry("a", Body::BlockDevice(Device::WHITEOUT))], "a"),
        (vec![link("d/.wh.a", "nowhere")], "d/ d/a~"),
        (
            vec![directory("a/b"), file("a/.wh.b"), file("a"), directory("a/b")],
            "tree.parent: parent \"a\" is neither a directory nor a symbolic link",
        ),
    ] {
        assert_eq!(tree_text(&entries), want);
    }
    let (tree, _) = tree_of(&[file(".wh..wh..opq")]).unwrap();
    assert!(tree.is_opaque(DirectoryId::ROOT));
}

#[test]
fn aufs_housekeeping_is_dropped_and_hard_links_to_it_yield_the_file() {
    let plink = ".wh..wh.plnk/86.123";
    for (entries, want) in [
        (vec![directory(".wh..wh.plnk"), directory(".wh..wh.orph"), file(plink), file(".wh..wh.aufs")], ""),
        (vec![file(plink), link("a", plink), link("b/c", &format!("./{plink}"))], "a b/ b/c"),
        (vec![file("a"), link(plink, "a"), link("b", plink)], "a b"),
        (vec![file("x/.wh..wh.plnk/y/z"), link("x/a", "x/.wh..wh.plnk/y/z")], "x/ x/a"),
        (vec![symlink(".wh..wh.plnk/l", "t"), link("l", ".wh..wh.plnk/l")], "l"),
        // Names below aufs bookkeeping follow no links, refuse nothing and delete nothing.
        (vec![directory("etc"), symlink(".wh..wh.plnk", "etc"), file(".wh..wh.plnk/passwd")], "etc/"),
        (vec![file(".wh..wh.plnk"), file(plink), directory(".wh..wh.plnk/.wh.x")], ""),
        (vec![link(plink, "nowhere"), file(".wh..wh.plnk/.wh.passwd"), symlink(plink, "")], ""),
        (vec![file(&format!(".wh..wh.{}", "n".repeat(251)))], ""),
    ] {
        let (mut tree, mut freed) = tree_of(&entries).unwrap();
        tree.drop_aufs(&mut freed);
        assert_eq!(shown(&mut tree), want);
        let names = want.split(' ').filter(|name| !name.is_empty() && !name.ends_with('/')).count();
        let linked: u32 = tree.link_counts().map(|(_, names)| names).filter(|names| *names > 1).sum();
        assert_eq!(usize::try_from(linked).unwrap(), if names > 1 { names } else { 0 }, "{want}: one inode");
        assert_eq!(tree.file_count(), u64::from(names > 0));
    }
    for (entries, reason) in [
        (vec![link("a", plink)], "tree.hardlink.target"),
        (vec![directory(plink), link("a", plink)], "tree.hardlink.target"),
        (vec![entry(plink, Body::CharDevice(Device::WHITEOUT)), link("a", plink)], "tree.hardlink.target"),
        (vec![file(".wh.x/.wh..wh.plnk/a")], "tree.whiteout.parent"),
        (vec![file(".wh..wh..opq/a")], "tree.whiteout.parent"),
        (vec![file("../.wh..wh.plnk/a")], "tree.path.climb"),
    ] {
        assert_eq!(tree_of(&entries).expect_err(reason).reason(), reason);
    }
}

#[test]
fn a_symbolic_link_with_two_names_leads_elsewhere_from_each() {
    let entries = [symlink("l", "d"), file("l/a"), link("l/m", "l"), file("l/m/b"), file("l/c")];
    assert_eq!(tree_text(&entries), "d/ d/a d/c d/d/ d/d/b d/m l");
}

#[test]
fn a_root_that_is_a_hard_link_to_itself_changes_nothing() {
    assert_eq!(tree_text(&[directory("./"), file("a"), link("./", "."), link("/", "./")]), "a");
}

#[test]
fn links_in_parents_are_followed_inside_the_layer() {
    for (entries, want) in [
        (vec![directory("usr/lib"), symlink("lib", "usr/lib"), file("lib/a")], "lib usr/ usr/lib/ usr/lib/a"),
        (vec![symlink("l", "/x/y"), file("l/a")], "l x/ x/y/ x/y/a"),
        (vec![symlink("l", "../../../x"), file("l/a")], "l x/ x/a"),
        (vec![symlink("d/l", "../e/."), file("d/l/a")], "d/ d/l e/ e/a"),
        (vec![symlink("d/l", "/"), file("d/l/a")], "a d/ d/l"),
        (vec![symlink("l", "d"), symlink("l", "e"), file("l/a")], "e/ e/a l"),
        (vec![symlink("l", "d"), file("l/a"), symlink("l", "e"), file("l/b")], "d/ d/a e/ e/b l"),
        (vec![symlink("l", "d/e"), file("l/a"), file("d"), directory("d"), file("l/b")], "d/ d/e/ d/e/b l"),
        (vec![symlink("l", "d"), file(".wh.d"), file("l/a")], "d/! d/a l"),
        // `..` after a link is lexical in a name. In a link's target it is the parent of the
        // directory reached.
        (vec![symlink("l", "d/e"), file("l/../a")], "a l"),
        (vec![symlink("l", "d/e"), symlink("m", "l/../f"), file("m/a")], "d/ d/e/ d/f/ d/f/a l m"),
        (vec![symlink("l", "d"), file("d/t"), link("h", "l/t")], "d/ d/t h l"),
    ] {
        assert_eq!(tree_text(&entries), want);
    }
}

#[test]
fn forty_links_are_followed_and_one_more_is_not_however_often_it_is_asked() {
    let mut entries: Vec<Entry> =
        (0..40).map(|n| symlink(&format!("l{n}"), &format!("l{}", n + 1))).collect();
    entries.push(directory("l40"));
    // Links are used from the far end on, so that the tree remembers every part of the chain.
    entries.extend((0..40).rev().map(|n| file(&format!("l{n}/f{n}"))));
    let (mut tree, _) = tree_of(&entries).unwrap();
    let mut freed = Vec::new();
    assert!(tree.insert(&file("l0/again"), &mut freed).is_ok());
    tree.insert(&symlink("before", "l0"), &mut freed).unwrap();
    assert_eq!(tree.insert(&file("before/f"), &mut freed), Err(TreeError::Loop));
}

#[test]
fn a_hard_link_is_one_more_name_of_its_file() {
    let linked = |entries: &[Entry]| {
        let (tree, freed) = tree_of(entries).unwrap();
        (tree.link_counts().filter(|(_, names)| *names > 1).collect::<Vec<_>>(), freed)
    };
    assert_eq!(linked(&[file("a"), link("b", "a"), link("c", "b")]), (vec![(0, 3)], vec![]));
    assert_eq!(linked(&[file("a"), link("a", "./a")]), (vec![], vec![]), "to itself");
    assert_eq!(linked(&[symlink("a", "x"), link("b", "a")]), (vec![(0, 2)], vec![]), "not followed");
    assert_eq!(linked(&[file("a"), link("b", "a"), file("a")]), (vec![], vec![]), "the link keeps the file");
    assert_eq!(linked(&[file("a"), link("b", "a"), file("a"), file("b")]), (vec![], vec![0]));
    assert_eq!(linked(&[file("a"), file("b"), link("b", "a")]), (vec![(0, 2)], vec![1]));
    // The directory that the link replaces holds the only other name of the file.
    let entries = [file("d/f"), file("d/g"), link("d", "d/f")];
    assert_eq!(linked(&entries), (vec![], vec![1]));
    assert_eq!(tree_text(&entries), "d");
}

#[test]
fn a_removed_subtree_frees_each_file_once() {
    let entries =
        [file("d/a"), link("d/b", "d/a"), link("kept", "d/a"), file("d/e/c"), symlink("d/s", "x"), file("d")];
    let (tree, mut freed) = tree_of(&entries).unwrap();
    freed.sort_unstable();
    assert_eq!((freed, tree.file_count(), tree.directory_count()), (vec![3, 4], 2, 1));
}

#[test]
fn implied_directories_are_roots_until_an_entry_describes_them() {
    let (mut tree, _) = tree_of(&[file("a/b/c")]).unwrap();
    let a = match tree.children(DirectoryId::ROOT).next() {
        Some((b"a", Node::Directory(a))) => a,
        other => panic!("{other:?}"),
    };
    assert_eq!(tree.attributes(a), Attributes { mode: 0o755, ..Attributes::default() });
    let mut described = directory("a");
    described.xattrs.push(Xattr { name: b"user.a".to_vec(), value: b"1".to_vec() });
    tree.insert(&described, &mut Vec::new()).unwrap();
    assert_eq!(tree.attributes(a), described.attributes);
    tree.insert(&directory("./"), &mut Vec::new()).unwrap();
    assert_eq!(tree.attributes(DirectoryId::ROOT), described.attributes);
    assert_eq!(tree.xattrs(a).collect::<Vec<_>>(), described.xattrs.iter().collect::<Vec<_>>());
}

#[test]
fn limits_hold_at_the_last_node_and_beyond_it() {
    // Five nodes: the root, two implied directories and two files.
    let entries = [file("a/b/c"), file("a/b/d")];
    for (nodes, fits) in [(5, true), (4, false), (1, false), (0, false)] {
        let mut tree: Tree<usize> = Tree::new(Limits { nodes, ..ROOMY });
        let outcome: Result<Vec<_>, _> =
            entries.iter().map(|entry| tree.insert(entry, &mut Vec::new())).collect();
        assert_eq!(outcome.is_ok(), fits, "{nodes}");
        if let Err(error) = outcome {
            assert_eq!((error.reason(), error.kind()), ("limit.nodes", Kind::Exhausted));
        }
    }
    let mut tree: Tree<usize> = Tree::new(Limits { memory_bytes: 100_000, ..ROOMY });
    let error = (0..).find_map(|n| tree.insert(&file(&format!("{n}")), &mut Vec::new()).err()).unwrap();
    assert_eq!((error.reason(), error.kind()), ("limit.metadata", Kind::Exhausted));
    assert!(tree.file_count() > 500, "{}", tree.file_count());
}

#[test]
fn links_cannot_lead_deeper_than_readers_go() {
    let mut entries = Vec::new();
    for n in 0..3 {
        let parent = if n == 0 { String::new() } else { format!("l{}/", n - 1) };
        let way = "d/".repeat(1900);
        entries.push(directory(&format!("{parent}{way}")));
        entries.push(symlink(&format!("l{n}"), &format!("{parent}{way}")));
    }
    let error = tree_of(&entries).unwrap_err();
    assert_eq!((error.reason(), error.kind()), ("limit.depth", Kind::Exhausted));
    assert!(tree_of(&entries[..4]).is_ok());
}

#[test]
fn attributes_merged_into_one_directory_are_bounded() {
    let mut tree: Tree<usize> = Tree::new(ROOMY);
    let with = |name: &str| {
        let mut entry = directory("d");
        entry.xattrs.push(Xattr { name: name.into(), value: vec![0; 65_535] });
        entry
    };
    for name in ["user.a", "user.b", "user.c", "user.a"] {
        tree.insert(&with(name), &mut Vec::new()).unwrap();
    }
    let error = tree.insert(&with("user.d"), &mut Vec::new()).unwrap_err();
    assert_eq!((error.reason(), error.kind()), ("limit.xattr-sum", Kind::Exhausted));
}
