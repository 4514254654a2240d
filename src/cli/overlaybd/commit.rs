//! `plywood overlaybd commit` and `seal`: make a read-only layer of a writable one.
//!
//! Also `overlaybd-commit`, with the arguments of the upstream tool.

use std::path::PathBuf;

use indicatif::HumanBytes;

use super::{
    create::uuid_or_none,
    produce::produce,
    zfile::{algorithm, block_size},
};
use crate::{
    call::{Cancel, Phase, Progress, Work},
    cli::{files::require_other, output, report::Bar},
    error::Result,
    format::{
        lsmt::{CommitOptions, Targets, Uuid},
        zfile::{
            block::{Algorithm, BlockSize},
            writer::Options,
        },
    },
    overlaybd::{
        device,
        life::{self, Commit, Pair},
        wrap::Wrapping,
    },
    pipeline::helpers::Helpers,
    view::LayeredDevice,
};

/// Arguments of `plywood overlaybd commit`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Make a layer for a registry:
    plywood overlaybd commit -z -t data index layer.tar
  Of a sealed one:
    plywood overlaybd commit --commit_sealed overlaybd.sealed overlaybd.commit
  In a directory, to another one, with the usual names:
    plywood overlaybd commit dir other")]
pub struct Arguments {
    /// Data file, index file, and the file to write. Or a directory with a writable layer, and one for the new layer
    #[arg(value_names = ["DATA", "INDEX", "OUT"], num_args = 2..=3, required = true)]
    pub files: Vec<PathBuf>,
    /// Compress the layer in a ZFile
    #[arg(short = 'z')]
    pub compress: bool,
    /// With -z: put the ZFile into a tar archive, as registries take it
    #[arg(short = 't')]
    pub tar: bool,
    /// Replace an existing OUT
    #[arg(short = 'f')]
    pub force: bool,
    /// Compression
    #[arg(long, default_value = "lz4", value_parser = algorithm)]
    pub algorithm: Algorithm,
    /// KiB in a block: 4, 8, 16, 32 or 64
    #[arg(long = "bs", value_name = "KIB", default_value = "4", value_parser = block_size)]
    pub block_size: BlockSize,
    /// Identity of the layer
    #[arg(long, value_name = "UUID")]
    pub uuid: Option<String>,
    /// Identity of the layer below
    #[arg(short = 'p', long = "parent-uuid", value_name = "UUID")]
    pub parent_uuid: Option<String>,
    /// Text for the layer's header, at most 256 bytes
    #[arg(short = 'm', value_name = "TAG", default_value = "", hide_default_value = true)]
    pub user_tag: String,
    /// The files are those of a turboOCI layer
    #[arg(long = "turboOCI", visible_alias = "fastoci", conflicts_with_all = ["seal", "sealed"])]
    pub turbo: bool,
    /// Make DATA itself a read-only layer; it takes DATA and INDEX
    #[arg(long)]
    pub seal: bool,
    /// The layer is sealed; it takes DATA and OUT
    #[arg(long = "commit_sealed", conflicts_with = "seal")]
    pub sealed: bool,
    /// Threads that compress
    #[arg(long = "compress_threads", value_name = "N")]
    pub threads: Option<usize>,
    /// Taken for the sake of scripts, without effect
    #[arg(long, hide = true)]
    pub verbose: bool,
}

/// Runs the command. Errors: those of the files, with their names.
pub fn run(arguments: &Arguments) -> Result<()> {
    let [first, second, third @ ..] = arguments.files.as_slice() else {
        return Err(output::usage("a layer and a file to write are needed"));
    };
    if arguments.seal {
        return seal(&arguments.files);
    }
    if arguments.tar && !arguments.compress {
        output::note("plywood: -t has an effect with -z only");
    }
    let zfile = arguments
        .compress
        .then_some(Options { algorithm: arguments.algorithm, block_size: arguments.block_size });
    let helpers = Helpers::new(match arguments.threads {
        // The command's own thread compresses as well.
        Some(threads) => threads.saturating_sub(1).min(Helpers::default_threads()),
        None => Helpers::default_threads(),
    });
    let how = Commit {
        options: CommitOptions {
            uuid: uuid_or_none(arguments.uuid.as_deref()).unwrap_or(Uuid::NULL),
            parent_uuid: uuid_or_none(arguments.parent_uuid.as_deref()),
            user_tag: arguments.user_tag.clone().into_bytes(),
            targets: if arguments.turbo { Targets::Keep } else { Targets::Store },
        },
        wrapping: Wrapping { zfile, tar: arguments.tar && arguments.compress },
        helpers: &helpers,
    };
    let (cancel, progress) = (Cancel::new(), Progress::default());
    let work = Work { cancel: &cancel, progress: &progress };
    if first.is_dir() {
        if !third.is_empty() {
            return Err(output::usage(
                "a directory takes the place of both files of a layer, and OUT is a directory too",
            ));
        }
        let _bar = Bar::show(&progress);
        let written = life::commit(first, second, arguments.sealed, &how, work)?;
        let file = second.join("overlaybd.commit");
        return output::result(&format!("{}: {}\n", file.display(), HumanBytes(written.file_bytes)));
    }
    let (inputs, out) = match (arguments.sealed, third) {
        (true, []) => (vec![first.as_path()], second),
        (false, [out]) => (vec![first.as_path(), second], out),
        (true, _) => return Err(output::usage("--commit_sealed takes a sealed file and a file to write")),
        (false, _) => return Err(output::usage("a data file, an index file and a file to write are needed")),
    };
    require_other(out, inputs)?;
    let layer = match arguments.sealed {
        true => life::read_only(first)?,
        false => Pair { data: first.clone(), index: second.clone() }.layer(arguments.turbo)?,
    };
    let device = LayeredDevice::new(vec![layer])?;
    progress.begin(Phase::Transfer, Some(device::data_bytes(&device)));
    let bar = Bar::show(&progress);
    let (_, written) = produce(out, arguments.force, |file| how.write(&device, file, work))
        .map_err(|error| error.context(format!("commit {}", first.display())))?;
    drop(bar);
    let (to, from) = (HumanBytes(written.file_bytes), HumanBytes(written.contents_bytes));
    output::result(&match zfile {
        Some(options) => format!("{}: {to} of {}, {from} uncompressed\n", out.display(), options.algorithm),
        None => format!("{}: {to}\n", out.display()),
    })
}

/// Arguments of `plywood overlaybd seal`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Make a data file a read-only layer; its index file is not needed any more:
    plywood overlaybd seal data index
  In a directory, to another one, with the usual names:
    plywood overlaybd seal dir other")]
pub struct SealArguments {
    /// Data file and index file. Or a directory with a writable layer, and one for the sealed layer
    #[arg(value_names = ["DATA", "INDEX"], num_args = 2, required = true)]
    pub files: Vec<PathBuf>,
}

/// Runs the command. Errors: those of the files, with their names.
pub fn run_seal(arguments: &SealArguments) -> Result<()> {
    seal(&arguments.files)
}

fn seal(files: &[PathBuf]) -> Result<()> {
    let [first, second] = files else {
        return Err(output::usage("a data file and an index file are needed"));
    };
    let sealed = if first.is_dir() {
        life::seal(first, second)?;
        second.join("overlaybd.sealed")
    } else {
        Pair { data: first.clone(), index: second.clone() }.seal()?;
        first.clone()
    };
    output::result(&format!("{}: sealed\n", sealed.display()))
}
