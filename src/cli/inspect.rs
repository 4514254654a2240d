//! `plywood inspect`: shows which images files hold, layer by layer.

use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use serde_json::json;

use super::{
    output,
    store::{self, Address, Inputs},
};
use crate::{
    call::Cancel,
    error::{Error, Kind, Result},
    image::{
        error::ImageError,
        inspect::{self, Described, Layer, OfPlatform},
        load::{self, Store},
        name,
        options::Options,
        pool::Pool,
        resolve::Plan,
    },
};

/// Arguments of `plywood inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  What is in an archive, without containerd:
    plywood inspect image.tar
  What containerd has of it, snapshots included:
    plywood inspect image.tar --containerd
  The chain ids of an image that containerd has, for a script:
    plywood inspect --image alpine --json")]
pub struct Arguments {
    /// Images to show.
    #[command(flatten)]
    pub inputs: Inputs,
    /// Show this image of containerd. Repeat it for further ones
    #[arg(long = "image", value_name = "NAME")]
    pub images: Vec<String>,
    /// Say also which layers and snapshots containerd has
    #[arg(short = 'c', long = "containerd")]
    pub ask: bool,
    /// Print the result as a JSON object
    #[arg(long)]
    pub json: bool,
    /// containerd.
    #[command(flatten)]
    pub containerd: Address,
}

/// Prints what the inputs hold.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { inputs, images, ask, json, containerd } = arguments;
    if inputs.files.is_empty() && inputs.set.is_none() && images.is_empty() {
        return Err(output::usage("neither a file nor --set nor --image is given"));
    }
    let cancel = Cancel::new();
    let pool = inputs.open(&cancel).map_err(|error| with_hint(error, &inputs.files))?;
    let options = Options { nameless: true, ..inputs.options() };
    if !ask && images.is_empty() {
        return print(&load::plan(&pool, None, &options)?, &pool, None, *json);
    }
    let runtime = store::runtime(&cancel)?;
    let connection = containerd.connect(&runtime, &cancel);
    let store = Store::look(connection.client, connection.call);
    let plan = load::plan(&pool, Some(&store), &options)?;
    let mut described = inspect::describe(&plan, &pool, Some(&store))?;
    for image in images {
        let name = name::full(image)?;
        let Some(target) = store.image(&name)? else {
            return Err(ImageError::Nothing(format!("containerd has no image {name}")).into());
        };
        let plan = load::plan_recorded(&pool, &store, (&name, target), &options)?;
        described.extend(inspect::describe(&plan, &pool, Some(&store))?);
    }
    write(&described, *json)
}

/// Adds the option to an error about a file that is not there and whose name is one of an image.
fn with_hint(error: Error, files: &[PathBuf]) -> Error {
    let is_image = |text: &&str| !Path::new(text).exists() && name::full(text).is_ok();
    match files.iter().filter_map(|file| file.to_str()).find(is_image) {
        Some(text) if error.kind() == Kind::NotFound => {
            let message = format!("{error}; an image that containerd has is shown with --image {text}");
            Error::new(error.kind(), error.reason(), message)
        }
        _ => error,
    }
}

/// Prints a plan.
pub(super) fn print(plan: &Plan, pool: &Pool, store: Option<&Store>, json: bool) -> Result<()> {
    write(&inspect::describe(plan, pool, store)?, json)
}

fn write(described: &[Described], json: bool) -> Result<()> {
    output::result(&match json {
        true => format!("{:#}\n", json!({ "images": described })),
        false => described.iter().map(for_people).collect(),
    })
}

fn for_people(image: &Described) -> String {
    let file = image.file.as_ref().map(|file| format!(", from {file}")).unwrap_or_default();
    let names = if image.names.is_empty() { "(no name)".to_owned() } else { image.names.join(", ") };
    let mut text = format!("{names}{file}\n");
    if !image.other_names.is_empty() {
        text += &format!("  also named  {}\n", image.other_names.join(", "));
    }
    if let (Some(digest), Some(media_type)) = (&image.digest, &image.media_type) {
        text += &format!("  leads to    {digest}  {media_type}\n");
    }
    for OfPlatform { platform, config, layers, snapshots, .. } in &image.platforms {
        text += &format!("  {}\n", platform.as_deref().unwrap_or("no image"));
        text += &format!("    config    {config}\n");
        for (number, layer) in layers.iter().enumerate() {
            text += &of_layer(number + 1, layer);
        }
        for of_one in snapshots {
            text += &format!("    snapshots {}: {} of {}\n", of_one.snapshotter, of_one.layers, layers.len());
        }
    }
    text
}

fn of_layer(number: usize, layer: &Layer) -> String {
    let Layer { digest, diff_id, chain_id, media_type, size_bytes, found } = layer;
    let size = size_bytes.map(|bytes| format!("  {}", HumanBytes(bytes))).unwrap_or_default();
    let media_type = media_type.as_ref().map(|media_type| format!("  {media_type}")).unwrap_or_default();
    let found = found.as_deref().unwrap_or("missing");
    let digest = digest.as_deref().unwrap_or("(compressed; its digest is found when it is loaded)");
    let mut text = format!("    layer {number:<3} {digest}{size}{media_type}  {found}\n");
    if let (Some(diff_id), Some(chain_id)) = (diff_id, chain_id) {
        text += &format!("      diffID  {diff_id}\n      chainID {chain_id}\n");
    }
    text
}
