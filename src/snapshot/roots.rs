//! The configured roots, and the snapshot directories below them.
//!
//! Source: docs/formats/containerd.md, "Mount lists".

use std::{
    ffi::CStr,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{fs::FileType, io::Errno};

use super::{
    error::MountError,
    layer_file::{LayerError, LayerFile},
    mount::Mount,
    resolve::{Access, Place, check_options, claim, place, quote},
    sweep::Sweep,
};
use crate::{
    error::{Classify, Kind, disk_kind},
    limits::Limits,
    sys::dir::{Dir, Status},
};

/// The snapshotter's mark on a directory that waits for an EROFS layer.
const MARKER: &CStr = c".erofslayer";
/// The directory below a root that holds one directory per snapshot.
pub(super) const SNAPSHOTS: &CStr = c"snapshots";

/// The roots of all snapshotters that we serve, opened once.
#[derive(Debug)]
pub struct Roots {
    /// Of EROFS snapshotters.
    roots: Vec<Root>,
    /// Of overlayfs snapshotters, whose layers are only read.
    pub(super) overlayfs: Vec<Root>,
    /// Directories of images that links in the snapshots may lead to.
    pub(super) shared: Vec<Root>,
    pub(super) owner: u32,
}

#[derive(Debug)]
pub(super) struct Root {
    /// As configured, then without links; the same twice when there are none.
    pub(super) spellings: [String; 2],
    pub(super) dir: Arc<Dir>,
    pub(super) snapshotter: Snapshotter,
}

/// Who keeps its snapshots below a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Snapshotter {
    /// Images and upper directories.
    Erofs,
    /// Directories.
    Overlayfs,
}

/// Why a configured root cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// Mount options could not carry such a path.
    #[error(
        "snapshot root {0:?} is not an absolute UTF-8 path without `..`, comma, colon, backslash or quote"
    )]
    Spelling(PathBuf),
    /// Not there, or not a directory.
    #[error("snapshot root {path:?}")]
    Open {
        /// As configured.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Others could swap what is below it.
    #[error(
        "snapshot root {path:?}: owner {uid}, mode {permissions:04o}; it must belong to root and be writable by nobody else"
    )]
    Owner {
        /// As configured.
        path: PathBuf,
        /// Owner found.
        uid: u32,
        /// Mode found.
        permissions: u32,
    },
}

impl Classify for RootsError {
    fn kind(&self) -> Kind {
        match self {
            Self::Open { source, .. } if source.kind() != io::ErrorKind::NotFound => disk_kind(source),
            _ => Kind::Malformed,
        }
    }
    fn reason(&self) -> &'static str {
        "config.snapshot-root"
    }
}

impl Roots {
    /// Opens the roots, each the directory of one snapshotter, in which it keeps `snapshots/`.
    ///
    /// A root may be reached through links; mounts are then recognised under both spellings.
    pub fn open(paths: &[PathBuf]) -> Result<Self, RootsError> {
        // The user the daemon runs as: root, except in a test or a user namespace.
        let owner = rustix::process::geteuid().as_raw();
        let open = |path: &PathBuf| Root::open(path, owner, Snapshotter::Erofs);
        let roots = paths.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { roots, overlayfs: Vec::new(), shared: Vec::new(), owner })
    }

    /// Opens what [`Roots::stack`] may read besides: roots of overlayfs snapshotters, passed over when they
    /// do not exist, and directories with images that several snapshots link to.
    pub fn also_read(mut self, overlayfs: &[PathBuf], shared_layers: &[PathBuf]) -> Result<Self, RootsError> {
        for path in overlayfs {
            match Root::open(path, self.owner, Snapshotter::Overlayfs) {
                Err(RootsError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                root => self.overlayfs.push(root?),
            }
        }
        for path in shared_layers {
            self.shared.push(Root::open(path, self.owner, Snapshotter::Erofs)?);
        }
        Ok(self)
    }

    /// Finds the one snapshot directory that `mounts` mean, and opens it.
    ///
    /// Errors of kind `NotImplemented` mean that the list is not ours; until the path has been found to
    /// lie below a root, and to be spelt as the snapshotter spells it, nothing is looked at on disk. An empty
    /// list is an error that no other differ could answer better.
    pub fn resolve(&self, mounts: &[Mount]) -> Result<SnapshotDir, MountError> {
        let claim = claim(mounts)?;
        let (root, spelling, id) = locate(&self.roots, claim.path, claim.leaves)?;
        check_options(mounts, Some((spelling, id)), &|path| self.is_shared(path))?;
        root.snapshot(id, claim.access, self.owner)
    }

    /// Begins a search for temporaries that a killed process left; see [`Sweep::run`].
    pub fn sweep(&self) -> Sweep {
        Sweep::new(self.roots.iter().map(|root| Arc::clone(&root.dir)).collect(), self.owner)
    }

    /// Where `path` lies below any root.
    pub(super) fn locate<'a>(
        &'a self,
        path: &'a str,
        leaves: &'static [&'static str],
    ) -> Result<(&'a Root, &'a str, &'a str), MountError> {
        locate(self.roots.iter().chain(&self.overlayfs), path, leaves)
    }
}

