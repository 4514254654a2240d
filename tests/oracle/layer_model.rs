//! A model of a layer's entries, written down as simply as possible: the second opinion on the tree and the writer.
//! Every name is a map entry, every file an element of a list; nothing is shared, cached or freed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use plywood::tree::{Attributes, Body, Device, Entry, FileType};

/// Everything a file system shows of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub file_type: FileType,
    pub attributes: Attributes,
    pub nlink: u32,
    /// 0 for directories, whose size is a matter of the format.
    pub size_bytes: u64,
    pub device: Option<Device>,
    /// A file's data, a link's target.
    pub data: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name, in sorted order, of the same inode.
    pub first_name: Vec<u8>,
}

/// A tree by name; the root is the empty one.
pub type Listing = BTreeMap<Vec<u8>, Listed>;

#[derive(Clone, Debug)]
enum Node {
    Directory {
        attributes: Attributes,
        xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
        children: BTreeMap<Vec<u8>, usize>,
        whited_out: BTreeSet<Vec<u8>>,
        opaque: bool,
        /// No entry describes it.
        implied: bool,
    },
    Whiteout(Attributes),
    File {
        entry: Box<Entry>,
        data: Vec<u8>,
    },
    /// The file of this name below.
    Below(Vec<u8>),
}

/// A layer that entries are applied to.
#[derive(Clone, Debug)]
pub struct Model {
    nodes: Vec<Node>,
    /// Files below aufs's names, which are in no directory, by path.
    aufs: BTreeMap<Vec<Vec<u8>>, usize>,
    /// The tree below, whose files hard links may name.
    lower: Listing,
}

const ROOT: usize = 0;

fn directory() -> Node {
    Node::Directory {
        attributes: Attributes { mode: 0o755, ..Attributes::default() },
        xattrs: BTreeMap::new(),
        children: BTreeMap::new(),
        whited_out: BTreeSet::new(),
        opaque: false,
        implied: true,
    }
}

/// The components of a name; `None` when it climbs out of the root.
fn clean(path: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut out = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(out.pop()?),
            name => out.push(name.to_vec()),
        }
    }
    Some(out)
}

fn is_aufs(path: &[Vec<u8>]) -> bool {
    let first = path.iter().find(|part| part.starts_with(b".wh."));
    first.is_some_and(|first| first.starts_with(b".wh..wh.") && first != b".wh..wh..opq")
}

impl Model {
    pub fn new() -> Self {
        Self::above(Listing::new())
    }

    /// A layer above `lower` on one device.
    pub fn above(lower: Listing) -> Self {
        Self { nodes: vec![directory()], aufs: BTreeMap::new(), lower }
    }

    fn children(&mut self, at: usize) -> &mut BTreeMap<Vec<u8>, usize> {
        match &mut self.nodes[at] {
            Node::Directory { children, .. } => children,
            other => panic!("{other:?} has no children"),
        }
    }

    fn whited_out(&mut self, at: usize) -> &mut BTreeSet<Vec<u8>> {
        match &mut self.nodes[at] {
            Node::Directory { whited_out, .. } => whited_out,
            other => panic!("{other:?} has no children"),
        }
    }

    fn add(&mut self, parent: usize, name: &[u8], node: Node) -> usize {
        self.nodes.push(node);
        let new = self.nodes.len() - 1;
        self.children(parent).insert(name.to_vec(), new);
        new
    }

