//! Refusals of archives: one variant and one stable reason id per rule, with the place.
//!
//! Source: `docs/formats/tar.md`, which lists the rules with their reasons.

use std::fmt;

use crate::{
    error::{Classify, Kind, Quoted},
    limits,
    tree::xattr::XattrError,
};

/// Refusal of an archive: the broken rule, and the header at which it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TarError {
    // Boxed to keep it small: every step of the parser returns a `Result` with it.
    inner: Box<Inner>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Inner {
    header_offset: u64,
    name: Vec<u8>,
    problem: Problem,
}

impl TarError {
    pub(super) fn new(header_offset: u64, name: &[u8], problem: Problem) -> Self {
        Self { inner: Box::new(Inner { header_offset, name: name.to_vec(), problem }) }
    }

    /// Byte of the archive at which the header of the refused entry begins.
    #[cfg(test)]
    pub(super) fn header_offset(&self) -> u64 {
        self.inner.header_offset
    }

    /// Name of the refused entry as far as it was read; empty when none was.
    pub fn name(&self) -> &[u8] {
        &self.inner.name
    }

    /// Rule that the archive breaks.
    pub fn problem(&self) -> &Problem {
        &self.inner.problem
    }
}

impl fmt::Display for TarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tar header at byte {}", self.inner.header_offset)?;
        if !self.inner.name.is_empty() {
            write!(f, ", {}", Quoted(&self.inner.name))?;
        }
        write!(f, ": {}", self.inner.problem)
    }
}

impl std::error::Error for TarError {}

