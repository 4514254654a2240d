//! The second half of a run: detects the coding of the bytes that reach it, decodes them, hashes and hands on the
//! stream.
//!
//! Steps before it may have changed the blob. So the coding is detected here, on the first bytes that come, and the
//! stages behind are set up only then.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread::Scope,
    time::Duration,
};

use super::{
    ahead::{Ahead, AheadFacts, AheadPlan, Hired},
    buffer::{Chunk, Pool},
    decode::{Decode, Decoded, Meter},
    hash::{Hash, Hashed, Waiting},
    helpers::Permit,
    index::{IndexFile, Indexing},
    resources::Plan,
    stage::{Both, Placed, Stage},
};
use crate::{
    codec::Coding,
    digest::Algorithm,
    error::{Error, Kind, Result},
    format::{gzindex::Header, ztoc::Ztoc},
};

/// Uncompressed bytes handed on at a time: large enough that writing them costs few calls, small enough
/// that they are still in the cache when they are hashed and written.
const STREAM_BYTES: usize = 512 << 10;
/// Buffer for the uncompressed bytes of small blobs.
const SMALL_STREAM_BYTES: usize = 128 << 10;

/// A permit that a stream has no use for, because the digest of the blob is that of the stream. The digest's thread
/// gets it.
#[derive(Debug, Default)]
pub(super) struct Spare(Mutex<Option<Permit>>);

impl Spare {
    pub(super) fn take(&self) -> Option<Permit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, permit: Option<Permit>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = permit;
    }
}

/// How a stream is taken in.
#[derive(Clone, Copy)]
pub(super) struct Manner<'env> {
    /// Threads, memory, limits.
    pub(super) plan: Plan<'env>,
    /// The blob is so short that starting a thread is not worth it.
    pub(super) is_small: bool,
    /// Size of the blob in bytes, if it is known. It decides whether helpers decode ahead.
    pub(super) size_bytes: Option<u64>,
    /// Index of the stream, for helpers.
    pub(super) ztoc: Option<&'env Ztoc<'env>>,
    /// The compression; `None` detects it.
    pub(super) coding: Option<Coding>,
    /// Set when the bytes are a whole blob whose SHA-256 is computed before this stage: a plain stream is not hashed
    /// again then, and leaves the permit for hashing here.
    pub(super) whole: Option<&'env Spare>,
    /// The hash of the blob, which the hash of the stream takes along.
    pub(super) blob: &'env Arc<Waiting>,
}

/// Takes in a stream, compressed or not, and pushes it into a consumer, uncompressed.
pub(super) struct Detect<'scope, 'env, S: Stage + 'scope> {
    scope: &'scope Scope<'scope, 'env>,
    manner: Manner<'env>,
    /// Until the coding is known.
    consumer: Option<S>,
    /// Where an index goes, if the stream turns out to be gzip.
    index: Option<IndexFile<'env>>,
    head: Vec<Chunk>,
    /// From then on.
    rest: Option<Rest<'scope, 'env, S>>,
}

/// The stages behind the detection.
struct Rest<'scope, 'env, S: Stage + 'scope> {
    coding: Coding,
    way: Way<'scope, 'env, S>,
}

