//! Group descriptors, which hold the place of each group's inode table.
//!
//! Source: Linux `fs/ext4/ext4.h`, `struct ext4_group_desc`; `fs/ext4/super.c`, `ext4_group_desc_csum` and
//! `descriptor_loc`.

use super::{
    Block, checksum,
    superblock::{Superblock, incompat, ro_compat},
};

/// Group descriptor, little-endian, 32 bytes, or with 64BIT 64 and more; only the fields that are
/// read.
///
/// | offset | size | field             | unit and meaning                                     |
/// |-------:|-----:|-------------------|------------------------------------------------------|
/// |   0x08 |    4 | bg_inode_table_lo | first block of the inode table                       |
/// |   0x12 |    2 | bg_flags          |                                                      |
/// |   0x1E |    2 | bg_checksum       | CRC-16, or the low half of a CRC-32C, by features    |
/// |   0x28 |    4 | bg_inode_table_hi | bits 32..63                                          |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// First block of the group's inode table.
    pub inode_table: Block,
}

/// The checksum of a descriptor is not that of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("checksum {stored:#06x} is not the computed {computed:#06x}")]
pub struct GroupChecksum {
    /// Checksum that is stored in the descriptor.
    pub stored: u16,
    /// Checksum of the descriptor's bytes, cut to 16 bits.
    pub computed: u16,
}

impl Group {
    /// Byte of the descriptor at which the checksum lies.
    const CHECKSUM: usize = 0x1E;

    /// Reads descriptor `number`. `record` has the length that the superblock gives.
    ///
    /// Errors: [`GroupChecksum`].
    pub fn decode(record: &[u8], number: u64, superblock: &Superblock) -> Result<Self, GroupChecksum> {
        let stored = u16::from_le_bytes(field(record, Self::CHECKSUM));
        let computed = Self::checksum(record, number, superblock);
        if computed.is_some_and(|computed| computed != stored) {
            return Err(GroupChecksum { stored, computed: computed.unwrap_or_default() });
        }
        let low = u32::from_le_bytes(field(record, 0x08));
        let wide = superblock.has_incompat(incompat::WIDE);
        let high = if wide { u32::from_le_bytes(field(record, 0x28)) } else { 0 };
        Ok(Self { inode_table: Block(u64::from(low) | (u64::from(high) << 32)) })
    }

    fn checksum(record: &[u8], number: u64, superblock: &Superblock) -> Option<u16> {
        // There are no more groups than inodes, whose number has 32 bits.
        let number = u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
        let (head, rest) = record.split_at_checked(Self::CHECKSUM)?;
        let after = rest.get(2..)?;
        if superblock.has_checksums() {
            let crc = checksum::crc32c(superblock.checksum_seed, &number);
            let crc = [head, &[0; 2], after].iter().fold(crc, |crc, part| checksum::crc32c(crc, part));
            let [low, high, ..] = crc.to_le_bytes();
            Some(u16::from_le_bytes([low, high]))
        } else if superblock.feature_ro_compat & ro_compat::GDT_CSUM != 0 {
            let parts = [&superblock.uuid, &number[..], head, after];
            Some(parts.iter().fold(!0, |crc, part| checksum::crc16(crc, part)))
        } else {
            None
        }
    }

    /// Block that holds descriptor `number`, and the byte of that block at which the descriptor
    /// starts.
    pub fn place(number: u64, superblock: &Superblock) -> (Block, usize) {
        let bits = superblock.block_bits;
        let per_block = bits.size() / u64::from(superblock.descriptor_len);
        let (index, slot) = (number / per_block, number % per_block);
        // Both factors are smaller than a block.
        let offset = usize::try_from(slot * u64::from(superblock.descriptor_len)).unwrap_or_default();
        let first = Superblock::OFFSET / bits.size();
        let spread =
            superblock.has_incompat(incompat::META_BG) && index >= u64::from(superblock.first_meta_group);
        if !spread {
            return (Block(first + 1 + index), offset);
        }
        let group = index * per_block;
        let mut skipped = u64::from(superblock.has_copy(group));
        // With clusters of 1 KiB blocks, group 0 starts at the boot block, before the superblock.
        skipped += u64::from(first == 1 && index == 0 && superblock.first_data_block == 0);
        let Block(start) = superblock.group_start(group);
        (Block(start.saturating_add(skipped)), offset)
    }
}

/// Reads `N` bytes at `offset`; zeros outside the record, which has at least 32 bytes.
fn field<const N: usize>(record: &[u8], offset: usize) -> [u8; N] {
    record.get(offset..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}
