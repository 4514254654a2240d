//! One block: compressed bytes, and the checksum after them.
//!
//! Source: `docs/formats/overlaybd.md`, "ZFile, blocks and index"; the LZ4 block format; RFC 8878.

use zstd::zstd_safe::DCtx;

use crate::format::crc32c;

/// Compression of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// The LZ4 block format, without a frame.
    Lz4,
    /// One zstd frame for each block.
    Zstd,
}

impl Algorithm {
    /// Returns the algorithm of a number in a header.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Number in a header.
    pub fn as_byte(self) -> u8 {
        match self {
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }
}

impl std::fmt::Display for Algorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// Bytes of contents in a block: a power of two within 4 KiB to 64 KiB. The last block of a file may have fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize(u32);

impl BlockSize {
    /// The smallest size, which is the usual one.
    pub const MIN: Self = Self(4096);
    /// The largest size.
    pub const MAX: Self = Self(65_536);

    /// Returns `None` for a size that is out of range or no power of two.
    pub fn new(bytes: u32) -> Option<Self> {
        let fits = (Self::MIN.0..=Self::MAX.0).contains(&bytes) && bytes.is_power_of_two();
        fits.then_some(Self(bytes))
    }

    /// Size in bytes.
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// Most stored bytes of a block that readers take, the checksum included. Neither compression makes a block
    /// larger than its contents and a few hundred bytes; the rest is for writers that go further.
    pub(super) fn stored_max(self) -> u32 {
        2 * self.0
    }
}

/// Length of a block's checksum, in bytes.
pub(super) const CHECKSUM_LEN: usize = 4;
/// Register value with which the checksum of a block begins.
const CHECKSUM_SEED: u32 = 100_007;

/// Checksum of a block's compressed bytes.
pub(super) fn checksum(compressed: &[u8]) -> u32 {
    crc32c::raw(CHECKSUM_SEED, compressed)
}

/// Fault of a block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockFault {
    /// The stored bytes were changed.
    #[error("checksum {stored:#010x} is not the computed {computed:#010x}")]
    Checksum {
        /// Checksum after the block.
        stored: u32,
        /// Checksum of the block's bytes.
        computed: u32,
    },
    /// The stored bytes are no compressed block.
    #[error("the compressed bytes are malformed: {0}")]
    Malformed(String),
    /// The block holds more or fewer bytes than its place in the file.
    #[error("it holds {found} bytes instead of {want}")]
    Length {
        /// Length of the contents.
        found: usize,
        /// Length wanted.
        want: usize,
    },
    /// There is no memory for a decoder.
    #[error("no memory for a zstd decoder")]
    Memory,
}

/// Decoder of blocks. It keeps its tables from block to block.
pub(super) struct Decoder {
    algorithm: Algorithm,
    /// Whether a checksum follows each block.
    verify: bool,
    zstd: Option<DCtx<'static>>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl Decoder {
    /// Allocates nothing yet.
    pub(super) fn new(algorithm: Algorithm, verify: bool) -> Self {
        Self { algorithm, verify, zstd: None }
    }

    /// Checks and decompresses a block that fills `contents`.
    pub(super) fn decode(&mut self, stored: &[u8], contents: &mut [u8]) -> Result<(), BlockFault> {
        let compressed = match stored.split_last_chunk::<CHECKSUM_LEN>() {
            Some((compressed, own)) if self.verify => {
                let (stored, computed) = (u32::from_le_bytes(*own), checksum(compressed));
                if stored != computed {
                    return Err(BlockFault::Checksum { stored, computed });
                }
                compressed
            }
            _ => stored,
        };
        let want = contents.len();
        let found = match self.algorithm {
            Algorithm::Lz4 => lz4_flex::block::decompress_into(compressed, contents)
                .map_err(|error| BlockFault::Malformed(error.to_string()))?,
            Algorithm::Zstd => {
                let context = match &mut self.zstd {
                    Some(context) => context,
                    none => none.insert(DCtx::try_create().ok_or(BlockFault::Memory)?),
                };
                context
                    .decompress(contents, compressed)
                    .map_err(|code| BlockFault::Malformed(zstd::zstd_safe::get_error_name(code).to_owned()))?
            }
        };
        if found != want {
            return Err(BlockFault::Length { found, want });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two_within_the_range_are_block_sizes() {
        for (bytes, fits) in [
            (0, false),
            (2048, false),
            (4095, false),
            (4096, true),
            (4097, false),
            (12_288, false),
            (65_536, true),
            (131_072, false),
            (u32::MAX, false),
        ] {
            assert_eq!(BlockSize::new(bytes).is_some(), fits, "{bytes}");
        }
    }

    #[test]
    fn a_block_is_refused_for_what_is_wrong_with_it() {
        let contents = b"contents contents contents contents".repeat(30);
        let compressed = lz4_flex::block::compress(&contents);
        let stored = [&compressed[..], &checksum(&compressed).to_le_bytes()].concat();
        let decode = |stored: &[u8], len: usize| {
            let mut buffer = vec![0; len];
            Decoder::new(Algorithm::Lz4, true).decode(stored, &mut buffer).map(|()| buffer)
        };
        assert_eq!(decode(&stored, contents.len()).unwrap(), contents);
        let mut changed = stored.clone();
        changed[3] ^= 1;
        assert!(matches!(decode(&changed, contents.len()), Err(BlockFault::Checksum { .. })));
        assert_eq!(
            decode(&stored, contents.len() + 1),
            Err(BlockFault::Length { found: contents.len(), want: contents.len() + 1 })
        );
        assert!(matches!(decode(&stored, contents.len() - 1), Err(BlockFault::Malformed(_))));
        for (algorithm, junk) in
            [(Algorithm::Lz4, &[0xF0; 8][..]), (Algorithm::Zstd, b"no frame"), (Algorithm::Zstd, b"")]
        {
            let found = Decoder::new(algorithm, false).decode(junk, &mut [0; 64]);
            assert!(found.is_err(), "{algorithm} {junk:?}");
        }
    }
}
