//! Random trees, random changes: the emitted entries, applied to the old tree, give the new one.
//!
//! The trees are maps from names to inodes, and know nothing of layers. Layers are made from them as
//! overlayfs would leave them, with a choice of marks, of files copied up for nothing and of whiteouts
//! for nothing.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{
    Options, RootEntry,
    fixture::{Recorded, compare},
};
use crate::{
    tree::{Attributes, Body, Device, Entry, Extent, Timestamp, Xattr},
    view::{
        ErofsView, View,
        fixture::{Entries, erofs},
    },
};

type Path = Vec<u8>;

/// Symbolic links have one mode only.
fn of_body(attributes: Attributes, body: &Body) -> Attributes {
    let mode = if matches!(body, Body::Symlink { .. }) { 0o777 } else { attributes.mode };
    Attributes { mode, ..attributes }
}

#[derive(Clone, Debug, PartialEq)]
struct Inode {
    /// Any body but a hard link.
    body: Body,
    data: Vec<u8>,
    attributes: Attributes,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A tree: the root is the empty name.
#[derive(Clone, Debug)]
struct Tree {
    names: BTreeMap<Path, usize>,
    inodes: Vec<Inode>,
}

/// All names, each with its inode and all names of that.
type Shown = BTreeMap<Path, (Inode, Vec<Path>)>;

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty() && !path.is_empty()
        || path.strip_prefix(directory).is_some_and(|rest| rest.first() == Some(&b'/'))
}

fn parent(path: &[u8]) -> &[u8] {
    let slash = path.iter().rposition(|byte| *byte == b'/');
    slash.map_or(&[], |slash| &path[..slash])
}

impl Tree {
    fn new() -> Self {
        let attributes = Attributes { mode: 0o755, ..Attributes::default() };
        let root = Inode { body: Body::Directory, data: Vec::new(), attributes, xattrs: BTreeMap::new() };
        Self { names: [(Path::new(), 0)].into(), inodes: vec![root] }
    }

    fn get(&self, path: &[u8]) -> Option<&Inode> {
        self.names.get(path).map(|inode| &self.inodes[*inode])
    }

    fn is_directory(&self, path: &[u8]) -> bool {
        self.get(path).is_some_and(|inode| inode.body == Body::Directory)
    }

    fn remove(&mut self, path: &[u8]) {
        self.names.retain(|name, _| name != path && !is_below(name, path));
    }

    fn put(&mut self, path: &[u8], inode: Inode) {
        self.remove(path);
        self.inodes.push(inode);
        self.names.insert(path.to_vec(), self.inodes.len() - 1);
    }

    fn names_of(&self, inode: usize) -> impl Iterator<Item = &Path> {
        self.names.iter().filter(move |(_, other)| **other == inode).map(|(name, _)| name)
    }

    fn shown(&self) -> Shown {
        let names = |inode: usize| self.names_of(inode).cloned().collect::<Vec<_>>();
        let shown = |(name, inode): (&Path, &usize)| {
            let mut file = self.inodes[*inode].clone();
            if name.is_empty() {
                // Emitted only when something else about it changed.
                file.attributes.mtime = Timestamp::default();
            }
            (name.clone(), (file, names(*inode)))
        };
        self.names.iter().map(shown).collect()
    }

    /// One change; the numbers say which, where and what.
    fn change(&mut self, [kind, place, detail]: [u8; 3]) {
        const NAMES: [&[u8]; 8] = [b"a", b"b", b"a/x", b"a/y", b"b/x", b"a/x/1", b"a/x/2", b"c-"];
        let path = NAMES[usize::from(place) % NAMES.len()];
        let other = NAMES[usize::from(detail) % NAMES.len()];
        let serial = self.inodes.len();
        let attributes = Attributes {
            mode: [0o644, 0o755, 0o4711][usize::from(detail) % 3],
            uid: u32::from(detail),
            gid: u32::from(place),
            mtime: Timestamp { seconds: i64::from(detail) - 9, nanoseconds: u32::from(detail % 2) },
        };
        let inode = |body: Body, data| {
            let attributes = of_body(attributes, &body);
            Inode { body, data, attributes, xattrs: BTreeMap::new() }
        };
        if !self.is_directory(parent(path)) && kind < 8 {
            return;
        }
        match kind {
            0 => self.put(path, inode(Body::Directory, Vec::new())),
            1 | 2 => {
                let data = format!("{serial} {detail}").repeat(usize::from(detail) * 7);
                let body = Body::Regular { size_bytes: data.len() as u64, extents: None };
                self.put(path, inode(body, data.into()));
            }
            3 => {
                let extents = Some(vec![Extent { offset: 4096, len: 4096 }]);
                let data = format!("{serial:04096}").into();
                self.put(path, inode(Body::Regular { size_bytes: 20_000, extents }, data));
            }
            4 => self.put(path, inode(Body::Symlink { target: format!("{serial}").into() }, Vec::new())),
            5 => {
                let device = Device { major: 1, minor: detail.into() };
                let bodies = [Body::Fifo, Body::CharDevice(device), Body::BlockDevice(device)];
                self.put(path, inode(bodies[usize::from(detail) % 3].clone(), Vec::new()));
            }
            6 => self.remove(path),
            7 => {
                let Some(&linked) = self.names.get(other) else { return };
                if !self.is_directory(other) && path != other {
                    self.remove(path);
                    // The removed path may have been above the other name.
                    if self.names.contains_key(other) {
                        self.names.insert(path.to_vec(), linked);
                    }
                }
            }
            _ => {
                let at = if kind == 8 { &b""[..] } else { path };
                let Some(&at) = self.names.get(at) else { return };
                // An inode of a lower layer stays what it was: copied up, it is another.
                let mut changed = self.inodes[at].clone();
                changed.attributes = of_body(attributes, &changed.body);
                changed.attributes.mtime = self.inodes[at].attributes.mtime;
                let has_attributes = matches!(changed.body, Body::Directory | Body::Regular { .. });
                if detail % 2 == 0 && has_attributes {
                    changed.xattrs.insert(b"user.a".to_vec(), vec![detail]);
                }
                self.inodes.push(changed);
                let new = self.inodes.len() - 1;
                self.names.values_mut().filter(|inode| **inode == at).for_each(|inode| *inode = new);
            }
        }
    }

