//! The type of a layer without a label, by its first bytes.
//!
//! Used by the command line, whose users name files. The daemon trusts the media type of a request, and detects
//! only the compression of tar layers.

use std::io;

use super::{LayerType, OCI_LAYER_TAR};
use crate::{
    codec::Coding,
    format::{
        ReadAt,
        erofs::superblock::Superblock as Erofs,
        ext4::superblock::Superblock as Ext4,
        tar::{Event, Parser, TarError, wrapper},
        turbo,
        zfile::header::Header as Zfile,
    },
};

/// Bytes of a layer that [`Head::of`] reads: enough for the first block of a zstd frame.
pub const HEAD_BYTES: u64 = 256 << 10;
/// Uncompressed bytes kept of a layer: enough for the first names of an archive.
const PLAIN_BYTES: usize = 256 << 10;

/// A file system image that can be read as a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// An EROFS image.
    Erofs,
    /// An ext4 image, with the layer in its directory `upper`.
    Ext4,
}

impl Image {
    /// Byte behind the last magic number.
    const MAGIC_END: usize = 2048;

    /// Returns the file system whose magic number a file has. `starts` reports whether the bytes at an offset are
    /// those given.
    pub fn of(starts: impl Fn(u64, &[u8]) -> bool) -> Option<Self> {
        if starts(Erofs::OFFSET, &Erofs::MAGIC.to_le_bytes()) {
            return Some(Self::Erofs);
        }
        starts(Ext4::OFFSET + Ext4::MAGIC_OFFSET, &Ext4::MAGIC.to_le_bytes()).then_some(Self::Ext4)
    }

    /// Reads the start of `file` for that. Errors: those of reading.
    pub fn on(file: &impl ReadAt) -> io::Result<Option<Self>> {
        let len = usize::try_from(file.size_bytes()).unwrap_or(usize::MAX).min(Self::MAGIC_END);
        let mut head = vec![0; len];
        file.read_exact_at(0, &mut head)?;
        Ok(Self::of(|offset, magic| {
            let at = usize::try_from(offset).ok().and_then(|offset| head.get(offset..));
            at.is_some_and(|bytes| bytes.starts_with(magic))
        }))
    }
}

/// A file of an overlaybd device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlaybd {
    /// A layer, or a ZFile of anything else, in a tar wrapper or without.
    Layer,
    /// The index of a gzip blob.
    GzipIndex,
    /// The headers of an archive without its data.
    TarMetadata,
    /// A published turboOCI layer: a compressed archive of metadata.
    Turbo,
}

impl Overlaybd {
    /// Returns what a file is by its magic numbers. A damaged tar wrapper is known by the name in its first header.
    pub fn of(file: &impl ReadAt) -> Option<Self> {
        let starts = |magic: &[u8]| {
            let mut found = vec![0; magic.len()];
            file.read_exact_at(0, &mut found).is_ok() && found == magic
        };
        if starts(&Zfile::MAGIC) || starts(b"LSMT") {
            return Some(Self::Layer);
        }
        if starts(b"ddgzidx\0") {
            return Some(Self::GzipIndex);
        }
        let is_wrapped = match wrapper::find(file) {
            Ok(payload) => payload.is_some_and(|payload| payload.name == wrapper::NAME),
            Err(_damaged) => starts(b"overlaybd."),
        };
        if is_wrapped {
            return Some(Self::Layer);
        }
        Self::of_first_entry(file)
    }

    /// Returns what an archive is by its first entries.
    fn of_first_entry(file: &impl ReadAt) -> Option<Self> {
        let len = file.size_bytes().min(HEAD_BYTES);
        let mut prefix = vec![0; usize::try_from(len).ok()?];
        file.read_exact_at(0, &mut prefix).ok()?;
        let head = Head::of(&prefix, 0);
        match head.coding {
            Coding::Gzip => {
                let mut reader = turbo::Reader::new();
                let first = reader.next(&mut head.plain.as_slice());
                matches!(first, Ok(Some(turbo::Event::Member { .. }))).then_some(Self::Turbo)
            }
            Coding::Plain => {
                // The first header of a file has a place in one of its fields, and so not the checksum of an archive.
                let archive = entries(Parser::new(), &prefix);
                let metadata = entries(Parser::of_metadata(), &prefix);
                (metadata.is_ok_and(|entries| entries > 0) && archive.is_err()).then_some(Self::TarMetadata)
            }
            Coding::Zstd => None,
        }
    }
}

/// Number of entries that begin in the first bytes of an archive. Errors: it is none.
fn entries(mut parser: Parser, mut prefix: &[u8]) -> Result<u64, TarError> {
    let mut entries = 0;
    while let Some(event) = parser.next(&mut prefix)? {
        entries += u64::from(matches!(event, Event::Entry { .. }));
    }
    Ok(entries)
}

/// The first bytes of a layer, uncompressed.
#[derive(Debug)]
pub struct Head {
    /// Compression of the layer.
    pub coding: Coding,
    /// The first uncompressed bytes; fewer if the stream is damaged.
    plain: Vec<u8>,
    /// `plain` is the whole layer, whose stream ended without an error.
    is_whole: bool,
}

