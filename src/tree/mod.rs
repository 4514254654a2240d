//! Metadata of files, independent of formats: type, owner, mode, time, device, extended attributes;
//! and the [`Tree`] that the entries of a layer make.
//!
//! Every format module reads into and writes from these types.

// Bytes from outside must not be able to panic a root daemon.
#![deny(clippy::indexing_slicing)]

mod arena;
mod entry;
mod error;
mod inherit;
#[cfg(test)]
mod inherit_tests;
mod layer;
#[cfg(test)]
mod layer_tests;
mod names;
mod nodes;
pub mod path;
mod pool;
mod resolve;
pub mod whiteout;
pub mod xattr;

pub use entry::{Body, Entry, Extent};
pub use error::TreeError;
pub use inherit::Below;
pub use layer::Inserted;
pub use nodes::{DirectoryId, FileId, Limits, Node, Tree};

use std::fmt;

/// Type of a file, one of seven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileType {
    /// Regular file, which has data.
    Regular,
    /// Directory: S_IFDIR in a POSIX mode.
    Directory,
    /// Character device: S_IFCHR in a POSIX mode.
    CharDevice,
    /// Block device: S_IFBLK in a POSIX mode.
    BlockDevice,
    /// Named pipe: S_IFIFO in a POSIX mode.
    Fifo,
    /// Unix socket: S_IFSOCK in a POSIX mode. Tar layers cannot hold one.
    Socket,
    /// Symbolic link: S_IFLNK in a POSIX mode.
    Symlink,
}

impl FileType {
    /// Type bits of a POSIX mode (`S_IFMT`).
    pub fn mode_bits(self) -> u16 {
        match self {
            Self::Fifo => 0o010_000,
            Self::CharDevice => 0o020_000,
            Self::Directory => 0o040_000,
            Self::BlockDevice => 0o060_000,
            Self::Regular => 0o100_000,
            Self::Symlink => 0o120_000,
            Self::Socket => 0o140_000,
        }
    }

    /// File type in the type bits of `mode`; `None` when they name no type.
    pub fn from_mode(mode: u16) -> Option<Self> {
        [
            Self::Regular,
            Self::Directory,
            Self::CharDevice,
            Self::BlockDevice,
            Self::Fifo,
            Self::Socket,
            Self::Symlink,
        ]
        .into_iter()
        .find(|kind| kind.mode_bits() == mode & 0o170_000)
    }
}

/// Point in time: seconds since 1970, negative before, and nanoseconds after that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds since 1970, rounded down.
    pub seconds: i64,
    /// 0 to 999 999 999.
    pub nanoseconds: u32,
}

/// Prints seconds with nine decimal places. Before 1970 the fraction counts away from zero like the
/// seconds, so 1.5 s before 1970 is `-1.500000000`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seconds, nanoseconds } = *self;
        match 1_000_000_000_u32.checked_sub(nanoseconds) {
            Some(missing) if seconds < 0 && nanoseconds > 0 => {
                write!(f, "-{}.{missing:09}", (seconds + 1).unsigned_abs())
            }
            _ => write!(f, "{seconds}.{nanoseconds:09}"),
        }
    }
}

/// Number of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Device {
    /// Major number, at most [`crate::limits::DEVICE_MAJOR`] in an image.
    pub major: u32,
    /// Minor number, at most [`crate::limits::DEVICE_MINOR`] in an image.
    pub minor: u32,
}

impl Device {
    /// Number 0:0. overlayfs takes a character device with it for a whiteout.
    pub const WHITEOUT: Self = Self { major: 0, minor: 0 };
}

/// Owner, permissions and time of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// Twelve permission bits, setuid, setgid and sticky included.
    pub mode: u16,
    /// User id of the owner.
    pub uid: u32,
    /// Group id of the owner.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
}

impl Attributes {
    /// Permissions of a symbolic link: the kernel sets these and lets nobody change them.
    pub const SYMLINK_MODE: u16 = 0o777;

    /// Attributes as an inode of type `file_type` has them: symbolic links get
    /// [`Self::SYMLINK_MODE`].
    #[must_use]
    pub fn of_type(self, file_type: FileType) -> Self {
        match file_type {
            FileType::Symlink => Self { mode: Self::SYMLINK_MODE, ..self },
            _ => self,
        }
    }
}

/// Extended attribute with its value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Xattr {
    /// Full name with its namespace, for example `security.capability`.
    pub name: Vec<u8>,
    /// Value, at most [`crate::limits::XATTR_VALUE_BYTES`] bytes.
    pub value: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_count_their_fraction_away_from_zero() {
        for (seconds, nanoseconds, want) in [
            (0, 0, "0.000000000"),
            (1, 5, "1.000000005"),
            (-1, 0, "-1.000000000"),
            (-1, 500_000_000, "-0.500000000"),
            (-2, 500_000_000, "-1.500000000"),
            (-2, 999_999_999, "-1.000000001"),
            (i64::MIN, 1, "-9223372036854775807.999999999"),
            (i64::MIN, 0, "-9223372036854775808.000000000"),
        ] {
            assert_eq!(Timestamp { seconds, nanoseconds }.to_string(), want);
        }
    }
}
