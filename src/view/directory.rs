//! A view of a directory, which a container may be writing to while it is read.
//!
//! The directory may belong to a hostile container. Nothing is reached by a path that could lead elsewhere:
//! every step is an `openat2` that stays below the root, follows no link and crosses no mount. Only handles
//! are opened, which fifos and devices do not notice. A handle on a regular file becomes an open file through
//! `/proc/self/fd`, so the inode that is read is the inode that was looked at. Two handles are kept at any
//! depth: on the directory at hand and on the file.
//!
//! A file must stay as it was looked up until it has been read: size, times and inode are compared before and
//! after. Nobody can set the time of the last change, so it also shows a change that restored everything else.
//! A directory must keep its identity only: entries come and go in a live one, and the code that lists it
//! decides what that means.
//!
//! Source: openat2(2), open(2), proc_pid_fd(5).

use std::{
    cell::RefCell,
    ffi::CString,
    fs::File,
    io,
    os::{fd::AsFd as _, unix::fs::FileExt as _},
};

use rustix::{io::Errno, thread::CapabilitySet};

use super::{At, Control, Extents, Node, View, ViewError, pieces::read_in_pieces};
use crate::{
    call::Cancel,
    error::Result,
    sys::{
        capabilities,
        dir::{self, Dir, Status},
        inode::{self, Handle},
    },
    tree::{Attributes, Extent, FileType, Xattr},
};

/// Files up to this size are read without a search for holes.
// One block of the usual file systems: a system call for each hole would take longer than reading it.
const DENSE_BYTES: u64 = 4096;
/// First offset at which everything counts as data.
// Where the largest possible file ends, tmpfs reports no data (`mapping_seek_hole_data`, seen on 6.18).
const SEEKABLE_BYTES: u64 = i64::MAX.unsigned_abs() - 4095;

/// The tree of a directory.
#[derive(Debug)]
pub struct DirectoryView {
    root: Dir,
    key: (u64, u64),
    name: String,
    control: Control,
    cancel: Cancel,
    /// The directory in which the last name was looked up.
    directory: RefCell<Option<Held>>,
    /// The file that was looked up last.
    entry: RefCell<Option<Held>>,
    buffer: RefCell<Vec<u8>>,
}

/// A handle and the path that it was opened by.
#[derive(Debug)]
struct Held {
    path: Vec<u8>,
    handle: Handle,
    file_system: u64,
    inode: u64,
    /// The open file, of a regular file that is being read.
    open: Option<File>,
}

impl Held {
    fn is(&self, at: At<'_>) -> bool {
        self.inode == at.node.inode && self.file_system == at.node.file_system && self.path == at.path
    }
}

impl DirectoryView {
    /// The tree below `root`; `name` is for messages.
    ///
    /// Errors: [`ViewError::Privilege`], [`ViewError::Proc`].
    pub fn new(root: Dir, name: String, control: Control, cancel: &Cancel) -> Result<Self, ViewError> {
        let io = |source| ViewError::Io { view: name.clone(), path: Vec::new(), source };
        let status = root.status().map_err(io)?;
        let may_see = || capabilities::are_effective(CapabilitySet::SYS_ADMIN);
        if control == Control::Trusted && !may_see().map_err(io)? {
            return Err(ViewError::Privilege { view: name });
        }
        if let Err(source) = inode::require_proc() {
            return Err(ViewError::Proc { view: name, source });
        }
        Ok(Self {
            root,
            key: (status.device, status.inode),
            name,
            control,
            cancel: cancel.clone(),
            directory: RefCell::new(None),
            entry: RefCell::new(None),
            buffer: RefCell::new(Vec::new()),
        })
    }

    fn changed(&self, path: &[u8], what: impl Into<String>) -> ViewError {
        ViewError::Changed { view: self.name.clone(), path: path.to_vec(), what: what.into() }
    }

