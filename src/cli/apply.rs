//! `plywood apply`: a layer in a file, or from a pipe, becomes an image; the daemon's own pipeline.

use std::{
    cell::Cell,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use indicatif::{HumanBytes, HumanCount};
use serde_json::json;

use super::{
    output, report,
    stack::{Reading, Spelled},
};
use crate::{
    apply::{Applied, Converter, Layer, Options, Parents},
    call::Cancel,
    codec::Coding,
    digest::Digest,
    error::{Error, Kind, Quoted, Result},
    format::{
        erofs::{BlockBits, superblock::Superblock},
        tar::{Event, Parser},
    },
    kind::{LayerType, OCI_LAYER_TAR},
    pipeline::Progress,
    snapshot::{Durability, LayerFile},
};

/// As many bytes of the layer as are looked at to find out what it is: enough for the first block of a
/// zstd frame.
const PREFIX_LEN: u64 = 256 << 10;
/// As many of its uncompressed bytes: enough for the first names of an archive.
const PLAIN_LEN: usize = 256 << 10;
/// Where an image's superblock begins, in bytes.
const SUPERBLOCK_AT: usize = 1024;

/// Arguments of `plywood apply`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Make a mountable image of a layer, and mount it:
    plywood apply layer.tar.gz -o layer.erofs && mount -t erofs layer.erofs /mnt
  From a pipe, for a script:
    zcat layer.tar.gz | plywood apply - -o layer.erofs --json
  Only if it is the blob that a manifest names:
    plywood apply blob --digest sha256:... -o layer.erofs")]
pub struct Arguments {
    /// The layer: a tar archive or an EROFS image, plain or compressed; "-" reads standard input
    pub layer: PathBuf,
    /// File for the image. An existing one is replaced once the new one is complete
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Media type of the layer. Without it, the first bytes of the layer decide
    #[arg(long, value_name = "TYPE", value_parser = layer_type)]
    pub media_type: Option<LayerType>,
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
    /// Write the image through to the disk before the command ends
    #[arg(long)]
    pub sync: bool,
    /// Print the result as a JSON object
    #[arg(long)]
    pub json: bool,
}

fn layer_type(text: &str) -> Result<LayerType, String> {
    LayerType::of(text).ok_or_else(|| "not the media type of a layer that can be applied".to_owned())
}

fn block_bits(text: &str) -> Result<BlockBits, String> {
    let bytes: u64 = text.parse().map_err(|error: std::num::ParseIntError| error.to_string())?;
    (9..=12)
        .filter_map(BlockBits::new)
        .find(|bits| bits.size() == bytes)
        .ok_or_else(|| "not 512, 1024, 2048 or 4096".to_owned())
}

/// Runs the command.
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
    let defaults = Options::default();
    let block_bytes = arguments.block_size.size();
    if let Some(limit) = arguments.inline_limit.filter(|limit| u64::from(*limit) > block_bytes) {
        return Err(output::usage(format!(
            "--inline-limit: {limit} bytes are more than one block of {block_bytes} bytes"
        )));
    }
    let Opened { mut input, file, size_bytes } = open(&arguments.layer)?;
    let mut prefix = Vec::new();
    let unreadable = |error: io::Error| unreadable(&arguments.layer, &error);
    input.by_ref().take(PREFIX_LEN).read_to_end(&mut prefix).map_err(unreadable)?;
    let head = Head::of(&prefix);
    if head.is_whole && head.plain.is_empty() && arguments.digest.is_none() {
        return Err(Error::new(Kind::Malformed, "apply.empty", EMPTY));
    }
    let kind = match arguments.media_type {
        Some(kind) => kind,
        None => head.detect()?,
    };
    let image = LayerFile::beside(&arguments.output)?;
    let converter = Converter::new(Options {
        block_bits: arguments.block_size,
        inline_limit: arguments.inline_limit.unwrap_or(defaults.inline_limit),
        durability: Durability::Request,
        ..defaults
    });
    let reading = Reading { devices: &[], user_xattr: arguments.user_xattr };
    // Opened now: a misspelt one is an error even if the layer turns out to need none.
    let below = Cell::new(Spelled::of(&arguments.parents).open(reading)?);
    let parents = || Ok(below.take());
    let layer = Layer {
        kind,
        reader: &mut prefix.chain(input),
        file: file.as_ref(),
        size_bytes,
        digest: arguments.digest.clone(),
        parents: Some(Parents { open: &parents, required: true }),
    };
    let bar = report::progress_bar(size_bytes);
    let mut report = |progress: Progress| bar.set_position(progress.read_bytes);
    let applied = converter.convert(&Cancel::new(), layer, image, arguments.sync, &mut report);
    bar.finish_and_clear();
    applied
}

