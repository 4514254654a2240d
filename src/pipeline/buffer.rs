//! Buffers that go round: filled by one stage, shared by those after it, filled again.
//!
//! A fresh megabyte per step costs a fifth of the system time of a layer in page faults; a pool costs
//! a lock. How many buffers exist is bounded by the depth of the channels they travel through.

use std::{
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

/// Buffers of one length that wait to be filled again.
#[derive(Debug)]
pub struct Pool {
    len: usize,
    idle: Mutex<Vec<Vec<u8>>>,
}

/// A buffer being filled; only its holder sees it.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

/// Filled bytes, shared by everybody who reads them; the last one gives the buffer back.
#[derive(Clone, Debug)]
pub struct Chunk {
    shared: Arc<Buffer>,
    len: usize,
}

impl Pool {
    /// A pool of buffers of `len` bytes; none exists yet.
    pub fn new(len: usize) -> Arc<Self> {
        Arc::new(Self { len, idle: Mutex::new(Vec::new()) })
    }

    /// A buffer with arbitrary contents.
    pub fn take(self: &Arc<Self>) -> Buffer {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Buffer { bytes: idle.unwrap_or_else(|| vec![0; self.len]), pool: Arc::clone(self) }
    }
}

impl Buffer {
    /// The whole buffer, to be filled from its start.
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Shares the first `len` bytes, or all when there are fewer.
    pub fn freeze(self, len: usize) -> Chunk {
        Chunk { len: len.min(self.bytes.len()), shared: Arc::new(self) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}

impl Chunk {
    /// The first `len` bytes of it, or all when there are fewer.
    pub(super) fn first(self, len: usize) -> Self {
        Self { len: len.min(self.len), ..self }
    }

    /// Shares bytes that are in no buffer. They are freed with the last reader.
    pub fn of(bytes: Vec<u8>) -> Self {
        let (len, pool) = (bytes.len(), Pool::new(0));
        Buffer { bytes, pool }.freeze(len)
    }

    /// Copies a few bytes that are in no buffer.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Pool::new(bytes.len()).take();
        buffer.space().copy_from_slice(bytes);
        buffer.freeze(bytes.len())
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.shared.bytes.get(..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_goes_back_when_its_last_reader_is_done() {
        let pool = Pool::new(8);
        let mut buffer = pool.take();
        buffer.space()[..3].copy_from_slice(b"abc");
        let chunk = buffer.freeze(3);
        let second = chunk.clone();
        assert_eq!((&*chunk, &*second), (&b"abc"[..], &b"abc"[..]));
        drop(chunk);
        assert_eq!(pool.idle.lock().unwrap().len(), 0);
        drop(second);
        assert_eq!(pool.idle.lock().unwrap().len(), 1);
        assert_eq!(pool.take().space().len(), 8);
        assert_eq!(pool.take().freeze(99).len(), 8);
        assert_eq!(pool.idle.lock().unwrap().len(), 1, "the same buffer each time");
    }
}
