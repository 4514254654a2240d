//! Snapshots of the overlaybd snapshotter whose layers are one device: where their files are, and how they are opened.
//!
//! The snapshotter describes the device of a committed snapshot in a file beside it, which names files of this snapshot
//! and of those below. This module opens such files, below the root and nowhere else. What is in them is not its
//! concern.
//!
//! Source: docs/formats/containerd.md, "Snapshots of devices"; accelerated-container-image `pkg/snapshot`.

use std::{fs::File, io, sync::Arc};

use rustix::{fs::FileType, io::Errno};

use super::{
    error::{MountError, quote},
    layout::{DEVICE, DEVICE_CONFIG, Leaf, SEALED, SNAPSHOTS, WRITABLE},
    list::{MountList, Word},
    mount::{Mount, decimal},
    resolve::{check_options, claim},
    roots::{Home, Opened, Roots, check_owner, refusal},
};
use crate::sys::dir::{Dir, status};

/// The device of a snapshot: its directory, and the root that holds all files of its layers.
#[derive(Debug)]
pub struct DeviceDir {
    path: String,
    dir: Dir,
    /// Device and inode number of the snapshot's directory.
    key: (u64, u64),
    root: Arc<Dir>,
    spellings: [String; 2],
    owner: u32,
}

/// The writable layer of a device.
#[derive(Debug)]
pub enum Writable {
    /// The pair of data and index that containers have written to.
    Pair {
        /// The data.
        data: File,
        /// The index.
        index: File,
    },
    /// One file: the data with its index at the end.
    Sealed(File),
}

impl Roots {
    /// Finds the device below the layer that is to be applied: that of the nearest lower directory. `None` when the
    /// list names no lower directory: there is no layer below, or the snapshotter leaves it out.
    pub fn device_below(&self, mounts: &[Mount]) -> Result<Option<DeviceDir>, MountError> {
        let list = MountList::read(mounts)?;
        let Some(lower) = list.last.lower.first else { return Ok(None) };
        let Word::Path(paths) = Word::of(lower) else {
            return Err(MountError::Form("a lower directory in a template, above a device"));
        };
        let nearest = paths.split(':').next().unwrap_or_default();
        let below = self.locate(nearest, Leaf::Upper)?;
        if below.root.layout.device.is_none() {
            return Ok(None);
        }
        let claimed = claim(&list)?;
        let own = self.locate(claimed.path, claimed.leaf)?;
        if !std::ptr::eq(below.root, own.root) {
            return Err(MountError::Foreign(quote(nearest)));
        }
        DeviceDir::of(below, self.owner).map(Some)
    }

    /// Finds the device of the snapshot that a view's `mounts` show.
    pub fn device_of(&self, mounts: &[Mount]) -> Result<DeviceDir, MountError> {
        let list = MountList::read(mounts)?;
        let claim = claim(&list)?;
        let home = self.locate(claim.path, claim.leaf)?;
        check_options(&list, Some(home.spot()), &|_shared| false)?;
        DeviceDir::of(home, self.owner)
    }
}

impl DeviceDir {
    /// Name of the description in the snapshot's directory.
    pub const CONFIG: &str = DEVICE_CONFIG;

    pub(super) fn of(home: Home<'_>, owner: u32) -> Result<Self, MountError> {
        let device = home.root.layout.device;
        let opened = home.root.opened(home.id, owner)?;
        let key = opened.key();
        let Opened { path, dir, .. } = opened;
        if device.is_none() {
            return Err(MountError::NoDevice(path, DEVICE_CONFIG));
        }
        let (root, spellings) = (Arc::clone(&home.root.at.dir), home.root.at.spellings.clone());
        Ok(Self { path, dir, key, root, spellings, owner })
    }

    /// The path of the snapshot's directory. For messages.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Device and inode number of the snapshot's directory.
    pub fn key(&self) -> (u64, u64) {
        self.key
    }

    /// Opens the description of the device. `None` when the snapshot is no device, or not committed.
    pub fn config(&self) -> Result<Option<File>, MountError> {
        self.own(DEVICE_CONFIG)
    }

    /// Whether there is a description.
    pub fn is_described(&self) -> bool {
        self.dir.status_of(DEVICE_CONFIG).is_ok()
    }

    /// Opens the writable layer of the snapshot, sealed or not. `None` without one. Errors: the device is mounted.
    pub fn writable(&self) -> Result<Option<Writable>, MountError> {
        self.check_unmounted()?;
        if let Some(sealed) = self.own(SEALED)? {
            return Ok(Some(Writable::Sealed(sealed)));
        }
        let [data, index] = WRITABLE;
        match (self.own(data)?, self.own(index)?) {
            (Some(data), Some(index)) => Ok(Some(Writable::Pair { data, index })),
            (Some(_), None) => Err(MountError::Missing(format!("{}/{index}", self.path))),
            (None, _) => Ok(None),
        }
    }

    /// Opens the tree of the device where the snapshotter has mounted it, with its path. `None` when it is not mounted.
    pub(super) fn mounted(&self) -> Result<Option<(Dir, String)>, MountError> {
        let path = format!("{}/{DEVICE}", self.path);
        match self.check_unmounted() {
            Err(MountError::DeviceMounted(_)) => {
                let dir = self.dir.open_mounted(DEVICE).map_err(|source| refusal(&path, source))?;
                Ok(Some((dir, path)))
            }
            unmounted => unmounted.map(|()| None),
        }
    }

    /// Checks that nothing is mounted where the snapshotter mounts the device.
    fn check_unmounted(&self) -> Result<(), MountError> {
        let path = format!("{}/{DEVICE}", self.path);
        match self.dir.open_beneath(DEVICE) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::XDEV) => {
                Err(MountError::DeviceMounted(path))
            }
            Err(source) => Err(refusal(&path, source)),
        }
    }

    /// Opens a file that a description of the device names: it must lie in a snapshot below the same root. `None`
    /// when it does not exist.
    pub fn open(&self, path: &str) -> Result<Option<File>, MountError> {
        let below = |spelling: &String| path.strip_prefix(spelling.as_str())?.strip_prefix('/');
        let below = self.spellings.iter().find_map(below).filter(|below| is_of_a_snapshot(below));
        let below = below.ok_or_else(|| MountError::Foreign(quote(path)))?;
        self.checked(&self.root, below, path)
    }

    /// Opens a file of the snapshot itself.
    fn own(&self, name: &'static str) -> Result<Option<File>, MountError> {
        self.checked(&self.dir, name, &format!("{}/{name}", self.path))
    }

    fn checked(&self, dir: &Dir, below: &str, path: &str) -> Result<Option<File>, MountError> {
        let file = match dir.open_file_beneath(below) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            outcome => outcome.map_err(|source| refusal(path, source))?,
        };
        let found = status(&file).map_err(|source| refusal(path, source))?;
        if found.file_type != FileType::RegularFile {
            return Err(MountError::File(path.to_owned()));
        }
        check_owner(&found, path, self.owner)?;
        Ok(Some(file))
    }
}

/// Whether a path below a root reads `snapshots/NUMBER/...`, without empty components, `.` and `..`.
fn is_of_a_snapshot(below: &str) -> bool {
    let mut parts = below.split('/');
    let is_numbered = parts.next() == Some(SNAPSHOTS) && parts.next().is_some_and(|id| decimal(id).is_some());
    let mut rest = parts.peekable();
    is_numbered && rest.peek().is_some() && rest.all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
