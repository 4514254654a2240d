//! Results of a check: what an image holds, and the lints that it breaks.
//!
//! Described in `docs/formats/erofs.md`, "Checking".

use std::collections::BTreeMap;

use super::rule::Rule;
use crate::format::erofs::Nid;

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

/// Lints found so far, one entry for each rule.
#[derive(Debug, Default)]
pub(super) struct Notes {
    lints: BTreeMap<Rule, Lint>,
}

impl Notes {
    /// Counts a lint. `detail` is called for the first case of a rule only.
    pub(super) fn lint(&mut self, rule: Rule, nid: Option<Nid>, detail: impl FnOnce() -> String) {
        let note = || {
            let first = match nid {
                Some(nid) => format!("inode {nid}: {}", detail()),
                None => detail(),
            };
            Lint { rule, count: 0, first }
        };
        self.lints.entry(rule).or_insert_with(note).count += 1;
    }

    pub(super) fn into_lints(self) -> Vec<Lint> {
        self.lints.into_values().collect()
    }
}
