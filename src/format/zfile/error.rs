//! Errors of reading and writing ZFiles, each with the place at which it was found.
//!
//! Reasons are listed in `docs/formats/overlaybd.md`, "ZFile, errors".

use std::io;

use super::{block::BlockFault, header::HeaderFault};
use crate::error::{Classify, Kind, disk_kind, disk_reason};

/// Failure to read a ZFile or a part of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZfileError {
    /// Reading the file failed.
    #[error("reading {len} bytes at byte {offset} of the ZFile failed")]
    Io {
        /// Byte of the file at which the read started.
        offset: u64,
        /// Number of bytes requested.
        len: u64,
        /// Error of the file's reader.
        source: io::Error,
    },
    /// The file is too short.
    #[error("{size_bytes} bytes are too few for a ZFile, whose header and trailer take {want}")]
    Truncated {
        /// Size of the file in bytes.
        size_bytes: u64,
        /// Size needed, in bytes.
        want: u64,
    },
    /// The header or the trailer cannot be used.
    #[error("{end} at byte {offset}: {fault}")]
    Header {
        /// Which of the two.
        end: End,
        /// Byte of the file at which it begins.
        offset: u64,
        /// Fault found there.
        fault: HeaderFault,
    },
    /// Header and trailer contradict each other.
    #[error("trailer at byte {offset}: {field} {trailer} is not that of the header, {header}")]
    Differs {
        /// Byte of the file at which the trailer begins.
        offset: u64,
        /// Field that differs.
        field: &'static str,
        /// Value in the trailer.
        trailer: u64,
        /// Value in the header.
        header: u64,
    },
    /// The number of blocks is not that of the contents.
    #[error("{blocks} blocks are not the {want} that {contents_bytes} bytes take, {block_bytes} bytes each")]
    Blocks {
        /// Number of blocks in the index.
        blocks: u64,
        /// Number of blocks that the contents take.
        want: u64,
        /// Size of the contents in bytes.
        contents_bytes: u64,
        /// Block size in bytes.
        block_bytes: u32,
    },
    /// There are more blocks than readers take.
    #[error("{blocks} blocks are more than {max}")]
    TooManyBlocks {
        /// Number of blocks.
        blocks: u64,
        /// The limit.
        max: u64,
    },
    /// The index is not between the blocks and the trailer.
    #[error("index of {blocks} blocks at byte {offset} is not within bytes {start} to {end}")]
    IndexBounds {
        /// Byte at which the index begins.
        offset: u64,
        /// Number of blocks.
        blocks: u64,
        /// Byte at which the first block begins.
        start: u64,
        /// Byte at which the trailer begins.
        end: u64,
    },
    /// The index was changed.
    #[error("index at byte {offset}: checksum {stored:#010x} is not the computed {computed:#010x}")]
    IndexChecksum {
        /// Byte at which the index begins.
        offset: u64,
        /// Checksum in the header or the trailer.
        stored: u32,
        /// Checksum of the index.
        computed: u32,
    },
    /// A block has a length that no block has.
    #[error("block {block}: a stored length of {found} bytes is not within {min} to {max}")]
    BlockLength {
        /// Number of the block, from 0.
        block: u64,
        /// Length in the index.
        found: u32,
        /// Smallest length.
        min: u32,
        /// Largest length.
        max: u32,
    },
    /// The blocks do not end where the index begins.
    #[error("blocks end at byte {end}, and the index begins at byte {index_offset}")]
    BlocksEnd {
        /// End of the last block.
        end: u64,
        /// Byte at which the index begins.
        index_offset: u64,
    },
    /// A block cannot be used.
    #[error("block {block} at byte {offset}: {fault}")]
    Block {
        /// Number of the block, from 0.
        block: u64,
        /// Byte of the file at which it begins.
        offset: u64,
        /// Fault found there.
        fault: BlockFault,
    },
    /// A block takes more bytes than every reader takes.
    #[error(
        "block {block} is stored in {stored} bytes, and readers take {max} at most: choose smaller blocks"
    )]
    Incompressible {
        /// Number of the block, from 0.
        block: u64,
        /// Stored bytes of the block.
        stored: u32,
        /// The limit.
        max: u32,
    },
    /// The compression failed.
    #[error("the encoder failed")]
    Encoder,
    /// There is no memory for an encoder.
    #[error("no memory for a zstd encoder")]
    Memory,
    /// The index is not as it was when the file was opened.
    #[error("index entry of block {block} changed after the file was opened")]
    Changed {
        /// First block of the part that changed.
        block: u64,
    },
}

/// End of a file at which a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The header.
    Header,
    /// The trailer.
    Trailer,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Trailer => "trailer",
        })
    }
}

impl Classify for ZfileError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } => disk_kind(source),
            Self::TooManyBlocks { .. } | Self::Memory | Self::Block { fault: BlockFault::Memory, .. } => {
                Kind::Exhausted
            }
            Self::Encoder => Kind::Internal,
            Self::Changed { .. } => Kind::Changed,
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Io { source, .. } => disk_reason(source, "disk.read"),
            Self::Truncated { .. } => "zfile.truncated",
            Self::Header { fault, .. } => match fault {
                HeaderFault::Magic { .. } => "zfile.magic",
                HeaderFault::Flags { .. } => "zfile.flags",
                HeaderFault::Digest { .. } => "zfile.digest",
                HeaderFault::CompressedIndex => "zfile.index.compressed",
                HeaderFault::Algorithm { .. } => "zfile.algorithm",
                HeaderFault::BlockSize { .. } => "zfile.block-size",
                HeaderFault::Dictionary { .. } => "zfile.dictionary",
            },
            Self::Differs { .. } => "zfile.differs",
            Self::Blocks { .. } => "zfile.blocks",
            Self::TooManyBlocks { .. } => "limit.zfile-blocks",
            Self::IndexBounds { .. } => "zfile.index.bounds",
            Self::IndexChecksum { .. } => "zfile.index.checksum",
            Self::BlockLength { .. } => "zfile.block.length",
            Self::BlocksEnd { .. } => "zfile.blocks.end",
            Self::Block { fault, .. } => match fault {
                BlockFault::Checksum { .. } => "zfile.block.checksum",
                BlockFault::Malformed(_) => "zfile.block.malformed",
                BlockFault::Length { .. } => "zfile.block.contents",
                BlockFault::Memory => "zfile.memory",
            },
            Self::Incompressible { .. } => "zfile.incompressible",
            Self::Encoder => "zfile.encoder",
            Self::Memory => "zfile.memory",
            Self::Changed { .. } => "zfile.changed",
        }
    }
}
