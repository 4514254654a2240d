//! The tar archive around a native overlaybd layer: one file, whose data is the payload.
//!
//! Registries take layers in tar archives only. A reader of the payload finds it from the first blocks, and needs none
//! of those after it.
//!
//! Source: `docs/formats/overlaybd.md`, "Tar wrapper"; POSIX.1-2017 `pax`.

use std::{io, ops::Range};

use super::{
    error::TarError,
    header::{self, BLOCK, is_posix},
    parser::{Event, Parser},
};
use crate::{
    error::{Classify, Kind, Quoted, disk_kind, disk_reason},
    format::ReadAt,
    tree::Body,
};

/// Name of the file in the archive.
pub const NAME: &[u8] = b"overlaybd.commit";

/// Most bytes before the payload. Writers need three blocks at most.
const HEADERS_MAX: u64 = 64 << 10;

/// Where the payload is in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Name of the first file.
    pub name: Vec<u8>,
    /// Bytes of its data.
    pub range: Range<u64>,
}

/// Reason why an archive has no payload.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WrapperError {
    /// Reading the file failed.
    #[error("reading {len} bytes at byte {offset} of the tar archive failed")]
    Io {
        /// Byte of the file at which the read started.
        offset: u64,
        /// Number of bytes requested.
        len: u64,
        /// Error of the file's reader.
        source: io::Error,
    },
    /// The headers break a rule for all archives.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The first entry is no regular file with all its data.
    #[error("the first entry, {}, is not a regular file without holes", Quoted(name))]
    NotFile {
        /// Name of the entry.
        name: Vec<u8>,
    },
    /// The headers do not end, or the file does not begin.
    #[error("no file begins in the first {bytes} bytes of the tar archive")]
    NoFile {
        /// Number of bytes.
        bytes: u64,
    },
    /// The payload ends behind the end of the archive.
    #[error(
        "a payload of {len} bytes at byte {offset} ends behind the {size_bytes} bytes of the tar archive"
    )]
    Truncated {
        /// Byte at which the payload begins.
        offset: u64,
        /// Length of the payload in bytes.
        len: u64,
        /// Size of the archive in bytes.
        size_bytes: u64,
    },
}

impl Classify for WrapperError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } => disk_kind(source),
            Self::Tar(error) => error.kind(),
            Self::NotFile { .. } | Self::NoFile { .. } | Self::Truncated { .. } => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Io { source, .. } => disk_reason(source, "disk.read"),
            Self::Tar(error) => error.reason(),
            Self::NotFile { .. } => "overlaybd.wrapper.type",
            Self::NoFile { .. } => "overlaybd.wrapper.empty",
            Self::Truncated { .. } => "overlaybd.wrapper.truncated",
        }
    }
}

/// Looks for the payload of a file; `None` if the file is not wrapped.
///
/// Errors: [`WrapperError`] for a tar archive that does not begin with a whole regular file.
pub fn find(source: &(impl ReadAt + ?Sized)) -> Result<Option<Payload>, WrapperError> {
    let size_bytes = source.size_bytes();
    let mut block = [0; BLOCK];
    let len = BLOCK as u64;
    let read = |offset: u64, block: &mut [u8; BLOCK]| {
        source.read_exact_at(offset, block).map_err(|source| WrapperError::Io { offset, len, source })
    };
    if size_bytes < len {
        return Ok(None);
    }
    read(0, &mut block)?;
    // Readers take archives with GNU's magic number for bare payloads.
    if !is_posix(&block) {
        return Ok(None);
    }
    let mut parser = Parser::new();
    let mut offset = 0;
    loop {
        let event = parser.next(&mut &block[..])?;
        offset += len;
        if let Some(Event::Entry { entry, .. }) = event {
            let Body::Regular { size_bytes: len, extents: None } = entry.body else {
                return Err(WrapperError::NotFile { name: entry.path });
            };
            let end = offset.checked_add(len).filter(|end| *end <= size_bytes);
            let end = end.ok_or(WrapperError::Truncated { offset, len, size_bytes })?;
            return Ok(Some(Payload { name: entry.path, range: offset..end }));
        }
        if parser.is_finished() || offset + len > size_bytes.min(HEADERS_MAX) {
            return Err(WrapperError::NoFile { bytes: offset });
        }
        read(offset, &mut block)?;
    }
}

