//! ext4 file systems, read only: the writable layer of a container in block mode.
//!
//! One module per on-disk record ([`superblock`], [`group`], [`inode`], [`extent`], [`dirent`],
//! [`xattr`], [`acl`], [`journal`]). [`reader`] finds the records in an image, and reads blocks
//! that are still in the journal from there. Nothing here writes.
//!
//! Described in `docs/formats/ext4.md`. Source: Linux `Documentation/filesystems/ext4/`, `fs/ext4/ext4.h`
//! and `include/linux/jbd2.h`.

pub mod acl;
mod address;
pub mod checksum;
pub mod dirent;
pub mod extent;
#[cfg(test)]
mod fixture;
mod fuzz;
pub mod group;
pub mod inode;
pub mod journal;
pub mod reader;
pub mod superblock;
pub mod xattr;

pub use address::{Block, BlockBits, InodeNumber};
pub use fuzz::{fuzz_image, read_all};
