//! The directory of one snapshot, found and checked, open for as long as a request runs.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    error::PublishError,
    layout::{FileSet, Layout},
    publication::Publication,
    resolve::Access,
};
use crate::{limits::Limits, sys::dir::Dir};

/// The directory of a snapshot that a request may write to or view.
#[derive(Debug)]
pub struct SnapshotDir {
    pub(super) id: String,
    pub(super) path: PathBuf,
    pub(super) key: (u64, u64),
    pub(super) access: Access,
    pub(super) layout: &'static Layout,
    pub(super) dir: Arc<Dir>,
    /// The directory above it.
    pub(super) parent: Dir,
}

impl SnapshotDir {
    /// The snapshotter's number for the snapshot, in decimal.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The path of the directory. For messages: no file is opened by this path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode number. The same directory has the same key under all its paths.
    pub fn key(&self) -> (u64, u64) {
        self.key
    }

    /// The access that the mounts allow.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The sets of files that a layer here may become.
    pub fn publishes(&self) -> &'static [&'static FileSet] {
        self.layout.publishes
    }

    /// Locks the directory and begins to publish the files of `set` in it.
    ///
    /// Errors: the mounts are read-only; another request has the lock.
    pub fn publish(&self, set: &'static FileSet, limits: &Limits) -> Result<Publication, PublishError> {
        debug_assert!(self.layout.publishes.contains(&set), "a set of another snapshotter");
        let last = || self.path.join(set.layer());
        if self.access == Access::View {
            return Err(PublishError::ReadOnly(last()));
        }
        let parent = self.parent.open_beneath(c".").map_err(|source| PublishError::Io {
            what: "open its parent",
            path: last(),
            source,
        })?;
        Publication::in_snapshot(&self.dir, parent, &self.path, set, limits)
    }
}
