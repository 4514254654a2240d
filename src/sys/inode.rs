//! One inode, looked at and read through a descriptor that cannot become another file.
//!
//! A handle (`O_PATH`) opens nothing: a device does not notice, a fifo does not block. The caller looks at the inode's
//! type before any of it is read, and reading goes through `/proc/self/fd`, which leads to that inode and no other,
//! whatever its name stands for meanwhile. A call with a path might meet another file. A call with a descriptor takes
//! no handle (Linux 6.13's `getxattrat` refuses one as well), and a device must not be opened to read its attributes.
//! The attributes of a regular file that is open anyway are read through the open file, in a fifteenth of the time.
//!
//! Source: open(2) `O_PATH`, proc_pid_fd(5), listxattr(2), lseek(2) `SEEK_DATA`.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::OnceLock,
};

use rustix::{
    fs::{CWD, Mode, OFlags, SeekFrom},
    io::Errno,
};

/// Largest list of attribute names of one file, in bytes: `XATTR_LIST_MAX`.
const LIST_BYTES: usize = 64 << 10;
/// Largest value of an attribute, in bytes: `XATTR_SIZE_MAX`.
const VALUE_BYTES: usize = 64 << 10;
/// Length that nearly all values fit into, in bytes.
const SHORT_VALUE_BYTES: usize = 256;

/// A handle on one inode of any type.
#[derive(Debug)]
pub struct Handle(pub(super) OwnedFd);

/// `/proc/self/fd`, opened once: walking to it takes half the time of opening a file through it.
static PROC: OnceLock<OwnedFd> = OnceLock::new();

/// Errors: there is no `/proc/self/fd` of procfs.
pub fn require_proc() -> io::Result<()> {
    proc_fds().map(drop)
}

fn proc_fds() -> io::Result<BorrowedFd<'static>> {
    if let Some(fd) = PROC.get() {
        return Ok(fd.as_fd());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, c"/proc/self/fd", flags, Mode::empty())?;
    if rustix::fs::fstatfs(&fd)?.f_type != rustix::fs::PROC_SUPER_MAGIC {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "/proc is not procfs"));
    }
    Ok(PROC.get_or_init(|| fd).as_fd())
}

impl Handle {
    /// Path that leads the kernel to this very inode.
    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    /// Opens the inode for reading. Call it for regular files only: opening has effects on others.
    pub fn open_file(&self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let name = self.0.as_raw_fd().to_string();
        Ok(File::from(rustix::fs::openat(proc_fds()?, name, flags, Mode::empty())?))
    }

    /// Target of a symbolic link.
    pub fn symlink_target(&self) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.0, c"", Vec::new())?.into_bytes())
    }

    /// Names of all extended attributes that this process may see, in the file system's order.
    pub fn xattr_names(&self) -> io::Result<Vec<CString>> {
        let path = self.path();
        names(|| rustix::fs::listxattr_query(&path), |list| rustix::fs::listxattr(&path, list))
    }

    /// Value of an extended attribute; `None` when there is none of that name (any more).
    pub fn xattr(&self, name: &CStr) -> io::Result<Option<Vec<u8>>> {
        let path = self.path();
        value(|value| rustix::fs::getxattr(&path, name, value))
    }
}

/// [`Handle::xattr_names`] of an open file.
pub fn xattr_names(file: &File) -> io::Result<Vec<CString>> {
    names(|| rustix::fs::flistxattr_query(file), |list| rustix::fs::flistxattr(file, list))
}

/// [`Handle::xattr`] of an open file.
pub fn xattr(file: &File, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    value(|value| rustix::fs::fgetxattr(file, name, value))
}

fn names(
    query: impl FnOnce() -> rustix::io::Result<usize>,
    list: impl FnOnce(&mut [u8]) -> rustix::io::Result<usize>,
) -> io::Result<Vec<CString>> {
    // Most files have none: asking for the length first saves the buffer.
    let len = match query() {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    if len == 0 {
        return Ok(Vec::new());
    }
    let mut space = vec![0; LIST_BYTES];
    let len = list(&mut space)?;
    space.truncate(len);
    let names = space.split_inclusive(|byte| *byte == 0);
    Ok(names.filter_map(|name| CStr::from_bytes_with_nul(name).ok().map(CStr::to_owned)).collect())
}

fn value(get: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Option<Vec<u8>>> {
    let mut space = vec![0; SHORT_VALUE_BYTES];
    let mut outcome = get(&mut space);
    if outcome == Err(Errno::RANGE) {
        space.resize(VALUE_BYTES, 0);
        outcome = get(&mut space);
    }
    match outcome {
        Ok(len) => {
            space.truncate(len);
            Ok(Some(space))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Start and end of the first data of `file` at or after byte `from`; `None` when only a hole is left.
/// On a file system without holes everything is data.
pub fn next_data(file: &File, from: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(end) => Ok(Some((start, end))),
        // The file was truncated meanwhile.
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
        let open = file.open_file().unwrap();
        assert_eq!(xattr_names(&open).unwrap(), file.xattr_names().unwrap());
        for name in [c"user.a", c"user.b", c"user.c"] {
            assert_eq!(xattr(&open, name).unwrap(), file.xattr(name).unwrap());
        }
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
