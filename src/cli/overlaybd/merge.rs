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
    cli::{
        files::{open_regular, require_other},
        output,
        report::Bar,
    },
    error::{Error, Result},
    format::{ReadAt as _, lsmt::CommitOptions, zfile::writer::Options},
    overlaybd::{
        config::{Files, ImageConfig, LowerFiles, Mode, ServiceConfig, TargetFiles, anywhere},
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
    config.paths().try_for_each(|file| require_other(&arguments.output, [file.as_path()]))?;
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
  The same of turboOCI layers, whose data is in the layers they were made of:
    plywood overlaybd flatten fs.meta --target 1=layer.tar.gz \\
      --gzip-index 1=gzip.meta -o device.img
  The device of a snapshot, with its targets and its writable layer:
    plywood overlaybd flatten --config config.v1.json -o device.img")]
pub struct FlattenArguments {
    /// Read-only layers, the bottom one first, whatever is around them
    #[arg(value_name = "LOWER", required_unless_present = "config", conflicts_with = "config")]
    pub lowers: Vec<PathBuf>,
    /// Configuration of the device: config.v1.json
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Layer that the data of the Nth LOWER is in, counted from 1: a plain tar archive, or a gzip blob with --gzip-index
    #[arg(long, value_name = "N=FILE", value_parser = numbered, conflicts_with = "config")]
    pub target: Vec<(usize, PathBuf)>,
    /// Index of the Nth target, gzip.meta, if that is a gzip blob
    #[arg(long, value_name = "N=FILE", value_parser = numbered, conflicts_with = "config")]
    pub gzip_index: Vec<(usize, PathBuf)>,
    /// File to write, with holes. An existing one is replaced once the new one is complete
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
}

/// Runs the command. Errors: those of the files, with their names.
pub fn run_flatten(arguments: &FlattenArguments) -> Result<()> {
    let device = match &arguments.config {
        Some(config) => configured(config, &arguments.output)?,
        None => {
            let further = arguments.target.iter().chain(&arguments.gzip_index).map(|(_, path)| path);
            require_other(&arguments.output, arguments.lowers.iter().chain(further).map(PathBuf::as_path))?;
            device::open(lowers(arguments)?)?
        }
    };
    shown(&device, |work| produce(&arguments.output, true, |file| device::flatten(&device, file, work)))?;
    let (path, data) = (arguments.output.display(), HumanBytes(device::data_bytes(&device)));
    output::result(&format!("{path}: {}, {data} of it mapped\n", HumanBytes(device.size_bytes())))
}

/// Opens the lowers of the command line, with their targets.
fn lowers(arguments: &FlattenArguments) -> Result<Files> {
    let FlattenArguments { lowers, target: targets, gzip_index: indexes, .. } = arguments;
    let of = |files: &[(usize, PathBuf)], number| {
        files.iter().rfind(|(of, _)| *of == number).map(|(_, path)| path.clone())
    };
    for (number, path) in targets.iter().chain(indexes) {
        let what = match number {
            0 => "lower",
            number if *number > lowers.len() => "lower",
            number if of(targets, *number).is_none() => "target",
            _ => continue,
        };
        return Err(output::usage(format!("{number}={}: there is no such {what}", path.display())));
    }
    let lowers = (1..).zip(lowers).map(|(number, path)| {
        let target = of(targets, number).map(|path| {
            let name = format!("target of lower {number}, {}", path.display());
            let gzip_index = of(indexes, number).map(|path| open_layer(&path)).transpose()?;
            Ok::<_, Error>(TargetFiles { name, file: open_layer(&path)?, gzip_index })
        });
        let name = format!("lower {number}, {}", path.display());
        Ok(LowerFiles { name, layer: open_layer(path)?, target: target.transpose()? })
    });
    Ok(Files { lowers: lowers.collect::<Result<_>>()?, upper: None })
}

/// Reads `N=FILE`.
fn numbered(text: &str) -> std::result::Result<(usize, PathBuf), String> {
    let (number, path) = text.split_once('=').ok_or("not N=FILE")?;
    let number =
        number.parse().map_err(|_not_a_number| format!("{number:?} is not the number of a lower"))?;
    Ok((number, path.into()))
}

/// Opens the device that a configuration describes. Errors: also when the `output` is one of its files.
pub(super) fn configured(path: &Path, output: &Path) -> Result<LayeredDevice> {
    let config = read_config(path)?;
    config.paths().try_for_each(|file| require_other(output, [file.as_path()]))?;
    opened(&config).map_err(|error| named(error, path))
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

fn open_layer(path: &Path) -> Result<File> {
    open_regular(path, "overlaybd.input").map_err(|error| named(error, path))
}

fn named(error: Error, path: &Path) -> Error {
    error.context(path.display().to_string())
}
