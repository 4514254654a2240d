//! Chunk-based files: the chunk format in the inode and the records of the chunk array.
//!
//! Source: Linux `fs/erofs/erofs_fs.h`, `struct erofs_inode_chunk_info`, `struct erofs_inode_chunk_index`.

use super::Block;
use crate::{
    error::{Classify, Kind},
    format::record::{get, put},
};

/// The chunk format, the 16 bits at the start of a chunk-based inode's union.
///
/// | bits | field   | meaning                                                     |
/// |-----:|---------|-------------------------------------------------------------|
/// | 0–4  | bits    | log2 of the chunk size, less that of the block size         |
/// |    5 | indexes | the array holds [`ChunkIndex`] records, else block map ones |
/// |    6 | wide    | indexes hold 48-bit addresses                               |
/// | 7–15 |         | 0                                                           |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkFormat {
    /// 0 to 31: log2 of the blocks per chunk.
    bits: u8,
    /// True when the array holds [`ChunkIndex`] records, false for [`BlockMapEntry`] records.
    pub indexes: bool,
    /// True when the indexes hold 48-bit addresses. Never set without `indexes`.
    pub wide: bool,
}

/// Refusal of a chunk format: `found` has unknown bits, or `wide` without `indexes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("chunk format {found:#06x} has unknown bits, or 48-bit addresses without indexes")]
pub struct ChunkFormatError {
    /// Chunk format as stored, 16 bits.
    pub found: u16,
}

impl Classify for ChunkFormatError {
    fn kind(&self) -> Kind {
        Kind::Malformed
    }
    fn reason(&self) -> &'static str {
        "erofs.chunk.format"
    }
}

impl ChunkFormat {
    const BITS: u16 = 0x1f;
    const INDEXES: u16 = 0x20;
    const WIDE: u16 = 0x40;

    /// Format with 32-bit addresses; `bits` is log2 of the blocks per chunk. `None` above 31.
    pub fn new(bits: u8, indexes: bool) -> Option<Self> {
        (u16::from(bits) <= Self::BITS).then_some(Self { bits, indexes, wide: false })
    }

    /// Reads the 16 bits. Errors: [`ChunkFormatError`] for unknown bits, or wide addresses without
    /// indexes.
    pub fn decode(field: u16) -> Result<Self, ChunkFormatError> {
        let indexes = field & Self::INDEXES != 0;
        let wide = field & Self::WIDE != 0;
        let [bits, _] = (field & Self::BITS).to_le_bytes();
        let unknown = field & !(Self::BITS | Self::INDEXES | Self::WIDE) != 0;
        if unknown || (wide && !indexes) {
            return Err(ChunkFormatError { found: field });
        }
        Ok(Self { bits, indexes, wide })
    }

    /// Spells the 16 bits of the inode's union.
    pub fn encode(self) -> u16 {
        u16::from(self.bits)
            | if self.indexes { Self::INDEXES } else { 0 }
            | if self.wide { Self::WIDE } else { 0 }
    }

    /// log2 of the blocks per chunk, 0 to 31.
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// Length of one record of the array, in bytes; the array is aligned to it.
    pub fn record_len(self) -> u64 {
        if self.indexes { ChunkIndex::LEN as u64 } else { BlockMapEntry::LEN as u64 }
    }
}

/// One record of a block map, little-endian, 4 bytes.
///
/// | offset | size | field    | unit and meaning                               |
/// |-------:|-----:|----------|------------------------------------------------|
/// |      0 |    4 | startblk | unified address of the chunk; all ones: a hole |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockMapEntry {
    /// First block of the chunk; `None` for a hole.
    pub start: Option<Block>,
}

impl BlockMapEntry {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 4;

    /// Reads one record of the block map.
    pub fn decode(record: &[u8; Self::LEN]) -> Self {
        Self { start: Block::from_narrow(u32::from_le_bytes(*record)) }
    }

    /// Spells the record; bits of the address above 32 are cut.
    pub fn encode(&self) -> [u8; Self::LEN] {
        Block::to_wide(self.start).0.to_le_bytes()
    }
}

/// One chunk index, little-endian, 8 bytes.
///
/// | offset | size | field       | unit and meaning                                               |
/// |-------:|-----:|-------------|----------------------------------------------------------------|
/// |      0 |    2 | startblk_hi | bits 32..47 of the address, in the wide format, else 0         |
/// |      2 |    2 | device_id   | 0: unified address; k: block of device k                       |
/// |      4 |    4 | startblk_lo | bits 0..31; an address of all ones is a hole, whatever the device |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkIndex {
    /// Device whose blocks `start` counts; 0 for the unified line.
    pub device_id: u16,
    /// First block of the chunk; `None` for a hole.
    pub start: Option<Block>,
}

impl ChunkIndex {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 8;

    /// Reads one record; `wide` comes from the chunk format.
    pub fn decode(record: &[u8; Self::LEN], wide: bool) -> Self {
        let low = u32::from_le_bytes(get::<4, _, _>(record));
        let high = u16::from_le_bytes(get::<0, _, _>(record));
        Self {
            device_id: u16::from_le_bytes(get::<2, _, _>(record)),
            start: if wide { Block::from_wide(low, high) } else { Block::from_narrow(low) },
        }
    }

    /// Spells the record; address bits beyond the format's width are cut.
    pub fn encode(&self, wide: bool) -> [u8; Self::LEN] {
        let mut record = [0; Self::LEN];
        let (low, high) = Block::to_wide(self.start);
        put::<0, _, _>(&mut record, if wide { high } else { 0 }.to_le_bytes());
        put::<2, _, _>(&mut record, self.device_id.to_le_bytes());
        put::<4, _, _>(&mut record, low.to_le_bytes());
        record
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn formats_with_unknown_bits_are_refused() {
        for found in [0x40, 0x5f, 0x80, 0x8000] {
            assert_eq!(ChunkFormat::decode(found), Err(ChunkFormatError { found }));
        }
        assert_eq!(ChunkFormat::new(32, true), None);
    }

    #[test]
    fn an_address_of_all_ones_is_a_hole() {
        assert_eq!(BlockMapEntry::decode(&[0xff; 4]).start, None);
        assert_eq!(ChunkIndex::decode(&[0, 0, 7, 0, 0xff, 0xff, 0xff, 0xff], false).start, None);
        assert_eq!(
            ChunkIndex::decode(&[0, 0, 7, 0, 0xff, 0xff, 0xff, 0xff], true).start,
            Some(Block(0xffff_ffff))
        );
        assert_eq!(BlockMapEntry { start: None }.encode(), [0xff; 4]);
    }

    proptest! {
        #[test]
        fn formats_round_trip(bits in 0_u8..32, indexes in any::<bool>(), wide in any::<bool>()) {
            let format = ChunkFormat { bits, indexes, wide: wide && indexes };
            prop_assert_eq!(ChunkFormat::decode(format.encode()), Ok(format));
        }

        #[test]
        fn records_round_trip(record in any::<[u8; 8]>(), map in any::<[u8; 4]>()) {
            prop_assert_eq!(ChunkIndex::decode(&record, true).encode(true), record);
            let mut narrow = record;
            narrow[..2].fill(0);
            prop_assert_eq!(ChunkIndex::decode(&narrow, false).encode(false), narrow);
            prop_assert_eq!(BlockMapEntry::decode(&map).encode(), map);
        }
    }
}
