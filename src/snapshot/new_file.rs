//! A file that is being written, and appears under its name whole or not at all.
//!
//! Until it is published the file has no name. Where the file system has no unnamed files, it has a random name in
//! the directory of the snapshot, which [`super::sweep`] knows. Dropping the file leaves nothing. An existing
//! file of the final name is never opened, only replaced: it may be a link into a cache that other containers use.
//!
//! Source: docs/formats/containerd.md, "Publishing a layer".

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::Mode;

use super::{error::PublishError, lock::DirectoryLock, space::Reserve};
use crate::{
    format::{ReadAt, Sink},
    limits::Limits,
    sys::{
        dir::{self, Dir},
        file::{self, Occupant},
    },
};

/// The start of temporary names; 32 hexadecimal digits and [`TEMPORARY_END`] follow.
const TEMPORARY_START: &str = ".plywood-";
/// The end of temporary names.
const TEMPORARY_END: &str = ".tmp";

/// Mode of a file in a snapshot until it is published, and of a file that never is.
pub(super) const PRIVATE_MODE: Mode = Mode::from_raw_mode(0o600);

/// Space is reserved ahead of the writes in growing steps up to this many bytes: ext4 takes large
/// writes into preallocated extents half again as fast.
const AHEAD_MAX: u64 = 64 << 20;
/// Writes that end below this many bytes reserve no space: a file of this size is a few writes long.
const AHEAD_FROM: u64 = 1 << 20;
/// A jump of the writer over this many bytes gives back the space reserved in between. Punching less than
/// a block frees nothing.
const GAP: u64 = 4096;
/// Attempts to find a free random name, and to lock the new file before a sweep does. The name has 128 random
/// bits, and a sweep meets a file once, so that a second attempt is rare already.
const ATTEMPTS: u32 = 8;

/// The place that a file gets when it is published.
#[derive(Debug)]
pub(super) struct Place {
    /// Path below the directory of the snapshot, as the set of files declares it.
    pub(super) declared: &'static str,
    /// Whether a layer may do without the file.
    pub(super) is_optional: bool,
    /// The directory with the name.
    pub(super) dir: Arc<Dir>,
    /// The name in that directory.
    pub(super) name: CString,
    /// For messages.
    pub(super) path: PathBuf,
    /// Whether the file may take the place of something of this kind.
    pub(super) replaces: fn(Occupant) -> bool,
}

impl Place {
    /// Looks at the present owner of the name. Errors: it cannot be replaced.
    pub(super) fn check(&self) -> Result<Occupant, PublishError> {
        match file::occupant(&*self.dir, &self.name) {
            Ok(Occupant::Immutable) => Err(PublishError::Immutable(self.path.clone())),
            Ok(found) if (self.replaces)(found) => Ok(found),
            Ok(_) => Err(PublishError::Occupied(self.path.clone())),
            Err(source) => Err(self.io("look at its name", source)),
        }
    }

    /// Removes the present owner of the name, and syncs the directory if `sync` is set.
    pub(super) fn clear(&self, sync: bool) -> Result<(), PublishError> {
        file::remove(&*self.dir, &self.name).map_err(|source| self.refused("remove", source))?;
        if sync {
            file::sync(&*self.dir).map_err(|source| self.io("sync its directory", source))?;
        }
        Ok(())
    }

    /// The error of a call that replaces or removes the present owner of the name.
    pub(super) fn refused(&self, what: &'static str, source: io::Error) -> PublishError {
        match source.kind() {
            io::ErrorKind::IsADirectory => PublishError::Occupied(self.path.clone()),
            io::ErrorKind::PermissionDenied => PublishError::Immutable(self.path.clone()),
            // A mount point.
            io::ErrorKind::ResourceBusy => PublishError::Occupied(self.path.clone()),
            _ => self.io(what, source),
        }
    }

    pub(super) fn io(&self, what: &'static str, source: io::Error) -> PublishError {
        PublishError::Io { what, path: self.path.clone(), source }
    }
}

/// A file that is being written.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    /// [`Place::declared`] of its place; empty for a scratch file.
    declared: &'static str,
    /// For messages.
    path: PathBuf,
    /// The directory in which it gets a random name if it needs one. Always the snapshot's own, which belongs to
    /// root: below it a container may write.
    room: Arc<Dir>,
    /// The random name, while it has one.
    temporary: Option<CString>,
    /// Size in bytes.
    len: u64,
    /// Largest end of a write, in bytes.
    written_end: u64,
    /// End of the reserved space, in bytes; `None` when the file system cannot reserve.
    reserved_end: Option<u64>,
    reserve: Option<Reserve>,
    /// Released after the random name is gone.
    _lock: Option<Arc<DirectoryLock>>,
}

/// Whether a new file has a name before it is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// No, except where the file system has no unnamed files.
    Preferred,
    /// Yes, a random one.
    #[cfg_attr(not(test), allow(dead_code, reason = "the tests' file systems all have unnamed files"))]
    Named,
}

