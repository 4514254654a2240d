//! The first half of a run: reads the blob, hashes it, and judges the bytes at the end.

use std::{
    io::{self, Read},
    sync::Arc,
    thread::Scope,
    time::{Duration, Instant},
};

use super::{
    buffer::{Chunk, Pool},
    detect::Spare,
    hash::{Hashed, Waiting},
    resources::Plan,
    stage::{Placed, Stage},
};
use crate::{
    call::Phase,
    digest::{Algorithm, Digest},
    error::{Classify, Error, Kind, Result},
};

/// Bytes of the blob read at a time.
const READ_BYTES: usize = 256 << 10;
/// Largest blob that is worked on by the caller's thread alone: it is done by the time another has started.
const SMALL_BYTES: u64 = 256 << 10;

/// Why a blob is not what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// Larger than any blob may be.
    #[error("the blob has {size_bytes} bytes, more than {limit}")]
    Limit {
        /// Size of the blob in bytes, or the bytes read so far when the size was not known.
        size_bytes: u64,
        /// [`Limits::blob_bytes`](crate::limits::Limits::blob_bytes).
        limit: u64,
    },
    /// The stream is longer or shorter than the descriptor says.
    #[error("the blob has {found} bytes instead of {expected}")]
    Size {
        /// The descriptor's size.
        expected: u64,
        /// Bytes that the store delivered; when there were too many, those read so far.
        found: u64,
    },
    /// The bytes are not those that the digest names.
    #[error("the blob's digest is {found} instead of {expected}{}", consequence(.refused))]
    Digest {
        /// The descriptor's digest.
        expected: Digest,
        /// Digest of the bytes.
        found: Digest,
        /// The error of a decoder or parser that refused these bytes.
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
}

impl Source<'_> {
    /// Whether starting a thread is not worth it.
    pub(super) fn is_small(&self) -> bool {
        self.size_bytes.is_some_and(|size| size <= SMALL_BYTES)
    }

    /// The algorithm of the digest that is computed of the blob.
    pub(super) fn algorithm(&self) -> Algorithm {
        self.digest.as_ref().map_or(Algorithm::Sha256, Digest::algorithm)
    }
}

/// Reads a source buffer by buffer.
pub(super) struct Feed<'s, 'p> {
    source: Source<'s>,
    plan: Plan<'p>,
    pool: Arc<Pool>,
    read_bytes: u64,
    reading: Duration,
}

/// A blob that was read and is the one asked for.
#[derive(Debug)]
pub(super) struct Fed<T> {
    /// Output of the stage behind.
    pub(super) output: T,
    pub(super) blob: Hashed,
    /// Time spent reading.
    pub(super) reading: Duration,
}

impl<'s, 'p> Feed<'s, 'p> {
    /// Errors: the blob is larger than any may be.
    pub(super) fn new(source: Source<'s>, plan: Plan<'p>) -> Result<Self> {
        let limit = plan.resources.limits.blob_bytes;
        if let Some(size_bytes) = source.size_bytes.filter(|size| *size > limit) {
            return Err(BlobError::Limit { size_bytes, limit }.into());
        }
        // One byte more than there should be shows a blob that is too long at the first look.
        let whole = source.size_bytes.and_then(|size| usize::try_from(size).ok()?.checked_add(1));
        let pool = Pool::new(whole.unwrap_or(READ_BYTES).clamp(512, READ_BYTES));
        plan.work.progress.begin(Phase::Transfer, source.size_bytes);
        Ok(Self { source, plan, pool, read_bytes: 0, reading: Duration::ZERO })
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

    /// Pushes everything into `next`, and into `hash`, which is on a thread in `scope` once `spare` holds a permit for one.
    /// Compares at the end.
    pub(super) fn drive<'scope, S: Stage>(
        mut self,
        scope: &'scope Scope<'scope, '_>,
        spare: &Spare,
        hash: &Arc<Waiting>,
        next: S,
    ) -> Result<Fed<S::Output>> {
        let mut next = Ok(next);
        let mut hash = Placed::Here(Arc::clone(hash));
        while let Some(bytes) = self.read()? {
            if let Ok(stage) = &mut next
                && let Err(error) = stage.push(bytes.clone())
            {
                if error.kind() != Kind::Malformed {
                    return Err(error);
                }
                next = Err(error);
            }
            if let Some(permit) = spare.take() {
                hash = hash.apart(scope, permit, "blob-digest")?;
            }
            hash.push(bytes)?;
        }
        let output = match next.and_then(Stage::finish) {
            Err(error) if error.kind() != Kind::Malformed => return Err(error),
            output => output,
        };
        let blob = hash.finish()?;
        self.judge(&blob, output).map(|output| Fed { output, blob, reading: self.reading })
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
