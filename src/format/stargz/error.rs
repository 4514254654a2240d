//! Refusals of tables of contents, and of data that does not fit them.
//!
//! Reasons are listed in `docs/formats/stargz.md`.

use std::io;

use crate::{
    codec::CodecError,
    digest::Digest,
    error::{Classify, Kind, Quoted, disk_kind},
    format::tar::TarError,
};

/// Why a blob cannot be used by its table of contents.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StargzError {
    /// Reading the blob failed.
    #[error("reading {len} bytes at byte {offset} of the blob failed")]
    Io {
        /// Byte of the blob at which the read started.
        offset: u64,
        /// Number of bytes requested.
        len: u64,
        /// Error of the blob's reader.
        source: io::Error,
    },
    /// An annotation has a value that does not belong there.
    #[error("annotation {name} has the value {value:?}, not {want}")]
    Annotation {
        /// Name of the annotation.
        name: &'static str,
        /// Value of the annotation, at most the first characters.
        value: String,
        /// Form that a value must have.
        want: &'static str,
    },
    /// The annotations of two dialects exclude each other.
    #[error("the annotations are those of two kinds of indexed layers, {first} and {second}")]
    Contradiction {
        /// An annotation of one kind.
        first: &'static str,
        /// An annotation of the other.
        second: &'static str,
    },
    /// The footer points at something else.
    #[error("the table of contents should be in {len} bytes at byte {offset}: {fault}")]
    Place {
        /// Byte of the blob at which the table should begin.
        offset: u64,
        /// Length of the table in the blob, in bytes.
        len: u64,
        /// Fault found there.
        fault: &'static str,
    },
    /// The table is too large.
    #[error("the table of contents has {size_bytes} bytes, more than {limit}")]
    TocSize {
        /// Size in bytes; when it is not known, as far as it was read.
        size_bytes: u64,
        /// Largest table in bytes, [`crate::limits::STARGZ_TOC_BYTES`].
        limit: u64,
    },
    /// The table has too many entries.
    #[error("the table of contents has more than {limit} entries")]
    Entries {
        /// Most entries, [`crate::limits::STARGZ_ENTRIES`].
        limit: usize,
    },
    /// The table cannot be decompressed.
    #[error("the table of contents: {0}")]
    TocData(CodecError),
    /// The archive around the table is malformed.
    #[error("the archive around the table of contents: {0}")]
    TocArchive(TarError),
    /// The table is not the one that the annotations name.
    #[error("the digest of the table of contents is {found} instead of {expected}")]
    TocDigest {
        /// Digest in the annotation.
        expected: Digest,
        /// Digest of the bytes.
        found: Digest,
    },
    /// The table is not the JSON that it should be.
    #[error("the table of contents is not the JSON it should be: {0}")]
    Json(serde_json::Error),
    /// Another version.
    #[error("the table of contents has version {found} instead of 1")]
    Version {
        /// Version of the table; 0 if it has none.
        found: i64,
    },
    /// The table has no entries.
    #[error("the table of contents has no entries")]
    Empty,
    /// A table cannot spell a name.
    #[error("{}: {} is not UTF-8, and so has no place in a table of contents", Quoted(path), Quoted(bytes))]
    Spelling {
        /// Name of the entry.
        path: Vec<u8>,
        /// Name, target or attribute that is not UTF-8.
        bytes: Vec<u8>,
    },
    /// A table cannot spell a time.
    #[error(
        "{}: {seconds} seconds after 1970 are in none of the years 0 to 9999, and so have no place in a table of contents",
        Quoted(path)
    )]
    WrittenTime {
        /// Name of the entry.
        path: Vec<u8>,
        /// Time of the entry.
        seconds: i64,
    },
    /// Compressing failed.
    #[error(transparent)]
    Encoder(CodecError),
    /// The tar-split data is too large.
    #[error("the tar-split data has {size_bytes} compressed bytes, more than {limit}")]
    TarSplitSize {
        /// Size in bytes.
        size_bytes: u64,
        /// Largest size in bytes, [`crate::limits::STARGZ_TAR_SPLIT_BYTES`].
        limit: u64,
    },
    /// The tar-split data is not the one that the table names.
    #[error("the digest of the tar-split data is {found} instead of {expected}")]
    SplitDigest {
        /// Digest in the table.
        expected: Digest,
        /// Digest of the bytes.
        found: Digest,
    },
    /// A line of the tar-split data does not make the archive.
    #[error("line {line} of the tar-split data: {fault}")]
    Split {
        /// Number of the line, from 0.
        line: u64,
        /// Fault found there.
        fault: SplitFault,
    },
    /// The archive has another entry than the table.
    #[error("entry {} of the archive is not the one of the table: {member}", Quoted(path))]
    SplitEntry {
        /// Name of the entry.
        path: Vec<u8>,
        /// Member that differs.
        member: &'static str,
    },
    /// An entry breaks a rule.
    #[error("entry {}: {fault}", Quoted(path))]
    Entry {
        /// Name of the entry as spelled in the table.
        path: Vec<u8>,
        /// Rule that it breaks.
        fault: EntryFault,
    },
    /// The data of a file is not what the table says.
    #[error(
        "{}: {size_bytes} bytes at byte {offset} of the file, from byte {blob_offset} of the blob: {fault}",
        Quoted(path)
    )]
    Chunk {
        /// Path of the file.
        path: Vec<u8>,
        /// Byte of the file at which the chunk begins.
        offset: u64,
        /// Size of the chunk in bytes.
        size_bytes: u64,
        /// Byte of the blob at which the chunk's member or frame begins.
        blob_offset: u64,
        /// Fault found there.
        fault: ChunkFault,
    },
}

