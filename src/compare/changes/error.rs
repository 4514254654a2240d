//! Why changes cannot be emitted.

use crate::{
    error::{Classify, Kind, Quoted},
    limits,
};

/// Why changes cannot be emitted. Paths begin at the root of the layer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangesError {
    /// The name of a file would be a whiteout in a layer.
    #[error(
        "{} cannot be told in a layer: names that begin with .wh. stand for deleted files there",
        Quoted(path)
    )]
    Reserved {
        /// The file.
        path: Vec<u8>,
    },
    /// No program can name a path of this length.
    #[error("{} has {} bytes, more than {}", Quoted(path), path.len(), limits::PATH_BYTES)]
    Path {
        /// The path.
        path: Vec<u8>,
    },
    /// No file system that layers are unpacked to has names of this length.
    #[error("a name of {len} bytes is longer than {} bytes", limits::NAME_BYTES)]
    Name {
        /// Length of the name in bytes.
        len: usize,
    },
    /// The names of one directory together take four gigabytes.
    #[error("the names of one directory take more than 4294967295 bytes")]
    Names,
    /// The walk came to more names than a layer may have.
    #[error("more than {limit} names had to be compared")]
    Nodes {
        /// [`limits::Limits::nodes`].
        limit: u64,
    },
    /// The files are larger than a layer may be, holes included.
    #[error("with {}, which has {size_bytes} bytes, the files have more than {limit} bytes", Quoted(path))]
    Stream {
        /// The file with which the limit is passed.
        path: Vec<u8>,
        /// Size of that file in bytes.
        size_bytes: u64,
        /// [`limits::Limits::stream_bytes`].
        limit: u64,
    },
    /// Files appeared in a directory while others vanished: a renamed one may have been missed.
    #[error("files of the directory {} in {layer} were renamed while it was read", Quoted(path))]
    Renamed {
        /// Name of the layer.
        layer: String,
        /// The directory.
        path: Vec<u8>,
    },
    /// Two names of one inode did not show the same file.
    #[error("{} changed after {}, another name of it, was read", Quoted(path), Quoted(first))]
    Linked {
        /// The later name.
        path: Vec<u8>,
        /// The first name.
        first: Vec<u8>,
    },
    /// A list of extended attributes has a pattern of no meaning.
    #[error("{0:?} is no name of extended attributes, nor the beginning of names followed by *")]
    Pattern(String),
}

impl Classify for ChangesError {
    fn kind(&self) -> Kind {
        match self {
            Self::Reserved { .. } => Kind::Conflict,
            Self::Path { .. } | Self::Names | Self::Nodes { .. } | Self::Stream { .. } => Kind::Exhausted,
            Self::Name { .. } | Self::Pattern(_) => Kind::Malformed,
            Self::Renamed { .. } | Self::Linked { .. } => Kind::Changed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Reserved { .. } => "compare.reserved-name",
            Self::Path { .. } => "limit.path",
            Self::Name { .. } => "compare.name",
            Self::Names => "limit.metadata",
            Self::Nodes { .. } => "limit.nodes",
            Self::Stream { .. } => "limit.stream",
            Self::Renamed { .. } | Self::Linked { .. } => "compare.changed",
            Self::Pattern(_) => "compare.xattrs",
        }
    }
}
