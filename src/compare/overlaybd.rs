//! A layer of a device: what a container wrote to the device, or what it changed in an overlay above one.
//!
//! Both are laid out in a file without a name, as a ZFile, whose header is known last. Then they are delivered in the tar
//! archive that registries take, uncompressed: the diffID is the digest of the blob.
//!
//! Described in `docs/formats/containerd.md`, "Layers of devices".

use std::{path::Path, time::Instant};

use super::{output::Output, send};
use crate::{
    call::{Phase, Work},
    error::{Error, Kind, Result},
    format::{ReadAt, lsmt::CommitOptions, tar::wrapper, zfile::writer::Options},
    kind::{overlaybd::Flavour, sniff::Image},
    overlaybd::{
        build::{Base, DataPlace, LayerWriter},
        options::DeviceOptions,
    },
    pipeline::{
        Plan,
        encode::{Deliver, Facts},
        zfile,
    },
    snapshot::NewFile,
    tree::Entry,
    view::LayeredDevice,
};

/// Delivers the layers of `device` as one layer. Nothing is read but those layers: what they do not map is below.
pub(super) fn written(
    plan: Plan<'_>,
    device: &LayeredDevice,
    work_directory: &Path,
    deliver: Deliver<'_>,
) -> Result<Facts> {
    let started = Instant::now();
    plan.work.progress.begin(Phase::LayOut, None);
    let mut file = NewFile::scratch(work_directory, &plan.resources.limits)?;
    let helpers = &plan.resources.helpers;
    let commit = CommitOptions::default();
    let (_, summary) =
        zfile::write(
            helpers,
            Options::default(),
            &mut file,
            |mut out| Ok(device.commit(&commit, &mut out)?),
        )?;
    deliver_layer(plan, &file, summary.file_bytes, started, deliver)
}

/// Runs `changes`, and delivers the layer that its entries make above the device `below`.
pub(super) fn changed<T>(
    plan: Plan<'_>,
    below: &LayeredDevice,
    work_directory: &Path,
    deliver: Deliver<'_>,
    changes: impl FnOnce(&mut dyn Output) -> Result<T>,
) -> Result<(T, Facts)> {
    let started = Instant::now();
    let Work { progress, .. } = plan.work;
    progress.begin(Phase::LayOut, None);
    let limits = &plan.resources.limits;
    let options = DeviceOptions { flavour: Flavour::default(), virtual_bytes: below.size_bytes() };
    let base = Base::open(below, &options)?;
    let scratch = NewFile::scratch(work_directory, limits)?;
    let mut layer = Layer(LayerWriter::new(scratch, &base, DataPlace::Layer, plan)?);
    let output = changes(&mut layer)?;
    progress.begin(Phase::Verify, None);
    let layer = layer.0.finish(&base, plan)?;
    let mut file = NewFile::scratch(work_directory, limits)?;
    let written = layer.write(Options::default(), &plan.resources.helpers, &mut file)?;
    let facts = deliver_layer(plan, &file, written.file_bytes, started, deliver)?;
    Ok((output, facts))
}

/// Delivers the layer in `file` with the archive around it.
fn deliver_layer(
    plan: Plan<'_>,
    file: &NewFile,
    size_bytes: u64,
    started: Instant,
    deliver: Deliver<'_>,
) -> Result<Facts> {
    let around = wrapper::around(size_bytes).ok_or_else(|| {
        let message = format!("{size_bytes} bytes are more than a file can have");
        Error::new(Kind::Exhausted, "overlaybd.wrapper.size", message)
    })?;
    let built = started.elapsed();
    let mut facts = send::wrapped(plan, deliver, file, size_bytes, &around)?;
    facts.times.produce += built;
    Ok(facts)
}

/// Returns the file system that the layers of `device` have begun, if they have its superblock.
pub(super) fn file_system(device: &LayeredDevice) -> Option<&'static str> {
    let starts = |offset: u64, magic: &[u8]| {
        let mut found = vec![0; magic.len()];
        device.read_exact_at(offset, &mut found).is_ok() && found == magic
    };
    Image::of(starts).map(|image| match image {
        Image::Erofs => "erofs",
        Image::Ext4 => "ext4",
    })
}

/// The new layer, as a destination of changes.
struct Layer<'a>(LayerWriter<'a, NewFile>);

impl Output for Layer<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        // There is no archive: the layer stores all data.
        self.0.entry(entry, 0)
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.0.data(offset, bytes)
    }

    fn end_entry(&mut self) -> Result<()> {
        self.0.end_entry()
    }
}
