//! Errors of reading an image, each with the place at which it was found.
//!
//! Reasons are listed in `docs/formats/erofs.md`, "Checking".

use std::io;

use crate::{
    error::{Classify, Kind, disk_kind, disk_reason},
    format::erofs::{Nid, compression::Algorithm, inode::InodeError, superblock::SuperblockError},
};

/// Failure to read an image or a part of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Reading the image or a device failed.
    #[error("reading {len} bytes at byte {offset} of the image failed")]
    Io {
        /// Byte of the file at which the read started.
        offset: u64,
        /// Number of bytes requested.
        len: u64,
        /// Error of the file's reader.
        source: io::Error,
    },
    /// The file ends before the superblock does.
    #[error("{size_bytes} bytes are too few for an EROFS image")]
    Truncated {
        /// Size of the file in bytes.
        size_bytes: u64,
    },
    /// The file has no superblock, or one with a block size outside 512 bytes to 64 KiB.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// The superblock's checksum is not that of its bytes.
    #[error("superblock checksum {stored:#010x} is not the computed {computed:#010x}")]
    Checksum {
        /// Checksum that the superblock holds.
        stored: u32,
        /// Checksum of the covered bytes.
        computed: u32,
    },
    /// A field of the superblock has a value that no kernel mounts.
    #[error("superblock field {field} is {found}, {want}")]
    Field {
        /// Name of the field, as the kernel spells it.
        field: &'static str,
        /// Value that was found in the field.
        found: u64,
        /// Values that are accepted, in words.
        want: &'static str,
    },
    /// Incompatible features that this reader does not know.
    #[error("incompatible features {bits:#x} are not supported")]
    Feature {
        /// Bits of the unknown features.
        bits: u32,
    },
    /// Bytes that a record points at lie outside their file.
    #[error(
        "{what} at byte {offset}, {len} bytes long, is outside the {size_bytes} bytes of device {device}"
    )]
    Outside {
        /// Kind of the bytes, in words.
        what: &'static str,
        /// Number of the device; 0 for the image itself.
        device: u16,
        /// Byte offset on the device.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Size of the device in bytes.
        size_bytes: u64,
    },
    /// The record of an inode is malformed.
    #[error("inode {nid}: {source}")]
    Inode {
        /// Number of the inode.
        nid: Nid,
        /// Fault of the record.
        source: InodeError,
    },
    /// A rule for one inode is broken.
    #[error("inode {nid}: {fault}")]
    Node {
        /// Number of the inode.
        nid: Nid,
        /// Rule that is broken.
        fault: NodeFault,
    },
    /// No kernel mounts the compression configurations.
    #[error("compression configuration {algorithm}: {fault}")]
    Compression {
        /// Name of the algorithm; empty when the fault is not about one.
        algorithm: &'static str,
        /// Rule that is broken, in words.
        fault: &'static str,
    },
    /// The map of a compressed file is malformed.
    #[error("compressed inode {nid}: {fault}")]
    Map {
        /// Number of the inode.
        nid: Nid,
        /// Rule that is broken.
        fault: MapFault,
    },
    /// A directory block is malformed.
    #[error("directory {nid}, block {block}: {fault}")]
    Directory {
        /// Number of the directory's inode.
        nid: Nid,
        /// Block of the directory, from 0.
        block: u64,
        /// Fault of the block.
        fault: DirectoryFault,
    },
    /// The extended attributes of an inode are malformed.
    #[error("extended attributes of inode {nid}: {fault}")]
    Xattr {
        /// Number of the inode.
        nid: Nid,
        /// Fault of the attributes.
        fault: XattrFault,
    },
    /// The table of long attribute name prefixes is malformed.
    #[error("long xattr prefix {index}: {fault}")]
    Prefix {
        /// Number of the prefix, from 0.
        index: u8,
        /// Rule that is broken, in words.
        fault: &'static str,
    },
    /// The device table is malformed.
    #[error("device {id}: {fault}")]
    Device {
        /// Number of the device, from 1.
        id: u16,
        /// Rule that is broken, in words.
        fault: &'static str,
    },
    /// The number of files given differs from the number of devices.
    #[error("the image has {slots} extra devices, {given} were given")]
    DeviceCount {
        /// Device slots in the image.
        slots: u16,
        /// Number of files given.
        given: usize,
    },
}

