//! A file that appears under its name whole, or not at all.
//!
//! Until [`LayerFile::commit`] the file has no name (or, where the file system has no unnamed files, a
//! random one that [`super::sweep`] knows). Dropping it leaves nothing. An existing file of the final
//! name is never opened, only replaced: it may be a link into a cache that other containers use.
//!
//! Source: docs/formats/containerd.md, "Publishing a layer".

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::Mode;

use super::lock::DirectoryLock;
use crate::{
    error::{Classify, Error, Kind, Size, disk_kind},
    format::{ReadAt, Sink},
    limits::Limits,
    sys::{
        dir::{self, Dir},
        file::{self, Occupant},
    },
};

/// What temporary names begin with; 32 hexadecimal digits and [`TEMPORARY_END`] follow.
const TEMPORARY_START: &str = ".plywood-";
/// What temporary names end with.
const TEMPORARY_END: &str = ".tmp";

/// Mode of a published layer: what mkfs.erofs leaves. The snapshotter opens it read-only as root, in
/// a directory of mode 0700.
const LAYER_MODE: Mode = Mode::from_raw_mode(0o644);
/// Mode until then.
const PRIVATE_MODE: Mode = Mode::from_raw_mode(0o600);

/// Space is reserved ahead of the writes in growing steps up to this many bytes: ext4 takes large
/// writes into preallocated extents half again as fast.
const AHEAD_MAX: u64 = 64 << 20;
/// Files smaller than this many bytes are written without.
const AHEAD_FROM: u64 = 1 << 20;
/// A jump of the writer over so many bytes gives back what was reserved in between: a block, less frees
/// nothing.
const GAP: u64 = 4096;
/// The free space is looked at once in so many bytes.
const SPACE_EVERY: u64 = 256 << 20;
/// Zeros written at a time where holes cannot be punched.
const ZEROS: usize = 64 << 10;
/// Attempts to find a free random name, or to lock it before a sweep does.
const ATTEMPTS: u32 = 8;

/// When a published layer is on disk for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Before every reply.
    #[default]
    Always,
    /// Before the reply, if the request asked for it.
    Request,
    /// When the kernel gets to it, whatever the request asked for: for tests.
    Never,
}

/// Why a layer could not be written or published.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Another request is writing to the same directory.
    #[error("{0}: another request is writing to this directory")]
    Busy(PathBuf),
    /// The directory belongs to a view.
    #[error("{0}: the mounts are read-only")]
    ReadOnly(PathBuf),
    /// Something that is not a file has the name.
    #[error("{0}: the name is taken by something that is not a regular file")]
    Occupied(PathBuf),
    /// The existing file is immutable.
    #[error("{0}: the existing file is immutable")]
    Immutable(PathBuf),
    /// Writing on would fill the file system.
    #[error("{available} are free, {reserve} of {total} are kept free by {setting}")]
    Reserve {
        /// Free space.
        available: Size,
        /// Space that is kept free.
        reserve: Size,
        /// Size of the file system.
        total: Size,
        /// The setting that asks for it.
        setting: &'static str,
    },
    /// The kernel refused.
    #[error("{path}: {what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Classify for LayerError {
    fn kind(&self) -> Kind {
        match self {
            Self::Busy(_) | Self::Occupied(_) | Self::Immutable(_) => Kind::Conflict,
            Self::ReadOnly(_) => Kind::Denied,
            Self::Reserve { .. } => Kind::Exhausted,
            Self::Io { source, .. } => disk_kind(source),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Busy(_) => "snapshot.busy",
            Self::ReadOnly(_) => "mount.read-only",
            Self::Occupied(_) => "snapshot.occupied",
            Self::Immutable(_) => "snapshot.immutable",
            Self::Reserve { .. } => "limit.free-space",
            Self::Io { .. } => "snapshot.io",
        }
    }
}

