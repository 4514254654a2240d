//! Why a layer cannot be read.

use std::io;

use crate::error::{Classify, Kind, Quoted, disk_kind};

/// Why a layer cannot be read. Paths are those in the layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// A file is not what it was when it was looked up.
    #[error("{} in {layer} changed while it was read: {what}", Quoted(path))]
    Changed {
        /// The layer.
        layer: String,
        /// The file.
        path: Vec<u8>,
        /// What is different.
        what: String,
    },
    /// Another file system is mounted inside the layer.
    #[error("{} in {layer} is a mount point: what is mounted there is not the layer's", Quoted(path))]
    Mount {
        /// The layer.
        layer: String,
        /// The mount point or a file behind it.
        path: Vec<u8>,
    },
    /// A path that the kernel does not take.
    #[error("{} in {layer} has a path of {} bytes, more than {}", Quoted(path), path.len(), crate::limits::PATH_BYTES)]
    TooLong {
        /// The layer.
        layer: String,
        /// The file.
        path: Vec<u8>,
    },
    /// overlayfs's attributes cannot be seen, so deleted files would come back.
    #[error("{layer}: reading trusted.overlay attributes needs the capability CAP_SYS_ADMIN")]
    Privilege {
        /// The layer.
        layer: String,
    },
    /// Descriptors cannot be followed.
    #[error("{layer}: reading a directory safely needs /proc: {source}")]
    Proc {
        /// The layer.
        layer: String,
        /// Why not.
        source: io::Error,
    },
    /// The file system failed.
    #[error("{} in {layer}: {source}", Quoted(path))]
    Io {
        /// The layer.
        layer: String,
        /// The file.
        path: Vec<u8>,
        /// How.
        source: io::Error,
    },
}

impl Classify for LayerError {
    fn kind(&self) -> Kind {
        match self {
            Self::Changed { .. } => Kind::Changed,
            Self::Mount { .. } | Self::Privilege { .. } => Kind::Denied,
            Self::TooLong { .. } => Kind::Exhausted,
            Self::Proc { .. } => Kind::Unavailable,
            Self::Io { source, .. } => disk_kind(source),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Changed { .. } => "compare.changed",
            Self::Mount { .. } => "compare.mount",
            Self::TooLong { .. } => "limit.path",
            Self::Privilege { .. } => "compare.privilege",
            Self::Proc { .. } => "compare.proc",
            Self::Io { .. } => "disk.io",
        }
    }
}
