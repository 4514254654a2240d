//! `plywood overlaybd apply`, `turbo-apply` and `convert`: make the layer of a device out of an archive.
//!
//! Also `overlaybd-apply` and `turboOCI-apply`, with the arguments of the upstream tools.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use indicatif::{HumanBytes, HumanCount};

use super::{create::GIB, export, produce::produce};
use crate::{
    call::{Cancel, Progress, Work},
    cli::{files::require_other, output, report::Bar},
    codec::Coding,
    digest::Digest,
    error::{Error, Kind, Result},
    format::{ReadAt as _, Sequential},
    kind::overlaybd::Flavour,
    limits::Limits,
    overlaybd::{
        apply::{self, Applied, Conversion, How},
        blob::Blob,
        config::{ImageConfig, ServiceConfig},
        options::DeviceOptions,
    },
    pipeline::{Plan, Resources, Source, helpers::Helpers},
    snapshot::NewFile,
};

/// Arguments of `plywood overlaybd apply`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Unpack a layer into the writable layer of a device:
    plywood overlaybd apply layer.tar.gz config.v1.json")]
pub struct Arguments {
    /// The layer: a tar archive, plain, compressed with gzip or zstd, or in a ZFile; or a pipe with one
    pub tar: PathBuf,
    /// Configuration of the device, whose upper takes the layer: config.v1.json
    #[arg(value_name = "CONFIG")]
    pub config: PathBuf,
    /// Fail unless the device is empty. An empty device gets a file system in any case
    #[arg(long)]
    pub mkfs: bool,
    /// Digest that the uncompressed layer must have. Nothing is changed otherwise
    #[arg(long, value_name = "sha256:HEX")]
    pub checksum: Option<Digest>,
    /// Configuration of the service; it is checked, and has nothing that is needed here
    #[arg(long = "service_config_path", value_name = "FILE")]
    pub service_config: Option<PathBuf>,
    /// The device is a plain file. Not supported: the command fails
    #[arg(long)]
    pub raw: bool,
    /// TAR is an image of a disk. Not supported: the command fails
    #[arg(long = "from_qcow2")]
    pub from_qcow2: bool,
    /// Taken for the sake of scripts, without effect
    #[arg(long, hide = true)]
    pub verbose: bool,
}

/// Runs the command. Errors: those of the files, with their names.
pub fn run(arguments: &Arguments) -> Result<()> {
    for (given, option) in [(arguments.raw, "--raw"), (arguments.from_qcow2, "--from_qcow2")] {
        if given {
            let message = format!("{option} is not supported");
            return Err(Error::new(Kind::NotImplemented, "overlaybd.option", message));
        }
    }
    check_service(arguments.service_config.as_deref())?;
    let config = read_config(&arguments.config)?;
    let how = How { mkfs: arguments.mkfs, checksum: arguments.checksum.clone(), ..How::default() };
    let applied = with_archive(&arguments.tar, |source, plan| {
        apply::to_upper(&config, source, None::<NewFile>, &how, plan)
    })?;
    shown(&arguments.tar, &applied)
}

/// Arguments of `plywood overlaybd turbo-apply`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  The metadata of a layer for a device that reads the data from the layer:
    plywood overlaybd turbo-apply layer.tar.gz config.v1.json --fstype erofs
  Of what was exported from the layer earlier:
    plywood overlaybd turbo-apply layer.tar.meta config.v1.json --import \\
      --fstype erofs
  Write the metadata of the archive:
    plywood overlaybd turbo-apply layer.tar.gz layer.tar.meta --export")]
