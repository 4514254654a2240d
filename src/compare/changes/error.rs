//! Why changes cannot be told.

use crate::{
    error::{Classify, Kind, Quoted},
    limits,
};

/// Why changes cannot be told, or not in a layer. Paths are those in the layer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangesError {
    /// The lower content of a renamed directory or file cannot be found.
    #[error(
        "{} in {layer} has overlayfs's attribute redirect, which cannot be followed: {why}",
        Quoted(path)
    )]
    Redirect {
        /// Name of the layer.
        layer: String,
        /// The directory or file.
        path: Vec<u8>,
        /// Why not.
        why: String,
    },
    /// The data of a file whose attributes alone were copied cannot be found.
    #[error(
        "{} in {layer} has overlayfs's attribute metacopy, which cannot be followed: {why}",
        Quoted(path)
    )]
    Metacopy {
        /// Name of the layer.
        layer: String,
        /// The file.
        path: Vec<u8>,
        /// Why not.
        why: String,
    },
    /// A file whose name means something else in a layer.
    #[error(
        "{} cannot be told in a layer: names that begin with .wh. stand for deleted files there",
        Quoted(path)
    )]
    Reserved {
        /// The file.
        path: Vec<u8>,
    },
    /// A path longer than any program can name.
    #[error("{} has {} bytes, more than {}", Quoted(path), path.len(), limits::PATH_BYTES)]
    Path {
        /// The path.
        path: Vec<u8>,
    },
    /// A name longer than those of any file system that layers are unpacked to.
    #[error("a name of {len} bytes is longer than {} bytes", limits::NAME_BYTES)]
    Name {
        /// Its length.
        len: usize,
    },
    /// Names of one directory that together take four gigabytes.
    #[error("the names of one directory take more than 4294967295 bytes")]
    Names,
    /// More names than a layer may have.
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
        /// Its size in bytes.
        size_bytes: u64,
        /// [`limits::Limits::stream_bytes`].
        limit: u64,
    },
    /// A layer with very many directories on top of very many layers.
    #[error("more than {limit} names had to be looked up in the layers below")]
    Lookups {
        /// [`limits::PARENT_LOOKUPS`], but for tests.
        limit: u64,
    },
    /// Files came, or came back, while others went: a renamed one may have been missed.
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
    /// A list of attributes to write that cannot be understood.
    #[error("{0:?} is no name of extended attributes, nor the beginning of names followed by *")]
    Pattern(String),
}

impl Classify for ChangesError {
    fn kind(&self) -> Kind {
        match self {
            Self::Redirect { .. } | Self::Metacopy { .. } | Self::Reserved { .. } => Kind::Conflict,
            Self::Path { .. }
            | Self::Names
            | Self::Nodes { .. }
            | Self::Lookups { .. }
            | Self::Stream { .. } => Kind::Exhausted,
            Self::Name { .. } | Self::Pattern(_) => Kind::Malformed,
            Self::Renamed { .. } | Self::Linked { .. } => Kind::Changed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Redirect { .. } => "compare.redirect",
            Self::Metacopy { .. } => "compare.metacopy",
            Self::Reserved { .. } => "compare.reserved-name",
            Self::Path { .. } => "limit.path",
            Self::Name { .. } => "compare.name",
            Self::Names => "limit.metadata",
            Self::Nodes { .. } => "limit.nodes",
            Self::Lookups { .. } => "limit.parent-lookups",
            Self::Stream { .. } => "limit.stream",
            Self::Renamed { .. } | Self::Linked { .. } => "compare.changed",
            Self::Pattern(_) => "compare.xattrs",
        }
    }
}
