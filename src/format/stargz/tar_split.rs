//! tar-split: an archive without the data of its files, from which, with the files, it can be made again byte for byte.
//!
//! Lines of JSON: segments, which are bytes of the archive, and files, whose data goes between two segments. There is one
//! segment with the headers of each entry, and the padding of the file before it: readers parse each by itself.
//!
//! Source: vbatts/tar-split `tar/storage/entry.go`, `tar/asm/`; `docs/formats/stargz.md`, "tar-split".

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::{crc64::Crc64, error::StargzError};
use crate::codec::encode::Compression;

/// Bytes of text that are compressed at a time, in a frame of their own: the text is more than ten times the result, and
/// is not kept.
const BLOCK_BYTES: usize = 4 << 20;

/// Writes tar-split data while an archive is written.
///
/// It needs no limit of its own: the table spells in plain text whatever does not compress, names, targets and attributes, and
/// has a digest of each file besides. So its limit is met first.
#[derive(Debug)]
pub struct TarSplit {
    compression: Compression,
    /// Lines that were not compressed yet.
    text: Vec<u8>,
    packed: Vec<u8>,
    size_bytes: u64,
    /// Number of lines.
    position: u64,
    /// Bytes of the segment that is being written.
    segment: Vec<u8>,
    /// Sum over the data of the file that is being written.
    crc: Crc64,
}

/// tar-split data of a whole archive.
#[derive(Debug, PartialEq, Eq)]
pub struct Split {
    /// Compressed, in frames.
    pub packed: Vec<u8>,
    /// Size in bytes, uncompressed.
    pub size_bytes: u64,
}

/// A line, its members in the order of Go's.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// Bytes of a segment, or sum of a file with data, the highest byte first; in base64.
    payload: Option<&'a str>,
    position: u64,
}

const FILE: u8 = 1;
const SEGMENT: u8 = 2;

impl TarSplit {
    /// Data of an archive without anything.
    pub fn new(compression: Compression) -> Self {
        Self {
            compression,
            text: Vec::new(),
            packed: Vec::new(),
            size_bytes: 0,
            position: 0,
            segment: Vec::new(),
            crc: Crc64::default(),
        }
    }

    /// Takes bytes of the archive that are no data of a file.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.segment.extend_from_slice(bytes);
    }

    /// Takes data of a file.
    pub fn data(&mut self, bytes: &[u8]) {
        self.crc.update(bytes);
    }

    /// Ends the headers of an entry.
    ///
    /// Errors: no memory to compress with.
    pub fn end_headers(&mut self) -> Result<(), StargzError> {
        let segment = std::mem::take(&mut self.segment);
        let payload = STANDARD.encode(&segment);
        self.line(Line { kind: SEGMENT, name: None, size: None, payload: Some(&payload), position: 0 })?;
        self.segment = segment;
        self.segment.clear();
        Ok(())
    }

    /// Ends the entry `name`, whose data has `size_bytes`.
    ///
    /// Errors: no memory to compress with.
    pub fn end_entry(&mut self, name: &str, size_bytes: u64) -> Result<(), StargzError> {
        let crc = std::mem::take(&mut self.crc).finish();
        let sum = (size_bytes > 0).then(|| STANDARD.encode(crc.to_be_bytes()));
        let size = Some(size_bytes).filter(|size_bytes| *size_bytes > 0);
        self.line(Line { kind: FILE, name: Some(name), size, payload: sum.as_deref(), position: 0 })
    }

    /// Ends the archive.
    ///
    /// Errors: no memory to compress with.
    pub fn finish(mut self) -> Result<Split, StargzError> {
        self.end_headers()?;
        self.pack()?;
        Ok(Split { packed: self.packed, size_bytes: self.size_bytes })
    }

    fn line(&mut self, line: Line<'_>) -> Result<(), StargzError> {
        let line = Line { position: self.position, ..line };
        serde_json::to_writer(&mut self.text, &line).map_err(StargzError::Json)?;
        self.text.push(b'\n');
        self.position += 1;
        if self.text.len() >= BLOCK_BYTES { self.pack() } else { Ok(()) }
    }

    /// Compresses the lines.
    fn pack(&mut self) -> Result<(), StargzError> {
        self.packed.extend(self.compression.whole(&self.text).map_err(StargzError::Encoder)?);
        self.size_bytes = self.size_bytes.saturating_add(self.text.len() as u64);
        self.text.clear();
        Ok(())
    }
}
