//! `plywood check`: checks that images and indexed layers are sound, by the daemon's rules for layers or by those for every image.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    image::{self, ImageFile},
    indexed::Indexed,
    layer, output,
    report::Bar,
};
use crate::{
    call::{Cancel, Progress, Work},
    error::{Error, Kind, Result},
    format::{
        ReadAt as _,
        erofs::{
            check::{self, Level, Policy, Report},
            reader::{Image, ReadError},
        },
        rafs::{self, Tables, is_rafs},
    },
    kind::sniff::Overlaybd,
    limits::Limits,
    overlaybd::inspect::{Depth, Inspected},
};

/// Arguments of `plywood check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Would the daemon take this image as a layer?
    plywood check layer.erofs
  Is an image with extra devices sound?
    plywood check --rules any --device data.blob image.erofs
  Is an overlaybd layer sound, each block of it?
    plywood check overlaybd.commit
  Are RAFS metadata and the compression contexts beside it sound?
    plywood check image.boot
  Has each chunk of an eStargz or zstd:chunked layer the digest in its table?
    plywood check layer.esgz")]
pub struct Arguments {
    /// EROFS images, files of overlaybd devices, or indexed layers: files or block devices
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<PathBuf>,
    /// Set of rules to check EROFS images against
    #[arg(long, value_enum, default_value_t = Rules::Layer)]
    pub rules: Rules,
    /// Check only the superblock and its tables, the headers and indexes of an overlaybd layer, or the table of contents of
    /// an indexed layer
    #[arg(long)]
    pub superblock_only: bool,
    /// Extra device of the image. Repeat it for further ones, in the order of the device slots
    #[arg(long = "device", value_name = "FILE")]
    pub devices: Vec<PathBuf>,
    /// IMAGE is the data file of a writable overlaybd layer, and this its index
    #[arg(long, value_name = "FILE", conflicts_with = "devices")]
    pub index: Option<PathBuf>,
    /// IMAGE is an indexed layer, and this its table of contents: stargz.index.json, or the layer that holds it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["devices", "index"])]
    pub toc: Option<PathBuf>,
    /// Print the results as a JSON array
    #[arg(long)]
    pub json: bool,
}

/// The sets of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Rules {
    /// Rules of `plywood serve` for native layers and for its own images
    Layer,
    /// Rules for every EROFS image: extra devices and all block sizes are allowed
    Any,
}

/// Checks every image and prints the results. Errors: `check.refused` when one is not sound or cannot be read.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut policy = match arguments.rules {
        Rules::Layer => Policy::layer(),
        Rules::Any => Policy::any(),
    };
    if arguments.superblock_only {
        policy.level = Level::Superblock;
    }
    if arguments.index.is_some() && arguments.images.len() > 1 {
        return Err(output::usage("--index belongs to one writable layer"));
    }
    if arguments.toc.is_some() && arguments.images.len() > 1 {
        return Err(output::usage("--toc belongs to one layer"));
    }
    let checks = arguments.images.iter();
    let checks = checks.map(|path| (path.as_path(), check(path, arguments, &policy)));
    let mut refused = 0;
    let mut values = Vec::new();
    for (path, result) in checks {
        refused += usize::from(result.is_err());
        if arguments.json {
            values.push(as_json(path, &result));
        } else {
            output::result(&for_people(path, &result))?;
        }
    }
    if arguments.json {
        output::result(&format!("{:#}\n", Value::Array(values)))?;
    }
    match refused {
        0 => Ok(()),
        _ => Err(Error::new(
            Kind::Malformed,
            "check.refused",
            match arguments.images.len() {
                1 => "the image is refused".to_owned(),
                images => format!("{refused} of {images} images are refused"),
            },
        )),
    }
}

/// RAFS metadata.
struct Metadata {
    report: Report,
    blobs: usize,
    chunks: usize,
    /// Compression contexts that are beside it.
    contexts: usize,
}

/// A file that is sound.
enum Sound {
    Image(Report),
    Metadata(Metadata),
    /// A file of an overlaybd device, and its size in bytes.
    Layer(Inspected, u64),
    Indexed(Indexed),
}

