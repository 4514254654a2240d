//! Extended attributes: iterates over the entries of an inode, inline and shared, and builds their
//! full names.
//!
//! Source: Linux `fs/erofs/xattr.c`.

use super::{
    Image, Node,
    error::{ReadError, XattrFault},
    prefix::LongPrefix,
};
use crate::{
    format::{
        ReadAt,
        erofs::{
            Nid,
            superblock::{compat, incompat},
            xattr::{BodyHeader, EntryHeader, LONG_PREFIX, LongPrefixHeader, Prefix, UNIT, body_len},
        },
    },
    limits::XATTR_NAME_BYTES,
    tree::Xattr,
};

/// Attribute whose head was read, but neither name nor value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XattrEntry {
    /// Head of the entry: lengths and prefix.
    pub header: EntryHeader,
    /// Byte of the image at which the entry starts.
    pub position: u64,
    /// Id of a shared entry; `None` for an entry in the inode's own body.
    pub shared: Option<u32>,
}

/// Base prefix of a full name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XattrName {
    /// Prefix with a number in the format.
    pub base: Prefix,
    /// Length of that prefix in the full name, in bytes.
    pub base_len: usize,
}

/// Iterator over the attributes of one inode: first the shared ones, then those in its body.
#[derive(Debug)]
pub struct Xattrs<'i, R> {
    image: &'i Image<R>,
    nid: Nid,
    /// Name filter of the body; all zeros without attributes.
    name_filter: u32,
    /// Number of shared ids that are still to be read.
    shared_left: u8,
    /// Next byte of the body, then its end.
    position: u64,
    start: u64,
    end: u64,
}

impl<R: ReadAt> Image<R> {
    /// Starts an iteration over the attributes of `node`.
    ///
    /// Errors: [`ReadError::Xattr`] when the body's header is wrong.
    pub fn xattr_entries(&self, node: &Node) -> Result<Xattrs<'_, R>, ReadError> {
        let (start, end) = (node.xattr_start(), node.xattr_end());
        let mut walk = Xattrs {
            image: self,
            nid: node.nid,
            name_filter: 0,
            shared_left: 0,
            position: start,
            start,
            end,
        };
        if start == end {
            return Ok(walk);
        }
        if node.inode.xattr_icount == 1 {
            return Err(walk.fault(XattrFault::Empty));
        }
        let mut record = [0; BodyHeader::LEN];
        self.read_at(start, &mut record, "xattr body")?;
        let header = BodyHeader::decode(&record);
        (walk.name_filter, walk.shared_left) = (header.name_filter, header.shared_count);
        let ids = u64::from(header.shared_count) * BodyHeader::ID_LEN as u64;
        walk.position += BodyHeader::LEN as u64;
        if walk.position + ids > end {
            return Err(walk.fault(XattrFault::Bounds {
                end: walk.position + ids - start,
                len: body_len(node.inode.xattr_icount),
            }));
        }
        Ok(walk)
    }

    /// Reads all attributes of `node` with their values, in the order of the image.
    ///
    /// Holds at most 255 shared values and a body of 256 KiB.
    pub fn xattrs(&self, node: &Node) -> Result<Vec<Xattr>, ReadError> {
        let mut walk = self.xattr_entries(node)?;
        let mut xattrs = Vec::new();
        while let Some(entry) = walk.next_entry()? {
            let mut name = Vec::new();
            self.xattr_name(node.nid, &entry, &mut name)?;
            xattrs.push(Xattr { name, value: self.xattr_value(&entry)? });
        }
        Ok(xattrs)
    }

    /// Value of the attribute `name` of `node`; `None` without that attribute.
    pub fn xattr(&self, node: &Node, name: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        let mut walk = self.xattr_entries(node)?;
        let mut found = Vec::new();
        while let Some(entry) = walk.next_entry()? {
            self.xattr_name(node.nid, &entry, &mut found)?;
            if found == name {
                return self.xattr_value(&entry).map(Some);
            }
        }
        Ok(None)
    }

    /// Replaces the bytes in `name` by the full name of an entry.
    ///
    /// Errors: [`XattrFault::Index`], [`XattrFault::Name`].
    pub fn xattr_name(
        &self,
        nid: Nid,
        entry: &XattrEntry,
        name: &mut Vec<u8>,
    ) -> Result<XattrName, ReadError> {
        let index = entry.header.name_index;
        let fault = |fault| ReadError::Xattr { nid, fault };
        let (base, infix) = if index & LONG_PREFIX == 0 {
            let base = Prefix::from_index(index).ok_or_else(|| fault(XattrFault::Index { index }))?;
            (base, [].as_slice())
        } else {
            let prefix = self.prefixes.get(usize::from(index & !LONG_PREFIX));
            let prefix = prefix.ok_or_else(|| fault(XattrFault::Index { index }))?;
            (prefix.base, prefix.infix.as_slice())
        };
        name.clear();
        name.extend_from_slice(base.as_bytes());
        let base_len = name.len();
        name.extend_from_slice(infix);
        let own = name.len();
        name.resize(own + usize::from(entry.header.name_len), 0);
        let rest = name.get_mut(own..).unwrap_or_default();
        self.read_at(entry.position + EntryHeader::LEN as u64, rest, "xattr name")?;
        let after_base = name.get(base_len..).unwrap_or_default();
        if after_base.is_empty() != base.is_whole_name()
            || after_base.contains(&0)
            || name.len() > XATTR_NAME_BYTES
        {
            return Err(fault(XattrFault::Name { index, len: name.len() - base_len }));
        }
        Ok(XattrName { base, base_len })
    }

    /// Reads the value of an entry. Errors: [`ReadError::Outside`] when it ends outside the image.
    pub fn xattr_value(&self, entry: &XattrEntry) -> Result<Vec<u8>, ReadError> {
        let mut value = vec![0; usize::from(entry.header.value_size)];
        let head = EntryHeader::LEN as u64 + u64::from(entry.header.name_len);
        self.read_at(entry.position + head, &mut value, "xattr value")?;
        Ok(value)
    }

    /// Shared entry `id`, of which every byte is inside the image.
    pub(in crate::format::erofs) fn shared_xattr(&self, id: u32) -> Result<XattrEntry, ReadError> {
        let position = self.superblock.xattr_start() + UNIT * u64::from(id);
        let mut record = [0; EntryHeader::LEN];
        self.read_at(position, &mut record, "shared xattr")?;
        let header = EntryHeader::decode(&record);
        let len = header.entry_len().exact;
        if position + len > self.size_bytes {
            return Err(self.outside("shared xattr", position, len));
        }
        Ok(XattrEntry { header, position, shared: Some(id) })
    }

    /// Long name prefixes as (base prefix, infix), in the order of their numbers.
    pub fn name_prefixes(&self) -> impl Iterator<Item = (Prefix, &[u8])> {
        self.prefixes.iter().map(|prefix| (prefix.base, prefix.infix.as_slice()))
    }

    /// Byte offset and length of each long prefix that lies in the image itself.
    pub(in crate::format::erofs) fn prefix_places(&self) -> impl Iterator<Item = (u64, u64)> {
        self.prefixes.iter().filter_map(|prefix| prefix.place)
    }

    /// Reads the table of long name prefixes.
    pub(super) fn long_prefixes(&self) -> Result<Vec<LongPrefix>, ReadError> {
        let mut prefixes = Vec::new();
        // The number alone decides, whatever the feature bit says, as in the kernel.
        if self.superblock.xattr_prefix_count == 0 {
            return Ok(prefixes);
        }
        // Without this feature they lie in the packed file, if there is one.
        let in_image = self.superblock.has_compat(compat::PLAIN_XATTR_PFX)
            || !self.superblock.has_incompat(incompat::FRAGMENTS)
            || self.superblock.packed_nid == 0;
        let packed = if in_image { None } else { Some(self.node(Nid(self.superblock.packed_nid))?) };
        let read = |offset, buf: &mut [u8]| match &packed {
            None => self.read_at(offset, buf, "long xattr prefix"),
            Some(node) => self.read_data(node, offset, buf),
        };
        let mut offset = UNIT * u64::from(self.superblock.xattr_prefix_start);
        for index in 0..self.superblock.xattr_prefix_count {
            let fault = |fault| ReadError::Prefix { index, fault };
            let mut record = [0; LongPrefixHeader::LEN];
            read(offset, &mut record)?;
            let header = LongPrefixHeader::decode(&record).ok_or_else(|| fault("its length is 0"))?;
            let base = Prefix::from_index(header.base_index)
                .filter(|base| !base.is_whole_name())
                .ok_or_else(|| fault("its base prefix is not one that can be continued"))?;
            let mut infix = vec![0; usize::from(header.infix_len)];
            if infix.len() > XATTR_NAME_BYTES {
                return Err(fault("it is longer than any name"));
            }
            read(offset + LongPrefixHeader::LEN as u64, &mut infix)?;
            let len = LongPrefixHeader::LEN as u64 + u64::from(header.infix_len);
            let place = packed.is_none().then_some((offset, len));
            prefixes.push(LongPrefix { base, infix, place });
            offset += len.next_multiple_of(UNIT);
        }
        Ok(prefixes)
    }
}

