//! The codings that stream processors decode.
//!
//! Described in `docs/formats/compression.md`.

/// A coding that stream processors decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Foreign {
    /// xz streams, with padding between and after them.
    Xz,
    /// LZ4 frames, legacy and skippable ones included.
    Lz4,
    /// bzip2 streams.
    Bzip2,
    /// One brotli stream, RFC 7932.
    Brotli,
}

impl Foreign {
    /// Lower-case name for messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
            Self::Bzip2 => "bzip2",
            Self::Brotli => "brotli",
        }
    }
}