    /// The meaning of an error of the kernel about `path`, which was looked up before.
    fn failed(&self, path: &[u8], source: io::Error) -> ViewError {
        let view = self.name.clone();
        match Errno::from_io_error(&source) {
            Some(Errno::XDEV) => ViewError::Mount { view, path: path.to_vec() },
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE | Errno::AGAIN) => {
                self.changed(path, source.to_string())
            }
            Some(Errno::NAMETOOLONG) => ViewError::TooLong { view, path: path.to_vec() },
            _ => ViewError::Io { view, path: path.to_vec(), source },
        }
    }

    fn status(&self, path: &[u8], fd: impl std::os::fd::AsFd) -> Result<Status, ViewError> {
        dir::status(fd).map_err(|source| self.failed(path, source))
    }

    /// Runs `work` on the handle of `at`, opened again if it is not at hand.
    fn with<T>(&self, at: At<'_>, work: impl FnOnce(&mut Held) -> Result<T>) -> Result<T> {
        if let Some(held) = self.directory.borrow_mut().as_mut().filter(|held| held.is(at)) {
            return work(held);
        }
        let mut slot = self.entry.borrow_mut();
        self.hold(&mut slot, at)?;
        match slot.as_mut() {
            Some(held) => work(held),
            None => Err(self.changed(at.path, "it is gone").into()),
        }
    }

    /// Runs `work` on the handle of a directory, which stays at hand while the files in it are looked at.
    fn with_directory<T>(&self, at: At<'_>, work: impl FnOnce(&Handle) -> Result<T>) -> Result<T> {
        let mut slot = self.directory.borrow_mut();
        if !slot.as_ref().is_some_and(|held| held.is(at)) {
            *slot = self.entry.borrow_mut().take();
            self.hold(&mut slot, at)?;
        }
        match slot.as_ref() {
            Some(held) => work(&held.handle),
            None => Err(self.changed(at.path, "it is gone").into()),
        }
    }

    /// Puts a handle on `at` into `slot` unless it holds one already. The path is walked anew and may lead
    /// elsewhere by now, which is an error.
    fn hold(&self, slot: &mut Option<Held>, at: At<'_>) -> Result<(), ViewError> {
        if slot.as_ref().is_some_and(|held| held.is(at)) {
            return Ok(());
        }
        *slot = None;
        let path = if at.path.is_empty() { b"." } else { at.path };
        let handle =
            self.root.handle_beneath(path).map_err(|source| match Errno::from_io_error(&source) {
                // Looking it up crossed no mount, so the path leads elsewhere now.
                Some(Errno::XDEV) => self.changed(at.path, "it is elsewhere"),
                _ => self.failed(at.path, source),
            })?;
        let (held, _) = self.held(at.path.to_vec(), handle)?;
        if !held.is(at) {
            return Err(self.changed(at.path, "another file has its name"));
        }
        *slot = Some(held);
        Ok(())
    }

    fn held(&self, path: Vec<u8>, handle: Handle) -> Result<(Held, Node), ViewError> {
        let status = self.status(&path, &handle)?;
        let node = node(&status);
        Ok((Held { path, handle, file_system: node.file_system, inode: node.inode, open: None }, node))
    }

    /// Errors when anything about the file changed since it was looked up.
    fn require_same(&self, at: At<'_>, fd: impl std::os::fd::AsFd) -> Result<Status, ViewError> {
        let status = self.status(at.path, fd)?;
        let found = node(&status);
        // Owners are not compared: `at` may have mapped ones. A new owner on disk changes the time of the last change.
        let identity =
            |node: &Node| (node.file_type, node.file_system, node.inode, node.size_bytes, node.changed);
        if identity(&found) == identity(at.node) && found.attributes.mtime == at.node.attributes.mtime {
            return Ok(status);
        }
        let what = if found.size_bytes != at.node.size_bytes {
            format!("{} bytes have become {}", at.node.size_bytes, found.size_bytes)
        } else if found.attributes.mtime != at.node.attributes.mtime {
            "its data was written to".to_owned()
        } else {
            "its attributes or names were changed".to_owned()
        };
        Err(self.changed(at.path, what))
    }

    /// Runs `work` on the open regular file `at`. Errors when the file changed since it was looked up.
    fn with_file<T>(&self, at: At<'_>, work: impl FnOnce(&File) -> Result<T>) -> Result<T> {
        if at.node.file_type != FileType::Regular {
            return Err(self.changed(at.path, "it is no regular file").into());
        }
        self.with(at, |held| {
            let Held { handle, open, .. } = held;
            let file = opened(handle, open).map_err(|source| self.failed(at.path, source))?;
            let outcome = work(file)?;
            self.require_same(at, file.as_fd())?;
            Ok(outcome)
        })
    }
}

/// The regular file of `handle`, opened once.
fn opened<'a>(handle: &Handle, open: &'a mut Option<File>) -> io::Result<&'a File> {
    match open {
        Some(file) => Ok(file),
        none => Ok(none.insert(handle.open_file()?)),
    }
}

/// A status as a node.
fn node(status: &Status) -> Node {
    use rustix::fs::FileType as Kind;
    let file_type = match status.file_type {
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharacterDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
        Kind::RegularFile | Kind::Unknown => FileType::Regular,
    };
    let sized = matches!(file_type, FileType::Regular | FileType::Symlink);
    let special = matches!(file_type, FileType::CharDevice | FileType::BlockDevice);
    Node {
        file_type,
        attributes: Attributes {
            mode: u16::try_from(status.permissions).unwrap_or(0),
            uid: status.uid,
            gid: status.gid,
            mtime: status.modified,
        },
        device: if special { status.special } else { Default::default() },
        size_bytes: if sized { status.size_bytes } else { 0 },
        links: status.links,
        inode: status.inode,
        file_system: status.device,
        changed: status.changed,
    }
}

