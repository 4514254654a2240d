//! Why an archive is refused, and where: one variant and one stable reason id per rule.
//!
//! Source: `docs/formats/tar.md`, which lists the rules with their reasons.

use std::fmt;

use crate::{
    error::{Classify, Kind, Quoted},
    limits,
    tree::xattr::XattrError,
};

/// A refused archive: the broken rule, and the header it was found at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TarError {
    // Boxed, because every step of the parser returns one of these or nothing.
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

    /// Where the header of the refused entry begins, in bytes from the start of the archive.
    pub fn header_offset(&self) -> u64 {
        self.inner.header_offset
    }

    /// The name of the refused entry as far as it was known; empty when it was not.
    pub fn name(&self) -> &[u8] {
        &self.inner.name
    }

    /// The broken rule.
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

/// The rule that an archive breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// Fewer than 512 bytes where a header begins.
    #[error("the archive ends within a header")]
    TruncatedHeader,
    /// The first bytes are no header, but those of another format.
    #[error("this is no tar archive but {what}; layers are read as tar, gzip or zstd")]
    Foreign {
        /// Name of the other format, with an article.
        what: &'static str,
    },
    /// The data of an entry is incomplete.
    #[error("the archive ends {missing} bytes before the end of the entry's data")]
    TruncatedData {
        /// Bytes that are missing.
        missing: u64,
    },
    /// The body of an extension header is incomplete.
    #[error("the archive ends {missing} bytes before the end of an extension header's body")]
    TruncatedExtension {
        /// Bytes that are missing.
        missing: u64,
    },
    /// One zero block, then something else.
    #[error("a zero block is followed by a block that is not zero")]
    LoneZeroBlock,
    /// The checksum is wrong or is no number.
    #[error("the header's checksum field {} does not hold its sum, {computed:o} (octal)", Quoted(stored))]
    Checksum {
        /// The field's bytes.
        stored: [u8; 8],
        /// The sum of the header's bytes.
        computed: u32,
    },
    /// Neither POSIX, GNU nor V7.
    #[error("magic and version {} are none of ustar, GNU tar and V7", Quoted(found))]
    Magic {
        /// The two fields' bytes.
        found: [u8; 8],
    },
    /// A numeric field holds no number.
    #[error("field {field} {} is not a number", Quoted(found))]
    Number {
        /// Name of the field.
        field: &'static str,
        /// Its bytes.
        found: Vec<u8>,
    },
    /// The size is negative.
    #[error("size {found} is negative")]
    Size {
        /// The size.
        found: i64,
    },
    /// Owner or group outside 0 to 2^32 - 2.
    #[error("{field} {found} is not within 0 to 4294967294")]
    Owner {
        /// `uid` or `gid`.
        field: &'static str,
        /// The number.
        found: i64,
    },
    /// A device number that no image can hold.
    #[error("device {major}:{minor} is not within 0:0 to {}:{}", limits::DEVICE_MAJOR, limits::DEVICE_MINOR)]
    Device {
        /// Major number.
        major: i64,
        /// Minor number.
        minor: i64,
    },
    /// A type that is not read.
    #[error("type {} is not supported", Quoted(&[*found]))]
    Type {
        /// The type byte.
        found: u8,
    },
    /// A hard link, device or pipe that announces data.
    #[error("type {} announces {size_bytes} bytes of data, which readers do not agree to skip", Quoted(&[*found]))]
    Body {
        /// The type byte.
        found: u8,
        /// Announced size in bytes.
        size_bytes: u64,
    },
    /// A file whose name ends in a slash.
    #[error("a file's name ends in a slash")]
    FileSlash,
    /// A name longer than any path.
    #[error("the name has {found} bytes, more than {}", limits::PATH_BYTES)]
    NameLength {
        /// Its length in bytes.
        found: usize,
    },
    /// A link target that is empty or longer than any path.
    #[error("the link target has {found} bytes, not 1 to {}", limits::LINK_TARGET_BYTES)]
    LinkLength {
        /// Its length in bytes.
        found: usize,
    },
    /// A GNU long name header without a name.
    #[error("a GNU long name header holds no name")]
    LongNameEmpty,
    /// A GNU long name that neither NUL nor zero padding ends.
    #[error("a GNU long name without NUL runs into padding that is not zero")]
    LongNamePadding,
    /// A PAX record and a GNU header name the entry or its target differently.
    #[error("a PAX record and a GNU long name header give different {what}s, and readers prefer either")]
    NameConflict {
        /// `name` or `link target`.
        what: &'static str,
    },
    /// An extension header at the end of the archive.
    #[error("an extension header is not followed by an entry")]
    ExtensionOrphan,
    /// Two of a kind before one entry, and not with the same name.
    #[error("two extension headers of type {} before one entry differ or may differ", Quoted(&[*found]))]
    ExtensionRepeated {
        /// The type byte.
        found: u8,
    },
    /// A global header between an entry and its own extension headers.
    #[error("a global header stands between an extension header and its entry")]
    ExtensionOrder,
    /// Too many.
    #[error("more than {} extension headers before one entry", limits::TAR_EXTENSION_HEADERS)]
    ExtensionCount,
    /// Too large.
    #[error(
        "{size_bytes} bytes of extension headers before one entry, more than {}",
        limits::TAR_EXTENSION_BYTES
    )]
    ExtensionSize {
        /// Their bodies' bytes, this one's included.
        size_bytes: u64,
    },
    /// A PAX body is not made of records.
    #[error("byte {at} of the PAX header does not begin a record `LENGTH KEY=VALUE\\n`")]
    PaxRecord {
        /// Offset in the header's body.
        at: usize,
    },
    /// NUL in a PAX key, name or link target.
    #[error("NUL in PAX record {}", Quoted(key))]
    PaxNul {
        /// The record's key.
        key: Vec<u8>,
    },
    /// A PAX value that does not have its key's form.
    #[error("PAX record {key} holds {}", Quoted(value))]
    PaxValue {
        /// The record's key.
        key: &'static str,
        /// The record's value.
        value: Vec<u8>,
    },
    /// A global header that would name, size or decorate every following entry.
    #[error("a global header holds {}, which some readers apply and others do not", Quoted(key))]
    PaxGlobal {
        /// The record's key.
        key: Vec<u8>,
    },
    /// An old GNU sparse file, whose map lies in header blocks of its own.
    #[error("an old GNU sparse file (type S) is not read")]
    SparseGnu,
    /// Sparse records that name no version we read.
    #[error("the sparse records are of no known version: {detail}")]
    SparseVersion {
        /// What is unknown or missing.
        detail: &'static str,
    },
    /// Sparse records on something that is no file.
    #[error("sparse records on an entry of type {}", Quoted(&[*found]))]
    SparseType {
        /// The type byte.
        found: u8,
    },
    /// The map is not made of numbers.
    #[error("the sparse map is malformed: {detail}")]
    SparseMap {
        /// What was expected.
        detail: &'static str,
    },
    /// Regions that go back, overlap or leave the file.
    #[error("sparse region {offset}+{len} begins before {floor} or ends after the file's {size_bytes} bytes")]
    SparseOrder {
        /// Offset of the region in bytes.
        offset: u64,
        /// Length of the region in bytes.
        len: u64,
        /// Where the region before it ends.
        floor: u64,
        /// Logical size of the file in bytes.
        size_bytes: u64,
    },
    /// The map describes more or less data than there is.
    #[error("the sparse regions hold {mapped} bytes, the archive {stored}")]
    SparseSum {
        /// Sum of the regions in bytes.
        mapped: u64,
        /// Bytes in the archive, the map excluded.
        stored: u64,
    },
    /// Too many regions.
    #[error("more than {} sparse regions", limits::SPARSE_REGIONS)]
    SparseRegions,
    /// An extended attribute that no file can have.
    #[error(transparent)]
    Xattr(#[from] XattrError),
}

impl Problem {
    /// The stable reason id.
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
            Self::Xattr(error) => error.reason(),
        }
    }
}
