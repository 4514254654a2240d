//! A layer as eStargz or as zstd:chunked of the stargz tools: an archive in members or frames, with a table of contents.
//!
//! A member begins with each piece of a file's data. So readers of the table fetch files one by one, and others decode
//! members on many processors.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::{
    output::Output,
    tar::{self, writer_error},
};
use crate::{
    codec::Coding,
    digest::{Algorithm, Digest, Hasher},
    error::{Error, Result},
    format::{
        stargz::{
            is_own_name,
            writer::{
                self as stargz, CHUNK_BYTES, LANDMARK, Piece, TocWriter, archive_of, footer, landmark,
                zstd_end,
            },
        },
        tar::writer::{self, Writer},
    },
    pipeline::{
        Plan,
        encode::{Deliver, Facts},
        members::{self, Delivering, Ending, Members},
    },
    tree::{Body, Entry},
};

/// A layer that was written.
pub(super) struct Indexed<T> {
    pub(super) output: T,
    pub(super) facts: Facts,
    /// Annotations of the layer's descriptor, without which readers do not trust the table.
    pub(super) annotations: BTreeMap<String, String>,
}

/// Like [`tar::write`], with a table of contents behind the archive.
///
/// Errors: also when a name is not UTF-8, or the table becomes larger than readers take.
pub(super) fn write<T>(
    plan: Plan<'_>,
    options: tar::Options,
    deliver: Deliver<'_>,
    changes: impl FnOnce(&mut dyn Output) -> Result<T>,
) -> Result<Indexed<T>> {
    let tar::Options { compression, nanoseconds } = options;
    let is_zstd = compression.coding() == Coding::Zstd;
    let (mut json, mut annotations) = (Vec::new(), BTreeMap::new());
    let ((output, _), facts) = members::run(
        plan,
        compression,
        deliver,
        |members| {
            let archive = Writer::new(Cutter { members, file: None }, writer::Options { nanoseconds });
            let mut archive = Archive { archive, toc: TocWriter::new(nanoseconds) };
            archive.entry(&landmark())?;
            archive.data(0, &[LANDMARK])?;
            archive.end_entry()?;
            let output = changes(&mut Foreign { archive: &mut archive, is_left_out: false })?;
            let Archive { archive, toc, .. } = archive;
            if is_zstd {
                // The table of zstd:chunked is no part of the archive.
                archive.finish().map_err(writer_error)?;
            }
            Ok((output, toc))
        },
        |(_, toc), Delivering { members, blob_bytes }| {
            let member = |at: usize| {
                let member = members.get(at)?;
                Some((member.offset, member.digest.as_ref()?))
            };
            json = std::mem::take(toc).finish(member)?;
            if is_zstd {
                let (end, place) = zstd_end(&json, &compression.whole(&json)?, blob_bytes);
                annotations = place;
                return Ok(vec![Ending::Raw(end)]);
            }
            let archive = archive_of(&json).map_err(writer_error)?;
            Ok(vec![Ending::Member(archive), Ending::Raw(footer(blob_bytes))])
        },
    )?;
    annotations.extend(stargz::annotations(&json, facts.stream_bytes));
    Ok(Indexed { output, facts, annotations })
}

/// The archive, and its table.
struct Archive<'a> {
    archive: Writer<Cutter<'a>>,
    toc: TocWriter,
}

impl Output for Archive<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.toc.entry(entry)?;
        if let Body::Regular { size_bytes, .. } = entry.body {
            self.archive.sink().members.announce(size_bytes)?;
        }
        self.archive.entry(entry).map_err(writer_error)?;
        if let Body::Regular { size_bytes, .. } = entry.body {
            self.archive.sink_mut().begin(size_bytes)?;
        }
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.archive.data(offset, bytes).map_err(writer_error)
    }

    fn end_entry(&mut self) -> Result<()> {
        self.archive.end_entry().map_err(writer_error)?;
        let (pieces, digest) = self.archive.sink_mut().end();
        self.toc.data(&pieces, digest.as_ref());
        Ok(())
    }
}

/// Leaves out the files that the format itself adds at the root: a tree that was unpacked from such a layer has them.
struct Foreign<'a, 'b> {
    archive: &'a mut Archive<'b>,
    is_left_out: bool,
}

impl Output for Foreign<'_, '_> {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.is_left_out = is_own_name(&entry.path) && matches!(entry.body, Body::Regular { .. });
        if self.is_left_out { Ok(()) } else { self.archive.entry(entry) }
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.is_left_out { Ok(()) } else { self.archive.data(offset, bytes) }
    }

    fn end_entry(&mut self) -> Result<()> {
        if self.is_left_out { Ok(()) } else { self.archive.end_entry() }
    }
}

/// Begins a member where the data of a file begins, and every [`CHUNK_BYTES`] of it.
struct Cutter<'a> {
    members: &'a mut dyn Members,
    file: Option<File>,
}

/// A file whose data is being written, holes included.
struct File {
    size_bytes: u64,
    written: u64,
    pieces: Vec<Piece>,
    /// Digest of a file of several pieces.
    hasher: Option<Hasher>,
}

impl Cutter<'_> {
    fn begin(&mut self, size_bytes: u64) -> Result<()> {
        let hasher = (size_bytes > CHUNK_BYTES as u64).then(|| Hasher::new(Algorithm::Sha256));
        self.file = Some(File { size_bytes, written: 0, pieces: Vec::new(), hasher });
        Ok(())
    }

    /// The pieces of the file, and its digest if there are several.
    fn end(&mut self) -> (Vec<Piece>, Option<Digest>) {
        match self.file.take() {
            Some(file) => (file.pieces, file.hasher.map(Hasher::finish)),
            None => (Vec::new(), None),
        }
    }

    /// Writes as much of the file's data as belongs to one piece; how much.
    fn data(&mut self, bytes: &[u8]) -> Result<usize> {
        let Some(file) = self.file.as_mut().filter(|file| file.written < file.size_bytes) else {
            // Headers, and what fills the last block of a file.
            self.members.write_all(bytes).map_err(Error::disk)?;
            return Ok(bytes.len());
        };
        let chunk = CHUNK_BYTES as u64;
        let (offset, inside) = (file.written, file.written % chunk);
        if inside == 0 {
            let size_bytes = (file.size_bytes - offset).min(chunk);
            let member = self.members.begin(usize::try_from(size_bytes).unwrap_or(CHUNK_BYTES))?;
            file.pieces.push(Piece { member, offset, size_bytes });
        }
        let left = (chunk - inside).min(file.size_bytes - offset);
        let len = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(bytes.len());
        let bytes = bytes.get(..len).unwrap_or_default();
        self.members.write_all(bytes).map_err(Error::disk)?;
        if let Some(hasher) = &mut file.hasher {
            hasher.update(bytes);
        }
        file.written += len as u64;
        Ok(len)
    }
}

impl Write for Cutter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.data(bytes).map_err(Error::into_io)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
