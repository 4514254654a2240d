//! Why an image cannot be read, each failure with the place it was found at.
//!
//! Reasons are listed in `docs/formats/erofs.md`, "Checking".

use std::io;

use crate::{
    error::{Classify, Kind, disk_kind},
    format::erofs::{Nid, compression::Algorithm, inode::InodeError, superblock::SuperblockError},
};

/// Why an image, or a part of it, cannot be read.
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
    /// Too short for a superblock.
    #[error("{size_bytes} bytes are too few for an EROFS image")]
    Truncated {
        /// Size of the file.
        size_bytes: u64,
    },
    /// No superblock.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// The superblock's checksum does not match.
    #[error("superblock checksum {stored:#010x} is not the computed {computed:#010x}")]
    Checksum {
        /// In the superblock.
        stored: u32,
        /// Of the bytes covered.
        computed: u32,
    },
    /// A field of the superblock that no kernel mounts.
    #[error("superblock field {field} is {found}, {want}")]
    Field {
        /// Its name.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What is wanted.
        want: &'static str,
    },
    /// Features that this reader does not know.
    #[error("incompatible features {bits:#x} are not supported")]
    Feature {
        /// The bits.
        bits: u32,
    },
    /// Something lies outside the image.
    #[error(
        "{what} at byte {offset}, {len} bytes long, is outside the {size_bytes} bytes of device {device}"
    )]
    Outside {
        /// What it is.
        what: &'static str,
        /// The device; 0 is the image itself.
        device: u16,
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Size of the device in bytes.
        size_bytes: u64,
    },
    /// An inode record without a meaning.
    #[error("inode {nid}: {source}")]
    Inode {
        /// Its number.
        nid: Nid,
        /// What is wrong.
        source: InodeError,
    },
    /// A rule about one inode is broken.
    #[error("inode {nid}: {fault}")]
    Node {
        /// Its number.
        nid: Nid,
        /// What is wrong.
        fault: NodeFault,
    },
    /// The compression configurations are not ones that a kernel mounts.
    #[error("compression configuration {algorithm}: {fault}")]
    Compression {
        /// Name of the algorithm; empty for all of them.
        algorithm: &'static str,
        /// The broken rule.
        fault: &'static str,
    },
    /// The map of a compressed file is malformed.
    #[error("compressed inode {nid}: {fault}")]
    Map {
        /// Number of the inode.
        nid: Nid,
        /// The broken rule.
        fault: MapFault,
    },
    /// A directory block is malformed.
    #[error("directory {nid}, block {block}: {fault}")]
    Directory {
        /// Number of the directory's inode.
        nid: Nid,
        /// Block of the directory, from 0.
        block: u64,
        /// What is wrong.
        fault: DirectoryFault,
    },
    /// The extended attributes of an inode are malformed.
    #[error("extended attributes of inode {nid}: {fault}")]
    Xattr {
        /// Number of the inode.
        nid: Nid,
        /// What is wrong.
        fault: XattrFault,
    },
    /// The table of long attribute name prefixes is malformed.
    #[error("long xattr prefix {index}: {fault}")]
    Prefix {
        /// Its number.
        index: u8,
        /// What is wrong.
        fault: &'static str,
    },
    /// The device table is malformed.
    #[error("device {id}: {fault}")]
    Device {
        /// Its number, from 1.
        id: u16,
        /// What is wrong.
        fault: &'static str,
    },
    /// Another number of files was given than the image has devices.
    #[error("the image has {slots} extra devices, {given} were given")]
    DeviceCount {
        /// Slots in the image.
        slots: u16,
        /// Files given.
        given: usize,
    },
}

/// What is wrong with an inode beyond its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeFault {
    /// Compressed data is not read yet.
    #[error("its data is compressed, which is not supported")]
    Compressed,
    /// The inode number has the metabox bit, in an image without a metabox.
    #[error("its number is one of the metabox, which the image does not have")]
    Metabox,
    /// The inline tail crosses a block.
    #[error("the inline tail at byte {offset}, {len} bytes long, crosses a block boundary")]
    Tail {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Not a directory.
    #[error("it is not a directory")]
    NotDirectory,
    /// Not a symbolic link.
    #[error("it is not a symbolic link")]
    NotSymlink,
    /// It has no data.
    #[error("it is a special file without data")]
    NoData,
    /// The target of a symbolic link has no acceptable length.
    #[error("a symbolic link of {len} bytes is not within 1 to 4095")]
    LinkLength {
        /// Its length in bytes.
        len: u64,
    },
    /// The target of a symbolic link has a NUL.
    #[error("the symbolic link has a NUL in it")]
    LinkNul,
    /// A chunk on a device that does not exist.
    #[error("a chunk is on device {id} of {count}")]
    ChunkDevice {
        /// The device's number.
        id: u16,
        /// Devices of the image.
        count: u16,
    },
}

/// What is wrong with a directory block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryFault {
    /// The first name offset does not follow a whole number of records.
    #[error("the first name offset {found} is not a multiple of 12 within the block of {len} bytes")]
    FirstOffset {
        /// The offset.
        found: u16,
        /// Bytes of the block.
        len: usize,
    },
    /// A name offset is before the names or not after the one before it.
    #[error("the offset {found} of name {index} is not above {before} and within the block of {len} bytes")]
    Offset {
        /// The record's index.
        index: usize,
        /// Its name offset.
        found: u16,
        /// The offset before it.
        before: u16,
        /// Bytes of the block.
        len: usize,
    },
    /// A record names no type.
    #[error("file type {found} of record {index} is not one of 1..=7")]
    FileType {
        /// The record's index.
        index: usize,
        /// The byte found.
        found: u8,
    },
    /// A name of no or too many bytes.
    #[error("name {index} has {len} bytes, not 1 to 255")]
    NameLength {
        /// The record's index.
        index: usize,
        /// Its length.
        len: usize,
    },
    /// A name with a slash or NUL.
    #[error("name {name} holds a slash or NUL")]
    NameByte {
        /// The name, quoted.
        name: String,
    },
    /// Names do not ascend.
    #[error("name {name} does not sort after {before}")]
    Order {
        /// The name, quoted.
        name: String,
        /// The name before it, quoted.
        before: String,
    },
}

