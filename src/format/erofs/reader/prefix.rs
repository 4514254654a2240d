//! Long name prefixes, which an image keeps in a table that is read when it is opened.
//!
//! Source: Linux `fs/erofs/xattr.c` (`erofs_xattr_prefixes_init`).

use crate::format::erofs::xattr::Prefix;

/// Entry of the table of long name prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LongPrefix {
    pub(super) base: Prefix,
    pub(super) infix: Vec<u8>,
    /// Byte of the image at which the prefix starts, and its length; `None` when it lies in the
    /// packed file.
    pub(super) place: Option<(u64, u64)>,
}
