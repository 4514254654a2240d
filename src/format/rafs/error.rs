//! Why a layer has no RAFS metadata.
//!
//! Source: `docs/formats/rafs.md`, "Chunks"; nydus `storage/src/meta/chunk_info_v1.rs` for the limits.

use std::io;

use crate::{
    error::{Classify, Kind, Quoted, disk_kind},
    format::erofs::{reader::ReadError, writer::WriterError},
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
        /// Value of the field.
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
    /// There are more blobs than an inode can name.
    #[error("{count} blobs are more than {limit}")]
    Blobs {
        /// Number of blobs.
        count: usize,
        /// Most blobs.
        limit: usize,
    },
    /// The metadata is too large.
    #[error("the metadata has more than 2^32 blocks")]
    Size,
    /// The metadata cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Classify for RafsError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io(error) => disk_kind(error),
            _ => Kind::NotImplemented,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::ChunkSize { .. } => "rafs.chunk-size",
            Self::Inner { .. } => "rafs.inner-offset",
            Self::Range { .. } => "rafs.range",
            Self::Chunks { .. } => "rafs.chunks",
            Self::Blobs { .. } => "rafs.blobs",
            Self::Link { .. } => "rafs.link",
            Self::Xattr { .. } => "rafs.xattr",
            Self::Size => "rafs.size",
            Self::Io(_) => "disk.io",
        }
    }
}

/// Why the tables of RAFS metadata cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The image has no extended superblock.
    #[error("the image is no RAFS metadata")]
    Form,
    /// Reading failed.
    #[error("reading {len} bytes at byte {offset} of the metadata failed")]
    Io {
        /// Byte at which the read started.
        offset: u64,
        /// Number of bytes requested.
        len: u64,
        /// Error of the file's reader.
        source: io::Error,
    },
    /// A field has a value that it cannot have.
    #[error("{what} is {found}, not {want}")]
    Field {
        /// Name of the field.
        what: &'static str,
        /// Value of the field.
        found: u64,
        /// Allowed value.
        want: String,
    },
    /// A table lies somewhere else than in the image, or over another part.
    #[error("{what} is {len} bytes at byte {offset}: {fault}")]
    Table {
        /// Name of the table.
        what: &'static str,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Rule that is broken.
        fault: &'static str,
    },
    /// A blob contradicts its device or the image.
    #[error("blob {index}: {fault}")]
    Blob {
        /// Place of the blob.
        index: u32,
        /// Rule that is broken.
        fault: &'static str,
    },
    /// An entry of the table of chunks breaks a rule.
    #[error("chunk {index} of blob {blob}: {fault}")]
    Chunk {
        /// Place of the blob.
        blob: u32,
        /// Place of the chunk in the blob.
        index: u32,
        /// Rule that is broken.
        fault: &'static str,
    },
    /// A file contradicts the table of chunks.
    #[error("inode {nid}: {fault}")]
    File {
        /// Number of the inode.
        nid: u64,
        /// Rule that is broken.
        fault: &'static str,
    },
    /// The table of chunks is larger than the memory for it.
    #[error("the table of chunks takes more than {limit} bytes of memory")]
    Memory {
        /// Largest memory, in bytes.
        limit: u64,
    },
    /// The compression context contradicts the image.
    #[error("the compression context: {0}")]
    Context(&'static str),
    /// The inode of a file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Classify for TableError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } => disk_kind(source),
            Self::Form => Kind::NotImplemented,
            Self::Memory { .. } => Kind::Exhausted,
            Self::Read(error) => error.kind(),
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Form => "rafs.form",
            Self::Io { .. } => "disk.io",
            Self::Field { .. } => "rafs.field",
            Self::Table { .. } => "rafs.table",
            Self::Blob { .. } => "rafs.blob",
            Self::Chunk { .. } => "rafs.chunk",
            Self::File { .. } => "rafs.file",
            Self::Memory { .. } => "limit.metadata",
            Self::Context(_) => "rafs.context",
            Self::Read(error) => error.reason(),
        }
    }
}