fn check(path: &Path, arguments: &Arguments, policy: &Policy) -> Result<Sound> {
    if let Some(index) = &arguments.index {
        let (inspected, bytes) = layer::writable(path, index)?;
        return Ok(Sound::Layer(inspected, bytes));
    }
    let file = image::open_file(path)?;
    let (cancel, progress) = (Cancel::new(), Progress::default());
    let work = Work { cancel: &cancel, progress: &progress };
    if let Some(kind) = Overlaybd::of(&file) {
        let depth = match policy.level {
            Level::Superblock => Depth::Records,
            _ => Depth::Contents,
        };
        let _bar = Bar::show(&progress);
        let inspected = Inspected::of(kind, &|| layer::open(path), depth, work)?;
        return Ok(Sound::Layer(inspected, file.size_bytes()));
    }
    if let Some(indexed) = Indexed::of(&file, arguments.toc.as_deref())? {
        let _bar = Bar::show(&progress);
        return Ok(Sound::Indexed(match policy.level {
            Level::Superblock => indexed,
            _ => indexed.verify(&file, work)?,
        }));
    }
    if arguments.toc.is_some() {
        return Err(output::usage("--toc: this is no indexed layer"));
    }
    let image = image::open(path, &arguments.devices)?;
    if let Some((stored, computed)) = image.checksum()?
        && stored != computed
    {
        return Err(ReadError::Checksum { stored, computed }.into());
    }
    if is_rafs(&image) {
        return metadata(path, &image, policy);
    }
    Ok(Sound::Image(check::verify_image(&image, policy)?))
}

/// Checks RAFS metadata: the image by the rules for every image, its tables, and the compression contexts beside it.
fn metadata(path: &Path, image: &Image<ImageFile>, policy: &Policy) -> Result<Sound> {
    let policy = Policy { level: policy.level, ..Policy::any() };
    let report = check::verify_image(image, &policy)?;
    let limit = Limits::default().metadata_bytes;
    let tables = match policy.level {
        Level::Superblock => Tables::read(image, limit)?,
        _ => rafs::verify(image, limit)?,
    };
    let mut contexts = 0;
    for (place, (blob, _)) in (0_u32..).zip(&tables.blobs) {
        let beside = path.with_file_name(format!("{}.blob.meta", rafs::id_text(&blob.id)));
        if beside.exists() {
            let compared =
                image::open_file(&beside).and_then(|file| Ok(tables.compare_context(place, &file)?));
            compared.map_err(|error| error.context(beside.display().to_string()))?;
            contexts += 1;
        }
    }
    let (blobs, chunks) = (tables.blobs.len(), tables.chunks().len());
    Ok(Sound::Metadata(Metadata { report, blobs, chunks, contexts }))
}

fn for_people(path: &Path, result: &Result<Sound>) -> String {
    let path = path.display();
    let report = match result {
        Err(error) => return format!("{path}: refused: {error} [{}]\n", error.reason()),
        Ok(Sound::Layer(inspected, bytes)) => {
            let formats: Vec<_> = inspected.parts.iter().map(|part| part.format).collect();
            return format!("{path}: sound, {}, {bytes} bytes\n", formats.join(" > "));
        }
        Ok(Sound::Indexed(indexed)) => return format!("{path}: {}", indexed.for_people()),
        Ok(Sound::Image(report)) => report,
        Ok(Sound::Metadata(Metadata { report, blobs, chunks, contexts })) => {
            let (inodes, bytes) = (report.inodes, report.image_bytes);
            return format!(
                "{path}: sound, RAFS metadata, {inodes} inodes, {chunks} chunks of {blobs} blobs, \
                 {contexts} compression contexts, {bytes} bytes\n"
            );
        }
    };
    let mut text = match report.inodes {
        0 => format!("{path}: superblock is sound, {} bytes\n", report.image_bytes),
        inodes => format!("{path}: sound, {inodes} inodes, {} bytes\n", report.image_bytes),
    };
    for lint in &report.lints {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {}: {} ({}x)", lint.rule.reason(), lint.first, lint.count);
    }
    text
}

fn as_json(path: &Path, result: &Result<Sound>) -> Value {
    let path = path.to_string_lossy();
    match result {
        Err(error) => json!({
            "image": path,
            "sound": false,
            "error": output::error_as_json(error),
        }),
        Ok(Sound::Layer(inspected, bytes)) => json!({
            "image": path,
            "sound": true,
            "image_bytes": bytes,
            "parts": layer::parts_as_json(&inspected.parts),
        }),
        Ok(Sound::Indexed(indexed)) => {
            let mut value = indexed.as_json();
            if let Some(object) = value.as_object_mut() {
                object.insert("image".to_owned(), json!(path));
            }
            value
        }
        Ok(Sound::Metadata(Metadata { report, blobs, chunks, contexts })) => json!({
            "image": path,
            "sound": true,
            "image_bytes": report.image_bytes,
            "inodes": report.inodes,
            "rafs": { "blobs": blobs, "chunks": chunks, "contexts": contexts },
        }),
        Ok(Sound::Image(report)) => json!({
            "image": path,
            "sound": true,
            "image_bytes": report.image_bytes,
            "names": report.names,
            "inodes": report.inodes,
            "directories": report.directories,
            "files": report.files,
            "symlinks": report.symlinks,
            "whiteouts": report.whiteouts,
            "specials": report.specials,
            "compressed": report.compressed,
            "file_bytes": report.file_bytes,
            "lints": report.lints.iter().map(|lint| json!({
                "reason": lint.rule.reason(),
                "count": lint.count,
                "first": lint.first,
            })).collect::<Vec<_>>(),
        }),
    }
}
