//! `plywood apply`: converts a layer from a file or a pipe into an image, with the daemon's pipeline.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use indicatif::{HumanBytes, HumanCount};
use serde_json::json;

use super::{
    files::require_other,
    image, output,
    report::{self, Bar},
    stack::{Reading, Spelled},
};
use crate::{
    apply::{
        Applied, ApplyError, Asked, Converter, Layer, Options, Overlaybd, Parents, Processors, Stats, choose,
    },
    call::{Cancel, Progress, Work},
    config::{self, DecodeAhead},
    digest::Digest,
    error::{Classify as _, Error, Kind, Quoted, Result},
    format::{
        erofs::{BlockBits, writer::WriteOptions},
        ztoc::{Ztoc, ZtocError},
    },
    kind::{
        self, Container, LayerType, OCI_LAYER_TAR,
        sniff::{self, Head},
    },
    limits::Limits,
    pipeline::{Resources, helpers::Helpers},
    processor::{Broker, Setup},
    snapshot::{Durability, LAYER, Publication},
};

/// Arguments of `plywood apply`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Make a mountable image of a layer, and mount it:
    plywood apply layer.tar.gz -o layer.erofs && mount -t erofs layer.erofs /mnt
  From a pipe, for a script:
    zcat layer.tar.gz | plywood apply - -o layer.erofs --json
  Only if it is the blob that a manifest names:
    plywood apply blob --digest sha256:... -o layer.erofs
  Through the stream processors of a configuration:
    type=application/vnd.oci.image.layer.v1.tar+xz
    plywood apply layer.tar.xz -o layer.erofs --media-type $type \\
      --processors /etc/plywood/config.toml")]
pub struct Arguments {
    /// The layer: a tar archive or an EROFS image, plain or compressed; "-" reads standard input
    pub layer: PathBuf,
    /// File for the image. An existing one is replaced once the new one is complete
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Media type of the layer. Without it, the first bytes of the layer decide
    #[arg(long, value_name = "TYPE")]
    pub media_type: Option<String>,
    /// File with the table [stream_processors], such as Plywood's configuration or containerd's: a layer of a type that
    /// one accepts goes through it, as in the daemon
    #[arg(long, value_name = "FILE", requires = "media_type")]
    pub processors: Option<PathBuf>,
    /// Fail unless the input has this digest, before any decompression
    #[arg(long, value_name = "ALGORITHM:HEX")]
    pub digest: Option<Digest>,
    /// Block size of the image, in bytes: 512, 1024, 2048 or 4096
    #[arg(long, value_name = "BYTES", default_value = "4096", value_parser = block_bits)]
    pub block_size: BlockBits,
    /// Store a file, or the end of one, beside its inode if it is no longer than this, in bytes. At most one block
    /// [default: 1024]
    #[arg(long, value_name = "BYTES")]
    pub inline_limit: Option<u16>,
    /// Layer below this one: a directory or an image. Repeat it for further ones, newest first. A directory that the
    /// archive uses without listing it gets its owner, mode, time and attributes from there. Without --parent, it
    /// belongs to root
    #[arg(long = "parent", value_name = "LAYER")]
    pub parents: Vec<PathBuf>,
    /// Read the overlayfs marks of parent directories from user.overlay.*, as with overlayfs's option userxattr.
    /// Only root can read the usual trusted.overlay.*
    #[arg(long, requires = "parents")]
    pub user_xattr: bool,
    /// Whether threads that use idle processors decode a large gzip or zstd layer ahead. The image is the same either way
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pub decode_ahead: DecodeAhead,
    /// SOCI's index (zTOC) of a gzip layer: threads that decode ahead start where it says, without a search. The image is the
    /// same either way; a layer that it does not fit is applied without it, with a warning
    #[arg(long, value_name = "FILE")]
    pub ztoc: Option<PathBuf>,
    /// Write the image through to the disk before the command ends
    #[arg(long)]
    pub sync: bool,
    /// Print the result as a JSON object
    #[arg(long)]
    pub json: bool,
}

fn block_bits(text: &str) -> Result<BlockBits, String> {
    let bytes: u64 = text.parse().map_err(|error: std::num::ParseIntError| error.to_string())?;
    (9..=12)
        .filter_map(BlockBits::new)
        .find(|bits| bits.size() == bytes)
        .ok_or_else(|| "not 512, 1024, 2048 or 4096".to_owned())
}

/// Converts the layer and prints the result. Errors: those of the conversion, with the names of layer and output.
pub fn run(arguments: &Arguments) -> Result<()> {
    let applied = apply(arguments).map_err(|error| {
        error.context(format!("apply {} to {}", arguments.layer.display(), arguments.output.display()))
    })?;
    output::result(&match arguments.json {
        true => format!("{:#}\n", as_json(&applied)),
        false => for_people(&arguments.output, &applied),
    })
}

