//! The data of an indexed layer, decoded member by member and put in its place: into the data device of its metadata, or
//! into an image of its own.
//!
//! Where everything goes is known before anything is decoded. Each member or frame is decoded once, in the order of the
//! blob, in a bounded buffer; each chunk is compared with its digest. Blocks of zeros are not written.

use std::{collections::HashMap, io};

use uuid::Uuid;

use super::layer::{BlobId, StargzLayer};
use crate::{
    call::{Phase, Work},
    error::{Error, Kind, Result},
    format::{
        ReadAt, Remote, Sink,
        erofs::writer::{Options, Summary, WriteOptions},
        rafs::Plan,
        stargz::{self, Chunk, Entry, Toc, extract},
    },
    limits::Limits,
    pipeline::{
        budget::{Budget, Lease},
        image::{self, ImageWriter},
    },
    snapshot::NewFile,
    tree::{self, xattr},
};

/// Unit of places in both files, in bytes.
const BLOCK: u64 = 4096;

/// Fills the data device of the layer's metadata: every distinct chunk at its place. Returns the size in bytes.
///
/// Errors: the layer has no such metadata; the first chunk that is not what its digest says, with its path.
pub fn write_device<R: ReadAt>(
    layer: &StargzLayer<R>,
    mut file: NewFile,
    work: Work<'_>,
) -> Result<(NewFile, u64)> {
    let (_, toc) = layer.table()?;
    let plan = Plan::of(&toc)?;
    fill(layer, &toc, &mut file, work, |_, chunk| plan.find(chunk).map(|chunk| chunk.device_offset))?;
    file.set_len(plan.device_bytes).map_err(Error::disk)?;
    Ok((file, plan.device_bytes))
}

/// Writes an image with all files of the layer and their data, which mounts by itself. Whiteouts have overlayfs's form,
/// and the format's own files are left out. Any kind of indexed layer will do.
///
/// Errors: [`write_device`], but of no metadata; those of the writer.
pub fn write_whole<R: ReadAt>(
    layer: &StargzLayer<R>,
    id: BlobId,
    file: NewFile,
    limits: &Limits,
    work: Work<'_>,
) -> Result<(NewFile, Summary)> {
    let (_, toc) = layer.table()?;
    let budget = Budget::new(limits);
    let lease = budget.lease(work.cancel)?;
    let (placed, summary, starts) = write_tree(&toc, id, file, limits, (&lease, work))?;
    let Placed { mut file, places } = placed;
    fill(layer, &toc, &mut file, work, |entry, chunk| {
        let start = places.get(starts.get(entry.path.as_slice())?)?;
        Some(start + chunk.offset)
    })?;
    let size_bytes = file.size_bytes().max(summary.size_bytes);
    file.set_len(size_bytes).map_err(Error::disk)?;
    image::verify_own(&file, limits, &lease, work.cancel)?;
    Ok((file, summary))
}

/// Number of each file that has data, by its path.
type Starts<'t> = HashMap<&'t [u8], u64>;

/// Writes everything but data. Returns the number of each file, by its path.
fn write_tree<'t>(
    toc: &'t Toc,
    id: BlobId,
    file: NewFile,
    limits: &Limits,
    (lease, work): (&Lease, Work<'_>),
) -> Result<(Placed, Summary, Starts<'t>)> {
    let options = Options {
        image: WriteOptions::DEFAULT,
        max_nodes: limits.nodes,
        max_metadata_bytes: limits.metadata_bytes,
        ..Options::default()
    };
    let placed = Placed { file, places: HashMap::new() };
    let mut writer = ImageWriter::new(placed, options, lease, work.cancel);
    let mut starts = HashMap::new();
    let mut next = 0_u64;
    let shown = || toc.entries().iter().filter(|entry| !entry.is_of_the_format());
    let is_link = |entry: &&Entry| matches!(entry.body, stargz::Body::HardLink { .. });
    // A link may come before what it leads to.
    for entry in shown().filter(|entry| !is_link(entry)).chain(shown().filter(is_link)) {
        let path = match entry.path.as_slice() {
            b"" => b".".to_vec(),
            path => path.to_vec(),
        };
        let body = body_of(toc, entry);
        let size_bytes = if let tree::Body::Regular { size_bytes, .. } = &body { *size_bytes } else { 0 };
        let xattrs = entry.xattrs.iter().filter(|found| xattr::is_kept(&found.name)).cloned().collect();
        let made = tree::Entry { path, attributes: entry.attributes, xattrs, body };
        if size_bytes > 0 {
            starts.insert(entry.path.as_slice(), next);
            writer.entry_mapped(&made, next)?;
            next = next.saturating_add(size_bytes.next_multiple_of(BLOCK));
        } else {
            writer.entry(&made)?;
        }
        writer.end_entry()?;
    }
    let uuid = Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("erofs:indexed/sha256:{id}").as_bytes());
    let (placed, summary) = writer.finish(uuid.into_bytes())?;
    Ok((placed, summary, starts))
}

