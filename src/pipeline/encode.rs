//! Writes a blob: a stream that is produced here is hashed, compressed, hashed again and delivered.
//!
//! ```text
//! produce ──> Feed ──┬──> SHA-256 (diffID)
//!                    └──> compress ──> SHA-256 (blob) ──> deliver
//! ```
//!
//! The producer runs on the caller's thread. The other steps run on threads of their own, and compression on as many
//! as there are free helpers; the bytes delivered do not depend on their number. A stream of one block needs no thread
//! but the caller's. Nothing is published here: the caller does that, with the digests that [`run`] returns.

use std::{
    io::{self, Write},
    sync::Arc,
    thread::{self, Scope},
    time::{Duration, Instant},
};

use super::{
    blocks::Blocks,
    buffer::{Buffer, Chunk, Pool},
    decode::StreamLimit,
    hash::{Hash, Hashed},
    resources::Plan,
    stage::{Placed, Stage},
};
use crate::{
    call::Phase,
    codec::{Coding, encode::Compression},
    digest::{Algorithm, Digest},
    error::{Error, Kind, Result},
};

/// Receives the blob, piece by piece.
pub type Deliver<'a> = &'a mut (dyn FnMut(&[u8]) -> Result<()> + Send);

/// Digests and sizes of a blob that was written.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Compression of the blob.
    pub compression: Compression,
    /// SHA-256 of the uncompressed stream.
    pub diff_id: Digest,
    /// Length of the uncompressed stream in bytes.
    pub stream_bytes: u64,
    /// SHA-256 of the blob.
    pub blob: Digest,
    /// Size of the blob in bytes.
    pub blob_bytes: u64,
    /// Time of each step.
    pub times: Times,
}

/// Time that each step was at work, without waiting for other steps. The times overlap when threads are free.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    /// Producing the stream: reading the layers, comparing them, writing headers.
    pub produce: Duration,
    /// Digest of the uncompressed stream.
    pub diff_id: Duration,
    /// Compression, summed over all threads.
    pub encode: Duration,
    /// Digest of the blob; zero when it is uncompressed.
    pub blob_digest: Duration,
    /// Delivering the blob, including the wait for the store.
    pub deliver: Duration,
}

/// Where a producer writes its stream.
///
/// An error of [`Write`] carries a classified error, which [`Error::from_io`] unpacks. The producer returns it and
/// writes no more.
pub trait Feed: Write {
    /// Announces `bytes` more, so that a file that is too large is refused before its first byte. Errors: the stream
    /// would become longer than its limit.
    fn announce(&self, bytes: u64) -> Result<()>;
}

/// Runs `produce`, and delivers what it writes, compressed.
///
/// Errors: those of `produce`, of `deliver` and of the limits; `Cancelled`. After an error, `deliver` may have received
/// part of a blob.
pub fn run<T>(
    plan: Plan<'_>,
    compression: Compression,
    deliver: Deliver<'_>,
    produce: impl FnOnce(&mut dyn Feed) -> Result<T>,
) -> Result<(T, Facts)> {
    plan.work.progress.begin(Phase::Transfer, None);
    let _at_work = plan.resources.helpers.begin_layer();
    thread::scope(|scope| {
        let started = Instant::now();
        let mut stream = Stream {
            scope,
            compression,
            pool: Pool::new(compression.block_bytes()),
            buffer: None,
            filled: 0,
            shipped_bytes: 0,
            pushing: Duration::ZERO,
            delivery: Some(Delivery { deliver, hash: None, busy: Duration::ZERO }),
            steps: None,
            plan,
        };
        let output = produce(&mut stream)?;
        let produce = started.elapsed().saturating_sub(stream.pushing);
        let mut facts = stream.finish()?;
        facts.times.produce = produce;
        Ok((output, facts))
    })
}

/// Gathers what is written into blocks.
struct Stream<'scope, 'env, 'plan> {
    scope: &'scope Scope<'scope, 'env>,
    plan: Plan<'plan>,
    compression: Compression,
    pool: Arc<Pool>,
    /// The block being filled; its first `filled` bytes are.
    buffer: Option<Buffer>,
    filled: usize,
    /// Bytes of all blocks before it.
    shipped_bytes: u64,
    /// Time spent in the steps that run on this thread, and in waiting for the others.
    pushing: Duration,
    /// Waits for the steps, which are set up when the first block is full or the stream has ended.
    delivery: Option<Delivery<'env>>,
    steps: Option<Steps<'scope, 'env>>,
}

/// The steps after the producer.
struct Steps<'scope, 'env> {
    diff_id: Placed<'scope, Hash>,
    rest: Rest<'scope, 'env>,
}

/// The way from the stream to the blob.
enum Rest<'scope, 'env> {
    /// The stream is the blob.
    Plain(Box<Placed<'scope, Delivery<'env>>>),
    /// The stream is compressed.
    Coded(Box<Blocks<'scope, 'env, Placed<'scope, Delivery<'env>>>>),
}

