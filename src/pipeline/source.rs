//! The start of a pipeline: reads the blob, chooses the stages, and judges the bytes at the end.

use std::{
    io::{self, Read},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    Plan, StageTimes,
    buffer::{Chunk, Pool},
    decode::{Decode, Meter},
    hash::{Hash, Hashed},
    stage::{Both, Placed, Stage},
};
use crate::{
    call::Phase,
    codec::Coding,
    digest::{Algorithm, Digest},
    error::{Classify, Error, Kind, Result},
};

/// Compressed bytes read at a time.
const READ_BYTES: usize = 256 << 10;
/// Uncompressed bytes handed on at a time: large enough that writing them costs few calls, small enough
/// that they are still in the cache when they are hashed and written.
const STREAM_BYTES: usize = 512 << 10;
/// Blobs up to this size are done by the time a thread has started.
const SMALL_BYTES: u64 = 256 << 10;
/// Buffer for the uncompressed bytes of small blobs.
const SMALL_STREAM_BYTES: usize = 128 << 10;

/// Why a blob is not what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// Larger than any blob may be.
    #[error("the blob has {size_bytes} bytes, more than {limit}")]
    Limit {
        /// Its size, or how much of it there is at least.
        size_bytes: u64,
        /// [`Limits::blob_bytes`](crate::limits::Limits::blob_bytes).
        limit: u64,
    },
    /// The stream is longer or shorter than the descriptor says.
    #[error("the blob has {found} bytes instead of {expected}")]
    Size {
        /// The descriptor's size.
        expected: u64,
        /// How many there were; when there were too many, those read so far.
        found: u64,
    },
    /// The bytes are others than those named.
    #[error("the blob's digest is {found} instead of {expected}{}", consequence(.refused))]
    Digest {
        /// The descriptor's digest.
        expected: Digest,
        /// What the bytes give.
        found: Digest,
        /// What a decoder or parser said about these bytes.
        refused: Option<Box<Error>>,
    },
}

fn consequence(refused: &Option<Box<Error>>) -> String {
    refused.as_ref().map_or_else(String::new, |error| format!(", hence: {error}"))
}

impl Classify for BlobError {
    fn kind(&self) -> Kind {
        match self {
            Self::Limit { .. } => Kind::Exhausted,
            Self::Size { .. } | Self::Digest { .. } => Kind::DataLoss,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Limit { .. } => "limit.blob",
            Self::Size { .. } => "blob.size",
            Self::Digest { .. } => "blob.digest",
        }
    }
}

/// A blob, and what it must turn out to be.
pub struct Source<'a> {
    /// Delivers the blob; its errors are classified by [`Error::from_io`].
    pub reader: &'a mut dyn Read,
    /// The size it must have, in bytes, when that is known.
    pub size_bytes: Option<u64>,
    /// The digest it must have, when that is known.
    pub digest: Option<Digest>,
    /// How it is compressed; `None`: its first bytes tell.
    pub coding: Option<Coding>,
}

/// What came of a run.
#[derive(Debug)]
pub struct Ran<T> {
    /// What the consumer gives.
    pub output: T,
    /// What has been found out about the bytes.
    pub facts: Facts,
}

/// The digests and sizes of a layer. Those of the blob are the ones asked for, where any were.
#[derive(Clone, Debug)]
pub struct Facts {
    /// How the blob was compressed.
    pub coding: Coding,
    /// Digest of the blob.
    pub blob: Digest,
    /// Its size in bytes.
    pub blob_bytes: u64,
    /// SHA-256 of the uncompressed stream.
    pub diff_id: Digest,
    /// Its length in bytes.
    pub stream_bytes: u64,
    /// How long the steps took; those of the consumer are the caller's to fill in.
    pub times: StageTimes,
}

/// Moves the whole of `source` into `consumer`.
///
/// Errors: [`BlobError`] when the bytes are not those asked for; those of the decoder, of the consumer
/// and of the limits; `Cancelled`.
pub fn run<S: Stage>(source: Source<'_>, plan: Plan<'_>, consumer: S) -> Result<Ran<S::Output>> {
    if let Some(size_bytes) = source.size_bytes.filter(|size| *size > plan.resources.limits.blob_bytes) {
        return Err(BlobError::Limit { size_bytes, limit: plan.resources.limits.blob_bytes }.into());
    }
    let small = source.size_bytes.is_some_and(|size| size <= SMALL_BYTES);
    let mut feed = Feed::new(source, plan);
    let first = feed.read()?;
    let coding = feed.source.coding.unwrap_or_else(|| Coding::detect(first.as_deref().unwrap_or_default()));
    let algorithm = feed.source.digest.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
    // The blob's own digest is the diffID of an uncompressed blob, if it is of the right kind.
    let twice = coding != Coding::Plain || algorithm != Algorithm::Sha256;
    let (helpers, cancel) = (&feed.plan.resources.helpers, feed.plan.work.cancel);

    thread::scope(|scope| {
        let blob_hash = Hash::new(algorithm);
        if !twice {
            // Hashing takes longest here; reading is little beside it, but not nothing.
            let mut permits = helpers.take_up_to(if small { 0 } else { 2 }).into_iter();
            let consumer = Placed::new(scope, permits.next(), "build", consumer)?;
            let blob_hash = Placed::new(scope, permits.next(), "blob-digest", blob_hash)?;
            let metered = Metered { meter: Meter::new(&feed.plan.resources.limits), next: consumer };
            let (output, blob) = feed.drive(first, blob_hash, metered)?;
            let facts = Facts {
                coding,
                diff_id: blob.digest.clone(),
                stream_bytes: blob.size_bytes,
                blob: blob.digest,
                blob_bytes: blob.size_bytes,
                times: StageTimes { read: feed.reading, blob_digest: blob.busy, ..StageTimes::default() },
            };
            return Ok(Ran { output, facts });
        }
        // In the order of what helps most: decoding beside hashing and building, reading beside decoding,
        // hashing beside building.
        let mut permits = helpers.take_up_to(if small { 0 } else { 3 }).into_iter();
        let (apart, decoding, hashing) = (permits.next(), permits.next(), permits.next());
        let stream = if small { SMALL_STREAM_BYTES } else { STREAM_BYTES };
        let decoder = coding.decoder(feed.plan.resources.limits.zstd_window_bytes)?;
        let diff_id = Placed::new(scope, hashing, "diff-id", Hash::new(Algorithm::Sha256))?;
        let consume = Placed::new(scope, apart, "build", Both(diff_id, consumer))?;
        let decode = Decode::new(
            decoder,
            Pool::new(stream),
            &feed.plan.resources.limits,
            feed.plan.lease,
            cancel,
            consume,
        );
        let decode = Placed::new(scope, decoding, "decode", decode)?;
        let (((diff_id, output), decode_busy), blob) = feed.drive(first, Placed::Here(blob_hash), decode)?;
        let facts = Facts {
            coding,
            blob: blob.digest,
            blob_bytes: blob.size_bytes,
            diff_id: diff_id.digest,
            stream_bytes: diff_id.size_bytes,
            times: StageTimes {
                read: feed.reading,
                blob_digest: blob.busy,
                decode: decode_busy,
                diff_id: diff_id.busy,
                ..StageTimes::default()
            },
        };
        Ok(Ran { output, facts })
    })
}

