//! EROFS addresses as newtypes: inode numbers, block addresses and block sizes cannot be added to
//! each other.
//!
//! Source: Linux `fs/erofs/erofs_fs.h` and `fs/erofs/internal.h` (`erofs_iloc`, `erofs_pos`).

use std::fmt;

/// Unit in which inodes are placed, in bytes; also the length of a compact inode.
pub const SLOT_LEN: u64 = 32;

/// Inode number: 32-byte slots counted from the metadata start.
///
/// Byte offsets wrap at 2^64, so a number may name a place before the metadata start ("negative").
/// Numbers that differ by a multiple of 2^59 name the same inode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nid(pub u64);

impl Nid {
    /// Bit set in the numbers of inodes that lie in the metabox file instead of the image.
    pub const METABOX: u64 = 1 << 63;

    /// Byte offset in the image, given where number 0 lies (`meta_start`, in bytes).
    pub fn byte_offset(self, meta_start: u64) -> u64 {
        // The shift drops the bits that do not matter modulo 2^64.
        meta_start.wrapping_add(self.0 << 5)
    }

    /// Number of the inode at byte `offset`; `None` off a slot boundary.
    pub fn at_byte_offset(offset: u64, meta_start: u64) -> Option<Self> {
        let distance = offset.wrapping_sub(meta_start);
        distance.is_multiple_of(SLOT_LEN).then_some(Self(distance >> 5))
    }

    /// True when the inode lies in the metabox file.
    pub fn in_metabox(self) -> bool {
        self.0 & Self::METABOX != 0
    }
}

impl fmt::Display for Nid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Nid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nid({})", self.0)
    }
}

/// Block address, on the unified line (all devices after each other) unless said otherwise.
///
/// Records spell "no block" with all ones; here that is the `None` of an `Option<Block>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block(pub u64);

impl Block {
    /// One past the largest address any record can hold: 48 bits, of which all ones means none.
    pub const LIMIT: u64 = (1 << 48) - 1;

    /// Start block of an inode without blocks in an image without 48-bit addresses: 32 bits of
    /// ones. The kernel does not look at it.
    pub const UNUSED: Self = Self(0xffff_ffff);

    /// Reads a 32-bit address; `None` for all ones.
    pub fn from_narrow(low: u32) -> Option<Self> {
        (low != u32::MAX).then_some(Self(u64::from(low)))
    }

    /// Reads a 48-bit address from its two fields; `None` for all ones.
    pub fn from_wide(low: u32, high: u16) -> Option<Self> {
        let address = u64::from(low) | u64::from(high) << 32;
        (address != Self::LIMIT).then_some(Self(address))
    }

    /// Spells an address as fields of 32 and 16 bits; addresses above 48 bits are cut off.
    pub fn to_wide(address: Option<Self>) -> (u32, u16) {
        let address = address.map_or(Self::LIMIT, |block| block.0);
        let [a, b, c, d, e, f, _, _] = address.to_le_bytes();
        (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([e, f]))
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({})", self.0)
    }
}

/// Block size as its base-2 logarithm: 9 (512 bytes) to 16 (64 KiB).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockBits(u8);

impl BlockBits {
    /// 4096 bytes. Larger blocks need pages as large, smaller ones Linux 6.4.
    pub const DEFAULT: Self = Self(12);

    /// 512 bytes, the unit of archives. Blocks as small need Linux 6.4.
    pub const SECTOR: Self = Self(9);

    /// Block size of 2^`bits` bytes; `None` outside 9 to 16.
    pub fn new(bits: u8) -> Option<Self> {
        (9..=16).contains(&bits).then_some(Self(bits))
    }

    /// Base-2 logarithm of the block size, 9 to 16.
    pub fn get(self) -> u8 {
        self.0
    }

    /// Block size in bytes.
    pub fn size(self) -> u64 {
        1 << self.0
    }

    /// Block size in bytes, as the length of a buffer.
    pub fn buffer_len(self) -> usize {
        1 << self.0
    }

    /// Byte offset of a block; `None` past 2^64.
    pub fn offset(self, block: u64) -> Option<u64> {
        block.checked_mul(self.size())
    }

    /// Number of the block that holds byte `offset`.
    pub fn block_of(self, offset: u64) -> u64 {
        offset >> self.0
    }

    /// Bytes from the start of the block that holds byte `offset` to that byte.
    pub fn within(self, offset: u64) -> u64 {
        offset & (self.size() - 1)
    }

    /// Number of blocks that `len` bytes take, rounded up.
    pub fn blocks_for(self, len: u64) -> u64 {
        len.div_ceil(self.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_numbers_lie_before_the_metadata_start() {
        let meta_start = 8 * 4096;
        let nid = Nid::at_byte_offset(4096, meta_start).unwrap();
        assert_eq!(nid, Nid((1 << 59) - 7 * 128));
        assert_eq!(nid.byte_offset(meta_start), 4096);
        // Nid of the inode 7 blocks before the metadata start, as a 64-bit negative number.
        assert_eq!(Nid(0_u64.wrapping_sub(7 * 128)).byte_offset(meta_start), 4096);
        assert_eq!(Nid::at_byte_offset(4097, meta_start), None);
    }

    #[test]
    fn addresses_of_all_ones_are_none() {
        assert_eq!(Block::from_narrow(u32::MAX), None);
        assert_eq!(Block::from_wide(u32::MAX, u16::MAX), None);
        assert_eq!(Block::from_wide(u32::MAX, 0), Some(Block(0xffff_ffff)));
        assert_eq!(Block::to_wide(None), (u32::MAX, u16::MAX));
        assert_eq!(Block::to_wide(Some(Block(0x1_0000_0002))), (2, 1));
    }

    #[test]
    fn block_sizes_end_at_64_kib() {
        assert_eq!((BlockBits::new(8), BlockBits::new(17)), (None, None));
        assert_eq!(BlockBits::new(9).map(BlockBits::size), Some(512));
        assert_eq!(BlockBits::DEFAULT.blocks_for(4097), 2);
    }
}