fn apply(arguments: &Arguments) -> Result<Applied> {
    if arguments.output.as_os_str() == "-" {
        // Blocks of an image are written out of order, and read back at the end.
        return Err(output::usage("-o -: an image cannot be written to a pipe, only to a file"));
    }
    let block_bytes = arguments.block_size.size();
    if let Some(limit) = arguments.inline_limit.filter(|limit| u64::from(*limit) > block_bytes) {
        return Err(output::usage(format!(
            "--inline-limit: {limit} bytes are more than one block of {block_bytes} bytes"
        )));
    }
    let Opened { mut input, file, size_bytes } = open(&arguments.layer)?;
    let mut prefix = Vec::new();
    let unreadable = |error: io::Error| unreadable(&arguments.layer, &error);
    input.by_ref().take(sniff::HEAD_BYTES).read_to_end(&mut prefix).map_err(unreadable)?;
    let head = Head::of(&prefix, Limits::default().zstd_window_bytes);
    if head.is_empty() && arguments.digest.is_none() {
        return Err(Error::new(Kind::Malformed, "apply.empty", EMPTY));
    }
    let (layer_type, chain) = match &arguments.media_type {
        Some(media_type) => processors(arguments.processors.as_deref())?
            .way(media_type, &BTreeMap::new())
            .ok_or_else(|| {
                output::usage(format!(
                    "--media-type {media_type}: not the media type of a layer that can be applied"
                ))
            })?,
        None => (detect(&head)?, None),
    };
    // The output is one file, so every strategy that publishes just one will do.
    let none = BTreeMap::new();
    let asked = Asked {
        layer_type,
        annotations: &none,
        labels: &none,
        accepted: &[&LAYER],
        overlaybd: &Overlaybd::default(),
    };
    let strategy = choose(&asked).ok_or_else(|| ApplyError::Snapshot(layer_type.media_type.to_owned()))?;
    require_other(
        &arguments.output,
        arguments.parents.iter().chain([&arguments.layer]).chain(&arguments.ztoc).map(PathBuf::as_path),
    )?;
    let index = match &arguments.ztoc {
        Some(path) => Some((path, image::open_file(path).map_err(|error| of_ztoc(path, error))?)),
        None => None,
    };
    let ztoc = match &index {
        Some((path, file)) => Some(Ztoc::read(file).map_err(|error| of_ztoc(path, error.into()))?),
        None => None,
    };
    let publication = Publication::beside(&arguments.output)?;
    let options = Options {
        image: WriteOptions {
            block_bits: arguments.block_size,
            inline_limit: arguments.inline_limit.unwrap_or(WriteOptions::DEFAULT.inline_limit),
        },
        durability: Durability::Request,
        ..Options::default()
    };
    let resources = Resources::with_ahead(
        Limits::default(),
        Helpers::default_threads(),
        arguments.decode_ahead.options(),
    );
    let converter = Converter::new(options, resources);
    let reading = Reading { devices: &[], user_xattr: arguments.user_xattr };
    // Opened now, so that a misspelt name is an error even for a layer that needs no parent.
    let below = Cell::new(Spelled::of(&arguments.parents).open(reading)?);
    let parents = || Ok(below.take());
    let layer = Layer {
        layer_type,
        annotations: &none,
        reader: &mut prefix.chain(input),
        file: file.as_ref(),
        size_bytes,
        digest: arguments.digest.clone(),
        chain: chain.as_ref(),
        ztoc: ztoc.as_ref(),
        parents: Some(Parents { open: &parents, required: true }),
        device: None,
        target_bytes: None,
    };
    let (cancel, progress) = (Cancel::new(), Progress::expecting(size_bytes));
    let work = Work { cancel: &cancel, progress: &progress };
    let _bar = Bar::show(&progress);
    let applied = converter.convert(work, strategy, layer, publication, arguments.sync)?;
    if let (Some((path, _)), Some(ztoc)) = (&index, &ztoc)
        && let Some(misfit) = misfit(ztoc, &applied.stats)
    {
        let (path, reason) = (path.display(), misfit.reason());
        output::note(&format!("plywood: warning: {path} does not fit the layer: {misfit} [{reason}]"));
    }
    Ok(applied)
}

/// An error of the zTOC at `path`.
fn of_ztoc(path: &Path, error: Error) -> Error {
    error.context(format!("zTOC {}", path.display()))
}

/// The first thing about the layer that is not as its zTOC says, if there is one.
fn misfit(ztoc: &Ztoc<'_>, stats: &Stats) -> Option<ZtocError> {
    let (stored, found) = (ztoc.blob_bytes(), stats.blob_bytes);
    if stored != found {
        return Some(ZtocError::BlobSize { stored, found });
    }
    stats.ahead.misfit.map(|place| ZtocError::Place { bit: place.0 })
}

