//! Entry of a layer, which a source of layers announces before the entry's data.

use super::{Attributes, Device, Xattr};

/// Entry of a layer: name, type and metadata, without the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name as the source spells it.
    pub path: Vec<u8>,
    /// Owner, permissions and time.
    pub attributes: Attributes,
    /// Extended attributes that belong to the image, each name once.
    pub xattrs: Vec<Xattr>,
    /// Type of the entry, with the fields that only this type has.
    pub body: Body,
}

/// Type of an entry with its own fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Regular file, whose data follows.
    Regular {
        /// Logical size in bytes, holes included.
        size_bytes: u64,
        /// Stretches of a sparse file that hold data: ascending, not overlapping, within the size.
        /// `None` for a file without holes.
        extents: Option<Vec<Extent>>,
    },
    /// Directory; its names are entries of their own.
    Directory,
    /// Symbolic link, never followed by the last component of a name.
    Symlink {
        /// 1 to [`crate::limits::LINK_TARGET_BYTES`] bytes without NUL, not interpreted.
        target: Vec<u8>,
    },
    /// Further name of an earlier entry. The metadata of this entry has no meaning.
    HardLink {
        /// Name of the earlier entry, spelled like [`Entry::path`].
        target: Vec<u8>,
    },
    /// Character device. Number 0:0 is a whiteout to overlayfs.
    CharDevice(Device),
    /// Block device with its number.
    BlockDevice(Device),
    /// Named pipe, which has no data.
    Fifo,
}

/// Stretch of data in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Byte offset in the file.
    pub offset: u64,
    /// Length in bytes, not zero.
    pub len: u64,
}
