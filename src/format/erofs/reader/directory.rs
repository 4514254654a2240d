//! Directories: iterates over the records in order, and finds one by name.
//!
//! Source: Linux `fs/erofs/dir.c`, `fs/erofs/namei.c`.

use super::{
    Image, Node,
    error::{DirectoryFault, NodeFault, ReadError},
};
use crate::{
    error::Quoted,
    format::{
        ReadAt,
        erofs::{
            Nid,
            dirent::{Dirent, DirentError},
        },
    },
    limits::NAME_BYTES,
    tree::FileType,
};

/// One record of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'d> {
    /// Name of 1 to 255 bytes without slash or NUL. `.` and `..` are records too.
    pub name: &'d [u8],
    /// Number of the inode that the record names.
    pub nid: Nid,
    /// Type that the record claims for the inode.
    pub file_type: FileType,
}

impl DirEntry<'_> {
    /// True for `.` and `..`.
    pub fn is_dot(&self) -> bool {
        matches!(self.name, b"." | b"..")
    }
}

/// Iterator over one directory. It checks that names ascend, and holds one block.
#[derive(Debug)]
pub struct Directory<'i, R> {
    image: &'i Image<R>,
    node: Node,
    block: Vec<u8>,
    /// Number of the current block, counted from 1; 0 before the first.
    blocks_read: u64,
    /// Number of records in the current block, then the index of the next one.
    records: usize,
    next: usize,
    /// Byte of the block at which the next name starts.
    name_start: usize,
    /// Last name of the block before, for the check of the order.
    before: Vec<u8>,
    /// Range in the block of the name returned last.
    last: Option<(usize, usize)>,
    /// Number of bytes that are not zero among reserved bytes of records and after the last name of
    /// a block.
    dirty_bytes: u64,
}

/// Checked record, and the range of its name in the current block.
#[derive(Clone, Copy)]
struct Record {
    dirent: Dirent,
    name: (usize, usize),
}

