//! The pieces of a stream that helpers decode: their parts, and what is said about them between threads.

use crate::{codec::Cut, pipeline::buffer::Chunk};

/// Start of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begins {
    /// A block.
    Block,
    /// A member or a frame.
    Member,
}

/// Next work of a helper.
pub(super) enum Job {
    /// Look for a block from this bit on.
    Search(u64),
    /// Decode from a place in the index.
    Indexed(Indexed),
    /// Decode members or frames.
    Run(Run),
}

/// Blocks that begin where the index says.
#[derive(Clone, Copy)]
pub(super) struct Indexed {
    /// First bit, and the one at which to end.
    pub(super) start: Cut,
    pub(super) until: Cut,
    /// Number of the checkpoint that has the window.
    pub(super) number: usize,
}

/// Members or frames that one thread decodes: the piece that starts with the first of them.
pub(super) struct Run {
    /// First byte, and the one behind the last.
    pub(super) start: u64,
    pub(super) end: u64,
    /// All of them, and bytes around.
    pub(super) input: Vec<(u64, Chunk)>,
    /// Buffers of output that are reserved.
    pub(super) buffers: usize,
}

impl Run {
    pub(super) fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.input.iter().map(|(offset, chunk)| {
            let place = |at: u64| {
                usize::try_from(at.saturating_sub(*offset)).map_or(chunk.len(), |at| at.min(chunk.len()))
            };
            chunk.get(place(self.start)..place(self.end)).unwrap_or_default()
        })
    }
}

/// Outcome of a run.
#[derive(Default)]
pub(super) struct Decoded {
    pub(super) parts: Vec<Part>,
    /// Where the last whole member or frame ends, and how many bytes come before that.
    pub(super) end: Option<(Cut, usize)>,
    /// The decoder has refused the stream.
    pub(super) is_false: bool,
}

/// Blocks or members that a helper decodes.
pub(super) struct Piece {
    pub(super) start: Cut,
    pub(super) begins: Begins,
    /// The bytes before it that the index has, and that it was decoded with.
    pub(super) window: Option<Vec<u8>>,
    pub(super) parts: Vec<Part>,
    /// Where the last whole block ends, and how many bytes come before that.
    pub(super) end: Option<(Cut, usize)>,
}

impl Piece {
    /// Whether it follows these bytes, if it was decoded with any.
    pub(super) fn follows(&self, window: &[u8]) -> bool {
        self.window.as_deref().is_none_or(|expected| expected == window)
    }
}

/// A part of a piece.
pub(super) enum Part {
    /// Bytes, and places in the unknown window.
    Marked(Units),
    /// Bytes.
    Plain(Chunk),
}

impl Part {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Marked(units) => units.filled,
            Self::Plain(chunk) => chunk.len(),
        }
    }
}

/// Units in a buffer, of which the first `filled` count.
pub(super) struct Units {
    pub(super) buffer: Box<[u16]>,
    pub(super) filled: usize,
}

impl Units {
    pub(super) fn units(&self) -> &[u16] {
        self.buffer.get(..self.filled).unwrap_or_default()
    }

    pub(super) fn space(&mut self) -> &mut [u16] {
        self.buffer.get_mut(self.filled..).unwrap_or_default()
    }
}

/// State of a piece that the decoder has come to.
pub(super) enum Ready {
    /// So much.
    Taken(Taken),
    /// Somebody is at work on the members that it consists of.
    UnderWay,
    /// Nothing.
    None,
}

/// Part of a piece that is ready.
pub(super) struct Taken {
    pub(super) parts: Vec<Part>,
    pub(super) end: Cut,
    pub(super) begins: Begins,
}

/// Answer to a helper that hands over parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The piece goes on, to the start of the next one.
    On(Option<Cut>),
    /// Nobody wants more of it.
    Gone,
}

/// Answer to a helper that needs input.
pub(super) enum Input {
    /// A buffer, and its offset.
    Chunk(u64, Chunk),
    /// It has not come yet.
    NotYet,
    /// There is no more, or nobody wants more of the piece.
    End,
}
