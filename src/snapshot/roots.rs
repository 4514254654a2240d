//! The configured roots, and the snapshot directories below them.
//!
//! Source: docs/formats/containerd.md, "Mount lists".

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{fs::FileType, io::Errno};

use super::{
    directory::SnapshotDir,
    error::{MountError, quote},
    layout::{EROFS, Layout, Leaf, OVERLAYBD_DEVICE, OVERLAYFS, SNAPSHOTS},
    list::MountList,
    mount::Mount,
    place::{Place, Spot, place},
    resolve::{Access, check_options, claim},
    sweep::Sweep,
};
use crate::{
    error::{Classify, Kind, disk_kind},
    sys::dir::{Dir, Status},
};

/// The roots of all snapshotters that the daemon serves, opened once.
#[derive(Debug)]
pub struct Roots {
    /// In the order of the configuration, those that Apply may write to first.
    snapshots: Vec<Root>,
    /// Directories of images that several snapshots share.
    pub(super) shared: Vec<Trusted>,
    /// The user who owns all of them.
    pub(super) owner: u32,
}

/// A directory that the operator configured and that nobody else can change.
#[derive(Debug)]
pub(super) struct Trusted {
    /// The path as configured, then without links; the same twice when there are none.
    pub(super) spellings: [String; 2],
    pub(super) dir: Arc<Dir>,
}

/// The directory of one snapshotter.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) at: Trusted,
    pub(super) layout: &'static Layout,
}

/// A snapshot, by the spelling of its directory.
#[derive(Clone, Copy)]
pub(super) struct Home<'a> {
    pub(super) root: &'a Root,
    /// The root as the path spells it.
    pub(super) spelling: &'a str,
    /// The number of the snapshot.
    pub(super) id: &'a str,
    /// The path that a list names in the snapshot's directory, as a whole.
    path: &'a str,
}

/// The reasons why a configured root cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The path has characters that mount options cannot carry.
    #[error(
        "snapshot root {0:?} is not an absolute UTF-8 path without `..`, comma, colon, backslash or quote"
    )]
    Spelling(PathBuf),
    /// The directory does not exist, or is something else.
    #[error("snapshot root {path:?}")]
    Open {
        /// The configured path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another user could exchange the directories below it.
    #[error(
        "snapshot root {path:?}: owner {uid}, mode {permissions:04o}; it must belong to root and be writable by nobody else"
    )]
    Owner {
        /// The configured path.
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
    /// Opens the roots of EROFS snapshotters, the directories in which they keep `snapshots/`.
    ///
    /// A root may be reached through links; mounts are then recognised under both spellings.
    pub fn open(paths: &[PathBuf]) -> Result<Self, RootsError> {
        // The user the daemon runs as: root, except in a test or a user namespace.
        let owner = rustix::process::geteuid().as_raw();
        let open = |path: &PathBuf| Ok(Root { at: Trusted::open(path, owner)?, layout: &EROFS });
        let snapshots = paths.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { snapshots, shared: Vec::new(), owner })
    }

    /// Opens further directories for [`Roots::stack`]: roots of overlayfs snapshotters, passed over when they
    /// do not exist, and directories with images that several snapshots link to.
    pub fn also_read(mut self, overlayfs: &[PathBuf], shared_layers: &[PathBuf]) -> Result<Self, RootsError> {
        self.add(overlayfs, &OVERLAYFS)?;
        for path in shared_layers {
            self.shared.push(Trusted::open(path, self.owner)?);
        }
        Ok(self)
    }

    /// Opens the roots of overlaybd snapshotters, passed over when they do not exist. Apply writes to them as well.
    pub fn with_overlaybd(mut self, paths: &[PathBuf]) -> Result<Self, RootsError> {
        self.add(paths, &OVERLAYBD_DEVICE)?;
        Ok(self)
    }

    /// Adds the roots `paths` that exist.
    fn add(&mut self, paths: &[PathBuf], layout: &'static Layout) -> Result<(), RootsError> {
        for path in paths {
            match Trusted::open(path, self.owner) {
                Err(RootsError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                at => self.snapshots.push(Root { at: at?, layout }),
            }
        }
        Ok(())
    }

    /// Finds the one snapshot directory that `mounts` mean, and opens it to publish files in it.
    ///
    /// Errors of kind `NotImplemented` mean that the list is for another differ. Nothing is looked at on disk
    /// until the path is known to lie below a root, spelt as the snapshotter spells it. An empty list is an error
    /// that no other differ could answer better.
    pub fn resolve(&self, mounts: &[Mount]) -> Result<SnapshotDir, MountError> {
        let list = MountList::read(mounts)?;
        let claim = claim(&list)?;
        let home = locate(self.writable(), claim.path, claim.leaf)?;
        if home.is_device() {
            return Err(MountError::Device(quote(claim.path)));
        }
        check_options(&list, Some(home.spot()), &|path| self.is_shared(path))?;
        home.root.snapshot(home.id, claim.access, self.owner)
    }

    /// Begins a search for the temporary files of a killed process; see [`Sweep::run`].
    pub fn sweep(&self) -> Sweep {
        Sweep::new(self.writable().map(|root| Arc::clone(&root.at.dir)).collect(), self.owner)
    }

    /// The roots in whose snapshots files are published.
    pub(super) fn writable(&self) -> impl Iterator<Item = &Root> {
        self.snapshots.iter().filter(|root| !root.layout.publishes.is_empty())
    }

    /// Finds the snapshot that `path` lies in, below any root.
    pub(super) fn locate<'a>(&'a self, path: &'a str, leaf: Leaf) -> Result<Home<'a>, MountError> {
        locate(&self.snapshots, path, leaf)
    }
}

