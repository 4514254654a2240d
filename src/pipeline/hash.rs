//! Hashes and counts the bytes that pass.
//!
//! While processors are few, the bytes of a blob wait for those of its stream ([`Waiting`]), because both hashes in turns
//! take less time than one after the other ([`Hasher::update_both`]).

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{buffer::Chunk, helpers::Helpers, stage::Stage};
use crate::{
    digest::{Algorithm, Digest, Hasher},
    error::Result,
};

/// Most chunks of a blob that wait to be hashed. Helpers that decode ahead hold about as many of them anyway.
const WAITING_MAX: usize = 32;
/// Processors for a layer, beside one, from which on each hash has one of its own. The hash of the stream is what takes
/// longest then, and must not do the work of the other.
const PROCESSORS_ENOUGH: usize = 3;

/// Hashes everything that passes.
#[derive(Debug)]
pub struct Hash {
    hasher: Hasher,
    size_bytes: u64,
    busy: Duration,
    /// Hash that it takes along.
    beside: Option<Arc<Waiting>>,
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
        Self { hasher: Hasher::new(algorithm), size_bytes: 0, busy: Duration::ZERO, beside: None }
    }

    /// Takes along the bytes of `waiting`, which have to wait for this hash from now on.
    pub(super) fn beside(self, waiting: &Arc<Waiting>) -> Self {
        waiting.has_taker.store(true, Ordering::Relaxed);
        Self { beside: Some(Arc::clone(waiting)), ..self }
    }

    fn update(&mut self, bytes: &[u8]) {
        let started = Instant::now();
        self.hasher.update(bytes);
        self.count(bytes.len(), started.elapsed());
    }

    fn count(&mut self, bytes: usize, busy: Duration) {
        self.size_bytes = self.size_bytes.saturating_add(bytes as u64);
        self.busy += busy;
    }

    fn so_far(&self) -> Hashed {
        Hashed { digest: self.hasher.clone().finish(), size_bytes: self.size_bytes, busy: self.busy }
    }
}

impl Stage for Hash {
    type Output = Hashed;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        let done = match self.beside.clone() {
            Some(waiting) => waiting.take_along(self, &chunk),
            None => 0,
        };
        self.update(chunk.get(done..).unwrap_or_default());
        Ok(())
    }

    fn finish(self) -> Result<Hashed> {
        Ok(self.so_far())
    }
}

/// A hash whose bytes wait until another hash, on any thread, takes them along.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Locked before `chunks` by those who take some.
    hash: Mutex<Hash>,
    chunks: Mutex<VecDeque<Part>>,
    has_taker: AtomicBool,
    helpers: Arc<Helpers>,
}

/// A chunk from the byte on that was not hashed.
#[derive(Debug)]
struct Part {
    chunk: Chunk,
    from: usize,
}

impl Waiting {
    /// A hash of nothing yet. `helpers` know how many processors there are.
    pub(super) fn new(algorithm: Algorithm, helpers: &Arc<Helpers>) -> Arc<Self> {
        let (hash, chunks) = (Mutex::new(Hash::new(algorithm)), Mutex::default());
        let (has_taker, helpers) = (AtomicBool::new(false), Arc::clone(helpers));
        Arc::new(Self { hash, chunks, has_taker, helpers })
    }

    fn are_processors_few(&self) -> bool {
        self.helpers.idle_processors() < PROCESSORS_ENOUGH
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Part>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first chunk, if more than `left` wait.
    fn next(&self, left: usize) -> Option<Part> {
        let mut chunks = self.lock();
        if chunks.len() > left { chunks.pop_front() } else { None }
    }

    /// Hashes until at most `left` chunks wait.
    fn catch_up(&self, left: usize) {
        let mut hash = self.hash.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(Part { chunk, from }) = self.next(left) {
            hash.update(chunk.get(from..).unwrap_or_default());
        }
    }

    /// Hashes the start of `bytes` for `other`, together with what waits here. Returns how many that were.
    fn take_along(&self, other: &mut Hash, bytes: &[u8]) -> usize {
        if !self.are_processors_few() {
            return 0;
        }
        let mut hash = self.hash.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while let Some(theirs) = bytes.get(done..).filter(|theirs| !theirs.is_empty())
            && let Some(Part { chunk, from }) = self.next(0)
        {
            let ours = chunk.get(from..).unwrap_or_default();
            let both = ours.len().min(theirs.len());
            let (ours, _later) = ours.split_at(both);
            let (theirs, _later) = theirs.split_at(both);
            let started = Instant::now();
            hash.hasher.update_both(ours, &mut other.hasher, theirs);
            let each = started.elapsed() / 2;
            hash.count(both, each);
            other.count(both, each);
            done += both;
            if from + both < chunk.len() {
                self.lock().push_front(Part { chunk, from: from + both });
            }
        }
        done
    }
}

impl Stage for Arc<Waiting> {
    type Output = Hashed;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        let may_wait = self.has_taker.load(Ordering::Relaxed) && self.are_processors_few();
        let most = if may_wait { WAITING_MAX } else { 0 };
        let mut chunks = self.lock();
        chunks.push_back(Part { chunk, from: 0 });
        let are_many = chunks.len() > most;
        drop(chunks);
        if are_many {
            self.catch_up(most);
        }
        Ok(())
    }

