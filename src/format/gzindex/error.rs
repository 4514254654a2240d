//! Refusals of gzip indexes, and of blobs that an index does not fit.
//!
//! Reasons are listed in `docs/formats/overlaybd.md`, "gzip index".

use std::io;

use crate::{
    codec::{CodecError, deflate::Fault, zlib::ZlibError},
    error::{Classify, Kind, Quoted, disk_kind, disk_reason},
};

/// Refusal of a gzip index or of its blob.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GzindexError {
    /// Reading or writing a file failed.
    #[error("{what} failed at byte {offset}")]
    Io {
        /// File and direction, in words.
        what: &'static str,
        /// Byte of the file.
        offset: u64,
        /// Error of the file.
        source: io::Error,
    },
    /// The file is shorter than a header.
    #[error("gzip index: {found} bytes are too few for a header of {expected}")]
    Truncated {
        /// Size of the file in bytes.
        found: u64,
        /// Length of a header in bytes.
        expected: u64,
    },
    /// The first bytes are not those of a gzip index.
    #[error("gzip index: magic number {} is not \"ddgzidx\\0\"", Quoted(found))]
    Magic {
        /// First bytes of the file.
        found: [u8; 8],
    },
    /// A version that is not known.
    #[error("gzip index: major version {found} is not 1")]
    Version {
        /// Major version.
        found: u8,
    },
    /// The checksum of the header is not that of its bytes.
    #[error("gzip index: header checksum {stored:#010x} should be {computed:#010x}")]
    Checksum {
        /// Checksum that the header holds.
        stored: u32,
        /// Checksum of the header's bytes.
        computed: u32,
    },
    /// A field has a value that is not known.
    #[error("gzip index: field {field} is {found}, not {expected}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// Value of the field.
        found: u64,
        /// Values that are known, in words.
        expected: &'static str,
    },
    /// The header gives another size of the index than its file has.
    #[error("gzip index: the file has {found} bytes, its header says {stored}")]
    FileSize {
        /// Size in the header.
        stored: u64,
        /// Size of the file.
        found: u64,
    },
    /// The index belongs to a blob of another size.
    #[error("gzip index: the blob has {found} bytes, the index belongs to one of {stored}")]
    BlobSize {
        /// Size in the header.
        stored: u64,
        /// Size of the blob.
        found: u64,
    },
    /// More points than are read.
    #[error("gzip index: {found} points, more than {limit}")]
    Points {
        /// Number of points in the header.
        found: u64,
        /// [`crate::limits::GZIP_INDEX_POINTS`].
        limit: u64,
    },
    /// The table of points does not end with the file, or starts within the header.
    #[error(
        "gzip index: a table of {len} bytes at byte {offset} does not end at byte {size_bytes}, the file's end"
    )]
    Table {
        /// Byte at which the table starts.
        offset: u64,
        /// Length of the table in the file, in bytes.
        len: u64,
        /// Size of the file.
        size_bytes: u64,
    },
    /// The table does not hold as many points as the header says.
    #[error("gzip index: the table of {points} points, at byte {offset}: {fault}")]
    TableData {
        /// Number of points in the header.
        points: u64,
        /// Byte at which the table starts.
        offset: u64,
        /// Fault of the compressed table.
        fault: ZlibError,
    },
    /// No point at the start of the stream.
    #[error("gzip index: the first point is at byte {found} of the stream, not 0")]
    Start {
        /// Uncompressed offset of the first point, or the size of the stream when there is none.
        found: u64,
    },
    /// Points go back.
    #[error("gzip index: {field} {found} of point {point} is below {before} of the point before it")]
    Order {
        /// Number of the point.
        point: u64,
        /// Name of the field.
        field: &'static str,
        /// Value of the field.
        found: u64,
        /// Value of the same field in the point before.
        before: u64,
    },
    /// A field of a point is outside of what it points to.
    #[error("gzip index: {field} {found} of point {point} is not within {least} to {most}")]
    Range {
        /// Number of the point.
        point: u64,
        /// Name of the field.
        field: &'static str,
        /// Value of the field, as it stands there.
        found: i128,
        /// Least value.
        least: u64,
        /// Largest value.
        most: u64,
    },
    /// A window is damaged, or not of 32768 bytes.
    #[error("gzip index: the window of point {point}, at byte {offset}: {fault}")]
    Window {
        /// Number of the point.
        point: u64,
        /// Byte of the file at which it starts.
        offset: u64,
        /// Fault of the compressed window.
        fault: ZlibError,
    },
    /// A second member, which the index would not cover.
    #[error(
        "gzip: the blob has another member, or other bytes, at byte {offset}; a gzip index covers one member only"
    )]
    Members {
        /// Byte of the blob.
        offset: u64,
    },
    /// The blob cannot be decoded from a point on.
    #[error(
        "gzip: invalid deflate data before byte {offset} of the blob, decoding from byte {from} of the stream: {fault}"
    )]
    Data {
        /// Compressed bytes taken.
        offset: u64,
        /// Uncompressed offset of the point.
        from: u64,
        /// Rule that the data breaks.
        fault: Fault,
    },
    /// The stream is shorter or longer than the index says.
    #[error("gzip: the stream has {found} bytes or more where the index says {expected}")]
    End {
        /// Bytes that were decoded.
        found: u64,
        /// Bytes that the index announces.
        expected: u64,
    },
    /// The blob ends within its member.
    #[error("gzip: the blob ends after {found} bytes inside its member")]
    Cut {
        /// Size of the blob.
        found: u64,
    },
    /// A window or table could not be compressed.
    #[error(transparent)]
    Pack(#[from] CodecError),
}

impl Classify for GzindexError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } => disk_kind(source),
            Self::Points { .. } => Kind::Exhausted,
            // The index may be good, but the blob is not the one that it was made for.
            Self::BlobSize { .. } | Self::Data { .. } | Self::End { .. } | Self::Cut { .. } => Kind::DataLoss,
            Self::Pack(error) => error.kind(),
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Io { source, .. } => disk_reason(source, "disk.io"),
            Self::Truncated { .. } => "gzindex.truncated",
            Self::Magic { .. } => "gzindex.magic",
            Self::Version { .. } => "gzindex.version",
            Self::Checksum { .. } => "gzindex.checksum",
            Self::Field { .. } => "gzindex.field",
            Self::FileSize { .. } => "gzindex.file-size",
            Self::BlobSize { .. } => "gzindex.blob-size",
            Self::Points { .. } => "limit.gzindex-points",
            Self::Table { .. } => "gzindex.table",
            Self::TableData { .. } => "gzindex.table-data",
            Self::Start { .. } => "gzindex.start",
            Self::Order { .. } => "gzindex.order",
            Self::Range { .. } => "gzindex.range",
            Self::Window { .. } => "gzindex.window",
            Self::Members { .. } => "gzindex.members",
            Self::Data { .. } => "gzindex.data",
            Self::End { .. } => "gzindex.end",
            Self::Cut { .. } => "gzindex.cut",
            Self::Pack(error) => error.reason(),
        }
    }
}
