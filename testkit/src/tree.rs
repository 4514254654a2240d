//! Trees that can be compared: every name with everything a file system shows about it, for every reader.
//!
//! Also what a layer's whiteout names become in an image, applied to a tree that still holds them
//! (docs/formats and the OCI image specification, `layer.md`, "Whiteouts").

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use libtest_mimic::Failed;
use sha2::{Digest as _, Sha256};

/// The type of an inode, with the values that only this type has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Regular { size_bytes: u64, sha256: [u8; 32] },
    Directory,
    Symlink { target: Vec<u8> },
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
    Socket,
}

/// One name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub kind: Kind,
    /// The low twelve bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds, nanoseconds.
    pub mtime: (i64, u32),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub nlink: u64,
    /// Which names are one inode: equal numbers, in the order of first names. 0 for directories.
    pub link_group: u64,
}

/// Names below the root, which itself is the empty name; no name begins or ends with `/`.
pub type Tree = BTreeMap<Vec<u8>, Node>;

/// The directory a name is in, and its last component.
pub fn split(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&name[..at], &name[at + 1..]),
        None => (&[], name),
    }
}

/// A name as it is in the image: no `.` components, no empty ones. Names with `..` are not for this oracle.
pub fn clean(name: &[u8]) -> Vec<u8> {
    let parts: Vec<&[u8]> =
        name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    parts.join(&b'/')
}

/// SHA-256 and length of everything `source` gives.
pub fn hash(mut source: impl Read) -> io::Result<(u64, [u8; 32])> {
    let (mut hasher, mut size_bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 17];
    loop {
        let read = match source.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if read == 0 {
            return Ok((size_bytes, hasher.finalize().into()));
        }
        hasher.update(&buffer[..read]);
        size_bytes += read as u64;
    }
}

/// The names in a directory, sorted.
pub fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

// --- a tree of the file system ---------------------------------------------------------------

/// Reads the tree below `root` as the kernel shows it, but for labels of this host's policy: no layer has these.
pub fn scan(root: &Path) -> Result<Tree, Failed> {
    let mut tree = scan_with_labels(root)?;
    for node in tree.values_mut() {
        node.xattrs.remove(&b"security.selinux"[..]);
    }
    Ok(tree)
}

/// Reads the tree below `root` with all that the kernel shows of it.
pub fn scan_with_labels(root: &Path) -> Result<Tree, Failed> {
    let mut tree = Tree::new();
    let mut groups = HashMap::new();
    let mut pending = vec![Vec::new()];
    while let Some(name) = pending.pop() {
        let path = at(root, &name);
        let meta = fs::symlink_metadata(&path)?;
        if meta.is_dir() {
            for entry in fs::read_dir(&path)? {
                let entry = entry?.file_name();
                let child = if name.is_empty() {
                    entry.as_bytes().to_vec()
                } else {
                    [&name[..], b"/", entry.as_bytes()].concat()
                };
                pending.push(child);
            }
        }
        let node = Node {
            kind: kind(&path, &meta)?,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: (meta.mtime(), u32::try_from(meta.mtime_nsec())?),
            xattrs: xattrs(&path)?,
            nlink: meta.nlink(),
            link_group: if meta.is_dir() {
                0
            } else {
                let next = groups.len() as u64 + 1;
                *groups.entry((meta.dev(), meta.ino())).or_insert(next)
            },
        };
        tree.insert(name, node);
    }
    number_links(&mut tree);
    Ok(tree)
}

fn at(root: &Path, name: &[u8]) -> PathBuf {
    if name.is_empty() { root.to_owned() } else { root.join(std::ffi::OsStr::from_bytes(name)) }
}

