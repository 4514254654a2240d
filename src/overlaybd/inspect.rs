//! What a file of a device is: the parts around each other, and the facts of each.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    ops::Range,
};

use super::{
    blob::Blob,
    device::{DeviceLayer, writable},
};
use crate::{
    call::Work,
    codec::{Coding, foreign::Decoding},
    error::{Error, Kind, Result},
    format::{
        ReadAt, Sink as _, gzindex,
        lsmt::{Device, Form, Layer},
        tar::{self, Parser},
        turbo,
        zfile::header::Header as ZfileHeader,
    },
    kind::sniff::Overlaybd,
    limits::Limits,
    snapshot::NewFile,
    tree::Body,
    view::{DeviceFile, LayeredDevice},
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
pub struct Inspected {
    /// Its parts, from the outside in.
    pub parts: Vec<Part>,
    /// What the innermost part is about.
    pub inside: Inside,
}

/// What the innermost part of a file is about.
#[derive(Debug)]
pub enum Inside {
    /// A device of one layer.
    Layer(Box<LayeredDevice>),
    /// Points of a gzip stream.
    Points(gzindex::Index),
    /// Anything else.
    Other,
}

/// Opens a file.
pub type Open<'a> = &'a dyn Fn() -> Result<Box<dyn DeviceFile>>;

impl Inspected {
    /// Looks at a file of `kind`. `open` opens it; several times, if it turns out to be a turboOCI layer.
    ///
    /// Errors: those of the formats.
    pub fn of(kind: Overlaybd, open: Open<'_>, depth: Depth, work: Work<'_>) -> Result<Self> {
        match kind {
            Overlaybd::Layer => Self::of_layer(open, depth, work),
            Overlaybd::GzipIndex => Self::of_gzip_index(&*open()?, depth),
            Overlaybd::TarMetadata => Self::of_metadata(&*open()?, work),
            Overlaybd::Turbo => Self::of_turbo(&*open()?, depth, work),
        }
    }

    /// Looks at the two files of a writable layer.
    ///
    /// Errors: those of the format.
    pub fn of_writable(data: File, index: &File) -> Result<Self> {
        let layer = writable(data, index)?;
        let form = if layer.form() == Form::Sparse { "writable, sparse" } else { "writable" };
        Self::with_layer(Vec::new(), form, layer.map(|data| Box::new(data) as Box<dyn DeviceFile>))
    }

    fn of_layer(open: Open<'_>, depth: Depth, work: Work<'_>) -> Result<Self> {
        let blob = Blob::layer(open()?)?;
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
            let (form, layer) = read_only(blob, open)?;
            return Self::with_layer(parts, form, layer);
        }
        if !matches!(blob, Blob::Zfile(_)) {
            let message = "no overlaybd layer is in the tar archive";
            return Err(Error::new(Kind::Malformed, "overlaybd.wrapper.contents", message));
        }
        Ok(Self { parts, inside: Inside::Other })
    }

    fn with_layer(mut parts: Vec<Part>, form: &str, layer: DeviceLayer) -> Result<Self> {
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
        parts.push(Part { format: "lsmt", facts });
        Ok(Self { parts, inside: Inside::Layer(Box::new(Device::new(vec![layer])?)) })
    }

    fn of_gzip_index(file: &dyn DeviceFile, depth: Depth) -> Result<Self> {
        let index = gzindex::Index::read(file)?;
        if depth == Depth::Contents {
            index.verify(file)?;
        }
        Ok(Self { parts: vec![gzip_index(&index)], inside: Inside::Points(index) })
    }

    /// Reads all headers.
    fn of_metadata(file: &dyn DeviceFile, work: Work<'_>) -> Result<Self> {
        let mut parser = Parser::of_metadata();
        let (mut entries, mut files, mut end) = (0_u64, 0_u64, 0);
        pieces(Stream { file, at: 0 }, work, |mut piece| {
            while let Some(event) = parser.next(&mut piece)? {
                let tar::Event::Entry { entry, data_start, .. } = event else { continue };
                entries += 1;
                if let Body::Regular { size_bytes, .. } = entry.body {
                    files += 1;
                    end = end.max(data_start.saturating_add(size_bytes));
                }
            }
            Ok(())
        })?;
        parser.finish()?;
        let facts = [("entries", entries), ("files", files), ("data-end", end)];
        let facts = facts.map(|(name, number)| Fact { name, value: Value::Number(number) });
        Ok(Self { parts: vec![Part { format: "tar-metadata", facts: facts.into() }], inside: Inside::Other })
    }

    /// Reads all members, and with [`Depth::Contents`] looks at each: they are unpacked to a file without a name.
    fn of_turbo(file: &dyn DeviceFile, depth: Depth, work: Work<'_>) -> Result<Self> {
        let limits = Limits::default();
        let compressed = BufReader::with_capacity(PIECE, Stream { file, at: 0 });
        let plain = Decoding::new(compressed, Coding::Gzip.decoder(limits.zstd_window_bytes)?);
        let mut reader = turbo::Reader::new();
        let mut facts = Vec::new();
        let mut unpacked: Option<(turbo::Member, NewFile)> = None;
        pieces(plain, work, |mut piece| {
            while let Some(event) = reader.next(&mut piece)? {
                match event {
                    turbo::Event::Member { member, size_bytes } => {
                        facts.push(Fact { name: member.name(), value: Value::Number(size_bytes) });
                        let mut file = NewFile::scratch(&std::env::temp_dir(), &limits)?;
                        file.set_len(size_bytes).map_err(Error::disk)?;
                        unpacked = Some((member, file));
                    }
                    turbo::Event::Data { offset, bytes } => {
                        if let Some((_, file)) = &mut unpacked {
                            file.write_at(offset, bytes).map_err(Error::disk)?;
                        }
                    }
                    turbo::Event::End => {
                        if let Some((member, file)) = unpacked.take() {
                            of_member(member, file.file(), depth, work)
                                .map_err(|error| error.context(member.name()))?;
                        }
                    }
                }
            }
            Ok(())
        })?;
        reader.finish()?;
        Ok(Self { parts: vec![Part { format: "turbo", facts }], inside: Inside::Other })
    }
}

