//! What a file of a device is: the parts around each other, and the facts of each.

use std::ops::Range;

use super::blob::Blob;
use crate::{
    call::Work,
    error::{Error, Kind, Result},
    format::{
        ReadAt, gzindex,
        lsmt::{Device, Form, Layer},
        zfile::header::Header as ZfileHeader,
    },
    kind::sniff::Overlaybd,
};

/// Bytes read at a time while a file is checked.
const PIECE: usize = 1 << 20;

/// A part of a file, from the outside in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Name of the format.
    pub format: &'static str,
    /// Facts, in the order in which they are shown.
    pub facts: Vec<Fact>,
}

/// A fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Name, in words with dashes.
    pub name: &'static str,
    /// Value.
    pub value: Value,
}

/// Value of a fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number, in bytes where the name says size or offset.
    Number(u64),
    /// A word or an identifier.
    Text(String),
    /// A range of the device, or of the file.
    Range {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
            Self::Range { offset, len } => write!(f, "{len} at {offset}"),
        }
    }
}

/// How closely a file is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// All records: headers, trailers and indexes.
    Records,
    /// The contents too: every block of a ZFile, every window of a gzip index.
    Contents,
}

/// A file that was looked at.
#[derive(Debug)]
pub struct Inspected<R> {
    /// Its parts, from the outside in.
    pub parts: Vec<Part>,
    /// What the innermost part is about.
    pub inside: Inside<R>,
}

/// What the innermost part of a file is about.
#[derive(Debug)]
pub enum Inside<R> {
    /// A device of one layer.
    Layer(Device<Blob<R>>),
    /// Points of a gzip stream.
    Points(gzindex::Index),
    /// A ZFile may hold anything.
    Other,
}

impl<R: ReadAt> Inspected<R> {
    /// Looks at a file of `kind`. `file` opens it; several times, if it turns out to be a turboOCI layer.
    ///
    /// Errors: those of the formats.
    pub fn of(kind: Overlaybd, file: &dyn Fn() -> Result<R>, depth: Depth, work: Work<'_>) -> Result<Self> {
        if kind == Overlaybd::GzipIndex {
            let file = file()?;
            let index = gzindex::Index::read(&file)?;
            if depth == Depth::Contents {
                index.verify(&file)?;
            }
            return Ok(Self { parts: vec![gzip_index(&index)], inside: Inside::Points(index) });
        }
        let blob = Blob::layer(file()?)?;
        let mut parts = Vec::new();
        let Range { start: offset, end } = blob.range();
        if offset > 0 {
            let payload = Value::Range { offset, len: end - offset };
            parts.push(Part { format: "tar", facts: vec![Fact { name: "payload", value: payload }] });
        }
        if let Blob::Zfile(reader) = &blob {
            parts.push(zfile(reader.header(), end - offset));
            if depth == Depth::Contents {
                read_all(&blob, work)?;
            }
        }
        if is_layer(&blob)? {
            let (part, device) = layer(blob, &|| Blob::layer(file()?))?;
            parts.push(part);
            return Ok(Self { parts, inside: Inside::Layer(device) });
        }
        if !matches!(blob, Blob::Zfile(_)) {
            let message = "no overlaybd layer is in the tar archive";
            return Err(Error::new(Kind::Malformed, "overlaybd.wrapper.contents", message));
        }
        Ok(Self { parts, inside: Inside::Other })
    }
}

fn is_layer(blob: &impl ReadAt) -> Result<bool> {
    let mut magic = [0; 4];
    let len = magic.len() as u64;
    if blob.size_bytes() < len {
        return Ok(false);
    }
    blob.read_exact_at(0, &mut magic).map_err(Error::disk)?;
    Ok(magic == *b"LSMT")
}

/// Reads all contents, which checks them.
fn read_all(blob: &impl ReadAt, work: Work<'_>) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    let end = blob.size_bytes();
    let mut at = 0;
    while at < end {
        work.cancel.check()?;
        let len = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
        blob.read_exact_at(at, buffer.get_mut(..len).unwrap_or_default()).map_err(Error::disk)?;
        at += len as u64;
        work.progress.set_done(at);
    }
    Ok(())
}

/// Facts of a layer. Nothing in the file says that it is a turboOCI layer: it is one if it can be read with a target
/// and not without. The target is not needed for that, so the file itself takes its place, and is not read.
fn layer<R: ReadAt>(blob: R, again: &dyn Fn() -> Result<R>) -> Result<(Part, Device<R>)> {
    let (layer, form) = match Layer::open(blob) {
        Ok(layer) => {
            let form = match layer.form() {
                Form::Sealed { sparse: true } => "sealed, sparse",
                Form::Sealed { sparse: false } => "sealed",
                _ => "committed",
            };
            (layer, form)
        }
        Err(plain) => match Layer::open_turbo(again()?, again()?) {
            Ok(layer) => (layer, "turboOCI, committed"),
            Err(_) => return Err(plain.into()),
        },
    };
    let mut facts = Vec::new();
    let mut add = |name, value| facts.push(Fact { name, value });
    let header = layer.header();
    add("form", Value::Text(form.to_owned()));
    add("virtual-size", Value::Number(header.virtual_size));
    add("uuid", Value::Text(header.uuid.to_string()));
    add("parent-uuid", Value::Text(header.parent_uuid.to_string()));
    if !header.user_tag.is_empty() {
        add("user-tag", Value::Text(header.user_tag.escape_ascii().to_string()));
    }
    add("mappings", Value::Number(layer.entries()));
    if layer.target_end() > 0 {
        add("target-used-size", Value::Number(layer.target_end()));
    }
    Ok((Part { format: "lsmt", facts }, Device::new(vec![layer])?))
}

fn zfile(header: &ZfileHeader, file_bytes: u64) -> Part {
    let number = |name, number| Fact { name, value: Value::Number(number) };
    let text = |name, text: &dyn ToString| Fact { name, value: Value::Text(text.to_string()) };
    Part {
        format: "zfile",
        facts: vec![
            text("algorithm", &header.algorithm),
            number("block-size", header.block_size.bytes().into()),
            number("blocks", header.blocks),
            number("contents-size", header.contents_bytes),
            number("stored-size", file_bytes),
            number("index-offset", header.index_offset),
            text("index-checksum", &format!("{:#010x}", header.index_crc)),
            text("block-checksums", if header.verify { &"yes" } else { &"no" }),
            text("digests", if header.has_digest() { &"yes" } else { &"no" }),
        ],
    }
}

fn gzip_index(index: &gzindex::Index) -> Part {
    let header = index.header();
    let mut facts = Vec::new();
    for (name, number) in [
        ("blob-size", header.blob_bytes),
        ("contents-size", header.plain_bytes),
        ("span", header.span_bytes.into()),
        ("points", header.points),
    ] {
        facts.push(Fact { name, value: Value::Number(number) });
    }
    let packed = if header.is_packed { "zlib" } else { "none" };
    facts.push(Fact { name: "windows", value: Value::Text(packed.to_owned()) });
    Part { format: "gzip-index", facts }
}