fn kind(path: &Path, meta: &Metadata) -> Result<Kind, Failed> {
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let kind = match rustix::fs::FileType::from_raw_mode(meta.mode()) {
        rustix::fs::FileType::RegularFile => {
            let (size_bytes, sha256) = hash(File::open(path)?)?;
            Kind::Regular { size_bytes, sha256 }
        }
        rustix::fs::FileType::Directory => Kind::Directory,
        rustix::fs::FileType::Symlink => {
            Kind::Symlink { target: fs::read_link(path)?.as_os_str().as_bytes().to_vec() }
        }
        rustix::fs::FileType::CharacterDevice => Kind::Char { major, minor },
        rustix::fs::FileType::BlockDevice => Kind::Block { major, minor },
        rustix::fs::FileType::Fifo => Kind::Fifo,
        rustix::fs::FileType::Socket => Kind::Socket,
        rustix::fs::FileType::Unknown => return Err(format!("{}: of no known type", path.display()).into()),
    };
    let size_bytes = match &kind {
        // A matter of the file system.
        Kind::Directory => meta.len(),
        Kind::Regular { size_bytes, .. } => *size_bytes,
        Kind::Symlink { target } => target.len() as u64,
        Kind::Char { .. } | Kind::Block { .. } | Kind::Fifo | Kind::Socket => 0,
    };
    if meta.len() != size_bytes {
        return Err(format!("{}: {size_bytes} bytes read, size {}", path.display(), meta.len()).into());
    }
    Ok(kind)
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Failed> {
    let mut found = BTreeMap::new();
    // The longest list and the longest value that Linux hands out.
    let mut list = vec![0_u8; 1 << 16];
    let len = rustix::fs::llistxattr(path, &mut list[..])?;
    if len == 0 {
        return Ok(found);
    }
    for name in list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0_u8; 1 << 16];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(len);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

// --- what a layer's names become -------------------------------------------------------------

/// Whether overlayfs would take the attribute for its own. No layer may set one.
pub fn is_overlay_attribute(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Turns a tree that holds `.wh.` files into the one its image must show; counts links again.
///
/// `implied` are directories that no entry of the layer names: they have fixed attributes, not those
/// that the reading program happened to give them.
pub fn image_of(mut tree: Tree, implied: &BTreeSet<Vec<u8>>) -> Tree {
    for (name, node) in &mut tree {
        node.xattrs.retain(|attribute, _| !is_overlay_attribute(attribute));
        if implied.contains(name) {
            (node.mode, node.uid, node.gid, node.mtime) = (0o755, 0, 0, (0, 0));
            node.xattrs.clear();
        }
    }
    let markers: Vec<Vec<u8>> =
        tree.keys().filter(|name| split(name).1.starts_with(b".wh.")).cloned().collect();
    let mut attribute = Vec::new();
    for marker in markers {
        let (directory, last) = split(&marker);
        let node = tree.remove(&marker).expect("a key just seen");
        let hidden = last.strip_prefix(b".wh.").unwrap_or(last);
        let target = if directory.is_empty() { hidden.to_vec() } else { [directory, b"/", hidden].concat() };
        if hidden == b".wh..opq" {
            attribute.push((directory.to_vec(), b"trusted.overlay.opaque".to_vec(), b"y".to_vec()));
        } else if let Some(kept) = tree.get(&target) {
            // Entries of the layer itself stay; a directory then shows nothing from below.
            if kept.kind == Kind::Directory {
                attribute.push((target, b"trusted.overlay.opaque".to_vec(), b"y".to_vec()));
            }
        } else {
            let whiteout = Kind::Char { major: 0, minor: 0 };
            tree.insert(target, Node { kind: whiteout, xattrs: BTreeMap::new(), ..node });
            // overlayfs looks at entry types in directories that carry an origin only.
            attribute.push((directory.to_vec(), b"trusted.overlay.origin".to_vec(), Vec::new()));
        }
    }
    for (name, key, value) in attribute {
        if let Some(node) = tree.get_mut(&name) {
            node.xattrs.insert(key, value);
        }
    }
    count_links(&mut tree);
    tree
}

/// Sets `nlink` of every node from the tree itself.
pub fn count_links(tree: &mut Tree) {
    let mut subdirectories: HashMap<Vec<u8>, u64> = HashMap::new();
    let mut names: HashMap<u64, u64> = HashMap::new();
    for (name, node) in tree.iter() {
        if node.kind == Kind::Directory {
            if !name.is_empty() {
                *subdirectories.entry(split(name).0.to_vec()).or_default() += 1;
            }
        } else {
            *names.entry(node.link_group).or_default() += 1;
        }
    }
    for (name, node) in tree.iter_mut() {
        node.nlink = if node.kind == Kind::Directory {
            2 + subdirectories.get(name).copied().unwrap_or(0)
        } else {
            names[&node.link_group]
        };
    }
    number_links(tree);
}

/// Numbers the link groups in the order of first names, so that two trees can be compared.
pub fn number_links(tree: &mut Tree) {
    let mut order: HashMap<u64, u64> = HashMap::new();
    for node in tree.values_mut().filter(|node| node.kind != Kind::Directory) {
        let next = order.len() as u64 + 1;
        node.link_group = *order.entry(node.link_group).or_insert(next);
    }
}

// --- comparison ------------------------------------------------------------------------------

/// Fails with the first differences between two trees.
pub fn compare(want: &Tree, found: &Tree) -> Result<(), Failed> {
    let names: BTreeSet<&Vec<u8>> = want.keys().chain(found.keys()).collect();
    let (mut text, mut count) = (String::new(), 0);
    for name in names {
        let (want, found) = (want.get(name), found.get(name));
        if want == found {
            continue;
        }
        count += 1;
        if count <= 8 {
            let name = String::from_utf8_lossy(name);
            writeln!(text, "/{name}:\n  want  {}\n  found {}", shown(want), shown(found))?;
        }
    }
    if count == 0 { Ok(()) } else { Err(format!("{count} names differ, the first:\n{text}").into()) }
}

fn shown(node: Option<&Node>) -> String {
    let Some(node) = node else { return "nothing".to_owned() };
    let kind = match &node.kind {
        Kind::Regular { size_bytes, sha256: [a, b, c, d, ..] } => {
            format!("file of {size_bytes} bytes, sha256 {a:02x}{b:02x}{c:02x}{d:02x}...")
        }
        Kind::Symlink { target } => format!("link to {}", target.escape_ascii()),
        other => format!("{other:?}"),
    };
    let Node { mode, uid, gid, mtime: (seconds, nanoseconds), nlink, link_group, .. } = node;
    let mut text = format!(
        "{kind}, mode {mode:o}, owner {uid}:{gid}, time {seconds} + {nanoseconds} ns, {nlink} links, group {link_group}"
    );
    for (name, value) in &node.xattrs {
        let (start, more) = value.split_at_checked(60).unwrap_or((value, &[]));
        text += &format!(", {}={}", name.escape_ascii(), start.escape_ascii());
        text += if more.is_empty() { "" } else { "..." };
    }
    text
}
