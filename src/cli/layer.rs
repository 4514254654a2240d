//! Files of overlaybd devices as `check` and `dump` show them.

use std::{fmt, fs::File, path::Path};

use serde_json::{Map, Value, json};

use super::{
    image,
    output::{self, Lines},
};
use crate::{
    call::{Cancel, Progress, Work},
    error::Result,
    format::ReadAt as _,
    kind::sniff::Overlaybd,
    overlaybd::inspect::{Depth, Inside, Inspected, Part, Value as FactValue},
    view::DeviceFile,
};

/// Opens a file for reading.
pub fn open(path: &Path) -> Result<Box<dyn DeviceFile>> {
    Ok(Box::new(image::open_file(path)?))
}

/// Looks at the records of a file.
pub fn inspect(path: &Path, kind: Overlaybd) -> Result<Inspected> {
    let (cancel, progress) = (Cancel::new(), Progress::default());
    let work = Work { cancel: &cancel, progress: &progress };
    Inspected::of(kind, &|| open(path), Depth::Records, work)
}

/// Looks at the two files of a writable layer. Returns the size of its data as well.
pub fn writable(data: &Path, index: &Path) -> Result<(Inspected, u64)> {
    let open = |path: &Path| {
        let opened = File::open(path).map_err(|error| output::unreadable(&error, "image.open"));
        opened.map_err(|error| error.context(path.display().to_string()))
    };
    let data = open(data)?;
    let bytes = data.size_bytes();
    Ok((Inspected::of_writable(data, &open(index)?)?, bytes))
}

/// How a dump is printed.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Each line is a JSON object.
    pub json: bool,
    /// The list that is in the file follows the facts.
    pub list: bool,
}

/// Prints the facts of a file.
pub fn show(inspected: Inspected, style: Style) -> Result<()> {
    let Inspected { parts, inside } = inspected;
    let mut lines = Lines::default();
    match style.json {
        true => lines.add(parts_as_json(&parts))?,
        false => {
            for part in &parts {
                for fact in &part.facts {
                    lines.add(format_args!("{}.{}: {}", part.format, fact.name, fact.value))?;
                }
            }
        }
    }
    let mut line = |for_people: fmt::Arguments<'_>, as_json: Value| match style.json {
        true => lines.add(as_json),
        false => lines.add(for_people),
    };
    match inside {
        Inside::Layer(device) if style.list => {
            for extent in device.data(0, device.size_bytes()) {
                let (offset, len) = (extent.offset, extent.len);
                line(
                    format_args!("data: {len} at {offset}"),
                    json!({ "offset_bytes": offset, "len_bytes": len }),
                )?;
            }
        }
        Inside::Points(index) if style.list => {
            for point in index.points() {
                let (plain, byte, bits) = (point.plain, point.byte, point.bits);
                line(
                    format_args!("point: {plain} at byte {byte} of the blob and {bits} bits before it"),
                    json!({ "offset_bytes": plain, "blob_byte": byte, "bits": bits }),
                )?;
            }
        }
        Inside::Layer(_) | Inside::Points(_) | Inside::Other => {}
    }
    lines.finish()
}

/// Parts of a file as a JSON object, with a key for each format.
pub fn parts_as_json(parts: &[Part]) -> Value {
    let parts = parts.iter().map(|part| {
        let facts = part.facts.iter().map(|fact| {
            let value = match &fact.value {
                FactValue::Number(number) => json!(number),
                FactValue::Text(text) => json!(text),
                FactValue::Range { offset, len } => json!({ "offset_bytes": offset, "len_bytes": len }),
            };
            (key(fact.name), value)
        });
        (part.format.replace('-', "_"), Value::Object(facts.collect()))
    });
    Value::Object(parts.collect::<Map<_, _>>())
}

/// Returns the JSON key of a fact: the name with underscores, and for a size with the unit.
fn key(name: &str) -> String {
    match name.strip_suffix("-size") {
        Some(thing) => format!("{thing}_bytes"),
        None => name.replace('-', "_"),
    }
    .replace('-', "_")
}
