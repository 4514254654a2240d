//! EROFS images: the read-only file system that the kernel mounts as a layer.
//!
//! One module per on-disk record ([`superblock`], [`inode`], [`dirent`], [`xattr`], [`chunk`],
//! [`compression`], [`device`]) converts between bytes and values. [`reader`] finds the records in
//! an image, [`check`] decides whether a kernel should see it, [`dump`] shows it as text, [`tar_index`] finds the
//! archive in one.
//!
//! Described in `docs/formats/erofs.md`. Source: Linux `fs/erofs/erofs_fs.h` and
//! `Documentation/filesystems/erofs.rst`.

mod address;
pub mod check;
pub mod chunk;
pub mod compression;
pub mod device;
pub mod dirent;
pub mod dump;
#[cfg(test)]
pub(crate) mod fixture;
mod fuzz;
pub mod inode;
pub mod reader;
pub mod superblock;
pub mod tar_index;
pub mod writer;
pub mod xattr;

pub use address::{Block, BlockBits, Nid, SLOT_LEN};
pub use fuzz::fuzz_image;
