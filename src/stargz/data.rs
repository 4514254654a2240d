//! The data of a layer, decoded member by member and put where its metadata says it is: into the data device, or behind
//! the metadata in one file.
//!
//! Where everything goes is known before anything is decoded. So several threads decode, each runs of members of its own
//! in a bounded buffer, and write at any place of the file. Each chunk is compared with its digest. Blocks of zeros are
//! not written.

use std::{
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    check::check,
    files::NewFiles,
    layer::{BlobId, StargzLayer},
    prepare::{Prepared, device_name, prepare_stargz_meta_layer},
};
use crate::{
    call::{Phase, Work},
    error::{Error, Kind, Result},
    format::{
        ReadAt, Sink as _,
        erofs::reader::Image,
        rafs::{self, Plan},
        stargz::{Toc, Wanted, extract, runs, wanted},
    },
    pipeline::{Resources, each::for_each},
    snapshot::NewFile,
};

/// Data that one thread decodes at a time, in bytes: that of a usual chunk. Less would wake threads for nothing.
const RUN_BYTES: u64 = 4 << 20;

/// [`prepare_stargz_meta_layer`] with the data device, `<id>.blob.data`, beside the metadata. The device is complete before
/// the metadata gets its names; one that is there already stays.
///
/// Returns the metadata, and the size of the device in bytes, unless they were there. Errors: also the first chunk that is
/// not what its digest says, with its path. Then nothing is left.
pub fn prepare_with_device<R: ReadAt + Sync>(
    layer: &StargzLayer<R>,
    id: BlobId,
    storage: &Path,
    resources: &Resources,
    work: Work<'_>,
) -> Result<(Option<Prepared>, Option<u64>)> {
    let path = storage.join(device_name(&id.to_string()));
    let mut files = NewFiles::default();
    let device_bytes = match path.exists() {
        true => None,
        false => Some(files.add(&path, None, |file| write_device(layer, file, resources, work))?),
    };
    let prepared = prepare_stargz_meta_layer(layer, id, storage, None)?;
    files.keep();
    Ok((prepared, device_bytes))
}

/// Fills the data device of the layer's metadata: every distinct chunk at its place. Returns the size in bytes.
fn write_device<R: ReadAt + Sync>(
    layer: &StargzLayer<R>,
    mut file: NewFile,
    resources: &Resources,
    work: Work<'_>,
) -> Result<(NewFile, u64)> {
    let (_, toc) = layer.table()?;
    let plan = Plan::of(&toc)?;
    fill(layer, &toc, &plan, &mut file, 0, (resources, work))?;
    Ok((file, plan.device_bytes))
}

/// Makes the file `path` of the layer's metadata and, where that has its data device, the data: an image that mounts by
/// itself. An existing file is replaced. Returns its size in bytes.
///
/// Errors: the layer has no such metadata; the first chunk that is not what its digest says, with its path; those of the
/// file. Then nothing is left.
pub fn write_whole<R: ReadAt + Sync>(
    layer: &StargzLayer<R>,
    id: BlobId,
    path: &Path,
    resources: &Resources,
    work: Work<'_>,
) -> Result<u64> {
    let (_, toc) = layer.table()?;
    let metadata = rafs::write(&toc, id.bytes())?;
    let plan = Plan::of(&toc)?;
    let mut files = NewFiles::default();
    let size_bytes = files.add(path, None, |mut file| {
        file.write_at(0, &metadata.image).map_err(Error::disk)?;
        let image = Image::open(metadata.image.as_slice())?;
        if let [slot] = image.slots() {
            let start = slot.unified_start << image.superblock().block_bits.get();
            fill(layer, &toc, &plan, &mut file, start, (resources, work))?;
        }
        check(&file, &resources.limits)?;
        let size_bytes = file.size_bytes();
        Ok((file, size_bytes))
    })?;
    files.keep();
    Ok(size_bytes)
}

/// Decodes the data of `layer` into `file`, from the byte `start` on, on as many threads as there are to be had.
fn fill<R: ReadAt + Sync>(
    layer: &StargzLayer<R>,
    toc: &Toc,
    plan: &Plan,
    file: &mut NewFile,
    start: u64,
    (resources, work): (&Resources, Work<'_>),
) -> Result<()> {
    let Some((blob, layout)) = layer.blob() else {
        let message = "a table of contents alone has no data";
        return Err(Error::new(Kind::NotImplemented, "rafs.form", message));
    };
    file.set_len(start.saturating_add(plan.device_bytes)).map_err(Error::disk)?;
    let file = file.file();
    let chunks = wanted(toc);
    let total = chunks.iter().map(|(_, chunk)| chunk.size_bytes).fold(0, u64::saturating_add);
    work.progress.begin(Phase::Transfer, Some(total));
    let done = AtomicU64::new(0);
    for_each(&resources.helpers, "stargz", runs(&chunks, RUN_BYTES), &|run| {
        let mut take = |same: &[Wanted<'_>], at: u64, bytes: &[u8]| {
            // Equal chunks are one chunk. The files of the format itself have no place.
            let place = same.first().and_then(|(_, chunk)| plan.find(chunk));
            place.map_or(Ok(()), |chunk| {
                write_sparse(file, start + chunk.device_offset + at, bytes).map_err(Error::disk)
            })
        };
        let mut progress = |bytes| {
            let before = done.fetch_add(bytes, Ordering::Relaxed);
            work.progress.set_done(before.saturating_add(bytes).min(total));
            Ok(work.cancel.check()?)
        };
        extract(blob, layout, run, &mut take, &mut progress).map(drop)
    })
}

/// Writes `bytes` without those pieces of a block that are zeros, which the new file reads as anyway.
fn write_sparse(file: &std::fs::File, start: u64, bytes: &[u8]) -> io::Result<()> {
    const PIECE: usize = 4096;
    let mut at = start;
    for run in bytes.chunks(PIECE).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let len: usize = run.iter().map(|piece| piece.len()).sum();
        let from = usize::try_from(at - start).map_err(io::Error::other)?;
        let piece = bytes.get(from..from + len).unwrap_or_default();
        if !is_zero(piece) {
            file.write_all_at(piece, at)?;
        }
        at += len as u64;
    }
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
