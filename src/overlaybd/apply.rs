//! Applies an archive to a device: the writable layer of a configuration takes the changes. Converting goes on from there
//! to a committed layer.
//!
//! | function | in directory D |
//! |---|---|
//! | [`to_upper`] | the files of the upper of D/config.v1.json change |
//! | [`convert`] | D/writable_data, D/writable_index, D/fake_target, D/service.json, D/config.v1.json, and the new layer |
//!
//! The writable layer changes only once everything is built and checked: an archive that is refused leaves it as it was.
//!
//! Described in `docs/formats/overlaybd.md`, "The file system on the device".

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{
    build::{Base, DataPlace, Imports, LayerWriter, NewLayer},
    config::{ImageConfig, Mode, ServiceConfig, UpperConfig, anywhere},
    device,
    life::{self, Commit, Pair},
    options::DeviceOptions,
    wrap::{Wrapping, Written},
};
use crate::{
    digest::Digest,
    error::{Classify, Error, Kind, Result},
    format::{
        ReadAt as _, Sink, gzindex,
        lsmt::{CommitOptions, NewUpper, Targets, Upper, Uuid, Writable},
        zfile::writer::Options,
    },
    kind::overlaybd::Flavour,
    pipeline::{Facts, Pipeline, Plan, Source, unpack::Unpack},
    snapshot::{Durability, LAYER_NAME, NewFile, Publication},
    view::LayeredDevice,
};

/// Reason why an archive is not applied to a device.
#[derive(Debug, thiserror::Error)]
enum ApplyError {
    /// The device cannot be written to.
    #[error("the configuration has no upper, which would take the layer")]
    NoUpper,
    /// A new file system was asked for on a device that has one.
    #[error("a new file system was asked for, and the device has one already")]
    NotEmpty,
    /// The archive is another one.
    #[error("the uncompressed archive has the digest {found} instead of {expected}")]
    Checksum {
        /// Digest that it should have.
        expected: Digest,
        /// Digest that it has.
        found: Digest,
    },
}

impl Classify for ApplyError {
    fn kind(&self) -> Kind {
        match self {
            Self::NoUpper => Kind::Malformed,
            Self::NotEmpty => Kind::Conflict,
            Self::Checksum { .. } => Kind::DataLoss,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NoUpper => "overlaybd.config.upper",
            Self::NotEmpty => "overlaybd.mkfs",
            Self::Checksum { .. } => "overlaybd.checksum",
        }
    }
}

/// How an archive is applied.
#[derive(Clone, Debug, Default)]
pub struct How {
    /// File system that the device is to have.
    pub flavour: Flavour,
    /// The device must be empty.
    pub mkfs: bool,
    /// The archive is given as its metadata.
    pub import: bool,
    /// Digest that the uncompressed archive must have.
    pub checksum: Option<Digest>,
}

/// What was applied.
#[derive(Debug)]
pub struct Applied {
    /// Digests and sizes of the archive.
    pub facts: Facts,
    /// Inodes on the device now.
    pub nodes: u64,
    /// Header of the index, if the archive is a gzip blob and one was asked for.
    pub index: Option<gzindex::Header>,
}

/// Applies the archive in `source`, compressed or not, to the device of `config`. An upper with a target becomes a
/// turboOCI layer: the data stays in the archive. `index` is an empty file for the index of a gzip blob.
///
/// Errors: those of the files of the device, of the archive, and of [`LayerWriter`].
pub fn to_upper<'a>(
    config: &ImageConfig,
    source: Source<'_>,
    index: Option<impl Sink + Send + 'a>,
    how: &How,
    plan: Plan<'a>,
) -> Result<Applied> {
    let options = DeviceOptions { flavour: how.flavour, virtual_bytes: DeviceOptions::NATIVE_BYTES };
    options.check()?;
    let opened = open(config);
    config.report(&opened)?;
    let Opened { mut upper, is_turbo, device } = opened?;
    let base = Base::open(&device, &options)?;
    if how.mkfs && base.has_file_system() {
        return Err(ApplyError::NotEmpty.into());
    }
    let beside = Path::new(&config.upper.data).parent().filter(|dir| !dir.as_os_str().is_empty());
    let scratch = NewFile::scratch(beside.unwrap_or(Path::new(".")), &plan.resources.limits)?;
    let place = if is_turbo { DataPlace::Target } else { DataPlace::Layer };
    let writer = LayerWriter::new(scratch, &base, place, plan)?;
    let pipeline = Pipeline::new(source, plan);
    let limit = plan.resources.limits.stream_bytes;
    let (writer, facts, index) = if how.import {
        let ran = pipeline.run(Unpack::of_metadata(Imports(writer), limit))?;
        (ran.output.writer.0, ran.facts, None)
    } else {
        let pipeline = match index {
            Some(index) => pipeline.indexed(index),
            None => pipeline,
        };
        let ran = pipeline.run(Unpack::new(writer, limit))?;
        (ran.output.writer, ran.facts, ran.index)
    };
    if let Some(expected) = how.checksum.clone().filter(|expected| *expected != facts.diff_id) {
        return Err(ApplyError::Checksum { expected, found: facts.diff_id }.into());
    }
    let layer: NewLayer<NewFile> = writer.finish(&base, plan)?;
    let nodes = layer.summary.nodes;
    if upper.header().virtual_size == 0 {
        upper.set_virtual_size(device.size_bytes())?;
    }
    if let Some(layer) = layer.into_layer() {
        upper.write(&layer, &device)?;
    }
    Ok(Applied { facts, nodes, index })
}

