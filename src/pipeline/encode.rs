//! The other direction: a stream that is produced here is hashed, compressed, hashed again and delivered.
//!
//! ```text
//! produce ──> Feed ──┬──> SHA-256 (diffID)
//!                    └──> compress ──> SHA-256 (blob) ──> deliver
//! ```
//!
//! The producer runs on the caller's thread; the other steps, and as many threads that compress as there are
//! free helpers, on threads of their own. What is delivered does not depend on how many there were. A stream
//! of one block needs no thread but the caller's. Nothing is published here: that is for the caller, who has
//! the digests when [`run`] returns.

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
    stage::{Helpers, Placed, Stage},
};
use crate::{
    call::Cancel,
    codec::{Coding, encode::Compression},
    digest::{Algorithm, Digest},
    error::{Error, Kind, Result},
    limits::Limits,
};

/// What a run may use.
pub struct Plan<'a> {
    /// Threads.
    pub helpers: &'a Arc<Helpers>,
    /// Bounds.
    pub limits: &'a Limits,
    /// Looked at once a block.
    pub cancel: &'a Cancel,
    /// Called once a block, on the caller's thread, with the uncompressed bytes so far.
    pub progress: &'a mut dyn FnMut(u64),
}

/// Takes the blob, piece by piece.
pub type Deliver<'a> = &'a mut (dyn FnMut(&[u8]) -> Result<()> + Send);

/// The digests and sizes of a blob that was written.
#[derive(Clone, Debug)]
pub struct Facts {
    /// How it is compressed.
    pub compression: Compression,
    /// SHA-256 of the uncompressed stream.
    pub diff_id: Digest,
    /// Its length in bytes.
    pub stream_bytes: u64,
    /// SHA-256 of the blob.
    pub blob: Digest,
    /// Its size in bytes.
    pub blob_bytes: u64,
    /// How long the steps took.
    pub times: Times,
}

/// Seconds that each step was at work, waiting not counted. They overlap when threads are free.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    /// Producing the stream: reading the layers, comparing them, writing headers.
    pub produce: Duration,
    /// Digest of the uncompressed stream.
    pub diff_id: Duration,
    /// Compression, the sum over all threads.
    pub encode: Duration,
    /// Digest of the blob; zero when it is uncompressed.
    pub blob_digest: Duration,
    /// Delivering the blob, waiting for the store included.
    pub deliver: Duration,
}

/// Where a producer writes its stream.
///
/// Errors of [`Write`] carry a classified error, which [`Error::from_io`] unpacks. After one the producer
/// ends.
pub trait Feed: Write {
    /// Says that `bytes` more are coming. Errors: the limit on the stream would be passed; so a file that is
    /// too large is refused before its first byte.
    fn announce(&self, bytes: u64) -> Result<()>;
}

/// Runs `produce`, and delivers what it writes, compressed.
///
/// Errors: those of `produce`, of `deliver` and of the limits; `Cancelled`. `deliver` has seen part of a blob
/// then.
pub fn run<T>(
    plan: Plan<'_>,
    compression: Compression,
    deliver: Deliver<'_>,
    produce: impl FnOnce(&mut dyn Feed) -> Result<T>,
) -> Result<(T, Facts)> {
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
            steps: Steps::Later(Some(Delivery { deliver, hash: None, busy: Duration::ZERO })),
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
    /// The block being filled, and how far it is.
    buffer: Option<Buffer>,
    filled: usize,
    /// Bytes of the blocks before it.
    shipped_bytes: u64,
    /// Time spent in the steps that run on this thread, and in waiting for the others.
    pushing: Duration,
    steps: Steps<'scope, 'env>,
}