/// A rule that an entry breaks.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryFault {
    /// Type that no table has.
    #[error("{0:?} is no type of an entry")]
    Type(String),
    /// Name that no file can have.
    #[error("{0}")]
    Name(&'static str),
    /// A number out of its range.
    #[error("{field} {found} is not in 0 to {most}")]
    Number {
        /// Name of the member.
        field: &'static str,
        /// Value in the table.
        found: i64,
        /// Largest value.
        most: u64,
    },
    /// Time that is not in RFC 3339.
    #[error("{0:?} is no time of RFC 3339")]
    Time(String),
    /// Target that no link can have.
    #[error("{0}")]
    Link(&'static str),
    /// Extended attribute that no file can have.
    #[error("extended attribute {name:?}: {fault}")]
    Xattr {
        /// Name of the attribute.
        name: String,
        /// Rule that it breaks.
        fault: &'static str,
    },
    /// Digest that is not SHA-256.
    #[error("{0:?} is not sha256 and 64 hexadecimal digits in lower case")]
    Digest(String),
    /// Data without a digest.
    #[error("{size_bytes} bytes at byte {offset} of the file have no digest")]
    NoDigest {
        /// Byte of the file at which they begin.
        offset: u64,
        /// Their number.
        size_bytes: u64,
    },
    /// A chunk that belongs to no file.
    #[error("the chunk does not come behind an entry or a chunk of its file")]
    StrayChunk,
    /// The chunks are not the file.
    #[error(
        "chunks cover {covered} of {size_bytes} bytes without a gap, and the next one begins at {next:?}"
    )]
    Chunks {
        /// Bytes covered from the start of the file on.
        covered: u64,
        /// Size of the file.
        size_bytes: u64,
        /// Start of the next chunk, if there is one.
        next: Option<u64>,
    },
    /// Data outside of the payload.
    #[error("data at byte {offset} of the blob is behind the payload, which ends at {end}")]
    Offset {
        /// Byte of the blob at which the data should begin.
        offset: u64,
        /// End of the payload.
        end: u64,
    },
    /// A file that has names below it.
    #[error("it is below {}, which is no directory", Quoted(.0))]
    Parent(Vec<u8>),
}

