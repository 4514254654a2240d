//! Views: file trees to read, in a directory, an EROFS image or an ext4 image.
//!
//! ```text
//! snapshot::Stack ──> open ──> View, on a directory or a Volume ──> stack: the merged tree of several
//! ```
//!
//! A [`View`] is something whose tree can be read, a [`Volume`] something whose blocks can be read; the views
//! of images stand on volumes. A single view knows nothing of other layers: whiteouts and opaque directories
//! are in it as overlayfs stores them, and only `stack` gives them a meaning.
//!
//! Nothing here mounts, and nothing is written.

mod control;
mod directory;
mod erofs;
mod error;
mod ext4;
mod extents;
#[cfg(test)]
pub(crate) mod fixture;
mod mapped;
pub(crate) mod memory;
pub(crate) mod open;
mod pieces;
pub(crate) mod stack;
mod volume;

pub use self::{
    control::Control,
    directory::DirectoryView,
    erofs::ErofsView,
    error::ViewError,
    ext4::Ext4View,
    extents::Extents,
    volume::{Device as LayeredDevice, DeviceFile, Volume},
};

use crate::{
    error::Result,
    tree::{Attributes, Device, Extent, FileType, Timestamp, Xattr},
};

/// A file of a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Directory, regular file, symbolic link and so on.
    pub file_type: FileType,
    /// Owner, permissions and time of the last modification.
    pub attributes: Attributes,
    /// Number of a device; 0:0 for all else.
    pub device: Device,
    /// Bytes of a file or of a symbolic link's target; 0 for all else.
    pub size_bytes: u64,
    /// Number of names. For a directory, any number.
    pub links: u64,
    /// Number of the inode, unique in its file system.
    pub inode: u64,
    /// The file system that the inode is on, of those in the view; 0 in an image, which is one.
    pub file_system: u64,
    /// Time of the last change of any kind, in a view that can change; 0 in an image.
    pub changed: Timestamp,
}

/// A file and the name it was found under: images are read by inode, directories by name.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// Path from the view's root, without a slash in front; empty for the root.
    pub path: &'a [u8],
    /// The file found there.
    pub node: &'a Node,
}

/// A file tree, read only.
///
/// The tree may be alive and hostile: a change between two calls is an error of kind `Changed`, never other bytes
/// than those of the file that was looked up. A callback `each` runs in the middle of a call, and must not call the
/// view.
pub trait View {
    /// Device and inode number of the directory or image: equal keys, the same view.
    fn key(&self) -> (u64, u64);

    /// Name for messages.
    fn name(&self) -> &str;

    /// Prefix of the names of overlayfs's own attributes: `trusted.overlay.` or `user.overlay.`.
    fn control_prefix(&self) -> &'static [u8];

    /// The root directory.
    fn root(&self) -> Result<Node>;

    /// Passes the names in a directory to `each`: each once, in any order, without `.` and `..`. A directory
    /// may have millions, so a caller that keeps them bounds their memory.
    fn names(&self, directory: At<'_>, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

    /// The entry `name` of a directory.
    fn lookup(&self, directory: At<'_>, name: &[u8]) -> Result<Option<Node>>;

    /// All extended attributes, overlayfs's own included, sorted by name, each name once.
    fn xattrs(&self, at: At<'_>) -> Result<Vec<Xattr>>;

    /// Target of a symbolic link.
    fn symlink_target(&self, at: At<'_>) -> Result<Vec<u8>>;

    /// Where a file has data; `None` for a file without holes. Ascending, not touching, none empty, and at
    /// most [`crate::limits::SPARSE_REGIONS`], as [`Extents`] gathers them.
    fn extents(&self, at: At<'_>) -> Result<Option<Vec<Extent>>>;

    /// Passes the bytes of `extents` to `each` in order, each piece with its offset in the file. The extents
    /// ascend and lie within the file. Holes read as zeros, so other extents than those of [`View::extents`]
    /// are fine.
    fn read(
        &self,
        at: At<'_>,
        extents: &[Extent],
        each: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()>;
}