/// Counts an uncompressed stream against its limit.
struct Metered<S> {
    meter: Meter,
    next: S,
}

impl<S: Stage> Stage for Metered<S> {
    type Output = S::Output;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        self.meter.count(chunk.len(), chunk.len())?;
        self.next.push(chunk)
    }

    fn finish(self) -> Result<S::Output> {
        self.next.finish()
    }
}

/// Reads a source buffer by buffer.
struct Feed<'s, 'p> {
    source: Source<'s>,
    plan: Plan<'p>,
    pool: Arc<Pool>,
    read_bytes: u64,
    reading: Duration,
}

impl<'s, 'p> Feed<'s, 'p> {
    fn new(source: Source<'s>, plan: Plan<'p>) -> Self {
        // One byte more than there should be shows a blob that is too long at the first look.
        let whole = source.size_bytes.and_then(|size| usize::try_from(size).ok()?.checked_add(1));
        let pool = Pool::new(whole.unwrap_or(READ_BYTES).clamp(512, READ_BYTES));
        plan.work.progress.begin(Phase::Transfer, source.size_bytes);
        Self { source, plan, pool, read_bytes: 0, reading: Duration::ZERO }
    }

    /// The next buffer, full except at the end; `None` at the end.
    fn read(&mut self) -> Result<Option<Chunk>> {
        let started = Instant::now();
        let mut buffer = self.pool.take();
        let mut filled = 0;
        while let Some(space) = buffer.space().get_mut(filled..).filter(|space| !space.is_empty()) {
            self.plan.work.cancel.check()?;
            match self.source.reader.read(space) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::from_io(error, Kind::DataLoss, "blob.read")),
            }
        }
        self.reading += started.elapsed();
        self.read_bytes = self.read_bytes.saturating_add(filled as u64);
        if let Some(expected) = self.source.size_bytes.filter(|size| self.read_bytes > *size) {
            return Err(BlobError::Size { expected, found: self.read_bytes }.into());
        }
        let limit = self.plan.resources.limits.blob_bytes;
        if self.read_bytes > limit {
            return Err(BlobError::Limit { size_bytes: self.read_bytes, limit }.into());
        }
        self.plan.work.progress.set_done(self.read_bytes);
        Ok((filled > 0).then(|| buffer.freeze(filled)))
    }

    /// Pushes everything into `hash` and `next`, and compares at the end.
    fn drive<S: Stage>(
        &mut self,
        first: Option<Chunk>,
        mut hash: Placed<'_, Hash>,
        next: S,
    ) -> Result<(S::Output, Hashed)> {
        let mut next = Ok(next);
        let mut chunk = first;
        while let Some(bytes) = chunk {
            if let Ok(stage) = &mut next
                && let Err(error) = stage.push(bytes.clone())
            {
                if error.kind() != Kind::Malformed {
                    return Err(error);
                }
                next = Err(error);
            }
            hash.push(bytes)?;
            chunk = self.read()?;
        }
        let output = match next.and_then(Stage::finish) {
            Err(error) if error.kind() != Kind::Malformed => return Err(error),
            output => output,
        };
        let blob = hash.finish()?;
        self.judge(&blob, output).map(|output| (output, blob))
    }

    /// Only the bytes that were asked for can be refused for what they are.
    fn judge<T>(&self, blob: &Hashed, output: Result<T>) -> Result<T> {
        if let Some(expected) = self.source.size_bytes.filter(|size| *size != blob.size_bytes) {
            return Err(BlobError::Size { expected, found: blob.size_bytes }.into());
        }
        match &self.source.digest {
            Some(expected) if *expected != blob.digest => Err(BlobError::Digest {
                expected: expected.clone(),
                found: blob.digest.clone(),
                refused: output.err().map(Box::new),
            }
            .into()),
            _ => output,
        }
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