/// Looks whether a daemon of the user `owner` could take `path` for a snapshot root.
pub fn check_root(path: &Path, owner: u32) -> Result<(), RootsError> {
    Root::open(path, owner, Snapshotter::Erofs).map(drop)
}

/// The root that `path` is below, its spelling there, and the snapshot's number.
fn locate<'a>(
    roots: impl IntoIterator<Item = &'a Root>,
    path: &'a str,
    leaves: &'static [&'static str],
) -> Result<(&'a Root, &'a str, &'a str), MountError> {
    let mut odd = false;
    for root in roots {
        for spelling in &root.spellings {
            match place(spelling, path, leaves) {
                Place::Snapshot(id) => return Ok((root, spelling, id)),
                Place::Odd => odd = true,
                Place::Outside => {}
            }
        }
    }
    Err(if odd { MountError::Path { path: quote(path), leaves } } else { MountError::Outside(quote(path)) })
}

impl Root {
    fn open(path: &Path, owner: u32, snapshotter: Snapshotter) -> Result<Self, RootsError> {
        let spelling = || RootsError::Spelling(path.to_owned());
        let open = |source| RootsError::Open { path: path.to_owned(), source };
        let text = path.to_str().ok_or_else(spelling)?;
        let text = if text.len() > 1 { text.trim_end_matches('/') } else { text };
        let clean = text.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|part| !matches!(part, "" | "." | ".."))
                && !rest.contains([',', ':', '\\', '"', '{', '\n'])
        });
        if !clean {
            return Err(spelling());
        }
        let canonical = path.canonicalize().map_err(open)?;
        let dir = Dir::open_root(&canonical).map_err(open)?;
        let Status { uid, permissions, .. } = dir.status().map_err(open)?;
        if uid != owner || permissions & 0o022 != 0 {
            return Err(RootsError::Owner { path: path.to_owned(), uid, permissions });
        }
        let canonical = canonical.to_str().ok_or_else(spelling)?.to_owned();
        Ok(Self { spellings: [text.to_owned(), canonical], dir: Arc::new(dir), snapshotter })
    }

    fn snapshot(&self, id: &str, access: Access, owner: u32) -> Result<SnapshotDir, MountError> {
        let Opened { path, dir, status } = self.opened(id, owner)?;
        check_marker(&dir, &path, owner)?;
        let parent = self.dir.open_beneath(SNAPSHOTS).map_err(|source| refusal(&path, source))?;
        Ok(SnapshotDir {
            id: id.to_owned(),
            path: path.into(),
            key: (status.device, status.inode),
            access,
            dir: Arc::new(dir),
            parent,
        })
    }

    /// Looks whether the open root is still what its path names. A root that was moved away may well have a
    /// snapshot of the same number, and a layer there would be a success that nobody finds.
    fn check_in_place(&self) -> Result<(), MountError> {
        let [spelling, canonical] = &self.spellings;
        let replaced = || MountError::RootReplaced(spelling.clone());
        let opened = self.dir.status().map_err(|source| refusal(spelling, source))?;
        let named = fs::metadata(canonical).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => replaced(),
            _ => refusal(spelling, error),
        })?;
        ((opened.device, opened.inode) == (named.dev(), named.ino())).then_some(()).ok_or_else(replaced)
    }

    /// The directory of a snapshot, of which the owner has been looked at.
    pub(super) fn opened(&self, id: &str, owner: u32) -> Result<Opened, MountError> {
        let [spelling, _] = &self.spellings;
        self.check_in_place()?;
        let path = format!("{spelling}/snapshots/{id}");
        let refuse = |source: io::Error| refusal(&path, source);
        let dir = self.dir.open_beneath(format!("snapshots/{id}")).map_err(refuse)?;
        let status = dir.status().map_err(refuse)?;
        check_owner(&status, &path, owner)?;
        Ok(Opened { path, dir, status })
    }
}

