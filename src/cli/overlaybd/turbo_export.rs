//! `plywood overlaybd turbo-export`: the turboOCI layer of an existing layer.

use std::{fs::File, path::PathBuf};

use serde_json::json;

use super::{merge::configured, produce::produce};
use crate::{
    call::{Cancel, Progress, Work},
    cli::{
        files::{directory, require_other},
        output,
        report::Bar,
    },
    digest::Digest,
    error::{Error, Result},
    format::Sink as _,
    kind::{LayerType, overlaybd::Flavour},
    limits::Limits,
    overlaybd::{
        build::Base,
        options::DeviceOptions,
        publish::{self, TurboLayer},
    },
    pipeline::{Plan, Resources, Source, helpers::Helpers},
    snapshot::NewFile,
};

/// Arguments of `plywood overlaybd turbo-export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  The turboOCI layer of an image's first layer, and its descriptor:
    plywood overlaybd turbo-export layer.tar.gz -o turbo.tar.gz
  That of the next layer, above the device of the first:
    plywood overlaybd turbo-export next.tgz --config first.json -o turbo.tgz")]
pub struct Arguments {
    /// The layer as it is in the registry: a tar archive, plain or compressed with gzip
    pub layer: PathBuf,
    /// File for the turboOCI layer, a small archive. An existing one is replaced once the new one is complete
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Configuration of the device that the layers below make: config.v1.json
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Size of a new device in GiB. One that is there already keeps its size
    #[arg(long, value_name = "GIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1 << 14))]
    pub vsize: u64,
    /// File system of a new device
    #[arg(long = "fstype", value_name = "TYPE", default_value_t)]
    pub flavour: Flavour,
    /// Media type of the layer, for the annotations. Without it, the compression decides
    #[arg(long, value_name = "TYPE", value_parser = media_type)]
    pub media_type: Option<&'static LayerType>,
    /// Fail unless the layer has this digest
    #[arg(long, value_name = "ALGORITHM:HEX")]
    pub digest: Option<Digest>,
}

fn media_type(text: &str) -> Result<&'static LayerType, String> {
    LayerType::of(text).ok_or_else(|| "not the media type of a layer".to_owned())
}

/// Makes the layer and prints its descriptor as JSON. Errors: those of the export, with the name of the layer.
pub fn run(arguments: &Arguments) -> Result<()> {
    let made = export(arguments)
        .map_err(|error| error.context(format!("turbo-export {}", arguments.layer.display())))?;
    let TurboLayer { media_type, archive, annotations, .. } = made;
    let descriptor = json!({
        "mediaType": media_type,
        "digest": archive.blob.to_string(),
        "size": archive.blob_bytes,
        "annotations": annotations,
    });
    output::result(&format!(
        "{:#}\n",
        json!({ "descriptor": descriptor, "diffID": archive.diff_id.to_string() })
    ))
}

fn export(arguments: &Arguments) -> Result<TurboLayer> {
    let options = DeviceOptions { flavour: arguments.flavour, virtual_bytes: arguments.vsize << 30 };
    let below = arguments.config.as_deref().map(|config| configured(config, &arguments.output));
    let below = below.transpose()?;
    require_other(&arguments.output, [arguments.layer.as_path()])?;
    let base = match &below {
        Some(device) => Base::open(device, &options)?,
        None => Base::new(&options)?,
    };
    let mut input =
        File::open(&arguments.layer).map_err(|error| output::unreadable(&error, "overlaybd.input"))?;
    let metadata = input.metadata().map_err(Error::disk)?;
    let size_bytes = metadata.is_file().then_some(metadata.len());
    let resources = Resources::new(Limits::without_reserve(), Helpers::default_threads());
    let (cancel, progress) = (Cancel::new(), Progress::expecting(size_bytes));
    let lease = resources.budget.lease(&cancel)?;
    let plan =
        Plan { resources: &resources, lease: &lease, work: Work { cancel: &cancel, progress: &progress } };
    let source = Source { reader: &mut input, size_bytes, digest: arguments.digest.clone() };
    let _bar = Bar::show(&progress);
    let scratch = || Ok(NewFile::scratch(directory(&arguments.output), &resources.limits)?);
    produce(&arguments.output, true, |file| {
        let mut at = 0;
        let mut deliver = |bytes: &[u8]| {
            file.write_at(at, bytes).map_err(Error::disk)?;
            at += bytes.len() as u64;
            Ok(())
        };
        publish::turbo(source, arguments.media_type, &base, &scratch, plan, &mut deliver)
    })
}
