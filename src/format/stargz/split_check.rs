//! Checks the tar-split data of a layer: with the files it makes the layer's archive, and the table lists that archive.
//!
//! The archive is decoded once more for that, beside the lines of the data. Readers make it of the lines, and refuse a layer
//! whose table has another entry than its headers.
//!
//! Source: as for [`super::tar_split`]; containers/storage `pkg/chunked/compression_linux.go`; `docs/formats/stargz.md`,
//! "Verification".

use std::{borrow::Cow, collections::HashSet};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::{
    crc64::Crc64,
    error::{SplitFault, StargzError},
    layout::{Layout, TocPlace, WINDOW_BYTES},
    text,
    toc::{self, Toc},
};
use crate::{
    codec::{CodecError, Decoder as _, Zstd},
    digest::Digest,
    error::Error,
    format::{
        ReadAt,
        tar::{Event, Parser},
    },
    limits,
    tree::{self, Xattr, xattr},
};

/// Bytes read, and bytes decoded, at a time.
const PIECE: usize = 64 << 10;
/// Longest line in bytes: the headers of an entry, in base64, have 1.4 MB at most.
const LINE_BYTES: usize = 4 << 20;

/// Checks the tar-split data of the layer `blob`. Returns whether there is any: older layers have none. `progress` gets the
/// bytes of each step, and may end the work.
///
/// Errors: the first line, or entry, that is another one; those of `progress`.
pub fn verify_split(
    blob: &impl ReadAt,
    layout: &Layout,
    toc: &Toc,
    progress: &mut dyn FnMut(u64) -> Result<(), Error>,
) -> Result<bool, Error> {
    // Data whose digest is not in the table is read by nobody.
    let Some(expected) = toc.tar_split() else { return Ok(false) };
    let place = layout.tar_split.ok_or(StargzError::Split { line: 0, fault: SplitFault::NoPlace })?;
    check_digest(blob, place, expected)?;
    let mut lines = Lines {
        text: Plain::new(blob, place.offset, place.offset.saturating_add(place.len))?,
        left: place.uncompressed_bytes.unwrap_or_default(),
        decoded: Vec::new(),
        returned: 0,
        position: 0,
    };
    let mut archive = Archive {
        stream: Plain::new(blob, 0, layout.payload_end)?,
        parser: Parser::new(),
        listed: toc.entries().iter(),
        toc,
        links: toc
            .entries()
            .iter()
            .filter(|entry| is_link(entry))
            .map(|entry| entry.path.as_slice())
            .collect(),
    };
    let mut space = Vec::new();
    while let Some(text) = lines.next()? {
        let refuse = |fault| StargzError::Split { line: lines.position, fault };
        let line: Line<'_> =
            serde_json::from_slice(&text).map_err(|error| refuse(SplitFault::Json(error)))?;
        if line.position != lines.position {
            return Err(refuse(SplitFault::Position { found: line.position }).into());
        }
        let payload = line.payload.as_deref().unwrap_or_default();
        let payload = STANDARD.decode(payload).map_err(|_not_base64| refuse(SplitFault::Base64))?;
        match line.kind {
            1 => {
                let mut crc = Crc64::default();
                let mut left = line.size;
                while left > 0 {
                    let step = left.min(PIECE as u64);
                    archive.take(step, &mut space).map_err(|fault| fault.at(lines.position))?;
                    crc.update(&space);
                    left -= step;
                    progress(step)?;
                }
                if line.size > 0 && payload != crc.finish().to_be_bytes() {
                    return Err(refuse(SplitFault::Sum).into());
                }
            }
            2 => {
                archive.take(payload.len() as u64, &mut space).map_err(|fault| fault.at(lines.position))?;
                if payload != space {
                    return Err(refuse(SplitFault::Bytes).into());
                }
                progress(payload.len() as u64)?;
            }
            found => return Err(refuse(SplitFault::Type { found }).into()),
        }
        lines.position += 1;
    }
    archive.finish().map_err(|fault| fault.at(lines.position))?;
    Ok(true)
}

