//! Sealing: the data file of a writable layer becomes a read-only layer by what is written behind it.
//!
//! Source: `docs/formats/overlaybd.md`, "Writable layers"; overlaybd `src/overlaybd/lsmt/file.cpp`, `close_seal`.

use super::{
    Header, Layer, LsmtError, SECTOR, commit::entry_of, entry::Entry, form::Form, header::flags, layer::Blob,
};
use crate::{format::ReadAt, limits::LSMT_ENTRIES};

/// Bytes that seal a data file. The index goes first: without the trailer, the file is as writable as before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Place of the index in bytes: the end of the data.
    pub offset: u64,
    /// The index, in whole sectors.
    pub index: Vec<u8>,
    /// The trailer, right behind it.
    pub trailer: Vec<u8>,
}

impl<R: ReadAt> Layer<R> {
    /// Index and trailer that seal the data file of this layer.
    ///
    /// Errors: the layer is not one of a writable data file; it has more entries than readers take.
    pub fn seal(&self) -> Result<Seal, LsmtError> {
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
        let padded = (index.len() as u64).next_multiple_of(SECTOR);
        index.resize(usize::try_from(padded).unwrap_or(index.len()), 0);
        let offset = self.blob.size_bytes().next_multiple_of(SECTOR);
        let trailer = Header {
            flags: flags::DATA | flags::SEALED | sparse,
            index_offset: offset,
            index_entries: entries,
            ..self.header().clone()
        };
        Ok(Seal { offset, index, trailer: trailer.encode() })
    }

    /// Returns whether a data file was sealed already. Data of the device may look like a trailer, but does not have
    /// the identity of the layer.
    pub fn is_sealed(data: &R) -> bool {
        let header = Blob::new(data).first_header(flags::HEADER | flags::DATA, "a layer's data file");
        let sealed = Layer::open(data).ok().filter(|layer| matches!(layer.form(), Form::Sealed { .. }));
        match (header, sealed) {
            (Ok(header), Some(sealed)) => header.uuid == sealed.header().uuid,
            _ => false,
        }
    }
}
