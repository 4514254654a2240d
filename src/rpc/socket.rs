//! Sockets of the daemon: path sockets in directories that nobody else can write to, or inherited
//! ones.
//!
//! A socket is bound before the daemon gives up its privileges, and listens only when the daemon is
//! ready to serve. A file at the path is removed only if it is a dead socket of the same user.

use std::{
    fs::{self, DirBuilder},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::{Classify, Kind};

/// Connections that the kernel queues while the daemon is busy; systemd's default.
const BACKLOG: i32 = 4096;

/// Failure to provide a socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Another daemon answers at the path.
    #[error("{0}: another process is listening there")]
    InUse(PathBuf),
    /// A file at the path is not a dead socket of this user.
    #[error("{path} is {found}: not a socket of uid {uid}, so it is not removed")]
    Occupied {
        /// Path of the socket.
        path: PathBuf,
        /// Type or owner that was found, in words.
        found: String,
        /// User id of the daemon.
        uid: u32,
    },
    /// Another user could replace the socket, given the directory's owner or mode.
    #[error(
        "{path} belongs to uid {owner} and has mode {mode:04o}: the directory of a socket must belong to uid {uid} and be writable by nobody else"
    )]
    Directory {
        /// Path of the directory.
        path: PathBuf,
        /// User id of the directory's owner.
        owner: u32,
        /// Permission bits of the directory.
        mode: u32,
        /// User id of the daemon.
        uid: u32,
    },
    /// A system call failed.
    #[error("cannot {what} {path}")]
    Io {
        /// Step that failed, in words.
        what: &'static str,
        /// Path that it was about.
        path: PathBuf,
        /// Error of the system call.
        source: io::Error,
    },
}

impl Classify for SocketError {
    fn kind(&self) -> Kind {
        match self {
            Self::InUse(_) | Self::Occupied { .. } => Kind::Conflict,
            Self::Directory { .. } => Kind::Denied,
            Self::Io { .. } => Kind::Unavailable,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::InUse(_) => "socket.in-use",
            Self::Occupied { .. } => "socket.occupied",
            Self::Directory { .. } => "socket.directory",
            Self::Io { .. } => "socket.io",
        }
    }
}

/// Socket that is bound to its path but does not listen yet.
#[derive(Debug)]
pub struct Bound {
    path: PathBuf,
    socket: OwnedFd,
}

/// Listening socket, with the file to remove at the end.
#[derive(Debug)]
pub struct Listening {
    /// Listener, set to non-blocking.
    pub listener: UnixListener,
    /// Path, device and inode of the file to remove at the end; `None` when the service manager
    /// owns it.
    file: Option<(PathBuf, u64, u64)>,
}

impl Bound {
    /// Creates the directory if it is missing, and the socket in it: mode 0600, or 0660 with group
    /// `gid` if that is not 0.
    pub fn new(path: &Path, gid: u32) -> Result<Self, SocketError> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let uid = rustix::process::geteuid().as_raw();
        prepare_directory(directory, gid, uid)?;
        remove_stale(path, uid)?;
        let failed = |what| move |source| SocketError::Io { what, path: path.to_owned(), source };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let bind = || {
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
            Ok(socket)
        };
        let socket = bind().map_err(|error: rustix::io::Errno| failed("bind a socket at")(error.into()))?;
        // Nobody else can enter or write the directory, and nothing listens yet, so the moment
        // between the two steps cannot be used.
        if gid != 0 {
            chown(path, None, Some(gid)).map_err(failed("give the group of"))?;
        }
        let mode = if gid == 0 { 0o600 } else { 0o660 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("set the mode of"))?;
        Ok(Self { path: path.to_owned(), socket })
    }

    /// Starts to accept connections into the queue.
    pub fn listen(self) -> Result<Listening, SocketError> {
        let Self { path, socket } = self;
        let failed = |source| SocketError::Io { what: "listen on", path: path.clone(), source };
        rustix::net::listen(socket.as_fd(), BACKLOG).map_err(|error| failed(error.into()))?;
        let metadata = fs::symlink_metadata(&path).map_err(failed)?;
        let file = Some((path, metadata.dev(), metadata.ino()));
        Ok(Listening { listener: UnixListener::from(socket), file })
    }
}

