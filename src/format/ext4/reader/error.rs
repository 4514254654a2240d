//! Errors of reading a file system, each with the place at which it was found.
//!
//! Reasons are listed in `docs/formats/ext4.md`, "Errors".

use std::io;

use crate::{
    error::{Classify, Kind, disk_kind, disk_reason},
    format::ext4::{
        Block, InodeNumber, dirent::DirentFault, extent::ExtentFault, group::GroupChecksum,
        inode::InodeError, journal::JournalError, superblock::SuperblockError, xattr::XattrFault,
    },
};

/// Failure to read a file system or a part of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Reading the image failed.
    #[error("reading {len} bytes at byte {offset} of the image failed")]
    Io {
        /// Byte of the image at which the read started.
        offset: u64,
        /// Number of bytes requested.
        len: u64,
        /// Error of the image's reader.
        source: io::Error,
    },
    /// The file is shorter than the file system, or than a superblock.
    #[error("{size_bytes} bytes are too few for a file system of {want}")]
    Truncated {
        /// Size of the file in bytes.
        size_bytes: u64,
        /// Size needed, in bytes.
        want: u64,
    },
    /// No superblock, or one that describes nothing readable.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// The journal cannot be replayed.
    #[error("journal: {0}")]
    Journal(#[from] JournalError),
    /// A block number lies outside the file system.
    #[error("{what} at block {block}, {len} blocks long, is outside the {blocks} blocks")]
    Outside {
        /// Kind of the block, in words.
        what: &'static str,
        /// First block of the stretch.
        block: Block,
        /// Length in blocks.
        len: u64,
        /// Number of blocks in the file system.
        blocks: u64,
    },
    /// A group descriptor has a wrong checksum.
    #[error("group {group}: {source}")]
    Group {
        /// Number of the group.
        group: u64,
        /// Stored and computed checksum.
        source: GroupChecksum,
    },
    /// An inode number does not exist: 0, or above the number of inodes.
    #[error("inode {number} is not within 1 to {inodes}")]
    Number {
        /// Number that was looked for.
        number: InodeNumber,
        /// Number of inodes in the file system.
        inodes: u32,
    },
    /// The record of an inode cannot be used.
    #[error("inode {number}: {source}")]
    Inode {
        /// Number of the inode.
        number: InodeNumber,
        /// Fault of the record.
        source: InodeError,
    },
    /// A rule for one inode is broken.
    #[error("inode {number}: {fault}")]
    Node {
        /// Number of the inode.
        number: InodeNumber,
        /// Rule that is broken.
        fault: NodeFault,
    },
    /// A node of an extent tree is malformed.
    #[error("extents of inode {number}, {place}: {fault}")]
    Extent {
        /// Number of the inode.
        number: InodeNumber,
        /// Place of the node.
        place: Place,
        /// Fault of the node.
        fault: ExtentFault,
    },
    /// A directory or one of its blocks is malformed.
    #[error("directory {number}, block {block}: {fault}")]
    Directory {
        /// Inode number of the directory.
        number: InodeNumber,
        /// Block of the directory, from 0.
        block: u64,
        /// Fault of the directory.
        fault: DirentFault,
    },
    /// The extended attributes of an inode are malformed.
    #[error("extended attributes of inode {number}: {fault}")]
    Xattr {
        /// Number of the inode.
        number: InodeNumber,
        /// Fault of the attributes.
        fault: XattrFault,
    },
}

/// Place of a node of an extent tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Root of the tree, in the inode.
    Inode,
    /// Block below the root.
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

/// Rule that an inode breaks although its record is sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeFault {
    /// The inode is no directory.
    #[error("it is not a directory")]
    NotDirectory,
    /// The inode is no symbolic link.
    #[error("it is not a symbolic link")]
    NotSymlink,
    /// The inode has no data: device, fifo or socket.
    #[error("it is a special file without data")]
    NoData,
    /// A read ends beyond the file.
    #[error("{len} bytes at byte {offset} are beyond its {size_bytes}")]
    End {
        /// Byte of the file at which the read starts.
        offset: u64,
        /// Number of bytes requested.
        len: u64,
        /// Size of the file in bytes.
        size_bytes: u64,
    },
    /// The file is larger than its map can address.
    #[error("{size_bytes} bytes are more blocks than a file can have")]
    TooLarge {
        /// Size of the file in bytes.
        size_bytes: u64,
    },
    /// The target of a symbolic link is empty or longer than 4095 bytes.
    #[error("a symbolic link of {len} bytes is not within 1 to 4095")]
    LinkLength {
        /// Length of the target in bytes.
        len: u64,
    },
    /// The target of a symbolic link holds a NUL.
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
            Self::Io { source, .. } => disk_reason(source, "disk.read"),
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