/// A file on its way to its name.
#[derive(Debug)]
pub struct LayerFile {
    file: File,
    dir: Arc<Dir>,
    /// Synced after the directory itself: its entry for the directory may be as new.
    parent: Option<Dir>,
    name: CString,
    /// For messages.
    path: PathBuf,
    /// The random name, while it has one.
    temporary: Option<CString>,
    /// Set at commit; `None` leaves what the umask gave.
    mode: Option<Mode>,
    /// Its size in bytes.
    len: u64,
    /// Largest end of a write, in bytes.
    written_end: u64,
    /// End of the reserved space, in bytes; `None` when the file system cannot reserve.
    reserved_end: Option<u64>,
    reserve: Option<Reserve>,
    /// Released last, after the temporary is gone.
    _lock: Option<DirectoryLock>,
}

/// How much of the file system stays free.
#[derive(Clone, Copy, Debug)]
struct Reserve {
    bytes: u64,
    percent: u64,
    /// Bytes written since the free space was last looked at.
    unchecked: u64,
}

/// Where a new file lives until it is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Naming {
    /// Without a name, or with one where that is not possible.
    Preferred,
    /// With a random name.
    #[cfg_attr(not(test), allow(dead_code, reason = "the tests' file systems all have unnamed files"))]
    Named,
}

impl LayerFile {
    /// Begins the file `name` in a snapshot directory, which is locked until this is dropped.
    pub(super) fn in_snapshot(
        dir: &Arc<Dir>,
        parent: Dir,
        name: &CStr,
        path: &Path,
        limits: &Limits,
    ) -> Result<Self, LayerError> {
        let io = |what| move |source| LayerError::Io { what, path: path.to_owned(), source };
        let lock = DirectoryLock::take(dir)
            .map_err(io("lock the directory"))?
            .ok_or_else(|| LayerError::Busy(path.to_owned()))?;
        let mut layer =
            Self::create(dir, name, path, PRIVATE_MODE, Naming::Preferred).map_err(io("create a file"))?;
        layer.mode = Some(LAYER_MODE);
        layer.parent = Some(parent);
        layer.reserve = Some(Reserve::of(limits));
        layer._lock = Some(lock);
        layer.check_name(|found| found != Occupant::Directory)?;
        layer.check_space()?;
        Ok(layer)
    }

    /// Begins a file that will be named `path`, for the command line: the same protocol in a
    /// directory of the user's, without its lock and without the free-space reserve. The mode
    /// follows the umask.
    pub fn beside(path: &Path) -> Result<Self, LayerError> {
        Self::beside_as(path, Naming::Preferred)
    }

    fn beside_as(path: &Path, naming: Naming) -> Result<Self, LayerError> {
        let io = |what| move |source| LayerError::Io { what, path: path.to_owned(), source };
        let name = path
            .file_name()
            .and_then(|name| CString::new(name.as_bytes()).ok())
            .ok_or_else(|| LayerError::Occupied(path.to_owned()))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let dir = Arc::new(Dir::open(parent).map_err(io("open its directory"))?);
        let layer = Self::create(&dir, &name, path, Mode::from_raw_mode(0o666), naming)
            .map_err(io("create a file"))?;
        // Replacing /dev/null by a file is nobody's intention.
        layer.check_name(|found| matches!(found, Occupant::Free | Occupant::File | Occupant::Immutable))?;
        Ok(layer)
    }

    /// A file in `dir` that is never published: room for an image that will be a blob. It has no name, so
    /// nothing is left of it whatever happens.
    pub fn scratch(dir: &Path, limits: &Limits) -> Result<Self, LayerError> {
        let io = |what| move |source| LayerError::Io { what, path: dir.to_owned(), source };
        let opened = Arc::new(Dir::open(dir).map_err(io("open the work directory"))?);
        let mut scratch = Self::create(&opened, c"", dir, PRIVATE_MODE, Naming::Preferred)
            .map_err(io("create a file in the work directory"))?;
        if let Some(name) = scratch.temporary.take() {
            file::remove(&*opened, &name).map_err(io("remove the name of a file in the work directory"))?;
        }
        scratch.reserve = Some(Reserve::of(limits));
        scratch.check_space()?;
        Ok(scratch)
    }

