//! Failures of writing an image.
//!
//! Source: `docs/formats/erofs.md`, "How an image is written".

use std::io;

use crate::{
    error::{Classify, Kind, disk_kind},
    format::erofs::reader::ReadError,
    limits,
    tree::TreeError,
};

/// Failure to write an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriterError {
    /// An entry has no place in the tree.
    #[error("entry {path}: {source}")]
    Tree {
        /// Name of the entry in the layer.
        path: String,
        /// Reason for which the tree refuses it.
        source: TreeError,
    },
    /// The file system below cannot be read.
    #[error("the file system below: {0}")]
    Read(#[from] ReadError),
    /// The device has a file system that no layer can be written above.
    #[error("the file system below has {what}, above which no layer is written")]
    Below {
        /// Property of that file system.
        what: &'static str,
    },
    /// Writing to the sink failed.
    #[error("cannot write the image: {0}")]
    Sink(#[from] io::Error),
    /// The image needs more blocks than 32-bit addresses reach.
    #[error("an image of {blocks} blocks has more than 2^32 - 1")]
    ImageBlocks {
        /// Blocks that the image would need.
        blocks: u64,
    },
    /// A merged image has more layers than there is room for before its root.
    #[error("{count} layers are more than one image can refer to")]
    Devices {
        /// Number of layers.
        count: usize,
    },
    /// A file is so large that the kernel cannot count its blocks.
    #[error("a file of {size_bytes} bytes is larger than {}", limits::FILE_BYTES)]
    FileSize {
        /// Size of the file, in bytes.
        size_bytes: u64,
    },
    /// Holes of sparse files cost more chunk arrays and zeros than allowed.
    #[error("holes of sparse files cost {bytes} bytes, more than {}", limits::SPARSE_OVERHEAD_BYTES)]
    SparseOverhead {
        /// Cost so far, in bytes.
        bytes: u64,
    },
    /// The metadata needs more inode slots than 32 bits count.
    #[error("inodes take more than 128 GiB")]
    Inodes,
    /// EROFS cannot store an attribute: its prefix, name or value.
    #[error("extended attribute {name} with a value of {value} bytes cannot be stored")]
    Xattr {
        /// Name of the attribute.
        name: String,
        /// Length of its value in bytes.
        value: usize,
    },
    /// The attributes of one inode are longer than a body can be.
    #[error("extended attributes of one inode take {len} bytes, more than EROFS stores")]
    XattrSum {
        /// Length of all attributes, in bytes.
        len: usize,
    },
    /// The root directory has too many attributes for the first block, even with all of them
    /// shared.
    #[error("{count} extended attributes do not fit beside the root directory's inode")]
    RootXattrs {
        /// Number of attributes of the root.
        count: usize,
    },
    /// Names and numbers need more memory than allowed.
    #[error("the layer's metadata exceeds {limit} bytes of memory")]
    Memory {
        /// Largest memory allowed, in bytes.
        limit: u64,
    },
    /// The caller broke the order of calls, or passed more or less data than announced.
    #[error("writer called out of order: {0}")]
    Order(&'static str),
    /// A number exceeds a bound that other checks should have kept.
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
            Self::Read(error) => error.kind(),
            Self::Below { .. } => Kind::NotImplemented,
            Self::ImageBlocks { .. }
            | Self::Devices { .. }
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
            Self::Read(error) => error.reason(),
            Self::Below { .. } => "erofs.below",
            Self::ImageBlocks { .. } => "limit.image-blocks",
            Self::Devices { .. } => "limit.devices",
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