impl<R: ReadAt> Image<R> {
    /// Starts an iteration over the directory `node`.
    ///
    /// Errors: [`NodeFault::NotDirectory`], [`NodeFault::Compressed`].
    pub fn directory(&self, node: &Node) -> Result<Directory<'_, R>, ReadError> {
        if node.inode.file_type != FileType::Directory {
            return Err(ReadError::Node { nid: node.nid, fault: NodeFault::NotDirectory });
        }
        Self::uncompressed(node)?;
        Ok(Directory {
            image: self,
            node: *node,
            block: Vec::new(),
            blocks_read: 0,
            records: 0,
            next: 0,
            name_start: 0,
            before: Vec::new(),
            last: None,
            dirty_bytes: 0,
        })
    }

    /// Finds `name` in the directory `node` by bisection; `None` when it has no such name.
    ///
    /// Errors: [`ReadError::Directory`] when a block on the way is malformed.
    pub fn lookup(&self, node: &Node, name: &[u8]) -> Result<Option<(Nid, FileType)>, ReadError> {
        let mut directory = self.directory(node)?;
        // Looks for the last block whose first name is not above `name`.
        let (mut low, mut high) = (0, directory.blocks());
        while low < high {
            let middle = low + (high - low) / 2;
            directory.load(middle)?;
            if directory.record(0, directory.name_start)?.1 <= name {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let Some(block) = low.checked_sub(1) else { return Ok(None) };
        directory.load(block)?;
        directory.before.clear();
        while let Some(record) = directory.advance_in_block()? {
            let entry = directory.view(record);
            if entry.name >= name {
                return Ok((entry.name == name).then_some((entry.nid, entry.file_type)));
            }
        }
        Ok(None)
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
                Some((nid, _)) => node = self.node(nid)?,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }
}

impl<R: ReadAt> Directory<'_, R> {
    /// Next record; `None` after the last.
    ///
    /// Errors: [`ReadError::Directory`] when the block is malformed or the names do not ascend.
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

    /// Byte of the directory's data at which the record returned last starts.
    pub(in crate::format::erofs) fn last_record(&self) -> u64 {
        let block = self.blocks_read.saturating_sub(1) << self.image.superblock.block_bits.get();
        block + (self.next.saturating_sub(1) * Dirent::LEN) as u64
    }

    /// Number of bytes that should be zero but are not: reserved bytes of the records read so far,
    /// and bytes after the names of finished blocks.
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty_bytes
    }

    fn blocks(&self) -> u64 {
        self.image.superblock.block_bits.blocks_for(self.node.inode.size_bytes)
    }

    /// Reads block `index` and checks its first name offset.
    fn load(&mut self, index: u64) -> Result<(), ReadError> {
        let bits = self.image.superblock.block_bits;
        let offset = index << bits.get();
        let left = self.node.inode.size_bytes.saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(bits.buffer_len());
        self.block.resize(len, 0);
        self.image.read_data(&self.node, offset, &mut self.block)?;
        self.blocks_read = index + 1;
        let found = self.block.get(8..10).and_then(|field| field.first_chunk());
        let first = found.map_or(0, |field| u16::from_le_bytes(*field));
        let names = usize::from(first);
        if names == 0 || !names.is_multiple_of(Dirent::LEN) || names >= len {
            return Err(self.fault(DirectoryFault::FirstOffset { found: first, len }));
        }
        (self.records, self.next, self.name_start, self.last) = (names / Dirent::LEN, 0, names, None);
        Ok(())
    }

    /// Decodes record `index`, whose name starts at byte `start`. Returns the record, its name and
    /// the end of the name.
    fn record(&self, index: usize, start: usize) -> Result<(Dirent, &[u8], usize), ReadError> {
        let len = self.block.len();
        let at = index * Dirent::LEN;
        let bytes = self.block.get(at..).and_then(|rest| rest.first_chunk());
        let bytes = bytes.ok_or_else(|| self.fault(DirectoryFault::FirstOffset { found: u16::MAX, len }))?;
        let dirent = Dirent::decode(bytes).map_err(|DirentError::FileType { found }| {
            self.fault(DirectoryFault::FileType { index, found })
        })?;
        let end = if index + 1 < self.records {
            let next = self.block.get(at + Dirent::LEN + 8..).and_then(|rest| rest.first_chunk());
            let found = next.map_or(0, |field| u16::from_le_bytes(*field));
            if usize::from(found) <= start || usize::from(found) >= len {
                let before = u16::try_from(start).unwrap_or(u16::MAX);
                return Err(self.fault(DirectoryFault::Offset { index: index + 1, found, before, len }));
            }
            usize::from(found)
        } else {
            let rest = self.block.get(start..).unwrap_or_default();
            start + rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len())
        };
        let name = self.block.get(start..end).unwrap_or_default();
        if name.is_empty() || name.len() > NAME_BYTES {
            return Err(self.fault(DirectoryFault::NameLength { index, len: name.len() }));
        }
        if name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return Err(self.fault(DirectoryFault::NameByte { name: Quoted(name).to_string() }));
        }
        Ok((dirent, name, end))
    }

    fn advance(&mut self) -> Result<Option<Record>, ReadError> {
        while self.next == self.records {
            if self.blocks_read == self.blocks() {
                return Ok(None);
            }
            if let Some((start, end)) = self.last {
                self.before.clear();
                self.before.extend_from_slice(self.block.get(start..end).unwrap_or_default());
            }
            self.load(self.blocks_read)?;
        }
        self.advance_in_block()
    }

    fn advance_in_block(&mut self) -> Result<Option<Record>, ReadError> {
        if self.next == self.records {
            return Ok(None);
        }
        let (dirent, name, end) = self.record(self.next, self.name_start)?;
        let before = match self.last {
            Some((start, end)) => self.block.get(start..end).unwrap_or_default(),
            None => &self.before,
        };
        if name <= before {
            return Err(self.fault(DirectoryFault::Order {
                name: Quoted(name).to_string(),
                before: Quoted(before).to_string(),
            }));
        }
        let reserved = self.block.get(self.next * Dirent::LEN + Dirent::LEN - 1);
        self.dirty_bytes += u64::from(reserved.is_some_and(|byte| *byte != 0));
        let name = (std::mem::replace(&mut self.name_start, end), end);
        self.last = Some(name);
        self.next += 1;
        if self.next == self.records {
            let fill = self.block.get(end..).unwrap_or_default();
            self.dirty_bytes += fill.iter().map(|byte| u64::from(*byte != 0)).sum::<u64>();
        }
        Ok(Some(Record { dirent, name }))
    }

    fn view(&self, record: Record) -> DirEntry<'_> {
        let (start, end) = record.name;
        DirEntry {
            name: self.block.get(start..end).unwrap_or_default(),
            nid: record.dirent.nid,
            file_type: record.dirent.file_type,
        }
    }

    fn fault(&self, fault: DirectoryFault) -> ReadError {
        ReadError::Directory { nid: self.node.nid, block: self.blocks_read.saturating_sub(1), fault }
    }
}
