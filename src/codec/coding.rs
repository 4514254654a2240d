//! The codings that a layer may have.
//!
//! Described in `docs/formats/compression.md`.

/// Coding of a stream, detected from its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    /// No compression: any bytes.
    Plain,
    /// One or more gzip members, RFC 1952.
    Gzip,
    /// One or more zstd frames, RFC 8878.
    Zstd,
}

impl Coding {
    /// Number of first bytes that [`detect`](Self::detect) looks at.
    pub const PREFIX_LEN: usize = 4;

    /// Lower-case name for logs and statistics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}
