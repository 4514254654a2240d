//! Errors of mount lists and of files that are published.

use std::{io, path::PathBuf};

use crate::{
    error::{Classify, Kind, Size, disk_kind},
    limits,
};

/// The reasons why a mount list leads to no snapshot directory, or to no layers.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There are no mounts, where a layer is to be applied.
    #[error("the request has no mounts, so there is no snapshot to apply the layer to")]
    Empty,
    /// The list is longer than any that a snapshotter makes.
    #[error(
        "{count} mounts with {bytes} bytes of text; {} and {} are allowed",
        limits::MOUNTS,
        limits::MOUNT_BYTES
    )]
    TooLarge {
        /// Number of entries, or of files that they name.
        count: usize,
        /// Length of all strings together.
        bytes: usize,
    },
    /// The EROFS snapshotter makes no mounts of this type.
    #[error("mount type {0} is not one of the EROFS snapshotter's")]
    Type(String),
    /// The types are known, and put together as no snapshotter does it.
    #[error("{0}")]
    Form(&'static str),
    /// The list belongs to another snapshotter.
    #[error("{0} is below no configured snapshot root")]
    Outside(String),
    /// The effect of an option on the layers is not known.
    #[error("mount option {0} is unknown: it may change what the layers mean")]
    UnknownOption(String),
    /// The path is below a root, but not where the snapshotter keeps layers.
    #[error("{path} is below a snapshot root but is not snapshots/NUMBER/{}", leaves.join(" or "))]
    Path {
        /// The path, quoted.
        path: String,
        /// The last components that are right.
        leaves: &'static [&'static str],
    },
    /// A mounted device of the overlaybd snapshotter, into which a layer is to be unpacked.
    #[error("{0} is a mounted device: a layer is unpacked there by a differ that writes files")]
    Device(String),
    /// The device of a snapshot is to be read, and is mounted.
    #[error("{0} is mounted: its device has to be unmounted before it is read")]
    DeviceMounted(String),
    /// A snapshot is to be read as a device, and has none.
    #[error("{0} has no {1}: the snapshot is no device")]
    NoDevice(String, &'static str),
    /// The list names a snapshot below a root, and another path that is not below it.
    #[error("{0} is not below the snapshot root of the other mounts")]
    Foreign(String),
    /// An option contradicts the rest of the list.
    #[error("mount option {option}: {why}")]
    Option {
        /// The option, quoted.
        option: String,
        /// The contradiction.
        why: &'static str,
    },
    /// The directory does not exist.
    #[error("{0} does not exist")]
    Missing(String),
    /// The daemon holds a root that has been moved or removed since.
    #[error("snapshot root {0} was removed or replaced since the daemon started")]
    RootReplaced(String),
    /// A link, a mount point or a file is in the place of a directory.
    #[error("{0}: a component is a link, a mount point or no directory")]
    Link(String),
    /// Something else is in the place of an image.
    #[error("{0} is no regular file")]
    File(String),
    /// The image is a link, but not to a shared layer.
    #[error("{path} links to {target}, which is below no configured directory of shared layers")]
    Shared {
        /// The image.
        path: String,
        /// The target of the link, quoted.
        target: String,
    },
    /// The path is below a directory of shared layers, but spelt like none of them.
    #[error("{0} is below a directory of shared layers but is not ALGORITHM/XX/HEX.erofs")]
    SharedName(String),
    /// The image is in use, and can be read only where it is mounted.
    #[error(
        "{path} is attached to {device}, which is mounted nowhere we can see: reading it now could mix old and new"
    )]
    Unseen {
        /// The image.
        path: String,
        /// The loop device.
        device: String,
    },
    /// The image was mounted or written to while it was read.
    #[error("{0} came into use while it was read")]
    InUse(String),
    /// The process lacks the capability without which overlayfs's attributes do not exist for it.
    #[error("{0}: reading overlayfs's attributes needs CAP_SYS_ADMIN, which this process does not have")]
    Privileges(String),
    /// Another user could change what is at the path.
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
    /// The snapshotter has not marked the directory: another one made it, or its layers are no images.
    #[error("{path} has no marker {name}")]
    NoMarker {
        /// The directory.
        path: String,
        /// The file that is missing.
        name: &'static str,
    },
    /// Something that is not a file has the marker's name.
    #[error("{path}/{name} is not a regular file")]
    Marker {
        /// The directory.
        path: String,
        /// Name of the marker.
        name: &'static str,
    },
    /// A system call failed.
    #[error("{path}")]
    Io {
        /// The file or directory.
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
            Self::Type(_)
            | Self::Form(_)
            | Self::Outside(_)
            | Self::UnknownOption(_)
            | Self::Device(_)
            | Self::NoDevice(..)
            | Self::NoMarker { .. } => Kind::NotImplemented,
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
            | Self::Marker { .. } => Kind::Denied,
            Self::Missing(_) | Self::Unseen { .. } | Self::DeviceMounted(_) => Kind::Conflict,
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
            Self::Device(_) => "mount.device",
            Self::DeviceMounted(_) => "mount.device-mounted",
            Self::NoDevice(..) => "mount.no-device",
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
            Self::NoMarker { .. } => "mount.no-marker",
            Self::Marker { .. } => "mount.marker",
            Self::Io { .. } => "mount.io",
        }
    }
}

/// The reasons why a file could not be written or published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Another request is writing to the same directory.
    #[error("{0}: another request is writing to this directory")]
    Busy(PathBuf),
    /// The mounts are those of a view.
    #[error("{0}: the mounts are read-only")]
    ReadOnly(PathBuf),
    /// Something that cannot be replaced has the name.
    #[error("{0}: the name is taken by something that is not a regular file")]
    Occupied(PathBuf),
    /// The existing file is immutable or append-only.
    #[error("{0}: the existing file is immutable")]
    Immutable(PathBuf),
    /// Less space is free than the configuration reserves.
    #[error("{available} are free, {reserve} of {total} are kept free by {setting}")]
    Reserve {
        /// Free space.
        available: Size,
        /// Space that is kept free.
        reserve: Size,
        /// Size of the file system.
        total: Size,
        /// The setting with the larger reserve.
        setting: &'static str,
    },
    /// A system call failed.
    #[error("{path}: {what}")]
    Io {
        /// The step that failed.
        what: &'static str,
        /// The final name of the file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Classify for PublishError {
    fn kind(&self) -> Kind {
        match self {
            Self::Busy(_) | Self::Occupied(_) | Self::Immutable(_) => Kind::Conflict,
            Self::ReadOnly(_) => Kind::Denied,
            Self::Reserve { .. } => Kind::Exhausted,
            Self::Io { source, .. } => disk_kind(source),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Busy(_) => "snapshot.busy",
            Self::ReadOnly(_) => "mount.read-only",
            Self::Occupied(_) => "snapshot.occupied",
            Self::Immutable(_) => "snapshot.immutable",
            Self::Reserve { .. } => "limit.free-space",
            Self::Io { .. } => "snapshot.io",
        }
    }
}

/// Quotes a text from outside for a message: escaped, and cut at 256 bytes.
pub(super) fn quote(text: &str) -> String {
    let mut end = text.len().min(256);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let (shown, rest) = text.split_at(end);
    if rest.is_empty() { format!("{shown:?}") } else { format!("{shown:?}...") }
}