/// Fuzz entry: looks for the payload of `data`, once as it is and once with the checksums of all headers corrected. Then
/// wraps `data`, and looks for it.
///
/// # Panics
///
/// When a payload is outside its archive, or is not found again.
pub fn fuzz(data: &[u8]) {
    let mut mended = data.to_vec();
    for block in mended.as_chunks_mut().0 {
        header::mend_checksum(block);
    }
    for archive in [data, &mended] {
        if let Ok(Some(Payload { range, .. })) = find(archive) {
            assert!(
                range.start <= range.end && range.end <= archive.len() as u64,
                "a payload is in its archive"
            );
            assert!(range.start > 0 && range.start % BLOCK as u64 == 0, "a payload begins with a block");
        }
    }
    let around = around(data.len() as u64).expect("a slice is no larger");
    let zeros = vec![0; usize::try_from(around.zeros_after).unwrap_or_default()];
    let archive = [&around.before[..], data, &zeros].concat();
    let payload = find(&archive[..]).expect("what is written is read").expect("it is an archive");
    assert_eq!(payload.name, NAME, "the name of the file");
    assert_eq!(payload.range, HEADERS_LEN..HEADERS_LEN + data.len() as u64, "the place of the payload");
}

/// Length of an archive's headers in bytes, whatever the payload.
pub const HEADERS_LEN: u64 = 3 * BLOCK as u64;

/// Bytes of an archive around the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Around {
    /// Headers before the payload.
    pub before: [u8; 3 * BLOCK],
    /// Number of zeros after the payload: up to the end of its block, and two empty blocks.
    pub zeros_after: u64,
}

/// Archive around a payload of `len` bytes, as the upstream commit tool writes it: a PAX header with the size, and the
/// header of the file, whose own size is 0.
///
/// `None` from 2^63 bytes on, which is more than a file can have.
pub fn around(len: u64) -> Option<Around> {
    i64::try_from(len).ok()?;
    let record = size_record(len);
    let mut extended = Fields::new(b"overlaybd.pax", b'x');
    extended.number(124, 11, record.len() as u64);
    let mut file = Fields::new(NAME, b'0');
    // With the bits of the file type, as the upstream tool takes them from stat(2).
    file.number(100, 6, 0o100_644);
    file.number(108, 6, 0);
    file.number(116, 6, 0);
    file.number(124, 11, 0);
    file.number(136, 11, 0);
    file.text(265, b"root");
    file.text(297, b"root");
    let mut before = [0; 3 * BLOCK];
    let (blocks, _) = before.as_chunks_mut::<BLOCK>();
    if let [first, second, third] = blocks {
        *first = extended.finish();
        if let Some(body) = second.get_mut(..record.len()) {
            body.copy_from_slice(record.as_bytes());
        }
        *third = file.finish();
    }
    let block = BLOCK as u64;
    Some(Around { before, zeros_after: len.next_multiple_of(block) - len + 2 * block })
}

/// The PAX record of a size. Its length counts its own digits.
fn size_record(len: u64) -> String {
    let body = format!(" size={len}\n");
    let mut total = body.len() + 1;
    while total != body.len() + total.to_string().len() {
        total += 1;
    }
    format!("{total}{body}")
}

/// A header whose numbers are padded with spaces.
struct Fields([u8; BLOCK]);

impl Fields {
    fn new(name: &[u8], kind: u8) -> Self {
        let mut fields = Self([0; BLOCK]);
        fields.text(0, name);
        fields.text(156, &[kind]);
        fields.text(257, b"ustar\x0000");
        fields
    }

    fn text(&mut self, at: usize, text: &[u8]) {
        if let Some(field) = self.0.get_mut(at..at + text.len()) {
            field.copy_from_slice(text);
        }
    }

