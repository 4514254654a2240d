//! Names of file formats by their magic numbers, for messages about files that are not what was
//! expected.
//!
//! Only error messages use them. No magic number listed here changes how a file is read.
//!
//! Source: the magic databases of `file(1)`; RFC 1952; RFC 8878; the format descriptions of xz, bzip2 and lz4.

/// File format recognised by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Name with an article, as messages print it.
    pub name: &'static str,
    /// True when `plywood apply` reads the format as a layer.
    pub is_layer: bool,
}

/// Name of a tar archive with a POSIX or GNU header.
pub const TAR: &str = "a tar archive";

/// Magic numbers: byte offset, number, name of the format, and whether it is a layer.
const TABLE: [(u64, &[u8], &str, bool); 19] = [
    (0, &[0x1f, 0x8b], "a gzip stream", true),
    (0, &[0x28, 0xb5, 0x2f, 0xfd], "a zstd stream", true),
    (257, b"ustar", TAR, true),
    (0, &[0xfd, b'7', b'z', b'X', b'Z', 0], "an xz stream", false),
    (0, b"BZh", "a bzip2 stream", false),
    (0, &[0x04, 0x22, 0x4d, 0x18], "an lz4 stream", false),
    (0, b"LZIP", "an lzip stream", false),
    (0, &[0x5d, 0, 0], "an lzma stream", false),
    (0, &[0x1f, 0x9d], "a compress (.Z) stream", false),
    (0, b"PK\x03\x04", "a zip archive", false),
    (0, &[b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c], "a 7-Zip archive", false),
    (0, b"!<arch>\n", "an ar archive or Debian package", false),
    (0, &[0xed, 0xab, 0xee, 0xdb], "an RPM package", false),
    (0, b"070701", "a cpio archive", false),
    (0, b"hsqs", "a SquashFS image", false),
    (1080, &[0x53, 0xef], "an ext2, ext3 or ext4 image", false),
    (0, b"XFSB", "an XFS image", false),
    (0, b"LSMT", "an overlaybd layer", false),
    (0, b"ZFile", "a compressed overlaybd layer", false),
];

/// Looks for a known magic number. `starts` returns whether the file has these bytes at that
/// offset.
pub fn recognise(starts: impl Fn(u64, &[u8]) -> bool) -> Option<Found> {
    TABLE
        .iter()
        .find(|(offset, magic, ..)| starts(*offset, magic))
        .map(|(_, _, name, is_layer)| Found { name, is_layer: *is_layer })
}

/// Runs [`recognise`] on bytes in memory.
pub fn recognise_bytes(bytes: &[u8]) -> Option<Found> {
    recognise(|offset, magic| {
        usize::try_from(offset)
            .ok()
            .and_then(|at| bytes.get(at..))
            .is_some_and(|rest| rest.starts_with(magic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_by_its_first_bytes() {
        let ext4 = [&[0; 1080][..], &[0x53, 0xef]].concat();
        for (bytes, want) in [
            (&b"\xfd7zXZ\0\0\x04"[..], Some("an xz stream")),
            (b"BZh91AY&SY", Some("a bzip2 stream")),
            (&ext4, Some("an ext2, ext3 or ext4 image")),
            (b"\x1f\x8b", Some("a gzip stream")),
            (b"\x1f", None),
            (b"", None),
            (b"etc/passwd", None),
        ] {
            assert_eq!(recognise_bytes(bytes).map(|found| found.name), want, "{bytes:?}");
        }
    }
}
