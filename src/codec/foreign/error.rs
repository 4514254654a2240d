//! Refusals of streams in foreign codings.
//!
//! Reasons are listed in `docs/formats/compression.md`.

use std::io;

use super::coding::Foreign;
use crate::error::{Classify, Error, Kind};

/// Refusal of a stream. Offsets count compressed bytes from the start of the stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForeignError {
    /// The bytes break the format, or a checksum is wrong.
    #[error("{}: invalid data before offset {offset}: {message}", coding.as_str())]
    Data {
        /// Coding of the stream.
        coding: Foreign,
        /// Number of compressed bytes taken so far.
        offset: u64,
        /// Broken rule, in the words of the decoder.
        message: String,
    },
    /// The stream ends too early.
    #[error("{}: the stream is cut off after {offset} bytes", coding.as_str())]
    Truncated {
        /// Coding of the stream.
        coding: Foreign,
        /// Length of the stream in bytes.
        offset: u64,
    },
    /// Bytes behind the last stream or frame start no further one.
    #[error("{}: the bytes at offset {offset} start no stream", coding.as_str())]
    Trailing {
        /// Coding of the stream.
        coding: Foreign,
        /// Offset of these bytes.
        offset: u64,
    },
    /// The dictionary is larger than allowed.
    #[error("{}: the block at offset {offset} needs a dictionary of more than {limit} bytes", coding.as_str())]
    Window {
        /// Coding of the stream.
        coding: Foreign,
        /// Offset behind the header of the block.
        offset: u64,
        /// Largest dictionary allowed, in bytes.
        limit: u64,
    },
    /// The frame needs a dictionary that is not part of it.
    #[error("{}: the frame at offset {offset} needs dictionary {id}", coding.as_str())]
    Dictionary {
        /// Coding of the stream.
        coding: Foreign,
        /// Offset at which the frame starts.
        offset: u64,
        /// Id of the dictionary.
        id: u32,
    },
}

impl ForeignError {
    /// Packs the refusal for [`std::io::Read`].
    pub(super) fn into_io(self) -> io::Error {
        Error::from(self).into_io()
    }
}

impl Classify for ForeignError {
    fn kind(&self) -> Kind {
        match self {
            Self::Window { .. } => Kind::Exhausted,
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Data { .. } => "codec.foreign.data",
            Self::Truncated { .. } => "codec.foreign.truncated",
            Self::Trailing { .. } => "codec.foreign.trailing",
            Self::Window { .. } => "codec.foreign.window",
            Self::Dictionary { .. } => "codec.foreign.dictionary",
        }
    }
}
