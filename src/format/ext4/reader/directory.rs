//! Directories: iterates over the records in the order of the blocks, and finds one by name.
//!
//! Hash trees are not used: their blocks look like unused records and are skipped. So records come
//! in no particular order, and finding a name takes as long as listing the directory.
//! [`super::Names`] is faster for more than one name.
//!
//! Source: Linux `fs/ext4/dir.c` (`ext4_readdir`), `fs/ext4/namei.c` (`ext4_dirblock_csum_verify`,
//! `ext4_dx_csum_verify`), `fs/ext4/inline.c` (`ext4_read_inline_dir`).

use super::{
    Extents, Image, Node,
    error::{NodeFault, ReadError},
};
use crate::{
    error::Quoted,
    format::{
        ReadAt,
        ext4::{
            InodeNumber,
            dirent::{self, DirentFault, Dirents, Tail},
            inode::{Content, Inode, flag},
            superblock::incompat,
        },
    },
    limits::DIRECTORY_BYTES,
    tree::FileType,
};

/// Record of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'d> {
    /// Name of 1 to 255 bytes without slash or NUL. `.` and `..` are records too.
    pub name: &'d [u8],
    /// Number of the inode that the record names.
    pub inode: InodeNumber,
    /// Type that the record claims for the inode; `None` without the feature FILETYPE.
    pub file_type: Option<FileType>,
}

impl DirEntry<'_> {
    /// True for `.` and `..`.
    pub fn is_dot(&self) -> bool {
        matches!(self.name, b"." | b"..")
    }
}

/// Iterator over one directory, which holds one block.
#[derive(Debug)]
pub struct Directory<'i, R> {
    image: &'i Image<R>,
    node: Node,
    data: Extents<'i, R>,
    /// Bytes of the current block, then the byte at which its next record starts.
    block: Vec<u8>,
    offset: usize,
    /// Number of blocks read so far, or of parts when the directory lies in its inode.
    blocks_read: u64,
    /// All of a directory that lies in its inode.
    inline: Option<Vec<u8>>,
}

/// Record that was checked.
#[derive(Clone, Copy)]
enum Record {
    /// Parent of a directory that lies in its inode.
    Parent(InodeNumber),
    /// Record of the current block, with the range of its name in the block.
    Entry(InodeNumber, Option<FileType>, (usize, usize)),
}

impl<R: ReadAt> Image<R> {
    /// Starts an iteration over the directory `node`.
    ///
    /// Errors: [`NodeFault::NotDirectory`], [`DirentFault::Size`].
    pub fn directory(&self, node: &Node) -> Result<Directory<'_, R>, ReadError> {
        if node.inode.file_type != FileType::Directory {
            return Err(ReadError::Node { number: node.number, fault: NodeFault::NotDirectory });
        }
        let mut directory = Directory {
            image: self,
            node: *node,
            data: self.extents(node, 0),
            block: Vec::new(),
            offset: 0,
            blocks_read: 0,
            inline: None,
        };
        let size_bytes = node.inode.size_bytes;
        if node.inode.content() == Content::Inline {
            let mut data = self.inline_data(node)?;
            let len = usize::try_from(size_bytes).unwrap_or(usize::MAX);
            if len > data.len() || len < Inode::PAYLOAD_LEN {
                return Err(directory.fault(DirentFault::Inline { size_bytes }));
            }
            data.truncate(len);
            directory.inline = Some(data);
        } else if size_bytes > DIRECTORY_BYTES
            || size_bytes > self.superblock.size_bytes()
            || self.superblock.block_bits.within(size_bytes) != 0
        {
            return Err(directory.fault(DirentFault::Size { size_bytes }));
        }
        Ok(directory)
    }

    /// Finds `name` in the directory `node` by reading every record before it; `None` without that
    /// name.
    ///
    /// Errors: [`ReadError::Directory`] when a block on the way is malformed.
    pub fn lookup(
        &self,
        node: &Node,
        name: &[u8],
    ) -> Result<Option<(InodeNumber, Option<FileType>)>, ReadError> {
        let mut directory = self.directory(node)?;
        while let Some(entry) = directory.next_entry()? {
            if entry.name == name {
                return Ok(Some((entry.inode, entry.file_type)));
            }
        }
        Ok(None)
    }

    /// Inode that a record of `directory` names. It has to have the type that the record claims,
    /// and a directory has to lead back to `directory`. So directories form a tree, and walks of it
    /// end.
    ///
    /// Errors: [`DirentFault::WrongType`], [`DirentFault::Parent`], and those of [`Self::node`].
    pub fn named(&self, directory: InodeNumber, entry: &DirEntry<'_>) -> Result<Node, ReadError> {
        let node = self.node(entry.inode)?;
        let is = node.inode.file_type;
        if let Some(found) = entry.file_type
            && found != is
        {
            let name = Quoted(entry.name).to_string();
            let fault = DirentFault::WrongType { name, found, inode: entry.inode, is };
            return Err(ReadError::Directory { number: directory, block: 0, fault });
        }
        if is == FileType::Directory && !entry.is_dot() {
            let found = self.parent(&node)?;
            if found != directory {
                let fault = DirentFault::Parent { found, want: directory };
                return Err(ReadError::Directory { number: entry.inode, block: 0, fault });
            }
        }
        Ok(node)
    }

    /// Inode of the directory that holds the directory `node`; the root holds itself.
    ///
    /// Errors: [`DirentFault::NoParent`].
    pub fn parent(&self, node: &Node) -> Result<InodeNumber, ReadError> {
        let mut directory = self.directory(node)?;
        // `.` comes first, if it exists, then `..`.
        for _ in 0..2 {
            match directory.next_entry()? {
                Some(DirEntry { name: b"..", inode, .. }) => return Ok(inode),
                Some(DirEntry { name: b".", .. }) => {}
                _ => break,
            }
        }
        Err(directory.fault(DirentFault::NoParent))
    }

    /// Finds the inode at `path` below the root. Empty components and `.` are skipped, `..` leads
    /// to the parent, symbolic links are not followed. `None` when a component does not exist or is
    /// no directory.
    pub fn find(&self, path: &[u8]) -> Result<Option<Node>, ReadError> {
        let mut node = self.root()?;
        for name in path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")) {
            if node.inode.file_type != FileType::Directory {
                return Ok(None);
            }
            match self.lookup(&node, name)? {
                Some((inode, file_type)) => {
                    node = self.named(node.number, &DirEntry { name, inode, file_type })?;
                }
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }
}

