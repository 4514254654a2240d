//! Tests of the lookups in a tree below, and of the attributes that directories take from it.

use std::collections::BTreeMap;

use super::{inherit::Below, *};

const ROOMY: Limits = Limits { nodes: 1 << 20, memory_bytes: 1 << 30 };

fn entry(path: &str, body: Body) -> Entry {
    let attributes = Attributes { mode: 0o640, uid: 7, ..Attributes::default() };
    Entry { path: path.into(), attributes, xattrs: Vec::new(), body }
}

fn file(path: &str) -> Entry {
    entry(path, Body::Regular { size_bytes: 0, extents: None })
}

fn directory(path: &str) -> Entry {
    entry(path, Body::Directory)
}

/// Tree below in which every path of the list is a directory with an owner of its own. Records the
/// lookups.
struct Listed {
    owners: BTreeMap<String, u32>,
    asked: Vec<String>,
}

impl Listed {
    fn new(paths: &[&str]) -> Self {
        let owners = (100..).zip(paths).map(|(owner, path)| ((*path).to_owned(), owner)).collect();
        Self { owners, asked: Vec::new() }
    }
}

impl Below for Listed {
    type Directory = String;
    type Error = TreeError;

    fn root(&mut self) -> Result<String, TreeError> {
        self.asked.push("/".to_owned());
        Ok(String::new())
    }

    fn child(&mut self, parent: &String, path: &[u8], name: &[u8]) -> Result<Option<String>, TreeError> {
        let [path, name] = [path, name].map(|text| String::from_utf8(text.to_vec()).unwrap());
        let joined = if parent.is_empty() { name } else { format!("{parent}/{name}") };
        assert_eq!(joined, path);
        self.asked.push(path.clone());
        Ok(self.owners.contains_key(&path).then_some(path))
    }

    fn describe(&mut self, directory: &String, path: &[u8]) -> Result<(Attributes, Vec<Xattr>), TreeError> {
        assert_eq!(directory.as_bytes(), path);
        let uid = self.owners[directory];
        let xattr = Xattr { name: b"user.below".to_vec(), value: uid.to_string().into() };
        Ok((Attributes { mode: 0o1777, uid, gid: 1, ..Attributes::default() }, vec![xattr]))
    }
}

fn tree_of(entries: &[Entry]) -> Tree<()> {
    let mut tree = Tree::new(ROOMY);
    for entry in entries {
        tree.insert(entry, &mut Vec::new()).unwrap();
    }
    tree
}

/// Owner and number of attributes of the directory at `path`.
fn owner(tree: &Tree<()>, path: &str) -> (u32, usize) {
    let mut at = DirectoryId::ROOT;
    for name in path.split('/') {
        let found = tree.children(at).find(|(found, _)| *found == name.as_bytes());
        let Some((_, Node::Directory(child))) = found else { panic!("{path}: {found:?}") };
        at = child;
    }
    (tree.attributes(at).uid, tree.xattrs(at).count())
}

#[test]
fn a_directory_that_no_entry_describes_takes_what_it_shadows() {
    let entries =
        [directory("a"), file("a/b/c/f"), file("x/f"), file("late/f"), directory("late"), file("none/f")];
    let mut tree = tree_of(&entries);
    assert_eq!(tree.implied_directories(), 4);
    let mut below = Listed::new(&["a", "a/b", "a/b/c", "a/unasked", "x", "late"]);
    assert_eq!(tree.inherit(&mut below).unwrap(), 3);
    for (path, want) in
        [("a", (7, 0)), ("a/b", (101, 1)), ("a/b/c", (102, 1)), ("x", (104, 1)), ("late", (7, 0))]
    {
        assert_eq!(owner(&tree, path), want, "{path}");
    }
    assert_eq!(owner(&tree, "none"), (0, 0), "there is nothing below");
    assert_eq!(tree.attributes(DirectoryId::ROOT).uid, 0, "the root is not one of them");
    below.asked.sort();
    assert_eq!(below.asked, ["/", "a", "a/b", "a/b/c", "none", "x"]);
}

#[test]
fn nothing_is_looked_up_when_every_directory_has_an_entry() {
    let mut tree = tree_of(&[directory("a"), directory("a/b"), file("a/b/f"), file("f"), file(".wh.gone")]);
    let mut below = Listed::new(&["a", "a/b"]);
    assert_eq!((tree.implied_directories(), tree.inherit(&mut below).unwrap()), (0, 0));
    assert!(below.asked.is_empty());
}

