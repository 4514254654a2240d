//! Compresses a stream on many threads: [`Ordered`] work, one item a block.
//!
//! The output does not depend on the threads, because each block depends on nothing but its bytes and those before it.

use std::{
    sync::Arc,
    thread::Scope,
    time::{Duration, Instant},
};

use super::{
    buffer::{Chunk, Pool},
    helpers::{Helpers, Permit},
    ordered::{Ordered, Worker},
    stage::Stage,
};
use crate::{
    codec::encode::{Coded, Compression, Envelope},
    error::Result,
};

/// Compresses the chunks pushed into it, each a block, and pushes what they become to the next stage.
pub(super) struct Blocks<'scope, 'env, S> {
    compression: Compression,
    envelope: Envelope,
    encoders: Ordered<'scope, 'env, Encoder>,
    /// The last block, where the compression refers to it.
    before: Option<Chunk>,
    started: bool,
    busy: Duration,
    next: S,
}

impl<'scope, 'env, S: Stage> Blocks<'scope, 'env, S> {
    /// A stage whose threads live in `scope`; `permit` is for the first of them, `helpers` gives those for
    /// the others. Without a permit there are none.
    pub(super) fn new(
        scope: &'scope Scope<'scope, 'env>,
        helpers: &Arc<Helpers>,
        permit: Option<Permit>,
        compression: Compression,
        next: S,
    ) -> Self {
        let pool = Pool::new(compression.bound(compression.block_bytes()));
        Self {
            compression,
            envelope: Envelope::new(compression),
            encoders: Ordered::new(scope, helpers, permit, "encode", Encoder { compression, pool }),
            before: None,
            started: false,
            busy: Duration::ZERO,
            next,
        }
    }

    fn start(&mut self) -> Result<()> {
        self.started = true;
        match self.envelope.start() {
            [] => Ok(()),
            start => self.next.push(Chunk::copy_of(start)),
        }
    }

    fn pass_on(&mut self, encoded: Encoded) -> Result<()> {
        let Encoded { bytes, coded, block_bytes, busy } = encoded;
        self.envelope.add(coded, block_bytes);
        self.busy += busy;
        self.next.push(bytes)
    }
}

impl<S: Stage> Stage for Blocks<'_, '_, S> {
    /// Output of the next stage, and the time spent compressing.
    type Output = (S::Output, Duration);

    /// Every chunk but the last has the block length of the compression.
    fn push(&mut self, chunk: Chunk) -> Result<()> {
        if !self.started {
            self.start()?;
        }
        let looks_back = self.compression.looks_back();
        let before = if looks_back { self.before.replace(chunk.clone()) } else { None };
        self.encoders.submit(Block { before, bytes: chunk })?;
        while let Some(encoded) = self.encoders.due()? {
            self.pass_on(encoded)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Self::Output> {
        if !self.started {
            // A stream has one block at least.
            self.push(Chunk::copy_of(&[]))?;
        }
        while let Some(encoded) = self.encoders.rest()? {
            self.pass_on(encoded)?;
        }
        let Self { envelope, mut next, busy, .. } = self;
        match envelope.end().as_slice() {
            [] => {}
            end => next.push(Chunk::copy_of(end))?,
        }
        Ok((next.finish()?, busy))
    }
}

/// A block, and the one before it where the compression refers to that.
struct Block {
    before: Option<Chunk>,
    bytes: Chunk,
}

/// A compressed block.
struct Encoded {
    bytes: Chunk,
    coded: Coded,
    block_bytes: u64,
    busy: Duration,
}

#[derive(Clone)]
struct Encoder {
    compression: Compression,
    /// For compressed blocks.
    pool: Arc<Pool>,
}

impl Worker for Encoder {
    type Item = Block;
    type Done = Encoded;

    fn work(&self, block: Block) -> Result<Encoded> {
        let started = Instant::now();
        let mut buffer = self.pool.take();
        let before = block.before.as_deref().unwrap_or_default();
        let coded = self.compression.encode(before, &block.bytes, buffer.space())?;
        let bytes = buffer.freeze(coded.len);
        Ok(Encoded { bytes, coded, block_bytes: block.bytes.len() as u64, busy: started.elapsed() })
    }
}
