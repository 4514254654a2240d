//! `plywood diff`: writes the difference between two stacks of layers as a layer in a file, with the daemon's
//! pipeline.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use indicatif::{HumanBytes, HumanCount};
use serde_json::json;

use super::{
    files::{directory, require_other},
    output::{self, usage},
    report::{self, Bar},
    stack::{Reading, Spelled},
};
use crate::{
    call::{Cancel, Phase, Progress, Work},
    codec::{Coding, encode::Compression},
    compare::{Composed, Composer, Form, Options, Sides, changes::XattrFilter, erofs},
    config::Timestamps,
    error::{Error, Kind, Result},
    format::Sink as _,
    kind::{Container, LayerType},
    limits::Limits,
    pipeline::{Resources, helpers::Helpers},
    snapshot::{Durability, LAYER_NAME, LayerSource, Publication, StackLayer},
    tree::Timestamp,
};

/// Arguments of `plywood diff`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// The older side: a directory, an image, or a stack of them joined by ":", newest first; "none" for an empty one
    pub lower: OsString,
    /// The newer side, written in the same way
    pub upper: OsString,
    /// File for the layer. An existing one is replaced once the new one is complete. With "-", the layer goes to
    /// standard output and the report to standard error
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Type of the layer: tar, tar+gzip (or gzip), tar+zstd (or zstd), estargz, zstd:chunked (as Podman, Buildah and Skopeo
    /// write it), zstdchunked (as nerdctl and ctr-remote do), erofs, erofs+zstd, or a media type. Without it, the ending of
    /// the output's name decides: .tar, .tar.gz, .tar.zst, .esgz, .erofs or .erofs.zst
    #[arg(short = 't', long = "type", value_name = "TYPE", value_parser = layer_type)]
    pub layer_type: Option<&'static LayerType>,
    /// Take UPPER for layers on top of LOWER instead of a whole tree. Only its whiteouts delete files. Files that it
    /// lacks are unchanged
    #[arg(short, long)]
    pub layer: bool,
    /// Compression level: 1 to 9 for gzip, 1 to 19 for zstd
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<u8>,
    /// Replace every later time by this one, in seconds since 1970
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH", allow_negative_numbers = true)]
    pub source_date_epoch: Option<i64>,
    /// Precision of the times in a tar archive. Images always have nanoseconds
    #[arg(long, value_name = "UNIT", default_value = "seconds")]
    pub timestamps: Timestamps,
    /// In an EROFS image, store a file, or the end of one, beside its inode if it is no longer than this, in bytes.
    /// With 0, mkfs.erofs can merge the layers [default: 1024]
    #[arg(long, value_name = "BYTES")]
    pub inline_limit: Option<u16>,
    /// Extended attribute to write: a name, or the beginning of names followed by "*". Repeat it for further ones
    /// [default: user.* trusted.* security.capability system.posix_acl_*]
    #[arg(long = "xattr", value_name = "NAME")]
    pub xattrs: Vec<String>,
    /// Read the overlayfs marks of directories from user.overlay.*, as with overlayfs's option userxattr. Only root
    /// can read the usual trusted.overlay.*
    #[arg(long)]
    pub user_xattr: bool,
    /// Extra device of the one image that has any. Repeat it for further ones, in the order of the device slots
    #[arg(long = "device", value_name = "FILE")]
    pub devices: Vec<PathBuf>,
    /// Number of helping threads. One more thread reads and compares [default: number of processors + 1]
    #[arg(long, value_name = "COUNT")]
    pub threads: Option<usize>,
    /// Write the layer through to the disk before the command ends
    #[arg(long)]
    pub sync: bool,
    /// Print the result as a JSON object
    #[arg(long)]
    pub json: bool,
}

/// Examples, and the rule for names with colons.
const AFTER_HELP: &str = r#"An image is an EROFS image, or an ext4 image with the layer in its directory
"upper". In a name, write "\:" for a colon and "\\" for a backslash, as in
overlayfs's lowerdir.

Examples:
  What a container wrote on top of an image:
    plywood diff --layer base.erofs upper/ -o layer.tar.gz
  A whole tree as a first layer:
    plywood diff none tree/ -o base.erofs
  What is different in another image, whose newest layer is new2.erofs:
    plywood diff old.erofs new2.erofs:new1.erofs -t tar -o - | tar -tv"#;

fn layer_type(text: &str) -> Result<&'static LayerType, String> {
    LayerType::of_name(text).ok_or_else(|| {
        "neither tar, tar+gzip, tar+zstd, estargz, zstd:chunked, zstdchunked, erofs, erofs+zstd nor the media type of one"
            .to_owned()
    })
}