impl<'scope, 'env> Stream<'scope, 'env, '_> {
    /// Takes as much of `bytes` as the block has room for.
    fn take(&mut self, bytes: &[u8]) -> Result<usize> {
        if self.filled == self.compression.block_bytes() {
            self.ship(true)?;
        }
        let buffer = self.buffer.get_or_insert_with(|| self.pool.take());
        let space = buffer.space().get_mut(self.filled..).unwrap_or_default();
        let len = bytes.len().min(space.len());
        if let (Some(space), Some(bytes)) = (space.get_mut(..len), bytes.get(..len)) {
            space.copy_from_slice(bytes);
        }
        self.filled += len;
        Ok(len)
    }

    /// Hands the block on; `more` blocks follow, or this is the last one.
    fn ship(&mut self, more: bool) -> Result<()> {
        self.plan.work.cancel.check()?;
        self.announce(0)?;
        let Some(buffer) = self.buffer.take() else { return Ok(()) };
        let started = Instant::now();
        let chunk = buffer.freeze(std::mem::take(&mut self.filled));
        self.shipped_bytes = self.shipped_bytes.saturating_add(chunk.len() as u64);
        self.steps(more)?.push(chunk)?;
        self.pushing += started.elapsed();
        self.plan.work.progress.set_done(self.shipped_bytes);
        Ok(())
    }

    /// The steps. The first call sets them up, on threads of their own when the stream is `large`.
    fn steps(&mut self, large: bool) -> Result<&mut Steps<'scope, 'env>> {
        if let Some(delivery) = self.delivery.take() {
            self.steps = Some(self.set_up(delivery, large)?);
        }
        self.steps.as_mut().ok_or_else(abandoned)
    }

    fn set_up(&self, mut delivery: Delivery<'env>, large: bool) -> Result<Steps<'scope, 'env>> {
        let (scope, helpers) = (self.scope, &self.plan.resources.helpers);
        let hash = || Hash::new(Algorithm::Sha256);
        let is_plain = self.compression.coding() == Coding::Plain;
        let wanted = match (large, is_plain) {
            (false, _) => 0,
            (true, true) => 2,
            (true, false) => 3,
        };
        // In the order of what helps most: compression takes far longer than all the rest, a store may be slow, and
        // hashing runs at gigabytes a second.
        let mut permits = helpers.take_up_to(wanted).into_iter();
        let compressing = if is_plain { None } else { permits.next() };
        delivery.hash = if is_plain { None } else { Some(hash()) };
        let delivery = Placed::new(scope, permits.next(), "deliver", delivery)?;
        let diff_id = Placed::new(scope, permits.next(), "diff-id", hash())?;
        let rest = if is_plain {
            Rest::Plain(Box::new(delivery))
        } else {
            Rest::Coded(Box::new(Blocks::new(scope, helpers, compressing, self.compression, delivery)))
        };
        Ok(Steps { diff_id, rest })
    }

    /// Ends the stream.
    fn finish(mut self) -> Result<Facts> {
        self.ship(false)?;
        self.steps(false)?;
        let Steps { diff_id, rest } = self.steps.ok_or_else(abandoned)?;
        let (delivered, encode) = match rest {
            Rest::Plain(delivery) => (delivery.finish()?, Duration::ZERO),
            Rest::Coded(blocks) => blocks.finish()?,
        };
        let diff_id = diff_id.finish()?;
        let (blob, blob_digest) = match delivered.hashed {
            Some(blob) => ((blob.digest, blob.size_bytes), blob.busy),
            None => ((diff_id.digest.clone(), diff_id.size_bytes), Duration::ZERO),
        };
        Ok(Facts {
            compression: self.compression,
            diff_id: diff_id.digest,
            stream_bytes: diff_id.size_bytes,
            blob: blob.0,
            blob_bytes: blob.1,
            times: Times {
                produce: Duration::ZERO,
                diff_id: diff_id.busy,
                encode,
                blob_digest,
                deliver: delivered.busy,
            },
        })
    }
}

impl Steps<'_, '_> {
    fn push(&mut self, chunk: Chunk) -> Result<()> {
        self.diff_id.push(chunk.clone())?;
        match &mut self.rest {
            Rest::Plain(delivery) => delivery.push(chunk),
            Rest::Coded(blocks) => blocks.push(chunk),
        }
    }
}

fn abandoned() -> Error {
    Error::new(Kind::Internal, "pipeline.abandoned", "the steps have failed before")
}

impl Write for Stream<'_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.take(bytes).map_err(Error::into_io)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Feed for Stream<'_, '_, '_> {
    fn announce(&self, bytes: u64) -> Result<()> {
        let limit = self.plan.resources.limits.stream_bytes;
        match self.shipped_bytes.saturating_add(self.filled as u64).saturating_add(bytes) {
            total if total <= limit => Ok(()),
            _ => Err(StreamLimit::Length { limit }.into()),
        }
    }
}

/// Hashes the blob, unless it is the stream itself, and hands it out.
pub(super) struct Delivery<'env> {
    pub(super) deliver: Deliver<'env>,
    pub(super) hash: Option<Hash>,
    pub(super) busy: Duration,
}

pub(super) struct Delivered {
    pub(super) hashed: Option<Hashed>,
    pub(super) busy: Duration,
}

impl Stage for Delivery<'_> {
    type Output = Delivered;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        if let Some(hash) = &mut self.hash {
            hash.push(chunk.clone())?;
        }
        let started = Instant::now();
        let outcome = (self.deliver)(&chunk);
        self.busy += started.elapsed();
        outcome
    }

    fn finish(self) -> Result<Delivered> {
        Ok(Delivered { hashed: self.hash.map(Stage::finish).transpose()?, busy: self.busy })
    }
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
