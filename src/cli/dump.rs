//! `plywood dump`: an image as text, one line for each fact.

use std::{os::unix::ffi::OsStrExt as _, path::PathBuf};

use serde_json::{Map, Value, json};

use super::{
    image,
    indexed::Indexed,
    layer,
    output::{self, Lines},
};
use crate::{
    error::{Error, Kind, Result},
    format::erofs::{
        dump::{self, Checksum, Entry, Fact, FactValue},
        inode::{Data, Form},
        reader::{CompressedExtent, Extent, Place, Source},
    },
    kind::sniff::Overlaybd,
    tree::{Device, Timestamp},
};

/// Arguments of `plywood dump`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  The superblock, and then every name:
    plywood dump --tree layer.erofs
  One file, and where its data lies:
    plywood dump --path /etc/passwd layer.erofs
  What differs between two images:
    diff <(plywood dump --tree a.erofs) <(plywood dump --tree b.erofs)
  An overlaybd layer, and which ranges of its device have data:
    plywood dump --tree overlaybd.commit
  The table of contents of an eStargz or zstd:chunked layer:
    plywood dump --tree layer.esgz")]
pub struct Arguments {
    /// The EROFS image, a file of an overlaybd device, an indexed layer or its table of contents: a file or a block device
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
    /// Show every file as well: type, owner, time, attributes, and where its data lies. Of an overlaybd layer, the
    /// ranges with data; of a gzip index, its points; of an indexed layer, its entries and chunks
    #[arg(long)]
    pub tree: bool,
    /// Show this file instead of the superblock. With --tree, show everything below it as well
    #[arg(long, value_name = "PATH")]
    pub path: Option<PathBuf>,
    /// Extra device of the image. Repeat it for further ones, in the order of the device slots
    #[arg(long = "device", value_name = "FILE")]
    pub devices: Vec<PathBuf>,
    /// IMAGE is the data file of a writable overlaybd layer, and this its index
    #[arg(long, value_name = "FILE", conflicts_with_all = ["devices", "path"])]
    pub index: Option<PathBuf>,
    /// Print JSON objects, one on each line: the superblock, then the files
    #[arg(long)]
    pub json: bool,
}

/// Prints the superblock, the tree or one file of an image. Errors: those of the image, with its path.
pub fn run(arguments: &Arguments) -> Result<()> {
    show(arguments).map_err(|error| error.context(arguments.image.display().to_string()))
}

fn show(arguments: &Arguments) -> Result<()> {
    let style = layer::Style { json: arguments.json, list: arguments.tree };
    if let Some(index) = &arguments.index {
        let (inspected, _) = layer::writable(&arguments.image, index)?;
        return layer::show(inspected, style);
    }
    let file = image::open_file(&arguments.image)?;
    if let Some(kind) = Overlaybd::of(&file) {
        if arguments.path.is_some() || !arguments.devices.is_empty() {
            let message =
                "an overlaybd layer has blocks, not files: --path and --device are for EROFS images";
            return Err(output::usage(message));
        }
        return layer::show(layer::inspect(&arguments.image, kind)?, style);
    }
    if let Some(indexed) = Indexed::of(&file, None)? {
        if arguments.path.is_some() || !arguments.devices.is_empty() {
            return Err(output::usage(
                "--path and --device are for EROFS images, and this is an indexed layer",
            ));
        }
        return indexed.show(style);
    }
    let image = image::open(&arguments.image, &arguments.devices)?;
    let mut lines = Lines::default();
    match (&arguments.path, arguments.json) {
        (Some(_), _) => {}
        (None, true) => lines.add(facts_as_json(&dump::facts(&image)))?,
        (None, false) => {
            for fact in dump::facts(&image) {
                lines.add(format_args!("{}: {}", fact.name, fact.value))?;
            }
        }
    }
    if arguments.path.is_none() && !arguments.tree {
        return lines.finish();
    }
    let (start, path) = match &arguments.path {
        None => (image.root()?, Vec::new()),
        Some(path) => {
            let asked = path.as_os_str().as_bytes();
            let node = image.find(asked)?.ok_or_else(|| {
                Error::new(Kind::NotFound, "image.path", format!("the image has no {}", path.display()))
            })?;
            (node, clean(asked))
        }
    };
    let mut line = |entry: &Entry| match arguments.json {
        true => lines.add(entry_as_json(entry)),
        false => lines.add(entry),
    };
    if arguments.tree {
        dump::walk(&image, start, &path, line)?;
    } else {
        line(&Entry::read(&image, &path, start.nid))?;
    }
    lines.finish()
}

/// Returns a path as lines show it: with a slash in front, without doubled slashes or one at the end.
fn clean(path: &[u8]) -> Vec<u8> {
    let components = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    components.flat_map(|name| [b"/", name].concat()).collect()
}

/// Facts as a JSON object. Empty lists are included, so that a script needs no case for an image without devices.
fn facts_as_json(facts: &[Fact]) -> Value {
    let mut object = Map::new();
    let (mut devices, mut prefixes) = (Vec::new(), Vec::new());
    for Fact { name, value } in facts {
        let json = fact_as_json(value);
        match value {
            FactValue::Device(_) => devices.push(json),
            FactValue::XattrPrefix { .. } => prefixes.push(json),
            _ => {
                object.insert(key(name), json);
            }
        }
    }
    object.insert("devices".into(), devices.into());
    object.insert("xattr_prefixes".into(), prefixes.into());
    Value::Object(object)
}

