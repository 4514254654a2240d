//! Where payload and table of contents are in a blob.
//!
//! Source: as for [`super::footer`]; `docs/formats/stargz.md`, "Detection".

use std::io;

use super::{
    declared::{Declared, Manifest},
    error::StargzError,
    footer::{Footer, Position, TAIL_BYTES, ZstdFooter},
};
use crate::{
    codec::{Decoder, Gzip, Zstd},
    digest::Digest,
    format::{
        ReadAt,
        tar::{Event, Parser},
    },
    limits,
    tree::{Body, Entry},
};

/// Name of the table's entry in an archive.
pub(super) const TOC_NAME: &[u8] = b"stargz.index.json";

/// Bytes of a blob read at a time.
const PIECE: usize = 64 << 10;
/// Largest window of a frame: that of the compressors that write such layers.
pub(super) const WINDOW_BYTES: u64 = 8 << 20;

/// Kind of an indexed layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// eStargz.
    Estargz,
    /// The predecessor of eStargz.
    Stargz,
    /// eStargz whose table is in another blob.
    ExternalToc,
    /// zstd:chunked of the stargz tools.
    ZstdStargz,
    /// zstd:chunked of the containers tools.
    ZstdContainers,
}

impl Form {
    /// Name in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Estargz => "eStargz",
            Self::Stargz => "stargz",
            Self::ExternalToc => "eStargz with an external table",
            Self::ZstdStargz => "zstd:chunked of the stargz tools",
            Self::ZstdContainers => "zstd:chunked of the containers tools",
        }
    }

    /// Whether payload and table are zstd frames, not gzip members.
    pub fn is_zstd(self) -> bool {
        matches!(self, Self::ZstdStargz | Self::ZstdContainers)
    }
}

/// Parts of an indexed layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Kind of the layer.
    pub form: Form,
    /// Bytes of the blob that hold the data of files, counted from its start.
    pub payload_end: u64,
    /// Place of the table, if it is in the blob: that of the member, or that of the compressed bytes in their frame.
    pub toc: Option<TocPlace>,
    /// Place of the tar-split data, which layers of the containers tools have.
    pub tar_split: Option<TocPlace>,
}

/// Place of a table, or of tar-split data, in a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TocPlace {
    /// First byte.
    pub offset: u64,
    /// Length in the blob, in bytes.
    pub len: u64,
    /// Length of the table, if the layer says so, in bytes.
    pub uncompressed_bytes: Option<u64>,
}

impl Layout {
    /// Finds the parts of `blob`, first by what its descriptor declares, then by its last bytes. `None`: it is no indexed
    /// layer.
    ///
    /// Errors: the place of the table makes no sense; reading fails.
    pub fn find(blob: &impl ReadAt, declared: &Declared) -> Result<Option<Self>, StargzError> {
        let size = blob.size_bytes();
        if let Some(Manifest { is_containers, place, tar_split, .. }) = declared.manifest {
            return Self::zstd(blob, is_containers, place, size).map(|found| Some(found.with(tar_split)));
        }
        let len = size.min(TAIL_BYTES as u64);
        let tail = read(blob, size - len, len)?;
        let gzip = |form, offset, footer: usize| Self::gzip(blob, form, offset, footer as u64);
        Ok(match Footer::decode(&tail) {
            Some(Footer::Estargz(offset)) => Some(gzip(Form::Estargz, offset, Footer::ESTARGZ_BYTES)?),
            Some(Footer::Legacy(offset)) => Some(gzip(Form::Stargz, offset, Footer::LEGACY_BYTES)?),
            Some(Footer::External) => {
                Some(Self { form: Form::ExternalToc, payload_end: size, toc: None, tar_split: None })
            }
            Some(Footer::Zstd(ZstdFooter { is_containers, place, tar_split, footer_bytes })) => {
                let end = size.saturating_sub(footer_bytes);
                Some(Self::zstd(blob, is_containers, place, end)?.with(tar_split))
            }
            None => None,
        })
    }

    fn with(self, tar_split: Option<Position>) -> Self {
        let place = |Position { offset, compressed_bytes, uncompressed_bytes }| TocPlace {
            offset,
            len: compressed_bytes,
            uncompressed_bytes: Some(uncompressed_bytes),
        };
        Self { tar_split: tar_split.map(place), ..self }
    }

    fn gzip(blob: &impl ReadAt, form: Form, offset: u64, footer_bytes: u64) -> Result<Self, StargzError> {
        let end = blob.size_bytes().saturating_sub(footer_bytes);
        let len = end.saturating_sub(offset);
        let refuse = |fault| StargzError::Place { offset, len, fault };
        if offset == 0 || len == 0 {
            return Err(refuse("nothing is between payload and footer"));
        }
        if read(blob, offset, len.min(3))? != [0x1f, 0x8b, 8] {
            return Err(refuse("no gzip member is there"));
        }
        let toc = Some(TocPlace { offset, len, uncompressed_bytes: None });
        Ok(Self { form, payload_end: offset, toc, tar_split: None })
    }

    /// `end`: first byte behind everything that can be the table.
    fn zstd(blob: &impl ReadAt, is_containers: bool, place: Position, end: u64) -> Result<Self, StargzError> {
        let Position { offset, compressed_bytes: len, uncompressed_bytes } = place;
        let refuse = |fault| StargzError::Place { offset, len, fault };
        let limit = limits::STARGZ_TOC_BYTES;
        for size_bytes in [len, uncompressed_bytes] {
            if size_bytes > limit {
                return Err(StargzError::TocSize { size_bytes, limit });
            }
        }
        let frame = offset.checked_sub(8).ok_or_else(|| refuse("no frame begins before it"))?;
        if offset.checked_add(len).is_none_or(|toc_end| toc_end > end) {
            return Err(refuse("it does not end before the footer"));
        }
        let header =
            [&[0x50, 0x2a, 0x4d, 0x18][..], &u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes()].concat();
        if read(blob, frame, 8)? != header {
            return Err(refuse("no skippable frame of this length is there"));
        }
        let form = if is_containers { Form::ZstdContainers } else { Form::ZstdStargz };
        let toc = Some(TocPlace { offset, len, uncompressed_bytes: Some(uncompressed_bytes) });
        Ok(Self { form, payload_end: frame, toc, tar_split: None })
    }

