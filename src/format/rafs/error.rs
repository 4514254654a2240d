//! Why a layer has no RAFS metadata.
//!
//! Source: `docs/formats/rafs.md`, "Chunks"; nydus `storage/src/meta/chunk_info_v1.rs` for the limits.

use crate::{
    error::{Classify, Kind, Quoted},
    format::erofs::writer::WriterError,
};

/// Why a table of contents cannot be told in RAFS metadata. The layer can still be applied as an ordinary one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RafsError {
    /// The chunks of a file do not all have one size, a power of two, or the files have different ones.
    #[error(
        "{}: a chunk of {found} bytes at byte {offset} of the file, among chunks of {want}",
        Quoted(path)
    )]
    ChunkSize {
        /// The file.
        path: Vec<u8>,
        /// First byte of the chunk.
        offset: u64,
        /// Its size in bytes.
        found: u64,
        /// Size of the chunks, in bytes.
        want: u64,
    },
    /// The data of a file begins within a member of the blob.
    #[error("{}: the data begins {inner_offset} bytes within a member of the blob", Quoted(path))]
    Inner {
        /// The file.
        path: Vec<u8>,
        /// Uncompressed bytes before it.
        inner_offset: u64,
    },
    /// A chunk is too large, or too far from the start, for the compression context.
    #[error("{}: {what} {found} is not below {limit}", Quoted(path))]
    Range {
        /// The file.
        path: Vec<u8>,
        /// The field.
        what: &'static str,
        /// Its value.
        found: u64,
        /// First value that is too large.
        limit: u64,
    },
    /// There are more chunks than the inodes can number.
    #[error("{count} chunks are more than 2^24 - 1")]
    Chunks {
        /// Number of chunks.
        count: usize,
    },
    /// A hard link leads to a file that the table hides.
    #[error("{}: the hard link leads to a file that is not shown", Quoted(path))]
    Link {
        /// The link.
        path: Vec<u8>,
    },
    /// An attribute cannot be stored.
    #[error("{}: {source}", Quoted(path))]
    Xattr {
        /// The file.
        path: Vec<u8>,
        /// The fault.
        source: WriterError,
    },
    /// The metadata is too large.
    #[error("the metadata has more than 2^32 blocks")]
    Size,
}

impl Classify for RafsError {
    fn kind(&self) -> Kind {
        Kind::NotImplemented
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::ChunkSize { .. } => "rafs.chunk-size",
            Self::Inner { .. } => "rafs.inner-offset",
            Self::Range { .. } => "rafs.range",
            Self::Chunks { .. } => "rafs.chunks",
            Self::Link { .. } => "rafs.link",
            Self::Xattr { .. } => "rafs.xattr",
            Self::Size => "rafs.size",
        }
    }
}