/// Writes the layer and prints the result. Errors: those of the comparison, with the names of both sides and output.
pub fn run(arguments: &Arguments) -> Result<()> {
    let context = || {
        let [lower, upper] = [&arguments.lower, &arguments.upper].map(|side| side.to_string_lossy());
        format!("diff {lower} {upper} to {}", arguments.output.display())
    };
    let written = diff(arguments).map_err(|error| match error.reason() {
        // Only root can read `trusted.overlay.*`. The hint names the option for other users.
        "compare.privilege" => error.context("without --user-xattr").context(context()),
        _ => error.context(context()),
    })?;
    let report = match arguments.json {
        true => format!("{:#}\n", as_json(&written)),
        false => for_people(&arguments.output, &written),
    };
    match is_standard_output(&arguments.output) {
        // Standard output carries the layer.
        true => {
            output::note(report.trim_end());
            Ok(())
        }
        false => output::result(&report),
    }
}

/// Whether the layer goes to standard output, and so the report to standard error.
pub fn is_standard_output(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// A layer that was written.
struct Written {
    layer_type: &'static LayerType,
    composed: Composed,
    total: Duration,
}

fn diff(arguments: &Arguments) -> Result<Written> {
    let started = Instant::now();
    let to_standard_output = is_standard_output(&arguments.output);
    let layer_type = arguments.layer_type.or_else(|| LayerType::of_file(&arguments.output)).ok_or_else(|| {
        usage(
            "the type of the layer is unknown: give the output a name that ends in .tar, .tar.gz, .tar.zst, \
             .erofs or .erofs.zst, or use --type, for example --type tar+gzip",
        )
    })?;
    if to_standard_output && io::stdout().is_terminal() {
        return Err(usage(
            "standard output is a terminal, and a layer is not text: redirect it, or use -o FILE",
        ));
    }
    let compression = match arguments.level {
        Some(_) if layer_type.coding == Coding::Plain => {
            return Err(usage(format!("--level: {} is not compressed", layer_type.media_type)));
        }
        Some(level) => Compression::at_level(layer_type.coding, level)
            .map_err(|error| usage(format!("--level: {error}")))?,
        None => Compression::of(layer_type.coding),
    };
    let xattrs = match arguments.xattrs.as_slice() {
        [] => XattrFilter::default(),
        patterns => XattrFilter::new(patterns).map_err(|error| usage(format!("--xattr: {error}")))?,
    };
    let mut image = erofs::Options::in_directory(work_directory(&arguments.output));
    if let Some(limit) = arguments.inline_limit {
        if layer_type.container != Container::Erofs {
            return Err(usage(format!("--inline-limit: {} is not an EROFS image", layer_type.media_type)));
        }
        let block_bytes = image.image.block_bits.size();
        if u64::from(limit) > block_bytes {
            return Err(usage(format!(
                "--inline-limit: {limit} bytes are more than one block of {block_bytes} bytes"
            )));
        }
        image.image.inline_limit = limit;
    }
    // The layer has one of the two codings; the other field is not used.
    let options = Options {
        gzip: compression,
        zstd: compression,
        nanoseconds: arguments.timestamps == Timestamps::Nanoseconds,
        xattrs,
        image,
    };
    let epoch = arguments.source_date_epoch.map(|seconds| Timestamp { seconds, nanoseconds: 0 });

    let reading = Reading { devices: &arguments.devices, user_xattr: arguments.user_xattr };
    let open = |text, name: &str| {
        let spelled = Spelled::parse(text).map_err(|problem| usage(format!("{name}: {problem}")))?;
        spelled.open(reading).map_err(|error| error.context(name))
    };
    let lower = open(&arguments.lower, "the older side")?;
    let mut upper = open(&arguments.upper, "the newer side")?;
    if arguments.layer {
        upper.layers.extend(open(&arguments.lower, "the older side")?.layers);
    }
    let mut layers = lower.layers.iter().chain(&upper.layers);
    let takes_devices = |layer: &StackLayer| matches!(&layer.source, LayerSource::Erofs { devices, .. } if !devices.is_empty());
    if !arguments.devices.is_empty() && !layers.any(takes_devices) {
        return Err(usage("--device: no image of either side has extra devices"));
    }
    if !to_standard_output {
        let layers = lower.layers.iter().chain(&upper.layers).map(|layer| layer.path.as_path());
        require_other(&arguments.output, layers.chain(arguments.devices.iter().map(PathBuf::as_path)))?;
    }
    let sides = Sides { lower, upper };

    let resources =
        Resources::new(Limits::without_reserve(), arguments.threads.unwrap_or_else(Helpers::default_threads));
    let composer = Composer::new(options, resources);
    let (cancel, progress) = (Cancel::new(), Progress::default());
    let work = Work { cancel: &cancel, progress: &progress };
    let _bar = Bar::show(&progress);
    let composed = if to_standard_output {
        let mut out = io::stdout();
        let mut deliver = |bytes: &[u8]| out.write_all(bytes).map_err(unwritable);
        let composed = composer.compose(work, sides, &Form::Of(layer_type), epoch, &mut deliver);
        composed.and_then(|composed| {
            io::stdout().flush().map_err(unwritable)?;
            Ok(composed)
        })
    } else {
        let publication = Publication::beside(&arguments.output)?;
        let mut file = publication.file(LAYER_NAME)?;
        let mut at = 0;
        let mut deliver = |bytes: &[u8]| {
            file.write_at(at, bytes).map_err(Error::disk)?;
            at += bytes.len() as u64;
            Ok(())
        };
        let composed = composer.compose(work, sides, &Form::Of(layer_type), epoch, &mut deliver);
        composed.and_then(|mut composed| {
            progress.begin(Phase::Commit, None);
            let committing = Instant::now();
            publication.commit([file], Durability::Request, arguments.sync)?;
            composed.times.commit = committing.elapsed();
            Ok(composed)
        })
    };
    Ok(Written { layer_type, composed: composed?, total: started.elapsed() })
}

/// Directory in which an image is laid out before it is compressed or sent on: that of the output.
fn work_directory(output: &Path) -> PathBuf {
    if is_standard_output(output) { std::env::temp_dir() } else { directory(output).to_owned() }
}

fn unwritable(error: io::Error) -> Error {
    let error = Error::from_io(error, Kind::Unavailable, "output.write");
    error.context("standard output")
}

fn as_json(written: &Written) -> serde_json::Value {
    let Written { layer_type, composed, total } = written;
    json!({
        "media_type": layer_type.media_type,
        "diff_id": composed.diff_id.to_string(),
        "blob_digest": composed.blob.to_string(),
        "blob_bytes": composed.blob_bytes,
        "uncompressed_bytes": composed.uncompressed_bytes,
        "coding": layer_type.coding.as_str(),
        "annotations": composed.annotations,
        "entries": composed.contents.entries,
        "whiteouts": composed.contents.whiteouts,
        "sockets": composed.contents.sockets,
        "seconds": report::seconds(composed.times.steps(), *total),
    })
}

fn for_people(output: &Path, written: &Written) -> String {
    let Written { layer_type, composed, total } = written;
    let place = if is_standard_output(output) { "standard output".into() } else { output.to_string_lossy() };
    let mut text = format!(
        "{place}: {} of {} ({} uncompressed)\nentries {}",
        HumanBytes(composed.blob_bytes),
        layer_type.media_type,
        HumanBytes(composed.uncompressed_bytes),
        HumanCount(composed.contents.entries),
    );
    if composed.contents.whiteouts > 0 {
        text += &format!(", {} of them whiteouts", HumanCount(composed.contents.whiteouts));
    }
    if composed.contents.sockets > 0 {
        text += &format!("; sockets left out: {}", HumanCount(composed.contents.sockets));
    }
    text.push('\n');
    text += &report::last_lines(&composed.diff_id, &composed.blob, composed.times.steps(), *total);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::TABLE;

    #[test]
    fn the_name_of_the_output_tells_what_to_write() {
        for (name, short) in [
            ("layer.tar", Some("tar")),
            ("a/layer.tar.gz", Some("tar+gzip")),
            ("x.tgz", Some("tar+gzip")),
            ("x.tar.zst", Some("tar+zstd")),
            ("layer.esgz", Some("estargz")),
            ("layer.erofs", Some("erofs")),
            ("layer.erofs.zst", Some("erofs+zstd")),
            ("layer", None),
            ("tar.gz", None),
            ("-", None),
        ] {
            let want = short.map(|short| layer_type(short).unwrap());
            assert_eq!(LayerType::of_file(Path::new(name)), want, "{name}");
        }
    }

    #[test]
    fn types_have_short_and_long_names() {
        for row in TABLE.iter().filter(|row| row.written && row.indexed.is_none()) {
            assert_eq!(layer_type(row.media_type), Ok(row));
        }
        for (short, long) in [("gzip", "tar+gzip"), ("zstd", "tar+zstd")] {
            assert_eq!(layer_type(short), layer_type(long));
        }
        for unknown in ["", "gz", "tar.gz", "application/vnd.docker.image.rootfs.diff.tar.gzip"] {
            assert!(layer_type(unknown).is_err(), "{unknown}");
        }
    }
}
