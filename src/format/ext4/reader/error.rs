//! Why a file system cannot be read, each failure with the place it was found at.
//!
//! Reasons are listed in `docs/formats/ext4.md`, "Errors".

use std::io;

use crate::{
    error::{Classify, Kind, disk_kind},
    format::ext4::{
        Block, InodeNumber, dirent::DirentFault, extent::ExtentFault, group::GroupChecksum,
        inode::InodeError, journal::JournalError, superblock::SuperblockError, xattr::XattrFault,
    },
};

/// Why a file system, or a part of it, cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file below failed.
    #[error("reading {len} bytes at byte {offset} of the image failed")]
    Io {
        /// Byte offset.
        offset: u64,
        /// Bytes wanted.
        len: u64,
        /// The failure.
        source: io::Error,
    },
    /// Too short for what the superblock says, or for one.
    #[error("{size_bytes} bytes are too few for a file system of {want}")]
    Truncated {
        /// Size of the file.
        size_bytes: u64,
        /// What is needed.
        want: u64,
    },
    /// No superblock that can be read.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// The journal cannot be replayed.
    #[error("journal: {0}")]
    Journal(#[from] JournalError),
    /// Something lies outside the file system.
    #[error("{what} at block {block}, {len} blocks long, is outside the {blocks} blocks")]
    Outside {
        /// What it is.
        what: &'static str,
        /// Its first block.
        block: Block,
        /// Its length in blocks.
        len: u64,
        /// Blocks of the file system.
        blocks: u64,
    },
    /// A group descriptor is malformed.
    #[error("group {group}: {source}")]
    Group {
        /// Its number.
        group: u64,
        /// What is wrong.
        source: GroupChecksum,
    },
    /// An inode number that does not exist.
    #[error("inode {number} is not within 1 to {inodes}")]
    Number {
        /// The number.
        number: InodeNumber,
        /// Inodes of the file system.
        inodes: u32,
    },
    /// An inode without a meaning.
    #[error("inode {number}: {source}")]
    Inode {
        /// Its number.
        number: InodeNumber,
        /// What is wrong.
        source: InodeError,
    },
    /// A rule about one inode is broken.
    #[error("inode {number}: {fault}")]
    Node {
        /// Its number.
        number: InodeNumber,
        /// What is wrong.
        fault: NodeFault,
    },
    /// An extent tree is malformed.
    #[error("extents of inode {number}, {place}: {fault}")]
    Extent {
        /// Number of the inode.
        number: InodeNumber,
        /// The node: a block, or in the inode.
        place: Place,
        /// What is wrong.
        fault: ExtentFault,
    },
    /// A directory is malformed.
    #[error("directory {number}, block {block}: {fault}")]
    Directory {
        /// Number of its inode.
        number: InodeNumber,
        /// Block of the directory, from 0.
        block: u64,
        /// What is wrong.
        fault: DirentFault,
    },
    /// The extended attributes of an inode are malformed.
    #[error("extended attributes of inode {number}: {fault}")]
    Xattr {
        /// Number of the inode.
        number: InodeNumber,
        /// What is wrong.
        fault: XattrFault,
    },
}

/// Where a node of an extent tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the inode.
    Inode,
    /// A block of its own.
    Block(Block),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inode => f.write_str("in the inode"),
            Self::Block(block) => write!(f, "block {block}"),
        }
    }
}

/// What is wrong with an inode beyond its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeFault {
    /// Not a directory.
    #[error("it is not a directory")]
    NotDirectory,
    /// Not a symbolic link.
    #[error("it is not a symbolic link")]
    NotSymlink,
    /// It has no data.
    #[error("it is a special file without data")]
    NoData,
    /// A read beyond the end.
    #[error("{len} bytes at byte {offset} are beyond its {size_bytes}")]
    End {
        /// Byte offset.
        offset: u64,
        /// Bytes wanted.
        len: u64,
        /// Size in bytes.
        size_bytes: u64,
    },
    /// More data than blocks can be numbered for.
    #[error("{size_bytes} bytes are more blocks than a file can have")]
    TooLarge {
        /// Size in bytes.
        size_bytes: u64,
    },
    /// The target of a symbolic link has no acceptable length.
    #[error("a symbolic link of {len} bytes is not within 1 to 4095")]
    LinkLength {
        /// Its length in bytes.
        len: u64,
    },
    /// The target of a symbolic link has a NUL.
    #[error("the symbolic link has a NUL in it")]
    LinkNul,
}

impl Classify for ReadError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } => disk_kind(source),
            Self::Superblock(error) => error.kind(),
            Self::Journal(error) => error.kind(),
            Self::Inode { source, .. } => source.kind(),
            Self::Xattr { fault: XattrFault::Sum, .. }
            | Self::Directory { fault: DirentFault::Names, .. } => Kind::Exhausted,
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Io { .. } => "disk.read",
            Self::Truncated { .. } => "ext4.truncated",
            Self::Superblock(error) => error.reason(),
            Self::Journal(error) => error.reason(),
            Self::Outside { .. } => "ext4.bounds",
            Self::Group { .. } => "ext4.group.checksum",
            Self::Number { .. } => "ext4.inode.number",
            Self::Inode { source, .. } => source.reason(),
            Self::Node { fault, .. } => fault.reason(),
            Self::Extent { fault, .. } => match fault {
                ExtentFault::Checksum { .. } => "ext4.extent.checksum",
                ExtentFault::Empty { .. } | ExtentFault::Order { .. } => "ext4.extent.order",
                _ => "ext4.extent.header",
            },
            Self::Directory { fault, .. } => match fault {
                DirentFault::Checksum { .. } => "ext4.directory.checksum",
                DirentFault::Length { .. } => "ext4.dirent.length",
                DirentFault::Name { .. } | DirentFault::NameByte { .. } => "ext4.dirent.name",
                DirentFault::Repeated { .. } => "ext4.dirent.repeated",
                DirentFault::Parent { .. } | DirentFault::NoParent | DirentFault::Linked { .. } => {
                    "ext4.directory.parent"
                }
                DirentFault::Names => "limit.directory-names",
                DirentFault::FileType { .. } | DirentFault::WrongType { .. } => "ext4.dirent.type",
                DirentFault::Size { .. } | DirentFault::Inline { .. } => "ext4.directory.size",
            },
            Self::Xattr { fault, .. } => match fault {
                XattrFault::Checksum { .. } => "ext4.xattr.checksum",
                XattrFault::Magic { .. } | XattrFault::Blocks { .. } => "ext4.xattr.header",
                XattrFault::Bounds { .. } | XattrFault::Value { .. } => "ext4.xattr.bounds",
                XattrFault::Name { .. } | XattrFault::Repeated { .. } => "ext4.xattr.name",
                XattrFault::Acl(_) => "ext4.xattr.acl",
                XattrFault::ValueInode { .. } => "ext4.xattr.inode",
                XattrFault::Sum => "limit.xattrs",
            },
        }
    }
}

impl NodeFault {
    fn reason(self) -> &'static str {
        match self {
            Self::NotDirectory | Self::NotSymlink | Self::NoData => "ext4.inode.type",
            Self::End { .. } => "ext4.inode.end",
            Self::TooLarge { .. } => "ext4.inode.size",
            Self::LinkLength { .. } => "ext4.symlink.length",
            Self::LinkNul => "ext4.symlink.nul",
        }
    }
}
