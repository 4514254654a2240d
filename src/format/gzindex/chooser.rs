//! Chooses the points of an index among the blocks of a stream, as overlaybd does: the last block at or before every
//! multiple of the span.
//!
//! Source: `docs/formats/overlaybd.md`, "gzip index".

use super::{
    error::GzindexError,
    writer::{ENCODER_LEVEL, Packed, Place},
};
use crate::codec::{
    BlockStart,
    deflate::{History, WINDOW_BYTES},
    zlib,
};

/// Takes in a stream as it is decoded, and gives out the points.
///
/// Its own copies cost at most one of every uncompressed byte, however short the blocks are.
pub struct Chooser {
    span_bytes: u64,
    /// Where the next point is wanted.
    wanted: u64,
    /// Uncompressed bytes so far.
    plain: u64,
    /// Where the only member starts.
    member: Option<u64>,
    /// The last block, unless it is a point already.
    pending: Option<Place>,
    /// Bytes before the last block.
    window: History<u8>,
    /// Bytes since.
    since: History<u8>,
}

/// A point that was chosen, with the bytes before it.
pub struct Chosen {
    place: Place,
    window: Vec<u8>,
}

impl Chooser {
    /// Wants a point every `span_bytes` uncompressed bytes.
    pub fn new(span_bytes: u32) -> Self {
        Self {
            span_bytes: u64::from(span_bytes).max(1),
            wanted: 0,
            plain: 0,
            member: None,
            pending: None,
            window: History::new(),
            since: History::new(),
        }
    }

    /// Takes in the next uncompressed bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.since.append(bytes);
        self.plain = self.plain.saturating_add(bytes.len() as u64);
    }

    /// Takes in the start of the next block. Up to two points are chosen now: the block before this one, which was the
    /// last before a multiple of the span, and this one, if it is at a multiple.
    ///
    /// Errors: [`GzindexError::Members`] when the block is in a second member.
    pub fn block(&mut self, block: BlockStart) -> Result<[Option<Chosen>; 2], GzindexError> {
        if *self.member.get_or_insert(block.member) != block.member {
            return Err(GzindexError::Members { offset: block.member });
        }
        let place = Place { plain: self.plain, bit: block.bit };
        let mut earlier = None;
        if place.plain > self.wanted {
            earlier = self.pending.take().map(|place| self.choose(place));
            let behind = place.plain.saturating_sub(self.wanted);
            let spans = behind.div_ceil(self.span_bytes);
            self.wanted = self.wanted.saturating_add(spans.saturating_mul(self.span_bytes));
        }
        for piece in self.since.pieces() {
            self.window.append(piece);
        }
        self.since.clear();
        if place.plain == self.wanted {
            self.pending = None;
            self.wanted = self.wanted.saturating_add(self.span_bytes);
            return Ok([earlier, Some(self.choose(place))]);
        }
        self.pending = Some(place);
        Ok([earlier, None])
    }

    fn choose(&self, place: Place) -> Chosen {
        Chosen { place, window: self.window.pieces().concat() }
    }
}

impl Chosen {
    #[cfg(test)]
    pub(super) fn place(&self) -> Place {
        self.place
    }

    #[cfg(test)]
    pub(super) fn window(&self) -> &[u8] {
        &self.window
    }

    /// Compresses the window. That takes longer than everything else about a point, and needs nothing but the point.
    pub fn pack(self) -> Result<Packed, GzindexError> {
        let Self { place, window } = self;
        let mut whole = vec![0; WINDOW_BYTES.saturating_sub(window.len())];
        whole.extend_from_slice(&window);
        Ok(Packed { place, window: zlib::pack(ENCODER_LEVEL, &whole)? })
    }
}