pub struct TurboArguments {
    /// The layer: a tar archive, plain or compressed with gzip. With --import, the metadata of one
    pub tar: PathBuf,
    /// Configuration of the device, whose upper takes the layer: config.v1.json. With --export, the file to write
    #[arg(value_name = "CONFIG")]
    pub config: PathBuf,
    /// File system of the device: erofs. It must be given where the program is called turboOCI-apply
    #[arg(long, value_name = "TYPE")]
    pub fstype: Option<Flavour>,
    /// Fail unless the device is empty. An empty device gets a file system in any case
    #[arg(long)]
    pub mkfs: bool,
    /// TAR is the metadata of an archive
    #[arg(long, conflicts_with = "export")]
    pub import: bool,
    /// Write the metadata of the archive and apply nothing
    #[arg(long)]
    pub export: bool,
    /// File for the index of a layer that is gzip
    #[arg(long = "gz_index_path", value_name = "FILE", default_value = "gzip.meta")]
    pub gz_index_path: PathBuf,
    /// Configuration of the service; it is checked, and has nothing that is needed here
    #[arg(long = "service_config_path", value_name = "FILE")]
    pub service_config: Option<PathBuf>,
    /// Taken for the sake of scripts, without effect
    #[arg(long, hide = true)]
    pub verbose: bool,
}

/// Runs the command. Errors: those of the files, with their names.
pub fn run_turbo(arguments: &TurboArguments) -> Result<()> {
    let TurboArguments { tar, config, gz_index_path, .. } = arguments;
    check_service(arguments.service_config.as_deref())?;
    if arguments.export {
        return export::run(&export::Arguments {
            tar: tar.clone(),
            output: config.clone(),
            gz_index_path: gz_index_path.clone(),
        });
    }
    let flavour = arguments.fstype.unwrap_or_default();
    // Before the index is written.
    DeviceOptions { flavour, virtual_bytes: DeviceOptions::TURBO_BYTES }.check()?;
    let config = read_config(config)?;
    let how = How { flavour, mkfs: arguments.mkfs, import: arguments.import, checksum: None };
    let is_gzip = !arguments.import && starts_as_gzip(tar)?;
    if is_gzip {
        require_other(gz_index_path, [tar.as_path()])?;
        config.paths().try_for_each(|file| require_other(gz_index_path, [file.as_path()]))?;
    }
    let applied = with_archive(tar, |source, plan| match is_gzip {
        true => {
            produce(gz_index_path, true, |index| apply::to_upper(&config, source, Some(index), &how, plan))
        }
        // The file for the index is not touched when there will be none.
        false => apply::to_upper(&config, source, None::<NewFile>, &how, plan),
    })?;
    if let Some(index) = &applied.index {
        let (path, size) = (gz_index_path.display(), HumanBytes(index.file_bytes));
        output::result(&format!("{path}: {size}, {} points\n", index.points))?;
    }
    shown(tar, &applied)
}

/// Runs the command as the upstream tool, whose device has an ext4 file system unless `--fstype` says otherwise. Errors:
/// also that no such file system is made.
pub fn run_turbo_tool(arguments: &TurboArguments) -> Result<()> {
    if arguments.fstype.is_none() && !arguments.export {
        let message = "an ext4 file system is asked for, which cannot be made; pass --fstype erofs";
        return Err(Error::new(Kind::NotImplemented, "overlaybd.ext4", message));
    }
    run_turbo(arguments)
}

/// Arguments of `plywood overlaybd convert`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  The lowest layer over an uncompressed archive:
    plywood overlaybd convert layer.tar overlaybd.commit
  One above the layers of a device:
    plywood overlaybd convert layer.tar overlaybd.commit --config below.json")]
pub struct ConvertArguments {
    /// The layer: an uncompressed tar archive, which the new layer refers to
    pub tar: PathBuf,
    /// File to write. An existing one is replaced once the new one is complete
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Directory for the files on the way: writable layer and configurations
    #[arg(long, value_name = "DIR", default_value = "tmp_conv")]
    pub workdir: PathBuf,
    /// Configuration of the device below, whose lowers count
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// File system of the device
    #[arg(long, value_name = "TYPE", default_value = "erofs")]
    pub fstype: Flavour,
    /// Size of the device in GiB, if there are no layers below
    #[arg(long, value_name = "GIB", default_value_t = DeviceOptions::TURBO_BYTES / GIB)]
    pub vsize: u64,
    /// TAR is the metadata of an archive
    #[arg(long)]
    pub import: bool,
}