impl Classify for TarError {
    fn kind(&self) -> Kind {
        match self.problem() {
            Problem::ExtensionSize { .. } | Problem::SparseRegions => Kind::Exhausted,
            Problem::Xattr(error) => error.kind(),
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        self.problem().reason()
    }
}

/// Rule that an archive breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The stream ends in a header, less than 512 bytes after its start.
    #[error("the archive ends within a header")]
    TruncatedHeader,
    /// The first block is no header but the start of another format.
    #[error("this is no tar archive but {what}; layers are read as tar, gzip or zstd")]
    Foreign {
        /// Name of the other format, with an article.
        what: &'static str,
    },
    /// The stream ends within the data of an entry.
    #[error("the archive ends {missing} bytes before the end of the entry's data")]
    TruncatedData {
        /// Number of bytes missing.
        missing: u64,
    },
    /// The stream ends within the body of an extension header.
    #[error("the archive ends {missing} bytes before the end of an extension header's body")]
    TruncatedExtension {
        /// Number of bytes missing.
        missing: u64,
    },
    /// One zero block is followed by a block that is not zero.
    #[error("a zero block is followed by a block that is not zero")]
    LoneZeroBlock,
    /// The checksum field holds another number than the sum of the header, or none.
    #[error("the header's checksum field {} does not hold its sum, {computed:o} (octal)", Quoted(stored))]
    Checksum {
        /// Bytes of the checksum field.
        stored: [u8; 8],
        /// Sum of the header's bytes, with spaces in the checksum field.
        computed: u32,
    },
    /// The magic field is not that of POSIX, GNU or V7.
    #[error("magic and version {} are none of ustar, GNU tar and V7", Quoted(found))]
    Magic {
        /// Bytes of magic and version.
        found: [u8; 8],
    },
    /// A numeric field holds no number, or one beyond 64 bits.
    #[error("field {field} {} is not a number", Quoted(found))]
    Number {
        /// Name of the field in the header.
        field: &'static str,
        /// Bytes of the field.
        found: Vec<u8>,
    },
    /// The size field is negative.
    #[error("size {found} is negative")]
    Size {
        /// Size in bytes.
        found: i64,
    },
    /// Owner or group lies outside 0 to 2^32 - 2.
    #[error("{field} {found} is not within 0 to 4294967294")]
    Owner {
        /// `uid` or `gid`.
        field: &'static str,
        /// Number of the owner or group.
        found: i64,
    },
    /// The major number is 4096 or more, the minor one 2^20 or more, or one is negative.
    #[error("device {major}:{minor} is not within 0:0 to {}:{}", limits::DEVICE_MAJOR, limits::DEVICE_MINOR)]
    Device {
        /// Major number, below 4096 in a valid device.
        major: i64,
        /// Minor number, below 2^20 in a valid device.
        minor: i64,
    },
    /// The type is not one that this reader knows.
    #[error("type {} is not supported", Quoted(&[*found]))]
    Type {
        /// Type byte of the header.
        found: u8,
    },
    /// A hard link, device or pipe announces data.
    #[error("type {} announces {size_bytes} bytes of data, which readers do not agree to skip", Quoted(&[*found]))]
    Body {
        /// Type byte of the header.
        found: u8,
        /// Announced size of the data in bytes.
        size_bytes: u64,
    },
    /// The name of a regular file ends in a slash.
    #[error("a file's name ends in a slash")]
    FileSlash,
    /// The name is longer than 4095 bytes.
    #[error("the name has {found} bytes, more than {}", limits::PATH_BYTES)]
    NameLength {
        /// Length of the name in bytes.
        found: usize,
    },
    /// The link target is empty or longer than 4095 bytes.
    #[error("the link target has {found} bytes, not 1 to {}", limits::LINK_TARGET_BYTES)]
    LinkLength {
        /// Length of the target in bytes.
        found: usize,
    },
    /// A GNU long name header holds no name.
    #[error("a GNU long name header holds no name")]
    LongNameEmpty,
    /// A GNU long name ends neither with NUL nor with zero padding.
    #[error("a GNU long name without NUL runs into padding that is not zero")]
    LongNamePadding,
    /// A PAX record and a GNU header name the entry or its target differently.
    #[error("a PAX record and a GNU long name header give different {what}s, and readers prefer either")]
    NameConflict {
        /// `name` or `link target`.
        what: &'static str,
    },
    /// An extension header is followed by the end of the archive instead of an entry.
    #[error("an extension header is not followed by an entry")]
    ExtensionOrphan,
    /// Two extension headers of one type come before one entry, and differ in the name.
    #[error("two extension headers of type {} before one entry differ or may differ", Quoted(&[*found]))]
    ExtensionRepeated {
        /// Type byte of the second one.
        found: u8,
    },
    /// A global header between an entry and its own extension headers.
    #[error("a global header stands between an extension header and its entry")]
    ExtensionOrder,
    /// More than 16 extension headers come before one entry.
    #[error("more than {} extension headers before one entry", limits::TAR_EXTENSION_HEADERS)]
    ExtensionCount,
    /// The bodies of the extension headers before one entry are larger than 1 MiB.
    #[error(
        "{size_bytes} bytes of extension headers before one entry, more than {}",
        limits::TAR_EXTENSION_BYTES
    )]
    ExtensionSize {
        /// Bytes of all these bodies, the current one included.
        size_bytes: u64,
    },
    /// A PAX body does not consist of records.
    #[error("byte {at} of the PAX header does not begin a record `LENGTH KEY=VALUE\\n`")]
    PaxRecord {
        /// Byte of the body at which no record begins.
        at: usize,
    },
    /// A PAX key, name or link target holds a NUL.
    #[error("NUL in PAX record {}", Quoted(key))]
    PaxNul {
        /// Key of the record.
        key: Vec<u8>,
    },
    /// A PAX value does not have the form that its key needs.
    #[error("PAX record {key} holds {}", Quoted(value))]
    PaxValue {
        /// Key of the record.
        key: &'static str,
        /// Value of the record.
        value: Vec<u8>,
    },
    /// A global header holds a record that would name, size or decorate every following entry.
    #[error("a global header holds {}, which some readers apply and others do not", Quoted(key))]
    PaxGlobal {
        /// Key of the record.
        key: Vec<u8>,
    },
    /// An old GNU sparse file, whose map lies in header blocks of its own.
    #[error("an old GNU sparse file (type S) is not read")]
    SparseGnu,
    /// Sparse records name no version that is known.
    #[error("the sparse records are of no known version: {detail}")]
    SparseVersion {
        /// Missing or unknown record, in words.
        detail: &'static str,
    },
    /// Sparse records describe something other than a regular file.
    #[error("sparse records on an entry of type {}", Quoted(&[*found]))]
    SparseType {
        /// Type byte of the header.
        found: u8,
    },
    /// A sparse map does not consist of decimal numbers in pairs.
    #[error("the sparse map is malformed: {detail}")]
    SparseMap {
        /// Missing or wrong part, in words.
        detail: &'static str,
    },
    /// Sparse regions go back, overlap or leave the file.
    #[error("sparse region {offset}+{len} begins before {floor} or ends after the file's {size_bytes} bytes")]
    SparseOrder {
        /// Byte of the file at which the region starts.
        offset: u64,
        /// Length of the region in bytes.
        len: u64,
        /// Byte of the file at which the region before it ends.
        floor: u64,
        /// Logical size of the file in bytes.
        size_bytes: u64,
    },
    /// The sparse map describes more or less data than the archive stores.
    #[error("the sparse regions hold {mapped} bytes, the archive {stored}")]
    SparseSum {
        /// Sum of the regions in bytes.
        mapped: u64,
        /// Bytes stored in the archive, the map excluded.
        stored: u64,
    },
    /// A sparse map has more than 65 536 regions.
    #[error("more than {} sparse regions", limits::SPARSE_REGIONS)]
    SparseRegions,
    /// A file of a metadata file is not where it has to be in the archive.
    #[error(
        "the data of the file is said to be at byte {found} of the archive, and comes at byte {expected}"
    )]
    MetadataPlace {
        /// Byte of the archive that the header names.
        found: u64,
        /// Byte of the archive that follows from the headers before.
        expected: u64,
    },
    /// A sparse file whose map stands in its data, which a metadata file does not have.
    #[error("the map of a sparse file stands in its data, which a metadata file leaves out")]
    MetadataSparse,
    /// An extended attribute that no file can have.
    #[error(transparent)]
    Xattr(#[from] XattrError),
}

