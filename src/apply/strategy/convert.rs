//! A tar layer becomes the layer of a device, in one pass: above the device of the layers below, or as its lowest one.
//!
//! Either the layer holds the data of its files, or the uncompressed archive stays beside it and holds them. The archive
//! gets its name before the layer: a snapshotter that finds the archive alone converts it itself.
//!
//! An index of the archive is made beside it if it can be. A layer that no index can describe is whole without one.

use std::{
    io,
    time::{Duration, Instant},
};

use super::overlaybd::read_all;
use crate::{
    apply::{
        choose::{Conversion, Data},
        job::{Built, Job, verified},
        request::Contents,
    },
    call::Phase,
    error::{Error, Kind, Result},
    format::{
        ReadAt, Sink as _,
        erofs::writer,
        lsmt::{Device, Layer},
        zfile::{self, reader::Reader},
    },
    overlaybd::{
        build::{Base, DataPlace, LayerWriter},
        options::DeviceOptions,
        snapshot,
    },
    pipeline::{
        Plan,
        budget::Use,
        buffer::Chunk,
        image::{self, ImageWriter},
        stage::Stage,
        unpack::{Entries, Unpack, Unpacked},
    },
    snapshot::{NewFile, OVERLAYBD_NAME, TAR_INDEX_NAME, TAR_NAME},
    tree::Entry,
};

/// Unit in which archives are laid out, in bytes.
const SECTOR: u64 = 512;
/// Stands for the archive while nothing of it is read.
const NOTHING: &[u8] = &[];

/// Converts the layer, and checks what was written.
pub(in crate::apply) fn run(job: Job<'_, '_>, conversion: Conversion) -> Result<Built> {
    let Job { mut layer, publication, plan, options } = job;
    let device =
        DeviceOptions { flavour: conversion.flavour, virtual_bytes: options.overlaybd.virtual_bytes };
    let below = layer.device.take().map(|below| snapshot::open(&below, plan)).transpose()?;
    let base = match &below {
        Some(below) => Base::open(below, &device)?,
        None => Base::new(&device)?,
    };
    let (place, tar, index) = match conversion.data {
        Data::Inside => (DataPlace::Layer, None, None),
        Data::Archive { kernel_index } => {
            let index = kernel_index.then(|| publication.file(TAR_INDEX_NAME)).transpose()?;
            let index =
                index.map(|file| ImageWriter::index(file, limited(plan), plan.lease, plan.work.cancel));
            (DataPlace::Target, Some(publication.file(TAR_NAME)?), index)
        }
    };
    let writer = LayerWriter::new(publication.scratch()?, &base, place, plan)?;
    let unpack = Unpack::new(Both { writer, index, plan }, plan.resources.limits.stream_bytes);
    let stage = Keep { tar, tar_bytes: 0, busy: Duration::ZERO, unpack };
    let ran = layer.pipeline(plan).run(stage)?;
    let (Kept { tar, unpacked, busy }, mut facts) = (ran.output, ran.facts);
    let Unpacked { writer: Both { writer, index, .. }, dropped_xattrs, busy: building } = unpacked;
    facts.times.build = busy + building;

    plan.work.progress.begin(Phase::Finish, None);
    let started = Instant::now();
    let index = match index {
        Some(mut index) => {
            index.set_archive_bytes(facts.stream_bytes);
            or_without(index.finish([0; 16]), plan)?.map(|(file, _)| file)
        }
        None => None,
    };
    let layer = writer.finish_unchecked(&base)?;
    let mut file = publication.file(OVERLAYBD_NAME)?;
    layer.write(zfile::writer::Options::default(), &plan.resources.helpers, &mut file)?;
    let summary = layer.summary;
    // The check opens the layer again, from the file.
    drop(layer);
    facts.times.finish = started.elapsed();
    let (limits, lease, cancel) = (&plan.resources.limits, plan.lease, plan.work.cancel);
    facts.times.verify = verified(plan, || {
        let contents = Reader::open(&file)?;
        let (layer, archive): (&dyn ReadAt, &dyn ReadAt) = (&contents, &NOTHING);
        let layer = match place {
            DataPlace::Layer => Layer::open(layer)?,
            DataPlace::Target => Layer::open_turbo(layer, archive)?,
        };
        base.check(&Device::new(vec![layer])?, plan)?;
        read_all(&contents, cancel)?;
        match (&index, &tar) {
            (Some(index), Some(archive)) => {
                image::verify_index(&Joined { index, archive }, limits, lease, cancel)
            }
            _ => Ok(()),
        }
    })?;
    let contents = Contents {
        nodes: summary.nodes,
        whiteouts: summary.whiteouts,
        dropped_xattrs,
        ..Contents::default()
    };
    let image_bytes = file.size_bytes();
    let files = [tar, index, Some(file)].into_iter().flatten().collect();
    Ok(Built { files, image_bytes, contents, facts })
}

