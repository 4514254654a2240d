//! One layer as a tree to read: a directory, an EROFS image, an ext4 image.
//!
//! A layer is what one directory of an overlay mount holds: whiteouts and opaque directories are in it
//! in overlayfs's form, and mean nothing here.

mod directory;
mod erofs;
mod error;
mod ext4;
mod extents;
mod pieces;

pub use self::{
    directory::{Control, DirectoryLayer},
    erofs::ErofsLayer,
    error::LayerError,
    ext4::Ext4Layer,
    extents::Extents,
};

use crate::{
    error::Result,
    tree::{Attributes, Device, Extent, FileType, Timestamp, Xattr},
};

/// A file of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub file_type: FileType,
    /// Owner, permissions and time.
    pub attributes: Attributes,
    /// Number of a device; 0:0 for all else.
    pub device: Device,
    /// Bytes of a file or of a symbolic link's target; 0 for all else.
    pub size_bytes: u64,
    /// Number of names. Of a directory, anything.
    pub links: u64,
    /// Number of the inode, unique in its volume.
    pub inode: u64,
    /// Which of the layer's file systems the inode is on; 0 in an image, which is one.
    pub volume: u64,
    /// When anything about it changed last, in a layer that can change; 0 in an image.
    pub changed: Timestamp,
}

/// A file and the name it was found under: images are read by inode, directories by name.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// From the layer's root, without a slash in front; empty for the root.
    pub path: &'a [u8],
    /// What was found there.
    pub node: &'a Node,
}

/// A layer, read only.
///
/// A layer may be alive and hostile: whatever changes between two calls is an error of kind
/// `Changed`, never other bytes than those of the file that was looked up. What is handed out is handed
/// out in the middle of a call: `each` must not call the layer.
pub trait Layer {
    /// Device and inode number of what holds the layer: equal keys, the same layer.
    fn key(&self) -> (u64, u64);

    /// For messages.
    fn name(&self) -> &str;

    /// What begins the names of overlayfs's own attributes: `trusted.overlay.` or `user.overlay.`.
    fn control_prefix(&self) -> &'static [u8];

    /// The root directory.
    fn root(&self) -> Result<Node>;

    /// Hands out the names in a directory, each once and in any order, without `.` and `..`. A directory
    /// may have millions: whoever gathers them pays for the memory.
    fn names(&self, directory: At<'_>, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

    /// The entry `name` of a directory.
    fn lookup(&self, directory: At<'_>, name: &[u8]) -> Result<Option<Node>>;

    /// All extended attributes, overlayfs's own among them, sorted by name, each name once.
    fn xattrs(&self, at: At<'_>) -> Result<Vec<Xattr>>;

    /// Where a symbolic link points.
    fn symlink_target(&self, at: At<'_>) -> Result<Vec<u8>>;

    /// Where a file has data; `None` when that is all of it. Ascending, not touching, none empty, and at
    /// most [`crate::limits::SPARSE_REGIONS`]: what [`Extents`] gathers.
    fn extents(&self, at: At<'_>) -> Result<Option<Vec<Extent>>>;

    /// Hands out the bytes of `extents` in order, each piece with its offset in the file. The extents
    /// ascend and lie within the file; they need not be those that [`Layer::extents`] tells: holes read
    /// as zeros.
    fn read(
        &self,
        at: At<'_>,
        extents: &[Extent],
        each: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()>;
}