    fn finish(self) -> Result<Hashed> {
        self.catch_up(0);
        Ok(self.hash.lock().unwrap_or_else(PoisonError::into_inner).so_far())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn bytes(len: usize, seed: usize) -> Vec<u8> {
        (0..len).map(|at| u8::try_from((at * 7 + at / 251 + seed) % 256).unwrap()).collect()
    }

    fn push(stage: &mut impl Stage, bytes: &[u8]) {
        stage.push(Chunk::copy_of(bytes)).unwrap();
    }

    #[test]
    fn both_digests_are_right_however_the_bytes_come() {
        let (blob, stream) = (bytes(30_000, 1), bytes(70_001, 2));
        for (blob_piece, stream_piece) in [(1, 1000), (128, 512), (1000, 130), (4096, 70_001), (30_000, 1)] {
            let mut waiting = Waiting::new(Algorithm::Sha256, &Helpers::new(0));
            let mut hash = Hash::new(Algorithm::Sha256).beside(&waiting);
            let mut pieces = blob.chunks(blob_piece);
            for piece in stream.chunks(stream_piece) {
                for piece in pieces.by_ref().take(2) {
                    push(&mut waiting, piece);
                }
                push(&mut hash, piece);
            }
            pieces.for_each(|piece| push(&mut waiting, piece));
            let (stream_hash, blob_hash) = (hash.finish().unwrap(), waiting.finish().unwrap());
            assert_eq!((&stream_hash.digest, stream_hash.size_bytes), (&Digest::sha256(&stream), 70_001));
            assert_eq!((&blob_hash.digest, blob_hash.size_bytes), (&Digest::sha256(&blob), 30_000));
        }
    }

    #[test]
    fn digests_of_other_algorithms_are_right_too() {
        let mut waiting = Waiting::new(Algorithm::Sha512, &Helpers::new(0));
        let mut hash = Hash::new(Algorithm::Sha256).beside(&waiting);
        push(&mut waiting, &bytes(999, 1));
        push(&mut hash, &bytes(1000, 2));
        let mut alone = Hash::new(Algorithm::Sha512);
        push(&mut alone, &bytes(999, 1));
        assert_eq!(waiting.finish().unwrap().digest, alone.finish().unwrap().digest);
        assert_eq!(hash.finish().unwrap().digest, Digest::sha256(&bytes(1000, 2)));
    }

    #[test]
    fn few_chunks_wait_and_none_for_a_hash_that_is_not_there() {
        let mut waiting = Waiting::new(Algorithm::Sha256, &Helpers::new(0));
        push(&mut waiting, &[1; 100]);
        assert_eq!(waiting.lock().len(), 0, "nobody takes it along");
        let hash = Hash::new(Algorithm::Sha256).beside(&waiting);
        (0..100).for_each(|_| push(&mut waiting, &[1; 100]));
        assert_eq!(waiting.lock().len(), WAITING_MAX);
        let mut alone = Waiting::new(Algorithm::Sha256, &Helpers::new(5));
        let mut taker = Hash::new(Algorithm::Sha256).beside(&alone);
        push(&mut alone, &[1; 100]);
        push(&mut taker, &[1; 100]);
        assert_eq!(alone.lock().len(), 0, "there are processors for both");
        // Refused bytes end the stream; the blob is still hashed.
        drop(hash);
        (0..99).for_each(|_| push(&mut waiting, &[1; 100]));
        assert_eq!(waiting.finish().unwrap().digest, Digest::sha256(&[1; 20_000]));
    }

    #[test]
    fn both_are_right_on_two_threads() {
        let (blob, stream) = (bytes(300_000, 1), bytes(700_000, 2));
        let mut waiting = Waiting::new(Algorithm::Sha256, &Helpers::new(0));
        let mut hash = Hash::new(Algorithm::Sha256).beside(&waiting);
        thread::scope(|scope| {
            let taker = scope.spawn(|| {
                stream.chunks(5000).for_each(|piece| push(&mut hash, piece));
                hash.finish().unwrap().digest
            });
            blob.chunks(700).for_each(|piece| push(&mut waiting, piece));
            assert_eq!(waiting.finish().unwrap().digest, Digest::sha256(&blob));
            assert_eq!(taker.join().unwrap(), Digest::sha256(&stream));
        });
    }
}
