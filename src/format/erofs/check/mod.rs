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
mod ranges;
mod rule;
mod superblock;
#[cfg(test)]
mod tests;
mod tree;
mod xattrs;

use std::collections::BTreeMap;

pub use self::rule::{CheckError, Rule};
use self::{inodes::Inodes, tree::Tree};
use super::{
    Nid,
    reader::Image,
    superblock::{compat, incompat},
};
use crate::format::ReadAt;

/// Limits and permissions that an image is checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Depth of the check: superblock only, or everything.
    pub level: Level,
    /// log2 of the largest block size: that of a page on the machine that mounts the image.
    pub max_block_bits: u8,
    /// Compatible feature bits that may be set.
    pub compat: u32,
    /// Incompatible feature bits that may be set.
    pub incompat: u32,
    /// True when data may lie on extra devices.
    pub devices: bool,
    /// True when attributes may steer overlayfs: redirect, metacopy, and any value of `opaque` and
    /// `origin`.
    pub overlay_control: bool,
    /// Most directory records, `.` and `..` not counted.
    pub max_nodes: u64,
    /// Most memory that the check holds, in bytes.
    pub max_memory_bytes: u64,
}

/// Depth of a check: how much of the image it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Superblock, tables and root inode only.
    Superblock,
    /// Every inode, directory and attribute.
    Strict,
}

// Without ISHARE_XATTRS: by a forged content fingerprint a layer could share another's pages.
const LAYER_COMPAT: u32 = compat::SB_CHKSUM | compat::MTIME | compat::XATTR_FILTER | compat::PLAIN_XATTR_PFX;
const LAYER_INCOMPAT: u32 = incompat::KNOWN & !incompat::METABOX;

impl Policy {
    /// Policy for a layer from a stranger and for our own output: no extra devices, no metabox, no
    /// references into other layers. It does not ask which kernel an image needs: one that is too
    /// old does not mount it.
    pub fn layer() -> Self {
        let limits = crate::limits::Limits::default();
        Self {
            level: Level::Strict,
            // The page size of most machines; a kernel mounts no larger blocks.
            max_block_bits: 12,
            compat: LAYER_COMPAT,
            incompat: LAYER_INCOMPAT,
            devices: false,
            overlay_control: false,
            max_nodes: limits.nodes,
            max_memory_bytes: limits.metadata_bytes,
        }
    }

    /// Policy for looking at images of any origin: sound, but with devices, all known features,
    /// blocks up to 64 KiB, and attributes that steer overlayfs.
    pub fn any() -> Self {
        Self { max_block_bits: 16, compat: u32::MAX, devices: true, overlay_control: true, ..Self::layer() }
    }
}

/// Counts and sizes of an image that passed the check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Directory records except `.` and `..`.
    pub names: u64,
    /// Inodes, the root included; an inode with several names counts once.
    pub inodes: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Regular files, each inode once.
    pub files: u64,
    /// Symbolic links, each inode once.
    pub symlinks: u64,
    /// Whiteouts: character devices 0:0.
    pub whiteouts: u64,
    /// Fifos, sockets, and devices that are no whiteouts.
    pub specials: u64,
    /// Compressed files. Their maps were checked, their data was not decoded.
    pub compressed: u64,
    /// Logical size of all regular files, in bytes.
    pub file_bytes: u64,
    /// Size that the superblock declares, in bytes. The file may be longer.
    pub image_bytes: u64,
    /// Broken rules that do not refuse the image.
    pub lints: Vec<Lint>,
}

/// A broken rule that does not refuse the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lint {
    /// Lint that was broken; other rules refuse the image instead.
    pub rule: Rule,
    /// How often it was broken.
    pub count: u64,
    /// Details of the first case.
    pub first: String,
}

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

/// Lints found so far, one entry for each rule.
#[derive(Debug, Default)]
struct Notes {
    lints: BTreeMap<Rule, Lint>,
}

impl Notes {
    /// Counts a lint. `detail` is called for the first case of a rule only.
    fn lint(&mut self, rule: Rule, nid: Option<Nid>, detail: impl FnOnce() -> String) {
        let note = || {
            let first = match nid {
                Some(nid) => format!("inode {nid}: {}", detail()),
                None => detail(),
            };
            Lint { rule, count: 0, first }
        };
        self.lints.entry(rule).or_insert_with(note).count += 1;
    }

    fn into_lints(self) -> Vec<Lint> {
        self.lints.into_values().collect()
    }
}
