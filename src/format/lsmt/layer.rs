//! One layer: a file, its target if it has one, and its index.
//!
//! Source: `docs/formats/overlaybd.md`, "LSMT".

use super::{
    HEADER_BLOCK, Header, LsmtError, SECTOR,
    entry::Entry,
    error::EntryFault,
    form::Form,
    header::flags,
    index::{Index, Place, Segment, Source},
};
use crate::{
    format::ReadAt,
    limits::{LSMT_DEVICE_BYTES, LSMT_ENTRIES},
};

/// Bytes of the index read at a time.
const INDEX_PIECE: usize = 64 << 10;
/// First sector of a file that may hold data: the one behind the header.
const FIRST_DATA: u64 = HEADER_BLOCK / SECTOR;

/// A file of a layer, with its size, which is asked for once.
#[derive(Debug)]
pub(super) struct Blob<R> {
    reader: R,
    size_bytes: u64,
}

impl<R> Blob<R> {
    pub(super) fn with_size(reader: R, size_bytes: u64) -> Self {
        Self { reader, size_bytes }
    }

    /// Size in bytes, as it was when the layer was opened.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

impl<R: ReadAt> Blob<R> {
    pub(super) fn new(reader: R) -> Self {
        let size_bytes = reader.size_bytes();
        Self { reader, size_bytes }
    }

    /// Reads the structure at the start of a block.
    fn header(&self, what: &'static str, offset: u64) -> Result<Header, LsmtError> {
        let mut record = [0; Header::LEN];
        self.reader.read_exact_at(offset, &mut record).map_err(LsmtError::read(what, offset))?;
        let header = Header::decode(&record).ok_or(LsmtError::Magic { what, offset })?;
        match header.version {
            0..=1 => Ok(header),
            found => Err(LsmtError::Version { what, offset, found }),
        }
    }

    /// Reads the header of a file with these flags, apart from that for sparse files.
    pub(super) fn first_header(&self, flags: u32, want: &'static str) -> Result<Header, LsmtError> {
        if self.size_bytes < HEADER_BLOCK {
            let size_bytes = self.size_bytes;
            return Err(LsmtError::Short { what: "a header", size_bytes, needed: HEADER_BLOCK });
        }
        let header = self.header("header", 0)?;
        match header.flags & (flags::HEADER | flags::DATA) == flags {
            true => Ok(header),
            false => Err(LsmtError::Flags { what: "header", offset: 0, found: header.flags, want }),
        }
    }

    /// Passes `count` entries from byte `offset` on to `each`, with their numbers. Unused ones are left out.
    pub(super) fn entries(
        &self,
        offset: u64,
        count: u64,
        mut each: impl FnMut(u64, Entry) -> Result<(), LsmtError>,
    ) -> Result<(), LsmtError> {
        let mut piece = vec![0; INDEX_PIECE];
        let per_piece = (INDEX_PIECE / Entry::LEN) as u64;
        let mut number = 0;
        while number < count {
            let entries = per_piece.min(count - number);
            let at = offset + number * Entry::LEN as u64;
            let len = usize::try_from(entries).unwrap_or(0) * Entry::LEN;
            let records = piece.get_mut(..len).unwrap_or_default();
            self.reader.read_exact_at(at, records).map_err(LsmtError::read("the index", at))?;
            for record in records.as_chunks().0 {
                if let Some(entry) = Entry::decode(record) {
                    each(number, entry)?;
                }
                number += 1;
            }
        }
        Ok(())
    }

    /// Fills `buf` from byte `offset` on. What is behind the end of the file reads as zeros.
    pub(super) fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let there = self.size_bytes.saturating_sub(offset);
        let len = usize::try_from(there).unwrap_or(usize::MAX).min(buf.len());
        let (there, beyond) = buf.split_at_mut(len);
        beyond.fill(0);
        if there.is_empty() {
            return Ok(());
        }
        self.reader.read_exact_at(offset, there)
    }
}

