//! Attribute bodies of inodes, and the attributes that inodes share.
//!
//! Inodes are written as they come, before it is known how many will have an attribute. The first
//! inode with an attribute stores it inline. With the second the attribute moves to the shared
//! area, and from then on inodes name it by number. The area is written after all files. Numbers
//! count from its beginning, so they are known before its place is.
//!
//! Source: `docs/formats/erofs.md`, "How an image is written"; Linux `fs/erofs/xattr.c`.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hasher},
};

use hashbrown::HashTable;

use super::WriterError;
use crate::{
    error::Quoted,
    format::erofs::xattr::{BodyHeader, EntryHeader, Prefix, UNIT, filter_bit, icount},
    tree::Xattr,
};

/// Largest area of shared attributes, in bytes. It stays in memory until the end of the image;
/// beyond it only forced entries are shared.
const AREA: usize = 8 << 20;
/// Most shared attributes of one inode: the count is stored in one byte.
const MOST_SHARED: usize = 255;
/// Length of entries that are not shared, in bytes: their number would be as long.
const NOT_WORTH_SHARING: usize = BodyHeader::ID_LEN;

/// Shared area, and the attributes that one inode has had so far.
#[derive(Debug)]
pub(super) struct Shared {
    /// Number of the area's first byte.
    first_id: u32,
    /// Length up to which the area grows on its own, in bytes.
    soft: usize,
    /// Length up to which it may be made to grow, in bytes.
    hard: usize,
    /// Hashes of entries. If two entries had one hash, the second would be shared too early, which
    /// costs its inode four bytes.
    seen: HashSet<u64>,
    /// Byte offsets of entries in the area.
    table: HashTable<u32>,
    area: Vec<u8>,
}

/// Hashes with fixed keys: the same layer must give the same image in every process. A layer that
/// finds collisions gains nothing, see [`Shared::seen`] and the comparison in [`Shared::find`].
fn hash(entry: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(entry);
    hasher.finish()
}

/// Appends one entry to `out`: head, name after the prefix, value, padding. Returns its bit of the
/// name filter.
pub(in crate::format) fn encode(xattr: &Xattr, out: &mut Vec<u8>) -> Result<u32, WriterError> {
    let cannot = || WriterError::Xattr { name: Quoted(&xattr.name).to_string(), value: xattr.value.len() };
    let (prefix, rest) = Prefix::split(&xattr.name).ok_or_else(cannot)?;
    let header = EntryHeader {
        name_len: u8::try_from(rest.len()).map_err(|_too_long| cannot())?,
        name_index: prefix.index(),
        value_size: u16::try_from(xattr.value.len()).map_err(|_too_long| cannot())?,
    };
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(rest);
    out.extend_from_slice(&xattr.value);
    out.resize(out.len().next_multiple_of(usize::try_from(UNIT).map_err(WriterError::internal)?), 0);
    Ok(filter_bit(prefix.index(), rest))
}

impl Shared {
    /// Area at the end of an image, where there is always room.
    pub fn unlimited() -> Self {
        Self::of(0, AREA, usize::MAX)
    }

    /// Area of at most `room` bytes whose first byte has the number `first_id`.
    pub fn reserved(first_id: u32, room: usize) -> Self {
        // A quarter is left for the root's attributes, all of which may have to be shared.
        Self::of(first_id, room / 4 * 3, room)
    }

    fn of(first_id: u32, soft: usize, hard: usize) -> Self {
        Self { first_id, soft, hard, seen: HashSet::new(), table: HashTable::new(), area: Vec::new() }
    }

    fn find(&self, hash: u64, entry: &[u8]) -> Option<u32> {
        let is_it = |offset: &u32| {
            let stored = self.area.get(usize::try_from(*offset).unwrap_or(usize::MAX)..);
            stored.is_some_and(|stored| stored.starts_with(entry))
        };
        self.table.find(hash, is_it).copied()
    }

    /// Counts an inode with `entry` and shares it from the second on; `force` shares it at once.
    fn note(&mut self, entry: &[u8], force: bool) -> Result<(), WriterError> {
        let hash = hash(entry);
        if entry.len() <= NOT_WORTH_SHARING || self.find(hash, entry).is_some() {
            return Ok(());
        }
        let again = !self.seen.insert(hash);
        let fits = |limit| self.area.len() + entry.len() <= limit;
        if (force && fits(self.hard)) || (again && fits(self.soft)) {
            let offset = u32::try_from(self.area.len()).map_err(WriterError::internal)?;
            self.area.extend_from_slice(entry);
            let area = &self.area;
            self.table.insert_unique(hash, offset, |other| {
                let stored = area.get(usize::try_from(*other).unwrap_or(usize::MAX)..).unwrap_or_default();
                self::hash(first_entry(stored))
            });
        }
        Ok(())
    }

    /// Counts the attributes of an inode before it is written. `force` shares all of them at once.
    pub fn note_all<'a>(
        &mut self,
        xattrs: impl IntoIterator<Item = &'a Xattr>,
        force: bool,
    ) -> Result<(), WriterError> {
        let mut entry = Vec::new();
        for xattr in xattrs {
            entry.clear();
            encode(xattr, &mut entry)?;
            self.note(&entry, force)?;
        }
        Ok(())
    }

    /// Appends the body of an inode with `xattrs`, sorted by name, to `out`. Attributes shared by
    /// now are named by number. Returns the inode's i_xattr_icount.
    pub fn body<'a>(
        &self,
        xattrs: impl IntoIterator<Item = &'a Xattr>,
        out: &mut Vec<u8>,
    ) -> Result<u16, WriterError> {
        let mut ids = Vec::new();
        let mut inline = Vec::new();
        let mut name_filter = u32::MAX;
        let mut any = false;
        for xattr in xattrs {
            any = true;
            let start = inline.len();
            name_filter &= !encode(xattr, &mut inline)?;
            let entry = inline.get(start..).unwrap_or_default();
            if ids.len() < MOST_SHARED
                && let Some(offset) = self.find(hash(entry), entry)
            {
                ids.push(self.first_id + offset / 4);
                inline.truncate(start);
            }
        }
        if !any {
            return Ok(0);
        }
        let start = out.len();
        let shared_count = u8::try_from(ids.len()).map_err(WriterError::internal)?;
        out.extend_from_slice(&BodyHeader { name_filter, shared_count }.encode());
        out.extend(ids.into_iter().flat_map(u32::to_le_bytes));
        out.extend_from_slice(&inline);
        icount((out.len() - start) as u64).ok_or(WriterError::XattrSum { len: out.len() - start })
    }

    /// Bytes of the area.
    pub fn area(&self) -> &[u8] {
        &self.area
    }

    /// Memory held by area and tables, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let tables =
            self.seen.capacity() * (size_of::<u64>() + 1) + self.table.capacity() * (size_of::<u32>() + 1);
        (tables + self.area.len()) as u64
    }
}

/// Cuts the first entry, with its padding, out of `stored`.
fn first_entry(stored: &[u8]) -> &[u8] {
    let len = stored.first_chunk().map_or(0, |head| EntryHeader::decode(head).entry_len().padded);
    usize::try_from(len).ok().and_then(|len| stored.get(..len)).unwrap_or_default()
}
