//! `plywood apply`: a layer in a file, or from a pipe, becomes an image; the daemon's own pipeline.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use indicatif::{HumanBytes, HumanCount};
use serde_json::json;

use super::{output, report};
use crate::{
    apply::{Applied, ApplyError, Converter, Layer, Options},
    call::Cancel,
    codec::Coding,
    digest::Digest,
    error::{Error, Kind, Result},
    format::erofs::{BlockBits, superblock::Superblock},
    media_type::{LayerType, OCI_LAYER_TAR},
    pipeline::Progress,
    snapshot::{Durability, LayerFile},
};

/// As many bytes of the layer as are looked at to find out what it is: enough for the first block of a
/// zstd frame.
const PREFIX_LEN: u64 = 256 << 10;
/// Where an image's superblock begins, in bytes.
const SUPERBLOCK_AT: usize = 1024;

/// Arguments of `plywood apply`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The layer: a tar archive or an EROFS image, plain or compressed; "-" reads standard input
    pub layer: PathBuf,
    /// Where the image goes; an existing file is replaced once the new one is complete
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// What the layer is; without, its bytes tell
    #[arg(long, value_name = "TYPE")]
    pub media_type: Option<String>,
    /// Refuse the layer unless its bytes, as they come, have this digest
    #[arg(long, value_name = "ALGORITHM:HEX")]
    pub digest: Option<Digest>,
    /// Bytes per block of the image: 512, 1024, 2048 or 4096
    #[arg(long, value_name = "BYTES", default_value = "4096", value_parser = block_bits)]
    pub block_size: BlockBits,
    /// Store files and file ends of up to this many bytes beside their inode
    #[arg(long, value_name = "BYTES", default_value_t = 1024)]
    pub inline_limit: u16,
    /// Return only once the image is on disk
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
    let named = arguments
        .media_type
        .as_ref()
        .map(|name| LayerType::of(name).ok_or_else(|| Error::from(ApplyError::MediaType(name.clone()))));
    let named = named.transpose()?;
    let Opened { mut input, file, size_bytes } = open(&arguments.layer)?;
    let mut prefix = Vec::new();
    input.by_ref().take(PREFIX_LEN).read_to_end(&mut prefix).map_err(unreadable)?;
    let kind = match named {
        Some(kind) => kind,
        None => detect(&prefix),
    };
    let image = LayerFile::beside(&arguments.output)?;
    let converter = Converter::new(Options {
        block_bits: arguments.block_size,
        inline_limit: arguments.inline_limit,
        durability: Durability::Request,
        ..Options::default()
    });
    let layer = Layer {
        kind,
        reader: &mut prefix.chain(input),
        file: file.as_ref(),
        size_bytes,
        digest: arguments.digest.clone(),
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
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Ok(Opened { input: Box::new(file), file: None, size_bytes: None });
    }
    let whole = file.try_clone().map_err(unreadable)?;
    Ok(Opened { input: Box::new(file), file: Some(whole), size_bytes: Some(metadata.len()) })
}

fn unreadable(error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => Kind::NotFound,
        io::ErrorKind::PermissionDenied => Kind::Denied,
        _ => Kind::Unavailable,
    };
    Error::from_io(error, kind, "apply.input")
}

/// What a layer that starts with `prefix` is: an EROFS image when there is a superblock, plain or in zstd
/// frames, else a tar archive.
fn detect(prefix: &[u8]) -> LayerType {
    let is_image = |bytes: &[u8]| {
        bytes.get(SUPERBLOCK_AT..).is_some_and(|at| at.starts_with(&Superblock::MAGIC.to_le_bytes()))
    };
    let media_type = match Coding::detect(prefix) {
        Coding::Plain if is_image(prefix) => "application/vnd.erofs.layer.v1",
        Coding::Zstd if is_image(&unwrapped(prefix)) => "application/vnd.erofs.layer.v1+zstd",
        Coding::Plain | Coding::Gzip | Coding::Zstd => OCI_LAYER_TAR,
    };
    LayerType::of(media_type).unwrap_or(LayerType::Tar)
}

/// The first plain bytes of a zstd stream, as many as a superblock needs; fewer if it is damaged.
fn unwrapped(prefix: &[u8]) -> Vec<u8> {
    let mut plain = vec![0; SUPERBLOCK_AT + Superblock::LEN];
    let mut filled = 0;
    if let Ok(mut decoder) = Coding::Zstd.decoder(Options::default().limits.zstd_window_bytes) {
        let mut input = prefix;
        while let Some(space) = plain.get_mut(filled..).filter(|space| !space.is_empty()) {
            match decoder.decode(&mut input, space) {
                Ok(0) if input.is_empty() => break,
                Ok(bytes) => filled += bytes,
                Err(_damaged) => break,
            }
        }
    }
    plain.truncate(filled);
    plain
}

fn as_json(applied: &Applied) -> serde_json::Value {
    let stats = &applied.stats;
    json!({
        "media_type": applied.media_type,
        "digest": applied.digest.to_string(),
        "size_bytes": applied.size_bytes,
        "blob_digest": stats.blob.to_string(),
        "blob_bytes": stats.blob_bytes,
        "coding": stats.coding.as_str(),
        "image_bytes": stats.image_bytes,
        "nodes": stats.contents.nodes,
        "whiteouts": stats.contents.whiteouts,
        "dropped_xattrs": stats.contents.dropped_xattrs,
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