/// The place of a sector's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectorPlace {
    /// Sector `at` of the layer's own file.
    Layer {
        /// Number of the sector in the file.
        at: u64,
    },
    /// In the target of a turboOCI layer.
    Target,
}

/// A layer of a device. `R` reads its file, and the target of a turboOCI layer.
#[derive(Debug)]
pub struct Layer<R> {
    pub(super) blob: Blob<R>,
    pub(super) target: Option<Blob<R>>,
    pub(super) index: Index,
    header: Header,
    form: Form,
    entries: u64,
}

impl<R> Layer<R> {
    pub(super) fn from_parts(
        blob: Blob<R>,
        target: Option<Blob<R>>,
        index: Index,
        header: Header,
        form: Form,
    ) -> Self {
        let entries = index.segments().len() as u64;
        Self { blob, target, index, header, form, entries }
    }

    /// Identity, device size and user tag.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Kind of the layer.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Number of entries of its index.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Whether its files are complete: such a layer takes no writes.
    pub fn is_read_only(&self) -> bool {
        matches!(self.form, Form::Committed | Form::Sealed { .. })
    }

    /// End of what the layer maps of its target, in bytes; 0 when it maps nothing. A whole number of sectors.
    pub fn target_end(&self) -> u64 {
        let ends = self.index.segments().iter().filter_map(|segment| match segment.place() {
            Place::Data { source: 1, at } => Some(at + segment.sectors()),
            _ => None,
        });
        ends.max().unwrap_or(0).saturating_mul(SECTOR)
    }

    /// The file in which the layer has sector `number` of the device; `None` where it maps none or zeros.
    pub fn sector(&self, number: u64) -> Option<SectorPlace> {
        let segment = self.index.from(number).first().filter(|segment| segment.start() <= number)?;
        match segment.place() {
            Place::Data { source: 1, .. } => Some(SectorPlace::Target),
            Place::Data { at, .. } => Some(SectorPlace::Layer { at: at + number - segment.start() }),
            Place::Zero | Place::Hole => None,
        }
    }

    /// The layer on another reader of its files.
    pub fn map<T>(self, mut reader: impl FnMut(R) -> T) -> Layer<T> {
        let mut with = |Blob { reader: inner, size_bytes }| Blob { reader: reader(inner), size_bytes };
        Layer {
            blob: with(self.blob),
            target: self.target.map(with),
            index: self.index,
            header: self.header,
            form: self.form,
            entries: self.entries,
        }
    }
}

impl<R: ReadAt> Layer<R> {
    /// Opens a committed or sealed layer.
    pub fn open(file: R) -> Result<Self, LsmtError> {
        Self::open_read_only(Blob::new(file), None)
    }

    /// Opens a committed turboOCI layer, whose other data is in `target`: the uncompressed tar archive.
    ///
    /// Nothing in the file says that it is one. A mapping behind the end of the target reads as zeros, see
    /// [`Layer::target_end`].
    pub fn open_turbo(file: R, target: R) -> Result<Self, LsmtError> {
        Self::open_read_only(Blob::new(file), Some(Blob::new(target)))
    }