/// An index with its archive behind it, which is where the index says that the archive is.
struct Joined<'a> {
    index: &'a NewFile,
    archive: &'a NewFile,
}

impl ReadAt for Joined<'_> {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let index_bytes = self.index.size_bytes();
        let split = usize::try_from(index_bytes.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let (first, rest) = buf.split_at_mut(split);
        self.index.read_exact_at(offset, first)?;
        let start = offset.saturating_sub(index_bytes);
        let there = usize::try_from(self.archive.size_bytes().saturating_sub(start)).unwrap_or(usize::MAX);
        let (there, padding) = rest.split_at_mut(there.min(rest.len()));
        padding.fill(0);
        if there.is_empty() { Ok(()) } else { self.archive.read_exact_at(start, there) }
    }

    fn size_bytes(&self) -> u64 {
        self.index.size_bytes() + self.archive.size_bytes().next_multiple_of(SECTOR)
    }
}

/// Options of the writer of an image under the limits of a request.
fn limited(plan: Plan<'_>) -> writer::Options {
    let limits = &plan.resources.limits;
    writer::Options {
        max_nodes: limits.nodes,
        max_metadata_bytes: limits.metadata_bytes,
        ..writer::Options::default()
    }
}

/// The outcome of a step on the way to an index; `None` when the layer is one that no index can describe. An index is a
/// tree of its own: it cannot have a hard link to a file that only a layer below has, and its blocks are smaller than those
/// of a device.
///
/// Errors: all others. A full disk must not decide which files a layer has.
fn or_without<T>(outcome: Result<T>, plan: Plan<'_>) -> Result<Option<T>> {
    let error = match outcome {
        Ok(value) => return Ok(Some(value)),
        Err(error) => error,
    };
    if error.kind() != Kind::Malformed && error.reason() != "limit.image-blocks" {
        return Err(error);
    }
    plan.lease.charge(Use::Index, 0, plan.work.cancel)?;
    tracing::warn!(reason = error.reason(), error = %error, "the archive is left without an index");
    Ok(None)
}

/// Passes the entries of an archive to the layer, and to the index of the archive.
struct Both<'a> {
    writer: LayerWriter<'a, NewFile>,
    index: Option<ImageWriter<'a, NewFile>>,
    plan: Plan<'a>,
}

impl<'a> Both<'a> {
    /// Runs a step of the index, unless there is none any more.
    fn index(&mut self, step: impl FnOnce(&mut ImageWriter<'a, NewFile>) -> Result<()>) -> Result<()> {
        if let Some(index) = &mut self.index
            && or_without(step(index), self.plan)?.is_none()
        {
            self.index = None;
        }
        Ok(())
    }
}

impl Entries for Both<'_> {
    fn entry(&mut self, entry: &Entry, data_start: u64) -> Result<()> {
        // The layer first: what it refuses is an error.
        self.writer.entry(entry, data_start)?;
        self.index(|index| index.entry_in_archive(entry, data_start))
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.writer.data(offset, bytes)?;
        self.index(|index| index.data(offset, bytes))
    }

    fn end_entry(&mut self) -> Result<()> {
        self.writer.end_entry()?;
        self.index(ImageWriter::end_entry)
    }
}

/// Keeps the archive, byte for byte, and parses it.
struct Keep<'a> {
    tar: Option<NewFile>,
    tar_bytes: u64,
    busy: Duration,
    unpack: Unpack<Both<'a>>,
}

/// Output of [`Keep`].
struct Kept<'a> {
    tar: Option<NewFile>,
    unpacked: Unpacked<Both<'a>>,
    busy: Duration,
}

impl<'a> Stage for Keep<'a> {
    type Output = Kept<'a>;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        if let Some(tar) = &mut self.tar {
            let started = Instant::now();
            tar.write_at(self.tar_bytes, &chunk).map_err(Error::disk)?;
            self.tar_bytes += chunk.len() as u64;
            self.busy += started.elapsed();
        }
        self.unpack.push(chunk)
    }

    fn finish(self) -> Result<Kept<'a>> {
        Ok(Kept { tar: self.tar, unpacked: self.unpack.finish()?, busy: self.busy })
    }
}
