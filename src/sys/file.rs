//! New files: created without a name, given space and contents, and named last.
//!
//! Source: open(2) `O_TMPFILE`, linkat(2), fallocate(2), copy_file_range(2), ioctl_ficlone(2).

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::FileExt,
    },
};

use rustix::{
    fs::{AtFlags, CWD, FallocateFlags, FlockOperation, Mode, OFlags},
    io::Errno,
    path::Arg,
};

use crate::format::{ReadAt, Sink};

/// Bytes moved at a time when the kernel cannot copy by itself.
const COPY_BUFFER: usize = 1 << 20;
/// Bytes asked of one `copy_file_range` call, so that a cancelled copy ends soon and the thread that hashes the
/// copy follows closely.
const COPY_STEP: usize = 8 << 20;
/// Bytes of zeros written at a time where the file system has no holes.
const ZEROS: usize = 64 << 10;

impl ReadAt for File {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }

    /// Asks the kernel each time; 0 when it does not answer.
    fn size_bytes(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }

    fn will_need(&self, offset: u64, len: u64) {
        if let Some(len) = std::num::NonZero::new(len) {
            // Whoever cannot read ahead reads when it is time.
            let _ = rustix::fs::fadvise(self, offset, Some(len), rustix::fs::Advice::WillNeed);
        }
    }
}

impl Sink for File {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 || punch_hole(self, offset, len)? {
            return Ok(());
        }
        write_zeros(self, offset, len)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }
}

/// Opens a file for reading. Unlike [`File::open`], does not wait for the writer of a pipe.
pub fn open_without_waiting(path: impl Arg) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?.into())
}

/// Overwrites `len` bytes from `offset` on with zeros, up to the end of the file: for file systems without holes.
pub fn write_zeros(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let zeros = [0; ZEROS];
    let mut at = offset;
    let end = offset.saturating_add(len).min(file.metadata()?.len());
    while at < end {
        let piece = usize::try_from(end - at).unwrap_or(ZEROS).min(ZEROS);
        let piece = zeros.get(..piece).ok_or(io::ErrorKind::InvalidInput)?;
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Creates a file in `dir` that has no name yet and goes away when its last descriptor closes.
///
/// Errors: `Unsupported` where the file system has no such files.
pub fn create_unnamed(dir: impl AsFd, mode: Mode) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, c".", flags, mode) {
        Ok(fd) => Ok(File::from(fd)),
        // A kernel or file system that does not know the flag sees a directory opened for writing.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {
            Err(io::ErrorKind::Unsupported.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Creates `name` in `dir`. Errors: anything of that name exists, even a dangling link.
pub fn create_new(dir: impl AsFd, name: impl Arg, mode: Mode) -> io::Result<File> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(dir, name, flags, mode)?))
}

