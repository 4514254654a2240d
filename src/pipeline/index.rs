//! Indexes a gzip stream while it is decoded.
//!
//! The points are chosen on the decoder's thread, which costs a copy of what comes before each.
//! Windows are compressed on helpers: that takes an eighth of the time of decoding.

use std::{sync::Arc, thread::Scope};

use super::{
    helpers::{Helpers, Permit},
    ordered::{Ordered, Worker},
};
use crate::{
    codec::BlockStart,
    error::Result,
    format::{
        Sink,
        gzindex::{Chooser, Chosen, Header, Packed, SPAN_BYTES, Writer},
    },
};

/// An empty file for an index.
pub(super) type IndexFile<'a> = Box<dyn Sink + Send + 'a>;

/// Takes in a stream as it is decoded, and writes its index.
pub(super) struct Indexing<'scope, 'env> {
    chooser: Chooser,
    packing: Ordered<'scope, 'env, Pack>,
    writer: Writer<IndexFile<'env>>,
    compressed: u64,
    plain: u64,
}

/// Compresses windows.
#[derive(Clone)]
struct Pack;

impl Worker for Pack {
    type Item = Chosen;
    type Done = Packed;

    fn work(&self, chosen: Chosen) -> Result<Packed> {
        Ok(chosen.pack()?)
    }
}

impl<'scope, 'env> Indexing<'scope, 'env> {
    /// Writes the index to `file`. Windows are compressed on a thread if there is a `permit` for one, and on as many as
    /// there are free `helpers` then.
    pub(super) fn new(
        scope: &'scope Scope<'scope, 'env>,
        helpers: &Arc<Helpers>,
        permit: Option<Permit>,
        file: IndexFile<'env>,
    ) -> Self {
        Self {
            chooser: Chooser::new(SPAN_BYTES),
            packing: Ordered::new(scope, helpers, permit, "index", Pack),
            writer: Writer::new(file, SPAN_BYTES),
            compressed: 0,
            plain: 0,
        }
    }

    /// Takes in the next step of the decoder: `compressed` bytes became `plain`, in which `blocks` start.
    pub(super) fn step(&mut self, compressed: u64, plain: &[u8], blocks: &[BlockStart]) -> Result<()> {
        self.compressed = self.compressed.saturating_add(compressed);
        self.plain = self.plain.saturating_add(plain.len() as u64);
        for chosen in self.chooser.take(plain, blocks)? {
            self.packing.submit(chosen)?;
            while let Some(packed) = self.packing.due()? {
                self.writer.add(packed)?;
            }
        }
        Ok(())
    }

    /// Ends the stream, which was sound.
    pub(super) fn finish(mut self) -> Result<Header> {
        while let Some(packed) = self.packing.rest()? {
            self.writer.add(packed)?;
        }
        Ok(self.writer.finish(self.compressed, self.plain)?)
    }
}