fn body_of(toc: &Toc, entry: &Entry) -> tree::Body {
    match &entry.body {
        stargz::Body::Directory => tree::Body::Directory,
        stargz::Body::Regular { size_bytes, .. } => {
            tree::Body::Regular { size_bytes: *size_bytes, extents: None }
        }
        stargz::Body::Symlink { target } => tree::Body::Symlink { target: target.clone() },
        stargz::Body::HardLink { target } => {
            let target = toc.entries().get(*target).expect("a link leads to an entry");
            tree::Body::HardLink { target: target.path.clone() }
        }
        stargz::Body::CharDevice(device) => tree::Body::CharDevice(*device),
        stargz::Body::BlockDevice(device) => tree::Body::BlockDevice(*device),
        stargz::Body::Fifo => tree::Body::Fifo,
    }
}

/// An image whose writer has set blocks aside for the data.
#[derive(Debug)]
struct Placed {
    file: NewFile,
    /// First byte of each file's data, by the number that the file was given.
    places: HashMap<u64, u64>,
}

impl Sink for Placed {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, bytes)
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.file.discard(offset, len)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn memory_bytes(&self) -> u64 {
        (self.places.capacity() * size_of::<(u64, u64)>()) as u64
    }
}

impl Remote for Placed {
    fn map(&mut self, offset: u64, _len: u64, target: u64) -> io::Result<()> {
        self.places.insert(target, offset);
        Ok(())
    }
}

/// Decodes the data of `layer` into `file`. `place` says where a chunk of a file begins; `None`: it is not wanted.
fn fill<R: ReadAt>(
    layer: &StargzLayer<R>,
    toc: &Toc,
    file: &mut NewFile,
    work: Work<'_>,
    place: impl Fn(&Entry, &Chunk) -> Option<u64>,
) -> Result<()> {
    let Some((blob, layout)) = layer.blob() else {
        let message = "a table of contents alone has no data";
        return Err(Error::new(Kind::NotImplemented, "rafs.form", message));
    };
    let chunks = toc.entries().iter().flat_map(|entry| toc.chunks_of(entry));
    let total = chunks.map(|chunk| chunk.size_bytes).fold(0, u64::saturating_add);
    work.progress.begin(Phase::Transfer, Some(total));
    let mut done = 0_u64;
    let mut progress = |bytes| {
        done = done.saturating_add(bytes);
        work.progress.set_done(done.min(total));
        Ok(work.cancel.check()?)
    };
    let mut take = |same: &[(&Entry, &Chunk)], at: u64, bytes: &[u8]| {
        for (entry, chunk) in same {
            if let Some(start) = place(entry, chunk) {
                write_sparse(file, start.saturating_add(at), bytes).map_err(Error::disk)?;
            }
        }
        Ok(())
    };
    extract(blob, layout, toc, &mut take, &mut progress).map(drop)
}

/// Writes `bytes` without those pieces of a block that are zeros, which the new file reads as anyway.
fn write_sparse(file: &mut impl Sink, start: u64, bytes: &[u8]) -> io::Result<()> {
    const PIECE: usize = 4096;
    let mut at = start;
    for run in bytes.chunks(PIECE).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let len: usize = run.iter().map(|piece| piece.len()).sum();
        let from = usize::try_from(at - start).map_err(io::Error::other)?;
        let piece = bytes.get(from..from + len).unwrap_or_default();
        if !is_zero(piece) {
            file.write_at(at, piece)?;
        }
        at += len as u64;
    }
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