/// The steps after the producer.
enum Steps<'scope, 'env> {
    /// Not set up before the first block is full; `None` only while that is done.
    Later(Option<Delivery<'env>>),
    /// The blob is the stream.
    Plain { diff_id: Placed<'scope, Hash>, delivery: Placed<'scope, Delivery<'env>> },
    /// The blob is compressed.
    Coded { diff_id: Placed<'scope, Hash>, blocks: Box<Blocks<'scope, 'env, Placed<'scope, Delivery<'env>>>> },
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

    /// Hands the block on. `more` tells that it is not the last one.
    fn ship(&mut self, more: bool) -> Result<()> {
        self.plan.cancel.check()?;
        self.announce(0)?;
        let Some(buffer) = self.buffer.take() else { return Ok(()) };
        let started = Instant::now();
        let chunk = buffer.freeze(std::mem::take(&mut self.filled));
        self.shipped_bytes = self.shipped_bytes.saturating_add(chunk.len() as u64);
        self.set_up(more)?;
        self.steps.push(chunk)?;
        self.pushing += started.elapsed();
        (self.plan.progress)(self.shipped_bytes);
        Ok(())
    }

    /// Sets the steps up, on threads of their own when there is enough to do.
    fn set_up(&mut self, large: bool) -> Result<()> {
        let Steps::Later(delivery) = &mut self.steps else { return Ok(()) };
        let Some(mut delivery) = delivery.take() else {
            return Err(Error::new(Kind::Internal, "pipeline.abandoned", "the steps have failed before"));
        };
        let (scope, helpers) = (self.scope, self.plan.helpers);
        let hash = || Hash::new(Algorithm::Sha256);
        let is_plain = self.compression.coding() == Coding::Plain;
        let wanted = if is_plain { 2 } else { 3 };
        let mut permits = helpers.take_up_to(if large { wanted } else { 0 }).into_iter();
        // In the order of what helps most.
        let compressing = if is_plain { None } else { permits.next() };
        delivery.hash = if is_plain { None } else { Some(hash()) };
        let delivery = Placed::new(scope, permits.next(), "deliver", delivery)?;
        let diff_id = Placed::new(scope, permits.next(), "diff-id", hash())?;
        self.steps = if is_plain {
            Steps::Plain { diff_id, delivery }
        } else {
            let blocks = Blocks::new(scope, helpers, compressing, self.compression, delivery);
            Steps::Coded { diff_id, blocks: Box::new(blocks) }
        };
        Ok(())
    }

    /// Ends the stream.
    fn finish(mut self) -> Result<Facts> {
        self.ship(false)?;
        self.set_up(false)?;
        let (diff_id, delivered, encode) = self.steps.finish()?;
        let (blob, blob_digest) = match delivered.hashed {
            Some(hashed) => ((hashed.digest, hashed.size_bytes), hashed.busy),
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
        let limit = self.plan.limits.stream_bytes;
        match self.shipped_bytes.saturating_add(self.filled as u64).saturating_add(bytes) {
            total if total <= limit => Ok(()),
            _ => Err(StreamLimit::Length { limit }.into()),
        }
    }
}

impl Steps<'_, '_> {
    fn push(&mut self, chunk: Chunk) -> Result<()> {
        match self {
            Self::Later(_) => Ok(()),
            Self::Plain { diff_id, delivery } => {
                diff_id.push(chunk.clone())?;
                delivery.push(chunk)
            }
            Self::Coded { diff_id, blocks } => {
                diff_id.push(chunk.clone())?;
                blocks.push(chunk)
            }
        }
    }

    fn finish(self) -> Result<(Hashed, Delivered, Duration)> {
        match self {
            Self::Later(_) => Err(Error::new(Kind::Internal, "pipeline.abandoned", "no step was set up")),
            Self::Plain { diff_id, delivery } => {
                let delivered = delivery.finish()?;
                Ok((diff_id.finish()?, delivered, Duration::ZERO))
            }
            Self::Coded { diff_id, blocks } => {
                let (delivered, encode) = blocks.finish()?;
                Ok((diff_id.finish()?, delivered, encode))
            }
        }
    }
}

/// Hashes the blob, unless it is the stream itself, and hands it out.
struct Delivery<'env> {
    deliver: Deliver<'env>,
    hash: Option<Hash>,
    busy: Duration,
}

struct Delivered {
    hashed: Option<Hashed>,
    busy: Duration,
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
