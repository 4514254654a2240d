//! Puts a run together: read → blob digest → processors* → detect → decode → diffID → consumer.
//!
//! Each arrow is a [`Stage`] that pushes into the next one. [`Feed`] hashes the bytes that the store delivers, before
//! processors change them. Behind a processor the digest of the blob is not that of the stream, so [`Detect`] gets no
//! [`Spare`].

use std::{thread, time::Duration};

use super::{
    ahead::AheadFacts,
    detect::{Detect, Manner, Spare, Streamed},
    hash::{Hashed, Waiting},
    index::IndexFile,
    processor::{Chain, Processed},
    resources::Plan,
    source::{Fed, Feed, Source},
    stage::Stage,
};
use crate::{
    codec::Coding,
    digest::{Algorithm, Digest},
    error::Result,
    format::{Sink, gzindex, ztoc::Ztoc},
};

/// A run that succeeded.
#[derive(Debug)]
pub struct Ran<T> {
    /// Output of the consumer.
    pub output: T,
    /// Digests, sizes and times.
    pub facts: Facts,
    /// Header of the index, if one was asked for and the blob is gzip.
    pub index: Option<gzindex::Header>,
}

/// Digests and sizes of a layer. Those of the blob equal the ones asked for, where any were.
#[derive(Clone, Debug)]
pub struct Facts {
    /// How the blob was compressed.
    pub coding: Coding,
    /// Digest of the blob.
    pub blob: Digest,
    /// Size of the blob in bytes.
    pub blob_bytes: u64,
    /// SHA-256 of the uncompressed stream.
    pub diff_id: Digest,
    /// Length of the uncompressed stream in bytes.
    pub stream_bytes: u64,
    /// Time of each step. The caller fills in those of the consumer.
    pub times: StageTimes,
    /// Work of helpers that decoded ahead.
    pub ahead: AheadFacts,
}

/// Time that each step of Apply was at work, without waiting for other steps. The times overlap when threads are free.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StageTimes {
    /// Reading the blob, including the wait for the store.
    pub read: Duration,
    /// Digest of the blob.
    pub blob_digest: Duration,
    /// Decompression.
    pub decode: Duration,
    /// Digest of the uncompressed stream; zero when the blob is uncompressed.
    pub diff_id: Duration,
    /// Parsing the stream and writing the image.
    pub build: Duration,
    /// Laying out the rest of the image.
    pub finish: Duration,
    /// Checking the image, read back from the file.
    pub verify: Duration,
    /// Syncing and renaming.
    pub commit: Duration,
}

impl StageTimes {
    /// Every step by its name, in the order of the work.
    pub fn steps(&self) -> [(&'static str, Duration); 8] {
        [
            ("read", self.read),
            ("blob_digest", self.blob_digest),
            ("decode", self.decode),
            ("diff_id", self.diff_id),
            ("build", self.build),
            ("finish", self.finish),
            ("verify", self.verify),
            ("commit", self.commit),
        ]
    }
}

/// A run that has not begun.
pub struct Pipeline<'s, 'p> {
    source: Source<'s>,
    plan: Plan<'p>,
    coding: Option<Coding>,
    index: Option<IndexFile<'p>>,
    chain: Option<&'s Chain>,
    ztoc: Option<&'s Ztoc<'s>>,
}

impl<'s, 'p> Pipeline<'s, 'p> {
    /// Reads `source`, whose first bytes decide how it is compressed.
    pub fn new(source: Source<'s>, plan: Plan<'p>) -> Self {
        Self { source, plan, coding: None, index: None, chain: None, ztoc: None }
    }

    /// Says how the stream is compressed instead.
    #[must_use]
    pub fn coded(self, coding: Coding) -> Self {
        Self { coding: Some(coding), ..self }
    }

    /// Writes the gzip index of the blob into `file`, which is empty, if the blob is gzip. A blob of several members is
    /// refused then. Not of what processors return.
    #[must_use]
    pub fn indexed(self, file: impl Sink + Send + 'p) -> Self {
        Self { index: Some(Box::new(file)), ..self }
    }

    /// Lets the blob go through processors first. What they return is detected or coded as set, and every limit counts it.
    #[must_use]
    pub fn through(self, chain: Option<&'s Chain>) -> Self {
        Self { chain, ..self }
    }

    /// Lets helpers start at the places that an index of the blob lists. Not in what processors return. The outcome does not
    /// depend on it.
    #[must_use]
    pub fn hinted(self, ztoc: Option<&'s Ztoc<'s>>) -> Self {
        Self { ztoc, ..self }
    }

    /// Moves the whole stream into `consumer`.
    ///
    /// Errors: [`BlobError`](super::BlobError) when the bytes are not those asked for; those of the processors, of the
    /// decoder, of the consumer and of the limits; `Cancelled`.
    pub fn run<S: Stage>(self, consumer: S) -> Result<Ran<S::Output>> {
        let Self { source, plan, coding, index, chain, ztoc } = self;
        let spare = Spare::default();
        // The blob's own digest is the diffID of an uncompressed blob, if it is of the right kind.
        let is_stream = chain.is_none() && source.algorithm() == Algorithm::Sha256;
        let whole = is_stream.then_some(&spare);
        let size_bytes = source.size_bytes;
        let ztoc = ztoc.filter(|_| chain.is_none());
        let blob = Waiting::new(source.algorithm(), &plan.resources.helpers);
        let manner =
            Manner { plan, is_small: source.is_small(), size_bytes, ztoc, coding, whole, blob: &blob };
        let _at_work = plan.resources.helpers.begin_layer();
        let feed = Feed::new(source, plan)?;
        let index = index.filter(|_| chain.is_none());
        let fed = thread::scope(|scope| {
            let detect = Detect::new(scope, manner, consumer).indexed(index);
            match chain {
                Some(chain) => feed.drive(scope, &spare, &blob, Processed::start(chain, plan, detect)?),
                None => feed.drive(scope, &spare, &blob, detect),
            }
        })?;
        Ok(fed.into_ran())
    }
}

impl<T> Fed<Streamed<T>> {
    fn into_ran(self) -> Ran<T> {
        let Self { output: Streamed { coding, output, diff_id, decode, ahead, index }, blob, reading } = self;
        let times = StageTimes {
            read: reading,
            blob_digest: blob.busy,
            decode,
            diff_id: diff_id.as_ref().map_or(Duration::ZERO, |hashed| hashed.busy),
            ..StageTimes::default()
        };
        let Hashed { digest, size_bytes, .. } = diff_id.unwrap_or_else(|| blob.clone());
        let facts = Facts {
            coding,
            blob: blob.digest,
            blob_bytes: blob.size_bytes,
            diff_id: digest,
            stream_bytes: size_bytes,
            times,
            ahead,
        };
        Ran { output, facts, index }
    }
}

#[cfg(test)]
#[path = "builder_tests.rs"]
mod tests;