    /// The directory that `parts` lead to from the root, made where it is missing if `make`.
    fn resolve(&mut self, parts: &[Vec<u8>], make: bool) -> Option<usize> {
        let mut todo: VecDeque<Vec<u8>> = parts.iter().cloned().collect();
        let mut stack = vec![ROOT];
        let mut hops = 0;
        while let Some(part) = todo.pop_front() {
            let at = *stack.last().unwrap();
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    if stack.len() > 1 {
                        stack.pop();
                    }
                    continue;
                }
                name if name.len() > 255 => return None,
                _ => {}
            }
            let found = self.children(at).get(&part).copied();
            match found.map(|found| self.nodes[found].clone()) {
                Some(Node::Directory { .. }) => stack.push(found.unwrap()),
                Some(Node::File { entry, .. }) => {
                    let Body::Symlink { target } = entry.body else { return None };
                    hops += 1;
                    if hops > 40 {
                        return None;
                    }
                    if target.starts_with(b"/") {
                        stack = vec![ROOT];
                    }
                    let target: Vec<Vec<u8>> =
                        target.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
                    for part in target.into_iter().rev() {
                        todo.push_front(part);
                    }
                }
                Some(Node::Below(_)) => return None,
                _ if !make || part.starts_with(b".wh.") => return None,
                _ => {
                    let new = self.add(at, &part, directory());
                    stack.push(new);
                }
            }
        }
        stack.pop()
    }

    /// Applies an entry whose file data is `data`; false, and an unspecified tree, when it is refused.
    pub fn apply(&mut self, entry: &Entry, data: &[u8]) -> bool {
        self.try_apply(entry, data).is_some()
    }

    fn describe(&mut self, at: usize, entry: &Entry) {
        if let Node::Directory { attributes, xattrs, implied, .. } = &mut self.nodes[at] {
            *implied = false;
            *attributes = entry.attributes;
            xattrs.extend(entry.xattrs.iter().map(|xattr| (xattr.name.clone(), xattr.value.clone())));
        }
    }

    fn try_apply(&mut self, entry: &Entry, data: &[u8]) -> Option<()> {
        let mut parts = clean(&entry.path)?;
        if is_aufs(&parts) {
            let linked = match &entry.body {
                Body::HardLink { target } => self.linked(target),
                Body::Directory | Body::CharDevice(Device::WHITEOUT) => None,
                _ => {
                    self.nodes.push(Node::File { entry: Box::new(entry.clone()), data: data.to_vec() });
                    Some(self.nodes.len() - 1)
                }
            };
            if let Some(linked) = linked {
                self.aufs.insert(parts, linked);
            }
            return Some(());
        }
        let Some(last) = parts.pop() else {
            if let Body::HardLink { target } = &entry.body {
                return clean(target)?.is_empty().then_some(());
            }
            self.describe(ROOT, entry);
            return matches!(entry.body, Body::Directory).then_some(());
        };
        if parts.iter().any(|part| part.starts_with(b".wh.")) {
            return None;
        }
        if last == b".wh..wh..opq" {
            let at = self.resolve(&parts, true)?;
            if let Node::Directory { opaque, .. } = &mut self.nodes[at] {
                *opaque = true;
            }
            return Some(());
        }
        let whiteout = match last.strip_prefix(b".wh.") {
            Some(b"" | b"." | b"..") => return None,
            Some(name) => Some(name.to_vec()),
            None if entry.body == Body::CharDevice(Device::WHITEOUT) => Some(last.clone()),
            None => None,
        };
        if let Some(name) = whiteout {
            let at = self.resolve(&parts, true)?;
            self.whited_out(at).insert(name.clone());
            let found = self.children(at).get(&name).copied();
            if found.is_none_or(|found| matches!(self.nodes[found], Node::Whiteout(_))) {
                self.add(at, &name, Node::Whiteout(entry.attributes));
            }
            return Some(());
        }
        let linked = match &entry.body {
            Body::HardLink { target } => Some(self.linked(target).or_else(|| self.borrowed(target))?),
            _ => None,
        };
        let at = self.resolve(&parts, true)?;
        if let Some(linked) = linked {
            self.children(at).insert(last, linked);
            return Some(());
        }
        if entry.body == Body::Directory {
            let found = self.children(at).get(&last).copied();
            let found = found.filter(|found| matches!(self.nodes[*found], Node::Directory { .. }));
            let at = found.unwrap_or_else(|| self.add(at, &last, directory()));
            self.describe(at, entry);
            return Some(());
        }
        self.add(at, &last, Node::File { entry: Box::new(entry.clone()), data: data.to_vec() });
        Some(())
    }

    /// The file that a hard link's target names.
    fn linked(&mut self, target: &[u8]) -> Option<usize> {
        let mut parts = clean(target)?;
        if is_aufs(&parts) {
            return self.aufs.get(&parts).copied();
        }
        let last = parts.pop()?;
        if parts.iter().any(|part| part.starts_with(b".wh.")) {
            return None;
        }
        let at = self.resolve(&parts, false)?;
        let found = *self.children(at).get(&last)?;
        matches!(self.nodes[found], Node::File { .. } | Node::Below(_)).then_some(found)
    }

    /// The file below that a hard link's target names, if the layer has nothing on the way.
    fn borrowed(&mut self, target: &[u8]) -> Option<usize> {
        let parts = clean(target)?;
        if parts.iter().any(|part| part.starts_with(b".wh.")) {
            return None;
        }
        let (mut at, mut deleted) = (ROOT, false);
        for part in &parts {
            let Node::Directory { children, whited_out, opaque, .. } = &self.nodes[at] else { return None };
            if *opaque || deleted {
                return None;
            }
            let Some(child) = children.get(part) else {
                let path = parts.join(&b'/');
                let found = self.lower.get(&path)?;
                if found.file_type == FileType::Directory {
                    return None;
                }
                self.nodes.push(Node::Below(path));
                return Some(self.nodes.len() - 1);
            };
            (at, deleted) = (*child, whited_out.contains(part));
        }
        None
    }

    /// The tree as a mounted image of it shows it.
    pub fn listing(&self) -> Listing {
        let mut listing = Listing::new();
        let mut names: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
        self.list(ROOT, b"", false, &mut listing, &mut names);
        for (_, mut names) in names {
            names.sort();
            for name in &names {
                let listed = listing.get_mut(name).unwrap();
                listed.first_name = names[0].clone();
                if listed.file_type != FileType::Directory {
                    listed.nlink = u32::try_from(names.len()).unwrap();
                }
            }
        }
        listing
    }

    fn list(
        &self,
        at: usize,
        path: &[u8],
        whited_out: bool,
        listing: &mut Listing,
        names: &mut BTreeMap<usize, Vec<Vec<u8>>>,
    ) {
        names.entry(at).or_default().push(path.to_vec());
        let mut listed = self.shown(at);
        if let Node::Directory { children, whited_out: whited, opaque, .. } = &self.nodes[at] {
            let is = |child: &usize, want: fn(&Node) -> bool| want(&self.nodes[*child]);
            let directories = children.values().filter(|c| is(c, |n| matches!(n, Node::Directory { .. })));
            listed.nlink = 2 + u32::try_from(directories.count()).unwrap();
            if *opaque || whited_out {
                listed.xattrs.insert(b"trusted.overlay.opaque".to_vec(), b"y".to_vec());
            }
            if children.values().any(|c| is(c, |n| matches!(n, Node::Whiteout(_)))) {
                listed.xattrs.insert(b"trusted.overlay.origin".to_vec(), Vec::new());
            }
            for (name, child) in children {
                self.list(*child, &below(path, name), whited.contains(name), listing, names);
            }
        }
        listing.insert(path.to_vec(), listed);
    }

    /// The tree that the layer makes of the tree `lower` below it.
    pub fn over(&self, lower: &Listing) -> Listing {
        let mut merged = lower.clone();
        // Until the end the first name says which inode it is.
        merged.values_mut().for_each(|listed| listed.first_name.insert(0, b'B'));
        let lower = merged.clone();
        self.put(ROOT, b"", true, false, &lower, &mut merged);
        let mut names: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
        for (name, listed) in &merged {
            names.entry(listed.first_name.clone()).or_default().push(name.clone());
        }
        let is_directory = |listed: &&Listed| listed.file_type == FileType::Directory;
        let directories: Vec<_> =
            merged.iter().filter(|(_, at)| is_directory(at)).map(|(n, _)| n.clone()).collect();
        for (name, listed) in &mut merged {
            let group = &names[&listed.first_name];
            let inside = directories.iter().filter(|at| !at.is_empty() && parent(at) == name.as_slice());
            listed.nlink = u32::try_from(if listed.file_type == FileType::Directory {
                2 + inside.count()
            } else {
                group.len()
            })
            .unwrap();
            listed.first_name = group[0].clone();
        }
        merged
    }

    fn put(&self, at: usize, path: &[u8], sees: bool, deleted: bool, lower: &Listing, merged: &mut Listing) {
        if let Node::Below(target) = &self.nodes[at] {
            remove(merged, path);
            merged.insert(path.to_vec(), lower[target].clone());
            return;
        }
        let mut listed = self.shown(at);
        listed.first_name = format!("L{at}").into_bytes();
        let Node::Directory { children, whited_out, opaque, implied, .. } = &self.nodes[at] else {
            remove(merged, path);
            if !matches!(self.nodes[at], Node::Whiteout(_)) {
                merged.insert(path.to_vec(), listed);
            }
            return;
        };
        let below_it = merged.get(path).filter(|found| sees && found.file_type == FileType::Directory);
        let merges = below_it.is_some();
        if let Some(found) = below_it
            && *implied
            && !deleted
        {
            listed = found.clone();
        }
        let hides = *opaque || deleted || !merges;
        if hides {
            remove(merged, path);
        }
        merged.insert(path.to_vec(), listed);
        for (name, child) in children {
            self.put(*child, &below(path, name), !hides, whited_out.contains(name), lower, merged);
        }
    }

    /// A node as it is shown, without what its names and children say.
    fn shown(&self, at: usize) -> Listed {
        let mut listed = Listed {
            file_type: FileType::CharDevice,
            attributes: Attributes::default(),
            nlink: 0,
            size_bytes: 0,
            device: None,
            data: Vec::new(),
            xattrs: BTreeMap::new(),
            first_name: Vec::new(),
        };
        match &self.nodes[at] {
            Node::Below(target) => return self.lower[target].clone(),
            Node::Whiteout(attributes) => {
                listed.attributes = *attributes;
                listed.device = Some(Device::WHITEOUT);
            }
            Node::File { entry, data } => {
                listed.attributes = entry.attributes;
                listed.xattrs = entry.xattrs.iter().map(|x| (x.name.clone(), x.value.clone())).collect();
                listed.data = data.clone();
                (listed.file_type, listed.device) = match &entry.body {
                    Body::Regular { .. } => (FileType::Regular, None),
                    Body::Symlink { target } => {
                        listed.data = target.clone();
                        listed.attributes.mode = 0o777;
                        (FileType::Symlink, None)
                    }
                    Body::CharDevice(device) => (FileType::CharDevice, Some(*device)),
                    Body::BlockDevice(device) => (FileType::BlockDevice, Some(*device)),
                    Body::Fifo => (FileType::Fifo, None),
                    other => panic!("{other:?} is no file"),
                };
                listed.size_bytes = listed.data.len() as u64;
            }
            Node::Directory { attributes, xattrs, .. } => {
                listed.file_type = FileType::Directory;
                listed.attributes = *attributes;
                listed.xattrs = xattrs.clone();
            }
        }
        listed
    }
}

fn below(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |slash| &path[..slash])
}

/// Removes a name and all below it.
fn remove(listing: &mut Listing, path: &[u8]) {
    let inside = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
    listing.retain(|name, _| name != path && !name.starts_with(&inside));
}
