//! Sockets that a service manager opened for this process.
//!
//! Source: sd_listen_fds(3).

// Descriptors arrive as numbers.
#![allow(unsafe_code)]

use std::{
    io,
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::net::UnixListener,
    },
    sync::atomic::{AtomicBool, Ordering},
};

/// A listening unix socket and the name its unit gave it.
#[derive(Debug)]
pub struct Inherited {
    /// `FileDescriptorName=` of the socket unit.
    pub name: String,
    /// The socket, non-blocking and closed on exec.
    pub listener: UnixListener,
}

/// Takes the inherited sockets; a second call finds none.
///
/// Errors: one of them is not a listening unix stream socket with a path.
pub fn listeners() -> io::Result<Vec<Inherited>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds_with_names()?;
    passed
        .map(|(fd, name)| {
            // SAFETY: the service manager opened this descriptor for this process (LISTEN_PID was compared)
            // and nothing else in it knows its number; TAKEN makes this the only owner.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            let listener = check(fd).map_err(|problem| {
                io::Error::new(io::ErrorKind::InvalidInput, format!("inherited socket {name:?} {problem}"))
            })?;
            Ok(Inherited { name, listener })
        })
        .collect()
}

fn check(fd: OwnedFd) -> Result<UnixListener, String> {
    use rustix::net::{AddressFamily, SocketType, sockopt};
    let ask = |error: rustix::io::Errno| error.to_string();
    if sockopt::socket_domain(&fd).map_err(ask)? != AddressFamily::UNIX {
        return Err("is not a unix socket".to_owned());
    }
    if sockopt::socket_type(&fd).map_err(ask)? != SocketType::STREAM {
        return Err("is not a stream socket".to_owned());
    }
    if !sockopt::socket_acceptconn(&fd).map_err(ask)? {
        return Err("does not listen".to_owned());
    }
    let listener = UnixListener::from(fd);
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    if address.as_pathname().is_none() {
        return Err("has no path".to_owned());
    }
    listener.set_nonblocking(true).map_err(|error| error.to_string())?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    #[test]
    fn only_a_listening_path_socket_is_taken() {
        let scratch = tempfile::tempdir().unwrap();
        let good = UnixListener::bind(scratch.path().join("good")).unwrap();
        assert!(check(good.into()).is_ok());
        let problem = |fd: OwnedFd| check(fd).err().unwrap();
        assert_eq!(
            problem(std::fs::File::open("/dev/null").unwrap().into()),
            "Socket operation on non-socket (os error 88)"
        );
        assert_eq!(problem(UnixDatagram::unbound().unwrap().into()), "is not a stream socket");
        assert_eq!(problem(UnixStream::pair().unwrap().0.into()), "does not listen");
        assert_eq!(
            problem(std::net::TcpListener::bind("127.0.0.1:0").unwrap().into()),
            "is not a unix socket"
        );
    }
}