    fn create(dir: &Arc<Dir>, name: &CStr, path: &Path, mode: Mode, naming: Naming) -> io::Result<Self> {
        let unnamed = match naming {
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
            None => create_named(dir, mode)?,
        };
        Ok(Self {
            file,
            dir: Arc::clone(dir),
            parent: None,
            name: name.to_owned(),
            path: path.to_owned(),
            temporary,
            mode: None,
            len: 0,
            written_end: 0,
            reserved_end: Some(0),
            reserve: None,
            _lock: None,
        })
    }

    /// The open file, readable and writable. Its size is changed through [`Sink`] only.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The name it will have; for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes this file a copy of the whole of `source`, sharing its blocks where the file systems
    /// allow it. Returns whether they are shared.
    ///
    /// `len` is the size that `source` must have: `UnexpectedEof` when it is shorter. A copy calls `step`
    /// now and then with the bytes it has copied so far, and ends with its error.
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
            charge(&mut self.reserve, &self.file, more)
        })?;
        self.written_end = self.written_end.max(len);
        self.set_len(len)?;
        Ok(false)
    }

    /// Publishes the file: trims it, syncs it as `durability` says, and gives it its name.
    ///
    /// With `sync_fs` the whole file system is synced as well. After an error the directory is as it
    /// was, except that a file which was replaced before a failed sync of the directory stays
    /// replaced.
    pub fn commit(mut self, durability: Durability, sync_fs: bool) -> Result<(), LayerError> {
        let sync = match durability {
            Durability::Always => true,
            Durability::Request => sync_fs,
            Durability::Never => false,
        };
        self.trim().map_err(|source| self.io("trim", source))?;
        if let Some(mode) = self.mode {
            rustix::fs::fchmod(&self.file, mode).map_err(|error| self.io("set its mode", error.into()))?;
        }
        if sync {
            file::sync(&self.file).map_err(|source| self.io("sync", source))?;
        }
        let replaced = self.publish()?;
        if sync && let Err(source) = self.sync_directories(sync_fs) {
            if !replaced {
                // Nobody has been told of it yet, and it may not survive a power cut.
                let _best_effort = file::remove(&*self.dir, &self.name);
            }
            return Err(self.io("sync its directory", source));
        }
        Ok(())
    }

    /// Gives back the space reserved beyond the end.
    fn trim(&mut self) -> io::Result<()> {
        let len = self.file.metadata()?.len();
        if self.reserved_end.is_some_and(|end| end > len) {
            rustix::fs::ftruncate(&self.file, len)?;
            self.reserved_end = Some(len);
        }
        Ok(())
    }

    /// The commit point. Returns whether a file of that name was replaced.
    fn publish(&mut self) -> Result<bool, LayerError> {
        if self.temporary.is_none() {
            match file::link_unnamed(&self.file, &*self.dir, &self.name) {
                Ok(()) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(self.io("link", error)),
            }
            self.check_name(|found| found != Occupant::Directory)?;
            let temporary = temporary_name().map_err(|source| self.io("make a name", source))?;
            file::link_unnamed(&self.file, &*self.dir, temporary.as_c_str())
                .map_err(|source| self.io("link", source))?;
            self.temporary = Some(temporary);
        }
        let found = self.check_name(|found| found != Occupant::Directory)?;
        if let Some(temporary) = &self.temporary {
            file::rename_over(self.dir.as_fd(), temporary, &self.name).map_err(|source| {
                match source.kind() {
                    io::ErrorKind::IsADirectory => LayerError::Occupied(self.path.clone()),
                    io::ErrorKind::PermissionDenied => LayerError::Immutable(self.path.clone()),
                    // A mount point.
                    io::ErrorKind::ResourceBusy => LayerError::Occupied(self.path.clone()),
                    _ => self.io("rename", source),
                }
            })?;
            self.temporary = None;
        }
        Ok(found != Occupant::Free)
    }

    fn sync_directories(&self, sync_fs: bool) -> io::Result<()> {
        file::sync(&*self.dir)?;
        if let Some(parent) = &self.parent {
            file::sync(parent)?;
        }
        if sync_fs {
            file::sync_file_system(&*self.dir)?;
        }
        Ok(())
    }

    /// Refuses a name whose present owner cannot be replaced.
    fn check_name(&self, replaceable: impl Fn(Occupant) -> bool) -> Result<Occupant, LayerError> {
        match file::occupant(&*self.dir, &self.name) {
            Ok(Occupant::Immutable) => Err(LayerError::Immutable(self.path.clone())),
            Ok(found) if replaceable(found) => Ok(found),
            Ok(_) => Err(LayerError::Occupied(self.path.clone())),
            Err(source) => Err(self.io("look at its name", source)),
        }
    }

    fn check_space(&self) -> Result<(), LayerError> {
        let Some(reserve) = &self.reserve else { return Ok(()) };
        reserve.check(&self.file).map_err(|source| self.io("ask for free space", source))?
    }

    fn io(&self, what: &'static str, source: io::Error) -> LayerError {
        LayerError::Io { what, path: self.path.clone(), source }
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

impl Reserve {
    fn of(limits: &Limits) -> Self {
        Self { bytes: limits.reserve_bytes, percent: limits.reserve_percent, unchecked: 0 }
    }

    fn check(&self, file: &File) -> io::Result<Result<(), LayerError>> {
        let space = file::space(file)?;
        let share = space.total_bytes / 100 * self.percent;
        let reserve = self.bytes.max(share);
        Ok(if space.available_bytes < reserve {
            let [available, reserve, total] = [space.available_bytes, reserve, space.total_bytes].map(Size);
            let by_share = share > self.bytes;
            let setting = if by_share { "limits.reserve_percent" } else { "limits.reserve_bytes" };
            Err(LayerError::Reserve { available, reserve, total, setting })
        } else {
            Ok(())
        })
    }
}

/// Counts written bytes, and looks at the free space when enough have come together.
fn charge(reserve: &mut Option<Reserve>, file: &File, bytes: u64) -> io::Result<()> {
    let Some(reserve) = reserve else { return Ok(()) };
    reserve.unchecked = reserve.unchecked.saturating_add(bytes);
    if reserve.unchecked < SPACE_EVERY {
        return Ok(());
    }
    reserve.unchecked = 0;
    reserve.check(file)?.map_err(|full| Error::from(full).into_io())
}

/// Errors that carry an [`Error`] (a limit, a cancellation) give it back from [`Error::disk`].
impl Sink for LayerFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        charge(&mut self.reserve, &self.file, bytes.len() as u64)?;
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
        let zeros = [0; ZEROS];
        let mut at = offset;
        let end = offset.saturating_add(len).min(self.file.metadata()?.len());
        while at < end {
            let piece = usize::try_from(end - at).unwrap_or(ZEROS).min(ZEROS);
            let piece = zeros.get(..piece).ok_or(io::ErrorKind::InvalidInput)?;
            std::os::unix::fs::FileExt::write_all_at(&self.file, piece, at)?;
            at += piece.len() as u64;
        }
        Ok(())
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

impl ReadAt for LayerFile {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        ReadAt::read_exact_at(&self.file, offset, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.len
    }
}

impl Drop for LayerFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _the_next_sweep_finds_it = file::remove(&*self.dir, temporary);
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

/// Whether `name` is one that [`LayerFile`] gives to temporaries.
pub(super) fn is_temporary(name: &CStr) -> bool {
    name.to_bytes()
        .strip_prefix(TEMPORARY_START.as_bytes())
        .and_then(|rest| rest.strip_suffix(TEMPORARY_END.as_bytes()))
        .is_some_and(|hex| hex.len() == 32 && hex.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

#[cfg(test)]
#[path = "layer_file_tests.rs"]
mod tests;
