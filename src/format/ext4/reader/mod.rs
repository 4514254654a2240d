//! Reads an ext4 file system: inodes, directories, attributes and file data, from any source of
//! blocks.
//!
//! An image that was not unmounted is read as the kernel would show it after replaying the journal;
//! nothing is written. The bytes may be hostile: no read panics, recurses, or holds more than a few
//! blocks, the attributes of one inode, and an index of the journal.
//!
//! Described in `docs/formats/ext4.md`. Source: Linux `fs/ext4/` (`super.c`, `inode.c`, `extents.c`,
//! `indirect.c`, `inline.c`, `dir.c`, `namei.c`, `xattr.c`, `symlink.c`) and `fs/jbd2/recovery.c`.

mod blocks;
mod data;
mod directory;
mod error;
#[cfg(test)]
mod log_tests;
mod map;
mod names;
mod replay;
#[cfg(test)]
mod tests;
mod xattrs;

use std::sync::Arc;

use self::blocks::Blocks;
pub use self::{
    data::{Extent, Extents, Place},
    directory::{DirEntry, Directory},
    error::{NodeFault, Place as NodePlace, ReadError},
    names::Names,
};
use super::{
    Block, InodeNumber,
    group::Group,
    inode::{Content, Inode},
    superblock::{Superblock, incompat},
};
use crate::{format::ReadAt, limits::LINK_TARGET_BYTES, tree::FileType};

/// An opened file system over `R`, the file that holds it.
///
/// Keeps at most 1 MiB of metadata blocks. An image therefore belongs to one thread; open one for
/// each thread.
#[derive(Debug)]
pub struct Image<R> {
    blocks: Blocks<R>,
    superblock: Superblock,
    replayed: Option<Replayed>,
}

/// Counts from the replay of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// Number of transactions with a commit.
    pub transactions: u32,
    /// Number of blocks that are read from the journal.
    pub blocks: usize,
    /// Number of blocks that a transaction revokes.
    pub revoked: usize,
}

/// Inode and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Inode number.
    pub number: InodeNumber,
    /// Decoded record of the inode.
    pub inode: Inode,
}

impl<R: ReadAt> Image<R> {
    /// Opens a file system, and indexes the blocks that are still in its journal.
    ///
    /// Errors: [`ReadError`] when superblock or journal are malformed, or use unsupported features.
    pub fn open(file: R) -> Result<Self, ReadError> {
        let size_bytes = file.size_bytes();
        let want = Superblock::OFFSET + Superblock::LEN as u64;
        if size_bytes < want {
            return Err(ReadError::Truncated { size_bytes, want });
        }
        let mut record = [0; Superblock::LEN];
        file.read_exact_at(Superblock::OFFSET, &mut record).map_err(|source| ReadError::Io {
            offset: Superblock::OFFSET,
            len: Superblock::LEN as u64,
            source,
        })?;
        let superblock = Superblock::decode(&record)?;
        if superblock.size_bytes() > size_bytes {
            return Err(ReadError::Truncated { size_bytes, want: superblock.size_bytes() });
        }
        let blocks = Blocks::new(file, superblock.block_bits, superblock.blocks);
        let mut image = Self { blocks, superblock, replayed: None };
        if image.superblock.has_incompat(incompat::RECOVER) {
            image.replay(size_bytes)?;
        }
        Ok(image)
    }

    /// Superblock, in its newest copy.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Result of replaying the journal; `None` for a file system that was unmounted.
    pub fn replayed(&self) -> Option<Replayed> {
        self.replayed
    }

    /// Reads the inode of the root directory. Errors: as [`Self::node`].
    pub fn root(&self) -> Result<Node, ReadError> {
        let root = self.node(InodeNumber::ROOT)?;
        if root.inode.file_type != FileType::Directory {
            return Err(ReadError::Node { number: root.number, fault: NodeFault::NotDirectory });
        }
        Ok(root)
    }

    /// Reads inode `number`.
    ///
    /// Errors: [`ReadError`] when there is no such inode, it is not in use, or its record has no
    /// meaning.
    pub fn node(&self, number: InodeNumber) -> Result<Node, ReadError> {
        let (block, range) = self.record(number)?;
        let record = block.get(range).unwrap_or_default();
        let inode = Inode::decode(record, number, &self.superblock)
            .map_err(|source| ReadError::Inode { number, source })?;
        Ok(Node { number, inode })
    }

    /// Block that holds inode `number`, and the range of its record in the block.
    fn record(&self, number: InodeNumber) -> Result<(Arc<[u8]>, std::ops::Range<usize>), ReadError> {
        let superblock = &self.superblock;
        let index = number
            .0
            .checked_sub(1)
            .filter(|index| *index < superblock.inodes)
            .ok_or(ReadError::Number { number, inodes: superblock.inodes })?;
        let (group, slot) = (index / superblock.inodes_per_group, index % superblock.inodes_per_group);
        let table = self.group(group.into())?.inode_table;
        let offset = u64::from(slot) * u64::from(superblock.inode_len);
        let bits = superblock.block_bits;
        let block = Block(table.0.saturating_add(offset >> bits.get()));
        let block = self.blocks.read(block, "inode table")?;
        // The offset is smaller than a block.
        let start = usize::try_from(bits.within(offset)).unwrap_or_default();
        Ok((block, start..start + usize::from(superblock.inode_len)))
    }

    fn group(&self, group: u64) -> Result<Group, ReadError> {
        let (block, offset) = Group::place(group, &self.superblock);
        let block = self.blocks.read(block, "group descriptors")?;
        let end = offset + usize::from(self.superblock.descriptor_len);
        Group::decode(block.get(offset..end).unwrap_or_default(), group, &self.superblock)
            .map_err(|source| ReadError::Group { group, source })
    }

    /// Reads the target of a symbolic link: 1 to 4095 bytes without NUL.
    pub fn symlink_target(&self, node: &Node) -> Result<Vec<u8>, ReadError> {
        let fault = |fault| ReadError::Node { number: node.number, fault };
        if node.inode.file_type != FileType::Symlink {
            return Err(fault(NodeFault::NotSymlink));
        }
        let len = node.inode.size_bytes;
        let buffer_len = usize::try_from(len)
            .ok()
            .filter(|len| (1..=LINK_TARGET_BYTES).contains(len))
            .ok_or_else(|| fault(NodeFault::LinkLength { len }))?;
        let mut target = vec![0; buffer_len];
        if node.inode.content() == Content::Target {
            let stored = node.inode.payload.get(..buffer_len);
            target.copy_from_slice(stored.ok_or_else(|| fault(NodeFault::LinkLength { len }))?);
        } else {
            self.read_data(node, 0, &mut target)?;
        }
        if target.contains(&0) {
            return Err(fault(NodeFault::LinkNul));
        }
        Ok(target)
    }
}
