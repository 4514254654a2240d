//! Decompresses, within limits on the output.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    ahead::AheadFacts,
    budget::Use,
    buffer::{Buffer, Chunk, Pool},
    index::Indexing,
    resources::Plan,
    stage::Stage,
};
use crate::{
    codec::{BLOCKS_MAX, Decoder},
    error::{Classify, Kind, Result},
    format::gzindex::Header,
    limits::Limits,
};

/// Output up to this many bytes is never refused for its ratio.
// A file of zeros is legal at any ratio, and up to here it costs little.
const EXPANSION_FROM: u64 = 1 << 30;
/// Bytes of output between two looks at the ratio.
const EXPANSION_EVERY: u64 = 64 << 20;

/// Why a stream is too large.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamLimit {
    /// More uncompressed bytes than allowed, those in holes of sparse files included.
    #[error("the uncompressed stream, holes of its files included, is longer than {limit} bytes")]
    Length {
        /// [`Limits::stream_bytes`].
        limit: u64,
    },
    /// Too many uncompressed bytes for so few compressed ones.
    #[error("{compressed} compressed bytes became {uncompressed}, more than {ratio} times as many")]
    Expansion {
        /// Compressed bytes so far.
        compressed: u64,
        /// Uncompressed bytes so far.
        uncompressed: u64,
        /// [`Limits::expansion_ratio`].
        ratio: u64,
    },
}

impl Classify for StreamLimit {
    fn kind(&self) -> Kind {
        Kind::Exhausted
    }
    fn reason(&self) -> &'static str {
        match self {
            Self::Length { .. } => "limit.stream",
            Self::Expansion { .. } => "limit.expansion",
        }
    }
}

/// Counts a stream against its limits.
#[derive(Debug)]
pub struct Meter {
    compressed: u64,
    uncompressed: u64,
    next_look: u64,
    stream_bytes: u64,
    ratio: u64,
}

impl Meter {
    /// Nothing was counted yet.
    pub fn new(limits: &Limits) -> Self {
        Self {
            compressed: 0,
            uncompressed: 0,
            next_look: EXPANSION_FROM,
            stream_bytes: limits.stream_bytes,
            ratio: limits.expansion_ratio,
        }
    }

    /// Adds one step: `compressed` bytes became `uncompressed` bytes.
    pub fn count(&mut self, compressed: usize, uncompressed: usize) -> Result<(), StreamLimit> {
        self.compressed = self.compressed.saturating_add(compressed as u64);
        self.uncompressed = self.uncompressed.saturating_add(uncompressed as u64);
        if self.uncompressed > self.stream_bytes {
            return Err(StreamLimit::Length { limit: self.stream_bytes });
        }
        if self.uncompressed >= self.next_look {
            self.next_look = self.uncompressed.saturating_add(EXPANSION_EVERY);
            if self.uncompressed > self.compressed.saturating_mul(self.ratio) {
                return Err(StreamLimit::Expansion {
                    compressed: self.compressed,
                    uncompressed: self.uncompressed,
                    ratio: self.ratio,
                });
            }
        }
        Ok(())
    }
}

/// Where a decoder writes: buffers of a pool that are pushed on when they are full, counted against the limits.
pub(super) struct Outlet<'env, S> {
    next: S,
    pool: Arc<Pool>,
    /// The buffer being filled; its first `filled` bytes are.
    buffer: Option<Buffer>,
    filled: usize,
    meter: Meter,
    plan: Plan<'env>,
}

impl<'env, S: Stage> Outlet<'env, S> {
    pub(super) fn new(pool: Arc<Pool>, plan: Plan<'env>, next: S) -> Self {
        Self { next, pool, buffer: None, filled: 0, meter: Meter::new(&plan.resources.limits), plan }
    }

    /// The rest of the buffer at hand; never empty.
    pub(super) fn space(&mut self) -> &mut [u8] {
        let buffer = self.buffer.get_or_insert_with(|| self.pool.take());
        buffer.space().get_mut(self.filled..).unwrap_or_default()
    }

    /// Counts `compressed` bytes that became the first `filled` bytes of [`space`](Self::space). Pushes the buffer on when
    /// it is full.
    pub(super) fn fill(&mut self, compressed: usize, filled: usize) -> Result<()> {
        self.meter.count(compressed, filled)?;
        self.filled += filled;
        let is_full = self.buffer.as_mut().is_some_and(|buffer| buffer.space().len() <= self.filled);
        if is_full { self.ship() } else { Ok(()) }
    }

