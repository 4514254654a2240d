//! Checks an image before a kernel sees it: well-formed, a tree, free of overlaps, and within what
//! the policy allows.
//!
//! Two passes. The first walks the directories breadth first and notes every record as eight bytes:
//! the place of its inode and the type it claims. Sorted, the notes list the inodes in the order of
//! the disk, each with its number of names. The second pass reads each inode once, in that order,
//! and notes the blocks it uses. Nothing is recursive. Memory is some 40 bytes for each record, and
//! the policy bounds it.
//!
//! Described in `docs/formats/erofs.md`, "Checking". The rules are those that the kernel relies on
//! (Linux `fs/erofs/`, `fs/overlayfs/`), and stricter ones.

mod inodes;
mod policy;
mod ranges;
mod report;
mod rule;
mod superblock;
#[cfg(test)]
mod tests;
mod tree;
mod xattrs;

use self::{inodes::Inodes, report::Notes, tree::Tree};
pub use self::{
    policy::{Level, Policy},
    report::{Lint, Report},
    rule::{CheckError, Rule},
};
use super::reader::Image;
use crate::format::ReadAt;

/// Checks the image in `file`.
///
/// Errors: [`CheckError`] for the first rule that is broken.
pub fn verify<R: ReadAt>(file: R, policy: &Policy) -> Result<Report, CheckError> {
    verify_image(&Image::open(file)?, policy)
}

/// Checks an open image, whose devices may be separate files. Errors: as [`verify`].
pub fn verify_image<R: ReadAt>(image: &Image<R>, policy: &Policy) -> Result<Report, CheckError> {
    let mut notes = Notes::default();
    let tables = superblock::check(image, policy, &mut notes)?;
    let root = image.root()?;
    if policy.level == Level::Superblock {
        let image_bytes = superblock::declared_bytes(image);
        return Ok(Report { image_bytes, lints: notes.into_lints(), ..Report::default() });
    }
    let tree = Tree::walk(image, policy, &root, &mut notes)?;
    let mut report = Inodes::new(image, policy, tree, tables).check(&mut notes)?;
    report.image_bytes = superblock::declared_bytes(image);
    report.lints = notes.into_lints();
    Ok(report)
}
