//! Trees as they can be compared: everything a file system shows about every name, and the tree that a stack of
//! layers must give.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use crate::host;

/// What one name shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `file`, `directory`, `symlink`, `char`, `block`, `fifo`, `socket`.
    pub kind: &'static str,
    /// The low twelve bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Modification time, seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Size in bytes; 0 for what is no regular file.
    pub size_bytes: u64,
    /// Device number of devices, else 0.
    pub device: u64,
    /// SHA-256 of a file, target of a link, else empty.
    pub contents: Vec<u8>,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The first of the names of the same inode, when there are several.
    pub hard_link_of: Option<PathBuf>,
}

/// Reads a whole tree; keys are paths below `root`, which itself is the empty path.
pub fn scan(root: &Path) -> anyhow::Result<BTreeMap<PathBuf, Node>> {
    let mut names = vec![PathBuf::new()];
    let mut next = 0;
    while let Some(name) = names.get(next).cloned() {
        next += 1;
        if std::fs::symlink_metadata(root.join(&name))?.is_dir() {
            for entry in std::fs::read_dir(root.join(&name))? {
                names.push(name.join(entry?.file_name()));
            }
        }
    }
    names.sort();
    let mut tree = BTreeMap::new();
    let mut inodes: HashMap<(u64, u64), PathBuf> = HashMap::new();
    for name in names {
        let full = if name.as_os_str().is_empty() { root.to_owned() } else { root.join(&name) };
        let meta = std::fs::symlink_metadata(&full)?;
        let kind = match meta.file_type() {
            kind if kind.is_file() => "file",
            kind if kind.is_dir() => "directory",
            kind if kind.is_symlink() => "symlink",
            kind if kind.is_char_device() => "char",
            kind if kind.is_block_device() => "block",
            kind if kind.is_fifo() => "fifo",
            _ => "socket",
        };
        let contents = match kind {
            "file" => {
                let mut hasher = Sha256::new();
                let mut file = std::fs::File::open(&full)?;
                let mut buffer = vec![0; 1 << 16];
                loop {
                    let read = std::io::Read::read(&mut file, &mut buffer)?;
                    if read == 0 {
                        break hasher.finalize().to_vec();
                    }
                    hasher.update(&buffer[..read]);
                }
            }
            "symlink" => std::fs::read_link(&full)?.as_os_str().as_bytes().to_vec(),
            _ => Vec::new(),
        };
        let hard_link_of = if kind == "directory" {
            None
        } else {
            let first = inodes.entry((meta.dev(), meta.ino())).or_insert_with(|| name.clone());
            (*first != name).then(|| first.clone())
        };
        let node = Node {
            kind,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            size_bytes: if kind == "file" { meta.len() } else { 0 },
            device: if matches!(kind, "char" | "block") { meta.rdev() } else { 0 },
            contents,
            xattrs: xattrs(&full)?,
            hard_link_of,
        };
        tree.insert(name, node);
    }
    Ok(tree)
}

/// A tree as a tar layer can carry it: whole seconds, no sockets, no entry for the root.
pub fn carried(root: &Path) -> anyhow::Result<BTreeMap<PathBuf, Node>> {
    let mut tree = scan(root)?;
    tree.remove(Path::new(""));
    tree.retain(|_, node| node.kind != "socket");
    for node in tree.values_mut() {
        node.mtime.1 = 0;
    }
    Ok(tree)
}

fn xattrs(file: &Path) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let mut list = vec![0_u8; 1 << 16];
    let len = rustix::fs::llistxattr(file, &mut list)?;
    let mut found = BTreeMap::new();
    for name in list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = String::from_utf8_lossy(name).into_owned();
        // Labels of the host's policy, not of the layer.
        if name == "security.selinux" {
            continue;
        }
        let mut value = vec![0_u8; 1 << 16];
        let len = rustix::fs::lgetxattr(file, name.as_str(), &mut value)?;
        value.truncate(len);
        found.insert(name, value);
    }
    Ok(found)
}

/// The tree that a stack of tar layers must give, made in `target` with GNU tar and the whiteout rules.
///
/// Deletions act on the layers below, whatever their place in the archive, so they are carried out before the
/// layer is extracted. Something that replaces a directory, or a directory that replaces something, removes it first.
pub fn stack(layers: &[PathBuf], target: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(target)?;
    for layer in layers {
        let mut archive = tar::Archive::new(std::fs::File::open(layer)?);
        for entry in archive.entries()? {
            let entry = entry?;
            let name: PathBuf =
                entry.path()?.components().filter(|part| matches!(part, Component::Normal(_))).collect();
            let Some(last) = name.file_name().map(|last| last.as_bytes().to_vec()) else { continue };
            let parent = target.join(name.parent().unwrap_or(Path::new("")));
            if last == b".wh..wh..opq" {
                for child in std::fs::read_dir(&parent).into_iter().flatten() {
                    remove(&child?.path())?;
                }
            } else if let Some(hidden) = last.strip_prefix(b".wh.") {
                remove(&parent.join(std::ffi::OsStr::from_bytes(hidden)))?;
            } else {
                let there = target.join(&name);
                let is_dir = std::fs::symlink_metadata(&there).is_ok_and(|meta| meta.is_dir());
                if is_dir != entry.header().entry_type().is_dir() {
                    remove(&there)?;
                }
            }
        }
        host::run(
            Command::new("tar")
                .arg("-C")
                .arg(target)
                .args(["--numeric-owner", "--same-owner", "--same-permissions", "--xattrs"])
                .args(["--xattrs-include=*", "--exclude=.wh.*", "-xf"])
                .arg(layer),
        )?;
    }
    Ok(())
}

fn remove(name: &Path) -> anyhow::Result<()> {
    match std::fs::symlink_metadata(name) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(name)?,
        Ok(_) => std::fs::remove_file(name)?,
        Err(_) => {}
    }
    Ok(())
}

/// An error that lists the first differences between two trees; fine when there are none.
pub fn ensure_equal(want: &BTreeMap<PathBuf, Node>, found: &BTreeMap<PathBuf, Node>) -> anyhow::Result<()> {
    let names: BTreeSet<&PathBuf> = want.keys().chain(found.keys()).collect();
    let different: Vec<String> = names
        .into_iter()
        .filter_map(|name| match (want.get(name), found.get(name)) {
            (Some(_), None) => Some(format!("{name:?}: missing")),
            (None, Some(node)) => Some(format!("{name:?}: not expected: {node:?}")),
            (Some(want), Some(found)) if want != found => {
                Some(format!("{name:?}:\n  want  {want:?}\n  found {found:?}"))
            }
            _ => None,
        })
        .collect();
    let count = different.len();
    let shown: Vec<String> = different.into_iter().take(8).collect();
    anyhow::ensure!(count == 0, "{count} differences, the first of them:\n{}", shown.join("\n"));
    Ok(())
}
