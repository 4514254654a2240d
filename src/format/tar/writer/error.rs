//! Failures of writing an entry to an archive.
//!
//! Source: `docs/formats/tar.md`, "What is written".

use std::{fmt, io};

use crate::{
    error::{Classify, Kind, Quoted, disk_kind},
    limits,
    tree::xattr::XattrError,
};

/// Failure to write an entry, with its name.
#[derive(Debug)]
pub struct WriterError {
    inner: Box<(Vec<u8>, WriterProblem)>,
}

impl WriterError {
    pub(super) fn new(name: &[u8], problem: WriterProblem) -> Self {
        Self { inner: Box::new((name.to_vec(), problem)) }
    }

    /// Reason of the failure.
    pub fn problem(&self) -> &WriterProblem {
        &self.inner.1
    }

    /// Extracts the sink's error; `Err(self)` when the sink did not fail.
    pub fn into_sink_error(self) -> Result<io::Error, Self> {
        match *self.inner {
            (_, WriterProblem::Sink(error)) => Ok(error),
            inner => Err(Self { inner: Box::new(inner) }),
        }
    }
}

impl fmt::Display for WriterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, problem) = &*self.inner;
        if !name.is_empty() {
            write!(f, "{}: ", Quoted(name))?;
        }
        write!(f, "{problem}")
    }
}

impl std::error::Error for WriterError {}

impl Classify for WriterError {
    fn kind(&self) -> Kind {
        match self.problem() {
            WriterProblem::Sink(error) => disk_kind(error),
            WriterProblem::Xattr(error) => error.kind(),
            WriterProblem::Records { .. } => Kind::Exhausted,
            WriterProblem::Misplaced { .. } | WriterProblem::TooLittle { .. } | WriterProblem::Order(_) => {
                Kind::Internal
            }
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self.problem() {
            WriterProblem::NameLength { .. } => "tar.name.length",
            WriterProblem::LinkLength { .. } => "tar.link.length",
            WriterProblem::Slash => "tar.name.slash",
            WriterProblem::Nul => "tar.name.nul",
            WriterProblem::Owner => "tar.owner",
            WriterProblem::Device { .. } => "tar.device",
            WriterProblem::Size { .. } => "tar.size",
            WriterProblem::XattrName { .. } => "tar.xattr.name",
            WriterProblem::Xattr(error) => error.reason(),
            WriterProblem::Records { .. } => "limit.extension",
            WriterProblem::Misplaced { .. } => "tar.write.place",
            WriterProblem::TooLittle { .. } => "tar.write.short",
            WriterProblem::Order(_) => "tar.write.order",
            WriterProblem::Sink(_) => "tar.write.sink",
        }
    }
}

/// Reason for which an entry cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriterProblem {
    /// The name is empty or longer than 4095 bytes.
    #[error("the name has {found} bytes, not 1 to {}", limits::PATH_BYTES)]
    NameLength {
        /// Length of the name in bytes, a directory's slash included.
        found: usize,
    },
    /// The link target is empty or longer than 4095 bytes.
    #[error("the link target has {found} bytes, not 1 to {}", limits::LINK_TARGET_BYTES)]
    LinkLength {
        /// Length of the target in bytes.
        found: usize,
    },
    /// The name of something else than a directory ends in a slash, and readers would see a
    /// directory.
    #[error("the name of something that is no directory ends in a slash")]
    Slash,
    /// The name holds a NUL, where readers would end it.
    #[error("NUL in a name or a link target")]
    Nul,
    /// Owner or group is 2^32 - 1, which means "nobody" to system calls.
    #[error("owner or group 4294967295")]
    Owner,
    /// The major number is 4096 or more, or the minor one 2^20 or more.
    #[error("device {major}:{minor} is not within 0:0 to {}:{}", limits::DEVICE_MAJOR, limits::DEVICE_MINOR)]
    Device {
        /// Major number, below 4096 in a valid device.
        major: u32,
        /// Minor number, below 2^20 in a valid device.
        minor: u32,
    },
    /// The size is 2^63 bytes or more.
    #[error("size {found} is not below 2^63")]
    Size {
        /// Size of the file in bytes.
        found: u64,
    },
    /// The name of an attribute holds `=`, which would end the key of its record.
    #[error("extended attribute {} cannot be spelled in a tar archive", Quoted(name))]
    XattrName {
        /// Full name of the attribute.
        name: Vec<u8>,
    },
    /// An extended attribute that no layer may have.
    #[error(transparent)]
    Xattr(#[from] XattrError),
    /// Names and attributes of one entry are together larger than 1 MiB.
    #[error("{size_bytes} bytes of records, more than {}", limits::TAR_EXTENSION_BYTES)]
    Records {
        /// Sum of the records in bytes.
        size_bytes: usize,
    },
    /// Data or an extent goes back, lies in a hole, or leaves the file.
    #[error("{len} bytes at offset {offset} have no place in the file of {size_bytes} bytes")]
    Misplaced {
        /// Byte of the file at which it starts.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Size of the file in bytes.
        size_bytes: u64,
    },
    /// A file ended before all of its data was written.
    #[error("{missing} bytes are missing from the file of {size_bytes} bytes")]
    TooLittle {
        /// Number of bytes missing.
        missing: u64,
        /// Size of the file in bytes.
        size_bytes: u64,
    },
    /// The caller broke the order of calls.
    #[error("writer called out of order: {0}")]
    Order(&'static str),
    /// Writing to the sink failed.
    #[error("cannot write the archive: {0}")]
    Sink(io::Error),
}