/// Gives an unnamed file its name. Errors: `AlreadyExists` when the name is taken.
pub fn link_unnamed(file: &File, dir: impl AsFd, name: impl Arg + Copy) -> io::Result<()> {
    let dir = dir.as_fd();
    match rustix::fs::linkat(file, c"", dir, name, AtFlags::EMPTY_PATH) {
        Ok(()) => Ok(()),
        // Before Linux 6.10 an empty path needs CAP_DAC_READ_SEARCH, which the daemon gives up.
        Err(Errno::NOENT | Errno::PERM) => {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            Ok(rustix::fs::linkat(CWD, path, dir, name, AtFlags::SYMLINK_FOLLOW)?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Renames `from` in `from_dir` to `to` in `to_dir`; an existing `to` of any kind but a directory is replaced.
pub fn rename_over(from_dir: impl AsFd, from: impl Arg, to_dir: impl AsFd, to: impl Arg) -> io::Result<()> {
    Ok(rustix::fs::renameat(from_dir, from, to_dir, to)?)
}

/// Removes a name of a file; no error when there is none.
pub fn remove(dir: impl AsFd, name: impl Arg) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Reserves `len` bytes from `offset` on without changing the size. Returns `false` when the file system cannot, or
/// has not that much left; the caller may write all the same.
pub fn preallocate(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, len) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOSPC | Errno::DQUOT | Errno::INTR | Errno::FBIG) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Turns `len` bytes from `offset` on into a hole; the size stays. Returns `false` when the file system has no holes.
pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
        {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes `to` share all blocks of `from`. Returns `false` when this file system cannot, or not between these two files.
pub fn reflink(from: &File, to: &File) -> io::Result<bool> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(
            Errno::OPNOTSUPP
            | Errno::XDEV
            | Errno::INVAL
            | Errno::NOTTY
            | Errno::NOSYS
            | Errno::PERM
            | Errno::TXTBSY,
        ) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Copies `len` bytes at `from_offset` of `from` to `to_offset` of `to`, in the kernel where it can.
///
/// `step` runs between pieces of at most 8 MiB with the bytes copied so far; its error ends the copy.
/// Errors: `UnexpectedEof` when `from` is shorter.
pub fn copy_range(
    from: &File,
    from_offset: u64,
    to: &File,
    to_offset: u64,
    len: u64,
    mut step: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0_u64;
    while done < len {
        step(done)?;
        let mut source = from_offset + done;
        let mut target = to_offset + done;
        let want = usize::try_from(len - done).unwrap_or(usize::MAX).min(COPY_STEP);
        match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), want) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => done += copied as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::PERM) => {
                return copy_by_hand(from, from_offset, to, to_offset, done, len, step);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(
    from: &File,
    from_offset: u64,
    to: &File,
    to_offset: u64,
    mut done: u64,
    len: u64,
    mut step: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BUFFER];
    while done < len {
        step(done)?;
        let want = usize::try_from(len - done).unwrap_or(usize::MAX).min(buffer.len());
        let piece = buffer.get_mut(..want).ok_or(io::ErrorKind::InvalidInput)?;
        FileExt::read_exact_at(from, piece, from_offset + done)?;
        to.write_all_at(piece, to_offset + done)?;
        done += want as u64;
    }
    Ok(())
}

/// Takes an exclusive lock on the open file or directory; `false` when another open file holds one.
/// Closing the last duplicate of this descriptor releases it.
pub fn lock_exclusive(fd: impl AsFd) -> io::Result<bool> {
    match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Takes a lock on the open file or directory that others may share, in place of an exclusive one if there was one. Waits
/// while another open file has an exclusive lock.
pub fn lock_shared(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::flock(fd, FlockOperation::LockShared)?)
}

/// Size and free space of a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system.
    pub total_bytes: u64,
    /// Free bytes that an ordinary user may take.
    pub available_bytes: u64,
}

/// The space of the file system that `fd` is on.
pub fn space(fd: impl AsFd) -> io::Result<Space> {
    let stat = rustix::fs::fstatvfs(fd)?;
    Ok(Space {
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}

/// Writes the file's data and metadata to disk. An error is final: the kernel may have dropped the pages, so the
/// success of a second call proves nothing.
pub fn sync(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::fsync(fd)?)
}

/// Whether fs-verity protects a file.
pub fn has_verity(fd: impl AsFd) -> io::Result<bool> {
    use rustix::fs::{StatxAttributes, StatxFlags};
    let found = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
    Ok(found.stx_attributes.contains(StatxAttributes::VERITY))
}

/// Writes the whole file system that `fd` is on to disk.
pub fn sync_file_system(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::syncfs(fd)?)
}

/// 128 random bits in lower-case hexadecimal.
pub fn random_hex() -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Kind of thing under a name, whose last component is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupant {
    /// Nothing.
    Free,
    /// A regular file.
    File,
    /// A regular file that must not be replaced: immutable or append-only.
    Immutable,
    /// A directory.
    Directory,
    /// A link, a fifo, a device or a socket.
    Other,
}

/// Looks at `name` in `dir` without opening it.
pub fn occupant(dir: impl AsFd, name: &CStr) -> io::Result<Occupant> {
    use rustix::fs::{FileType, StatxAttributes, StatxFlags};
    let found = match rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE) {
        Ok(found) => found,
        Err(Errno::NOENT) => return Ok(Occupant::Free),
        Err(error) => return Err(error.into()),
    };
    let fixed = found.stx_attributes & found.stx_attributes_mask;
    Ok(match FileType::from_raw_mode(u32::from(found.stx_mode)) {
        FileType::RegularFile if fixed.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND) => {
            Occupant::Immutable
        }
        FileType::RegularFile => Occupant::File,
        FileType::Directory => Occupant::Directory,
        _ => Occupant::Other,
    })
}
