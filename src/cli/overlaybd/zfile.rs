//! `plywood overlaybd zfile`: compresses a file in blocks, extracts one, or verifies one.
//!
//! Also `overlaybd-zfile`, with the arguments of the upstream tool.

use std::{
    fs::File,
    io::{self, Read as _},
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
    error::{Error, Kind, Result},
    format::{
        ReadAt, Sink,
        zfile::{
            block::{Algorithm, BlockSize},
            writer::Options,
        },
    },
    overlaybd::{
        blob::Blob,
        wrap::{self, Wrapping},
    },
    pipeline::helpers::Helpers,
};

/// Bytes read and written at a time.
const PIECE: usize = 1 << 20;

/// Arguments of `plywood overlaybd zfile`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Compress a layer, as a tar archive that a registry takes:
    plywood overlaybd zfile -t layer.lsmt layer.tar
  Extract what is in it:
    plywood overlaybd zfile -x layer.tar layer.lsmt
  Check every block:
    plywood overlaybd zfile --verify layer.tar")]
pub struct Arguments {
    /// File to compress, to extract or to verify. A tar archive around a ZFile is passed over
    #[arg(value_name = "SRC")]
    pub source: PathBuf,
    /// File to write, which must not exist
    #[arg(value_name = "DST", required_unless_present = "verify")]
    pub destination: Option<PathBuf>,
    /// Write a tar archive with the ZFile in it, as registries take it
    #[arg(short = 't')]
    pub tar: bool,
    /// Extract SRC
    #[arg(short = 'x')]
    pub extract: bool,
    /// Replace an existing DST
    #[arg(short = 'f')]
    pub force: bool,
    /// Check every block: of SRC if there is no DST, otherwise of the ZFile that was written or extracted
    #[arg(long)]
    pub verify: bool,
    /// Compression
    #[arg(long, default_value = "lz4", value_parser = algorithm)]
    pub algorithm: Algorithm,
    /// KiB in a block: 4, 8, 16, 32 or 64
    #[arg(long = "bs", value_name = "KIB", default_value = "4", value_parser = block_size)]
    pub block_size: BlockSize,
}

pub(super) fn algorithm(text: &str) -> Result<Algorithm, String> {
    [Algorithm::Lz4, Algorithm::Zstd]
        .into_iter()
        .find(|algorithm| algorithm.to_string() == text)
        .ok_or_else(|| "not lz4 or zstd".to_owned())
}

pub(super) fn block_size(text: &str) -> Result<BlockSize, String> {
    let kib = text.parse::<u32>().ok();
    let size = kib.and_then(|kib| kib.checked_mul(1024)).and_then(BlockSize::new);
    size.ok_or_else(|| "not 4, 8, 16, 32 or 64".to_owned())
}

/// Runs the command. Errors: those of the files, with their names.
pub fn run(arguments: &Arguments) -> Result<()> {
    let (cancel, progress) = (Cancel::new(), Progress::default());
    let work = Work { cancel: &cancel, progress: &progress };
    if let Some(destination) = &arguments.destination {
        require_other(destination, [arguments.source.as_path()])?;
    }
    let text = match &arguments.destination {
        None => verify(&arguments.source, work).map_err(|error| named(error, &arguments.source))?,
        Some(destination) if arguments.extract => {
            let bytes = produce(destination, arguments.force, |out| extract(&arguments.source, out, work))
                .map_err(|error| named(error, &arguments.source))?;
            format!("{}: {} extracted\n", destination.display(), HumanBytes(bytes))
        }
        Some(destination) => {
            let text = compress(arguments, destination, work)
                .map_err(|error| error.context(format!("compress {}", arguments.source.display())))?;
            if arguments.verify {
                verify(destination, work).map_err(|error| named(error, destination))?;
            }
            text
        }
    };
    output::result(&text)
}

fn named(error: Error, path: &Path) -> Error {
    error.context(path.display().to_string())
}

fn compress(arguments: &Arguments, destination: &Path, work: Work<'_>) -> Result<String> {
    let mut source = open(&arguments.source)?;
    begin(work, source.metadata().ok().map(|metadata| metadata.len()));
    let _bar = Bar::show(work.progress);
    let options = Options { algorithm: arguments.algorithm, block_size: arguments.block_size };
    let wrapping = Wrapping { zfile: Some(options), tar: arguments.tar };
    let helpers = Helpers::new(Helpers::default_threads());
    let ((), written) = produce(destination, arguments.force, |file| {
        wrap::write(&helpers, wrapping, file, |out| {
            let (mut buffer, mut done) = (vec![0; PIECE], 0);
            loop {
                work.cancel.check()?;
                let filled = match source.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(filled) => filled,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(output::unreadable(&error, "overlaybd.input")),
                };
                out.write_all(buffer.get(..filled).unwrap_or_default()).map_err(Error::disk)?;
                done += filled as u64;
                work.progress.set_done(done);
            }
        })
    })?;
    let (from, to) = (HumanBytes(written.contents_bytes), HumanBytes(written.file_bytes));
    Ok(format!("{}: {to} of {}, {from} uncompressed\n", destination.display(), options.algorithm))
}

/// Writes the contents of a ZFile to `out`. Returns their length.
fn extract(source: &Path, out: &mut impl Sink, work: Work<'_>) -> Result<u64> {
    each(source, work, |at, bytes| out.write_at(at, bytes).map_err(Error::disk)).and_then(|bytes| {
        out.set_len(bytes).map_err(Error::disk)?;
        Ok(bytes)
    })
}

fn verify(source: &Path, work: Work<'_>) -> Result<String> {
    let bytes = each(source, work, |_, _| Ok(()))?;
    Ok(format!("{}: sound, {} uncompressed\n", source.display(), HumanBytes(bytes)))
}

/// Passes the contents of a ZFile to `take`, piece by piece. Returns their length.
fn each(source: &Path, work: Work<'_>, mut take: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<u64> {
    let blob = Blob::layer(open_regular(source, "overlaybd.input")?)?;
    if !matches!(blob, Blob::Zfile(_)) {
        return Err(Error::new(Kind::Malformed, "zfile.magic", "this is not a ZFile"));
    }
    let end = blob.size_bytes();
    begin(work, Some(end));
    let _bar = Bar::show(work.progress);
    let (mut buffer, mut at) = (vec![0; PIECE], 0);
    while at < end {
        work.cancel.check()?;
        let len = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
        let piece = buffer.get_mut(..len).unwrap_or_default();
        blob.read_exact_at(at, piece).map_err(Error::disk)?;
        take(at, piece)?;
        at += len as u64;
        work.progress.set_done(at);
    }
    Ok(end)
}

fn begin(work: Work<'_>, total_bytes: Option<u64>) {
    work.progress.begin(Phase::Transfer, total_bytes);
}

fn open(path: &Path) -> Result<File> {
    let opened = File::open(path).map_err(|error| output::unreadable(&error, "overlaybd.input"))?;
    match opened.metadata() {
        Ok(metadata) if metadata.is_dir() => {
            Err(Error::new(Kind::Malformed, "overlaybd.input", "this is a directory"))
        }
        _ => Ok(opened),
    }
}
