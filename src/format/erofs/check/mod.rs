//! Checking an image before a kernel sees it: is it well-formed, a tree, free of overlaps, and does it
//! stay within what a layer may contain?
//!
//! Two passes. The first walks the directories breadth first and notes every record as eight bytes: where
//! its inode lies and which type it claims. Sorted, the notes are the inodes in the order of the disk with
//! their number of names, and the second pass reads each once, in that order, and notes which blocks it
//! uses. Nothing is recursive; memory is some 40 bytes for each record, and bounded by the policy.
//!
//! Described in `docs/formats/erofs.md`, "Checking". The rules are those the kernel relies on (Linux
//! `fs/erofs/`, `fs/overlayfs/`), and then some.

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

/// What an image is held to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How deep to look.
    pub level: Level,
    /// Largest block size as its logarithm: that of the page of the machine that will mount it.
    pub max_block_bits: u8,
    /// Compatible features that may be set.
    pub compat: u32,
    /// Incompatible features that may be set.
    pub incompat: u32,
    /// Whether data may lie on extra devices.
    pub devices: bool,
    /// Whether attributes may steer overlayfs in every way it knows.
    pub overlay_control: bool,
    /// Most directory records.
    pub max_nodes: u64,
    /// Most memory that the check may hold, in bytes.
    pub max_memory_bytes: u64,
}

/// How deep a check looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The superblock, its tables and the root inode.
    Superblock,
    /// Everything.
    Strict,
}

const LAYER_COMPAT: u32 = compat::SB_CHKSUM | compat::MTIME | compat::XATTR_FILTER | compat::PLAIN_XATTR_PFX;
const LAYER_INCOMPAT: u32 = incompat::KNOWN & !incompat::METABOX;

impl Policy {
    /// The rules for a layer from a stranger, and for our own output: no extra devices, no metadata
    /// in compressed form, no reference into other layers. Which kernel an image needs is not decided
    /// here: one that is too old does not mount it.
    pub fn layer() -> Self {
        let limits = crate::limits::Limits::default();
        Self {
            level: Level::Strict,
            max_block_bits: 12,
            compat: LAYER_COMPAT,
            incompat: LAYER_INCOMPAT,
            devices: false,
            overlay_control: false,
            max_nodes: limits.nodes,
            max_memory_bytes: limits.metadata_bytes,
        }
    }

    /// The rules for any image: sound, whoever made it for whatever purpose.
    pub fn any() -> Self {
        Self { max_block_bits: 16, compat: u32::MAX, devices: true, overlay_control: true, ..Self::layer() }
    }
}

/// What an acceptable image holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Directory records but `.` and `..`: the names of the image.
    pub names: u64,
    /// Inodes, the root included.
    pub inodes: u64,
    /// Of these: directories.
    pub directories: u64,
    /// Of these: regular files.
    pub files: u64,
    /// Of these: symbolic links.
    pub symlinks: u64,
    /// Of these: whiteouts, character devices 0:0.
    pub whiteouts: u64,
    /// Of these: other devices, fifos and sockets.
    pub specials: u64,
    /// Compressed ones among the files. Their maps were checked, their data was not decoded.
    pub compressed: u64,
    /// Logical size of all regular files, in bytes.
    pub file_bytes: u64,
    /// Size that the superblock declares, in bytes.
    pub image_bytes: u64,
    /// What could be better.
    pub lints: Vec<Lint>,
}

/// A broken rule that does not refuse the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lint {
    /// The rule.
    pub rule: Rule,
    /// How often it is broken.
    pub count: u64,
    /// The first time: what was found.
    pub first: String,
}

/// Checks the image in `file`.
///
/// Errors: [`CheckError`] with the first rule found broken.
pub fn verify<R: ReadAt>(file: R, policy: &Policy) -> Result<Report, CheckError> {
    verify_image(&Image::open(file)?, policy)
}

/// Checks an open image, whose devices may be files of their own.
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

/// The lints found so far, one entry for each rule.
#[derive(Debug, Default)]
struct Notes {
    lints: BTreeMap<Rule, Lint>,
}

impl Notes {
    /// Notes a lint; `detail` is asked for only the first time.
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
