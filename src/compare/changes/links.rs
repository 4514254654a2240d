//! Hard links: the first name of an inode carries its data, later ones point to the first.

use std::collections::HashMap;

use super::{ChangesError, merged::Found, names::Memory};
use crate::{error::Result, tree::Timestamp};

/// Memory of one inode besides its first name, in bytes: key, value, and the table's free places.
const NODE_BYTES: usize = 128;

/// The inodes with several names of which some are still to come.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// By layer, file system and number.
    inodes: HashMap<(usize, u64, u64), First>,
}

/// What is known of an inode from its first name.
#[derive(Debug)]
struct First {
    path: Box<[u8]>,
    size_bytes: u64,
    mtime: Timestamp,
    /// Names that are still to come.
    left: u64,
}

fn key(file: &Found) -> (usize, u64, u64) {
    (file.layer, file.node.volume, file.node.inode)
}

impl Links {
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
                memory.release(NODE_BYTES + first.path.len());
                self.inodes.remove(&key(file));
            }
            return Ok(());
        }
        memory.add(NODE_BYTES + path.len())?;
        let first = First {
            path: path.into(),
            size_bytes: file.node.size_bytes,
            mtime: file.node.attributes.mtime,
            left: file.node.links - 1,
        };
        self.inodes.insert(key(file), first);
        Ok(())
    }
}