impl Listening {
    /// Wraps a socket that the service manager created, keeps, and checked.
    pub fn inherited(listener: UnixListener) -> Self {
        Self { listener, file: None }
    }

    /// Splits into the listener for the runtime, and the guard that removes its file when dropped.
    pub fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, SocketFile(self.file))
    }
}

/// Guard that removes the file of a socket when dropped, unless another process has replaced the
/// file.
#[derive(Debug)]
pub struct SocketFile(Option<(PathBuf, u64, u64)>);

impl SocketFile {
    /// True when the service manager keeps the socket: a later daemon serves the connections in its
    /// queue.
    pub fn is_inherited(&self) -> bool {
        self.0.is_none()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Some((path, device, inode)) = &self.0 else { return };
        let is_ours =
            fs::symlink_metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (*device, *inode));
        if is_ours && let Err(error) = fs::remove_file(path) {
            tracing::debug!(%error, path = %path.display(), "the socket's file stays behind");
        }
    }
}

/// Creates the last component with mode 0700 (0750 and `gid` for a group), or checks an existing
/// one.
fn prepare_directory(directory: &Path, gid: u32, uid: u32) -> Result<(), SocketError> {
    let failed = |what| move |source| SocketError::Io { what, path: directory.to_owned(), source };
    let mode = if gid == 0 { 0o700 } else { 0o750 };
    match DirBuilder::new().mode(mode).create(directory) {
        Ok(()) if gid != 0 => {
            chown(directory, None, Some(gid)).map_err(failed("give the group of"))?;
            // The umask may have removed the group's permissions.
            let permissions = fs::Permissions::from_mode(mode);
            fs::set_permissions(directory, permissions).map_err(failed("set the mode of"))?;
        }
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed("make the directory")(error)),
    }
    let found = fs::metadata(directory).map_err(failed("look at"))?;
    let mode = found.mode() & 0o7777;
    if !found.is_dir() || found.uid() != uid || mode & 0o022 != 0 {
        return Err(SocketError::Directory { path: directory.to_owned(), owner: found.uid(), mode, uid });
    }
    Ok(())
}

/// Removes the socket of a daemon that has ended.
fn remove_stale(path: &Path, uid: u32) -> Result<(), SocketError> {
    let failed = |what| move |source| SocketError::Io { what, path: path.to_owned(), source };
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(failed("look at"))?,
    };
    if !found.file_type().is_socket() || found.uid() != uid {
        let found = match found.file_type() {
            kind if kind.is_socket() => format!("a socket of uid {}", found.uid()),
            kind if kind.is_symlink() => "a symbolic link".to_owned(),
            kind if kind.is_dir() => "a directory".to_owned(),
            _ => "a file".to_owned(),
        };
        return Err(SocketError::Occupied { path: path.to_owned(), found, uid });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove the dead socket"))
        }
        // A process still listens there: its backlog may be full, for example.
        Err(error) => Err(failed("find out who listens on")(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_socket_is_private_dead_until_it_listens_and_gone_afterwards() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("run/plywood.sock");
        let bound = Bound::new(&path, 0).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert!(UnixStream::connect(&path).is_err(), "not yet");
        let (listener, file) = bound.listen().unwrap().into_parts();
        UnixStream::connect(&path).unwrap();
        drop(listener);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("x.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let first = Bound::new(&path, 0).unwrap().listen().unwrap();
        let error = Bound::new(&path, 0).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Conflict, "socket.in-use"));
        drop(first);
    }

    #[test]
    fn a_file_that_replaced_ours_is_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("x.sock");
        let (_listener, file) = Bound::new(&path, 0).unwrap().listen().unwrap().into_parts();
        fs::rename(&path, scratch.path().join("aside")).unwrap();
        let _next = UnixListener::bind(&path).unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn nothing_but_a_socket_of_ours_is_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("x.sock");
        let refused = |path: &Path| Bound::new(path, 0).unwrap_err().reason();
        fs::write(&path, "precious").unwrap();
        assert_eq!(refused(&path), "socket.occupied");
        fs::remove_file(&path).unwrap();
        symlink("/dev/null", &path).unwrap();
        assert_eq!(refused(&path), "socket.occupied");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(refused(&path), "socket.occupied");
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = Bound::new(&scratch.path().join("x.sock"), 0).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Denied, "socket.directory"));
        assert!(error.to_string().contains("mode 0777"), "{error}");
    }
}
