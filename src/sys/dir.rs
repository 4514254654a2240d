//! Directories by descriptor: no path that is opened below a root with `openat2` leads out of it.
//!
//! Source: openat2(2).

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, Statx, StatxFlags},
    io::Errno,
    path::Arg,
};

use super::inode::Handle;
use crate::tree::{Device, Timestamp};

/// Refuses every way out of a root: `..` above it, links, other file systems.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Most attempts when renames elsewhere make the answer of `openat2` uncertain.
// Each rename on the system can spoil one attempt; sixteen in a row do not happen by chance.
const RETRIES: u32 = 16;

/// An open directory.
#[derive(Debug)]
pub struct Dir(OwnedFd);

/// Status of an entry: the fields of `fstat` that are used.
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
    /// Bytes of disk; file systems report them in their own ways.
    pub allocated_bytes: u64,
    /// Number of names.
    pub links: u64,
    /// Number of a device; 0:0 for everything else.
    pub special: Device,
    /// Time of the last change to the data.
    pub modified: Timestamp,
    /// Time of the last change to anything; no system call sets it.
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

    /// Like [`open`](Self::open), but as a mere handle: a place to walk from, which cannot be listed or locked.
    pub fn open_root(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
    }

    /// Opens a directory below this one.
    ///
    /// Errors: `ELOOP` for a symbolic link on the way, `EXDEV` for a mount point or a way out.
    pub fn open_beneath(&self, path: impl Arg) -> io::Result<Self> {
        Ok(Self(resolve(&self.0, path, OFlags::RDONLY | OFlags::DIRECTORY)?))
    }

    /// Like [`open_beneath`](Self::open_beneath), but other file systems may be mounted on the way.
    pub fn open_mounted(&self, path: impl Arg) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        Ok(Self(resolve_as(&self.0, path, flags, BENEATH.difference(ResolveFlags::NO_XDEV))?))
    }

    /// Opens a file below this one for reading; never blocks on a fifo.
    pub fn open_file_beneath(&self, path: impl Arg) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(resolve(&self.0, path, flags)?.into())
    }

    /// A handle on an entry below this directory, whatever it is; a symbolic link is not followed.
    pub fn handle_beneath(&self, path: impl Arg) -> io::Result<Handle> {
        Ok(Handle(resolve(&self.0, path, OFlags::PATH | OFlags::NOFOLLOW)?))
    }

    /// Status of this directory itself.
    pub fn status(&self) -> io::Result<Status> {
        status(&self.0)
    }

    /// Status of `name` in this directory; a symbolic link is described, not followed.
    pub fn status_of(&self, name: impl Arg) -> io::Result<Status> {
        Ok(rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?.into())
    }

    /// Target of the symbolic link `name` in this directory.
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
    /// Opens the directory behind this handle, to list it.
    pub fn open_dir(&self) -> io::Result<Dir> {
        Ok(Dir(resolve(self, c".", OFlags::RDONLY | OFlags::DIRECTORY)?))
    }

    /// A handle on an entry of the directory behind this handle.
    ///
    /// Errors: `EXDEV` for a mount point and nothing else; `EAGAIN` for an entry that is renamed to another directory
    /// at every attempt.
    pub fn child(&self, name: impl Arg) -> io::Result<Self> {
        let found = name.into_with_c_str(|name| match resolve(self, name, OFlags::PATH | OFlags::NOFOLLOW) {
            // openat2 answers the same when the entry is elsewhere by the end of the lookup.
            Err(Errno::XDEV) if !is_mount_point(self, name)? => Err(Errno::AGAIN),
            outcome => outcome,
        });
        Ok(Self(found?))
    }
}

/// Whether something is mounted on `name` in `directory`. True on kernels before 5.8, which report no mount ids.
fn is_mount_point(directory: &Handle, name: &CStr) -> Result<bool, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let mount = |status: Statx| {
        let reported = StatxFlags::from_bits_retain(status.stx_mask).contains(StatxFlags::MNT_ID);
        reported.then_some(status.stx_mnt_id)
    };
    let here = mount(rustix::fs::statx(directory, c"", flags | AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?);
    let there = mount(rustix::fs::statx(directory, name, flags, StatxFlags::MNT_ID)?);
    Ok(here.is_none() || here != there)
}

/// Opens `path` below `root`.
fn resolve(root: impl AsFd, path: impl Arg, flags: OFlags) -> Result<OwnedFd, Errno> {
    resolve_as(root, path, flags, BENEATH)
}

fn resolve_as(root: impl AsFd, path: impl Arg, flags: OFlags, rules: ResolveFlags) -> Result<OwnedFd, Errno> {
    let root = root.as_fd();
    path.into_with_c_str(|path| {
        let mut uncertain = Errno::AGAIN;
        for _ in 0..RETRIES {
            match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), rules) {
                Err(Errno::AGAIN | Errno::INTR) => uncertain = Errno::AGAIN,
                // A mount point; or something that was renamed to another place while it was looked up.
                Err(Errno::XDEV) => uncertain = Errno::XDEV,
                outcome => return outcome,
            }
        }
        Err(uncertain)
    })
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Status of the open file `fd`.
pub fn status(fd: impl AsFd) -> io::Result<Status> {
    Ok(rustix::fs::fstat(fd)?.into())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::symlink,
        sync::atomic::{AtomicBool, Ordering::Relaxed},
    };

    use rustix::fs::RenameFlags;

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

    /// As long as a name is there, it is found or it is uncertain, whatever it is exchanged with meanwhile.
    #[test]
    fn what_is_renamed_to_another_directory_is_no_mount_point() {
        let scratch = tempfile::tempdir().unwrap();
        for directory in ["one", "two"] {
            fs::create_dir(scratch.path().join(directory)).unwrap();
            fs::write(scratch.path().join(directory).join("f"), directory).unwrap();
        }
        let one = Dir::open_root(scratch.path()).unwrap().handle_beneath("one").unwrap();
        let (a, b) = (scratch.path().join("one/f"), scratch.path().join("two/f"));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    rustix::fs::renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
                }
            });
            for _ in 0..20_000 {
                match one.child("f") {
                    Err(error) if Errno::from_io_error(&error) != Some(Errno::AGAIN) => {
                        done.store(true, Relaxed);
                        panic!("{error}");
                    }
                    _ => {}
                }
            }
            done.store(true, Relaxed);
        });
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