impl NewFile {
    /// Creates the file for `place`. `room` is the directory for its random name.
    pub(super) fn create(
        place: &Place,
        room: &Arc<Dir>,
        mode: Mode,
        naming: Naming,
        lock: Option<Arc<DirectoryLock>>,
    ) -> io::Result<Self> {
        Self::create_in(&place.dir, room, place.declared, &place.path, mode, naming, lock)
    }

    /// Creates a file in `dir` that is never published: room for an image that will be a blob. It has no name, so
    /// that nothing is left of it, even after a crash.
    pub fn scratch(dir: &Path, limits: &Limits) -> Result<Self, PublishError> {
        let io = |what| move |source| PublishError::Io { what, path: dir.to_owned(), source };
        let opened = Arc::new(Dir::open(dir).map_err(io("open the work directory"))?);
        Self::scratch_in(&opened, dir, Some(Reserve::of(limits)))
    }

    /// Creates a scratch file in an open directory. `path` is for messages.
    pub(super) fn scratch_in(
        dir: &Arc<Dir>,
        path: &Path,
        reserve: Option<Reserve>,
    ) -> Result<Self, PublishError> {
        let io = |what| move |source| PublishError::Io { what, path: path.to_owned(), source };
        let mut scratch = Self::create_in(dir, dir, "", path, PRIVATE_MODE, Naming::Preferred, None)
            .map_err(io("create a file in the work directory"))?;
        if let Some(name) = scratch.temporary.take() {
            file::remove(&**dir, &name).map_err(io("remove the name of a file in the work directory"))?;
        }
        if let Some(reserve) = reserve {
            scratch.keep_free(reserve)?;
        }
        Ok(scratch)
    }

    fn create_in(
        dir: &Arc<Dir>,
        room: &Arc<Dir>,
        declared: &'static str,
        path: &Path,
        mode: Mode,
        naming: Naming,
        lock: Option<Arc<DirectoryLock>>,
    ) -> io::Result<Self> {
        let unnamed = match naming {
            // In the directory of its name, because Landlock of Linux 5.13 to 5.18 lets no file be linked into
            // another directory.
            Naming::Preferred => match file::create_unnamed(&**dir, mode) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => None,
                outcome => Some(outcome?),
            },
            Naming::Named => None,
        };
        let (file, temporary) = match unnamed {
            Some(file) => {
                // Matters once a replacement gives it a random name for a moment.
                file::lock_exclusive(&file)?;
                (file, None)
            }
            None => create_named(room, mode)?,
        };
        Ok(Self {
            file,
            declared,
            path: path.to_owned(),
            room: Arc::clone(room),
            temporary,
            len: 0,
            written_end: 0,
            reserved_end: Some(0),
            reserve: None,
            _lock: lock,
        })
    }

    /// Makes the writes from now on leave `reserve` free. Errors: less than that is free already.
    pub(super) fn keep_free(&mut self, reserve: Reserve) -> Result<(), PublishError> {
        self.reserve = Some(reserve);
        reserve.check(&self.file).map_err(|source| self.io("ask for free space", source))?
    }

    /// The path below the snapshot's directory that its set declares for it.
    pub(super) fn declared(&self) -> &'static str {
        self.declared
    }

    /// The open file, readable and writable. Callers change its size through [`Sink`] only.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The path of the file once it is published. For messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes this file a copy of the whole of `source`, sharing its blocks where the file systems
    /// allow it. Returns whether they are shared.
    ///
    /// `len` is the size in bytes that `source` must have; the error is `UnexpectedEof` when it is shorter. A copy
    /// calls `step` now and then with the number of bytes copied so far, and ends when `step` returns an error.
    pub fn copy_from(
        &mut self,
        source: &File,
        len: u64,
        mut step: impl FnMut(u64) -> io::Result<()>,
    ) -> io::Result<bool> {
        if file::reflink(source, &self.file)? {
            if self.file.metadata()?.len() < len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.set_len(len)?;
            self.written_end = len;
            return Ok(true);
        }
        let mut copied = 0;
        file::copy_range(source, 0, &self.file, 0, len, |done| {
            step(done)?;
            let more = done - copied;
            copied = done;
            match &mut self.reserve {
                Some(reserve) => reserve.charge(&self.file, more),
                None => Ok(()),
            }
        })?;
        self.written_end = self.written_end.max(len);
        self.set_len(len)?;
        Ok(false)
    }

    /// Completes the bytes and attributes of the file, while it has no final name: gives back space reserved beyond
    /// the end, sets `mode` if there is one, and syncs.
    pub(super) fn settle(&mut self, mode: Option<Mode>, sync: bool) -> Result<(), PublishError> {
        self.trim().map_err(|source| self.io("trim", source))?;
        if let Some(mode) = mode {
            rustix::fs::fchmod(&self.file, mode).map_err(|error| self.io("set its mode", error.into()))?;
        }
        if sync {
            file::sync(&self.file).map_err(|source| self.io("sync", source))?;
        }
        Ok(())
    }

    fn trim(&mut self) -> io::Result<()> {
        let len = self.file.metadata()?.len();
        if self.reserved_end.is_some_and(|end| end > len) {
            rustix::fs::ftruncate(&self.file, len)?;
            self.reserved_end = Some(len);
        }
        Ok(())
    }

    /// Gives the file its final name. Returns whether something else had that name.
    pub(super) fn give_name(&mut self, place: &Place) -> Result<bool, PublishError> {
        if self.temporary.is_none() {
            match file::link_unnamed(&self.file, &*place.dir, &place.name) {
                Ok(()) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(self.io("link", error)),
            }
            place.check()?;
            let temporary = temporary_name().map_err(|source| self.io("make a name", source))?;
            file::link_unnamed(&self.file, &*self.room, temporary.as_c_str())
                .map_err(|source| self.io("link", source))?;
            self.temporary = Some(temporary);
        }
        let found = place.check()?;
        if let Some(temporary) = &self.temporary {
            file::rename_over(&*self.room, temporary, &*place.dir, &place.name)
                .map_err(|source| place.refused("rename", source))?;
            self.temporary = None;
        }
        Ok(found != Occupant::Free)
    }

    fn io(&self, what: &'static str, source: io::Error) -> PublishError {
        PublishError::Io { what, path: self.path.clone(), source }
    }

    /// Reserves space for a write that ends at `end` and for some that follow it.
    fn reserve_ahead(&mut self, offset: u64, end: u64) -> io::Result<()> {
        let Some(reserved_end) = self.reserved_end else { return Ok(()) };
        if end <= reserved_end || end < AHEAD_FROM {
            return Ok(());
        }
        let start = offset.max(reserved_end);
        // Never more than has been written already, so that a small layer reserves little.
        let ahead = end.checked_add(self.written_end.clamp(AHEAD_FROM, AHEAD_MAX));
        let ahead = ahead.ok_or(io::ErrorKind::FileTooLarge)?;
        self.reserved_end = file::preallocate(&self.file, start, ahead - start)?.then_some(ahead);
        Ok(())
    }

    /// Punches the hole that the writer left between its last byte so far and `start`, which must
    /// not be beyond the file's size: ext4 ignores what is.
    fn give_back(&mut self, start: u64) -> io::Result<()> {
        if start > self.written_end {
            file::punch_hole(&self.file, self.written_end, start - self.written_end)?;
        }
        Ok(())
    }
}