impl<R: ReadAt> Xattrs<'_, R> {
    /// Next attribute; `None` after the last. Reserved space is skipped.
    ///
    /// Errors: [`ReadError::Xattr`] when an entry ends beyond the body, [`ReadError::Outside`] when
    /// a shared entry is not inside the image.
    pub fn next_entry(&mut self) -> Result<Option<XattrEntry>, ReadError> {
        loop {
            // Four zero bytes are an entry without prefix, name and value. The kernel lists only
            // entries whose prefix it knows, so it skips them. mkfs.erofs reserves space for later
            // attributes this way.
            match self.next_stored()? {
                Some(entry) if entry.shared.is_none() && entry.header == EntryHeader::RESERVED => {}
                entry => return Ok(entry),
            }
        }
    }

    fn next_stored(&mut self) -> Result<Option<XattrEntry>, ReadError> {
        if let Some(left) = self.shared_left.checked_sub(1) {
            let mut id = [0; BodyHeader::ID_LEN];
            self.image.read_at(self.position, &mut id, "shared xattr id")?;
            self.position += BodyHeader::ID_LEN as u64;
            self.shared_left = left;
            return self.image.shared_xattr(u32::from_le_bytes(id)).map(Some);
        }
        if self.position == self.end {
            return Ok(None);
        }
        let mut record = [0; EntryHeader::LEN];
        // Body lengths and entry lengths are multiples of 4 bytes, so 4 bytes are left here.
        self.image.read_at(self.position, &mut record, "xattr entry")?;
        let header = EntryHeader::decode(&record);
        let position = self.position;
        let end = position + header.entry_len().padded;
        if end > self.end {
            let (end, len) = (end - self.start, self.end - self.start);
            return Err(self.fault(XattrFault::Bounds { end, len }));
        }
        self.position = end;
        Ok(Some(XattrEntry { header, position, shared: None }))
    }

    /// Name filter of the body. Valid only with the feature `xattr_filter`.
    pub fn name_filter(&self) -> u32 {
        self.name_filter
    }

    fn fault(&self, fault: XattrFault) -> ReadError {
        ReadError::Xattr { nid: self.nid, fault }
    }
}
