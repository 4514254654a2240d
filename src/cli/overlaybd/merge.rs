//! `plywood overlaybd merge` and `flatten`: one layer, or one plain file, of all layers of a device.
//!
//! Also `overlaybd-merge`, with the arguments of the upstream tool.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use indicatif::HumanBytes;

use super::produce::produce;
use crate::{
    call::{Cancel, Phase, Progress, Work},
    cli::{output, report::Bar},
    error::{Error, Result},
    format::{ReadAt as _, lsmt::CommitOptions, zfile::writer::Options},
    overlaybd::{
        config::{Files, ImageConfig, LowerFiles, Mode, ServiceConfig, anywhere},
        device,
        life::Commit,
        wrap::Wrapping,
    },
    pipeline::helpers::Helpers,
    view::LayeredDevice,
};

/// Arguments of `plywood overlaybd merge`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  One compressed layer of all layers of a device:
    plywood overlaybd merge config.v1.json merged.zfile")]
pub struct Arguments {
    /// Configuration of the device: config.v1.json
    #[arg(value_name = "CONFIG")]
    pub config: PathBuf,
    /// File to write. An existing one is replaced once the new one is complete
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Compress the layer in a ZFile
    #[arg(
        long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set
    )]
    pub compress: bool,
    /// Put it into a tar archive, as registries take it
    #[arg(short = 't')]
    pub tar: bool,
    /// Configuration of the service; it is checked, and has nothing that is needed here
    #[arg(long = "service_config_path", value_name = "FILE")]
    pub service_config: Option<PathBuf>,
    /// Taken for the sake of scripts, without effect
    #[arg(long, hide = true)]
    pub verbose: bool,
}

/// Runs the command. Errors: those of the files, with their names.
pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(path) = &arguments.service_config {
        ServiceConfig::read(open(path)?).map_err(|error| named(error, path))?;
    }
    let path = &arguments.config;
    let config = read_config(path)?;
    let device = opened(&config);
    config.report(&device)?;
    let device = device.map_err(|error| named(error, path))?;
    let helpers = Helpers::new(Helpers::default_threads());
    let zfile = arguments.compress.then(Options::default);
    let how = Commit {
        options: CommitOptions::default(),
        wrapping: Wrapping { zfile, tar: arguments.tar },
        helpers: &helpers,
    };
    let written = shown(&device, |work| {
        let (_, written) = produce(&arguments.output, true, |file| how.write(&device, file, work))?;
        Ok(written)
    })?;
    let layers = device.layers().len();
    let (path, bytes) = (arguments.output.display(), HumanBytes(written.file_bytes));
    output::result(&format!("{path}: {bytes}, of {layers} layers\n"))
}

/// Arguments of `plywood overlaybd flatten`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  The device of two layers as a file, to be mounted through a loop device:
    plywood overlaybd flatten bottom.tar top.tar -o device.img
  The device of a snapshot, with its targets and its writable layer:
    plywood overlaybd flatten --config config.v1.json -o device.img")]
pub struct FlattenArguments {
    /// Read-only layers, the bottom one first, whatever is around them
    #[arg(value_name = "LOWER", required_unless_present = "config", conflicts_with = "config")]
    pub lowers: Vec<PathBuf>,
    /// Configuration of the device: config.v1.json. Layers with data in a target need one
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// File to write, with holes. An existing one is replaced once the new one is complete
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
}

/// Runs the command. Errors: those of the files, with their names.
pub fn run_flatten(arguments: &FlattenArguments) -> Result<()> {
    let device = match &arguments.config {
        Some(config) => configured(config)?,
        None => {
            let lowers = arguments.lowers.iter().enumerate().map(|(number, path)| {
                let name = format!("lower {}, {}", number + 1, path.display());
                Ok(LowerFiles { name, layer: open(path)?, target: None })
            });
            device::open(Files { lowers: lowers.collect::<Result<_>>()?, upper: None })?
        }
    };
    shown(&device, |work| produce(&arguments.output, true, |file| device::flatten(&device, file, work)))?;
    let (path, data) = (arguments.output.display(), HumanBytes(device::data_bytes(&device)));
    output::result(&format!("{path}: {}, {data} of it mapped\n", HumanBytes(device.size_bytes())))
}

/// Opens the device that a configuration describes.
pub(super) fn configured(path: &Path) -> Result<LayeredDevice> {
    opened(&read_config(path)?).map_err(|error| named(error, path))
}

fn read_config(path: &Path) -> Result<ImageConfig> {
    ImageConfig::read(open(path)?).map_err(|error| named(error, path))
}

fn opened(config: &ImageConfig) -> Result<LayeredDevice> {
    config.open(&anywhere, Mode::Read).and_then(device::open)
}

/// Runs work on a device behind a progress bar.
fn shown<T>(device: &LayeredDevice, work: impl FnOnce(Work<'_>) -> Result<T>) -> Result<T> {
    let (cancel, progress) = (Cancel::new(), Progress::default());
    progress.begin(Phase::Transfer, Some(device::data_bytes(device)));
    let _bar = Bar::show(&progress);
    work(Work { cancel: &cancel, progress: &progress })
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| named(output::unreadable(&error, "overlaybd.input"), path))
}

fn named(error: Error, path: &Path) -> Error {
    error.context(path.display().to_string())
}
