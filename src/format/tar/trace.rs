//! Record of everything a parser returns for an archive, for comparison in the fuzz entry and in
//! tests.
//!
//! Source: the promises of [`Parser`] and [`Event`], each of which is asserted here; the format itself
//! is described in `docs/formats/tar.md`.

use super::{Event, Parser, TarError};
use crate::tree::{Body, Entry, Extent};

/// Everything that was read from an archive.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Trace {
    pub(super) files: Vec<File>,
    pub(super) dropped_xattrs: u64,
    /// True once the end marker was read.
    pub(super) ended: bool,
    pub(super) refusal: Option<TarError>,
}

/// Entry with its data.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) entry: Entry,
    /// Byte of the archive at which its data starts.
    pub(super) data_start: u64,
    /// Runs of data without a hole, each with its offset.
    pub(super) runs: Vec<(u64, Vec<u8>)>,
    /// True until the end of the data was announced.
    open: bool,
}

/// Reads `archive` in pieces of `piece` bytes.
///
/// # Panics
///
/// When the parser breaks a promise about the order and the size of events.
pub(super) fn trace(archive: &[u8], piece: usize) -> Trace {
    let mut parser = Parser::new();
    let mut files = Vec::new();
    let refusal = read(&mut parser, archive, piece, &mut files).err();
    files.iter().filter(|file| !file.open).for_each(|file| file.is_stored_in(archive));
    if let Some(refusal) = &refusal {
        assert_eq!(parser.next(&mut &[][..]).as_ref(), Err(refusal), "a refusal is final");
        assert_eq!(parser.finish().as_ref(), Err(refusal), "a refusal is final");
    }
    Trace { files, dropped_xattrs: parser.dropped_xattrs(), ended: parser.is_finished(), refusal }
}

fn read(parser: &mut Parser, archive: &[u8], piece: usize, files: &mut Vec<File>) -> Result<(), TarError> {
    for mut input in archive.chunks(piece) {
        while let Some(event) = parser.next(&mut input)? {
            match event {
                Event::Entry { entry, data_start } => {
                    assert!(files.last().is_none_or(|file| !file.open), "the file before is not ended");
                    let open = matches!(entry.body, Body::Regular { .. });
                    files.push(File { entry, data_start, runs: Vec::new(), open });
                }
                Event::Data { offset, bytes } => {
                    files.last_mut().expect("data follows an entry").extend(offset, bytes);
                }
                Event::EndOfEntry => files.last_mut().expect("an end follows an entry").end(),
            }
        }
        assert!(input.is_empty(), "input is left");
    }
    parser.finish()?;
    assert!(files.last().is_none_or(|file| !file.open), "the last file is not ended");
    Ok(())
}

impl File {
    fn extend(&mut self, offset: u64, bytes: &[u8]) {
        assert!(self.open, "data of something that is no file, or after its end");
        assert!(!bytes.is_empty(), "data without bytes");
        match self.runs.last_mut() {
            Some((start, run)) if *start + run.len() as u64 == offset => run.extend_from_slice(bytes),
            _ => self.runs.push((offset, bytes.to_vec())),
        }
    }

    /// Checks that the archive has the data at the bytes that [`Body::stored`] gives.
    fn is_stored_in(&self, archive: &[u8]) {
        let mut runs = self.runs.iter();
        for (extent, at) in self.entry.body.stored(self.data_start) {
            let stored = usize::try_from(at)
                .ok()
                .and_then(|at| archive.get(at..)?.get(..usize::try_from(extent.len).ok()?));
            let run = runs.next().map(|(_, run)| run.as_slice());
            assert_eq!(stored, run, "data is stored elsewhere");
        }
    }

    /// Checks that the data lies exactly where the entry announced it.
    fn end(&mut self) {
        assert!(std::mem::take(&mut self.open), "an end of something that is no file");
        let Body::Regular { size_bytes, extents } = &self.entry.body else {
            panic!("only files are open");
        };
        let whole = [Extent { offset: 0, len: *size_bytes }];
        let announced = extents.as_deref().unwrap_or(&whole).iter().filter(|extent| extent.len > 0).copied();
        let found = self.runs.iter().map(|(offset, run)| Extent { offset: *offset, len: run.len() as u64 });
        assert!(found.eq(announced), "data is not where the entry announced it");
        if let Some(extents) = extents {
            let mut floor = 0;
            for extent in extents {
                assert!(extent.len > 0 && extent.offset >= floor, "extents do not ascend");
                floor = extent.offset + extent.len;
            }
            assert!(floor <= *size_bytes, "extents leave the file");
        }
    }
}
