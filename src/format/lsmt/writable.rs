//! Writable layers: their files, opened as a layer.
//!
//! Source: `docs/formats/overlaybd.md`, "Writable layers"; overlaybd `src/overlaybd/lsmt/file.cpp`.

use super::{
    HEADER_BLOCK, Header, Layer, LsmtError, SECTOR,
    entry::Entry,
    form::Form,
    header::flags,
    index::{Log, Segment},
    layer::{Blob, Rules, Tags, device_end, refused},
};
use crate::{format::ReadAt, limits::LSMT_STACK_ENTRIES, tree::Extent};

impl<R: ReadAt> Layer<R> {
    /// Returns whether the data file of a writable layer has its data at its place on the device.
    pub fn is_sparse(data: &R) -> Result<bool, LsmtError> {
        let header = Blob::new(data).first_header(flags::HEADER | flags::DATA, "a layer's data file")?;
        Ok(header.flags & flags::SPARSE != 0)
    }

    /// Opens a writable layer of a data file that grows with every write, and its index file.
    pub fn open_pair(data: R, index: &impl ReadAt) -> Result<Self, LsmtError> {
        let data = Blob::new(data);
        let header = data.first_header(flags::HEADER | flags::DATA, "a writable layer's data file")?;
        if header.flags & (flags::SEALED | flags::SPARSE) != 0 {
            let want = "a data file that grows with every write";
            return Err(LsmtError::Flags { what: "header", offset: 0, found: header.flags, want });
        }
        let index = Blob::new(index);
        let of_index = index_header(&index)?;
        if of_index.uuid != header.uuid {
            return Err(LsmtError::Pair { data: header.uuid, index: of_index.uuid });
        }
        let rules = Rules {
            first_data: HEADER_BLOCK / SECTOR,
            data_end: data.size_bytes() / SECTOR,
            device_end: device_end(header.virtual_size)?,
            tags: Tags::Ignored,
        };
        let log = replay(&index, 0, &rules)?;
        Ok(Self::from_parts(data, None, log.finish(), header, Form::Append))
    }

    /// Opens the writable files of a turboOCI layer, and its target.
    pub fn open_turbo_pair(data: R, index: &impl ReadAt, target: R) -> Result<Self, LsmtError> {
        let (data, index) = (Blob::new(data), Blob::new(index));
        let header = index_header(&index)?;
        let rules = Rules {
            first_data: 0,
            // Data lies at its place on the device, in a file that need not be written to its end.
            data_end: data.size_bytes().max(header.virtual_size) / SECTOR,
            device_end: device_end(header.virtual_size)?,
            tags: Tags::Target,
        };
        // Tags count from the number of layers that were below at the time of writing.
        let mut lowest = u8::MAX;
        index.entries(HEADER_BLOCK, records(&index)?, |_, entry| {
            lowest = lowest.min(entry.tag);
            Ok(())
        })?;
        let log = replay(&index, lowest, &rules)?;
        Ok(Self::from_parts(data, Some(Blob::new(target)), log.finish(), header, Form::TurboPair))
    }

    /// Opens a writable layer of one file with holes. `extents` are the parts of the file that are no holes, in order,
    /// as its file system reports them.
    ///
    /// Errors: those of the file; [`LsmtError::Range`] for an extent that is not in the order.
    pub fn open_sparse(data: R, extents: impl IntoIterator<Item = Extent>) -> Result<Self, LsmtError> {
        let data = Blob::new(data);
        let header = data.first_header(flags::HEADER | flags::DATA, "a writable layer's data file")?;
        if header.flags & (flags::SEALED | flags::SPARSE) != flags::SPARSE {
            let want = "a data file with holes";
            return Err(LsmtError::Flags { what: "header", offset: 0, found: header.flags, want });
        }
        let end = data.size_bytes().min(HEADER_BLOCK.saturating_add(header.virtual_size)) / SECTOR;
        device_end(header.virtual_size)?;
        let (mut log, mut last_end, mut next) = (Log::default(), 0, HEADER_BLOCK / SECTOR);
        for Extent { offset, len } in extents {
            if offset < last_end {
                return Err(LsmtError::Range { offset, len, fault: "the extents of a file come in order" });
            }
            last_end = offset.saturating_add(len);
            // The blocks of a file system need not be whole sectors.
            let (mut start, stop) = ((offset / SECTOR).max(next), last_end.div_ceil(SECTOR).min(end));
            while start < stop {
                let sectors = Segment::MAX_SECTORS.min(stop - start);
                log.push(Segment::data(start - HEADER_BLOCK / SECTOR, sectors, start, 0));
                start += sectors;
            }
            next = next.max(stop);
        }
        Ok(Self::from_parts(data, None, log.finish(), header, Form::Sparse))
    }
}

fn index_header(index: &Blob<&impl ReadAt>) -> Result<Header, LsmtError> {
    index.first_header(flags::HEADER, "a writable layer's index file")
}

/// Number of records of an index file. A record that was cut off does not count.
fn records(index: &Blob<&impl ReadAt>) -> Result<u64, LsmtError> {
    let records = index.size_bytes().saturating_sub(HEADER_BLOCK) / Entry::LEN as u64;
    match records {
        ..=LSMT_STACK_ENTRIES => Ok(records),
        entries => Err(LsmtError::StackCount { entries }),
    }
}

/// The records of an index file in their order. `lowest_tag` stands for the layer's own file.
fn replay(index: &Blob<&impl ReadAt>, lowest_tag: u8, rules: &Rules) -> Result<Log, LsmtError> {
    let mut log = Log::default();
    index.entries(HEADER_BLOCK, records(index)?, |number, entry| {
        let at = HEADER_BLOCK + number * Entry::LEN as u64;
        let entry = Entry { tag: entry.tag.saturating_sub(lowest_tag), ..entry };
        log.push(rules.segment(entry).map_err(|fault| refused(number, at, entry, fault))?);
        Ok(())
    })?;
    Ok(log)
}
