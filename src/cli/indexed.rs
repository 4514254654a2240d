//! Indexed layers and their tables of contents as `check` and `dump` show them.

use std::{fmt::Write as _, io::Read as _, path::Path};

use serde_json::{Map, Value, json};

use super::{
    image::{self, ImageFile},
    layer::Style,
    output::Lines,
};
use crate::{
    call::{Phase, Work},
    digest::Digest,
    error::{Error, Kind, Result},
    format::{
        ReadAt as _, Sequential,
        stargz::{
            Body, Chunk, Declared, Entry, Layout, StargzError, Toc, Verified, toc_in_archive, verify,
            verify_split,
        },
    },
    limits,
    tree::Device,
};

/// Bytes of a compressed table read at a time.
const PIECE: usize = 64 << 10;
/// End of the payload of a table without its layer.
pub(super) const UNKNOWN_END: u64 = i64::MAX.unsigned_abs();

/// An indexed layer or a table of contents, whose records are sound.
pub struct Indexed {
    /// `None`: the file is a table alone.
    layout: Option<Layout>,
    /// `None`: the table is in another file.
    toc: Option<Toc>,
    /// Numbers of the chunks and their bytes, if they were read and are right.
    verified: Option<Verified>,
    /// Whether the archive was compared with tar-split data; `None` when it was not looked at.
    split: Option<bool>,
    size_bytes: u64,
}

impl Indexed {
    /// Reads the table of `file`, or of the layer `file` from the file `toc`. `None`: it is neither layer nor table.
    pub fn of(file: &ImageFile, toc: Option<&Path>) -> Result<Option<Self>> {
        let size_bytes = file.size_bytes();
        if is_json(file) {
            let toc = Toc::read(&json_of(file)?, UNKNOWN_END)?;
            return Ok(Some(Self { layout: None, toc: Some(toc), verified: None, split: None, size_bytes }));
        }
        let declared = Declared::default();
        let Some(layout) = Layout::find(file, &declared)? else { return Ok(None) };
        let json = match toc {
            Some(path) => Some(json_beside(path).map_err(|error| error.context(path.display().to_string()))?),
            None => layout.read_toc(file, &declared)?,
        };
        let toc = json.map(|json| Toc::read(&json, layout.payload_end)).transpose()?;
        Ok(Some(Self { layout: Some(layout), toc, verified: None, split: None, size_bytes }))
    }

    /// Decodes every chunk of the layer `file` and compares its digest.
    pub fn verify(mut self, file: &ImageFile, work: Work<'_>) -> Result<Self> {
        let (Some(layout), Some(toc)) = (&self.layout, &self.toc) else { return Ok(self) };
        let chunks = all_chunks(toc).map(|chunk| chunk.size_bytes).fold(0, u64::saturating_add);
        // Where there is tar-split data, the files are decoded once more.
        let total = chunks.saturating_mul(if toc.tar_split().is_some() { 2 } else { 1 });
        work.progress.begin(Phase::Verify, Some(total));
        let mut done = 0_u64;
        let mut progress = |bytes| {
            done = done.saturating_add(bytes);
            work.progress.set_done(done.min(total));
            Ok(work.cancel.check()?)
        };
        self.verified = Some(verify(file, layout, toc, &mut progress)?);
        self.split = Some(verify_split(file, layout, toc, &mut progress)?);
        Ok(self)
    }