#[test]
fn what_the_layer_hides_or_deletes_is_not_shadowed() {
    let entries = [
        // The opaque marker hides the content; the directory itself still shadows the one below.
        file("opaque/.wh..wh..opq"),
        file("opaque/in/f"),
        // A directory with an entry, whose content is hidden.
        directory("own"),
        file("own/.wh..wh..opq"),
        file("own/in/f"),
        // Deleted and created again, in either order.
        file(".wh.before"),
        file("before/in/f"),
        file("after/f"),
        file(".wh.after"),
        // A marker deletes only the name in it.
        file("kept/.wh.gone"),
    ];
    let mut tree = tree_of(&entries);
    let mut below =
        Listed::new(&["opaque", "opaque/in", "own", "own/in", "before", "before/in", "after", "kept"]);
    assert_eq!(tree.inherit(&mut below).unwrap(), 2);
    assert_eq!(owner(&tree, "opaque"), (100, 1));
    assert_eq!(owner(&tree, "kept"), (107, 1));
    for path in ["opaque/in", "own/in", "before", "before/in", "after"] {
        assert_eq!(owner(&tree, path), (0, 0), "{path}");
    }
}

#[test]
fn an_opaque_root_hides_nothing_because_overlayfs_merges_all_roots() {
    let mut tree = tree_of(&[file(".wh..wh..opq"), file("a/f")]);
    assert_eq!(tree.inherit(&mut Listed::new(&["a"])).unwrap(), 1);
}

#[test]
fn directories_are_looked_up_where_links_of_the_layer_put_them() {
    let link = |path: &str, target: &str| entry(path, Body::Symlink { target: target.into() });
    let mut tree = tree_of(&[link("lib", "usr/lib"), file("lib/x/f")]);
    let mut below = Listed::new(&["lib", "lib/x", "usr", "usr/lib"]);
    assert_eq!(tree.inherit(&mut below).unwrap(), 2);
    assert_eq!(owner(&tree, "usr/lib"), (103, 1));
    assert_eq!(owner(&tree, "usr/lib/x"), (0, 0));
    assert!(!below.asked.contains(&"lib".to_owned()), "{:?}", below.asked);
}

#[test]
fn a_directory_whose_subtree_was_replaced_is_counted_no_more() {
    let mut tree = tree_of(&[file("a/b/f"), file("a"), directory("a"), file("a/c/f")]);
    assert_eq!(tree.implied_directories(), 1);
    assert_eq!(tree.inherit(&mut Listed::new(&["a", "a/b", "a/c"])).unwrap(), 1);
}

#[test]
fn what_was_taken_can_be_given_back() {
    let mut tree = tree_of(&[file("a/b/f"), directory("own"), file("own/in/f")]);
    let before = tree.memory_bytes();
    tree.inherit(&mut Listed::new(&["a", "a/b", "own", "own/in"])).unwrap();
    tree.disinherit();
    for (path, want) in [("a", (0, 0)), ("a/b", (0, 0)), ("own", (7, 0)), ("own/in", (0, 0))] {
        assert_eq!(owner(&tree, path), want, "{path}");
    }
    assert_eq!((tree.implied_directories(), tree.attributes(DirectoryId::ROOT).mode), (3, 0o755));
    // Slots and tables stay allocated; the texts of the attributes are freed.
    assert!(tree.memory_bytes() < before + 1000, "{} {before}", tree.memory_bytes());
}

#[test]
fn attributes_from_below_count_against_the_memory_of_the_layer() {
    /// Tree in which every name is a directory with a different attribute of 60 000 bytes.
    struct Large(u32);
    impl Below for Large {
        type Directory = ();
        type Error = TreeError;
        fn root(&mut self) -> Result<(), TreeError> {
            Ok(())
        }
        fn child(&mut self, _: &(), _: &[u8], _: &[u8]) -> Result<Option<()>, TreeError> {
            Ok(Some(()))
        }
        fn describe(&mut self, _: &(), _: &[u8]) -> Result<(Attributes, Vec<Xattr>), TreeError> {
            self.0 += 1;
            let value = self.0.to_le_bytes().repeat(15_000);
            Ok((Attributes::default(), vec![Xattr { name: b"user.large".to_vec(), value }]))
        }
    }
    let mut tree: Tree<()> = Tree::new(Limits { memory_bytes: 10 << 20, ..ROOMY });
    for number in 0..1000 {
        tree.insert(&file(&format!("d{number}/f")), &mut Vec::new()).unwrap();
    }
    let mut below = Large(0);
    assert_eq!(tree.inherit(&mut below).unwrap_err(), TreeError::Memory { limit: 10 << 20 });
    assert!((100..200).contains(&below.0), "{}", below.0);
}