    /// Reads the table; `None` when it is in another blob. Compares it with what the descriptor declares.
    ///
    /// Errors: it is none, or another one; reading fails.
    pub fn read_toc(&self, blob: &impl ReadAt, declared: &Declared) -> Result<Option<Vec<u8>>, StargzError> {
        let Some(place) = self.toc else { return Ok(None) };
        let json = match place.uncompressed_bytes {
            Some(uncompressed_bytes) => {
                let bytes = read(blob, place.offset, place.len)?;
                if let Some(manifest) = &declared.manifest {
                    compare(&manifest.checksum, &bytes)?;
                }
                decompress(&bytes, uncompressed_bytes)?
            }
            None => {
                let mut member =
                    Pieces { blob, at: place.offset, end: place.offset.saturating_add(place.len) };
                let refuse = |fault| StargzError::Place { offset: place.offset, len: place.len, fault };
                toc_in_archive(&mut || member.next())?
                    .ok_or_else(|| refuse("the first entry of the archive there is not stargz.index.json"))?
            }
        };
        declared.compare(&json)?;
        Ok(Some(json))
    }
}

fn compare(expected: &Digest, bytes: &[u8]) -> Result<(), StargzError> {
    let found = Digest::sha256(bytes);
    match found == *expected {
        true => Ok(()),
        false => Err(StargzError::TocDigest { expected: expected.clone(), found }),
    }
}

fn read(blob: &impl ReadAt, offset: u64, len: u64) -> Result<Vec<u8>, StargzError> {
    let failed = |source| StargzError::Io { offset, len, source };
    let room = usize::try_from(len).map_err(|error| failed(io::Error::other(error)))?;
    let mut bytes = vec![0; room];
    blob.read_exact_at(offset, &mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// A range of a blob, piece by piece.
struct Pieces<'a, R> {
    blob: &'a R,
    at: u64,
    end: u64,
}

impl<R: ReadAt> Pieces<'_, R> {
    /// The next piece; empty at the end.
    fn next(&mut self) -> Result<Vec<u8>, StargzError> {
        let bytes = read(self.blob, self.at, self.end.saturating_sub(self.at).min(PIECE as u64))?;
        self.at = self.at.saturating_add(bytes.len() as u64);
        Ok(bytes)
    }
}

/// Decompresses a table from frames of zstd.
fn decompress(bytes: &[u8], uncompressed_bytes: u64) -> Result<Vec<u8>, StargzError> {
    let mut zstd = Zstd::new(WINDOW_BYTES).map_err(StargzError::TocData)?;
    let (mut input, mut json, mut output) = (bytes, Vec::new(), vec![0; PIECE]);
    loop {
        let had = input.len();
        let filled = zstd.decode(&mut input, &mut output).map_err(StargzError::TocData)?;
        json.extend_from_slice(output.get(..filled).unwrap_or_default());
        if json.len() as u64 > uncompressed_bytes {
            return Err(StargzError::TocSize { size_bytes: json.len() as u64, limit: uncompressed_bytes });
        }
        if filled < output.len() && input.len() == had {
            break;
        }
    }
    zstd.finish().map_err(StargzError::TocData)?;
    Ok(json)
}

/// The table in a compressed archive whose first entry it is: the last member of an eStargz layer, or the only layer of an
/// image that has nothing but the table. `next` returns the pieces of the archive in their order, and an empty one at
/// the end. `None`: the first entry is another one.
///
/// Errors: the archive is damaged; those of `next`.
pub fn toc_in_archive(
    next: &mut dyn FnMut() -> Result<Vec<u8>, StargzError>,
) -> Result<Option<Vec<u8>>, StargzError> {
    let (mut gzip, mut parser, mut output) = (Gzip::new(), Parser::new(), vec![0; PIECE]);
    let mut json: Option<Vec<u8>> = None;
    loop {
        let piece = next()?;
        let mut input = piece.as_slice();
        if input.is_empty() {
            gzip.finish().map_err(StargzError::TocData)?;
            return Ok(None);
        }
        while !input.is_empty() {
            let filled = gzip.decode(&mut input, &mut output).map_err(StargzError::TocData)?;
            let mut plain = output.get(..filled).unwrap_or_default();
            while let Some(event) = parser.next(&mut plain).map_err(StargzError::TocArchive)? {
                match event {
                    Event::Entry { entry, .. } => {
                        let Some(size_bytes) = size_of_toc(&entry) else { return Ok(None) };
                        let limit = limits::STARGZ_TOC_BYTES;
                        if size_bytes > limit {
                            return Err(StargzError::TocSize { size_bytes, limit });
                        }
                        json = Some(Vec::new());
                    }
                    Event::Data { bytes, .. } => {
                        if let Some(json) = &mut json {
                            json.extend_from_slice(bytes);
                        }
                    }
                    Event::EndOfEntry => return Ok(json),
                }
            }
        }
    }
}

/// Size of the table if `entry` is it.
fn size_of_toc(entry: &Entry) -> Option<u64> {
    match entry.body {
        Body::Regular { size_bytes, extents: None } if entry.path == TOC_NAME => Some(size_bytes),
        _ => None,
    }
}