/// Why tar-split data does not make an archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SplitFault {
    /// The table has its digest, and the footer no place.
    #[error("nothing says where it is")]
    NoPlace,
    /// The line is not the JSON that it should be.
    #[error("it is not the JSON it should be: {0}")]
    Json(serde_json::Error),
    /// The line is too long.
    #[error("it has more than 4 MiB")]
    Long,
    /// There is more than the footer says.
    #[error("the data is longer than the footer says")]
    Longer,
    /// Lines are missing, or come twice.
    #[error("it says that it is line {found}")]
    Position {
        /// Number in the line.
        found: u64,
    },
    /// Bytes that cannot be read.
    #[error("its payload is not base64")]
    Base64,
    /// Neither a segment nor a file.
    #[error("type {found} is neither 1 nor 2")]
    Type {
        /// Type in the line.
        found: u8,
    },
    /// Another archive.
    #[error("the archive has other bytes there")]
    Bytes,
    /// Another file.
    #[error("the archive has a file with another CRC-64 there")]
    Sum,
    /// The archive ends too early.
    #[error("the archive has ended")]
    Short,
    /// The archive goes on.
    #[error("the lines have ended, and the archive has not")]
    Rest,
}

/// Why a chunk cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChunkFault {
    /// The member or frame is damaged, or there is none.
    #[error("counted from there, {0}")]
    Data(CodecError),
    /// The member or frame ends too early.
    #[error("its data ends after {found} bytes")]
    Short {
        /// Uncompressed bytes of the member or frame.
        found: u64,
    },
    /// Two chunks share a part of their data.
    #[error("it overlaps with another chunk")]
    Overlap,
    /// Other bytes than those in the table.
    #[error("its digest is {found} instead of {expected}")]
    Digest {
        /// Digest in the table.
        expected: Digest,
        /// Digest of the bytes.
        found: Digest,
    },
}

impl Classify for StargzError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } => disk_kind(source),
            Self::TocSize { .. } | Self::Entries { .. } | Self::TarSplitSize { .. } => Kind::Exhausted,
            Self::TocData(error) | Self::Encoder(error) => error.kind(),
            Self::TocDigest { .. } | Self::SplitDigest { .. } => Kind::DataLoss,
            Self::Chunk { fault: ChunkFault::Digest { .. }, .. } => Kind::DataLoss,
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Io { .. } => "disk.io",
            Self::Annotation { .. } | Self::Contradiction { .. } => "stargz.annotation",
            Self::Place { .. } => "stargz.toc.place",
            Self::TocSize { .. } | Self::Entries { .. } => "limit.stargz.toc",
            Self::TocData(error) | Self::Encoder(error) => error.reason(),
            Self::TocArchive(error) => error.reason(),
            Self::TocDigest { .. } => "stargz.toc.digest",
            Self::Json(_) => "stargz.toc.json",
            Self::Version { .. } => "stargz.toc.version",
            Self::Empty => "stargz.toc.empty",
            Self::Spelling { .. } => "stargz.write.name",
            Self::WrittenTime { .. } => "stargz.write.time",
            Self::TarSplitSize { .. } => "limit.stargz.tar-split",
            Self::SplitDigest { .. } => "stargz.tar-split.digest",
            Self::Split { .. } => "stargz.tar-split.line",
            Self::SplitEntry { .. } => "stargz.tar-split.entry",
            Self::Entry { fault, .. } => fault.reason(),
            Self::Chunk { fault, .. } => match fault {
                ChunkFault::Data(_) => "stargz.chunk.data",
                ChunkFault::Short { .. } | ChunkFault::Overlap => "stargz.chunk.place",
                ChunkFault::Digest { .. } => "stargz.chunk.digest",
            },
        }
    }
}

impl EntryFault {
    fn reason(&self) -> &'static str {
        match self {
            Self::Type(_) => "stargz.entry.type",
            Self::Name(_) => "stargz.entry.name",
            Self::Number { .. } => "stargz.entry.number",
            Self::Time(_) => "stargz.entry.time",
            Self::Link(_) => "stargz.entry.link",
            Self::Xattr { .. } => "stargz.entry.xattr",
            Self::Digest(_) | Self::NoDigest { .. } => "stargz.entry.digest",
            Self::StrayChunk | Self::Chunks { .. } => "stargz.entry.chunks",
            Self::Offset { .. } => "stargz.entry.offset",
            Self::Parent(_) => "stargz.entry.parent",
        }
    }
}