/// A snapshot's directory and where it is.
pub(super) struct Opened {
    pub(super) path: String,
    pub(super) dir: Dir,
    status: Status,
}

/// Whether somebody else could change what is at `path`.
pub(super) fn check_owner(status: &Status, path: &str, owner: u32) -> Result<(), MountError> {
    let Status { uid, permissions, .. } = *status;
    if uid == owner && permissions & 0o022 == 0 {
        return Ok(());
    }
    Err(MountError::Owner { path: path.to_owned(), uid, permissions })
}

/// Looks for the snapshotter's mark in the directory `dir` at `path`.
pub(super) fn check_marker(dir: &Dir, path: &str, owner: u32) -> Result<(), MountError> {
    match dir.status_of(MARKER) {
        Ok(marker) if marker.file_type != FileType::RegularFile => Err(MountError::Marker(path.to_owned())),
        Ok(marker) => check_owner(&marker, &format!("{path}/.erofslayer"), owner),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(MountError::NoMarker(path.to_owned())),
        Err(source) => Err(refusal(path, source)),
    }
}

/// What an error of `openat2` below a root means.
pub(super) fn refusal(path: &str, source: io::Error) -> MountError {
    let path = path.to_owned();
    match Errno::from_io_error(&source) {
        Some(Errno::NOENT) => MountError::Missing(path),
        Some(Errno::LOOP | Errno::XDEV | Errno::NOTDIR) => MountError::Link(path),
        _ => MountError::Io { path, source },
    }
}

/// One snapshot's directory, open for as long as the request runs.
#[derive(Debug)]
pub struct SnapshotDir {
    id: String,
    path: PathBuf,
    key: (u64, u64),
    access: Access,
    dir: Arc<Dir>,
    parent: Dir,
}

impl SnapshotDir {
    /// The snapshotter's number for it, in decimal.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// For messages; nothing is ever opened by this path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode number: the same directory has the same key, whatever names it.
    pub fn key(&self) -> (u64, u64) {
        self.key
    }

    /// What the mounts allow.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Locks the directory and begins a file that will be named `name` in it.
    ///
    /// Errors: the mounts are read-only; another request has the lock; the name is taken by something
    /// that cannot be replaced; too little free space.
    pub fn layer_file(&self, name: &CStr, limits: &Limits) -> Result<LayerFile, LayerError> {
        let path = self.path.join(String::from_utf8_lossy(name.to_bytes()).as_ref());
        if self.access == Access::View {
            return Err(LayerError::ReadOnly(path));
        }
        let parent = self.parent.open_beneath(c".").map_err(|source| LayerError::Io {
            what: "open its parent",
            path: path.clone(),
            source,
        })?;
        LayerFile::in_snapshot(&self.dir, parent, name, &path, limits)
    }
}

#[cfg(test)]
#[path = "roots_tests.rs"]
mod tests;
