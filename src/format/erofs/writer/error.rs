//! Why an image cannot be written.
//!
//! Source: `docs/formats/erofs.md`, "How an image is written".

use std::io;

use crate::{
    error::{Classify, Kind, disk_kind},
    limits,
    tree::TreeError,
};

/// Why an image cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriterError {
    /// An entry has no place in the tree.
    #[error("entry {path}: {source}")]
    Tree {
        /// The entry's name.
        path: String,
        /// Why.
        source: TreeError,
    },
    /// The sink does not take the bytes.
    #[error("cannot write the image: {0}")]
    Sink(#[from] io::Error),
    /// Addresses are 32 bits.
    #[error("an image of {blocks} blocks has more than 2^32 - 1")]
    ImageBlocks {
        /// Blocks needed so far.
        blocks: u64,
    },
    /// A file that the kernel cannot count the blocks of.
    #[error("a file of {size_bytes} bytes is larger than {}", limits::FILE_BYTES)]
    FileSize {
        /// Size of the file, in bytes.
        size_bytes: u64,
    },
    /// Sparse files whose holes cannot be left out.
    #[error("holes of sparse files cost {bytes} bytes, more than {}", limits::SPARSE_OVERHEAD_BYTES)]
    SparseOverhead {
        /// What they cost so far, in bytes.
        bytes: u64,
    },
    /// More metadata than 32 bits of inode slots address.
    #[error("inodes take more than 128 GiB")]
    Inodes,
    /// An attribute that EROFS cannot store.
    #[error("extended attribute {name} with a value of {value} bytes cannot be stored")]
    Xattr {
        /// Its name.
        name: String,
        /// Length of its value in bytes.
        value: usize,
    },
    /// The attributes of one inode do not fit.
    #[error("extended attributes of one inode take {len} bytes, more than EROFS stores")]
    XattrSum {
        /// Length in bytes.
        len: usize,
    },
    /// The root directory has too many attributes for the first block, even when all are shared.
    #[error("{count} extended attributes do not fit beside the root directory's inode")]
    RootXattrs {
        /// How many it has.
        count: usize,
    },
    /// Names and numbers take too much memory.
    #[error("the layer's metadata exceeds {limit} bytes of memory")]
    Memory {
        /// The limit in bytes.
        limit: u64,
    },
    /// The caller broke the order of calls, or gave more or less data than it announced.
    #[error("writer called out of order: {0}")]
    Order(&'static str),
    /// A number that cannot be as large as it is.
    #[error("writer lost count: {0}")]
    Count(std::num::TryFromIntError),
}

impl WriterError {
    pub(super) fn internal(error: std::num::TryFromIntError) -> Self {
        Self::Count(error)
    }
}

impl Classify for WriterError {
    fn kind(&self) -> Kind {
        match self {
            Self::Tree { source, .. } => source.kind(),
            Self::Sink(error) => disk_kind(error),
            Self::ImageBlocks { .. }
            | Self::FileSize { .. }
            | Self::SparseOverhead { .. }
            | Self::Inodes
            | Self::XattrSum { .. }
            | Self::RootXattrs { .. }
            | Self::Memory { .. } => Kind::Exhausted,
            Self::Xattr { .. } => Kind::Malformed,
            Self::Order(_) | Self::Count(_) => Kind::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Tree { source, .. } => source.reason(),
            Self::Sink(_) => "disk.write",
            Self::ImageBlocks { .. } => "limit.image-blocks",
            Self::FileSize { .. } => "limit.file-size",
            Self::SparseOverhead { .. } => "limit.sparse-overhead",
            Self::Inodes => "limit.inodes",
            Self::Xattr { .. } => "erofs.xattr.name",
            Self::XattrSum { .. } => "limit.xattr-sum",
            Self::RootXattrs { .. } => "limit.root-xattrs",
            Self::Memory { .. } => "limit.metadata",
            Self::Order(_) | Self::Count(_) => "erofs.writer",
        }
    }
}
