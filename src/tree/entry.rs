//! One entry of a layer, as a source of layers announces it before its data.

use super::{Attributes, Device, Xattr};

/// An entry: a name, what it is, and everything about it but its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name as the source spells it.
    pub path: Vec<u8>,
    /// Owner, permissions and time.
    pub attributes: Attributes,
    /// Attributes that belong to the image, each name once.
    pub xattrs: Vec<Xattr>,
    /// What it is.
    pub body: Body,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A file; its data follows.
    Regular {
        /// Logical size in bytes, holes included.
        size_bytes: u64,
        /// Where a sparse file has data: ascending, not overlapping, within the size. `None` for a
        /// file that is data from beginning to end.
        extents: Option<Vec<Extent>>,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// 1 to [`crate::limits::LINK_TARGET_BYTES`] bytes without NUL, not interpreted.
        target: Vec<u8>,
    },
    /// Another name of an earlier entry; its own attributes do not count.
    HardLink {
        /// The earlier entry's name, spelled like [`Entry::path`].
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
}

/// A stretch of data in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Byte offset in the file.
    pub offset: u64,
    /// Length in bytes, not zero.
    pub len: u64,
}