/// Rule that an inode breaks although its record is sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeFault {
    /// The data is compressed, and decoding is not implemented.
    #[error("its data is compressed, which is not supported")]
    Compressed,
    /// The inode number has the metabox bit, but readable images have no metabox.
    #[error("its number is one of the metabox, which the image does not have")]
    Metabox,
    /// The inline tail crosses a block boundary.
    #[error("the inline tail at byte {offset}, {len} bytes long, crosses a block boundary")]
    Tail {
        /// Byte of the image at which the tail starts.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The inode is no directory.
    #[error("it is not a directory")]
    NotDirectory,
    /// The inode is no symbolic link.
    #[error("it is not a symbolic link")]
    NotSymlink,
    /// The inode has no data: device, fifo or socket.
    #[error("it is a special file without data")]
    NoData,
    /// The target of a symbolic link is empty or longer than 4095 bytes.
    #[error("a symbolic link of {len} bytes is not within 1 to 4095")]
    LinkLength {
        /// Length of the target in bytes.
        len: u64,
    },
    /// The target of a symbolic link holds a NUL.
    #[error("the symbolic link has a NUL in it")]
    LinkNul,
    /// A chunk lies on a device that does not exist.
    #[error("a chunk is on device {id} of {count}")]
    ChunkDevice {
        /// Number of the device in the chunk's record.
        id: u16,
        /// Number of devices that the image has.
        count: u16,
    },
}

/// Fault of a directory block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryFault {
    /// The first name offset does not follow a whole number of records.
    #[error("the first name offset {found} is not a multiple of 12 within the block of {len} bytes")]
    FirstOffset {
        /// First name offset of the block.
        found: u16,
        /// Length of the block in bytes.
        len: usize,
    },
    /// A name offset is not above the one before it, or beyond the block.
    #[error("the offset {found} of name {index} is not above {before} and within the block of {len} bytes")]
    Offset {
        /// Index of the record in the block.
        index: usize,
        /// Name offset of the record.
        found: u16,
        /// Name offset of the record before.
        before: u16,
        /// Length of the block in bytes.
        len: usize,
    },
    /// The type byte of a record is none of 1 to 7.
    #[error("file type {found} of record {index} is not one of 1..=7")]
    FileType {
        /// Index of the record in the block.
        index: usize,
        /// Type byte of the record.
        found: u8,
    },
    /// A name is empty or longer than 255 bytes.
    #[error("name {index} has {len} bytes, not 1 to 255")]
    NameLength {
        /// Index of the record in the block.
        index: usize,
        /// Length of the name in bytes.
        len: usize,
    },
    /// A name holds a slash or NUL.
    #[error("name {name} holds a slash or NUL")]
    NameByte {
        /// Name with quotes and escapes.
        name: String,
    },
    /// Names do not ascend strictly.
    #[error("name {name} does not sort after {before}")]
    Order {
        /// Name with quotes and escapes.
        name: String,
        /// Name before it, with quotes and escapes.
        before: String,
    },
}

/// Fault of the extended attributes of an inode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XattrFault {
    /// The body is a header without attributes, which kernels refuse.
    #[error("the body holds nothing but its header")]
    Empty,
    /// An entry or the shared ids end beyond the body.
    #[error("an entry ends at byte {end} of a body of {len}")]
    Bounds {
        /// Byte after the entry, counted from the start of the body.
        end: u64,
        /// Length of the body in bytes.
        len: u64,
    },
    /// A name index selects no known prefix.
    #[error("name index {index:#04x} is not known")]
    Index {
        /// Name index of the entry.
        index: u8,
    },
    /// A name that the kernel cannot list: empty after its prefix, too long, or with a NUL.
    #[error("a name of {len} bytes after prefix {index} is not acceptable")]
    Name {
        /// Name index of the entry.
        index: u8,
        /// Length of the name after its prefix, in bytes.
        len: usize,
    },
}

/// Fault in the map of a compressed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapFault {
    /// The header of the map is malformed.
    #[error("the head of its map: {fault}")]
    Header {
        /// Rule that is broken, in words.
        fault: &'static str,
    },
    /// A file uses an algorithm that the superblock does not list.
    #[error("compression algorithm {number} is not one of the image's")]
    Algorithm {
        /// Number of the algorithm.
        number: u8,
    },
    /// A record of the map is malformed.
    #[error("record {index} of its map: {fault}")]
    Record {
        /// Number of the record, from 0.
        index: u64,
        /// Rule that is broken, in words.
        fault: &'static str,
    },
    /// The length of an extent and that of its pcluster do not fit each other.
    #[error("{len} bytes at byte {offset} cannot come from {encoded} {}", match algorithm {
        Some(algorithm) => algorithm.as_str(),
        None => "stored",
    })]
    Size {
        /// Byte of the file at which the extent starts.
        offset: u64,
        /// Length of the extent in bytes.
        len: u64,
        /// Length of the pcluster in bytes.
        encoded: u64,
        /// Algorithm of the pcluster; `None` for uncompressed bytes.
        algorithm: Option<Algorithm>,
    },
    /// The inline pcluster crosses a block boundary.
    #[error("the inline pcluster at byte {offset}, {len} bytes long, crosses a block boundary")]
    Inline {
        /// Byte of the image at which it starts.
        offset: u64,
        /// Length of the pcluster in bytes.
        len: u64,
    },
    /// A fragment ends outside the packed file.
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
            // The image is sound, so the request is not malformed.
            error if error.is_compressed() => Kind::Conflict,
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Io { source, .. } => disk_reason(source, "disk.read"),
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
    /// True when the only obstacle is that the data is compressed.
    fn is_compressed(&self) -> bool {
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