    /// Applies a layer as containerd's differs do.
    fn apply(&mut self, recorded: &Recorded) {
        for (entry, data) in &recorded.entries {
            let Entry { path, attributes, xattrs, body } = entry;
            let name = path.rsplit(|byte| *byte == b'/').next().unwrap();
            if name == b".wh..wh..opq" {
                self.names.retain(|name, _| !is_below(name, parent(path)));
            } else if let Some(deleted) = name.strip_prefix(b".wh.") {
                let gone = [&path[..path.len() - name.len()], deleted].concat();
                assert!(self.names.contains_key(&gone), "there is nothing to delete at {gone:?}");
                self.remove(&gone);
            } else if let Body::HardLink { target } = body {
                let linked = self.names[target];
                self.remove(path);
                self.names.insert(path.clone(), linked);
            } else {
                let xattrs = xattrs.iter().map(|xattr| (xattr.name.clone(), xattr.value.clone())).collect();
                let inode = Inode { body: body.clone(), data: data.clone(), attributes: *attributes, xattrs };
                if self.is_directory(path) && *body == Body::Directory {
                    self.inodes.push(inode);
                    self.names.insert(path.clone(), self.inodes.len() - 1);
                } else {
                    assert!(self.is_directory(parent(path)), "{path:?} has no parent");
                    self.put(path, inode);
                }
            }
        }
    }

    /// The layer that overlayfs would have if `self` had become `new`; `coins` decide what is open.
    fn upper(&self, new: &Self, coins: &mut impl FnMut() -> bool) -> Entries {
        let both = |path: &[u8]| self.is_directory(path) && new.is_directory(path);
        let opaque: BTreeSet<_> = new
            .names
            .keys()
            .filter(|path| !path.is_empty() && new.is_directory(path) && coins() && coins())
            .collect();
        let hidden = |path: &[u8]| opaque.iter().any(|directory| is_below(path, directory));
        // A layer has a root, and it is what shows.
        let mut copied = BTreeSet::from([Path::new()]);
        let mut whiteouts = BTreeSet::new();
        for (path, inode) in &new.names {
            let changed = self.names.get(path) != Some(inode);
            if changed || hidden(path) || opaque.contains(path) || (coins() && coins() && coins()) {
                // All names of what was copied up are in the upper layer.
                copied.extend(new.names_of(*inode).cloned());
            }
        }
        for path in self.names.keys().filter(|path| !new.names.contains_key(*path)) {
            if both(parent(path)) && !hidden(path) {
                whiteouts.insert(path.clone());
            }
        }
        for name in [&b"never"[..], b"a/never", b"a/x/never"] {
            if new.is_directory(parent(name)) && coins() && coins() {
                whiteouts.insert(name.to_vec());
            }
        }
        for path in copied.clone().iter().chain(&whiteouts) {
            let mut up = parent(path);
            while copied.insert(up.to_vec()) && !up.is_empty() {
                up = parent(up);
            }
        }
        let mut entries = Vec::new();
        let mut written: BTreeMap<usize, Path> = BTreeMap::new();
        for path in &copied {
            let number = new.names[path];
            let Inode { body, data, attributes, xattrs } = new.inodes[number].clone();
            let body = match written.get(&number) {
                Some(first) => Body::HardLink { target: first.clone() },
                None => body,
            };
            written.entry(number).or_insert_with(|| path.clone());
            let xattrs = xattrs.into_iter().map(|(name, value)| Xattr { name, value }).collect();
            entries.push((Entry { path: path.clone(), attributes, xattrs, body }, data));
        }
        let mut layer = Entries(entries);
        for path in opaque {
            layer = layer.opaque(std::str::from_utf8(path).unwrap());
        }
        for path in whiteouts {
            layer = layer.whiteout(std::str::from_utf8(&path).unwrap());
        }
        layer
    }
}

