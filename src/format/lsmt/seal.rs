//! Sealing: the data file of a writable layer becomes a read-only layer by what is written behind it.
//!
//! Source: `docs/formats/overlaybd.md`, "Writable layers"; overlaybd `src/overlaybd/lsmt/file.cpp`, `close_seal`.

use super::{
    HEADER_BLOCK, Header, Layer, LsmtError, SECTOR, commit::entry_of, entry::Entry, header::flags,
    layer::Form,
};
use crate::{
    format::{ReadAt, Sink},
    limits::LSMT_ENTRIES,
};

impl<R: ReadAt> Layer<R> {
    /// Writes what seals the layer behind the data of its file, which is `data`, and returns the size of the sealed
    /// file in bytes. The index goes first: a file without the trailer is as writable as before.
    ///
    /// Errors: the layer is not one of a writable data file; it has more entries than readers take.
    pub fn seal(&self, data: &mut impl Sink) -> Result<u64, LsmtError> {
        let sparse = match self.form() {
            Form::Append => 0,
            Form::Sparse => flags::SPARSE,
            form => return Err(LsmtError::Form { form, want: "a writable layer that can be sealed" }),
        };
        let segments = self.index.segments();
        let entries = segments.len() as u64;
        if entries > LSMT_ENTRIES {
            return Err(LsmtError::TooManyEntries { entries });
        }
        let mut index = Vec::with_capacity(segments.len().saturating_mul(Entry::LEN));
        segments.iter().for_each(|segment| index.extend(entry_of(*segment).encode()));
        let index_bytes = (index.len() as u64).next_multiple_of(SECTOR);
        let index_offset = self.blob.size_bytes().next_multiple_of(SECTOR);
        let trailer = Header {
            flags: flags::DATA | flags::SEALED | sparse,
            index_offset,
            index_entries: entries,
            ..self.header().clone()
        };
        data.write_at(index_offset, &index).map_err(LsmtError::write)?;
        let end = index_offset + index_bytes;
        data.write_at(end, &trailer.encode()).map_err(LsmtError::write)?;
        Ok(end + HEADER_BLOCK)
    }
}
