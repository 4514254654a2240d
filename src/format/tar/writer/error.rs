//! Why an entry cannot be written to an archive.
//!
//! Source: `docs/formats/tar.md`, "What is written".

use std::{fmt, io};

use crate::{
    error::{Classify, Kind, Quoted, disk_kind},
    limits,
    tree::xattr::XattrError,
};

/// An entry that cannot be written, and why.
#[derive(Debug)]
pub struct WriterError {
    inner: Box<(Vec<u8>, WriterProblem)>,
}

impl WriterError {
    pub(super) fn new(name: &[u8], problem: WriterProblem) -> Self {
        Self { inner: Box::new((name.to_vec(), problem)) }
    }

    /// Why.
    pub fn problem(&self) -> &WriterProblem {
        &self.inner.1
    }

    /// The error of the sink, if it was the sink that failed; else itself.
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

/// Why an entry cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriterProblem {
    /// No name, or one longer than any path.
    #[error("the name has {found} bytes, not 1 to {}", limits::PATH_BYTES)]
    NameLength {
        /// Its length in bytes, the slash of a directory included.
        found: usize,
    },
    /// A link target that is empty or longer than any path.
    #[error("the link target has {found} bytes, not 1 to {}", limits::LINK_TARGET_BYTES)]
    LinkLength {
        /// Its length in bytes.
        found: usize,
    },
    /// Readers would take it for a directory.
    #[error("the name of something that is no directory ends in a slash")]
    Slash,
    /// Readers would take the name to end there.
    #[error("NUL in a name or a link target")]
    Nul,
    /// The number that means "nobody" to system calls.
    #[error("owner or group 4294967295")]
    Owner,
    /// A device number that no image can hold.
    #[error("device {major}:{minor} is not within 0:0 to {}:{}", limits::DEVICE_MAJOR, limits::DEVICE_MINOR)]
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Larger than any file.
    #[error("size {found} is not below 2^63")]
    Size {
        /// The size in bytes.
        found: u64,
    },
    /// A name that would end the key of its record.
    #[error("extended attribute {} cannot be spelled in a tar archive", Quoted(name))]
    XattrName {
        /// Its full name.
        name: Vec<u8>,
    },
    /// An extended attribute that no layer may have.
    #[error(transparent)]
    Xattr(#[from] XattrError),
    /// Names and attributes of one entry together are too large.
    #[error("{size_bytes} bytes of records, more than {}", limits::TAR_EXTENSION_BYTES)]
    Records {
        /// Their sum in bytes.
        size_bytes: usize,
    },
    /// Data, or an extent, that goes back, lies in a hole, or leaves the file.
    #[error("{len} bytes at offset {offset} have no place in the file of {size_bytes} bytes")]
    Misplaced {
        /// Where they were to go.
        offset: u64,
        /// How many.
        len: u64,
        /// Size of the file in bytes.
        size_bytes: u64,
    },
    /// A file ended before all its data had come.
    #[error("{missing} bytes are missing from the file of {size_bytes} bytes")]
    TooLittle {
        /// How many.
        missing: u64,
        /// Size of the file in bytes.
        size_bytes: u64,
    },
    /// The caller broke the order of calls.
    #[error("writer called out of order: {0}")]
    Order(&'static str),
    /// The archive does not take the bytes.
    #[error("cannot write the archive: {0}")]
    Sink(io::Error),
}
