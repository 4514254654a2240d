//! One inode held fast: looked at, read and listed through a descriptor that cannot become another file.
//!
//! A handle (`O_PATH`) opens nothing: a device does not notice, a fifo does not block. What it refers to
//! is known before any of it is read, and reading goes through `/proc/self/fd`, which leads to that inode
//! and no other, whatever its name stands for meanwhile. Calls that take a path could be given another
//! file in between; those that take a descriptor do not take a handle (Linux 6.13's `getxattrat` refuses
//! one as well), and opening a device to ask for its attributes is what must not happen.
//!
//! Source: open(2) `O_PATH`, proc_pid_fd(5), listxattr(2), lseek(2) `SEEK_DATA`.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{CWD, Mode, OFlags, SeekFrom},
    io::Errno,
};

/// Largest list of attribute names of one file, in bytes: `XATTR_LIST_MAX`.
const LIST_BYTES: usize = 64 << 10;
/// Largest value of an attribute, in bytes: `XATTR_SIZE_MAX`.
const VALUE_BYTES: usize = 64 << 10;
/// What nearly all values fit into.
const SHORT_VALUE_BYTES: usize = 256;

/// A handle on one inode of any type.
#[derive(Debug)]
pub struct Handle(pub(super) OwnedFd);

/// Errors unless `/proc/self/fd` is what this module needs it to be.
pub fn require_proc() -> io::Result<()> {
    let fd = rustix::fs::openat(
        CWD,
        c"/proc/self/fd",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    if rustix::fs::fstatfs(fd)?.f_type == rustix::fs::PROC_SUPER_MAGIC {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::Unsupported, "/proc is not procfs"))
    }
}

impl Handle {
    /// The path under which the kernel finds this very inode.
    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    /// Opens the inode for reading. Call it for a regular file only: others would notice.
    pub fn open_file(&self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(CWD, self.path(), flags, Mode::empty())?))
    }

    /// Where a symbolic link points.
    pub fn symlink_target(&self) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.0, c"", Vec::new())?.into_bytes())
    }

    /// The names of all extended attributes that this process may see, in the file system's order.
    pub fn xattr_names(&self) -> io::Result<Vec<CString>> {
        // Most files have none, and are told so without a buffer.
        let path = self.path();
        let len = match rustix::fs::listxattr_query(&path) {
            Ok(len) => len,
            Err(Errno::OPNOTSUPP) => 0,
            Err(error) => return Err(error.into()),
        };
        if len == 0 {
            return Ok(Vec::new());
        }
        let mut list = vec![0; LIST_BYTES];
        let len = rustix::fs::listxattr(&path, list.as_mut_slice())?;
        list.truncate(len);
        let names = list.split_inclusive(|byte| *byte == 0);
        Ok(names.filter_map(|name| CStr::from_bytes_with_nul(name).ok().map(CStr::to_owned)).collect())
    }

    /// The value of an extended attribute; `None` when there is no such attribute (any more).
    pub fn xattr(&self, name: &CStr) -> io::Result<Option<Vec<u8>>> {
        let path = self.path();
        let mut value = vec![0; SHORT_VALUE_BYTES];
        let mut outcome = rustix::fs::getxattr(&path, name, value.as_mut_slice());
        if outcome == Err(Errno::RANGE) {
            value.resize(VALUE_BYTES, 0);
            outcome = rustix::fs::getxattr(&path, name, value.as_mut_slice());
        }
        match outcome {
            Ok(len) => {
                value.truncate(len);
                Ok(Some(value))
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The first data of `file` at or after byte `from`, as start and end; `None` when only a hole is left.
/// A file system without holes calls everything data.
pub fn next_data(file: &File, from: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(end) => Ok(Some((start, end))),
        // Cut off meanwhile.
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{FileExt as _, symlink},
    };

    use super::*;
    use crate::sys::dir::Dir;

    #[test]
    fn a_handle_reads_the_inode_it_was_made_for_even_when_the_name_is_another_files() {
        require_proc().unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let root = Dir::open(scratch.path()).unwrap();
        fs::write(scratch.path().join("file"), "first").unwrap();
        symlink("target", scratch.path().join("link")).unwrap();
        let file = root.handle_beneath("file").unwrap();
        let link = root.handle_beneath("link").unwrap();
        fs::remove_file(scratch.path().join("file")).unwrap();
        fs::remove_file(scratch.path().join("link")).unwrap();
        rustix::fs::mkfifoat(&root, "file", Mode::RUSR | Mode::WUSR).unwrap();
        symlink("other", scratch.path().join("link")).unwrap();
        assert_eq!(io::read_to_string(file.open_file().unwrap()).unwrap(), "first");
        assert_eq!(link.symlink_target().unwrap(), b"target");
        assert_eq!(link.xattr_names().unwrap(), Vec::<CString>::new());
    }

    #[test]
    fn attributes_are_read_by_name_from_files_that_are_not_opened() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        fs::write(&path, "").unwrap();
        let set = |name: &str, value: &[u8]| {
            rustix::fs::setxattr(&path, name, value, rustix::fs::XattrFlags::empty())
        };
        let long = vec![7; 2000];
        set("user.b", &long).unwrap();
        set("user.a", b"").unwrap();
        let file = Dir::open(scratch.path()).unwrap().handle_beneath("file").unwrap();
        let mut names = file.xattr_names().unwrap();
        names.retain(|name| name.to_bytes().starts_with(b"user."));
        names.sort();
        assert_eq!(names, [c"user.a".to_owned(), c"user.b".to_owned()]);
        assert_eq!(file.xattr(c"user.a").unwrap(), Some(vec![]));
        assert_eq!(file.xattr(c"user.b").unwrap(), Some(long));
        assert_eq!(file.xattr(c"user.c").unwrap(), None);
    }

    #[test]
    fn data_is_found_behind_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 40).unwrap();
        assert_eq!(next_data(&file, 0).unwrap(), None);
        file.write_all_at(b"x", 1 << 30).unwrap();
        let (start, end) = next_data(&file, 0).unwrap().unwrap();
        assert!(start <= 1 << 30 && end > 1 << 30 && end - start <= 1 << 16, "{start}..{end}");
        assert_eq!(next_data(&file, end).unwrap(), None);
    }
}