    /// Octal digits at the right of `digits` bytes, and a space.
    fn number(&mut self, at: usize, digits: usize, value: u64) {
        self.text(at, format!("{value:>digits$o} ").as_bytes());
    }

    fn finish(mut self) -> [u8; BLOCK] {
        self.text(148, b"        ");
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.number(148, 6, sum);
        self.text(155, &[0]);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by `overlaybd-commit -t`, and by an ordinary archive writer; see their README.
    const UPSTREAM: &[u8] = include_bytes!("../../../tests/fixtures/overlaybd/tarwrap/obd-commit-t.tar");
    const PLAIN: &[u8] = include_bytes!("../../../tests/fixtures/overlaybd/tarwrap/plain-ustar.tar");
    const PAYLOAD_BYTES: u64 = 106_342;

    fn ours(payload: &[u8]) -> Vec<u8> {
        let around = around(payload.len() as u64).unwrap();
        [&around.before[..], payload, &vec![0; usize::try_from(around.zeros_after).unwrap()]].concat()
    }

    #[test]
    fn the_payload_is_found_in_both_shapes() {
        for (archive, start) in [(UPSTREAM, 1536), (PLAIN, 512)] {
            let payload = find(archive).unwrap().unwrap();
            assert_eq!((payload.name.as_slice(), payload.range), (NAME, start..start + PAYLOAD_BYTES));
        }
    }

    #[test]
    fn an_archive_is_written_as_the_upstream_tool_writes_it() {
        let payload = &UPSTREAM[1536..1536 + 106_342];
        assert!(ours(payload) == UPSTREAM);
    }

    #[test]
    fn a_payload_of_any_length_is_found_again() {
        for len in [0, 1, 511, 512, 513, 99_999] {
            let archive = ours(&vec![7; len]);
            assert_eq!(archive.len() % 512, 0);
            let range = HEADERS_LEN..HEADERS_LEN + len as u64;
            assert_eq!(find(&archive[..]).unwrap().unwrap().range, range, "{len}");
        }
        struct Large([u8; 1536]);
        impl ReadAt for Large {
            fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
                self.0[..].read_exact_at(offset, buf)
            }
            fn size_bytes(&self) -> u64 {
                1 << 60
            }
        }
        for len in [9_999_999_999, (1 << 33) - 1, 1 << 40] {
            let archive = Large(around(len).unwrap().before);
            assert_eq!(find(&archive).unwrap().unwrap().range, 1536..1536 + len);
        }
        assert!(around(1 << 63).is_none());
    }

    #[test]
    fn other_files_are_not_wrapped() {
        let mut gnu = PLAIN.to_vec();
        gnu[257..265].copy_from_slice(b"ustar  \0");
        header::mend_checksum(gnu[..BLOCK].as_mut_array().unwrap());
        let mut changed = PLAIN.to_vec();
        changed[0] = b'O';
        for file in [&b""[..], &[0; 600], &PLAIN[..511], &gnu, &changed, &PLAIN[512..]] {
            assert_eq!(find(file).unwrap(), None);
        }
    }

    #[test]
    fn an_archive_without_a_whole_file_at_its_start_is_refused() {
        let headers = &UPSTREAM[..1536];
        let mut directory = PLAIN.to_vec();
        directory[156] = b'5';
        header::mend_checksum(directory[..BLOCK].as_mut_array().unwrap());
        let empty = [&headers[..1024], &[0; 1024]].concat();
        let mut sized = UPSTREAM.to_vec();
        sized[512..527].copy_from_slice(b"15 size=-06342\n");
        for (archive, want) in [
            (&UPSTREAM[..1536 + 106_341], "overlaybd.wrapper.truncated"),
            (&PLAIN[..512], "overlaybd.wrapper.truncated"),
            (&UPSTREAM[..1024], "overlaybd.wrapper.empty"),
            (&directory, "overlaybd.wrapper.type"),
            (&empty, "tar.extension.orphan"),
            (&sized, "tar.pax.value"),
        ] {
            assert_eq!(find(archive).unwrap_err().reason(), want);
        }
    }
}
