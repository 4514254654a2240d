//! Refusals of zTOCs, and of layers that they do not fit. The caller names the file.
//!
//! Reasons are listed in `docs/formats/ztoc.md`.

use std::io;

use crate::error::{Classify, Kind, disk_kind, disk_reason};

/// Refusal of a zTOC or of its layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZtocError {
    /// Reading the file failed.
    #[error("reading {what} at byte {offset} failed")]
    Io {
        /// Part of the zTOC, in words.
        what: &'static str,
        /// Byte of the file.
        offset: u64,
        /// Error of the file.
        source: io::Error,
    },
    /// A part is not within the file.
    #[error("{len} bytes at byte {offset} for {what} are not within the {size_bytes} bytes of the file")]
    Bounds {
        /// Part of the zTOC, in words.
        what: &'static str,
        /// Byte of the file at which it should begin.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Size of the file.
        size_bytes: u64,
    },
    /// A part is not there.
    #[error("{what} is missing")]
    Missing {
        /// Part of the zTOC, in words.
        what: &'static str,
    },
    /// The size of the blob is negative.
    #[error("the blob cannot have {found} bytes")]
    Size {
        /// Size as it stands there.
        found: i64,
    },
    /// A compression that is not known.
    #[error("compression {found} is neither 1, gzip, nor 2, none")]
    Compression {
        /// Number of the compression.
        found: i8,
    },
    /// The number of checkpoints is negative.
    #[error("the number of checkpoints is {found}")]
    Count {
        /// Number as it stands there.
        found: i32,
    },
    /// More checkpoints than are read.
    #[error("{found} checkpoints, more than {limit}")]
    Limit {
        /// Number of checkpoints.
        found: u64,
        /// [`crate::limits::ZTOC_CHECKPOINTS`].
        limit: u64,
    },
    /// The checkpoints are longer or shorter than their number says.
    #[error("{bytes} bytes are neither {count} checkpoints of 32785 and 12 bytes before them, nor one less")]
    Checkpoints {
        /// Length of all checkpoints in bytes.
        bytes: u64,
        /// Their number.
        count: u64,
    },
    /// There is not one span for each checkpoint.
    #[error("{checkpoints} checkpoints for {spans} spans")]
    Spans {
        /// Number of spans.
        spans: i64,
        /// Number of checkpoints.
        checkpoints: u64,
    },
    /// A field of a checkpoint has a value that it cannot have.
    #[error("{field} {found} of checkpoint {number} is not within {least} to {most}")]
    Range {
        /// Number of the checkpoint.
        number: u64,
        /// Name of the field.
        field: &'static str,
        /// Value of the field.
        found: i64,
        /// Least value.
        least: u64,
        /// Largest value.
        most: u64,
    },
    /// Checkpoints do not go on.
    #[error("{field} {found} of checkpoint {number} is not above {before} of the one before it")]
    Order {
        /// Number of the checkpoint.
        number: u64,
        /// Name of the field.
        field: &'static str,
        /// Value of the field.
        found: u64,
        /// Value of the same field in the checkpoint before.
        before: u64,
    },
    /// The zTOC belongs to a blob of another size.
    #[error("it belongs to a blob of {stored} bytes, and the layer has {found}")]
    BlobSize {
        /// Size in the zTOC.
        stored: u64,
        /// Size of the layer.
        found: u64,
    },
    /// Checkpoints are not in the layer.
    #[error(
        "at bit {bit}, the third checkpoint in a row, no block of the layer begins behind the bytes of its window"
    )]
    Place {
        /// First bit of the block, from the start of the layer.
        bit: u64,
    },
}

impl Classify for ZtocError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } => disk_kind(source),
            Self::Limit { .. } => Kind::Exhausted,
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Io { source, .. } => disk_reason(source, "disk.io"),
            Self::Bounds { .. } => "ztoc.bounds",
            Self::Missing { .. } => "ztoc.missing",
            Self::Size { .. } => "ztoc.size",
            Self::Compression { .. } => "ztoc.compression",
            Self::Count { .. } | Self::Checkpoints { .. } => "ztoc.checkpoints",
            Self::Limit { .. } => "limit.ztoc",
            Self::Spans { .. } => "ztoc.spans",
            Self::Range { .. } => "ztoc.range",
            Self::Order { .. } => "ztoc.order",
            Self::BlobSize { .. } => "ztoc.blob-size",
            Self::Place { .. } => "ztoc.place",
        }
    }
}
