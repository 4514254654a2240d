//! Metadata of an archive: its headers without the data, from which overlaybd builds a layer without reading the archive
//! again.
//!
//! Every header block is there, with the extension headers and their bodies, but for the blocks that end the archive. The
//! header of a file has the place of its data in the archive in the field for the device major, as 64-bit little-endian
//! number; its checksum is not that of its bytes then. [`Parser::of_metadata`] reads such a file.
//!
//! Source: `docs/formats/overlaybd.md`, "Tar metadata".

use super::{
    error::TarError,
    header,
    parser::{Event, Parser},
};

/// Makes the metadata of an archive that comes in pieces of any size.
#[derive(Debug)]
pub struct Exporter {
    parser: Parser,
}

impl Default for Exporter {
    fn default() -> Self {
        Self::new()
    }
}

impl Exporter {
    /// Exporter at the beginning of an archive.
    pub fn new() -> Self {
        Self { parser: Parser::copying() }
    }

    /// Takes in the next bytes of the archive, and appends the metadata of all entries that begin in them to `out`: that
    /// is at most 1 MiB and a few blocks more than the bytes themselves.
    ///
    /// Errors: those of [`Parser`]; a sparse file whose map stands in its data.
    pub fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<(), TarError> {
        while let Some(event) = self.parser.next(&mut input)? {
            if let Event::Entry { data_start, .. } = event {
                let mut headers = self.parser.take_headers();
                if let Some(header) = headers.last_chunk_mut() {
                    header::put_place(header, data_start);
                }
                out.append(&mut headers);
            }
        }
        Ok(())
    }

    /// Ends the archive; appends global headers that no entry follows. Errors: an incomplete archive.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), TarError> {
        self.parser.finish()?;
        out.append(&mut self.parser.take_headers());
        Ok(())
    }
}

/// Fuzz entry: reads `data` as metadata in pieces of different sizes, then as an archive, whose metadata has to give the
/// same entries at the same places.
///
/// # Panics
///
/// When two readings differ.
pub fn fuzz(data: &[u8]) {
    let whole = entries(Parser::of_metadata(), data, usize::MAX);
    assert_eq!(entries(Parser::of_metadata(), data, 1 + data.len() % 700), whole, "in pieces");

    let mut mended = data.to_vec();
    for block in mended.as_chunks_mut().0 {
        header::mend_checksum(block);
    }
    for archive in [data, &mended] {
        let mut metadata = Vec::new();
        let mut exporter = Exporter::new();
        let exported = exporter.push(archive, &mut metadata).and_then(|()| exporter.finish(&mut metadata));
        if exported.is_ok() {
            let direct = entries(Parser::new(), archive, usize::MAX);
            assert_eq!(entries(Parser::of_metadata(), &metadata, 512), direct, "by its metadata");
        }
    }
}