/// Returns the JSON key of a fact: the name with underscores, and for a size with the unit.
fn key(name: &str) -> String {
    match name.strip_suffix("-size") {
        Some(thing) => format!("{thing}_bytes"),
        None => name.replace('-', "_"),
    }
}

fn fact_as_json(value: &FactValue) -> Value {
    match value {
        FactValue::Number(number) => json!(number),
        FactValue::Names(names) => json!(names),
        FactValue::Id(id) => json!(id),
        FactValue::Text(bytes) => json!(text(bytes)),
        FactValue::Checksum(Ok(None)) => Value::Null,
        FactValue::Checksum(Ok(Some(Checksum { stored, computed }))) => {
            json!({ "stored": stored, "computed": computed })
        }
        FactValue::Checksum(Err(error)) => json!({ "error": output::format_error_as_json(error) }),
        FactValue::Time(time) => time_as_json(*time),
        FactValue::AfterEpoch { epoch, seconds } => {
            // The epoch comes from the image and may be the last second there is.
            let seconds = epoch.seconds.saturating_add(i64::from(*seconds));
            time_as_json(Timestamp { seconds, ..*epoch })
        }
        FactValue::Compression { algorithms: Ok(algorithms), .. } => {
            json!(algorithms.iter().map(|algorithm| algorithm.as_str()).collect::<Vec<_>>())
        }
        FactValue::Compression { bits, algorithms: Err(error) } => {
            json!({ "bits": bits, "error": output::format_error_as_json(error) })
        }
        FactValue::XattrPrefix { base, infix } => {
            json!({ "base": text(base.as_bytes()), "infix": text(infix) })
        }
        FactValue::Device(slot) => json!({
            "blocks": slot.blocks,
            "start_block": slot.unified_start,
            "tag": text(dump::unpadded(&slot.tag)),
        }),
    }
}

fn time_as_json(Timestamp { seconds, nanoseconds }: Timestamp) -> Value {
    json!({ "seconds": seconds, "nanoseconds": nanoseconds })
}

/// Returns bytes as text. Those that are not UTF-8 are escaped as in the text form.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

fn entry_as_json(entry: &Entry) -> Value {
    let (path, nid) = (text(&entry.path), entry.nid.0);
    let details = match &entry.inode {
        Ok(details) => details,
        Err(error) => {
            return json!({ "path": path, "nid": nid, "error": output::format_error_as_json(error) });
        }
    };
    let inode = &details.node.inode;
    let attributes = inode.attributes;
    let extents = details.extents.iter().map(extent_as_json);
    let mut value = json!({
        "path": path,
        "nid": nid,
        "type": dump::type_name(inode.file_type),
        "mode": attributes.mode,
        "uid": attributes.uid,
        "gid": attributes.gid,
        "links": inode.nlink,
        "mtime": time_as_json(attributes.mtime),
        "size_bytes": inode.size_bytes,
        "layout": inode.data.layout().as_str(),
        "compact": details.node.form == Form::Compact,
        "xattrs": details.xattrs.iter().map(|xattr| json!({
            "name": text(&xattr.name),
            "value": xattr.value.escape_ascii().to_string(),
        })).collect::<Vec<_>>(),
        "data": extents.chain(details.compressed.iter().map(compressed_as_json)).collect::<Vec<_>>(),
        "more_data": details.more_extents,
    });
    let Some(object) = value.as_object_mut() else { return value };
    if let Some(error) = &details.data_error {
        object.insert("data_error".into(), output::format_error_as_json(error));
    }
    if let Some(target) = &details.target {
        object.insert("target".into(), text(target).into());
    }
    if let Data::Device(Device { major, minor }) = inode.data {
        object.insert("device".into(), json!({ "major": major, "minor": minor }));
    }
    value
}

fn extent_as_json(extent: &Extent) -> Value {
    let Extent { offset, len, place } = *extent;
    match place {
        Place::Hole => json!({ "offset_bytes": offset, "len_bytes": len, "hole": true }),
        Place::Inline { offset: at } => {
            json!({ "offset_bytes": offset, "len_bytes": len, "inline": true, "at_bytes": at })
        }
        Place::Blocks { device, offset: at } => {
            json!({ "offset_bytes": offset, "len_bytes": len, "device": device, "at_bytes": at })
        }
    }
}

fn compressed_as_json(extent: &CompressedExtent) -> Value {
    let mut value = match extent.source {
        Source::Hole => json!({ "hole": true }),
        Source::Fragment { offset } => json!({ "fragment": true, "at_bytes": offset }),
        Source::Inline { offset, len } => {
            json!({ "inline": true, "at_bytes": offset, "encoded_bytes": len })
        }
        Source::Device { device, offset, len } => {
            json!({ "device": device, "at_bytes": offset, "encoded_bytes": len })
        }
    };
    if let Some(object) = value.as_object_mut() {
        object.insert("offset_bytes".into(), extent.offset.into());
        object.insert("len_bytes".into(), extent.len.into());
        if let Some(algorithm) = extent.algorithm {
            object.insert("algorithm".into(), algorithm.as_str().into());
        }
        if extent.partial {
            object.insert("partial".into(), true.into());
        }
    }
    value
}