/// A device, and its writable layer.
struct Opened {
    upper: Upper<File, File>,
    is_turbo: bool,
    device: LayeredDevice,
}

fn open(config: &ImageConfig) -> Result<Opened> {
    let files = config.open(&anywhere, Mode::Write)?;
    let found = files.upper.as_ref().ok_or(ApplyError::NoUpper)?;
    let is_turbo = found.target.is_some();
    let again = |file: &File| file.try_clone().map_err(Error::disk);
    let (data, records) = (again(&found.data)?, again(&found.index)?);
    let lowers = u8::try_from(files.lowers.len()).unwrap_or(u8::MAX);
    let block_bytes = data.metadata().map_err(Error::disk)?.blksize();
    let mut upper = Upper::open(data, records, is_turbo, lowers)?;
    upper.set_block_bytes(block_bytes);
    Ok(Opened { upper, is_turbo, device: device::open(files)? })
}

/// A conversion of an archive to a turboOCI layer.
#[derive(Clone, Debug)]
pub struct Conversion {
    /// Directory for the files on the way. It is created; older files of a conversion in it are replaced.
    pub workdir: PathBuf,
    /// The layers below. Its upper is not looked at.
    pub config: ImageConfig,
    /// The device, if there are no layers below.
    pub device: DeviceOptions,
    /// The archive is given as its metadata.
    pub import: bool,
    /// The new layer. An older file is replaced.
    pub output: PathBuf,
}

/// Converts the archive in `source` to a turboOCI layer over it, as the snapshotter does on its own: with a writable
/// layer in the work directory, which is then committed and compressed.
///
/// Errors: as for [`to_upper`]; nothing is written for a flavour that is not supported.
pub fn convert(conversion: &Conversion, source: Source<'_>, plan: Plan<'_>) -> Result<(Applied, Written)> {
    let Conversion { workdir, config, device, import, output } = conversion;
    device.check()?;
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error| Error::disk(error).context(path)
    };
    fs::create_dir_all(workdir).map_err(failed(workdir))?;
    let virtual_size = if config.lowers.is_empty() { device.virtual_bytes } else { 0 };
    let uuid = life::random_uuid()?;
    life::create(workdir, NewUpper { kind: Writable::Turbo, virtual_size, uuid, parent_uuid: Uuid::NULL })?;
    let pair = Pair::in_directory(workdir);
    let target = workdir.join("fake_target");
    let text = |path: &Path| path.display().to_string();
    let upper = UpperConfig {
        data: text(&pair.data),
        index: text(&pair.index),
        target: text(&target),
        ..UpperConfig::default()
    };
    let config = ImageConfig { upper, ..config.clone() };
    let service = ServiceConfig { registry_fs_version: "v2".to_owned(), ..ServiceConfig::default() };
    for (path, bytes) in [
        (&target, Vec::new()),
        (&workdir.join("service.json"), service.to_json()?),
        (&workdir.join("config.v1.json"), config.to_json()?),
    ] {
        fs::write(path, bytes).map_err(failed(path))?;
    }
    let how = How { flavour: device.flavour, import: *import, ..How::default() };
    let applied = to_upper(&config, source, None::<NewFile>, &how, plan)?;
    let commit = Commit {
        options: CommitOptions { targets: Targets::Keep, ..CommitOptions::default() },
        wrapping: Wrapping { zfile: Some(Options::default()), tar: false },
        helpers: &plan.resources.helpers,
    };
    let layer = LayeredDevice::new(vec![pair.layer(true)?])?;
    let publication = Publication::beside(output)?;
    let mut file = publication.file(LAYER_NAME)?;
    let (_, written) = commit.write(&layer, &mut file, plan.work)?;
    publication.commit([file], Durability::Request, false)?;
    Ok((applied, written))
}
