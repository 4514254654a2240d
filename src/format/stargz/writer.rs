//! Writes tables of contents, and the bytes around them.
//!
//! Equal entries give equal bytes. Members and their order are those of the Go writer of eStargz, so that readers that
//! compare tables find nothing new.
//!
//! Source: stargz-snapshotter `docs/estargz.md`, `estargz/build.go`, `estargz/zstdchunked/zstdchunked.go`.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::{
    declared::{STARGZ_CHECKSUM, STARGZ_POSITION, TOC_DIGEST},
    error::StargzError,
    footer::{Footer, Position},
    layout::TOC_NAME,
    text,
};
use crate::{
    digest::Digest,
    format::tar::writer::{Options, Writer, WriterError},
    tree::{Attributes, Body, Entry, Timestamp},
};

/// Size of every chunk of a file but the last, in bytes: that of the Go writer.
pub const CHUNK_BYTES: usize = 4 << 20;
/// Size of the uncompressed tar in bytes.
const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";
/// Contents of a landmark.
pub const LANDMARK: u8 = 0xf;

/// Entry that tells readers to load nothing early. Its only byte is [`LANDMARK`].
pub fn landmark() -> Entry {
    Entry {
        path: b".no.prefetch.landmark".to_vec(),
        attributes: Attributes::default(),
        xattrs: Vec::new(),
        body: Body::Regular { size_bytes: 1, extents: None },
    }
}

/// Collects the table of a layer that is being written.
#[derive(Debug, Default)]
pub struct TocWriter {
    entries: Vec<Written>,
    nanoseconds: bool,
}

/// A piece of a file that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Place of its member among all.
    pub member: usize,
    /// Byte of the file at which it begins.
    pub offset: u64,
    /// Size in bytes.
    pub size_bytes: u64,
}

/// Entry of the table, in the order in which Go writes its members.
#[derive(Debug, Default, Serialize)]
pub(super) struct Written {
    pub(super) name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    modtime: String,
    #[serde(rename = "linkName", skip_serializing_if = "String::is_empty")]
    link_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    uid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    gid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(rename = "devMajor", skip_serializing_if = "is_zero")]
    major: u64,
    #[serde(rename = "devMinor", skip_serializing_if = "is_zero")]
    minor: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    digest: String,
    #[serde(rename = "chunkOffset", skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(rename = "chunkSize", skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(rename = "chunkDigest", skip_serializing_if = "String::is_empty")]
    chunk_digest: String,
    /// The member with its data.
    #[serde(skip)]
    member: Option<usize>,
}

impl Written {
    /// The members that an entry has in the archive as well.
    pub(super) fn of(entry: &Entry, nanoseconds: bool) -> Result<Self, StargzError> {
        let spell = |bytes: &[u8]| match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_not_utf8) => Err(StargzError::Spelling { path: entry.path.clone(), bytes: bytes.to_vec() }),
        };
        let mut name = spell(&entry.path)?;
        let Attributes { mode, uid, gid, mtime } = entry.attributes;
        let mtime = if nanoseconds { mtime } else { Timestamp { nanoseconds: 0, ..mtime } };
        let mut written = Written {
            modtime: text::spell_time(mtime),
            mode: (mode & 0o7777).into(),
            uid: uid.into(),
            gid: gid.into(),
            ..Written::default()
        };
        if written.modtime.is_empty() {
            return Err(StargzError::WrittenTime { path: entry.path.clone(), seconds: mtime.seconds });
        }
        for xattr in &entry.xattrs {
            written.xattrs.insert(spell(&xattr.name)?, STANDARD.encode(&xattr.value));
        }
        written.kind = match &entry.body {
            Body::Regular { size_bytes, .. } => {
                written.size = *size_bytes;
                "reg"
            }
            Body::Directory => {
                // As the archive spells it.
                name.push('/');
                if name == "/" {
                    name = "./".to_owned();
                }
                "dir"
            }
            Body::Symlink { target } => {
                written.link_name = spell(target)?;
                written.mode = Attributes::SYMLINK_MODE.into();
                "symlink"
            }
            Body::HardLink { target } => {
                written.link_name = spell(target)?;
                "hardlink"
            }
            Body::CharDevice(device) | Body::BlockDevice(device) => {
                (written.major, written.minor) = (device.major.into(), device.minor.into());
                if matches!(entry.body, Body::CharDevice(_)) { "char" } else { "block" }
            }
            Body::Fifo => "fifo",
        };
        written.name = name;
        Ok(written)
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A table that was written.
#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    entries: &'a [Written],
}

impl TocWriter {
    /// A table without entries, whose times have nanoseconds or not.
    pub fn new(nanoseconds: bool) -> Self {
        Self { entries: Vec::new(), nanoseconds }
    }

