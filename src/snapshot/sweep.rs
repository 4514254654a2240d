//! Removal of the temporary files of a killed process: those on which no process holds a lock.
//!
//! Unnamed files vanish with their process, so only file systems without them, and a kill between
//! the two steps of a replacement, leave anything. No other file is ever touched, least of all a layer.
//!
//! Random names exist only in the directories of snapshots themselves, also for files that are published further
//! below (see [`super::new_file::NewFile`]). Those directories are root's. So a sweep never enters a
//! directory that a container writes to: no name in there is removed, and no number of files in there delays it.

use std::{
    collections::VecDeque,
    ffi::CStr,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::fs::FileType;

use super::{layout::SNAPSHOTS, mount::decimal, new_file::is_temporary};
use crate::sys::{dir, dir::Dir, file};

/// A walk over the snapshot directories of all roots, which can be interrupted and continued.
#[derive(Debug)]
pub struct Sweep {
    roots: VecDeque<Arc<Dir>>,
    current: Option<(Dir, Vec<u64>)>,
    owner: u32,
    swept: Swept,
}

/// The totals of a sweep so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Snapshot directories looked into.
    pub directories: u64,
    /// Temporary files removed.
    pub removed: u64,
    /// Temporary files left alone because another process holds their lock.
    pub live: u64,
    /// Directories or temporary files that could not be read or removed.
    pub failed: u64,
    /// The first such failure: what was tried, and the kernel's answer.
    pub first_failure: Option<String>,
    /// Whether every directory has been looked into.
    pub finished: bool,
}

impl Sweep {
    pub(super) fn new(roots: VecDeque<Arc<Dir>>, owner: u32) -> Self {
        Self { roots, current: None, owner, swept: Swept::default() }
    }

    /// Continues the walk for at most `budget`, and returns the totals so far.
    pub fn run(&mut self, budget: Duration) -> Swept {
        let end = Instant::now().checked_add(budget);
        while end.is_none_or(|end| Instant::now() < end) {
            let Some((parent, ids)) = &mut self.current else {
                let Some(root) = self.roots.pop_front() else {
                    self.swept.finished = true;
                    break;
                };
                match snapshot_ids(&root) {
                    Ok(found) => self.current = found,
                    Err(error) => self.swept.fail("list the snapshots", &error),
                }
                continue;
            };
            let Some(id) = ids.pop() else {
                self.current = None;
                continue;
            };
            self.swept.directories += 1;
            if let Err(error) = self.swept.directory(parent, id, self.owner) {
                self.swept.fail(&format!("sweep snapshot {id}"), &error);
            }
        }
        self.swept.clone()
    }
}

/// Opens the directory `snapshots/` of a root, and lists the numbers in it. `None` before its first snapshot.
fn snapshot_ids(root: &Dir) -> io::Result<Option<(Dir, Vec<u64>)>> {
    let parent = match root.open_beneath(SNAPSHOTS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        outcome => outcome?,
    };
    let mut ids = Vec::new();
    for name in parent.names()? {
        ids.extend(name?.to_str().ok().and_then(decimal));
    }
    Ok(Some((parent, ids)))
}

impl Swept {
    fn directory(&mut self, parent: &Dir, id: u64, owner: u32) -> io::Result<()> {
        let dir = match parent.open_beneath(id.to_string()) {
            // Removed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            outcome => outcome?,
        };
        for name in dir.names()? {
            let name = name?;
            if is_temporary(&name) {
                self.temporary(&dir, &name, owner)?;
            }
        }
        Ok(())
    }

    fn temporary(&mut self, dir: &Dir, name: &CStr, owner: u32) -> io::Result<()> {
        let named = dir.status_of(name)?;
        if named.file_type != FileType::RegularFile || named.uid != owner {
            return Ok(());
        }
        let open = dir.open_file_beneath(name)?;
        if !file::lock_exclusive(&open)? {
            self.live += 1;
            return Ok(());
        }
        let opened = dir::status(&open)?;
        if (opened.device, opened.inode) == (named.device, named.inode) {
            file::remove(dir, name)?;
            self.removed += 1;
        }
        Ok(())
    }

    fn fail(&mut self, what: &str, error: &io::Error) {
        self.failed += 1;
        self.first_failure.get_or_insert_with(|| format!("{what}: {error}"));
    }
}