fn check_digest(blob: &impl ReadAt, place: TocPlace, expected: &Digest) -> Result<(), StargzError> {
    let TocPlace { offset, len, .. } = place;
    let limit = limits::STARGZ_TAR_SPLIT_BYTES;
    if len > limit {
        return Err(StargzError::TarSplitSize { size_bytes: len, limit });
    }
    let mut packed = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    let read = blob.read_exact_at(offset, &mut packed);
    read.map_err(|source| StargzError::Io { offset, len, source })?;
    let found = Digest::sha256(&packed);
    match found == *expected {
        true => Ok(()),
        false => Err(StargzError::SplitDigest { expected: expected.clone(), found }),
    }
}

/// A line. Other members, such as names in another encoding, are of no use here.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(default)]
    size: u64,
    #[serde(borrow)]
    payload: Option<Cow<'a, str>>,
    position: u64,
}

/// Bytes that frames in a range of a blob decode to.
struct Plain<'a, R> {
    blob: &'a R,
    at: u64,
    end: u64,
    decoder: Zstd,
    input: Vec<u8>,
    taken: usize,
}

impl<'a, R: ReadAt> Plain<'a, R> {
    fn new(blob: &'a R, at: u64, end: u64) -> Result<Self, CodecError> {
        Ok(Self { blob, at, end, decoder: Zstd::new(WINDOW_BYTES)?, input: Vec::new(), taken: 0 })
    }

    /// Fills the start of `output`; 0 at the end.
    fn read(&mut self, output: &mut [u8]) -> Result<usize, StargzError> {
        loop {
            if self.taken == self.input.len() {
                let len = self.end.saturating_sub(self.at).min(PIECE as u64);
                self.input.resize(usize::try_from(len).unwrap_or(PIECE), 0);
                let offset = self.at;
                let read = self.blob.read_exact_at(offset, &mut self.input);
                read.map_err(|source| StargzError::Io { offset, len, source })?;
                (self.at, self.taken) = (offset.saturating_add(len), 0);
            }
            let mut rest = self.input.get(self.taken..).unwrap_or_default();
            let is_end = rest.is_empty();
            let filled = self.decoder.decode(&mut rest, output).map_err(StargzError::Encoder)?;
            self.taken = self.input.len() - rest.len();
            if filled > 0 {
                return Ok(filled);
            }
            if is_end {
                self.decoder.finish().map_err(StargzError::Encoder)?;
                return Ok(0);
            }
        }
    }
}

/// The lines of tar-split data.
struct Lines<'a, R> {
    text: Plain<'a, R>,
    /// Bytes of text that may still come.
    left: u64,
    /// Text that was decoded, and how much of it was returned.
    decoded: Vec<u8>,
    returned: usize,
    /// Number of the next line.
    position: u64,
}

impl<R: ReadAt> Lines<'_, R> {
    /// The next line; `None` after the last.
    fn next(&mut self) -> Result<Option<Vec<u8>>, StargzError> {
        let refuse = |line, fault| StargzError::Split { line, fault };
        let mut searched = 0;
        loop {
            let waiting = self.decoded.get(self.returned..).unwrap_or_default();
            let unseen = waiting.get(searched..).unwrap_or_default();
            if let Some(end) = memchr::memchr(b'\n', unseen) {
                let line = waiting.get(..searched + end).unwrap_or_default().to_vec();
                self.returned += line.len() + 1;
                return Ok(Some(line));
            }
            searched = waiting.len();
            if searched > LINE_BYTES {
                return Err(refuse(self.position, SplitFault::Long));
            }
            self.decoded.drain(..std::mem::take(&mut self.returned));
            self.decoded.resize(searched + PIECE, 0);
            let filled = self.text.read(self.decoded.get_mut(searched..).unwrap_or_default())?;
            self.decoded.truncate(searched + filled);
            if filled == 0 {
                self.returned = searched;
                let last = self.decoded.clone();
                return Ok(Some(last).filter(|last| !last.is_empty()));
            }
            let left = self.left.checked_sub(filled as u64);
            self.left = left.ok_or_else(|| refuse(self.position, SplitFault::Longer))?;
        }
    }
}

/// The archive, and the entries of the table that it should have.
struct Archive<'a, R> {
    stream: Plain<'a, R>,
    parser: Parser,
    listed: std::slice::Iter<'a, toc::Entry>,
    toc: &'a Toc,
    /// Paths of all hard links in the table.
    links: HashSet<&'a [u8]>,
}