/// What is wrong with extended attributes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XattrFault {
    /// A body that is a header and nothing else.
    #[error("the body holds nothing but its header")]
    Empty,
    /// An entry, or the ids, go beyond the body.
    #[error("an entry ends at byte {end} of a body of {len}")]
    Bounds {
        /// Where the entry ends, in bytes from the start of the body.
        end: u64,
        /// Length of the body.
        len: u64,
    },
    /// A name index that means nothing.
    #[error("name index {index:#04x} is not known")]
    Index {
        /// The index.
        index: u8,
    },
    /// A name the kernel cannot list.
    #[error("a name of {len} bytes after prefix {index} is not acceptable")]
    Name {
        /// The index.
        index: u8,
        /// Bytes after the prefix.
        len: usize,
    },
}

/// A defect in the map of a compressed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapFault {
    /// The head of the map.
    #[error("the head of its map: {fault}")]
    Header {
        /// The broken rule.
        fault: &'static str,
    },
    /// An algorithm that the superblock does not list.
    #[error("compression algorithm {number} is not one of the image's")]
    Algorithm {
        /// Number of the algorithm.
        number: u8,
    },
    /// A record of the map.
    #[error("record {index} of its map: {fault}")]
    Record {
        /// The number of the record.
        index: u64,
        /// The broken rule.
        fault: &'static str,
    },
    /// An extent and its pcluster do not fit each other.
    #[error("{len} bytes at byte {offset} cannot come from {encoded} {}", match algorithm {
        Some(algorithm) => algorithm.as_str(),
        None => "stored",
    })]
    Size {
        /// Byte offset in the file.
        offset: u64,
        /// Bytes of the file.
        len: u64,
        /// Bytes of the pcluster.
        encoded: u64,
        /// How these are encoded.
        algorithm: Option<Algorithm>,
    },
    /// The inline pcluster crosses a block.
    #[error("the inline pcluster at byte {offset}, {len} bytes long, crosses a block boundary")]
    Inline {
        /// Byte offset in the image.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A fragment outside the packed file.
    #[error("{len} bytes at byte {offset} of the packed file are not there")]
    Fragment {
        /// Byte offset in the packed file.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

impl MapFault {
    fn reason(self) -> &'static str {
        match self {
            Self::Header { .. } => "erofs.compressed.header",
            Self::Algorithm { .. } => "erofs.compressed.algorithm",
            Self::Record { .. } => "erofs.compressed.map",
            Self::Size { .. } => "erofs.compressed.size",
            Self::Inline { .. } => "erofs.compressed.inline",
            Self::Fragment { .. } => "erofs.compressed.fragment",
        }
    }
}

impl Classify for ReadError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } => disk_kind(source),
            Self::DeviceCount { .. } => Kind::Conflict,
            // Nothing is wrong with the image, so the request is not to blame.
            error if error.is_compressed() => Kind::Conflict,
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Io { .. } => "disk.read",
            Self::Truncated { .. } => "erofs.superblock.truncated",
            Self::Superblock(error) => error.reason(),
            Self::Checksum { .. } => "erofs.superblock.checksum",
            Self::Field { .. } => "erofs.superblock.field",
            Self::Feature { .. } => "erofs.superblock.feature",
            Self::Outside { .. } => "erofs.bounds",
            Self::Inode { source, .. } => source.reason(),
            Self::Node { fault, .. } => fault.reason(),
            Self::Compression { .. } => "erofs.superblock.compression",
            Self::Map { fault, .. } => fault.reason(),
            Self::Directory { fault, .. } => fault.reason(),
            Self::Xattr { fault, .. } => fault.reason(),
            Self::Prefix { .. } => "erofs.xattr.prefix",
            Self::Device { .. } => "erofs.device.slot",
            Self::DeviceCount { .. } => "erofs.device.count",
        }
    }
}

impl ReadError {
    /// True when the only obstacle is that data is compressed.
    pub fn is_compressed(&self) -> bool {
        matches!(self, Self::Node { fault: NodeFault::Compressed, .. })
    }
}

impl NodeFault {
    fn reason(self) -> &'static str {
        match self {
            Self::Compressed => "erofs.compressed",
            Self::Metabox => "erofs.inode.metabox",
            Self::Tail { .. } => "erofs.inode.tail",
            Self::NotDirectory | Self::NotSymlink | Self::NoData => "erofs.inode.type",
            Self::LinkLength { .. } => "erofs.symlink.length",
            Self::LinkNul => "erofs.symlink.nul",
            Self::ChunkDevice { .. } => "erofs.chunk.device",
        }
    }
}

impl DirectoryFault {
    fn reason(&self) -> &'static str {
        match self {
            Self::FirstOffset { .. } | Self::Offset { .. } => "erofs.dirent.offset",
            Self::FileType { .. } => "erofs.dirent.type",
            Self::NameLength { .. } | Self::NameByte { .. } => "erofs.dirent.name",
            Self::Order { .. } => "erofs.dirent.order",
        }
    }
}

impl XattrFault {
    fn reason(&self) -> &'static str {
        match self {
            Self::Empty | Self::Bounds { .. } => "erofs.xattr.body",
            Self::Index { .. } => "erofs.xattr.index",
            Self::Name { .. } => "erofs.xattr.name",
        }
    }
}