/// The order in which names have to come: component by component, marks before everything, deleted
/// names where they were.
fn order(path: &[u8]) -> Vec<Vec<u8>> {
    let component = |name: &[u8]| match name {
        b".wh..wh..opq" => Vec::new(),
        name => name.strip_prefix(b".wh.").unwrap_or(name).to_vec(),
    };
    path.split(|byte| *byte == b'/').map(component).collect()
}

fn require_order(recorded: &Recorded) {
    let mut before: Option<&Path> = None;
    let mut directories = BTreeSet::from([&b""[..]]);
    let mut joins_links = false;
    for (entry, _) in &recorded.entries {
        let path = &entry.path;
        if let Some(before) = before
            && !before.is_empty()
            && order(before) >= order(path)
        {
            assert!(!joins_links, "{before:?} {path:?}");
            // The further names of emitted files, in the same order.
            joins_links = true;
            directories = BTreeSet::from([&b""[..]]);
        }
        assert!(!joins_links || matches!(entry.body, Body::Directory | Body::HardLink { .. }), "{entry:?}");
        assert!(directories.contains(parent(path)), "{path:?} comes before its parent");
        if entry.body == Body::Directory {
            directories.insert(path);
        }
        before = Some(path);
    }
}

fn changes() -> impl Strategy<Value = Vec<[u8; 3]>> {
    prop::collection::vec((0_u8..12, 0_u8..8, 0_u8..16).prop_map(|(a, b, c)| [a, b, c]), 0..14)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_entries_of_any_two_stacks_turn_the_one_into_the_other(
        steps in prop::collection::vec(changes(), 3),
        coins in any::<u64>(),
    ) {
        let mut state = coins | 1;
        let mut coin = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state >> 40 & 1 == 1
        };
        let mut trees = vec![Tree::new()];
        let mut images = Vec::new();
        for step in &steps {
            let old = trees.last().unwrap();
            let mut new = old.clone();
            step.iter().for_each(|change| new.change(*change));
            images.push(old.upper(&new, &mut coin).image());
            trees.push(new);
        }
        let layers: Vec<_> = (1..).zip(&images).map(|(key, image)| erofs(image, key)).collect();
        fn stack<'a>(layers: &'a [ErofsView<&[u8]>]) -> Vec<&'a dyn View> {
            layers.iter().rev().map(|layer| layer as &dyn View).collect()
        }
        for (i, old) in trees.iter().enumerate() {
            for (j, new) in trees.iter().enumerate() {
                let (lower, upper) = (stack(&layers[..i]), stack(&layers[..j]));
                let options = Options { root: RootEntry::Always, ..Options::default() };
                let (recorded, _) = compare(&lower, &upper, &options).unwrap();
                require_order(&recorded);
                let mut result = old.clone();
                result.apply(&recorded);
                prop_assert_eq!(result.shown(), new.shown(), "{} {}\n{}", i, j, recorded.text());
                prop_assert!(i != j || recorded.entries.len() == 1);

                // As an image on top of the old stack, the layer shows what the new stack shows.
                let image = Entries(recorded.entries).image();
                let top = erofs(&image, 99);
                let mut again = stack(&layers[..i]);
                again.insert(0, &top);
                let (recorded, _) = compare(&upper, &again, &Options::default()).unwrap();
                let mut result = new.clone();
                result.apply(&recorded);
                prop_assert_eq!(result.shown(), new.shown(), "{} {}", i, j);
            }
        }
    }

    #[test]
    fn the_entries_of_two_trees_in_one_layer_each_turn_the_one_into_the_other(
        old in changes(),
        new in changes(),
    ) {
        let empty = Tree::new();
        let mut trees = [empty.clone(), empty.clone()];
        old.iter().for_each(|change| trees.iter_mut().for_each(|tree| tree.change(*change)));
        new.iter().for_each(|change| trees[1].change(*change));
        let images = trees.each_ref().map(|tree| empty.upper(tree, &mut || false).image());
        let layers = [erofs(&images[0], 1), erofs(&images[1], 2)];
        let (recorded, _) = compare(&[&layers[0]], &[&layers[1]], &Options::default()).unwrap();
        require_order(&recorded);
        let mut result = trees[0].clone();
        result.apply(&recorded);
        prop_assert_eq!(result.shown(), trees[1].shown(), "{}", recorded.text());
        // Files that did not change are not emitted.
        for (entry, _) in &recorded.entries {
            let (before, after) = (trees[0].shown(), trees[1].shown());
            let [before, after] = [&before, &after].map(|shown| shown.get(&entry.path));
            let is_mark = entry.path.windows(4).any(|window| window == b".wh.");
            let is_parent = entry.body == Body::Directory;
            prop_assert!(is_mark || is_parent || before != after, "{}", recorded.text());
        }
    }
}
