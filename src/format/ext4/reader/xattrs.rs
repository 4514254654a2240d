//! Extended attributes: those in the inode, those in a block, and values in inodes of their own.
//!
//! Source: Linux `fs/ext4/xattr.c` (`ext4_xattr_ibody_get`, `ext4_xattr_block_get`,
//! `ext4_xattr_inode_get`), `fs/ext4/inline.c`.

use super::{Image, Node, error::ReadError};
use crate::{
    error::Quoted,
    format::{
        ReadAt,
        ext4::{
            InodeNumber, acl, checksum,
            inode::{Inode, flag},
            superblock::incompat,
            xattr::{BlockHeader, Entry, MAGIC, Prefix, XattrFault},
        },
    },
    limits::{XATTR_NAME_BYTES, XATTR_SUM_BYTES},
    tree::{FileType, Xattr},
};

/// Largest value of an attribute, in bytes: the kernel's `XATTR_SIZE_MAX`.
const VALUE_BYTES: u32 = 65_536;

/// List of records with the values that belong to them.
#[derive(Clone, Copy)]
struct List<'b> {
    /// Records from byte `first` on, then values. Offsets of values count from byte 0.
    bytes: &'b [u8],
    /// Byte at which the records start.
    first: usize,
}

/// Record with its name. The value is empty when an inode holds it.
struct Found<'b> {
    entry: Entry,
    name: &'b [u8],
    value: &'b [u8],
}

impl<R: ReadAt> Image<R> {
    /// Reads all attributes of `node` that the kernel shows, sorted by name. Access control lists
    /// have the kernel's form.
    ///
    /// Errors: [`ReadError::Xattr`]; [`XattrFault::Sum`] when they take more than
    /// [`crate::limits::XATTR_SUM_BYTES`].
    pub fn xattrs(&self, node: &Node) -> Result<Vec<Xattr>, ReadError> {
        let mut xattrs = Vec::new();
        let mut sum = 0;
        self.each_xattr(node, |found| {
            let Some(name) = full_name(&found)? else { return Ok(()) };
            sum += name.len() + usize::try_from(found.entry.value_len).unwrap_or(usize::MAX / 2);
            if sum > XATTR_SUM_BYTES {
                return Err(XattrFault::Sum.into());
            }
            let value = match found.entry.value_inode {
                Some(inode) => self.large_value(node, inode, &found)?,
                None => found.value.to_vec(),
            };
            let value = match Prefix::from_index(found.entry.name_index) {
                Some(Prefix::Acl(_)) => acl::to_xattr(&value).map_err(XattrFault::Acl)?,
                _ => value,
            };
            // The kernel shows no access control list without entries.
            if !value.is_empty() || !name.starts_with(b"system.") {
                xattrs.push(Xattr { name, value });
            }
            Ok(())
        })?;
        xattrs.sort_by(|a, b| a.name.cmp(&b.name));
        let twice = xattrs.iter().zip(xattrs.iter().skip(1)).find(|(a, b)| a.name == b.name);
        if let Some((first, _)) = twice {
            let name = Quoted(&first.name).to_string();
            return Err(node_fault(node, XattrFault::Repeated { name }));
        }
        Ok(xattrs)
    }

    /// File data that follows the 60 bytes in the inode; empty without the attribute that holds it.
    pub(super) fn inline_rest(&self, node: &Node) -> Result<Vec<u8>, ReadError> {
        let mut rest = Vec::new();
        self.each_xattr(node, |found| {
            let prefix = Prefix::from_index(found.entry.name_index);
            if prefix == Some(Prefix::System) && found.name == Prefix::DATA {
                rest = found.value.to_vec();
            }
            Ok(())
        })?;
        Ok(rest)
    }