impl View for DirectoryView {
    fn key(&self) -> (u64, u64) {
        self.key
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn control_prefix(&self) -> &'static [u8] {
        self.control.prefix()
    }

    fn root(&self) -> Result<Node> {
        let status = self.root.status().map_err(|source| self.failed(b"", source))?;
        Ok(node(&status))
    }

    /// Errors with `Changed` when a name came or went meanwhile.
    fn names(&self, directory: At<'_>, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.with_directory(directory, |handle| {
            let failed = |source| self.failed(directory.path, source);
            let open = handle.open_dir().map_err(failed)?;
            let before = self.status(directory.path, &open)?;
            for name in open.names().map_err(failed)? {
                each(name.map_err(failed)?.to_bytes())?;
            }
            let after = self.status(directory.path, &open)?;
            if (before.modified, before.changed) != (after.modified, after.changed) {
                return Err(self.changed(directory.path, "names came or went").into());
            }
            Ok(())
        })
    }

    fn lookup(&self, directory: At<'_>, name: &[u8]) -> Result<Option<Node>> {
        let mut path = directory.path.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let child = self.with_directory(directory, |handle| match handle.child(name) {
            Ok(child) => Ok(Some(child)),
            Err(error) => match Errno::from_io_error(&error) {
                // A name of another layer may be longer than this file system takes.
                Some(Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
                _ => Err(self.failed(&path, error).into()),
            },
        })?;
        let Some(child) = child else { return Ok(None) };
        let (held, node) = self.held(path, child)?;
        *self.entry.borrow_mut() = Some(held);
        Ok(Some(node))
    }

    fn xattrs(&self, at: At<'_>) -> Result<Vec<Xattr>> {
        self.with(at, |held| {
            let failed = |source| self.failed(at.path, source);
            // The data is most likely read next, so the file is opened now. If that fails, reading reports it.
            let has_data = at.node.file_type == FileType::Regular && at.node.size_bytes > 0;
            let Held { handle, open, .. } = held;
            let file = if has_data { opened(handle, open).ok() } else { None };
            let names = file.map_or_else(|| handle.xattr_names(), inode::xattr_names).map_err(failed)?;
            let mut xattrs = Vec::with_capacity(names.len());
            for name in names {
                let value = file.map_or_else(|| handle.xattr(&name), |file| inode::xattr(file, &name));
                // A name without a value was removed meanwhile, which the check below reports.
                if let Some(value) = value.map_err(failed)? {
                    xattrs.push(Xattr { name: CString::into_bytes(name), value });
                }
            }
            self.require_same(at, handle)?;
            xattrs.sort();
            Ok(xattrs)
        })
    }

    fn symlink_target(&self, at: At<'_>) -> Result<Vec<u8>> {
        self.with(at, |held| {
            let target = held.handle.symlink_target().map_err(|source| self.failed(at.path, source))?;
            self.require_same(at, &held.handle)?;
            Ok(target)
        })
    }

    fn extents(&self, at: At<'_>) -> Result<Option<Vec<Extent>>> {
        let size_bytes = at.node.size_bytes;
        if size_bytes <= DENSE_BYTES {
            return Ok(None);
        }
        self.with_file(at, |file| {
            if self.status(at.path, file)?.allocated_bytes >= size_bytes {
                return Ok(None);
            }
            let mut extents = Extents::new(size_bytes);
            let mut next = 0;
            while next < size_bytes {
                self.cancel.check()?;
                let found = inode::next_data(file, next).map_err(|source| self.failed(at.path, source))?;
                let Some((start, end)) = found else { break };
                extents.push(start, end.saturating_sub(start));
                next = end.max(next + 1);
            }
            if let Some(beyond) = size_bytes.checked_sub(SEEKABLE_BYTES) {
                extents.push(next.max(SEEKABLE_BYTES), beyond);
            }
            Ok(extents.finish())
        })
    }

    fn read(
        &self,
        at: At<'_>,
        extents: &[Extent],
        each: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.with_file(at, |file| {
            let read = |offset, piece: &mut [u8]| loop {
                match file.read_at(piece, offset) {
                    Ok(0) => return Err(self.changed(at.path, "it became shorter").into()),
                    Ok(len) => return Ok(len),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(self.failed(at.path, error).into()),
                }
            };
            read_in_pieces(extents, &mut self.buffer.borrow_mut(), &self.cancel, read, each)
        })
    }
}
