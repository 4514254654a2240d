//! `plywood dump`: an image as text, one line for each fact.

use std::{fmt::Write as _, os::unix::ffi::OsStrExt as _, path::PathBuf};

use serde_json::{Map, Value, json};

use super::{image, output};
use crate::{
    error::{Error, Kind, Result},
    format::erofs::{
        dump::{self, Entry, Fact},
        inode::{Data, Form},
        reader::{CompressedExtent, Extent, Place, Source},
    },
};

/// Text gathered before it is written, in bytes.
const BUFFER: usize = 64 << 10;

/// Arguments of `plywood dump`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  The superblock, and then every name:
    plywood dump --tree layer.erofs
  One file, and where its data lies:
    plywood dump --path /etc/passwd layer.erofs
  What differs between two images:
    diff <(plywood dump --tree a.erofs) <(plywood dump --tree b.erofs)")]
pub struct Arguments {
    /// The EROFS image, a file or block device
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
    /// Show every name as well: type, owner, time, attributes, and where its data lies
    #[arg(long)]
    pub tree: bool,
    /// Show this name of the image instead of the superblock; with --tree, all below it too
    #[arg(long, value_name = "PATH")]
    pub path: Option<PathBuf>,
    /// Extra devices of the image, in the order of its slots
    #[arg(long = "device", value_name = "FILE")]
    pub devices: Vec<PathBuf>,
    /// Print JSON objects, one on each line: the superblock, then the names
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    show(arguments).map_err(|error| error.context(arguments.image.display().to_string()))
}

fn show(arguments: &Arguments) -> Result<()> {
    let image = image::open(&arguments.image, &arguments.devices)?;
    let mut text = match (&arguments.path, arguments.json) {
        (Some(_), _) => String::new(),
        (None, true) => format!("{}\n", facts_as_json(&dump::facts(&image))),
        (None, false) => {
            dump::facts(&image).iter().map(|fact| format!("{}: {}\n", fact.name, fact.value)).collect()
        }
    };
    if arguments.path.is_none() && !arguments.tree {
        return output::result(&text);
    }
    let (start, path) = match &arguments.path {
        None => (image.root()?, Vec::new()),
        Some(path) => {
            let asked = path.as_os_str().as_bytes();
            let node = image.find(asked)?.ok_or_else(|| {
                Error::new(Kind::NotFound, "image.path", format!("there is no {}", path.display()))
            })?;
            (node, clean(asked))
        }
    };
    let mut line = |entry: &Entry| -> Result<()> {
        // Writing to a string cannot fail.
        let _ = match arguments.json {
            true => writeln!(text, "{}", entry_as_json(entry)),
            false => writeln!(text, "{entry}"),
        };
        if text.len() >= BUFFER {
            output::result(&text)?;
            text.clear();
        }
        Ok(())
    };
    if arguments.tree {
        dump::walk(&image, start, &path, line)?;
    } else {
        line(&Entry::read(&image, &path, start.nid))?;
    }
    output::result(&text)
}

/// A path as lines show it: with a slash in front, none at the end or doubled.
fn clean(path: &[u8]) -> Vec<u8> {
    let components = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    components.flat_map(|name| [b"/", name].concat()).collect()
}

fn facts_as_json(facts: &[Fact]) -> Value {
    let mut object = Map::new();
    for fact in facts {
        match object.get_mut(fact.name) {
            // Devices and prefixes come more than once.
            Some(Value::Array(values)) => values.push(fact.value.clone().into()),
            _ if matches!(fact.name, "device" | "xattr-prefix") => {
                object.insert(fact.name.into(), json!([fact.value]));
            }
            _ => {
                object.insert(fact.name.into(), fact.value.clone().into());
            }
        }
    }
    Value::Object(object)
}

fn entry_as_json(entry: &Entry) -> Value {
    // Names are bytes: what is not UTF-8 is escaped like in the text form.
    let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    };
    let (path, nid) = (text(&entry.path), entry.nid.0);
    let details = match &entry.inode {
        Ok(details) => details,
        Err(error) => {
            return json!({ "path": path, "nid": nid, "error": output::format_error_as_json(error) });
        }
    };
    let inode = &details.node.inode;
    let attributes = inode.attributes;
    let place = |extent: &Extent| match extent.place {
        Place::Hole => json!({ "offset": extent.offset, "len": extent.len, "hole": true }),
        Place::Inline { offset } => {
            json!({ "offset": extent.offset, "len": extent.len, "inline": true, "at": offset })
        }
        Place::Blocks { device, offset } => {
            json!({ "offset": extent.offset, "len": extent.len, "device": device, "at": offset })
        }
    };
    let mut value = json!({
        "path": path,
        "nid": nid,
        "type": dump::type_name(inode.file_type),
        "mode": format!("{:04o}", attributes.mode),
        "uid": attributes.uid,
        "gid": attributes.gid,
        "links": inode.nlink,
        "mtime": attributes.mtime.to_string(),
        "size": inode.size_bytes,
        "layout": inode.data.layout().as_str(),
        "compact": details.node.form == Form::Compact,
        "xattrs": details.xattrs.iter().map(|xattr| json!({
            "name": text(&xattr.name),
            "value": xattr.value.escape_ascii().to_string(),
        })).collect::<Vec<_>>(),
        "data": details.extents.iter().map(place).chain(details.compressed.iter().map(compressed_as_json))
            .collect::<Vec<_>>(),
        "more_data": details.more_extents,
    });
    if let (Some(error), Some(object)) = (&details.data_error, value.as_object_mut()) {
        object.insert("data_error".into(), output::format_error_as_json(error));
    }
    if let (Some(target), Some(object)) = (&details.target, value.as_object_mut()) {
        object.insert("target".into(), text(target).into());
    }
    if let (Data::Device(device), Some(object)) = (inode.data, value.as_object_mut()) {
        object.insert("device".into(), format!("{}:{}", device.major, device.minor).into());
    }
    value
}

fn compressed_as_json(extent: &CompressedExtent) -> Value {
    let mut value = match extent.source {
        Source::Hole => json!({ "hole": true }),
        Source::Fragment { offset } => json!({ "fragment": true, "at": offset }),
        Source::Inline { offset, len } => json!({ "inline": true, "at": offset, "encoded": len }),
        Source::Device { device, offset, len } => json!({ "device": device, "at": offset, "encoded": len }),
    };
    if let Some(object) = value.as_object_mut() {
        object.insert("offset".into(), extent.offset.into());
        object.insert("len".into(), extent.len.into());
        if let Some(algorithm) = extent.algorithm {
            object.insert("algorithm".into(), algorithm.as_str().into());
        }
        if extent.partial {
            object.insert("partial".into(), true.into());
        }
    }
    value
}
