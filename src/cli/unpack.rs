//! `plywood unpack`: makes snapshots of the layers of an image that containerd has.

use serde_json::json;

use super::{
    objects::{Manner, Shown},
    output,
    store::{self, Address},
    unpacking::Unpacking,
};
use crate::{
    call::Cancel,
    error::Result,
    image::{
        options::Options,
        platform::Platform,
        progress::Board,
        unpack::{self, Applied, Failure, Image, Unpacker},
    },
};

/// Arguments of `plywood unpack`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Unpack an image that was fetched or loaded before:
    ctr content fetch docker.io/library/alpine:latest
    plywood unpack alpine
  The name of its root file system, for a script:
    plywood unpack --print-chain-id alpine
  Two layers at a time, straight through Plywood's own socket:
    plywood unpack --parallel 2 --differ /run/plywood/plywood.sock alpine
  Keep what is done if it fails, and go on from there:
    plywood unpack --resume alpine || plywood unpack --resume alpine")]
pub struct Arguments {
    /// Name of an image of containerd
    pub image: String,
    /// How it is unpacked.
    #[command(flatten)]
    pub unpacking: Unpacking,
    /// Keep the layers that are done when a later one fails, for 24 hours. The next run goes on from there
    #[arg(long)]
    pub resume: bool,
    /// Print only the chainID of the top layer, which is the name of the snapshot
    #[arg(long, conflicts_with = "json")]
    pub print_chain_id: bool,
    /// Platform of the image [default: that of this machine]
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    pub platform: Option<Platform>,
    /// Show progress on standard error
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Manner::Auto)]
    pub progress: Manner,
    /// Print the result as a JSON object
    #[arg(long)]
    pub json: bool,
    /// containerd.
    #[command(flatten)]
    pub containerd: Address,
}

/// Unpacks the image, and prints its name or that of its top snapshot.
pub fn run(arguments: &Arguments) -> Result<()> {
    let cancel = Cancel::new();
    let runtime = store::runtime(&cancel)?;
    let connection = arguments.containerd.connect(&runtime, &cancel);
    let options = Options::of_containerd(arguments.platform.as_ref());
    let board = Board::default();
    let unpacker = arguments.unpacking.unpacker(&connection, &board)?;
    let image = unpack::find(&connection.client, &connection.call, &arguments.image, &options)?;
    let unpacker = Unpacker { fetch: Some(fetch(arguments, &image)), ..unpacker };
    let shown = Shown::new(&board, arguments.progress);
    let on_failure = if arguments.resume { Failure::Keep } else { Failure::TakeBack };
    let directory = arguments.containerd.directory();
    let applied = unpack::unpack(&unpacker, &connection.call, &image, on_failure, directory);
    drop(shown);
    let applied = applied.map_err(|error| error.context(&image.name))?;
    output::result(&report(arguments, &image, &applied))
}

/// The command that brings the blobs of an image.
fn fetch(arguments: &Arguments, image: &Image) -> String {
    let Address { address, namespace } = &arguments.containerd;
    let mut command = format!("ctr --address {} --namespace {namespace} content fetch", address.display());
    if let Some(platform) = &arguments.platform {
        command += &format!(" --platform {platform}");
    }
    format!("{command} {}", image.name)
}

fn report(arguments: &Arguments, image: &Image, applied: &[Applied]) -> String {
    let top = applied.last().map(|top| top.chain_id.to_string());
    if arguments.print_chain_id {
        return top.map(|top| top + "\n").unwrap_or_default();
    }
    if !arguments.json {
        return format!("Unpacked image: {}\n", image.name);
    }
    let layers = image.layers.iter().zip(applied).map(|(layer, applied)| {
        json!({
            "digest": layer.descriptor.digest.to_string(),
            "diff_id": layer.diff_id.to_string(),
            "chain_id": applied.chain_id.to_string(),
            "new": applied.is_new,
        })
    });
    let object = json!({
        "name": image.name,
        "platform": image.platform.to_string(),
        "snapshotter": arguments.unpacking.snapshotter,
        "chain_id": top,
        "layers": layers.collect::<Vec<_>>(),
    });
    format!("{object:#}\n")
}