/// [`crate::error::Error::disk`] unpacks the [`crate::error::Error`] (a limit, a cancellation) that an error of
/// these methods may carry.
impl Sink for NewFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        if let Some(reserve) = &mut self.reserve {
            reserve.charge(&self.file, bytes.len() as u64)?;
        }
        let reserved_end = self.reserved_end.unwrap_or(0);
        self.reserve_ahead(offset, end)?;
        std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, offset)?;
        if offset >= self.written_end.saturating_add(GAP) {
            self.give_back(offset.min(reserved_end))?;
        }
        self.written_end = self.written_end.max(end);
        self.len = self.len.max(end);
        Ok(())
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 || file::punch_hole(&self.file, offset, len)? {
            return Ok(());
        }
        file::write_zeros(&self.file, offset, len)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        rustix::fs::ftruncate(&self.file, len)?;
        self.len = len;
        self.give_back(len.min(self.reserved_end.unwrap_or(0)))?;
        self.written_end = self.written_end.min(len);
        self.reserved_end = self.reserved_end.map(|end| end.min(len));
        Ok(())
    }
}

impl ReadAt for NewFile {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        ReadAt::read_exact_at(&self.file, offset, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.len
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _the_next_sweep_finds_it = file::remove(&*self.room, temporary);
        }
    }
}

/// Creates and locks a file of a random name.
fn create_named(dir: &Dir, mode: Mode) -> io::Result<(File, Option<CString>)> {
    for _ in 0..ATTEMPTS {
        let name = temporary_name()?;
        let file = match file::create_new(dir, name.as_c_str(), mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            outcome => outcome?,
        };
        // A sweep may have come in between: then it holds the lock, or the name is gone.
        let ours =
            file::lock_exclusive(&file).and_then(|locked| Ok(locked && dir::status(&file)?.links == 1));
        if matches!(ours, Ok(true)) {
            return Ok((file, Some(name)));
        }
        file::remove(dir, name.as_c_str())?;
        ours?;
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn temporary_name() -> io::Result<CString> {
    let name = format!("{TEMPORARY_START}{}{TEMPORARY_END}", file::random_hex()?);
    CString::new(name).map_err(io::Error::other)
}

/// Whether `name` has the form of the random names of [`NewFile`].
pub(super) fn is_temporary(name: &CStr) -> bool {
    name.to_bytes()
        .strip_prefix(TEMPORARY_START.as_bytes())
        .and_then(|rest| rest.strip_suffix(TEMPORARY_END.as_bytes()))
        .is_some_and(|hex| hex.len() == 32 && hex.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

#[cfg(test)]
#[path = "new_file_tests.rs"]
mod tests;
