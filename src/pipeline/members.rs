//! Writes a blob of many gzip members or zstd frames: like [`super::encode`], but the producer says where each begins.
//!
//! ```text
//! produce ──> Members ──┬──> SHA-256 (diffID)
//!                       └──> compress each, hash its chunk ──> SHA-256 (blob) ──> deliver
//! ```
//!
//! Members are compressed on as many threads as are free. The bytes delivered do not depend on their number.

use std::{
    io::{self, Write},
    thread,
    time::{Duration, Instant},
};

use super::{
    buffer::Chunk,
    decode::StreamLimit,
    encode::{Deliver, Delivered, Delivery, Facts, Feed, Times},
    hash::Hash,
    ordered::{Ordered, Worker},
    resources::Plan,
    stage::{Placed, Stage},
};
use crate::{
    call::Phase,
    codec::encode::Compression,
    digest::{Algorithm, Digest},
    error::{Error, Kind, Result},
};

/// Bytes behind the chunk of a member after which the next one begins, wanted or not: a layer may have millions of entries
/// without data.
const MEMBER_BYTES: usize = 4 << 20;

/// A member or frame that was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Byte of the blob at which it begins.
    pub offset: u64,
    /// SHA-256 of the chunk at its start; `None` if it has none.
    pub digest: Option<Digest>,
}

/// A part of the blob behind all members of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The rest of the stream, in a member of its own.
    Member(Vec<u8>),
    /// Bytes of the blob that no decoder returns.
    Raw(Vec<u8>),
}

/// Members and what follows them, while a blob is written.
pub struct Delivering<'a> {
    /// All members, in order.
    pub members: &'a [Member],
    /// Bytes of all of them.
    pub blob_bytes: u64,
}

/// Runs `produce`, and delivers what it writes, compressed. `end` then returns what comes behind.
///
/// Errors: those of `produce`, `end`, `deliver` and the limits; `Cancelled`.
pub fn run<T>(
    plan: Plan<'_>,
    compression: Compression,
    deliver: Deliver<'_>,
    produce: impl FnOnce(&mut dyn Members) -> Result<T>,
    end: impl FnOnce(&mut T, Delivering<'_>) -> Result<Vec<Ending>>,
) -> Result<(T, Facts)> {
    plan.work.progress.begin(Phase::Transfer, None);
    let _at_work = plan.resources.helpers.begin_layer();
    thread::scope(|scope| {
        let started = Instant::now();
        let helpers = &plan.resources.helpers;
        let mut permits = helpers.take_up_to(3).into_iter();
        let encoders = Ordered::new(scope, helpers, permits.next(), "encode", Encoder(compression));
        let hash = || Hash::new(Algorithm::Sha256);
        let delivery = Delivery { deliver, hash: Some(hash()), busy: Duration::ZERO };
        let delivery = Placed::new(scope, permits.next(), "deliver", delivery)?;
        let diff_id = Placed::new(scope, permits.next(), "diff-id", hash())?;
        let mut members = Stream {
            plan,
            bytes: Vec::new(),
            chunk_bytes: 0,
            begun: 0,
            stream_bytes: 0,
            delivered: Vec::new(),
            blob_bytes: 0,
            encode: Duration::ZERO,
            pushing: Duration::ZERO,
            encoders,
            diff_id,
            delivery,
        };
        let mut output = produce(&mut members)?;
        members.ship()?;
        let produce = started.elapsed().saturating_sub(members.pushing);
        while let Some(encoded) = members.encoders.rest()? {
            members.pass_on(encoded)?;
        }
        let delivering = Delivering { members: &members.delivered, blob_bytes: members.blob_bytes };
        for ending in end(&mut output, delivering)? {
            members.end(compression, ending)?;
        }
        let Stream { diff_id, delivery, encode, .. } = members;
        let Delivered { hashed, busy } = delivery.finish()?;
        let (diff_id, blob) = (diff_id.finish()?, hashed.ok_or_else(abandoned)?);
        let times = Times { produce, diff_id: diff_id.busy, encode, blob_digest: blob.busy, deliver: busy };
        let facts = Facts {
            compression,
            diff_id: diff_id.digest,
            stream_bytes: diff_id.size_bytes,
            blob: blob.digest,
            blob_bytes: blob.size_bytes,
            times,
        };
        Ok((output, facts))
    })
}

fn abandoned() -> Error {
    Error::new(Kind::Internal, "pipeline.abandoned", "the steps have failed before")
}

/// Where a producer writes its stream, and says where members begin.
pub trait Members: Feed {
    /// Begins another member, whose first `chunk_bytes` bytes are to be hashed; returns its place in
    /// [`Delivering::members`].
    fn begin(&mut self, chunk_bytes: usize) -> Result<usize>;
}

/// Gathers what is written into members.
struct Stream<'scope, 'env, 'plan> {
    plan: Plan<'plan>,
    /// The member being filled, and how many bytes of it are its chunk.
    bytes: Vec<u8>,
    chunk_bytes: usize,
    /// Members before it.
    begun: usize,
    /// Bytes of all of them.
    stream_bytes: u64,
    delivered: Vec<Member>,
    blob_bytes: u64,
    encode: Duration,
    pushing: Duration,
    encoders: Ordered<'scope, 'env, Encoder>,
    diff_id: Placed<'scope, Hash>,
    delivery: Placed<'scope, Delivery<'env>>,
}

