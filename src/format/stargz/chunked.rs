//! Writes the parts of a zstd:chunked layer of the containers tools: the table, and what is behind it.
//!
//! Readers compare the table with the headers in the tar-split data, entry by entry, and refuse a layer where both differ.
//! So names are spelled as in the archive, and every time is there.
//!
//! Source: containers/storage `pkg/chunked/internal/minimal/compression.go`, `pkg/chunked/compression_linux.go`;
//! `docs/formats/stargz.md`, "What is written".

use std::{collections::BTreeMap, io::Write as _};

use serde::Serialize;

pub use super::{
    cutter::{Cut, Cutter},
    tar_split::{Split, TarSplit},
};
use super::{
    declared::{CONTAINERS_CHECKSUM, CONTAINERS_POSITION, CONTAINERS_TAR_SPLIT},
    error::StargzError,
    footer::{Footer, Position, skippable_header},
    writer::Written,
};
use crate::{digest::Digest, limits, tree::Entry};

/// Least bytes that the data of a file or chunk adds to a table: a digest and two offsets.
const DATA_BYTES: usize = 110;

/// A chunk that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Place of its frame among all.
    pub member: usize,
    /// Byte of the file at which it begins.
    pub offset: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Whether it is a hole, or a part of one.
    pub is_hole: bool,
}

/// A frame that was delivered, and where the next one begins.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'m> {
    /// Byte of the blob at which it begins.
    pub offset: u64,
    /// Byte of the blob behind it.
    pub end: u64,
    /// SHA-256 of the chunk in it.
    pub digest: &'m Digest,
}

/// Collects the table of a layer that is being written.
///
/// Entries are kept as they will be spelled, so that the size of the table is known while the layer is written, and is
/// nearly all that they take.
#[derive(Debug, Default)]
pub struct ChunkedToc {
    nanoseconds: bool,
    /// Beginnings of the entries, up to the members that are not known yet.
    heads: Vec<u8>,
    entries: Vec<Listed>,
    pieces: Vec<Piece>,
    /// Least number of bytes that the table will have.
    least_bytes: usize,
}

/// An entry of the table.
#[derive(Debug)]
struct Listed {
    /// End of its beginning among all.
    head_end: usize,
    /// End of the beginning that its further chunks have, which is behind its own.
    chunk_head_end: usize,
    /// End of its pieces among all.
    pieces_end: usize,
    /// Digest of a file of several pieces.
    digest: Option<Digest>,
}

/// Beginning of the entry of a chunk that is not the first of its file.
#[derive(Serialize)]
struct ChunkHead<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    name: &'a str,
}

impl ChunkedToc {
    /// A table without entries, whose times have nanoseconds or not.
    pub fn new(nanoseconds: bool) -> Self {
        Self { nanoseconds, ..Self::default() }
    }

    /// Adds an entry, and returns its name as the archive spells it. [`Self::data`] adds the data of a file afterwards.
    ///
    /// Errors: a name is not UTF-8, which JSON cannot spell; a time has no year that RFC 3339 can spell; the table becomes
    /// larger than readers take.
    pub fn entry(&mut self, entry: &Entry) -> Result<String, StargzError> {
        let written = Written::of(entry, self.nanoseconds)?;
        let start = self.heads.len();
        let head_end = self.add_head(&written)?;
        let listed =
            Listed { head_end, chunk_head_end: head_end, pieces_end: self.pieces.len(), digest: None };
        self.entries.push(listed);
        self.count(head_end.saturating_sub(start))?;
        Ok(written.name)
    }

    /// Adds the data of the file `name` that was added last: its pieces in their order, and its digest if there are several.
    ///
    /// Errors: the table becomes larger than readers take.
    pub fn data(&mut self, name: &str, pieces: &[Piece], digest: Option<Digest>) -> Result<(), StargzError> {
        let start = self.heads.len();
        let further = pieces.len().saturating_sub(1);
        let chunk_head_end = match further {
            0 => start,
            _ => self.add_head(&ChunkHead { kind: "chunk", name })?,
        };
        self.pieces.extend_from_slice(pieces);
        if let Some(file) = self.entries.last_mut() {
            *file = Listed { chunk_head_end, pieces_end: self.pieces.len(), digest, ..*file };
        }
        let heads = chunk_head_end.saturating_sub(start).saturating_mul(further);
        self.count(pieces.len().saturating_mul(DATA_BYTES).saturating_add(heads))
    }

    /// Adds an object without its last brace, since members may follow. Returns its end.
    fn add_head(&mut self, head: &impl Serialize) -> Result<usize, StargzError> {
        serde_json::to_writer(&mut self.heads, head).map_err(StargzError::Json)?;
        self.heads.pop();
        Ok(self.heads.len())
    }

    /// Counts bytes of the table that are certain.
    fn count(&mut self, bytes: usize) -> Result<(), StargzError> {
        self.least_bytes = self.least_bytes.saturating_add(bytes);
        check_size(self.least_bytes)?;
        let limit = limits::STARGZ_ENTRIES;
        match self.entries.len().saturating_add(self.pieces.len()) > limit {
            true => Err(StargzError::Entries { limit }),
            false => Ok(()),
        }
    }

