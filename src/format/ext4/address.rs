//! ext4 addresses as newtypes: block numbers, inode numbers and block sizes cannot be added to each
//! other.
//!
//! Source: Linux `fs/ext4/ext4.h` (`ext4_fsblk_t`, `EXT4_BLOCK_SIZE_BITS`, the reserved inode numbers).

use std::fmt;

/// Block of the file system, counted from its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block(pub u64);

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Inode number, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeNumber(pub u32);

impl InodeNumber {
    /// Inode of the root directory, which the format reserves.
    pub const ROOT: Self = Self(2);
}

impl fmt::Display for InodeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Block size as its base-2 logarithm: 10 (1 KiB) to 16 (64 KiB).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockBits(u8);

impl BlockBits {
    /// Logarithm of the smallest block, 1 KiB.
    pub const MIN: u8 = 10;
    /// Logarithm of the largest block, 64 KiB.
    pub const MAX: u8 = 16;

    /// Block size of 2^`bits` bytes; `None` outside [`Self::MIN`]..=[`Self::MAX`].
    pub fn new(bits: u8) -> Option<Self> {
        (Self::MIN..=Self::MAX).contains(&bits).then_some(Self(bits))
    }

    /// Base-2 logarithm of the block size, 10 to 16.
    pub fn get(self) -> u32 {
        self.0.into()
    }

    /// Block size in bytes.
    pub fn size(self) -> u64 {
        1 << self.0
    }

    /// Block size in bytes, as the length of a buffer.
    pub fn buffer_len(self) -> usize {
        1 << self.0
    }

    /// Bytes from the start of the block that holds byte `offset` to that byte.
    pub fn within(self, offset: u64) -> u64 {
        offset & (self.size() - 1)
    }

    /// Number of blocks that `len` bytes take, rounded up.
    pub fn blocks_for(self, len: u64) -> u64 {
        (len >> self.0) + u64::from(self.within(len) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_outside_what_is_written_are_none() {
        assert_eq!(BlockBits::new(9), None);
        assert_eq!(BlockBits::new(17), None);
        assert_eq!(BlockBits::new(10).map(BlockBits::size), Some(1024));
        assert_eq!(BlockBits::new(16).map(BlockBits::buffer_len), Some(65_536));
    }

    #[test]
    fn a_partial_block_counts_as_one() {
        let bits = BlockBits::new(12).unwrap();
        for (len, want) in [(0, 0), (1, 1), (4096, 1), (4097, 2), (u64::MAX, 1 << 52)] {
            assert_eq!(bits.blocks_for(len), want, "{len}");
        }
        assert_eq!(bits.within(4097), 1);
    }
}
