//! The port to which changes are written: a tar archive or an EROFS image.
//!
//! `compose` chooses the output for the type of a layer.

use crate::{error::Result, tree::Entry};

/// Takes the entries of a layer in their order, whiteouts spelled as `.wh.` names.
///
/// A parent directory comes before what is in it, a hard link after the name it points to. The data of a
/// regular file follows its entry, in ascending order and within its extents; `end_entry` ends it.
pub trait Output {
    /// Begins an entry.
    fn entry(&mut self, entry: &Entry) -> Result<()>;

    /// Data of the regular file begun last, at byte `offset` of the file.
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Ends the regular file begun last. Not called for other entries.
    fn end_entry(&mut self) -> Result<()>;
}
