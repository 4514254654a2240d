//! FlatBuffers, as far as a zTOC needs them: tables, numbers, lists.
//!
//! A table begins with the distance back to its list of fields, its vtable, which says for each field where in the table it
//! is. Tables and lists are referred to by the distance from the reference on. All numbers are little-endian.
//!
//! Source: FlatBuffers, `docs/source/internals.md`.

use super::error::ZtocError;
use crate::format::ReadAt;

/// File that is read.
pub(super) type File<'f> = dyn ReadAt + Sync + 'f;

/// A table.
#[derive(Clone, Copy)]
pub(super) struct Table<'f> {
    file: &'f File<'f>,
    offset: u64,
    /// Where the list of its fields is, and how long.
    fields: u64,
    fields_bytes: u16,
}

/// A list: where its elements begin, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct List {
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl<'f> Table<'f> {
    /// The root of the buffer.
    pub(super) fn root(file: &'f File<'f>) -> Result<Self, ZtocError> {
        let offset = u32::from_le_bytes(read(file, 0, "the root")?);
        Self::at(file, offset.into(), "the root")
    }

    fn at(file: &'f File<'f>, offset: u64, what: &'static str) -> Result<Self, ZtocError> {
        let back = i64::from(i32::from_le_bytes(read(file, offset, what)?));
        let fields = offset.checked_add_signed(back.wrapping_neg()).ok_or(ZtocError::Bounds {
            what,
            offset: 0,
            len: offset,
            size_bytes: file.size_bytes(),
        })?;
        let fields_bytes = u16::from_le_bytes(read(file, fields, what)?);
        Ok(Self { file, offset, fields, fields_bytes })
    }

    /// Where field number `field` is, if the table has it.
    fn place(&self, field: u16, what: &'static str) -> Result<Option<u64>, ZtocError> {
        let entry = field.saturating_mul(2).saturating_add(4);
        if entry.saturating_add(2) > self.fields_bytes {
            return Ok(None);
        }
        let place = u16::from_le_bytes(read(self.file, self.fields.saturating_add(entry.into()), what)?);
        Ok((place > 0).then(|| self.offset.saturating_add(place.into())))
    }

    /// The bytes of a number, if the table has it.
    pub(super) fn number<const N: usize>(
        &self,
        field: u16,
        what: &'static str,
    ) -> Result<Option<[u8; N]>, ZtocError> {
        self.place(field, what)?.map(|place| read(self.file, place, what)).transpose()
    }

    /// Where a table or list is, if this table has it.
    fn target(&self, field: u16, what: &'static str) -> Result<Option<u64>, ZtocError> {
        let Some(place) = self.place(field, what)? else { return Ok(None) };
        let distance = u32::from_le_bytes(read(self.file, place, what)?);
        Ok(Some(place.saturating_add(distance.into())))
    }

    /// A table. Errors: this one does not have it.
    pub(super) fn table(&self, field: u16, what: &'static str) -> Result<Self, ZtocError> {
        let target = self.target(field, what)?.ok_or(ZtocError::Missing { what })?;
        Self::at(self.file, target, what)
    }

    /// A list of elements of `element` bytes, all of which are in the file. Errors: this table does not have it.
    pub(super) fn list(&self, field: u16, element: u64, what: &'static str) -> Result<List, ZtocError> {
        let target = self.target(field, what)?.ok_or(ZtocError::Missing { what })?;
        let len = u64::from(u32::from_le_bytes(read(self.file, target, what)?));
        let (offset, bytes) = (target.saturating_add(4), len.saturating_mul(element));
        bound(self.file, offset, bytes, what)?;
        Ok(List { offset, len })
    }
}

/// Reads `N` bytes at byte `offset`.
pub(super) fn read<const N: usize>(
    file: &File<'_>,
    offset: u64,
    what: &'static str,
) -> Result<[u8; N], ZtocError> {
    let mut bytes = [0; N];
    read_into(file, offset, &mut bytes, what)?;
    Ok(bytes)
}

/// Fills `bytes` from byte `offset` on.
pub(super) fn read_into(
    file: &File<'_>,
    offset: u64,
    bytes: &mut [u8],
    what: &'static str,
) -> Result<(), ZtocError> {
    bound(file, offset, bytes.len() as u64, what)?;
    file.read_exact_at(offset, bytes).map_err(|source| ZtocError::Io { what, offset, source })
}

fn bound(file: &File<'_>, offset: u64, len: u64, what: &'static str) -> Result<(), ZtocError> {
    let size_bytes = file.size_bytes();
    match offset.checked_add(len).filter(|end| *end <= size_bytes) {
        Some(_) => Ok(()),
        None => Err(ZtocError::Bounds { what, offset, len, size_bytes }),
    }
}