impl Problem {
    /// Reason id, which never changes between versions.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TruncatedHeader => "tar.truncated.header",
            Self::Foreign { .. } => "tar.foreign",
            Self::TruncatedData { .. } => "tar.truncated.data",
            Self::TruncatedExtension { .. } => "tar.truncated.extension",
            Self::LoneZeroBlock => "tar.zero-block",
            Self::Checksum { .. } => "tar.checksum",
            Self::Magic { .. } => "tar.magic",
            Self::Number { .. } => "tar.number",
            Self::Size { .. } => "tar.size",
            Self::Owner { .. } => "tar.owner",
            Self::Device { .. } => "tar.device",
            Self::Type { .. } => "tar.type",
            Self::Body { .. } => "tar.body",
            Self::FileSlash => "tar.name.slash",
            Self::NameLength { .. } => "tar.name.length",
            Self::LinkLength { .. } => "tar.link.length",
            Self::LongNameEmpty => "tar.gnu.name",
            Self::LongNamePadding => "tar.gnu.padding",
            Self::NameConflict { .. } => "tar.name.conflict",
            Self::ExtensionOrphan => "tar.extension.orphan",
            Self::ExtensionRepeated { .. } => "tar.extension.repeated",
            Self::ExtensionOrder => "tar.extension.order",
            Self::ExtensionCount => "tar.extension.count",
            Self::ExtensionSize { .. } => "limit.extension",
            Self::PaxRecord { .. } => "tar.pax.record",
            Self::PaxNul { .. } => "tar.pax.nul",
            Self::PaxValue { .. } => "tar.pax.value",
            Self::PaxGlobal { .. } => "tar.pax.global",
            Self::SparseGnu => "tar.sparse.gnu",
            Self::SparseVersion { .. } => "tar.sparse.version",
            Self::SparseType { .. } => "tar.sparse.type",
            Self::SparseMap { .. } => "tar.sparse.map",
            Self::SparseOrder { .. } => "tar.sparse.order",
            Self::SparseSum { .. } => "tar.sparse.sum",
            Self::SparseRegions => "limit.sparse-regions",
            Self::MetadataPlace { .. } => "tar.metadata.place",
            Self::MetadataSparse => "tar.metadata.sparse",
            Self::Xattr(error) => error.reason(),
        }
    }
}
