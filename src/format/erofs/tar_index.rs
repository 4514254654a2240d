//! Tar-index images in one file: an image without file data, the index, and behind it the archive that has the data.
//!
//! | from byte | bytes |
//! |---|---|
//! | 0 | the index: superblock, a table of one device, inodes, directories; as many blocks as the superblock says |
//! | the end of the index, which is the device's place on the unified line | the archive |
//! | the end of the device's blocks | zeros, or nothing |
//!
//! The zeros are the archive's as well: `mkfs.erofs` counts the archive up to its end marker, and `tar` fills its last
//! record. The bytes of the archive are looked at as they pass and are not kept.
//!
//! Source: erofs-utils `lib/tar.c` and `mkfs/main.c` (`--tar=i`); containerd `internal/erofsutils/mount.go`, which appends
//! the archive.

use std::io;

use super::{
    check::{self, CheckError, Policy},
    reader::{Image, ReadError},
    superblock::{Superblock, SuperblockError, incompat},
};
use crate::{
    error::{Classify, Kind},
    format::{
        ReadAt,
        tar::{Parser, TarError},
    },
};

/// Longest index, in bytes: it is held in memory. Two million files take half of it.
const MOST_INDEX_BYTES: u64 = 256 << 20;

/// Why a stream is not a tar-index image with its whole archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarIndexError {
    /// There is no superblock.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// The index is malformed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The index breaks a rule.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The bytes behind the index are no archive.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The image has no archive as its only device.
    #[error("the image has {found} extra devices; one with the layer's archive in it has 1")]
    Devices {
        /// Number of device slots.
        found: usize,
    },
    /// The archive does not lie behind the index.
    #[error("the archive starts at block {found}, the index ends at block {expected}")]
    Start {
        /// First block of the device.
        found: u64,
        /// Blocks of the index.
        expected: u64,
    },
    /// The index is longer than allowed.
    #[error("the index has {index_bytes} bytes, more than {MOST_INDEX_BYTES}")]
    Large {
        /// Length of the index in bytes.
        index_bytes: u64,
    },
    /// The stream ends too early.
    #[error("the stream ends after {found} of at least {expected} bytes")]
    Truncated {
        /// Bytes of the stream.
        found: u64,
        /// Bytes that index and device blocks need; the last block of the archive may be cut.
        expected: u64,
    },
    /// Something else follows the archive, such as the hash tree of dm-verity: nothing says where the archive ends.
    #[error("bytes other than zero follow the {archive_bytes} bytes of the archive")]
    Trailing {
        /// Length of the device in bytes.
        archive_bytes: u64,
    },
}

impl Classify for TarIndexError {
    fn kind(&self) -> Kind {
        match self {
            Self::Superblock(error) => error.kind(),
            Self::Read(error) => error.kind(),
            Self::Check(error) => error.kind(),
            Self::Tar(error) => error.kind(),
            Self::Large { .. } => Kind::Exhausted,
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Superblock(error) => error.reason(),
            Self::Read(error) => error.reason(),
            Self::Check(error) => error.reason(),
            Self::Tar(error) => error.reason(),
            Self::Devices { .. } => "erofs.tar-index.devices",
            Self::Start { .. } => "erofs.tar-index.start",
            Self::Large { .. } => "erofs.tar-index.large",
            Self::Truncated { .. } => "erofs.tar-index.truncated",
            Self::Trailing { .. } => "erofs.tar-index.trailing",
        }
    }
}

/// Bytes of a stream from which [`index_bytes`] returns the length of its index.
pub const HEAD_LEN: usize = 1024 + Superblock::LEN;

/// Returns the length of the index that begins with `head`, in bytes. Errors: it is no tar-index image, or too large.
pub fn index_bytes(head: &[u8; HEAD_LEN]) -> Result<u64, TarIndexError> {
    let record = head.last_chunk().unwrap_or(&[0; Superblock::LEN]);
    let superblock = Superblock::decode(record)?;
    if !superblock.has_incompat(incompat::DEVICE_TABLE) || superblock.extra_devices != 1 {
        return Err(TarIndexError::Devices { found: superblock.extra_devices.into() });
    }
    // An overflow is too large as well.
    let index_bytes = superblock.block_bits.offset(superblock.blocks).unwrap_or(u64::MAX);
    if index_bytes > MOST_INDEX_BYTES {
        return Err(TarIndexError::Large { index_bytes });
    }
    Ok(index_bytes)
}

/// The archive of a tar-index image, as it passes.
#[derive(Debug)]
pub struct Archive {
    parser: Parser,
    index_bytes: u64,
    /// Length of the device in bytes.
    archive_bytes: u64,
    block_bytes: u64,
    /// Bytes that have passed.
    passed: u64,
}

impl Archive {
    /// The archive behind `index`. Errors: the index is malformed, cut off, or not that of an archive behind it.
    pub fn behind(index: &[u8]) -> Result<Self, TarIndexError> {
        let image = Image::open(index)?;
        let [slot] = image.slots() else { return Err(TarIndexError::Devices { found: image.slots().len() }) };
        let (bits, expected) = (image.superblock().block_bits, image.superblock().blocks);
        if slot.unified_start != expected {
            return Err(TarIndexError::Start { found: slot.unified_start, expected });
        }
        // Both have at most 48 bits, a block at most 16.
        let [index_bytes, archive_bytes] = [expected, slot.blocks].map(|blocks| blocks << bits.get());
        let found = index.len() as u64;
        if found < index_bytes {
            return Err(TarIndexError::Truncated { found, expected: index_bytes });
        }
        let parts =
            [Part { bytes: index, size_bytes: found }, Part { bytes: &[], size_bytes: archive_bytes }];
        let [index, archive] = parts;
        let image = Image::open_with_devices(index, vec![archive])?;
        check::verify_image(&image, &Policy { max_memory_bytes: MOST_INDEX_BYTES, ..Policy::any() })?;
        Ok(Self { parser: Parser::new(), index_bytes, archive_bytes, block_bytes: bits.size(), passed: 0 })
    }

