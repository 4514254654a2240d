//! Pipes, waiting for several descriptors at once, and memory that is handed over as a file.
//!
//! Source: pipe(7), poll(2), memfd_create(2).

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt as _,
    },
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, memfd_create},
    io::Errno,
    pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
};

/// A pipe: the end to read from, and the one to write to. It holds `capacity` bytes if the system allows it, otherwise
/// as much as any pipe.
pub fn pair(capacity: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    if capacity > 0 {
        // fs.pipe-user-pages-soft bounds the sum of all pipes of a user without privileges.
        let _as_it_is = fcntl_setpipe_size(&write, capacity);
    }
    Ok((read, write))
}

/// Makes reads and writes through this descriptor return at once.
pub fn set_nonblocking(end: impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(&end)?;
    Ok(fcntl_setfl(&end, flags | OFlags::NONBLOCK)?)
}

/// Event to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Bytes, or the end.
    Read,
    /// Room for bytes, or nobody to read them.
    Write,
    /// The other end was closed.
    End,
}

/// Waits until one of `ends` has what is wanted of it, for `limit` at most. Returns for each whether it has.
pub fn ready(ends: &[(BorrowedFd<'_>, Wanted)], limit: Option<Duration>) -> io::Result<Vec<bool>> {
    let flags = |wanted| match wanted {
        Wanted::Read => PollFlags::IN,
        Wanted::Write => PollFlags::OUT,
        // Reported unasked.
        Wanted::End => PollFlags::empty(),
    };
    let mut polled: Vec<_> =
        ends.iter().map(|(end, wanted)| PollFd::from_borrowed_fd(*end, flags(*wanted))).collect();
    let limit = limit.map(|limit| Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    match poll(&mut polled, limit.as_ref()) {
        // A signal: the caller looks again.
        Ok(_) | Err(Errno::INTR) => Ok(polled.iter().map(|end| !end.revents().is_empty()).collect()),
        Err(error) => Err(error.into()),
    }
}

/// A file in memory that hands `bytes` to another process, and is overwritten with zeros when this is dropped.
#[derive(Debug)]
pub struct SecretFile {
    file: File,
    len: usize,
}

impl SecretFile {
    /// A file that holds `bytes`, to be read from its start.
    pub fn new(bytes: &[u8]) -> io::Result<Self> {
        let file = File::from(memfd_create("payload", MemfdFlags::CLOEXEC)?);
        file.write_all_at(bytes, 0)?;
        Ok(Self { file, len: bytes.len() })
    }
}

impl AsFd for SecretFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        // If it cannot be done, the kernel still frees the memory with the last descriptor.
        let _not_zeroed = self.file.write_all_at(&vec![0; self.len], 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_the_first_that_is_ready() {
        let (read, write) = pair(1 << 16).unwrap();
        let wait = |limit| {
            ready(&[(read.as_fd(), Wanted::Read), (write.as_fd(), Wanted::End)], Some(limit)).unwrap()
        };
        assert_eq!(wait(Duration::from_millis(1)), [false, false]);
        rustix::io::write(&write, b"x").unwrap();
        assert_eq!(wait(Duration::from_secs(10)), [true, false]);
        drop(read);
        assert_eq!(ready(&[(write.as_fd(), Wanted::End)], None).unwrap(), [true]);
    }

    #[test]
    fn a_secret_is_gone_for_everybody_once_it_is_dropped() {
        let secret = SecretFile::new(b"key").unwrap();
        let copy = secret.file.try_clone().unwrap();
        let mut bytes = [1; 3];
        copy.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"key");
        drop(secret);
        copy.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [0; 3]);
    }
}
