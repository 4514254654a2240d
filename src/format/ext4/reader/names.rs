//! Index of one directory: which block holds each name, so that finding one reads one block.
//!
//! Source: none; it replaces the directory's own hash tree, which not every directory has.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
};

use super::{Image, Node, directory::DirEntry, error::ReadError};
use crate::{
    error::Quoted,
    format::{
        ReadAt,
        ext4::{InodeNumber, dirent::DirentFault},
    },
    limits::DIRECTORY_NAMES,
    tree::FileType,
};

/// Index of a directory's names, 16 bytes for each.
#[derive(Clone, Debug)]
pub struct Names {
    node: Node,
    /// Random keys, so that nobody can choose names that are slow to find.
    hasher: RandomState,
    /// Hash of the name, and the directory block that holds it; sorted.
    places: Vec<(u64, u32)>,
}

impl<R: ReadAt> Image<R> {
    /// Reads all of the directory `node`. Refuses a name that occurs twice and a directory with two
    /// names.
    ///
    /// Errors: [`DirentFault::Repeated`], [`DirentFault::Linked`], [`DirentFault::Names`], and
    /// those of an iteration.
    pub fn names(&self, node: &Node) -> Result<Names, ReadError> {
        let mut directory = self.directory(node)?;
        let mut names = Names { node: *node, hasher: RandomState::new(), places: Vec::new() };
        let mut directories = Vec::new();
        while let Some(DirEntry { name, inode, file_type }) = directory.next_child()? {
            let hash = names.hasher.hash_one(name);
            if file_type == Some(FileType::Directory) {
                directories.push(inode);
            }
            // A directory has at most 2^32 bytes.
            let block = u32::try_from(directory.block_number()).unwrap_or(u32::MAX);
            names.places.push((hash, block));
            if names.places.len() > DIRECTORY_NAMES {
                return Err(directory.fault(DirentFault::Names));
            }
        }
        names.places.sort_unstable();
        directories.sort_unstable();
        let twice = directories.iter().zip(directories.iter().skip(1)).find(|(a, b)| a == b);
        if let Some((inode, _)) = twice {
            return Err(directory.fault(DirentFault::Linked { inode: *inode }));
        }
        for places in names.places.chunk_by(|a, b| a.0 == b.0).filter(|places| places.len() > 1) {
            names.all_differ(self, places)?;
        }
        Ok(names)
    }
}

impl Names {
    /// Number of names in the directory.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// True when the directory is empty.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Finds `name`. `image` is the one that the directory was read from.
    ///
    /// Errors: [`ReadError::Directory`] when the block has changed since and is malformed.
    pub fn lookup<R: ReadAt>(
        &self,
        image: &Image<R>,
        name: &[u8],
    ) -> Result<Option<(InodeNumber, Option<FileType>)>, ReadError> {
        let hash = self.hasher.hash_one(name);
        let first = self.places.partition_point(|place| place.0 < hash);
        let places = self.places.get(first..).unwrap_or_default();
        let mut directory = image.directory(&self.node)?;
        for (_, block) in places.iter().take_while(|place| place.0 == hash) {
            directory.seek((*block).into())?;
            while let Some(entry) = directory.next_in_block()? {
                if entry.name == name {
                    return Ok(Some((entry.inode, entry.file_type)));
                }
            }
        }
        Ok(None)
    }

    /// Checks that names with the same hash differ.
    fn all_differ<R: ReadAt>(&self, image: &Image<R>, places: &[(u64, u32)]) -> Result<(), ReadError> {
        let mut directory = image.directory(&self.node)?;
        let mut seen: HashSet<Box<[u8]>> = HashSet::new();
        let mut before = None;
        for (hash, block) in places {
            if before.replace(*block) == Some(*block) {
                continue;
            }
            directory.seek((*block).into())?;
            while let Some(entry) = directory.next_in_block()? {
                if self.hasher.hash_one(entry.name) == *hash && !seen.insert(entry.name.into()) {
                    let name = Quoted(entry.name).to_string();
                    return Err(directory.fault(DirentFault::Repeated { name }));
                }
            }
        }
        Ok(())
    }
}
