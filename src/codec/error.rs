//! Refusals of compressed streams, and failures of encoders.
//!
//! Reasons are listed in `docs/formats/compression.md`.

use super::coding::Coding;
use crate::error::{Classify, Kind};

/// Refusal of a compressed stream. Offsets count compressed bytes from the start of the stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A member does not start with the magic number, or the bytes after the last one are not NUL.
    #[error("gzip: byte {byte:#04x} at offset {offset} belongs to no member")]
    GzipTrailing {
        /// Offset of the first wrong byte.
        offset: u64,
        /// Value of that byte.
        byte: u8,
    },
    /// The method is not deflate, the only one that RFC 1952 knows.
    #[error("gzip: compression method {method} at offset {offset} is not 8")]
    GzipMethod {
        /// Method byte of the header.
        method: u8,
        /// Offset at which the member starts.
        offset: u64,
    },
    /// Reserved flags are set. RFC 1952 requires a refusal: they may announce further header
    /// fields.
    #[error("gzip: header flags {flags:#04x} at offset {offset} have reserved bits set")]
    GzipFlags {
        /// Flag byte of the header.
        flags: u8,
        /// Offset at which the member starts.
        offset: u64,
    },
    /// A file name or comment has no end within the limit.
    #[error("gzip: a header string of the member at offset {offset} is longer than {limit} bytes")]
    GzipHeaderString {
        /// Offset at which the member starts.
        offset: u64,
        /// Longest string in bytes, [`crate::limits::GZIP_HEADER_BYTES`].
        limit: u64,
    },
    /// The checksum of a member's header is not that of its bytes.
    #[error("gzip: header checksum {stored:#06x} of the member at offset {offset} should be {computed:#06x}")]
    GzipHeaderChecksum {
        /// Offset at which the member starts.
        offset: u64,
        /// Checksum that the header holds.
        stored: u16,
        /// Low half of the CRC-32 of the header's bytes.
        computed: u16,
    },
    /// The deflate stream of a member breaks RFC 1951.
    #[error("gzip: invalid deflate data in the member at offset {offset}, before offset {before}: {message}")]
    GzipDeflate {
        /// Offset at which the member starts.
        offset: u64,
        /// Number of compressed bytes read so far.
        before: u64,
        /// Error text of the inflater.
        message: &'static str,
    },
    /// The CRC-32 of a member is not that of its data.
    #[error("gzip: CRC-32 {stored:#010x} of the member at offset {offset} should be {computed:#010x}")]
    GzipChecksum {
        /// Offset at which the member starts.
        offset: u64,
        /// CRC-32 that the trailer holds.
        stored: u32,
        /// CRC-32 of the decoded bytes.
        computed: u32,
    },
    /// ISIZE of a member is not the length of its data.
    #[error("gzip: length {stored} of the member at offset {offset} should be {computed} (modulo 2^32)")]
    GzipLength {
        /// Offset at which the member starts.
        offset: u64,
        /// Length that the trailer holds, modulo 2^32.
        stored: u32,
        /// Number of decoded bytes, modulo 2^32.
        computed: u32,
    },
    /// The stream ends inside a member.
    #[error("gzip: the stream ends after {offset} bytes inside a member")]
    GzipTruncated {
        /// Length of the stream in bytes.
        offset: u64,
    },
    /// Bytes in the place of a frame do not start with a magic number of RFC 8878.
    #[error("zstd: the bytes at offset {offset} start no frame")]
    ZstdTrailing {
        /// Offset of these bytes.
        offset: u64,
    },
    /// The reserved bit is set, which RFC 8878 forbids.
    #[error("zstd: the header of the frame at offset {offset} has its reserved bit set")]
    ZstdReserved {
        /// Offset at which the frame starts.
        offset: u64,
    },
    /// The frame needs a dictionary, which layers do not carry.
    #[error("zstd: the frame at offset {offset} needs dictionary {id}")]
    ZstdDictionary {
        /// Offset at which the frame starts.
        offset: u64,
        /// Id of the dictionary, never 0.
        id: u32,
    },
    /// The window, or the content of a single segment, is larger than allowed.
    #[error("zstd: the frame at offset {offset} needs a window of {window_bytes} bytes, more than {limit}")]
    ZstdWindow {
        /// Offset at which the frame starts.
        offset: u64,
        /// Window that the frame needs, in bytes.
        window_bytes: u64,
        /// Largest window allowed, in bytes.
        limit: u64,
    },
    /// A block or the length of the frame breaks RFC 8878.
    #[error("zstd: invalid data in the frame at offset {offset}, before offset {before}: {message}")]
    ZstdFrame {
        /// Offset at which the frame starts.
        offset: u64,
        /// Number of compressed bytes read so far.
        before: u64,
        /// Error text of libzstd.
        message: &'static str,
    },
    /// The length of a frame's content is not the declared one.
    #[error("zstd: the frame at offset {offset} declares {declared} bytes and holds {produced}")]
    ZstdLength {
        /// Offset at which the frame starts.
        offset: u64,
        /// Length that the header declares, in bytes.
        declared: u64,
        /// Number of decoded bytes.
        produced: u64,
    },
    /// The checksum of a frame is not that of its content.
    #[error("zstd: wrong content checksum of the frame at offset {offset}")]
    ZstdChecksum {
        /// Offset at which the frame starts.
        offset: u64,
    },
    /// The stream ends inside a frame.
    #[error("zstd: the stream ends after {offset} bytes inside a frame")]
    ZstdTruncated {
        /// Length of the stream in bytes.
        offset: u64,
    },
    /// Memory for a decoder or encoder could not be allocated.
    #[error("no memory for a codec")]
    Memory,
    /// An encoder failed on a block, or had too little room for its output.
    #[error("the {} encoder failed", coding.as_str())]
    Encoder {
        /// Coding of the encoder.
        coding: Coding,
    },
}

impl Classify for CodecError {
    fn kind(&self) -> Kind {
        match self {
            Self::ZstdWindow { .. } | Self::Memory => Kind::Exhausted,
            Self::Encoder { .. } => Kind::Internal,
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::GzipTrailing { .. } => "codec.gzip.trailing",
            Self::GzipMethod { .. } => "codec.gzip.method",
            Self::GzipFlags { .. } => "codec.gzip.flags",
            Self::GzipHeaderString { .. } => "codec.gzip.header-string",
            Self::GzipHeaderChecksum { .. } => "codec.gzip.header-checksum",
            Self::GzipDeflate { .. } => "codec.gzip.deflate",
            Self::GzipChecksum { .. } => "codec.gzip.checksum",
            Self::GzipLength { .. } => "codec.gzip.length",
            Self::GzipTruncated { .. } => "codec.gzip.truncated",
            Self::ZstdTrailing { .. } => "codec.zstd.trailing",
            Self::ZstdReserved { .. } => "codec.zstd.reserved",
            Self::ZstdDictionary { .. } => "codec.zstd.dictionary",
            Self::ZstdWindow { .. } => "codec.zstd.window",
            Self::ZstdFrame { .. } => "codec.zstd.frame",
            Self::ZstdLength { .. } => "codec.zstd.length",
            Self::ZstdChecksum { .. } => "codec.zstd.checksum",
            Self::ZstdTruncated { .. } => "codec.zstd.truncated",
            Self::Memory => "codec.memory",
            Self::Encoder { .. } => "codec.encoder",
        }
    }
}
