//! Hashes and counts the bytes that pass.

use std::time::{Duration, Instant};

use super::{buffer::Chunk, stage::Stage};
use crate::{
    digest::{Algorithm, Digest, Hasher},
    error::Result,
};

/// Hashes everything that passes.
#[derive(Debug)]
pub struct Hash {
    hasher: Hasher,
    size_bytes: u64,
    busy: Duration,
}

/// Digest and length of a stream, and the time that hashing took.
#[derive(Clone, Debug)]
pub struct Hashed {
    /// Digest of all bytes.
    pub digest: Digest,
    /// Number of bytes.
    pub size_bytes: u64,
    /// Time spent hashing.
    pub busy: Duration,
}

impl Hash {
    /// A hash of nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self { hasher: Hasher::new(algorithm), size_bytes: 0, busy: Duration::ZERO }
    }
}

impl Stage for Hash {
    type Output = Hashed;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        let started = Instant::now();
        self.hasher.update(&chunk);
        self.size_bytes = self.size_bytes.saturating_add(chunk.len() as u64);
        self.busy += started.elapsed();
        Ok(())
    }

    fn finish(self) -> Result<Hashed> {
        Ok(Hashed { digest: self.hasher.finish(), size_bytes: self.size_bytes, busy: self.busy })
    }
}