    fn form(&self) -> &'static str {
        self.layout.as_ref().map_or("table of an indexed layer", |layout| layout.form.as_str())
    }

    /// The line of `check`, without the name of the file.
    pub fn for_people(&self) -> String {
        let mut text = format!("sound, {}", self.form());
        // Writing to a string cannot fail.
        let _ = match (&self.toc, &self.verified) {
            (None, _) => write!(text, ", whose table was not given"),
            (Some(toc), None) => write!(text, ", {} entries", toc.entries().len()),
            (Some(toc), Some(verified)) => {
                write!(text, ", {} entries, {} chunks", toc.entries().len(), verified.chunks)
            }
        };
        if self.split == Some(true) {
            text += ", archive and tar-split data equal";
        }
        let _ = writeln!(text, ", {} bytes", self.size_bytes);
        text
    }

    /// The object of `check --json`, without the name of the file.
    pub fn as_json(&self) -> Value {
        json!({
            "sound": true,
            "image_bytes": self.size_bytes,
            "indexed": {
                "form": self.form(),
                "entries": self.toc.as_ref().map(|toc| toc.entries().len()),
                "chunks_verified": self.verified.map(|verified| verified.chunks),
                "bytes_verified": self.verified.map(|verified| verified.bytes),
                "tar_split_verified": self.split,
            },
        })
    }

    /// Prints the facts, and the entries if `style` wants a list.
    pub fn show(&self, style: Style) -> Result<()> {
        let mut lines = Lines::default();
        let mut line = |for_people: String, as_json: Value| match style.json {
            true => lines.add(as_json),
            false => lines.add(for_people),
        };
        let (for_people, as_json) = self.facts();
        line(for_people, as_json)?;
        for (toc, entry) in
            self.toc.iter().flat_map(|toc| toc.entries().iter().map(move |entry| (toc, entry)))
        {
            if style.list {
                line(entry_for_people(toc, entry), entry_as_json(toc, entry))?;
            }
        }
        lines.finish()
    }

    fn facts(&self) -> (String, Value) {
        let mut text = format!("stargz.form: {}", self.form());
        let mut value = Map::from_iter([("form".to_owned(), self.form().into())]);
        let mut add = |name: &str, key: &str, number: u64| {
            // Writing to a string cannot fail.
            let _ = write!(text, "\nstargz.{name}: {number}");
            value.insert(key.to_owned(), number.into());
        };
        if let Some(layout) = &self.layout {
            add("payload-size", "payload_bytes", layout.payload_end);
            if let Some(place) = layout.toc {
                add("toc-offset", "toc_offset", place.offset);
                add("toc-size", "toc_bytes", place.len);
            }
            if let Some(place) = layout.tar_split {
                add("tar-split-offset", "tar_split_offset", place.offset);
                add("tar-split-size", "tar_split_bytes", place.len);
            }
        }
        if let Some(toc) = &self.toc {
            add("entries", "entries", toc.entries().len() as u64);
            add("chunks", "chunks", all_chunks(toc).count() as u64);
        }
        (text, Value::Object(value))
    }
}

fn all_chunks(toc: &Toc) -> impl Iterator<Item = &Chunk> {
    toc.entries().iter().flat_map(|entry| toc.chunks_of(entry))
}

/// Whether a file is a table alone, which is a JSON object: no layer and no image begins like one.
pub(super) fn is_json(file: &ImageFile) -> bool {
    let mut first = [0];
    file.read_exact_at(0, &mut first).is_ok() && first == [b'{']
}

/// The table that a file is.
pub(super) fn json_of(file: &ImageFile) -> Result<Vec<u8>> {
    let (size_bytes, limit) = (file.size_bytes(), limits::STARGZ_TOC_BYTES);
    if size_bytes > limit {
        return Err(StargzError::TocSize { size_bytes, limit }.into());
    }
    let mut json = Vec::new();
    Sequential::new(file).read_to_end(&mut json).map_err(Error::disk)?;
    Ok(json)
}

/// The table in a file of its own: as it is, or in the layer that stands for it in a registry.
pub(super) fn json_beside(path: &Path) -> Result<Vec<u8>> {
    let file = image::open_file(path)?;
    if is_json(&file) {
        return json_of(&file);
    }
    let mut reader = Sequential::new(&file);
    let mut next = || {
        let mut piece = vec![0; PIECE];
        let len = reader.read(&mut piece);
        let len = len.map_err(|source| StargzError::Io { offset: 0, len: PIECE as u64, source })?;
        piece.truncate(len);
        Ok(piece)
    };
    let json = toc_in_archive(&mut next)?;
    json.ok_or_else(|| {
        Error::new(
            Kind::Malformed,
            "stargz.toc.place",
            "neither a table of contents nor an archive that begins with one",
        )
    })
}

