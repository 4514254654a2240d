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
/// It copies at most 32 KiB twice for each piece of the stream, however many blocks are in it, and once for each point.
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
    /// Bytes before the pending block, if it started in an earlier piece.
    window: Option<Vec<u8>>,
    /// The last bytes so far.
    last: History<u8>,
}

/// A point that was chosen, with the bytes before it.
pub struct Chosen {
    place: Place,
    /// [`WINDOW_BYTES`], the first of them zeros where there are fewer.
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
            window: None,
            last: History::new(),
        }
    }

    /// Takes in the next uncompressed bytes, and the `blocks` that start in them or right behind. Returns the points that
    /// are chosen now.
    ///
    /// Errors: [`GzindexError::Members`] when a block is in a second member.
    pub fn take(&mut self, bytes: &[u8], blocks: &[BlockStart]) -> Result<Vec<Chosen>, GzindexError> {
        let mut chosen = Vec::new();
        for block in blocks {
            if *self.member.get_or_insert(block.member) != block.member {
                return Err(GzindexError::Members { offset: block.member });
            }
            let place = Place { plain: self.plain.saturating_add(block.at as u64), bit: block.bit };
            // The block before this one was the last before a multiple of the span.
            if place.plain > self.wanted {
                if let Some(place) = self.pending.take() {
                    let window = self.window.take().unwrap_or_else(|| self.before(place, bytes));
                    chosen.push(Chosen { place, window });
                }
                let behind = place.plain.saturating_sub(self.wanted);
                let spans = behind.div_ceil(self.span_bytes);
                self.wanted = self.wanted.saturating_add(spans.saturating_mul(self.span_bytes));
            }
            self.window = None;
            if place.plain == self.wanted {
                self.pending = None;
                self.wanted = self.wanted.saturating_add(self.span_bytes);
                chosen.push(Chosen { place, window: self.before(place, bytes) });
            } else {
                self.pending = Some(place);
            }
        }
        if let Some(place) = self.pending
            && self.window.is_none()
        {
            self.window = Some(self.before(place, bytes));
        }
        self.last.append(bytes);
        self.plain = self.plain.saturating_add(bytes.len() as u64);
        Ok(chosen)
    }

    /// The bytes before `place`, which is in the piece `bytes`.
    fn before(&self, place: Place, bytes: &[u8]) -> Vec<u8> {
        let at = usize::try_from(place.plain.saturating_sub(self.plain)).unwrap_or(usize::MAX);
        let [first, second] = self.last.pieces();
        let parts = [bytes.get(..at).unwrap_or(bytes), second, first];
        let mut window = vec![0; WINDOW_BYTES];
        let mut free = WINDOW_BYTES;
        for part in parts {
            let len = part.len().min(free);
            let end = free;
            free = free.saturating_sub(len);
            if let (Some(space), Some(part)) =
                (window.get_mut(free..end), part.get(part.len().saturating_sub(len)..))
            {
                space.copy_from_slice(part);
            }
        }
        window
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
        Ok(Packed { place: self.place, window: zlib::pack(ENCODER_LEVEL, &self.window)? })
    }
}