    /// The table, with places and digests of the frames, and the digest of the compressed tar-split data.
    ///
    /// Errors: the table is larger than readers take.
    pub fn finish<'m>(
        self,
        frame: impl Fn(usize) -> Option<Frame<'m>>,
        tar_split: &Digest,
    ) -> Result<Vec<u8>, StargzError> {
        let mut json = Vec::with_capacity(self.least_bytes);
        json.extend_from_slice(br#"{"version":1,"entries":["#);
        let (mut heads, mut pieces) = (0, 0);
        for Listed { head_end, chunk_head_end, pieces_end, digest } in &self.entries {
            if heads > 0 {
                json.push(b',');
            }
            let head = self.heads.get(heads..*head_end).unwrap_or_default();
            let chunk_head = self.heads.get(*head_end..*chunk_head_end).unwrap_or_default();
            let own = self.pieces.get(pieces..*pieces_end).unwrap_or_default();
            json.extend_from_slice(head);
            // Writing to a vector cannot fail.
            if let Some((first, last)) = own.first().zip(own.last())
                && let Some((first, last)) = frame(first.member).zip(frame(last.member))
            {
                let (digest, Frame { offset, .. }) = (digest.as_ref().unwrap_or(first.digest), first);
                let _ = write!(json, r#","digest":"{digest}","offset":{offset},"endOffset":{}"#, last.end);
            }
            if let [first, further @ ..] = own
                && !further.is_empty()
            {
                chunk(&mut json, first, frame(first.member));
                for piece in further {
                    json.extend_from_slice(b"},");
                    json.extend_from_slice(chunk_head);
                    if let Some(Frame { offset, .. }) = frame(piece.member) {
                        let _ = write!(json, r#","offset":{offset},"chunkOffset":{}"#, piece.offset);
                    }
                    chunk(&mut json, piece, frame(piece.member));
                }
            }
            json.push(b'}');
            (heads, pieces) = (*chunk_head_end, *pieces_end);
        }
        let _ = write!(json, r#"],"tarSplitDigest":"{tar_split}"}}"#);
        check_size(json.len())?;
        Ok(json)
    }
}

/// Writes the members that every chunk of a file with several has.
fn chunk(json: &mut Vec<u8>, piece: &Piece, frame: Option<Frame<'_>>) {
    let Some(Frame { digest, .. }) = frame else { return };
    // Writing to a vector cannot fail.
    let _ = write!(json, r#","chunkSize":{},"chunkDigest":"{digest}""#, piece.size_bytes);
    if piece.is_hole {
        json.extend_from_slice(br#","chunkType":"zeros""#);
    }
}

fn check_size(bytes: usize) -> Result<(), StargzError> {
    let (size_bytes, limit) = (bytes as u64, limits::STARGZ_TOC_BYTES);
    match size_bytes > limit {
        true => Err(StargzError::TocSize { size_bytes, limit }),
        false => Ok(()),
    }
}

/// The parts of a layer behind its payload, and the annotations that lead to them.
#[derive(Debug)]
pub struct End {
    /// Bytes of the blob, in their order.
    pub parts: Vec<Vec<u8>>,
    /// Annotations of the layer's descriptor.
    pub annotations: BTreeMap<String, String>,
}

/// The end of a layer with the table `json`, which is `packed` compressed. `payload_end` is the length of the layer so far.
pub fn end(json: &[u8], packed: Vec<u8>, split: Split, payload_end: u64) -> End {
    const HEADER: u64 = 8;
    let toc = Position {
        offset: payload_end.saturating_add(HEADER),
        compressed_bytes: packed.len() as u64,
        uncompressed_bytes: json.len() as u64,
    };
    let tar_split = Position {
        offset: toc.offset.saturating_add(toc.compressed_bytes).saturating_add(HEADER),
        compressed_bytes: split.packed.len() as u64,
        uncompressed_bytes: split.size_bytes,
    };
    let spell = |Position { offset, compressed_bytes, uncompressed_bytes }| {
        format!("{offset}:{compressed_bytes}:{uncompressed_bytes}")
    };
    let annotations = BTreeMap::from([
        (CONTAINERS_CHECKSUM.to_owned(), Digest::sha256(&packed).to_string()),
        (CONTAINERS_POSITION.to_owned(), format!("{}:{}", spell(toc), Position::TOC_TYPE)),
        (CONTAINERS_TAR_SPLIT.to_owned(), spell(tar_split)),
    ]);
    let headers = [&packed, &split.packed].map(|body| skippable_header(body).to_vec());
    let [toc_header, split_header] = headers;
    let footer = Footer::encode_containers(toc, tar_split);
    End { parts: vec![toc_header, packed, split_header, split.packed, footer], annotations }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Classify as _,
        tree::{Attributes, Body, Timestamp},
    };

    fn entry(path: String, body: Body) -> Entry {
        let mtime = Timestamp { seconds: 0, nanoseconds: 500_000_000 };
        let attributes = Attributes { mode: 0o640, mtime, ..Attributes::default() };
        Entry { path: path.into_bytes(), attributes, xattrs: Vec::new(), body }
    }

    fn spelled(toc: ChunkedToc) -> serde_json::Value {
        let digests: Vec<_> = (0..4_u8).map(|number| Digest::sha256(&[number])).collect();
        let frame = |at: usize| {
            let offset = 100 * (at as u64 + 1);
            Some(Frame { offset, end: offset + 90, digest: digests.get(at)? })
        };
        let json = toc.finish(frame, &Digest::sha256(b"split")).unwrap();
        serde_json::from_slice(&json).unwrap()
    }

    #[test]
    fn a_table_spells_entries_and_chunks_as_the_containers_tools_do() {
        let file = |size_bytes| Body::Regular { size_bytes, extents: None };
        let mut toc = ChunkedToc::new(true);
        assert_eq!(toc.entry(&entry("d".to_owned(), Body::Directory)).unwrap(), "d/");
        toc.entry(&entry("empty".to_owned(), file(0))).unwrap();
        toc.data("empty", &[], None).unwrap();
        toc.entry(&entry("one".to_owned(), file(5))).unwrap();
        let piece = |member, offset, is_hole| Piece { member, offset, size_bytes: 5, is_hole };
        toc.data("one", &[piece(0, 0, true)], None).unwrap();
        let name = toc.entry(&entry("s\"ome".to_owned(), file(10))).unwrap();
        let digest = Digest::sha256(b"some");
        toc.data(&name, &[piece(2, 0, false), piece(3, 5, true)], Some(digest.clone())).unwrap();
        let of = |number: u8| Digest::sha256(&[number]).to_string();
        let time = "1970-01-01T00:00:00.5Z";
        let want = serde_json::json!({
            "version": 1,
            "entries": [
                {"name": "d/", "type": "dir", "modtime": time, "mode": 0o640},
                {"name": "empty", "type": "reg", "modtime": time, "mode": 0o640},
                {"name": "one", "type": "reg", "modtime": time, "mode": 0o640, "size": 5, "digest": of(0), "offset": 100, "endOffset": 190},
                {
                    "name": "s\"ome", "type": "reg", "modtime": time, "mode": 0o640, "size": 10, "digest": digest.to_string(),
                    "offset": 300, "endOffset": 490, "chunkSize": 5, "chunkDigest": of(2),
                },
                {
                    "name": "s\"ome", "type": "chunk", "offset": 400, "chunkOffset": 5, "chunkSize": 5, "chunkDigest": of(3),
                    "chunkType": "zeros",
                },
            ],
            "tarSplitDigest": Digest::sha256(b"split").to_string(),
        });
        assert_eq!(spelled(toc), want);
        assert_eq!(spelled(ChunkedToc::new(false))["entries"], serde_json::json!([]));
        // Whole seconds, if those are asked for; the start of 1970 is a time as well.
        let mut toc = ChunkedToc::new(false);
        toc.entry(&entry("a".to_owned(), Body::Fifo)).unwrap();
        assert_eq!(spelled(toc)["entries"][0]["modtime"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn a_table_beyond_what_readers_take_is_refused_before_it_is_complete() {
        let mut toc = ChunkedToc::new(false);
        let mut add =
            || (0..100_000).try_for_each(|_| toc.entry(&entry("n".repeat(4000), Body::Fifo)).map(drop));
        let error = add().unwrap_err();
        assert!(matches!(error, StargzError::TocSize { .. }), "{error}");
        assert_eq!(error.reason(), "limit.stargz.toc");
        assert!(toc.entries.len() < 40_000 && toc.heads.len() < 151 << 20);

        let mut toc = ChunkedToc::new(false);
        let pieces = [Piece { member: 0, offset: 0, size_bytes: 1, is_hole: false }; 1000];
        toc.entry(&entry("f".to_owned(), Body::Regular { size_bytes: 1000, extents: None })).unwrap();
        let error = (0..3000).try_for_each(|_| toc.data("f", &pieces, None)).unwrap_err();
        assert_eq!(error.reason(), "limit.stargz.toc");
        assert!(toc.pieces.len() < 1_500_000);
    }

    #[test]
    fn what_a_table_cannot_spell_is_refused() {
        let mut toc = ChunkedToc::new(false);
        let mut odd = entry(String::new(), Body::Fifo);
        odd.path = b"caf\xe9".to_vec();
        assert_eq!(toc.entry(&odd).unwrap_err().reason(), "stargz.write.name");
        let mut late = entry("late".to_owned(), Body::Fifo);
        late.attributes.mtime.seconds = 253_402_300_799;
        toc.entry(&late).unwrap();
        late.attributes.mtime.seconds += 1;
        assert_eq!(toc.entry(&late).unwrap_err().reason(), "stargz.write.time");
    }
}