    fn each_xattr(
        &self,
        node: &Node,
        mut each: impl FnMut(Found<'_>) -> Result<(), XattrError>,
    ) -> Result<(), ReadError> {
        let fail = |error| match error {
            XattrError::Fault(fault) => node_fault(node, fault),
            XattrError::Read(error) => error,
        };
        let extra = usize::from(node.inode.extra_len);
        if extra > 0 {
            let (block, range) = self.record(node.number)?;
            let record = block.get(range).unwrap_or_default();
            // Without room for a list, or with another magic number, there are no attributes.
            if let Some((magic, bytes)) = record
                .get(Inode::LEN + extra..)
                .and_then(|body| body.split_first_chunk())
                .filter(|(magic, bytes)| u32::from_le_bytes(**magic) == MAGIC && bytes.len() >= 4)
            {
                let _: &[u8; 4] = magic;
                List { bytes, first: 0 }.each(&mut each).map_err(fail)?;
            }
        }
        let Some(number) = node.inode.xattr_block else { return Ok(()) };
        let block = self.blocks.read(number, "extended attributes")?;
        let header = block.first_chunk().copied().unwrap_or([0; BlockHeader::LEN]);
        let header = BlockHeader::decode(&header).map_err(|fault| node_fault(node, fault))?;
        if self.superblock.has_checksums() {
            let (stored, seed) = (header.checksum, self.superblock.checksum_seed);
            let computed = BlockHeader::checksum(seed, number, &block);
            if stored != computed {
                return Err(node_fault(node, XattrFault::Checksum { stored, computed }));
            }
        }
        List { bytes: &block, first: BlockHeader::LEN }.each(&mut each).map_err(fail)
    }

    /// Reads the value that inode `number` holds.
    fn large_value(
        &self,
        owner: &Node,
        number: InodeNumber,
        found: &Found<'_>,
    ) -> Result<Vec<u8>, XattrError> {
        let fault = |fault| XattrError::Fault(XattrFault::ValueInode { inode: number, fault });
        if !self.superblock.has_incompat(incompat::EA_INODE) {
            return Err(fault("the file system has no such values"));
        }
        let node = self.node(number).map_err(XattrError::Read)?;
        let inode = &node.inode;
        if inode.flags & flag::EA_INODE == 0 || inode.file_type != FileType::Regular || !inode.has_blocks() {
            return Err(fault("the inode is something else"));
        }
        if inode.size_bytes != u64::from(found.entry.value_len) {
            return Err(fault("the sizes differ"));
        }
        let len = usize::try_from(found.entry.value_len).unwrap_or(usize::MAX);
        let mut value = vec![0; len];
        self.read_data(&node, 0, &mut value).map_err(XattrError::Read)?;
        // Lustre's value inodes have no hash and name their owner instead.
        let points_back = inode.attributes.mtime.seconds == i64::from(owner.number.0)
            && inode.generation == owner.inode.generation;
        let hash = checksum::crc32c(self.superblock.checksum_seed, &value);
        if hash != inode.atime_low && !points_back {
            return Err(fault("its hash is another"));
        }
        Ok(value)
    }
}

/// Fault or failure to read, for closures that may meet both.
enum XattrError {
    Fault(XattrFault),
    Read(ReadError),
}

impl From<ReadError> for XattrError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<XattrFault> for XattrError {
    fn from(fault: XattrFault) -> Self {
        Self::Fault(fault)
    }
}

fn node_fault(node: &Node, fault: XattrFault) -> ReadError {
    ReadError::Xattr { number: node.number, fault }
}

/// Builds the name as the kernel shows it; `None` for attributes that it does not show.
fn full_name(found: &Found<'_>) -> Result<Option<Vec<u8>>, XattrFault> {
    let index = found.entry.name_index;
    let name = match Prefix::from_index(index) {
        Some(Prefix::Namespace(prefix)) if !found.name.is_empty() => [prefix, found.name].concat(),
        Some(Prefix::Acl(name)) if found.name.is_empty() => name.to_vec(),
        Some(Prefix::System) | None => return Ok(None),
        Some(_) => return Err(XattrFault::Name { index, len: found.name.len() }),
    };
    if name.len() > XATTR_NAME_BYTES || found.name.contains(&0) {
        return Err(XattrFault::Name { index, len: found.name.len() });
    }
    Ok(Some(name))
}

impl<'b> List<'b> {
    fn each(self, each: &mut impl FnMut(Found<'b>) -> Result<(), XattrError>) -> Result<(), XattrError> {
        let end = self.records_end()?;
        let mut offset = self.first;
        while let Some((entry, name)) = self.record(offset)? {
            offset += entry.record_len();
            let value = if entry.value_inode.is_some() { &[] } else { self.value(&entry, end)? };
            if entry.value_len > VALUE_BYTES {
                return Err(self.value_fault(&entry, end).into());
            }
            each(Found { entry, name, value })?;
        }
        Ok(())
    }

    /// Byte after the four zeros that end the records.
    fn records_end(&self) -> Result<usize, XattrFault> {
        let mut offset = self.first;
        while let Some((entry, _)) = self.record(offset)? {
            offset += entry.record_len();
        }
        Ok(offset + 4)
    }

    /// Record at byte `offset`; `None` at the end of the records.
    fn record(&self, offset: usize) -> Result<Option<(Entry, &'b [u8])>, XattrFault> {
        let fault = XattrFault::Bounds { offset, len: self.bytes.len() };
        let rest = self.bytes.get(offset..).unwrap_or_default();
        match rest.first_chunk::<4>() {
            None => return Err(fault),
            Some([0, 0, 0, 0]) => return Ok(None),
            Some(_) => {}
        }
        let Some((record, after)) = rest.split_first_chunk() else { return Err(fault) };
        let entry = Entry::decode(record);
        let name = after.get(..entry.name_len.into()).ok_or(fault)?;
        Ok(Some((entry, name)))
    }

    fn value(&self, entry: &Entry, low: usize) -> Result<&'b [u8], XattrFault> {
        if entry.value_len == 0 {
            return Ok(&[]);
        }
        let start = usize::from(entry.value_offset);
        let len = usize::try_from(entry.value_len).ok();
        let end = len.and_then(|len| start.checked_add(len)).filter(|_| start >= low);
        end.and_then(|end| self.bytes.get(start..end)).ok_or_else(|| self.value_fault(entry, low))
    }

    fn value_fault(&self, entry: &Entry, low: usize) -> XattrFault {
        let (offset, len) = (usize::from(entry.value_offset), entry.value_len);
        XattrFault::Value { offset, len, low, high: self.bytes.len() }
    }
}
