//! Trees that containers see, and the tree that a stack of layers must give.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

pub use testkit::tree::{Kind, Node, Tree};
use testkit::{Failed, tree};

use crate::host;

/// Reads a whole tree. The links of directories are counted, because file systems differ in them.
pub fn scan(root: &Path) -> anyhow::Result<Tree> {
    let mut tree = tree::scan(root).map_err(error)?;
    tree::count_links(&mut tree);
    Ok(tree)
}

/// A tree as a tar layer can carry it: whole seconds, no sockets, no entry for the root.
pub fn carried(root: &Path) -> anyhow::Result<Tree> {
    let mut tree = scan(root)?;
    tree.remove(&b""[..]);
    tree.retain(|_, node| node.kind != Kind::Socket);
    for node in tree.values_mut() {
        node.mtime.1 = 0;
    }
    tree::count_links(&mut tree);
    Ok(tree)
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
pub fn ensure_equal(want: &Tree, found: &Tree) -> anyhow::Result<()> {
    tree::compare(want, found).map_err(error)
}

fn error(failed: Failed) -> anyhow::Error {
    anyhow::anyhow!("{}", failed.message().unwrap_or("failed"))
}