    /// Looks at the next bytes behind the index. Errors: they are not those of an archive of the length that the index says,
    /// with zeros behind it.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), TarIndexError> {
        let left = self.archive_bytes.saturating_sub(self.passed);
        let left = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let (mut archive, behind) = bytes.split_at_checked(left).unwrap_or((bytes, &[]));
        while self.parser.next(&mut archive)?.is_some() {}
        if behind.iter().any(|byte| *byte != 0) {
            return Err(TarIndexError::Trailing { archive_bytes: self.archive_bytes });
        }
        self.passed = self.passed.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// Errors: the archive ends too early.
    pub fn finish(mut self) -> Result<(), TarIndexError> {
        if self.passed.saturating_add(self.block_bytes) <= self.archive_bytes {
            let [found, expected] = [self.passed, self.archive_bytes].map(|bytes| self.index_bytes + bytes);
            return Err(TarIndexError::Truncated { found, expected });
        }
        Ok(self.parser.finish()?)
    }
}

/// A part of the image. The archive is not there yet when the index is checked, which reads nothing of it.
struct Part<'a> {
    bytes: &'a [u8],
    size_bytes: u64,
}

impl ReadAt for Part<'_> {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.bytes.read_exact_at(offset, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

/// Fuzz entry: looks at `data` as a tar-index image.
pub(super) fn examine(data: &[u8]) {
    let Some((head, _)) = data.split_first_chunk() else { return };
    let Ok(index_bytes) = index_bytes(head) else { return };
    let len = usize::try_from(index_bytes).unwrap_or(usize::MAX).min(data.len());
    let (index, behind) = data.split_at_checked(len).unwrap_or((data, &[]));
    if let Ok(mut archive) = Archive::behind(index)
        && archive.push(behind).is_ok()
    {
        let _whole_or_not = archive.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &[u8] = include_bytes!("../../../tests/fixtures/erofs/tar-index.erofs");
    const TAR: &[u8] = include_bytes!("../../../tests/fixtures/erofs/tar-index.blob");
    /// The end of the archive's second zero block; the rest of the file fills its last record.
    const COUNTED: usize = 125 * 512;

    /// Returns the reason of the refusal.
    fn read(index: &[u8], behind: &[u8], step: usize) -> Result<(), &'static str> {
        let reason = |error: TarIndexError| error.reason();
        let head = index.first_chunk().ok_or("no head")?;
        assert_eq!(index_bytes(head).map_err(reason)?, INDEX.len() as u64);
        let mut archive = Archive::behind(index).map_err(reason)?;
        behind.chunks(step).try_for_each(|bytes| archive.push(bytes)).map_err(reason)?;
        archive.finish().map_err(reason)
    }

    /// The index with `change` made to its bytes from `at` on, and its checksum set right.
    fn changed(at: usize, change: &[u8]) -> Vec<u8> {
        let mut index = INDEX.to_vec();
        index[at..at + change.len()].copy_from_slice(change);
        let covered = &mut index[1024..1536];
        super::super::superblock::seal(covered);
        index
    }

    #[test]
    fn an_archive_behind_its_index_is_whole_with_and_without_the_rest_of_its_record() {
        for step in [1, 511, 4096, TAR.len()] {
            for len in [COUNTED, COUNTED + 1, TAR.len()] {
                assert_eq!(read(INDEX, &TAR[..len], step), Ok(()), "{step} {len}");
            }
        }
    }

    #[test]
    fn an_archive_that_is_cut_or_goes_on_is_refused() {
        let mut followed = TAR.to_vec();
        followed.extend(b"verity\0\0");
        let mut other = TAR.to_vec();
        other[100] ^= 1;
        for (behind, reason) in [
            (&TAR[..0], "erofs.tar-index.truncated"),
            (&TAR[..512], "erofs.tar-index.truncated"),
            (&TAR[..COUNTED - 512], "erofs.tar-index.truncated"),
            (&followed, "erofs.tar-index.trailing"),
            (&other, "tar.checksum"),
        ] {
            for step in [512, TAR.len() + 10] {
                assert_eq!(read(INDEX, behind, step), Err(reason), "{}", behind.len());
            }
        }
    }

    #[test]
    fn an_index_without_its_archive_behind_it_is_refused() {
        let slots = 1024 + 0x56;
        let unified = 9 * 128 + 0x44;
        for (index, reason) in [
            (changed(slots, &[0]), "erofs.tar-index.devices"),
            (changed(slots, &[2]), "erofs.tar-index.devices"),
            (changed(unified, &[7]), "erofs.tar-index.start"),
            (changed(unified, &[0]), "erofs.tar-index.start"),
            (INDEX[..INDEX.len() - 1].to_vec(), "erofs.tar-index.truncated"),
            (INDEX[..HEAD_LEN].to_vec(), "erofs.bounds"),
        ] {
            assert_eq!(read(&index, TAR, TAR.len()), Err(reason));
        }
        let large = changed(1024 + 0x24, &[0xff; 4]);
        let error = index_bytes(large.first_chunk().unwrap()).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "erofs.tar-index.large"));
    }
}
