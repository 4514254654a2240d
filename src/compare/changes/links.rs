//! Hard links: the first name of an inode carries its data, later ones point to the first.
//!
//! Between two arbitrary stacks a name may be the same on both sides and another name of its inode new.
//! Emitting the new name alone would make it a file of its own, so the names still missing are known here.

use std::collections::{HashMap, HashSet};

use super::error::ChangesError;
use crate::{
    error::Result,
    tree::Timestamp,
    view::{memory::Memory, stack::Found},
};

/// Memory of one inode besides its first name, in bytes: key, value, and the table's free slots.
const NODE_BYTES: usize = 128;

/// Inodes with several names of which some are still to come.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// By layer, file system and number.
    inodes: HashMap<(usize, u64, u64), First>,
    /// Number of the layer that the walk visits whole: its inodes lack no name in the end.
    whole: Option<usize>,
}

/// An inode, as it was found under its first name.
#[derive(Debug)]
struct First {
    path: Box<[u8]>,
    size_bytes: u64,
    mtime: Timestamp,
    /// Number of names that are still to come.
    left: u64,
    /// The names after the first, if they are remembered. There may be millions.
    later: HashSet<Box<[u8]>>,
}

impl First {
    fn memory_bytes(&self) -> usize {
        NODE_BYTES + self.path.len() + self.later.iter().map(|name| later_bytes(name)).sum::<usize>()
    }
}

fn later_bytes(name: &[u8]) -> usize {
    // Twice the slot in the table, which is half empty after it has grown.
    2 * size_of::<Box<[u8]>>() + name.len()
}

fn key(file: &Found) -> (usize, u64, u64) {
    (file.layer, file.node.file_system, file.node.inode)
}

impl Links {
    /// Links of a walk that visits every name of the layer `whole`. For inodes of other layers every name is
    /// remembered, which [`Links::lacks`] needs.
    pub fn new(whole: Option<usize>) -> Self {
        Self { inodes: HashMap::new(), whole }
    }

    /// Whether some inode has names that were not written.
    pub fn lack_some(&self) -> bool {
        self.inodes.keys().any(|(layer, ..)| Some(*layer) != self.whole)
    }

    /// Whether `file` was written, but not under the name `path`.
    pub fn lacks(&self, file: &Found, path: &[u8]) -> bool {
        let is_there = |first: &First| *first.path == *path || first.later.contains(path);
        let first = self.inodes.get(&key(file)).filter(|_| Some(file.layer) != self.whole);
        first.is_some_and(|first| !is_there(first))
    }

    /// The first name of `file` if that was written before. Errors: [`ChangesError::Linked`] when it was
    /// another file then.
    pub fn first(&self, file: &Found, path: &[u8]) -> Result<Option<&[u8]>, ChangesError> {
        let Some(first) = self.inodes.get(&key(file)) else { return Ok(None) };
        if (first.size_bytes, first.mtime) != (file.node.size_bytes, file.node.attributes.mtime) {
            return Err(ChangesError::Linked { path: path.to_vec(), first: first.path.to_vec() });
        }
        Ok(Some(&first.path))
    }

    /// Notes that `file` was written under the name `path`.
    pub fn written(&mut self, file: &Found, path: &[u8], memory: &mut Memory<'_>) -> Result<()> {
        if file.node.links <= 1 {
            return Ok(());
        }
        if let Some(first) = self.inodes.get_mut(&key(file)) {
            first.left = first.left.saturating_sub(1);
            if first.left == 0 {
                memory.release(first.memory_bytes());
                self.inodes.remove(&key(file));
            } else if Some(file.layer) != self.whole {
                memory.add(later_bytes(path))?;
                first.later.insert(path.into());
            }
            return Ok(());
        }
        memory.add(NODE_BYTES + path.len())?;
        let first = First {
            path: path.into(),
            size_bytes: file.node.size_bytes,
            mtime: file.node.attributes.mtime,
            left: file.node.links - 1,
            later: HashSet::new(),
        };
        self.inodes.insert(key(file), first);
        Ok(())
    }
}
