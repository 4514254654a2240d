//! Committing: a device written as one read-only layer, front to back.
//!
//! The bytes depend on the contents of the index and the options alone.
//!
//! Source: `docs/formats/overlaybd.md`, "LSMT"; overlaybd `src/overlaybd/lsmt/file.cpp`, `CompactOptions`.

use std::io::Write;

use super::{
    Device, HEADER_BLOCK, Header, LsmtError, SECTOR, Uuid,
    entry::Entry,
    header::flags,
    index::{Place, Segment},
};
use crate::{format::ReadAt, limits::LSMT_ENTRIES};

/// Longest piece of stored data in one go, in sectors: upstream's buffer of 32 KiB. Entries begin and end where such
/// pieces do.
const PIECE_SECTORS: u64 = 64;
/// Entries of a padded index come in this number: 4096 bytes.
const PADDING: u64 = 256;
/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// Identity of a committed layer, and the treatment of targets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitOptions {
    /// Identity of the new layer.
    pub uuid: Uuid,
    /// Identity of the layer below. Without it, that of the device's bottom layer stays.
    pub parent_uuid: Option<Uuid>,
    /// Free text of at most 256 bytes.
    pub user_tag: Vec<u8>,
    /// Treatment of data in targets.
    pub targets: Targets,
}

/// Treatment of data that a turboOCI layer has in its target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Targets {
    /// It is read, and stored in the new layer, which is a plain one.
    #[default]
    Store,
    /// It stays in the target: the new layer is a turboOCI layer with the target of the only one of the device.
    Keep,
}

/// A layer that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Size of the layer's file in bytes.
    pub file_bytes: u64,
    /// Bytes of data in it.
    pub data_bytes: u64,
    /// Entries of its index, unused ones left out.
    pub entries: u64,
}

impl<R: ReadAt> Device<R> {
    /// Writes the device to `out` as one committed layer. Fails before the first byte when the layer cannot be
    /// described: too many entries, a user tag that does not fit, targets that cannot be kept.
    ///
    /// Ranges that read as zeros because a layer says so stay in the index: they hide what is below the new layer.
    pub fn commit(
        &self,
        options: &CommitOptions,
        out: &mut (impl Write + ?Sized),
    ) -> Result<Committed, LsmtError> {
        let plan = self.plan(options)?;
        let header = self.identity(options)?;
        out.write_all(&header.encode()).map_err(LsmtError::write)?;
        let mut buffer = vec![0; COPY_BYTES];
        for segment in self.index.segments().iter().filter(|segment| self.is_stored(**segment, options)) {
            let len = segment.sectors() * SECTOR;
            let mut done = 0;
            while done < len {
                let want = usize::try_from(len - done).unwrap_or(usize::MAX).min(buffer.len());
                let piece = buffer.get_mut(..want).unwrap_or_default();
                let at = segment.start() * SECTOR + done;
                self.read_segment(*segment, done, piece).map_err(LsmtError::read("the device", at))?;
                out.write_all(piece).map_err(LsmtError::write)?;
                done += want as u64;
            }
        }
        let mut index = Vec::with_capacity(plan.entries.len().saturating_mul(Entry::LEN));
        plan.entries.iter().for_each(|segment| index.extend(entry_of(*segment).encode()));
        (plan.entries.len() as u64..plan.padded).for_each(|_| index.extend(Entry::UNUSED));
        out.write_all(&index).map_err(LsmtError::write)?;
        let index_offset = plan.data_end * SECTOR;
        let trailer =
            Header { flags: flags::DATA | flags::SEALED, index_offset, index_entries: plan.padded, ..header };
        out.write_all(&trailer.encode()).map_err(LsmtError::write)?;
        Ok(Committed {
            file_bytes: index_offset + index.len() as u64 + HEADER_BLOCK,
            data_bytes: index_offset - HEADER_BLOCK,
            entries: plan.entries.len() as u64,
        })
    }

    fn identity(&self, options: &CommitOptions) -> Result<Header, LsmtError> {
        let user_tag = options.user_tag.clone();
        if user_tag.len() > Header::USER_TAG_BYTES {
            return Err(LsmtError::UserTag { bytes: user_tag.len() });
        }
        let below = self.layers().first().map_or(Uuid::NULL, |bottom| bottom.header().parent_uuid);
        Ok(Header {
            uuid: options.uuid,
            parent_uuid: options.parent_uuid.unwrap_or(below),
            user_tag,
            ..Header::new(flags::HEADER | flags::DATA | flags::SEALED, self.size_bytes())
        })
    }

    /// Whether the new layer stores the data of a segment of this device.
    fn is_stored(&self, segment: Segment, options: &CommitOptions) -> bool {
        match segment.place() {
            Place::Data { source, .. } => options.targets == Targets::Store || source.is_multiple_of(2),
            Place::Zero | Place::Hole => false,
        }
    }

    fn plan(&self, options: &CommitOptions) -> Result<Plan, LsmtError> {
        if options.targets == Targets::Keep && self.layers().len() != 1 {
            return Err(LsmtError::ManyTargets { layers: self.layers().len() });
        }
        let mut plan = Plan { entries: Vec::new(), data_end: HEADER_BLOCK / SECTOR, padded: 0 };
        for segment in self.index.segments() {
            match segment.place() {
                Place::Hole => {}
                Place::Zero => {
                    plan.push(Segment::zeros(segment.start(), segment.sectors(), plan.data_end))?;
                }
                Place::Data { at, .. } if !self.is_stored(*segment, options) => {
                    plan.push(Segment::data(segment.start(), segment.sectors(), at, 1))?;
                }
                Place::Data { .. } => {
                    let mut start = segment.start();
                    while start < segment.end() {
                        let sectors = PIECE_SECTORS.min(segment.end() - start);
                        plan.push(Segment::data(start, sectors, plan.data_end, 0))?;
                        plan.data_end += sectors;
                        start += sectors;
                    }
                }
            }
        }
        let entries = plan.entries.len() as u64;
        plan.padded = match options.targets {
            Targets::Store => entries.next_multiple_of(PADDING),
            Targets::Keep => entries,
        };
        match plan.padded {
            ..=LSMT_ENTRIES => Ok(plan),
            entries => Err(LsmtError::TooManyEntries { entries }),
        }
    }
}

/// The index of a new layer.
struct Plan {
    /// Data has source 0 in the layer's own file, source 1 in the target.
    entries: Vec<Segment>,
    /// First sector behind the data.
    data_end: u64,
    /// Number of entries with the unused ones.
    padded: u64,
}

impl Plan {
    /// Adds a piece, to the last entry if it continues that.
    fn push(&mut self, piece: Segment) -> Result<(), LsmtError> {
        if let Some(last) = self.entries.last_mut()
            && let Some(joined) = last.joined(piece, Segment::MAX_SECTORS)
        {
            *last = joined;
            return Ok(());
        }
        if self.entries.len() as u64 == LSMT_ENTRIES {
            return Err(LsmtError::TooManyEntries { entries: LSMT_ENTRIES + 1 });
        }
        self.entries.push(piece);
        Ok(())
    }
}

/// The entry of a segment whose source is its tag.
pub(super) fn entry_of(segment: Segment) -> Entry {
    let (zeroed, tag) = match segment.place() {
        Place::Data { source, .. } => (false, u8::from(source != 0)),
        Place::Zero | Place::Hole => (true, 0),
    };
    Entry { start: segment.start(), sectors: segment.sectors(), at: segment.at(), zeroed, tag }
}