/// A layer as it was named on the command line.
struct Opened {
    input: Box<dyn Read>,
    /// The same, if it is a regular file, and its size in bytes.
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

/// An empty layer is legal, but a command in front of the pipe that failed is far more likely.
const EMPTY: &str =
    "the input is empty, as after a failed download; with --digest an empty layer is accepted";

/// The beginning of a layer.
struct Head {
    coding: Coding,
    /// The first uncompressed bytes; fewer if the stream is damaged.
    plain: Vec<u8>,
    /// The stream ends here, and ends well.
    is_whole: bool,
}

impl Head {
    /// Decompresses `prefix`, which holds the whole stream if it is shorter than [`PREFIX_LEN`].
    fn of(prefix: &[u8]) -> Self {
        let coding = Coding::detect(prefix);
        let mut head = Self { coding, plain: vec![0; PLAIN_LEN], is_whole: false };
        let (mut input, mut filled) = (prefix, 0);
        if let Ok(mut decoder) = coding.decoder(Options::default().limits.zstd_window_bytes) {
            while let Some(space) = head.plain.get_mut(filled..).filter(|space| !space.is_empty()) {
                match decoder.decode(&mut input, space) {
                    Ok(0) if input.is_empty() => {
                        let is_all = u64::try_from(prefix.len()).is_ok_and(|len| len < PREFIX_LEN);
                        head.is_whole = is_all && decoder.finish().is_ok();
                        break;
                    }
                    Ok(bytes) => filled += bytes,
                    Err(_damaged) => break,
                }
            }
        }
        head.plain.truncate(filled);
        head
    }

    /// Finds out what the layer is: an EROFS image when there is a superblock, plain or in zstd frames, else
    /// a tar archive. Errors: the archive holds an image with its layers, and so is none.
    fn detect(&self) -> Result<LayerType> {
        let superblock = self.plain.get(SUPERBLOCK_AT..);
        let is_image = superblock.is_some_and(|at| at.starts_with(&Superblock::MAGIC.to_le_bytes()));
        let media_type = match self.coding {
            Coding::Plain if is_image => "application/vnd.erofs.layer.v1",
            Coding::Zstd if is_image => "application/vnd.erofs.layer.v1+zstd",
            Coding::Plain | Coding::Gzip | Coding::Zstd => OCI_LAYER_TAR,
        };
        if media_type == OCI_LAYER_TAR
            && let Some(name) = self.part_of_an_image()
        {
            let message = format!(
                "this is an archive of a whole image (it holds {}), not a layer; unpack it and apply the layers \
                 in it, or take it as a layer with --media-type {OCI_LAYER_TAR}",
                Quoted(&name),
            );
            return Err(Error::new(Kind::Malformed, "apply.image-archive", message));
        }
        Ok(LayerType::of(media_type).unwrap_or(LayerType::Tar))
    }

    /// The first name in the archive that belongs to an OCI layout or to what `docker save` writes.
    fn part_of_an_image(&self) -> Option<Vec<u8>> {
        let mut parser = Parser::new();
        let mut input = self.plain.as_slice();
        while let Ok(Some(event)) = parser.next(&mut input) {
            if let Event::Entry(entry) = event
                && is_part_of_an_image(&entry.path)
            {
                return Some(entry.path);
            }
        }
        None
    }
}

/// `oci-layout`, `blobs/sha256/HEX`, or an older docker's `HEX/layer.tar` and `HEX.json`.
///
/// Source: OCI image specification, image-layout.md; Docker image specification v1.2.
fn is_part_of_an_image(path: &[u8]) -> bool {
    let is_hex = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let Ok(path) = std::str::from_utf8(path) else { return false };
    match path.trim_start_matches("./").split('/').collect::<Vec<_>>()[..] {
        ["oci-layout"] => true,
        [name] => name.strip_suffix(".json").is_some_and(is_hex),
        [id, "layer.tar"] => is_hex(id),
        ["blobs", "sha256", hex] => is_hex(hex),
        _ => false,
    }
}

fn as_json(applied: &Applied) -> serde_json::Value {
    let stats = &applied.stats;
    json!({
        "media_type": applied.media_type,
        "diff_id": applied.digest.to_string(),
        "blob_digest": stats.blob.to_string(),
        "blob_bytes": stats.blob_bytes,
        "uncompressed_bytes": applied.size_bytes,
        "coding": stats.coding.as_str(),
        "image_bytes": stats.image_bytes,
        "nodes": stats.contents.nodes,
        "whiteouts": stats.contents.whiteouts,
        "dropped_xattrs": stats.contents.dropped_xattrs,
        "implied_directories": stats.contents.implied_directories,
        "inherited_directories": stats.contents.inherited_directories,
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
        HumanBytes(applied.size_bytes),
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
    text += &report::last_lines(&applied.digest, &stats.blob, stats.times.steps(), stats.total);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_tell_what_a_layer_is() {
        let mut image = vec![0; 4096];
        image[1024..1028].copy_from_slice(&[0xe2, 0xe1, 0xf5, 0xe0]);
        let wrapped = zstd::bulk::compress(&image, 3).unwrap();
        let archive = zstd::bulk::compress(&[0; 4096], 3).unwrap();
        let detect = |bytes: &[u8]| Head::of(bytes).detect().unwrap();
        let erofs = |zstd| matches!(detect(if zstd { &wrapped } else { &image }), LayerType::NativeErofs { zstd: found, .. } if found == zstd);
        assert!(erofs(false) && erofs(true));
        for bytes in [&[][..], &image[..1026], &archive, &wrapped[..20], &[0x1f, 0x8b, 8], b"etc/passwd"] {
            assert_eq!(detect(bytes), LayerType::Tar);
        }
    }

    #[test]
    fn block_sizes_are_those_that_every_machine_mounts() {
        for (text, bits) in [("512", Some(9)), ("4096", Some(12)), ("8192", None), ("0", None), ("4k", None)]
        {
            assert_eq!(block_bits(text).ok(), bits.and_then(BlockBits::new), "{text}");
        }
    }
}
