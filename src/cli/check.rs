//! `plywood check`: checks that images are sound, by the daemon's rules for layers or by those for every image.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{image, output};
use crate::{
    error::{Error, Kind, Result},
    format::erofs::{
        check::{self, Level, Policy, Report},
        reader::ReadError,
    },
};

/// Arguments of `plywood check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Would the daemon take this image as a layer?
    plywood check layer.erofs
  Is an image with extra devices sound?
    plywood check --rules any --device data.blob image.erofs")]
pub struct Arguments {
    /// EROFS images: files or block devices
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<PathBuf>,
    /// Set of rules to check against
    #[arg(long, value_enum, default_value_t = Rules::Layer)]
    pub rules: Rules,
    /// Check only the superblock and its tables
    #[arg(long)]
    pub superblock_only: bool,
    /// Extra device of the image. Repeat it for further ones, in the order of the device slots
    #[arg(long = "device", value_name = "FILE")]
    pub devices: Vec<PathBuf>,
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
    let checks = arguments.images.iter();
    let checks = checks.map(|path| (path.as_path(), check(path, &arguments.devices, &policy)));
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

fn check(path: &Path, devices: &[PathBuf], policy: &Policy) -> Result<Report> {
    let image = image::open(path, devices)?;
    if let Some((stored, computed)) = image.checksum()?
        && stored != computed
    {
        return Err(ReadError::Checksum { stored, computed }.into());
    }
    Ok(check::verify_image(&image, policy)?)
}

fn for_people(path: &Path, result: &Result<Report>) -> String {
    let path = path.display();
    let report = match result {
        Err(error) => return format!("{path}: refused: {error} [{}]\n", error.reason()),
        Ok(report) => report,
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

fn as_json(path: &Path, result: &Result<Report>) -> Value {
    let path = path.to_string_lossy();
    match result {
        Err(error) => json!({
            "image": path,
            "sound": false,
            "error": output::error_as_json(error),
        }),
        Ok(report) => json!({
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