enum Way<'scope, 'env, S: Stage + 'scope> {
    /// Uncompressed, and the digest of the blob is the diffID.
    Plain(Metered<Placed<'scope, S>>),
    /// Everything else; uncompressed bytes go through a decoder that changes nothing.
    Decoded(Box<Placed<'scope, Decode<'scope, 'env, Placed<'scope, Hashing<'scope, S>>>>>),
    /// gzip or zstd, with helpers that decode ahead.
    Ahead(Box<Ahead<'scope, (Hashed, S::Output)>>),
}

/// The consumer, and the diffID beside it.
type Hashing<'scope, S> = Both<Placed<'scope, Hash>, S>;

/// A stream that was taken in whole.
#[derive(Debug)]
pub(super) struct Streamed<T> {
    pub(super) coding: Coding,
    /// Output of the consumer.
    pub(super) output: T,
    /// `None`: the digest of the blob is that of the stream.
    pub(super) diff_id: Option<Hashed>,
    /// Time spent decoding.
    pub(super) decode: Duration,
    /// Work of helpers that was used.
    pub(super) ahead: AheadFacts,
    /// Header of the index, if one was asked for and the stream is gzip.
    pub(super) index: Option<Header>,
}

impl<T> Streamed<T> {
    fn of(coding: Coding, decoded: Decoded<(Hashed, T)>) -> Self {
        let Decoded { output: (diff_id, output), busy, ahead, index } = decoded;
        Self { coding, output, diff_id: Some(diff_id), decode: busy, ahead, index }
    }
}

impl<'scope, 'env, S: Stage + 'scope> Detect<'scope, 'env, S> {
    /// A stage before `consumer`, whose threads live in `scope`.
    pub(super) fn new(scope: &'scope Scope<'scope, 'env>, manner: Manner<'env>, consumer: S) -> Self {
        Self { scope, manner, consumer: Some(consumer), index: None, head: Vec::new(), rest: None }
    }

    /// Indexes the stream, if it is gzip.
    pub(super) fn indexed(self, index: Option<IndexFile<'env>>) -> Self {
        Self { index, ..self }
    }

    /// Sets up the stages behind, and pushes what has come so far.
    fn begin(&mut self) -> Result<&mut Rest<'scope, 'env, S>> {
        let head = std::mem::take(&mut self.head);
        let consumer = self.consumer.take().ok_or_else(abandoned)?;
        let coding = self.manner.coding.unwrap_or_else(|| {
            let prefix: Vec<u8> =
                head.iter().flat_map(|chunk| chunk.iter()).copied().take(Coding::PREFIX_LEN).collect();
            Coding::detect(&prefix)
        });
        let Manner { plan, size_bytes, ztoc, .. } = self.manner;
        let ahead = plan.resources.ahead.plan(size_bytes, coding, head.iter().map(|chunk| &**chunk), ztoc);
        let way = self.set_up(coding, ahead, consumer)?;
        let rest = self.rest.insert(Rest { coding, way });
        head.into_iter().try_for_each(|chunk| rest.push(chunk))?;
        Ok(rest)
    }

    fn set_up(
        &mut self,
        coding: Coding,
        ahead: Option<AheadPlan<'env>>,
        consumer: S,
    ) -> Result<Way<'scope, 'env, S>> {
        let (scope, Manner { plan, is_small, whole, blob, .. }) = (self.scope, self.manner);
        let limits = &plan.resources.limits;
        let permits = |wanted| plan.resources.helpers.take_up_to(if is_small { 0 } else { wanted });
        if let (Coding::Plain, Some(spare)) = (coding, whole) {
            // Hashing takes longest here; reading is little beside it, but not nothing.
            let mut permits = permits(2).into_iter();
            let consumer = Placed::new(scope, permits.next(), "build", consumer)?;
            spare.put(permits.next());
            return Ok(Way::Plain(Metered { meter: Meter::new(limits), next: consumer }));
        }
        // In the order of what helps most: decoding beside hashing and building, reading beside decoding,
        // hashing beside building.
        let index = self.index.take().filter(|_| coding == Coding::Gzip);
        // The windows of an index take longer than hashing, and where they are compressed on the decoder's thread, they
        // keep it from decoding.
        let mut permits = permits(if index.is_some() { 4 } else { 3 }).into_iter();
        let (apart, decoding) = (permits.next(), permits.next());
        let indexing = if index.is_some() { permits.next() } else { None };
        let hashing = permits.next();
        let stream = if is_small { SMALL_STREAM_BYTES } else { STREAM_BYTES };
        let diff_id = Placed::new(scope, hashing, "diff-id", Hash::new(Algorithm::Sha256).beside(blob))?;
        let consume = Placed::new(scope, apart, "build", Both(diff_id, consumer))?;
        let pool = Pool::new(stream);
        let decoding = match (decoding, ahead) {
            // An index lists every block, and helpers give out pieces of many.
            (Some(permit), Some(ahead)) if index.is_none() => {
                let hired = Hired::as_many_as_there_are(plan);
                if !hired.is_empty() {
                    let ahead = Ahead::new(scope, ahead, permit, hired, pool, plan, consume)?;
                    return Ok(Way::Ahead(Box::new(ahead)));
                }
                Some(permit)
            }
            (decoding, _) => decoding,
        };
        let decoder = coding.decoder(limits.zstd_window_bytes)?;
        let mut decode = Decode::new(decoder, pool, plan, consume);
        if let Some(index) = index {
            let indexing = Indexing::new(scope, &plan.resources.helpers, indexing, index);
            decode = decode.indexed(indexing);
        }
        Ok(Way::Decoded(Box::new(Placed::new(scope, decoding, "decode", decode)?)))
    }
}

impl<'scope, S: Stage + 'scope> Stage for Detect<'scope, '_, S> {
    type Output = Streamed<S::Output>;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        if let Some(rest) = &mut self.rest {
            return rest.push(chunk);
        }
        self.head.push(chunk);
        let len: usize = self.head.iter().map(|chunk| chunk.len()).sum();
        if self.manner.coding.is_some() || len >= Coding::PREFIX_LEN {
            self.begin()?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Self::Output> {
        if self.rest.is_none() {
            self.begin()?;
        }
        let Rest { coding, way } = self.rest.ok_or_else(abandoned)?;
        Ok(match way {
            Way::Plain(plain) => {
                let (output, ahead) = (plain.finish()?, AheadFacts::default());
                Streamed { coding, output, diff_id: None, decode: Duration::ZERO, ahead, index: None }
            }
            Way::Decoded(decoded) => Streamed::of(coding, decoded.finish()?),
            Way::Ahead(decoded) => Streamed::of(coding, decoded.finish()?),
        })
    }
}

impl<'scope, S: Stage + 'scope> Rest<'scope, '_, S> {
    fn push(&mut self, chunk: Chunk) -> Result<()> {
        match &mut self.way {
            Way::Plain(plain) => plain.push(chunk),
            Way::Decoded(decoded) => decoded.push(chunk),
            Way::Ahead(decoded) => decoded.push(chunk),
        }
    }
}

fn abandoned() -> Error {
    Error::new(Kind::Internal, "pipeline.abandoned", "the steps have failed before")
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