fn type_name(body: &Body) -> &'static str {
    match body {
        Body::Regular { .. } => "file",
        Body::Directory => "directory",
        Body::Symlink { .. } => "symlink",
        Body::HardLink { .. } => "hardlink",
        Body::CharDevice(_) => "char-device",
        Body::BlockDevice(_) => "block-device",
        Body::Fifo => "fifo",
    }
}

fn entry_for_people(toc: &Toc, entry: &Entry) -> String {
    let attributes = entry.attributes;
    let mut text = format!(
        "/{} {} {:04o} {}:{} {}",
        entry.path.escape_ascii(),
        type_name(&entry.body),
        attributes.mode,
        attributes.uid,
        attributes.gid,
        attributes.mtime,
    );
    // Writing to a string cannot fail.
    let _ = match &entry.body {
        Body::Regular { size_bytes, .. } => write!(text, " {size_bytes}"),
        Body::Symlink { target } => write!(text, " -> {}", target.escape_ascii()),
        Body::HardLink { target } => write!(text, " = /{}", target_of(toc, *target).escape_ascii()),
        Body::CharDevice(Device { major, minor }) | Body::BlockDevice(Device { major, minor }) => {
            write!(text, " {major}:{minor}")
        }
        Body::Directory | Body::Fifo => Ok(()),
    };
    for xattr in &entry.xattrs {
        let _ = write!(text, "\n  {}={}", xattr.name.escape_ascii(), xattr.value.escape_ascii());
    }
    for chunk in toc.chunks_of(entry) {
        let _ = write!(
            text,
            "\n  {} at {}: blob {} + {}, {}",
            chunk.size_bytes,
            chunk.offset,
            chunk.blob_offset,
            chunk.inner_offset,
            Digest::of_sha256(chunk.digest)
        );
    }
    text
}

fn target_of(toc: &Toc, target: usize) -> &[u8] {
    toc.entries().get(target).map(|entry| entry.path.as_slice()).unwrap_or_default()
}

fn entry_as_json(toc: &Toc, entry: &Entry) -> Value {
    let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    };
    let attributes = entry.attributes;
    let mut value = json!({
        "path": format!("/{}", text(&entry.path)),
        "type": type_name(&entry.body),
        "hidden": toc.is_of_the_format(entry),
        "mode": attributes.mode,
        "uid": attributes.uid,
        "gid": attributes.gid,
        "mtime": { "seconds": attributes.mtime.seconds, "nanoseconds": attributes.mtime.nanoseconds },
        "xattrs": entry.xattrs.iter().map(|xattr| json!({
            "name": text(&xattr.name),
            "value": xattr.value.escape_ascii().to_string(),
        })).collect::<Vec<_>>(),
        "chunks": toc.chunks_of(entry).iter().map(|chunk| json!({
            "offset_bytes": chunk.offset,
            "len_bytes": chunk.size_bytes,
            "blob_offset": chunk.blob_offset,
            "inner_offset": chunk.inner_offset,
            "digest": Digest::of_sha256(chunk.digest).to_string(),
        })).collect::<Vec<_>>(),
    });
    let more = match &entry.body {
        Body::Regular { size_bytes, .. } => Some(("size_bytes", json!(size_bytes))),
        Body::Symlink { target } => Some(("target", json!(text(target)))),
        Body::HardLink { target } => Some(("target", json!(format!("/{}", text(target_of(toc, *target)))))),
        Body::CharDevice(device) | Body::BlockDevice(device) => {
            Some(("device", json!({ "major": device.major, "minor": device.minor })))
        }
        Body::Directory | Body::Fifo => None,
    };
    if let (Some((name, more)), Some(object)) = (more, value.as_object_mut()) {
        object.insert(name.to_owned(), more);
    }
    value
}
