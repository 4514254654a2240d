//! Formats: bytes in, values out, and back. No files, sockets, clocks or threads.

// Bytes from outside must not be able to panic a root daemon.
#![deny(clippy::indexing_slicing)]

pub mod bolt;
mod crc32c;
pub mod erofs;
pub mod ext4;
pub mod gzindex;
pub mod lsmt;
pub mod magic;
pub mod rafs;
mod record;
pub mod stargz;
pub mod tar;
pub mod turbo;
pub mod zfile;
pub mod ztoc;

use std::io;

/// Source of positional reads: a file, a blob in memory, an image inside an image.
pub trait ReadAt {
    /// Fills all of `buf` from byte `offset` on. Errors: `UnexpectedEof` when the source ends
    /// before.
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Size of the source in bytes.
    fn size_bytes(&self) -> u64;

    /// Says that these bytes will be read soon, so that a disk may begin.
    fn will_need(&self, _offset: u64, _len: u64) {}
}

impl<T: ReadAt + ?Sized> ReadAt for &mut T {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_exact_at(offset, buf)
    }

    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }

    fn will_need(&self, offset: u64, len: u64) {
        (**self).will_need(offset, len);
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Box<T> {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_exact_at(offset, buf)
    }

    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }

    fn will_need(&self, offset: u64, len: u64) {
        (**self).will_need(offset, len);
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_exact_at(offset, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.as_slice().size_bytes()
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..)?.get(..buf.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_exact_at(offset, buf)
    }

    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }

    fn will_need(&self, offset: u64, len: u64) {
        (**self).will_need(offset, len);
    }
}

/// Reads a source from its start on.
#[derive(Debug)]
pub struct Sequential<R> {
    source: R,
    at: u64,
}

impl<R: ReadAt> Sequential<R> {
    /// Begins at byte 0 of `source`.
    pub fn new(source: R) -> Self {
        Self { source, at: 0 }
    }
}

impl<R: ReadAt> io::Read for Sequential<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.source.size_bytes().saturating_sub(self.at);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let Some(room) = buf.get_mut(..len).filter(|room| !room.is_empty()) else { return Ok(0) };
        self.source.read_exact_at(self.at, room)?;
        self.at = self.at.saturating_add(len as u64);
        Ok(len)
    }
}

/// Destination of a writer's bytes: a new file that reads as zeros wherever nothing was written.
pub trait Sink {
    /// Writes all of `bytes` at byte `offset`.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes `len` bytes from `offset` on read as zeros again, giving back their space if possible.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()>;

    /// Sets the final size in bytes. Bytes never written read as zeros.
    fn set_len(&mut self, len: u64) -> io::Result<()>;

    /// Memory that grows with what is written, in bytes: an index, for example.
    fn memory_bytes(&self) -> u64 {
        0
    }
}

/// Sink of a block device, parts of which may lie in another file, the target.
pub trait Remote: Sink {
    /// Makes `len` bytes of the device from byte `offset` on read as those of the target from byte `target` on. All
    /// three are multiples of 512. [`Sink::discard`] undoes it.
    fn map(&mut self, offset: u64, len: u64, target: u64) -> io::Result<()>;
}

impl<T: Sink + ?Sized> Sink for &mut T {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        (**self).write_at(offset, bytes)
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        (**self).discard(offset, len)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        (**self).set_len(len)
    }

    fn memory_bytes(&self) -> u64 {
        (**self).memory_bytes()
    }
}

impl<T: Sink + ?Sized> Sink for Box<T> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        (**self).write_at(offset, bytes)
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        (**self).discard(offset, len)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        (**self).set_len(len)
    }

    fn memory_bytes(&self) -> u64 {
        (**self).memory_bytes()
    }
}

/// An image in memory, for tests and for images that are small in any case.
impl Sink for Vec<u8> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start.checked_add(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        if self.len() < end {
            self.resize(end, 0);
        }
        self.get_mut(start..end).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(bytes);
        Ok(())
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?.min(self.len());
        let end = usize::try_from(offset.saturating_add(len)).map_err(io::Error::other)?.min(self.len());
        if let Some(range) = self.get_mut(start..end) {
            range.fill(0);
        }
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        Ok(())
    }
}