fn of_member(member: turbo::Member, file: &File, depth: Depth, work: Work<'_>) -> Result<()> {
    let kind = match member {
        turbo::Member::Ext4 | turbo::Member::Erofs => Overlaybd::Layer,
        turbo::Member::GzipIndex => Overlaybd::GzipIndex,
        turbo::Member::Marker => return Ok(()),
    };
    let open = || Ok(Box::new(file.try_clone().map_err(Error::disk)?) as Box<dyn DeviceFile>);
    Inspected::of(kind, &open, depth, work).map(drop)
}

/// Reads a file from its start.
struct Stream<'a> {
    file: &'a dyn DeviceFile,
    at: u64,
}

impl Read for Stream<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.file.size_bytes().saturating_sub(self.at);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        self.file.read_exact_at(self.at, buf.get_mut(..len).unwrap_or_default())?;
        self.at += len as u64;
        Ok(len)
    }
}

/// Passes all of `input` to `take`, piece by piece.
fn pieces(mut input: impl Read, work: Work<'_>, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        work.cancel.check()?;
        match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => take(buffer.get(..len).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::disk(error)),
        }
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

/// Opens a read-only layer, and says what it is. Nothing in the file says that it is a turboOCI layer: it is one if it
/// can be read with a target and not without. The target is not needed for that, so the file itself takes its place, and
/// is not read.
fn read_only(blob: Blob<Box<dyn DeviceFile>>, open: Open<'_>) -> Result<(&'static str, DeviceLayer)> {
    let again = || -> Result<_> { Blob::layer(open()?) };
    let (form, layer) = match Layer::open(blob) {
        Ok(layer) => {
            let form = match layer.form() {
                Form::Sealed { sparse: true } => "sealed, sparse",
                Form::Sealed { sparse: false } => "sealed",
                _ => "committed",
            };
            (form, layer)
        }
        Err(plain) => match Layer::open_turbo(again()?, again()?) {
            Ok(layer) => ("turboOCI, committed", layer),
            Err(_) => return Err(plain.into()),
        },
    };
    Ok((form, layer.map(|blob| Box::new(blob) as Box<dyn DeviceFile>)))
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
