//! EROFS images: the read-only file system that the kernel mounts as a layer.
//!
//! One module per on-disk record ([`superblock`], [`inode`], [`dirent`], [`xattr`], [`chunk`],
//! [`device`]), each spelled as bytes and as values.
//!
//! Described in `docs/formats/erofs.md`. Source: Linux `fs/erofs/erofs_fs.h` and
//! `Documentation/filesystems/erofs.rst`.

mod address;
pub mod chunk;
pub mod device;
pub mod dirent;
pub mod inode;
pub mod superblock;
pub mod xattr;

pub use address::{Block, BlockBits, Nid, SLOT_LEN};
