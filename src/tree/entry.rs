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

impl Body {
    /// Stretches of a file that hold data, each with the byte of an archive at which it is stored, in an archive that
    /// stores them one after the other from byte `data_start` on. None for anything but a file with data.
    pub fn stored(&self, data_start: u64) -> impl Iterator<Item = (Extent, u64)> {
        let (whole, extents) = match self {
            Self::Regular { size_bytes, extents: None } => {
                (Some(Extent { offset: 0, len: *size_bytes }), [].as_slice())
            }
            Self::Regular { extents: Some(extents), .. } => (None, extents.as_slice()),
            _ => (None, [].as_slice()),
        };
        let with_data = whole.into_iter().chain(extents.iter().copied()).filter(|extent| extent.len > 0);
        with_data.scan(data_start, |at, extent| {
            let start = *at;
            *at = at.saturating_add(extent.len);
            Some((extent, start))
        })
    }
}

/// Stretch of data in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Byte offset in the file.
    pub offset: u64,
    /// Length in bytes, not zero.
    pub len: u64,
}