impl Head {
    /// Decompresses `prefix`, which is the whole layer if it is shorter than [`HEAD_BYTES`]. Frames with a window
    /// larger than `zstd_window_bytes` are not read.
    pub fn of(prefix: &[u8], zstd_window_bytes: u64) -> Self {
        let coding = Coding::detect(prefix);
        let mut head = Self { coding, plain: vec![0; PLAIN_BYTES], is_whole: false };
        let (mut input, mut filled) = (prefix, 0);
        if let Ok(mut decoder) = coding.decoder(zstd_window_bytes) {
            while let Some(space) = head.plain.get_mut(filled..).filter(|space| !space.is_empty()) {
                match decoder.decode(&mut input, space) {
                    Ok(0) if input.is_empty() => {
                        let is_all = u64::try_from(prefix.len()).is_ok_and(|len| len < HEAD_BYTES);
                        head.is_whole = is_all && decoder.finish().is_ok();
                        break;
                    }
                    Ok(bytes) => filled += bytes,
                    Err(_damaged) => break,
                }
            }
        }
        head.plain.truncate(filled);
        head
    }

    /// Whether the layer is empty once it is uncompressed.
    pub fn is_empty(&self) -> bool {
        self.is_whole && self.plain.is_empty()
    }

    /// Returns a type of EROFS image if there is a superblock, plain or in zstd frames, otherwise that of a plain tar.
    pub fn layer_type(&self) -> Option<&'static LayerType> {
        let starts = |offset, magic: &[u8]| {
            let at = usize::try_from(offset).ok().and_then(|offset| self.plain.get(offset..));
            at.is_some_and(|bytes| bytes.starts_with(magic))
        };
        let is_image = Image::of(starts) == Some(Image::Erofs);
        LayerType::of(match self.coding {
            Coding::Plain if is_image => "application/vnd.erofs.layer.v1",
            Coding::Zstd if is_image => "application/vnd.erofs.layer.v1+zstd",
            Coding::Plain | Coding::Gzip | Coding::Zstd => OCI_LAYER_TAR,
        })
    }

    /// Returns the first name in the archive that belongs to an OCI layout or to the output of `docker save`. Such an
    /// archive holds a whole image, and is no layer.
    pub fn part_of_an_image(&self) -> Option<Vec<u8>> {
        let mut parser = Parser::new();
        let mut input = self.plain.as_slice();
        while let Ok(Some(event)) = parser.next(&mut input) {
            if let Event::Entry { entry, .. } = event
                && is_part_of_an_image(&entry.path)
            {
                return Some(entry.path);
            }
        }
        None
    }
}

/// Whether a path is `oci-layout`, `blobs/sha256/HEX`, or an older Docker's `HEX/layer.tar` or `HEX.json`.
///
/// Source: OCI image specification, image-layout.md; Docker image specification v1.2.
fn is_part_of_an_image(path: &[u8]) -> bool {
    let is_hex = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let Ok(path) = std::str::from_utf8(path) else { return false };
    match path.trim_start_matches("./").split('/').collect::<Vec<_>>()[..] {
        ["oci-layout"] => true,
        [name] => name.strip_suffix(".json").is_some_and(is_hex),
        [id, "layer.tar"] => is_hex(id),
        ["blobs", "sha256", hex] => is_hex(hex),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kind::Container, limits::Limits};

    #[test]
    fn the_bytes_decide_what_a_layer_is() {
        let mut image = vec![0; 4096];
        image[1024..1028].copy_from_slice(&[0xe2, 0xe1, 0xf5, 0xe0]);
        let wrapped = zstd::bulk::compress(&image, 3).unwrap();
        let archive = zstd::bulk::compress(&[0; 4096], 3).unwrap();
        let found = |bytes: &[u8]| {
            let row = Head::of(bytes, Limits::default().zstd_window_bytes).layer_type().unwrap();
            (row.container, row.coding)
        };
        assert_eq!(found(&image), (Container::Erofs, Coding::Plain));
        assert_eq!(found(&wrapped), (Container::Erofs, Coding::Zstd));
        for bytes in [&[][..], &image[..1026], &archive, &wrapped[..20], &[0x1f, 0x8b, 8], b"etc/passwd"] {
            assert_eq!(found(bytes).0, Container::Tar);
        }
    }

    #[test]
    fn an_image_is_known_by_its_magic_number() {
        let found = |at: usize, magic: &[u8]| {
            let mut file = vec![0; 4096];
            file[at..at + magic.len()].copy_from_slice(magic);
            Image::of(|offset, magic| file[usize::try_from(offset).unwrap()..].starts_with(magic))
        };
        assert_eq!(found(1024, &[0xe2, 0xe1, 0xf5, 0xe0]), Some(Image::Erofs));
        assert_eq!(found(1080, &[0x53, 0xef]), Some(Image::Ext4));
        assert_eq!(found(0, b"hsqs"), None);
    }

    #[test]
    fn a_file_of_an_overlaybd_device_is_known_with_and_without_a_wrapper() {
        let wrapped = include_bytes!("../../tests/fixtures/overlaybd/tarwrap/obd-commit-t.tar").as_slice();
        let plain = include_bytes!("../../tests/fixtures/overlaybd/tarwrap/plain-ustar.tar").as_slice();
        let zfile = include_bytes!("../../tests/fixtures/overlaybd/zfile/payload.lz4-4k.zfile").as_slice();
        let index = include_bytes!("../../tests/fixtures/gzindex/hex.gz_idx").as_slice();
        for file in [wrapped, plain, zfile, &wrapped[..2000], &wrapped[..1024], &zfile[..100], b"LSMT"] {
            assert_eq!(Overlaybd::of(&file), Some(Overlaybd::Layer));
        }
        assert_eq!(Overlaybd::of(&index), Some(Overlaybd::GzipIndex));
        for file in [&b""[..], b"LSM", b"ZFile\0\x01\0tuji.yyf@Alibab", &plain[512..513], &[0; 4096]] {
            assert_eq!(Overlaybd::of(&file), None);
        }
    }
}
