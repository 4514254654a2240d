//! Why a deflate stream is refused.
//!
//! Source: RFC 1951.

use std::fmt;

/// Why a deflate stream is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at bit {bit}")]
pub struct DeflateError {
    /// Rule that the stream breaks.
    pub what: Fault,
    /// Bits from the start of the stream to the end of the faulty part.
    pub bit: u64,
}

/// Rule that a deflate stream breaks. The texts are those of zlib, which users know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Block type 3.
    BlockType,
    /// The length of a stored block and its complement do not fit together.
    StoredLength,
    /// More than 286 literals and lengths or 30 distances.
    Counts,
    /// The code of the code lengths is over-subscribed or incomplete.
    CodeLengths,
    /// A repetition with nothing before it, or of more lengths than there are.
    Repeat,
    /// No code for the end of the block.
    NoEnd,
    /// The code of literals and lengths is over-subscribed or incomplete.
    LiteralLengths,
    /// The code of distances is over-subscribed or incomplete.
    Distances,
    /// A code of literals and lengths that stands for none.
    Literal,
    /// A code of distances that stands for none.
    Distance,
    /// A match that starts before the first byte of the stream, or before its window.
    TooFar,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Fault {
    /// The text of the fault.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BlockType => "invalid block type",
            Self::StoredLength => "invalid stored block lengths",
            Self::Counts => "too many length or distance symbols",
            Self::CodeLengths => "invalid code lengths set",
            Self::Repeat => "invalid bit length repeat",
            Self::NoEnd => "invalid code -- missing end-of-block",
            Self::LiteralLengths => "invalid literal/lengths set",
            Self::Distances => "invalid distances set",
            Self::Literal => "invalid literal/length code",
            Self::Distance => "invalid distance code",
            Self::TooFar => "invalid distance too far back",
        }
    }
}