impl<R: ReadAt> Directory<'_, R> {
    /// Next record; `None` after the last. A directory in its inode has no `.` and begins with
    /// `..`.
    ///
    /// Errors: [`ReadError::Directory`] when the block is malformed.
    pub fn next_entry(&mut self) -> Result<Option<DirEntry<'_>>, ReadError> {
        let next = self.advance()?;
        Ok(next.map(|record| self.view(record)))
    }

    /// Next record except `.` and `..`; `None` after the last. Errors: as [`Self::next_entry`].
    pub fn next_child(&mut self) -> Result<Option<DirEntry<'_>>, ReadError> {
        while let Some(record) = self.advance()? {
            if !self.view(record).is_dot() {
                return Ok(Some(self.view(record)));
            }
        }
        Ok(None)
    }

    fn advance(&mut self) -> Result<Option<Record>, ReadError> {
        if self.blocks_read == 0
            && let Some(data) = &self.inline
        {
            let parent = data.first_chunk().map_or(0, |field| u32::from_le_bytes(*field));
            self.load()?;
            return Ok(Some(Record::Parent(InodeNumber(parent))));
        }
        loop {
            let record = self.advance_in_block()?;
            if record.is_some() || !self.load()? {
                return Ok(record);
            }
        }
    }

    fn advance_in_block(&mut self) -> Result<Option<Record>, ReadError> {
        let typed = self.image.superblock.has_incompat(incompat::FILETYPE);
        let mut walk = Dirents::new(&self.block, self.offset, typed);
        let found = walk.next_used().map_err(|fault| self.fault(fault))?;
        self.offset = walk.offset();
        Ok(found.map(|entry| {
            let start = entry.offset + dirent::HEAD;
            Record::Entry(entry.inode, entry.file_type, (start, start + entry.name.len()))
        }))
    }

    /// Number of the block that holds the last record.
    pub(super) fn block_number(&self) -> u64 {
        self.blocks_read.saturating_sub(1)
    }

    /// Moves to the first record of block `number`.
    pub(super) fn seek(&mut self, number: u64) -> Result<(), ReadError> {
        self.blocks_read = number;
        self.block.clear();
        self.load()?;
        Ok(())
    }

    /// Next record of the current block; `None` after its last.
    pub(super) fn next_in_block(&mut self) -> Result<Option<DirEntry<'_>>, ReadError> {
        let next = self.advance_in_block()?;
        Ok(next.map(|record| self.view(record)))
    }

    fn view(&self, record: Record) -> DirEntry<'_> {
        match record {
            Record::Parent(inode) => DirEntry { name: b"..", inode, file_type: Some(FileType::Directory) },
            Record::Entry(inode, file_type, (start, end)) => {
                DirEntry { name: self.block.get(start..end).unwrap_or_default(), inode, file_type }
            }
        }
    }

    /// Reads and checks the next block that is not a hole. Returns false after the last.
    fn load(&mut self) -> Result<bool, ReadError> {
        self.offset = 0;
        if let Some(data) = &self.inline {
            // No record extends from the inode into the attribute.
            let part = match self.blocks_read {
                0 => data.get(4..Inode::PAYLOAD_LEN),
                1 => data.get(Inode::PAYLOAD_LEN..),
                _ => return Ok(false),
            };
            self.block.clear();
            self.block.extend_from_slice(part.unwrap_or_default());
            self.blocks_read += 1;
            return Ok(true);
        }
        let bits = self.image.superblock.block_bits;
        let next = self.blocks_read << bits.get();
        // The kernel skips holes too.
        let Some(start) = self.data.next_data(next)? else { return Ok(false) };
        self.blocks_read = (start >> bits.get()) + 1;
        self.block.resize(bits.buffer_len(), 0);
        self.data.read(start, &mut self.block)?;
        self.verify()?;
        Ok(true)
    }

    /// Verifies the checksum of the current block.
    fn verify(&self) -> Result<(), ReadError> {
        let superblock = &self.image.superblock;
        if !superblock.has_checksums() {
            return Ok(());
        }
        let indexed = self.node.inode.flags & flag::INDEX != 0;
        let index = if indexed { Tail::of_index(&self.block, superblock.block_bits) } else { None };
        let records = Tail::of_records(&self.block);
        let seed = self.node.inode.checksum_seed(self.node.number, superblock);
        // Both forms may seem to be present, because names may look like entries of a tree. One has
        // to match.
        let mut wrong = DirentFault::Checksum { stored: None, computed: 0 };
        for tail in [index, records].into_iter().flatten() {
            let computed = tail.compute(seed, &self.block);
            if tail.stored == computed {
                return Ok(());
            }
            wrong = DirentFault::Checksum { stored: Some(tail.stored), computed };
        }
        Err(self.fault(wrong))
    }

    pub(super) fn fault(&self, fault: DirentFault) -> ReadError {
        ReadError::Directory { number: self.node.number, block: self.block_number(), fault }
    }
}