    /// Adds an entry. [`Self::data`] adds the data of a file afterwards.
    ///
    /// Errors: a name is not UTF-8, which JSON cannot spell; a time has no year that RFC 3339 can spell.
    pub fn entry(&mut self, entry: &Entry) -> Result<(), StargzError> {
        let mut written = Written::of(entry, self.nanoseconds)?;
        // The Go writer leaves out the year 1970.
        if written.modtime == text::spell_time(Timestamp::default()) {
            written.modtime.clear();
        }
        self.entries.push(written);
        Ok(())
    }
    /// Adds the data of the file that was added last: its pieces in their order, none if it is empty, and its digest if
    /// there are several.
    pub fn data(&mut self, pieces: &[Piece], digest: Option<&Digest>) {
        let Some(file) = self.entries.last_mut() else { return };
        if let Some(digest) = digest {
            file.digest = digest.to_string();
        }
        let name = file.name.clone();
        for (number, Piece { member, offset, size_bytes }) in pieces.iter().enumerate() {
            if number > 0 {
                self.entries.push(Written { name: name.clone(), kind: "chunk", ..Written::default() });
            }
            let Some(entry) = self.entries.last_mut() else { return };
            entry.member = Some(*member);
            entry.chunk_offset = *offset;
            // The Go writer leaves out the size of a shorter piece, which is the file's last one.
            if *size_bytes == CHUNK_BYTES as u64 {
                entry.chunk_size = *size_bytes;
            }
        }
    }

    /// The table, with offset and digest of each member.
    ///
    /// Errors: the table is larger than readers take.
    pub fn finish<'m>(
        mut self,
        member: impl Fn(usize) -> Option<(u64, &'m Digest)>,
    ) -> Result<Vec<u8>, StargzError> {
        let of_nothing = Digest::sha256(&[]).to_string();
        for entry in &mut self.entries {
            if let Some((offset, digest)) = entry.member.and_then(&member) {
                entry.offset = offset;
                entry.chunk_digest = digest.to_string();
            }
            // A file of one piece has the piece's digest. The Go writer gives one to an empty file as well.
            if entry.kind == "reg" && entry.digest.is_empty() {
                let piece = Some(&entry.chunk_digest).filter(|_| entry.member.is_some());
                entry.digest = piece.unwrap_or(&of_nothing).clone();
            }
        }
        let document = Document { version: 1, entries: &self.entries };
        let json = serde_json::to_vec_pretty(&document).map_err(StargzError::Json)?;
        let (size_bytes, limit) = (json.len() as u64, crate::limits::STARGZ_TOC_BYTES);
        if size_bytes > limit {
            return Err(StargzError::TocSize { size_bytes, limit });
        }
        Ok(json)
    }
}

/// The end of an archive: the table as its last entry, and the zero blocks.
///
/// Errors: those of the writer.
pub fn archive_of(json: &[u8]) -> Result<Vec<u8>, WriterError> {
    let mut writer = Writer::new(Vec::new(), Options::default());
    writer.entry(&Entry {
        path: TOC_NAME.to_vec(),
        attributes: Attributes::default(),
        xattrs: Vec::new(),
        body: Body::Regular { size_bytes: json.len() as u64, extents: None },
    })?;
    writer.data(0, json)?;
    writer.end_entry()?;
    writer.finish()
}

/// The footer of an eStargz layer whose table is in the member at byte `offset`.
pub fn footer(offset: u64) -> Vec<u8> {
    Footer::encode(offset)
}

/// The end of a zstd:chunked layer: the compressed table and the footer, each in a skippable frame, and the annotations that
/// lead to it. `payload_end` is the length of the layer so far.
pub fn zstd_end(json: &[u8], packed: &[u8], payload_end: u64) -> (Vec<u8>, BTreeMap<String, String>) {
    let place = Position {
        offset: payload_end.saturating_add(8),
        compressed_bytes: packed.len() as u64,
        uncompressed_bytes: json.len() as u64,
    };
    let position = format!("{}:{}:{}:1", place.offset, place.compressed_bytes, place.uncompressed_bytes);
    let annotations = BTreeMap::from([
        (STARGZ_CHECKSUM.to_owned(), Digest::sha256(packed).to_string()),
        (STARGZ_POSITION.to_owned(), position),
    ]);
    (Footer::encode_zstd(packed, place), annotations)
}

/// Annotations of every layer with this table.
pub fn annotations(json: &[u8], stream_bytes: u64) -> BTreeMap<String, String> {
    BTreeMap::from([
        (TOC_DIGEST.to_owned(), Digest::sha256(json).to_string()),
        (UNCOMPRESSED_SIZE.to_owned(), stream_bytes.to_string()),
    ])
}
