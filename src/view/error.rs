//! Why a view cannot be read.

use std::io;

use crate::error::{Classify, Kind, Quoted, disk_kind, disk_reason};

/// Why a view cannot be read. `view` is the view's name, paths begin at its root.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// A file is not as it was when it was looked up.
    #[error("{} in {view} changed while it was read: {what}", Quoted(path))]
    Changed {
        /// Name of the view.
        view: String,
        /// The file.
        path: Vec<u8>,
        /// The difference.
        what: String,
    },
    /// Another file system is mounted inside the directory.
    #[error("{} in {view} is a mount point: what is mounted there is not the layer's", Quoted(path))]
    Mount {
        /// Name of the view.
        view: String,
        /// The mount point or a file behind it.
        path: Vec<u8>,
    },
    /// The kernel takes no path of this length.
    #[error("{} in {view} has a path of {} bytes, more than {}", Quoted(path), path.len(), crate::limits::PATH_BYTES)]
    TooLong {
        /// Name of the view.
        view: String,
        /// The file.
        path: Vec<u8>,
    },
    /// Overlayfs's attributes cannot be seen, so deleted files would come back.
    #[error("{view}: reading trusted.overlay attributes needs the capability CAP_SYS_ADMIN")]
    Privilege {
        /// Name of the view.
        view: String,
    },
    /// A handle cannot be turned into an open file.
    #[error("{view}: reading a directory safely needs /proc: {source}")]
    Proc {
        /// Name of the view.
        view: String,
        /// The failure of /proc.
        source: io::Error,
    },
    /// A device has a file system that is not read.
    #[error("{view}: the device has neither an EROFS nor an ext4 file system")]
    FileSystem {
        /// Name of the view.
        view: String,
    },
    /// The file system failed.
    #[error("{} in {view}: {source}", Quoted(path))]
    Io {
        /// Name of the view.
        view: String,
        /// The file.
        path: Vec<u8>,
        /// The failure.
        source: io::Error,
    },
}

impl Classify for ViewError {
    fn kind(&self) -> Kind {
        match self {
            Self::Changed { .. } => Kind::Changed,
            Self::Mount { .. } | Self::Privilege { .. } => Kind::Denied,
            Self::TooLong { .. } => Kind::Exhausted,
            Self::FileSystem { .. } => Kind::Conflict,
            Self::Proc { .. } => Kind::Unavailable,
            Self::Io { source, .. } => disk_kind(source),
        }
    }

    // Mostly a Diff reports them (docs/formats/containerd.md), hence the prefix.
    fn reason(&self) -> &'static str {
        match self {
            Self::Changed { .. } => "compare.changed",
            Self::Mount { .. } => "compare.mount",
            Self::TooLong { .. } => "limit.path",
            Self::Privilege { .. } => "compare.privilege",
            Self::Proc { .. } => "compare.proc",
            Self::FileSystem { .. } => "compare.file-system",
            Self::Io { source, .. } => disk_reason(source, "disk.io"),
        }
    }
}