    fn open_read_only(blob: Blob<R>, target: Option<Blob<R>>) -> Result<Self, LsmtError> {
        let size_bytes = blob.size_bytes;
        let header = blob.first_header(flags::HEADER | flags::DATA, "a layer's data file")?;
        let Some(end) = size_bytes.checked_sub(HEADER_BLOCK).filter(|end| *end >= HEADER_BLOCK) else {
            let (what, needed) = ("a header and a trailer", 2 * HEADER_BLOCK);
            return Err(LsmtError::Short { what, size_bytes, needed });
        };
        let trailer = blob.header("trailer", end)?;
        let kind = flags::HEADER | flags::DATA | flags::SEALED;
        if trailer.flags & kind != flags::DATA | flags::SEALED {
            let (found, want) = (trailer.flags, "a sealed layer's trailer");
            return Err(LsmtError::Flags { what: "trailer", offset: end, found, want });
        }
        let (offset, entries) = (trailer.index_offset, trailer.index_entries);
        if entries > LSMT_ENTRIES {
            return Err(LsmtError::IndexCount { entries });
        }
        let index_bytes = entries * Entry::LEN as u64;
        if offset < HEADER_BLOCK || offset > end || index_bytes > end - offset {
            return Err(LsmtError::IndexRange { offset, entries, end });
        }
        let form = match header.flags & flags::SEALED {
            0 => Form::Sealed { sparse: header.flags & flags::SPARSE != 0 },
            _ => Form::Committed,
        };
        let rules = Rules {
            first_data: FIRST_DATA,
            data_end: offset / SECTOR,
            device_end: device_end(trailer.virtual_size)?,
            tags: if target.is_some() { Tags::Target } else { Tags::Ignored },
        };
        let mut segments = Vec::with_capacity(usize::try_from(entries).unwrap_or(0));
        let mut last_end = 0;
        blob.entries(offset, entries, |number, entry| {
            let in_order = match entry.start < last_end {
                true => Err(EntryFault::Order { end: last_end }),
                false => rules.segment(entry),
            };
            let at = offset + number * Entry::LEN as u64;
            let segment = in_order.map_err(|fault| refused(number, at, entry, fault))?;
            last_end = segment.end();
            segments.push(segment);
            Ok(())
        })?;
        // The trailer's values count: a committed file's header has the same, and no place of the index.
        Ok(Self::from_parts(blob, target, Index::from_sorted(segments), trailer, form))
    }
}

/// First sector behind a device of `virtual_size` bytes, or behind the largest one if that is not known.
/// Errors: a device above the limit.
pub(super) fn device_end(virtual_size: u64) -> Result<u64, LsmtError> {
    match virtual_size {
        0 => Ok(LSMT_DEVICE_BYTES / SECTOR),
        size_bytes if size_bytes > LSMT_DEVICE_BYTES => Err(LsmtError::DeviceSize { size_bytes }),
        size_bytes => Ok(size_bytes.div_ceil(SECTOR)),
    }
}

/// The refusal of an entry at byte `offset` of its file.
pub(super) fn refused(number: u64, offset: u64, entry: Entry, fault: EntryFault) -> LsmtError {
    LsmtError::Entry { number, offset, start: entry.start, sectors: entry.sectors, fault }
}

/// Meaning of the tags of a layer's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tags {
    /// All data is in the layer's own file, whatever the tags say: writers left the numbers of the layers in them that
    /// were merged, or that were below.
    Ignored,
    /// Tag 1 stands for the target.
    Target,
}

/// Limits that the entries of a layer keep, in sectors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// First sector of the file that may hold data.
    pub(super) first_data: u64,
    /// First sector behind the data.
    pub(super) data_end: u64,
    /// First sector behind the device.
    pub(super) device_end: u64,
    pub(super) tags: Tags,
}

impl Rules {
    /// The segment that an entry stands for. Errors: the entry breaks a rule.
    pub(super) fn segment(&self, entry: Entry) -> Result<Segment, EntryFault> {
        let Entry { start, sectors, at, zeroed, tag } = entry;
        if sectors == 0 {
            return Err(EntryFault::Length);
        }
        if start + sectors > self.device_end {
            return Err(EntryFault::Device { end: self.device_end });
        }
        let source: Source = match (self.tags, tag) {
            (Tags::Ignored, _) | (Tags::Target, 0) => 0,
            (Tags::Target, 1) => 1,
            (Tags::Target, _) => return Err(EntryFault::Tag { tag }),
        };
        let (first, end) = match source {
            0 => (self.first_data, self.data_end),
            _ => (0, Segment::MAX_AT),
        };
        // A zeroed entry has no data: its place may be the end.
        let data = if zeroed { 0 } else { sectors };
        if at < first || at + data > end {
            return Err(match (self.tags, tag) {
                (Tags::Ignored, 1) => EntryFault::NoTarget { at, first, end },
                _ => EntryFault::Data { at, first, end },
            });
        }
        Ok(match zeroed {
            true => Segment::zeros(start, sectors, at),
            false => Segment::data(start, sectors, at, source),
        })
    }
}