    /// Pushes on a whole buffer that was filled elsewhere, behind what was filled here.
    pub(super) fn pass(&mut self, compressed: usize, chunk: Chunk) -> Result<()> {
        self.meter.count(compressed, chunk.len())?;
        self.ship()?;
        self.next.push(chunk)
    }

    fn ship(&mut self) -> Result<()> {
        self.plan.work.cancel.check()?;
        match self.buffer.take() {
            Some(buffer) if self.filled > 0 => {
                self.next.push(buffer.freeze(std::mem::take(&mut self.filled)))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn finish(mut self) -> Result<S::Output> {
        self.ship()?;
        self.next.finish()
    }
}

/// Decompresses into buffers of a pool and pushes them on.
pub struct Decode<'scope, 'env, S> {
    decoder: Box<dyn Decoder>,
    outlet: Outlet<'env, S>,
    memory: u64,
    plan: Plan<'env>,
    index: Option<Indexing<'scope, 'env>>,
    busy: Duration,
}

/// Result of decoding a stream.
#[derive(Debug)]
pub struct Decoded<T> {
    /// Output of the next stage.
    pub output: T,
    /// Time spent decoding.
    pub busy: Duration,
    /// Work of helpers that was used.
    pub ahead: AheadFacts,
    /// Header of the stream's index, if one was asked for.
    pub index: Option<Header>,
}

impl<'scope, 'env, S: Stage> Decode<'scope, 'env, S> {
    /// Decodes into buffers of `pool` for `next`; the window is charged to the lease of `plan`.
    pub fn new(decoder: Box<dyn Decoder>, pool: Arc<Pool>, plan: Plan<'env>, next: S) -> Self {
        let outlet = Outlet::new(pool, plan, next);
        Self { decoder, outlet, memory: 0, plan, index: None, busy: Duration::ZERO }
    }

    /// Indexes the stream on its way.
    pub(super) fn indexed(mut self, index: Indexing<'scope, 'env>) -> Self {
        self.decoder.list_blocks();
        Self { index: Some(index), ..self }
    }
}

impl<S: Stage> Stage for Decode<'_, '_, S> {
    type Output = Decoded<S::Output>;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        let mut input = &*chunk;
        loop {
            let started = Instant::now();
            let space = self.outlet.space();
            let (room, had) = (space.len(), input.len());
            let outcome = self.decoder.decode(&mut input, space);
            self.busy += started.elapsed();
            let filled = outcome?;
            let blocks = self.decoder.blocks();
            if let Some(index) = &mut self.index {
                let plain = space.get(..filled).unwrap_or_default();
                index.step((had - input.len()) as u64, plain, blocks)?;
            }
            let is_paused = blocks.len() >= BLOCKS_MAX;
            self.outlet.fill(had - input.len(), filled)?;
            let memory = self.decoder.memory_bytes();
            if memory > self.memory {
                self.plan.lease.charge(Use::Window, memory, self.plan.work.cancel)?;
                self.memory = memory;
            } else if filled < room && !is_paused {
                return Ok(());
            }
        }
    }

    fn finish(mut self) -> Result<Self::Output> {
        self.decoder.finish()?;
        let index = self.index.map(Indexing::finish).transpose()?;
        Ok(Decoded { output: self.outlet.finish()?, busy: self.busy, ahead: AheadFacts::default(), index })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_may_be_as_long_as_its_limit() {
        let limits = Limits { stream_bytes: 100, ..Limits::default() };
        let mut meter = Meter::new(&limits);
        assert_eq!(meter.count(0, 99), Ok(()));
        assert_eq!(meter.count(0, 1), Ok(()));
        assert_eq!(meter.count(0, 1), Err(StreamLimit::Length { limit: 100 }));
    }

    #[test]
    fn expansion_counts_from_one_gibibyte_on_and_every_64_mebibytes() {
        let limits = Limits { expansion_ratio: 250, ..Limits::default() };
        let step = 1 << 20;
        let mut meter = Meter::new(&limits);
        for _ in 0..1023 {
            assert_eq!(meter.count(1, step), Ok(()));
        }
        assert!(matches!(meter.count(1, step), Err(StreamLimit::Expansion { compressed: 1024, .. })));

        let mut meter = Meter::new(&limits);
        for _ in 0..1024 {
            assert_eq!(meter.count(step / 250 + 1, step), Ok(()));
        }
        for _ in 0..63 {
            assert_eq!(meter.count(0, step), Ok(()));
        }
        assert!(meter.count(0, step).is_err());
    }
}