/// Runs the command. Errors: those of the files, with their names.
pub fn run_convert(arguments: &ConvertArguments) -> Result<()> {
    let size = arguments.vsize.checked_mul(GIB);
    let virtual_bytes = size.ok_or_else(|| output::usage("--vsize is larger than a device can be"))?;
    let device = DeviceOptions { flavour: arguments.fstype, virtual_bytes };
    device.check()?;
    let config = arguments.config.as_deref().map(read_config).transpose()?.unwrap_or_default();
    require_other(&arguments.output, [arguments.tar.as_path()])?;
    config.paths().try_for_each(|file| require_other(&arguments.output, [file.as_path()]))?;
    let conversion = Conversion {
        workdir: arguments.workdir.clone(),
        config,
        device,
        import: arguments.import,
        output: arguments.output.clone(),
    };
    let (applied, written) =
        with_archive(&arguments.tar, |source, plan| apply::convert(&conversion, source, plan))?;
    let (path, size) = (arguments.output.display(), HumanBytes(written.file_bytes));
    output::result(&format!("{path}: {size}\n"))?;
    shown(&arguments.tar, &applied)
}

fn shown(tar: &Path, applied: &Applied) -> Result<()> {
    let (from, nodes) = (HumanBytes(applied.facts.stream_bytes), HumanCount(applied.nodes));
    output::result(&format!("{}: {from} applied, {nodes} inodes on the device now\n", tar.display()))
}

/// Opens the archive at `tar`, and passes it to `work` with what a command may use.
fn with_archive<T>(tar: &Path, work: impl FnOnce(Source<'_>, Plan<'_>) -> Result<T>) -> Result<T> {
    let (mut input, size_bytes) = open(tar)?;
    let resources = Resources::new(Limits::without_reserve(), Helpers::default_threads());
    let (cancel, progress) = (Cancel::new(), Progress::expecting(size_bytes));
    let lease = resources.budget.lease(&cancel)?;
    let plan =
        Plan { resources: &resources, lease: &lease, work: Work { cancel: &cancel, progress: &progress } };
    let source = Source { reader: &mut input, size_bytes, digest: None };
    let _bar = Bar::show(&progress);
    work(source, plan).map_err(|error| error.context(format!("apply {}", tar.display())))
}

/// The archive, as bytes from its start on, and how many there are, if that is known.
fn open(path: &Path) -> Result<(Box<dyn Read>, Option<u64>)> {
    let file = open_file(path)?;
    if !file.metadata().map_err(|error| unreadable(&error, path))?.is_file() {
        return Ok((Box::new(file), None));
    }
    let archive = Blob::target(file)?;
    let size_bytes = archive.size_bytes();
    Ok((Box::new(Sequential::new(archive)), Some(size_bytes)))
}

/// Whether the file is a gzip blob. A pipe is read once, so its index would be written to a file that may not be needed:
/// it counts as one that is not.
fn starts_as_gzip(path: &Path) -> Result<bool> {
    let file = open_file(path)?;
    if !file.metadata().map_err(|error| unreadable(&error, path))?.is_file() {
        return Ok(false);
    }
    let mut head = Vec::new();
    file.take(Coding::PREFIX_LEN as u64).read_to_end(&mut head).map_err(|error| unreadable(&error, path))?;
    Ok(Coding::detect(&head) == Coding::Gzip)
}

fn open_file(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| unreadable(&error, path))
}

fn unreadable(error: &io::Error, path: &Path) -> Error {
    output::unreadable(error, "overlaybd.input").context(path.display().to_string())
}

fn read_config(path: &Path) -> Result<ImageConfig> {
    ImageConfig::read(open_file(path)?).map_err(|error| error.context(path.display().to_string()))
}

fn check_service(path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    ServiceConfig::read(open_file(path)?).map(drop).map_err(|error| error.context(path.display().to_string()))
}
