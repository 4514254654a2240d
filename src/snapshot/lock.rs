//! One writer for each snapshot directory, within this process and among processes.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::fs::FlockOperation;

use crate::sys::{dir::Dir, file};

/// The directories this process writes to, by device and inode number. `flock` alone is not enough: on some file
/// systems it is local to the open file, or does nothing.
static BUSY: Mutex<BTreeSet<(u64, u64)>> = Mutex::new(BTreeSet::new());

/// The right to write to one directory, given back when dropped.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    key: (u64, u64),
    dir: Arc<Dir>,
}

impl DirectoryLock {
    /// Takes the lock without waiting. `None` when another request or process has it.
    pub(super) fn take(dir: &Arc<Dir>) -> io::Result<Option<Self>> {
        let status = dir.status()?;
        let key = (status.device, status.inode);
        if !BUSY.lock().unwrap_or_else(PoisonError::into_inner).insert(key) {
            return Ok(None);
        }
        // From here on dropping gives the key back.
        let lock = Self { key, dir: Arc::clone(dir) };
        Ok(file::lock_exclusive(&**dir)?.then_some(lock))
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Explicitly, because the descriptor may live on in the request's `SnapshotDir`.
        let _unlocked_at_close_at_the_latest = rustix::fs::flock(&*self.dir, FlockOperation::Unlock);
        BUSY.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