/// Every entry with the place of its data, and the reason of a refusal.
fn entries(
    mut parser: Parser,
    data: &[u8],
    piece: usize,
) -> (Vec<(crate::tree::Entry, u64)>, Option<&'static str>) {
    let mut found = Vec::new();
    let mut read = || {
        for mut input in data.chunks(piece) {
            while let Some(event) = parser.next(&mut input)? {
                if let Event::Entry { entry, data_start } = event {
                    found.push((entry, data_start));
                }
            }
        }
        parser.finish()
    };
    let refused = read().err().map(|error| error.problem().reason());
    (found, refused)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::error::Classify;

    fn export(archive: &[u8], piece: usize) -> Result<Vec<u8>, TarError> {
        let (mut exporter, mut out) = (Exporter::new(), Vec::new());
        for piece in archive.chunks(piece) {
            exporter.push(piece, &mut out)?;
        }
        exporter.finish(&mut out)?;
        Ok(out)
    }

    fn base() -> Vec<u8> {
        let blob = include_bytes!("../../../tests/fixtures/gzindex/base.tar.gz");
        let mut archive = Vec::new();
        flate2::read::GzDecoder::new(&blob[..]).read_to_end(&mut archive).unwrap();
        archive
    }

    const WANT: &[u8] = include_bytes!("../../../tests/fixtures/tar/base.tar.meta");

    #[test]
    fn metadata_is_that_of_overlaybd_byte_for_byte() {
        let archive = base();
        for piece in [usize::MAX, 1, 511, 512, 5000] {
            assert!(export(&archive, piece).unwrap() == WANT, "in pieces of {piece} bytes");
        }
    }

    #[test]
    fn metadata_gives_the_entries_and_places_of_the_archive() {
        let direct = entries(Parser::new(), &base(), usize::MAX);
        assert_eq!((direct.0.len(), direct.1), (12, None));
        for piece in [usize::MAX, 1, 700] {
            assert_eq!(entries(Parser::of_metadata(), WANT, piece), direct);
        }
        let mut parser = Parser::of_metadata();
        let mut input = WANT;
        let mut open = false;
        while let Some(event) = parser.next(&mut input).unwrap() {
            match event {
                Event::Entry { entry, .. } => {
                    open = matches!(entry.body, crate::tree::Body::Regular { .. });
                }
                Event::Data { .. } => panic!("there is no data"),
                Event::EndOfEntry => assert!(std::mem::take(&mut open), "a file ends once"),
            }
        }
    }

    fn file(name: &str, data: &[u8]) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        let mut bytes = [header.as_bytes().as_slice(), data].concat();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn extension(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = file("ext", body);
        bytes[156] = kind;
        let mut header = tar::Header::from_byte_slice(&bytes[..512]).clone();
        header.set_cksum();
        bytes[..512].copy_from_slice(header.as_bytes());
        bytes
    }

    #[test]
    fn extensions_are_kept_with_their_bodies_and_data_is_not() {
        let long = [&[b'n'; 300][..], b"\0"].concat();
        let parts = [
            (extension(b'g', b"13 comment=x\n"), true),
            (extension(b'L', &long), true),
            (file("short", &[7; 700]), false),
            (extension(b'x', b"21 path=another-name\n"), true),
            (file("b", b""), false),
            (extension(b'g', b"13 comment=y\n"), true),
        ];
        let archive: Vec<u8> = parts.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        let mut want = Vec::new();
        let mut at = 0;
        for (bytes, is_kept) in &parts {
            at += bytes.len() as u64;
            let mut kept = if *is_kept { bytes.clone() } else { bytes[..512].to_vec() };
            if !is_kept {
                let place = at - (bytes.len() as u64 - 512);
                kept[329..337].copy_from_slice(&place.to_le_bytes());
            }
            want.extend(kept);
        }
        for end in [0, 1, 2, 30] {
            let archive = [&archive[..], &vec![0; end * 512]].concat();
            assert!(export(&archive, 100).unwrap() == want, "{end} blocks at the end");
        }
        let imported = entries(Parser::of_metadata(), &want, usize::MAX);
        assert_eq!(imported, entries(Parser::new(), &archive, usize::MAX));
        assert_eq!(imported.0[0].0.path, [b'n'; 300]);
    }

    #[test]
    fn checksums_of_metadata_are_not_looked_at() {
        let mut metadata = WANT.to_vec();
        metadata[148..156].fill(b'7');
        assert_eq!(entries(Parser::of_metadata(), &metadata, usize::MAX).1, None);
    }

    #[test]
    fn a_place_where_no_data_can_be_is_refused() {
        for place in [0_u64, 2048, 3072, u64::MAX] {
            let mut metadata = WANT.to_vec();
            metadata[2048 + 329..2048 + 337].copy_from_slice(&place.to_le_bytes());
            let mut parser = Parser::of_metadata();
            let mut input = &metadata[..];
            let error = loop {
                match parser.next(&mut input) {
                    Ok(event) => assert!(event.is_some()),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.reason(), "tar.metadata.place");
            assert_eq!((error.header_offset(), error.name()), (2048, &b"app/bin/hello"[..]));
            assert!(error.to_string().contains("comes at byte 2560"), "{error}");
        }
    }

    #[test]
    fn a_sparse_map_in_the_data_cannot_be_left_out() {
        let records = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n28 GNU.sparse.realsize=9999\n";
        let headers = extension(b'x', records);
        let mut data = b"1\n5000\n4\n".to_vec();
        data.resize(512, 0);
        data.extend(b"data");
        let archive = [headers, file("sparse", &data)].concat();
        assert_eq!(entries(Parser::new(), &archive, usize::MAX).1, None);
        assert_eq!(export(&archive, 512).unwrap_err().reason(), "tar.metadata.sparse");
        let mut metadata = archive[..1536].to_vec();
        metadata[1024 + 329..1024 + 337].copy_from_slice(&1536_u64.to_le_bytes());
        assert_eq!(entries(Parser::of_metadata(), &metadata, 512).1, Some("tar.metadata.sparse"));
    }

    #[test]
    fn an_archive_that_is_refused_has_no_metadata() {
        let mut archive = base();
        archive[3072 + 148] ^= 1;
        assert_eq!(export(&archive, 512).unwrap_err().reason(), "tar.checksum");
        assert_eq!(export(&base()[..3200], 512).unwrap_err().reason(), "tar.truncated.header");
    }
}