/// The processors of `file`, which are started as by the daemon. Programs of the user's own are run as well.
fn processors(file: Option<&Path>) -> Result<Processors> {
    let Some(file) = file else { return Ok(Processors::default()) };
    let processors = config::read_processors(file)?;
    let routes = config::routes(&processors).map_err(|error| {
        Error::new(Kind::Malformed, "config.value", format!("stream_processors: {error}"))
    })?;
    let limits = config::Limits::default();
    let setup = Setup {
        processors,
        user: rustix::process::geteuid().as_raw(),
        memory_bytes: limits.processor_memory_bytes,
        cpu_seconds: limits.processor_cpu_seconds,
        sandbox: true,
        log: config::Log { level: "warn".to_owned(), ..config::Log::default() },
    };
    Ok(Processors::new(routes, Broker::launch(&setup)?))
}

/// The layer named on the command line, opened.
struct Opened {
    input: Box<dyn Read>,
    /// The layer's file, if it is a regular one.
    file: Option<File>,
    size_bytes: Option<u64>,
}

fn open(path: &Path) -> Result<Opened> {
    if path.as_os_str() == "-" {
        return Ok(Opened { input: Box::new(io::stdin().lock()), file: None, size_bytes: None });
    }
    let unreadable = |error: io::Error| unreadable(path, &error);
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Ok(Opened { input: Box::new(file), file: None, size_bytes: None });
    }
    let whole = file.try_clone().map_err(unreadable)?;
    Ok(Opened { input: Box::new(file), file: Some(whole), size_bytes: Some(metadata.len()) })
}

fn unreadable(layer: &Path, error: &io::Error) -> Error {
    output::unreadable(error, "apply.input").context(format!("layer {}", layer.display()))
}

/// Returns the type of a layer that was given none. Errors: the archive holds a whole image.
fn detect(head: &Head) -> Result<&'static LayerType> {
    let found = head.layer_type();
    let is_tar = found.is_some_and(|found| found.container == Container::Tar);
    if let Some(name) = head.part_of_an_image().filter(|_| is_tar) {
        let message = format!(
            "this is an archive of a whole image (it holds {}), not a layer; unpack it and apply the layers \
             in it, or take it as a layer with --media-type {OCI_LAYER_TAR}",
            Quoted(&name),
        );
        return Err(Error::new(Kind::Malformed, "apply.image-archive", message));
    }
    Ok(found.unwrap_or(kind::DEFAULT))
}

/// Message for an empty input. An empty layer is legal, but far more often the command in front of the pipe failed.
const EMPTY: &str =
    "the input is empty, as after a failed download; with --digest an empty layer is accepted";

fn as_json(applied: &Applied) -> serde_json::Value {
    let stats = &applied.stats;
    json!({
        "media_type": applied.descriptor.media_type,
        "diff_id": applied.descriptor.digest.to_string(),
        "blob_digest": stats.blob.to_string(),
        "blob_bytes": stats.blob_bytes,
        "uncompressed_bytes": applied.descriptor.size_bytes,
        "coding": stats.coding.as_str(),
        "image_bytes": stats.image_bytes,
        "nodes": stats.contents.nodes,
        "whiteouts": stats.contents.whiteouts,
        "dropped_xattrs": stats.contents.dropped_xattrs,
        "implied_directories": stats.contents.implied_directories,
        "inherited_directories": stats.contents.inherited_directories,
        "decoded_ahead": {
            "used": stats.ahead.used,
            "late": stats.ahead.late,
            "missed": stats.ahead.missed,
            "bytes": stats.ahead.bytes,
            "indexed": stats.ahead.indexed,
        },
        "seconds": report::seconds(stats.times.steps(), stats.total),
    })
}

fn for_people(output: &Path, applied: &Applied) -> String {
    let stats = &applied.stats;
    let mut text = format!(
        "{}: {} from {} of {} ({} uncompressed)\n",
        output.display(),
        HumanBytes(stats.image_bytes),
        HumanBytes(stats.blob_bytes),
        stats.coding.as_str(),
        HumanBytes(applied.descriptor.size_bytes),
    );
    if stats.contents.nodes > 0 {
        let contents = &stats.contents;
        text += &format!("nodes   {}", HumanCount(contents.nodes));
        if contents.whiteouts > 0 {
            text += &format!(", {} of them whiteouts", HumanCount(contents.whiteouts));
        }
        if contents.dropped_xattrs > 0 {
            text += &format!("; {} extended attributes left out", HumanCount(contents.dropped_xattrs));
        }
        if contents.implied_directories > 0 {
            let [implied, inherited] =
                [contents.implied_directories, contents.inherited_directories].map(HumanCount);
            text += &format!("; implied directories: {implied}, {inherited} of them like those below");
        }
        text.push('\n');
    }
    text += &report::last_lines(&applied.descriptor.digest, &stats.blob, stats.times.steps(), stats.total);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_those_that_every_machine_mounts() {
        for (text, bits) in [("512", Some(9)), ("4096", Some(12)), ("8192", None), ("0", None), ("4k", None)]
        {
            assert_eq!(block_bits(text).ok(), bits.and_then(BlockBits::new), "{text}");
        }
    }
}