impl Stream<'_, '_, '_> {
    /// Hands on the member being filled, if there is anything in it.
    fn ship(&mut self) -> Result<()> {
        self.plan.work.cancel.check()?;
        if self.bytes.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let bytes = Chunk::of(std::mem::take(&mut self.bytes));
        let chunk_bytes = std::mem::take(&mut self.chunk_bytes);
        self.begun += 1;
        self.stream_bytes = self.stream_bytes.saturating_add(bytes.len() as u64);
        self.diff_id.push(bytes.clone())?;
        self.encoders.submit((bytes, chunk_bytes))?;
        while let Some(encoded) = self.encoders.due()? {
            self.pass_on(encoded)?;
        }
        self.pushing += started.elapsed();
        self.plan.work.progress.set_done(self.stream_bytes);
        Ok(())
    }

    fn pass_on(&mut self, encoded: Encoded) -> Result<()> {
        let Encoded { bytes, digest, busy } = encoded;
        self.delivered.push(Member { offset: self.blob_bytes, digest });
        self.encode += busy;
        self.deliver(bytes)
    }

    fn deliver(&mut self, bytes: Vec<u8>) -> Result<()> {
        self.blob_bytes = self.blob_bytes.saturating_add(bytes.len() as u64);
        self.delivery.push(Chunk::of(bytes))
    }

    fn end(&mut self, compression: Compression, ending: Ending) -> Result<()> {
        match ending {
            Ending::Raw(bytes) => self.deliver(bytes),
            Ending::Member(bytes) => {
                self.announce(bytes.len() as u64)?;
                let packed = compression.whole(&bytes)?;
                self.diff_id.push(Chunk::of(bytes))?;
                self.deliver(packed)
            }
        }
    }
}

impl Members for Stream<'_, '_, '_> {
    fn begin(&mut self, chunk_bytes: usize) -> Result<usize> {
        self.ship()?;
        self.chunk_bytes = chunk_bytes;
        Ok(self.begun)
    }
}

impl Write for Stream<'_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.announce(bytes.len() as u64).map_err(Error::into_io)?;
        let room = (self.chunk_bytes + MEMBER_BYTES).saturating_sub(self.bytes.len());
        if room == 0 {
            self.begin(0).map_err(Error::into_io)?;
        }
        let room = (self.chunk_bytes + MEMBER_BYTES).saturating_sub(self.bytes.len());
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.bytes.extend_from_slice(taken);
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Feed for Stream<'_, '_, '_> {
    fn announce(&self, bytes: u64) -> Result<()> {
        let limit = self.plan.resources.limits.stream_bytes;
        match self.stream_bytes.saturating_add(self.bytes.len() as u64).saturating_add(bytes) {
            total if total <= limit => Ok(()),
            _ => Err(StreamLimit::Length { limit }.into()),
        }
    }
}

/// Compresses members.
#[derive(Clone)]
struct Encoder(Compression);

/// A compressed member.
struct Encoded {
    bytes: Vec<u8>,
    digest: Option<Digest>,
    busy: Duration,
}

impl Worker for Encoder {
    /// A member, and how many bytes of it are its chunk.
    type Item = (Chunk, usize);
    type Done = Encoded;

    fn work(&self, (bytes, chunk_bytes): (Chunk, usize)) -> Result<Encoded> {
        let started = Instant::now();
        let chunk = bytes.get(..chunk_bytes).filter(|chunk| !chunk.is_empty());
        let digest = chunk.map(Digest::sha256);
        let bytes = self.0.whole(&bytes)?;
        Ok(Encoded { bytes, digest, busy: started.elapsed() })
    }
}

#[cfg(test)]
#[path = "members_tests.rs"]
mod tests;