/// Fault of the archive.
enum Fault {
    Whole(StargzError),
    Line(SplitFault),
}

impl Fault {
    fn at(self, line: u64) -> StargzError {
        match self {
            Self::Whole(error) => error,
            Self::Line(fault) => StargzError::Split { line, fault },
        }
    }
}

impl From<StargzError> for Fault {
    fn from(error: StargzError) -> Self {
        Self::Whole(error)
    }
}

impl<R: ReadAt> Archive<'_, R> {
    /// Reads the next `len` bytes into `space`, and compares the entries in them with the table.
    fn take(&mut self, len: u64, space: &mut Vec<u8>) -> Result<(), Fault> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        space.resize(len, 0);
        let mut filled = 0;
        while filled < len {
            match self.stream.read(space.get_mut(filled..).unwrap_or_default())? {
                0 => return Err(Fault::Line(SplitFault::Short)),
                step => filled += step,
            }
        }
        let mut bytes = space.as_slice();
        while let Some(event) = self.parser.next(&mut bytes).map_err(StargzError::TocArchive)? {
            if let Event::Entry { entry, .. } = event {
                self.compare(&entry)?;
            }
        }
        Ok(())
    }

    fn compare(&mut self, entry: &tree::Entry) -> Result<(), StargzError> {
        let differs = match self.listed.next() {
            Some(listed) => self.difference(entry, listed),
            None => Some("place: it has no more entries"),
        };
        match differs {
            Some(member) => Err(StargzError::SplitEntry { path: entry.path.clone(), member }),
            None => Ok(()),
        }
    }

    /// Checks that nothing is left, neither of the archive nor of the table.
    fn finish(&mut self) -> Result<(), Fault> {
        if self.stream.read(&mut [0])? > 0 {
            return Err(Fault::Line(SplitFault::Rest));
        }
        match self.listed.next() {
            Some(listed) => {
                let member = "place: the archive has no more entries";
                Err(StargzError::SplitEntry { path: listed.path.clone(), member }.into())
            }
            None => Ok(()),
        }
    }

    /// The first member in which an entry of the archive is not the one of the table.
    fn difference(&self, entry: &tree::Entry, listed: &toc::Entry) -> Option<&'static str> {
        let clean = |name: &[u8]| text::path(std::str::from_utf8(name).ok()?).ok();
        if clean(&entry.path).as_ref() != Some(&listed.path) {
            return Some("name");
        }
        if entry.attributes != listed.attributes {
            return Some("mode, owner or time");
        }
        let kept = |xattrs: &[Xattr]| -> Vec<Xattr> {
            let mut kept: Vec<_> =
                xattrs.iter().filter(|xattr| xattr::is_kept(&xattr.name)).cloned().collect();
            kept.sort_by(|a, b| a.name.cmp(&b.name));
            kept
        };
        if kept(&entry.xattrs) != kept(&listed.xattrs) {
            return Some("extended attributes");
        }
        let is_same = match (&entry.body, &listed.body) {
            (
                tree::Body::Regular { size_bytes, extents: None },
                toc::Body::Regular { size_bytes: listed, .. },
            ) => size_bytes == listed,
            (tree::Body::Symlink { target }, toc::Body::Symlink { target: listed }) => target == listed,
            // The table leads through links to links, which an archive may have as well.
            (tree::Body::HardLink { target }, toc::Body::HardLink { target: listed }) => {
                let found = self.toc.entries().get(*listed);
                let names_it = found.is_some_and(|found| clean(target).as_ref() == Some(&found.path));
                names_it || clean(target).is_some_and(|path| self.links.contains(path.as_slice()))
            }
            (tree::Body::CharDevice(device), toc::Body::CharDevice(listed))
            | (tree::Body::BlockDevice(device), toc::Body::BlockDevice(listed)) => device == listed,
            (tree::Body::Directory, toc::Body::Directory) | (tree::Body::Fifo, toc::Body::Fifo) => true,
            _ => false,
        };
        (!is_same).then_some("type, size, target or device")
    }
}

fn is_link(entry: &toc::Entry) -> bool {
    matches!(entry.body, toc::Body::HardLink { .. })
}
