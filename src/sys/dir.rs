//! Directories by descriptor: everything below a root is reached with `openat2` and cannot leave it.
//!
//! Source: openat2(2).

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
    path::Arg,
};

use super::inode::Handle;
use crate::tree::{Device, Timestamp};

/// Nothing below a root may lead out of it: no `..` above it, no links, no other file system.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// How often `openat2` is tried again when a rename elsewhere made its answer uncertain.
const RETRIES: u32 = 16;

/// An open directory.
#[derive(Debug)]
pub struct Dir(OwnedFd);

/// What `fstat` tells about an entry, as far as it is asked for here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The file's type.
    pub file_type: FileType,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The low 12 bits of the mode.
    pub permissions: u32,
    /// Number of the file system.
    pub device: u64,
    /// Number of the inode in it.
    pub inode: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Bytes of disk, as far as the file system tells.
    pub allocated_bytes: u64,
    /// Number of names.
    pub links: u64,
    /// What a device is; 0:0 for all else.
    pub special: Device,
    /// When its data changed last.
    pub modified: Timestamp,
    /// When anything about it changed last; nobody can set this time.
    pub changed: Timestamp,
}

impl From<Stat> for Status {
    fn from(stat: Stat) -> Self {
        Self {
            file_type: FileType::from_raw_mode(stat.st_mode),
            uid: stat.st_uid,
            gid: stat.st_gid,
            permissions: stat.st_mode & 0o7777,
            device: stat.st_dev,
            inode: stat.st_ino,
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
            #[allow(clippy::useless_conversion, reason = "the field is narrower on some architectures")]
            links: u64::from(stat.st_nlink),
            allocated_bytes: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512),
            special: Device {
                major: rustix::fs::major(stat.st_rdev),
                minor: rustix::fs::minor(stat.st_rdev),
            },
            modified: Timestamp {
                seconds: stat.st_mtime,
                nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            },
            changed: Timestamp {
                seconds: stat.st_ctime,
                nanoseconds: u32::try_from(stat.st_ctime_nsec).unwrap_or(0),
            },
        }
    }
}

impl Dir {
    /// Opens a directory that the operator or the user named; links in `path` are followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
    }

    /// The same as a mere handle, which cannot be listed or locked, only walked from.
    pub fn open_root(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
    }

    /// Opens a directory below this one.
    ///
    /// Errors: `ELOOP` for a symbolic link on the way, `EXDEV` for a mount point or a way out.
    pub fn open_beneath(&self, path: impl Arg) -> io::Result<Self> {
        self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY).map(Self)
    }

    /// Opens a file below this one for reading; never blocks on a fifo.
    pub fn open_file_beneath(&self, path: impl Arg) -> io::Result<File> {
        self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY).map(File::from)
    }

    /// A handle on an entry below this directory, whatever it is; a symbolic link is not followed.
    pub fn handle_beneath(&self, path: impl Arg) -> io::Result<Handle> {
        self.resolve(path, OFlags::PATH | OFlags::NOFOLLOW).map(Handle)
    }

    /// Looks at an entry below this directory, without opening what it is.
    pub fn status_beneath(&self, path: impl Arg) -> io::Result<Status> {
        let handle = self.resolve(path, OFlags::PATH | OFlags::NOFOLLOW)?;
        status(&handle)
    }

    fn resolve(&self, path: impl Arg, flags: OFlags) -> io::Result<OwnedFd> {
        resolve(&self.0, path, flags)
    }

    /// What this directory itself is.
    pub fn status(&self) -> io::Result<Status> {
        status(&self.0)
    }

    /// Looks at `name` in this directory; a symbolic link is described, not followed.
    pub fn status_of(&self, name: impl Arg) -> io::Result<Status> {
        Ok(rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?.into())
    }

    /// Where the symbolic link `name` in this directory points.
    pub fn link_target(&self, name: impl Arg) -> io::Result<CString> {
        Ok(rustix::fs::readlinkat(&self.0, name, Vec::new())?)
    }

    /// The names in this directory except `.` and `..`, in the file system's order.
    pub fn names(&self) -> io::Result<impl Iterator<Item = io::Result<CString>>> {
        let entries = rustix::fs::Dir::read_from(&self.0)?;
        Ok(entries.filter_map(|entry| match entry {
            Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => None,
            Ok(entry) => Some(Ok(entry.file_name().to_owned())),
            Err(error) => Some(Err(error.into())),
        }))
    }
}

impl Handle {
    /// Opens the directory that this is a handle on, to list it.
    pub fn open_dir(&self) -> io::Result<Dir> {
        resolve(self, c".", OFlags::RDONLY | OFlags::DIRECTORY).map(Dir)
    }

    /// A handle on an entry of the directory that this is a handle on.
    pub fn child(&self, name: impl Arg) -> io::Result<Self> {
        resolve(self, name, OFlags::PATH | OFlags::NOFOLLOW).map(Self)
    }
}

/// Opens what is at `path` below `root`.
fn resolve(root: impl AsFd, path: impl Arg, flags: OFlags) -> io::Result<OwnedFd> {
    let root = root.as_fd();
    path.into_with_c_str(|path| {
        let mut uncertain = Errno::AGAIN;
        for _ in 0..RETRIES {
            match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), BENEATH) {
                Err(Errno::AGAIN | Errno::INTR) => uncertain = Errno::AGAIN,
                // A mount point; or something that was renamed to another place while it was looked up.
                Err(Errno::XDEV) => uncertain = Errno::XDEV,
                outcome => return outcome,
            }
        }
        Err(uncertain)
    })
    .map_err(io::Error::from)
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What the open file `fd` is.
pub fn status(fd: impl AsFd) -> io::Result<Status> {
    Ok(rustix::fs::fstat(fd)?.into())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn nothing_beneath_a_root_leads_out_of_it() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/file"), "x").unwrap();
        fs::write(scratch.path().join("outside"), "y").unwrap();
        symlink("b", root.join("a/link")).unwrap();
        symlink("/", root.join("a/absolute")).unwrap();
        let dir = Dir::open_root(&root).unwrap();
        assert!(dir.open_beneath("a/b").is_ok());
        assert!(dir.open_beneath("a/../a/b").is_ok());
        assert!(dir.open_file_beneath("a/file").is_ok());
        for path in ["..", "a/../..", "a/link", "a/absolute", "a/absolute/etc", "/etc", "a/file", "none"] {
            assert!(dir.open_beneath(path).is_err(), "{path}");
        }
        assert!(dir.open_file_beneath("../outside").is_err());
    }

    #[test]
    fn a_link_is_described_and_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        symlink("/", scratch.path().join("link")).unwrap();
        let dir = Dir::open(scratch.path()).unwrap();
        assert_eq!(dir.status_of("link").unwrap().file_type, FileType::Symlink);
    }

    #[test]
    fn names_leave_out_the_directory_itself() {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("one"), "").unwrap();
        fs::create_dir(scratch.path().join("two")).unwrap();
        let dir = Dir::open(scratch.path()).unwrap();
        let mut names: Vec<_> = dir.names().unwrap().map(Result::unwrap).collect();
        names.sort();
        assert_eq!(names, [c"one".to_owned(), c"two".to_owned()]);
    }
}