/// Checks that a daemon of the user `owner` could use `path` as a snapshot root.
pub fn check_root(path: &Path, owner: u32) -> Result<(), RootsError> {
    Trusted::open(path, owner).map(drop)
}

/// Finds the root that `path` is below, and the snapshot's number.
fn locate<'a>(
    roots: impl IntoIterator<Item = &'a Root>,
    path: &'a str,
    leaf: Leaf,
) -> Result<Home<'a>, MountError> {
    let mut refusal = MountError::Outside(quote(path));
    for root in roots {
        let leaves = root.layout.names(leaf);
        for spelling in &root.at.spellings {
            match place(spelling, path, leaves) {
                Place::Snapshot(id) => return Ok(Home { root, spelling, id, path }),
                Place::Odd => refusal = MountError::Path { path: quote(path), leaves },
                Place::Outside => {}
            }
        }
    }
    Err(refusal)
}

impl<'a> Home<'a> {
    /// Whether the path is where the device of the snapshot is mounted.
    pub(super) fn is_device(&self) -> bool {
        self.root.layout.device.is_some_and(|device| self.path.ends_with(device))
    }

    pub(super) fn spot(&self) -> Spot<'a> {
        Spot { root: self.spelling, id: self.id, layout: self.root.layout }
    }
}

impl Trusted {
    fn open(path: &Path, owner: u32) -> Result<Self, RootsError> {
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
        Ok(Self { spellings: [text.to_owned(), canonical], dir: Arc::new(dir) })
    }

    /// Checks that the open directory is still the one that its path names. A root that was moved away may well
    /// have a snapshot of the same number, and a layer there would be a success that nobody finds.
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
}

impl Root {
    fn snapshot(&self, id: &str, access: Access, owner: u32) -> Result<SnapshotDir, MountError> {
        let opened = self.opened(id, owner)?;
        opened.check_marker(owner)?;
        let Opened { path, dir, layout, status } = opened;
        let parent = self.at.dir.open_beneath(SNAPSHOTS).map_err(|source| refusal(&path, source))?;
        Ok(SnapshotDir {
            id: id.to_owned(),
            path: path.into(),
            key: (status.device, status.inode),
            access,
            layout,
            dir: Arc::new(dir),
            parent,
        })
    }

    /// Opens the directory of a snapshot, and checks its owner and mode.
    pub(super) fn opened(&self, id: &str, owner: u32) -> Result<Opened, MountError> {
        let [spelling, _] = &self.at.spellings;
        self.at.check_in_place()?;
        let path = format!("{spelling}/{SNAPSHOTS}/{id}");
        let refuse = |source: io::Error| refusal(&path, source);
        let dir = self.at.dir.open_beneath(format!("{SNAPSHOTS}/{id}")).map_err(refuse)?;
        let status = dir.status().map_err(refuse)?;
        check_owner(&status, &path, owner)?;
        Ok(Opened { path, dir, layout: self.layout, status })
    }
}

/// A snapshot's directory, open, with its path and layout.
pub(super) struct Opened {
    pub(super) path: String,
    pub(super) dir: Dir,
    pub(super) layout: &'static Layout,
    status: Status,
}

impl Opened {
    /// Device and inode number of the directory.
    pub(super) fn key(&self) -> (u64, u64) {
        (self.status.device, self.status.inode)
    }

    /// Checks that the snapshotter has marked the directory, if it marks any.
    pub(super) fn check_marker(&self, owner: u32) -> Result<(), MountError> {
        let Self { path, dir, .. } = self;
        let Some(name) = self.layout.marker else { return Ok(()) };
        match dir.status_of(name) {
            Ok(marker) if marker.file_type != FileType::RegularFile => {
                Err(MountError::Marker { path: path.clone(), name })
            }
            Ok(marker) => check_owner(&marker, &format!("{path}/{name}"), owner),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(MountError::NoMarker { path: path.clone(), name })
            }
            Err(source) => Err(refusal(path, source)),
        }
    }
}

/// Refuses a file or directory that another user than `owner` could change.
pub(super) fn check_owner(status: &Status, path: &str, owner: u32) -> Result<(), MountError> {
    let Status { uid, permissions, .. } = *status;
    if uid == owner && permissions & 0o022 == 0 {
        return Ok(());
    }
    Err(MountError::Owner { path: path.to_owned(), uid, permissions })
}

/// Translates an error of `openat2` below a root.
pub(super) fn refusal(path: &str, source: io::Error) -> MountError {
    let path = path.to_owned();
    match Errno::from_io_error(&source) {
        Some(Errno::NOENT) => MountError::Missing(path),
        Some(Errno::LOOP | Errno::XDEV | Errno::NOTDIR) => MountError::Link(path),
        _ => MountError::Io { path, source },
    }
}

#[cfg(test)]
#[path = "roots_tests.rs"]
mod tests;
