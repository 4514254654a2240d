//! `plywood load`: brings images from files into containerd, or into a directory in the OCI layout.

use std::{path::PathBuf, str::FromStr};

use indicatif::HumanBytes;
use serde_json::json;

use super::{
    inspect,
    objects::{Manner, Shown},
    output,
    store::{self, Address, Inputs},
    unpacking::Unpacking,
};
use crate::{
    call::Cancel,
    error::Result,
    image::{
        load::{self, Directory, Done, Store, Target},
        pool::Pool,
        progress::Board,
    },
    pipeline::{Resources, helpers::Helpers},
};

/// Arguments of `plywood load`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Load an archive, and run the image:
    plywood load image.tar && ctr run --rm docker.io/library/app:1 c1
  Carry only what is new to a machine that has the base already:
    plywood load delta.tar --dry-run && plywood load delta.tar
  Load an image and unpack it, so that its first container starts at once:
    plywood load image.tar --unpack
  An image of a separated set, whose base is elsewhere:
    plywood load --set DIR host/app:1 --base base.tar.gz
  Convert an archive to an OCI layout, without containerd:
    plywood load image.tar.gz --to oci:layout")]
pub struct Arguments {
    /// Images to load.
    #[command(flatten)]
    pub inputs: Inputs,
    /// Where to: "containerd", or "oci:DIR" for a directory in the OCI layout, which needs no containerd
    #[arg(long, value_name = "TARGET", default_value = "containerd")]
    pub to: To,
    /// Only say for every layer whether it is there, which file has it, or that it is missing
    #[arg(long)]
    pub dry_run: bool,
    /// Make snapshots of the layers as well
    #[arg(long)]
    pub unpack: bool,
    /// How that is done.
    #[command(flatten)]
    pub unpacking: Unpacking,
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

/// Where images go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// containerd.
    Containerd,
    /// A directory in the OCI layout.
    Directory(PathBuf),
}

impl FromStr for To {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("oci:") {
            Some(directory) if !directory.is_empty() => Ok(Self::Directory(directory.into())),
            None if text == "containerd" => Ok(Self::Containerd),
            _ => Err("neither \"containerd\" nor \"oci:DIR\"".to_owned()),
        }
    }
}

/// Loads the images and prints their names.
pub fn run(arguments: &Arguments) -> Result<()> {
    let inputs = &arguments.inputs;
    if inputs.files.is_empty() && inputs.set.is_none() {
        return Err(output::usage("neither a file nor --set is given"));
    }
    if arguments.unpack && arguments.to != To::Containerd {
        return Err(output::usage("--unpack is for containerd, not for --to oci:DIR"));
    }
    let cancel = Cancel::new();
    let runtime = store::runtime(&cancel)?;
    let pool = inputs.open(&cancel)?;
    let options = inputs.options();
    match &arguments.to {
        To::Containerd => {
            let connection = arguments.containerd.connect(&runtime, &cancel);
            if arguments.dry_run {
                let store = Store::look(connection.client, connection.call);
                let plan = load::plan(&pool, Some(&store), &options)?;
                return inspect::print(&plan, &pool, Some(&store), arguments.json);
            }
            let key = load::key(&pool, &options)?;
            let directory = arguments.containerd.directory();
            let board = Board::default();
            let unpacker = arguments.unpack.then(|| arguments.unpacking.unpacker(&connection, &board));
            let unpacker = unpacker.transpose()?;
            let store = Store::load(connection.client, connection.call, &key, directory)?;
            let store = match unpacker {
                Some(unpacker) => store.unpacking(unpacker),
                None => store,
            };
            let done = moved(arguments, &pool, &store, &board);
            ended(done, |failed| store.end(failed), arguments)
        }
        To::Directory(path) if arguments.dry_run && !path.exists() => {
            let plan = load::plan(&pool, None, &options)?;
            inspect::print(&plan, &pool, None, arguments.json)
        }
        To::Directory(path) => {
            let directory = Directory::create(path, cancel.clone())?;
            if arguments.dry_run {
                let plan = load::plan(&pool, Some(&directory), &options)?;
                return inspect::print(&plan, &pool, None, arguments.json);
            }
            let done = moved(arguments, &pool, &directory, &Board::default());
            ended(done, |failed| directory.end(failed), arguments)
        }
    }
}

fn moved(arguments: &Arguments, pool: &Pool, target: &dyn Target, board: &Board) -> Result<Done> {
    let resources = Resources::new(arguments.inputs.limits(), Helpers::default_threads());
    let _shown = Shown::new(board, arguments.progress);
    load::load(pool, target, &resources, &arguments.inputs.options(), board)
}

/// Ends the load, and reports it. The error that ended it comes before one of the clean-up.
fn ended(done: Result<Done>, end: impl FnOnce(bool) -> Result<()>, arguments: &Arguments) -> Result<()> {
    let end = end(done.is_err());
    if let (Err(_), Err(error)) = (&done, &end) {
        output::note(&format!("plywood: not everything was taken back: {error}"));
    }
    let Done { loaded, other_names, moved } = done?;
    end?;
    for name in other_names {
        output::note(&format!("the set has the image under the name {name} too; --all-tags loads it"));
    }
    if !arguments.json {
        let text: String = loaded.iter().map(|image| format!("Loaded image: {}\n", image.name)).collect();
        tracing::debug!(bytes = %HumanBytes(moved.bytes), "loaded");
        return output::result(&text);
    }
    let images = loaded.iter().map(|image| {
        json!({
            "name": image.name,
            "digest": image.target.digest.to_string(),
            "media_type": image.target.media_type,
            "size_bytes": image.target.size_bytes,
        })
    });
    let object = json!({
        "images": images.collect::<Vec<_>>(),
        "written_blobs": moved.blobs,
        "written_bytes": moved.bytes,
        "resumed_bytes": moved.kept_bytes,
    });
    output::result(&format!("{object:#}\n"))
}
