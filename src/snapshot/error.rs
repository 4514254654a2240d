//! Why a mount list is refused, and by whom it may still be served.

use std::io;

use crate::{
    error::{Classify, Kind, disk_kind},
    limits,
};

/// Why a mount list does not lead to a snapshot directory.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No mounts, where a snapshot is to be written to.
    #[error("the request has no mounts, so there is no snapshot to apply the layer to")]
    Empty,
    /// More than any snapshotter sends.
    #[error(
        "{count} mounts with {bytes} bytes of text; {} and {} are allowed",
        limits::MOUNTS,
        limits::MOUNT_BYTES
    )]
    TooLarge {
        /// Entries.
        count: usize,
        /// Bytes of all strings.
        bytes: usize,
    },
    /// A mount of a kind that the EROFS snapshotter does not make.
    #[error("mount type {0} is not one of the EROFS snapshotter's")]
    Type(String),
    /// Known types put together in an unknown way.
    #[error("{0}")]
    Form(&'static str),
    /// Another snapshotter's.
    #[error("{0} is below no configured snapshot root")]
    Outside(String),
    /// An option whose meaning for the layers we do not know.
    #[error("mount option {0} is unknown: it may change what the layers mean")]
    UnknownOption(String),
    /// Below a root, but not where the snapshotter keeps layers.
    #[error("{path} is below a snapshot root but is not snapshots/NUMBER/{}", leaves.join(" or "))]
    Path {
        /// The path, quoted.
        path: String,
        /// The last components that would have been right.
        leaves: &'static [&'static str],
    },
    /// A list whose directory is ours, and which names another one that is not.
    #[error("{0} is not below the snapshot root of the other mounts")]
    Foreign(String),
    /// An option that contradicts the others.
    #[error("mount option {option}: {why}")]
    Option {
        /// The option, quoted.
        option: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The directory does not exist.
    #[error("{0} does not exist")]
    Missing(String),
    /// The daemon holds a root that has been moved or removed since.
    #[error("snapshot root {0} was removed or replaced since the daemon started")]
    RootReplaced(String),
    /// A link, a mount point or a file where a directory should be.
    #[error("{0}: a component is a link, a mount point or no directory")]
    Link(String),
    /// Something else where a layer's image should be.
    #[error("{0} is no regular file")]
    File(String),
    /// An image that is a link, but not to a shared layer.
    #[error("{path} links to {target}, which is below no configured directory of shared layers")]
    Shared {
        /// The image.
        path: String,
        /// Where it points, quoted.
        target: String,
    },
    /// An image among the shared layers under a name that none of them has.
    #[error("{0} is below a directory of shared layers but is not ALGORITHM/XX/HEX.erofs")]
    SharedName(String),
    /// An image in use that can only be read where it is mounted.
    #[error(
        "{path} is attached to {device}, which is mounted nowhere we can see: reading it now could mix old and new"
    )]
    Unseen {
        /// The image.
        path: String,
        /// The loop device.
        device: String,
    },
    /// An image that was mounted or written to while it was read.
    #[error("{0} came into use while it was read")]
    InUse(String),
    /// The service manager took away what reading a directory takes.
    #[error("{0}: reading overlayfs's attributes needs CAP_SYS_ADMIN, which this process does not have")]
    Privileges(String),
    /// A directory that others can write to.
    #[error(
        "{path}: owner {uid}, mode {permissions:04o}; it must belong to root and be writable by nobody else"
    )]
    Owner {
        /// The directory, the marker or the image.
        path: String,
        /// Owner found.
        uid: u32,
        /// Mode found.
        permissions: u32,
    },
    /// Made by another snapshotter, or by one whose layers we do not make.
    #[error("{0} has no marker .erofslayer")]
    NoMarker(String),
    /// Something else has the marker's name.
    #[error("{0}/.erofslayer is not a regular file")]
    Marker(String),
    /// The kernel refused.
    #[error("{path}")]
    Io {
        /// The directory.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Classify for MountError {
    fn kind(&self) -> Kind {
        match self {
            // Not for the next differ: containerd's EROFS differ looks at the first mount without counting them.
            Self::Empty => Kind::Malformed,
            Self::Type(_) | Self::Form(_) | Self::Outside(_) | Self::UnknownOption(_) | Self::NoMarker(_) => {
                Kind::NotImplemented
            }
            Self::TooLarge { .. } => Kind::Exhausted,
            Self::Path { .. }
            | Self::Foreign(_)
            | Self::Option { .. }
            | Self::Link(_)
            | Self::File(_)
            | Self::Privileges(_)
            | Self::Shared { .. }
            | Self::SharedName(_)
            | Self::Owner { .. }
            | Self::Marker(_) => Kind::Denied,
            Self::Missing(_) | Self::Unseen { .. } => Kind::Conflict,
            Self::InUse(_) => Kind::Changed,
            Self::RootReplaced(_) => Kind::Unavailable,
            Self::Io { source, .. } => disk_kind(source),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "mount.empty",
            Self::TooLarge { .. } => "limit.mounts",
            Self::Type(_) => "mount.type",
            Self::Form(_) => "mount.form",
            Self::Outside(_) => "mount.outside-root",
            Self::UnknownOption(_) => "mount.option-unknown",
            Self::Path { .. } => "mount.path",
            Self::Foreign(_) => "mount.foreign",
            Self::Option { .. } => "mount.option",
            Self::Missing(_) => "mount.missing",
            Self::RootReplaced(_) => "mount.root-replaced",
            Self::Link(_) => "mount.link",
            Self::File(_) => "mount.file",
            Self::Unseen { .. } => "mount.unseen",
            Self::InUse(_) => "mount.in-use",
            Self::Privileges(_) => "diff.privileges",
            Self::Shared { .. } | Self::SharedName(_) => "mount.shared-layer",
            Self::Owner { .. } => "mount.owner",
            Self::NoMarker(_) => "mount.no-marker",
            Self::Marker(_) => "mount.marker",
            Self::Io { .. } => "mount.io",
        }
    }
}
