//! Why a deflate stream is refused.
//!
//! Source: RFC 1951.

/// Why a deflate stream is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at bit {bit}")]
pub struct DeflateError {
    /// What is wrong.
    pub what: Fault,
    /// Where, in bits from the start of the stream: behind what cannot be right.
    pub bit: u64,
}

/// What can be wrong with a deflate stream. The texts are those of zlib, which users know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Fault {
    /// Block type 3.
    #[error("invalid block type")]
    BlockType,
    /// The length of a stored block and its complement do not fit together.
    #[error("invalid stored block lengths")]
    StoredLength,
    /// More than 286 literals and lengths or 30 distances.
    #[error("too many length or distance symbols")]
    Counts,
    /// The code of the code lengths is over-subscribed or incomplete.
    #[error("invalid code lengths set")]
    CodeLengths,
    /// A repetition with nothing before it, or of more lengths than there are.
    #[error("invalid bit length repeat")]
    Repeat,
    /// No code for the end of the block.
    #[error("invalid code -- missing end-of-block")]
    NoEnd,
    /// The code of literals and lengths is over-subscribed or incomplete.
    #[error("invalid literal/lengths set")]
    LiteralLengths,
    /// The code of distances is over-subscribed or incomplete.
    #[error("invalid distances set")]
    Distances,
    /// A code of literals and lengths that stands for none.
    #[error("invalid literal/length code")]
    Literal,
    /// A code of distances that stands for none.
    #[error("invalid distance code")]
    Distance,
    /// A match that starts before the first byte of the stream, or before its window.
    #[error("invalid distance too far back")]
    TooFar,
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
