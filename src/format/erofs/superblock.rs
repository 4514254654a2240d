//! The EROFS superblock: 128 bytes at byte 1024, its feature bits and its checksum.
//!
//! Decoding accepts whatever a kernel may know; which features a layer may use is decided by the
//! check of the image.
//!
//! Source: Linux `fs/erofs/erofs_fs.h`, `struct erofs_super_block`; `fs/erofs/super.c`.

use super::{BlockBits, Nid};
use crate::{
    error::{Classify, Kind},
    format::record::{get, put},
};

/// The superblock, little-endian, 128 bytes, followed by `extension_slots` times 16 bytes.
///
/// | offset | size | field                  | unit and meaning                                     |
/// |-------:|-----:|------------------------|------------------------------------------------------|
/// |   0x00 |    4 | magic                  | 0xE0F5E1E2                                           |
/// |   0x04 |    4 | checksum               | CRC-32C, see [`checksum`]; valid with `SB_CHKSUM`    |
/// |   0x08 |    4 | feature_compat         | [`compat`]                                           |
/// |   0x0C |    1 | blkszbits              | log2 of the block size                               |
/// |   0x0D |    1 | sb_extslots            | 16-byte slots after the 128 bytes                    |
/// |   0x0E |    2 | rootnid_2b / blocks_hi | root nid; bits 32..47 of the blocks when the root is in rootnid_8b |
/// |   0x10 |    8 | inos                   | number of inodes                                     |
/// |   0x18 |    8 | epoch                  | signed seconds, base of compact inodes' times        |
/// |   0x20 |    4 | fixed_nsec             | nanoseconds of compact inodes' times                 |
/// |   0x24 |    4 | blocks_lo              | blocks of the primary device                         |
/// |   0x28 |    4 | meta_blkaddr           | block at which nid 0 lies                            |
/// |   0x2C |    4 | xattr_blkaddr          | block at which shared xattr id 0 lies                |
/// |   0x30 |   16 | uuid                   | 0 = none                                             |
/// |   0x40 |   16 | volume_name            | padded with NUL                                      |
/// |   0x50 |    4 | feature_incompat       | [`incompat`]                                         |
/// |   0x54 |    2 | available_compr_algs   | bit per algorithm, or LZ4's largest distance         |
/// |   0x56 |    2 | extra_devices          | device slots                                         |
/// |   0x58 |    2 | devt_slotoff           | first device slot, in 128-byte units                 |
/// |   0x5A |    1 | dirblkbits             | 0: a directory block is a block                      |
/// |   0x5B |    1 | xattr_prefix_count     | long xattr name prefixes                             |
/// |   0x5C |    4 | xattr_prefix_start     | where they lie, in 4-byte units                      |
/// |   0x60 |    8 | packed_nid             | inode of the fragments                               |
/// |   0x68 |    1 | xattr_filter_reserved  | not zero: the name filter is off                     |
/// |   0x69 |    1 | ishare_xattr_prefix_id | prefix of the content fingerprint                    |
/// |   0x6A |    2 | reserved               | 0                                                    |
/// |   0x6C |    4 | build_time             | seconds after epoch                                  |
/// |   0x70 |    8 | rootnid_8b             | root nid with 48BIT; 0 = the 16-bit one counts       |
/// |   0x78 |    8 | reserved               | 0                                                    |
/// |   0x80 |    8 | metabox_nid            | extension slot 1: the file of the metadata           |
/// |   0x88 |    8 | reserved               | 0                                                    |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Stored checksum; [`seal`] fills it in.
    pub checksum: u32,
    /// Bits of [`compat`].
    pub feature_compat: u32,
    /// Block size as a logarithm.
    pub block_bits: BlockBits,
    /// Number of 16-byte slots after the first 128 bytes.
    pub extension_slots: u8,
    /// Inode number of the root directory. Above 16 bits only with [`incompat::WIDE`].
    pub root: Nid,
    /// True when the root is stored in the 64-bit field, which makes the block count 48 bits wide.
    pub wide_root: bool,
    /// Number of inodes, which `statfs` returns as files.
    pub inos: u64,
    /// Base of compact inodes' times, in seconds since 1970.
    pub epoch: i64,
    /// Nanoseconds of compact inodes' times, below 10^9.
    pub fixed_nsec: u32,
    /// Blocks of the image itself, extra devices not counted.
    pub blocks: u64,
    /// Block at which inode number 0 lies.
    pub meta_block: u32,
    /// Block at which shared xattr 0 lies.
    pub xattr_block: u32,
    /// Identifier of the image; all zero for none.
    pub uuid: [u8; 16],
    /// Name of the volume, padded with NUL.
    pub volume_name: [u8; 16],
    /// Bits of [`incompat`].
    pub feature_incompat: u32,
    /// Bit per algorithm in use, see [`super::compression::Algorithm::bit`]; 0 for an uncompressed
    /// image.
    pub compression: u16,
    /// Number of device slots.
    pub extra_devices: u16,
    /// First device slot, in units of [`super::device::DeviceSlot::LEN`] from byte 0.
    pub device_slot_offset: u16,
    /// log2 of a directory block, less that of a block. Kernels mount images with 0 only.
    pub directory_block_bits: u8,
    /// Number of long xattr name prefixes.
    pub xattr_prefix_count: u8,
    /// Start of the long prefixes, in 4-byte units from byte 0.
    pub xattr_prefix_start: u32,
    /// Inode number of the packed file that holds the fragments, with [`incompat::FRAGMENTS`].
    pub packed_nid: u64,
    /// Switches the xattr name filter off when not zero.
    pub xattr_filter_reserved: u8,
    /// Number of the long prefix of the content fingerprint, with [`compat::ISHARE_XATTRS`].
    pub ishare_prefix_id: u8,
    /// Seconds after `epoch` at which the image was made.
    pub build_time: u32,
}

/// Feature bits that readers ignore when they do not know them.
pub mod compat {
    /// The checksum field is valid.
    pub const SB_CHKSUM: u32 = 0x01;
    /// Inode times are modification times.
    pub const MTIME: u32 = 0x02;
    /// Every attribute body has its name filter filled in.
    pub const XATTR_FILTER: u32 = 0x04;
    /// Shared xattrs lie in the metabox.
    pub const SHARED_EA_IN_METABOX: u32 = 0x08;
    /// Long xattr prefixes lie in the image itself.
    pub const PLAIN_XATTR_PFX: u32 = 0x10;
    /// Inodes carry a content fingerprint.
    pub const ISHARE_XATTRS: u32 = 0x20;
    /// The image is RAFS metadata: tables of its chunks follow the superblock. Not known to kernels.
    pub const RAFS: u32 = 0x4000_0000;
    /// Names of the bits, lowest first.
    pub const NAMES: [(u32, &str); 7] = [
        (SB_CHKSUM, "sb_chksum"),
        (MTIME, "mtime"),
        (XATTR_FILTER, "xattr_filter"),
        (SHARED_EA_IN_METABOX, "shared_ea_in_metabox"),
        (PLAIN_XATTR_PFX, "plain_xattr_pfx"),
        (ISHARE_XATTRS, "ishare_xattrs"),
        (RAFS, "rafs"),
    ];
}

/// Feature bits that a reader must know.
pub mod incompat {
    /// Compressed data is right-aligned in its pcluster.
    pub const ZERO_PADDING: u32 = 0x001;
    /// Compression configurations, or pclusters larger than a block.
    pub const COMPR_CFGS: u32 = 0x002;
    /// Chunk-based files exist.
    pub const CHUNKED_FILE: u32 = 0x004;
    /// Extra devices, or a second compression algorithm in a file.
    pub const DEVICE_TABLE: u32 = 0x008;
    /// Compressed tails lie after their inodes.
    pub const ZTAILPACKING: u32 = 0x010;
    /// Fragments, or extents shared between compressed files.
    pub const FRAGMENTS: u32 = 0x020;
    /// Long xattr name prefixes exist.
    pub const XATTR_PREFIXES: u32 = 0x040;
    /// 48-bit addresses, extent records, and times in compact inodes: 48BIT, Linux 6.15.
    pub const WIDE: u32 = 0x080;
    /// Metadata lies inside an inode: METABOX, Linux 6.17.
    pub const METABOX: u32 = 0x100;
    /// Names of the bits, lowest first.
    pub const NAMES: [(u32, &str); 9] = [
        (ZERO_PADDING, "zero_padding"),
        (COMPR_CFGS, "compr_cfgs"),
        (CHUNKED_FILE, "chunked_file"),
        (DEVICE_TABLE, "device_table"),
        (ZTAILPACKING, "ztailpacking"),
        (FRAGMENTS, "fragments"),
        (XATTR_PREFIXES, "xattr_prefixes"),
        (WIDE, "48bit"),
        (METABOX, "metabox"),
    ];
    /// All bits that have a meaning; kernels refuse others.
    pub const KNOWN: u32 = 0x1ff;
}

/// Refusal of bytes that are no superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SuperblockError {
    /// The first four bytes are not the magic number.
    #[error("magic {found:#010x} is not EROFS's 0xe0f5e1e2")]
    Magic {
        /// Bytes 1024 to 1027 of the file, little-endian.
        found: u32,
    },
    /// Block size outside 512 bytes to 64 KiB.
    #[error("block size 2^{bits} is not within 2^9 to 2^16 bytes")]
    BlockSize {
        /// Logarithm in the superblock.
        bits: u8,
    },
}

impl Classify for SuperblockError {
    fn kind(&self) -> Kind {
        Kind::Malformed
    }
    fn reason(&self) -> &'static str {
        match self {
            Self::Magic { .. } => "erofs.superblock.magic",
            Self::BlockSize { .. } => "erofs.superblock.block-size",
        }
    }
}

impl Superblock {
    /// First four bytes of a superblock, little-endian.
    pub const MAGIC: u32 = 0xE0F5_E1E2;
    /// Byte of the image at which the superblock starts.
    pub const OFFSET: u64 = 1024;
    /// Length of the encoded record without extension slots, in bytes.
    pub const LEN: usize = 128;
    /// Length of an extension slot, in bytes.
    pub const SLOT_LEN: usize = 16;
    /// Offset of the checksum in the record, in bytes.
    const CHECKSUM_AT: usize = 4;

    /// Superblock with defaults: no features, inodes or blocks.
    pub fn new(block_bits: BlockBits) -> Self {
        Self {
            checksum: 0,
            feature_compat: 0,
            block_bits,
            extension_slots: 0,
            root: Nid(0),
            wide_root: false,
            inos: 0,
            epoch: 0,
            fixed_nsec: 0,
            blocks: 0,
            meta_block: 0,
            xattr_block: 0,
            uuid: [0; 16],
            volume_name: [0; 16],
            feature_incompat: 0,
            compression: 0,
            extra_devices: 0,
            device_slot_offset: 0,
            directory_block_bits: 0,
            xattr_prefix_count: 0,
            xattr_prefix_start: 0,
            packed_nid: 0,
            xattr_filter_reserved: 0,
            ishare_prefix_id: 0,
            build_time: 0,
        }
    }

    /// Reads a superblock. [`checksum`] verifies it separately, over more bytes than the record.
    ///
    /// Errors: [`SuperblockError`] when the magic or the block size is not one of EROFS.
    pub fn decode(record: &[u8; Self::LEN]) -> Result<Self, SuperblockError> {
        let found = u32::from_le_bytes(get::<0x00, _, _>(record));
        if found != Self::MAGIC {
            return Err(SuperblockError::Magic { found });
        }
        let [bits] = get::<0x0C, _, _>(record);
        let block_bits = BlockBits::new(bits).ok_or(SuperblockError::BlockSize { bits })?;
        let feature_incompat = u32::from_le_bytes(get::<0x50, _, _>(record));
        let shared_field = u16::from_le_bytes(get::<0x0E, _, _>(record));
        let blocks_low = u64::from(u32::from_le_bytes(get::<0x24, _, _>(record)));
        let root_8b = u64::from_le_bytes(get::<0x70, _, _>(record));
        let wide_root = feature_incompat & incompat::WIDE != 0 && root_8b != 0;
        let (root, blocks) = if wide_root {
            (root_8b, u64::from(shared_field) << 32 | blocks_low)
        } else {
            (u64::from(shared_field), blocks_low)
        };
        let [extension_slots] = get::<0x0D, _, _>(record);
        let [directory_block_bits, xattr_prefix_count] = get::<0x5A, _, _>(record);
        let [xattr_filter_reserved, ishare_prefix_id] = get::<0x68, _, _>(record);
        Ok(Self {
            checksum: u32::from_le_bytes(get::<0x04, _, _>(record)),
            feature_compat: u32::from_le_bytes(get::<0x08, _, _>(record)),
            block_bits,
            extension_slots,
            root: Nid(root),
            wide_root,
            inos: u64::from_le_bytes(get::<0x10, _, _>(record)),
            epoch: i64::from_le_bytes(get::<0x18, _, _>(record)),
            fixed_nsec: u32::from_le_bytes(get::<0x20, _, _>(record)),
            blocks,
            meta_block: u32::from_le_bytes(get::<0x28, _, _>(record)),
            xattr_block: u32::from_le_bytes(get::<0x2C, _, _>(record)),
            uuid: get::<0x30, _, _>(record),
            volume_name: get::<0x40, _, _>(record),
            feature_incompat,
            compression: u16::from_le_bytes(get::<0x54, _, _>(record)),
            extra_devices: u16::from_le_bytes(get::<0x56, _, _>(record)),
            device_slot_offset: u16::from_le_bytes(get::<0x58, _, _>(record)),
            directory_block_bits,
            xattr_prefix_count,
            xattr_prefix_start: u32::from_le_bytes(get::<0x5C, _, _>(record)),
            packed_nid: u64::from_le_bytes(get::<0x60, _, _>(record)),
            xattr_filter_reserved,
            ishare_prefix_id,
            build_time: u32::from_le_bytes(get::<0x6C, _, _>(record)),
        })
    }

    /// Spells the record. A root or block count too large for its field is cut: the writer keeps
    /// the root within 16 bits and the blocks within 32, or sets `wide_root`.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut record = [0; Self::LEN];
        let [r0, r1, ..] = self.root.0.to_le_bytes();
        let [b0, b1, b2, b3, b4, b5, ..] = self.blocks.to_le_bytes();
        put::<0x00, _, _>(&mut record, Self::MAGIC.to_le_bytes());
        put::<0x04, _, _>(&mut record, self.checksum.to_le_bytes());
        put::<0x08, _, _>(&mut record, self.feature_compat.to_le_bytes());
        put::<0x0C, _, _>(&mut record, [self.block_bits.get(), self.extension_slots]);
        put::<0x0E, _, _>(&mut record, if self.wide_root { [b4, b5] } else { [r0, r1] });
        put::<0x10, _, _>(&mut record, self.inos.to_le_bytes());
        put::<0x18, _, _>(&mut record, self.epoch.to_le_bytes());
        put::<0x20, _, _>(&mut record, self.fixed_nsec.to_le_bytes());
        put::<0x24, _, _>(&mut record, [b0, b1, b2, b3]);
        put::<0x28, _, _>(&mut record, self.meta_block.to_le_bytes());
        put::<0x2C, _, _>(&mut record, self.xattr_block.to_le_bytes());
        put::<0x30, _, _>(&mut record, self.uuid);
        put::<0x40, _, _>(&mut record, self.volume_name);
        put::<0x50, _, _>(&mut record, self.feature_incompat.to_le_bytes());
        put::<0x54, _, _>(&mut record, self.compression.to_le_bytes());
        put::<0x56, _, _>(&mut record, self.extra_devices.to_le_bytes());
        put::<0x58, _, _>(&mut record, self.device_slot_offset.to_le_bytes());
        put::<0x5A, _, _>(&mut record, [self.directory_block_bits, self.xattr_prefix_count]);
        put::<0x5C, _, _>(&mut record, self.xattr_prefix_start.to_le_bytes());
        put::<0x60, _, _>(&mut record, self.packed_nid.to_le_bytes());
        put::<0x68, _, _>(&mut record, [self.xattr_filter_reserved, self.ishare_prefix_id]);
        put::<0x6C, _, _>(&mut record, self.build_time.to_le_bytes());
        let root_8b = if self.wide_root { self.root.0 } else { 0 };
        put::<0x70, _, _>(&mut record, root_8b.to_le_bytes());
        record
    }

    /// Byte of the image at which nid 0 lies.
    pub fn meta_start(&self) -> u64 {
        u64::from(self.meta_block) << self.block_bits.get()
    }

    /// Byte of the image at which shared xattr 0 lies.
    pub fn xattr_start(&self) -> u64 {
        u64::from(self.xattr_block) << self.block_bits.get()
    }

    /// True when `bit` of [`compat`] is set.
    pub fn has_compat(&self, bit: u32) -> bool {
        self.feature_compat & bit != 0
    }

    /// True when `bit` of [`incompat`] is set.
    pub fn has_incompat(&self, bit: u32) -> bool {
        self.feature_incompat & bit != 0
    }

    /// Bytes that the checksum covers, from the superblock on: the rest of block 0, or one block when
    /// block 0 ends before it.
    pub fn checksummed_len(block_bits: BlockBits) -> usize {
        let block = block_bits.buffer_len();
        if block > 1024 { block - 1024 } else { block }
    }
}

/// Checksum of `covered`, the bytes from the superblock on: CRC-32C that starts with all ones and
/// is not inverted at the end. The checksum field counts as zero.
pub fn checksum(covered: &[u8]) -> u32 {
    let (head, rest) = covered.split_at(covered.len().min(Superblock::CHECKSUM_AT));
    let (field, tail) = rest.split_at(rest.len().min(4));
    let crc = crc32c::crc32c(head);
    let crc = crc32c::crc32c_append(crc, [0_u8; 4].split_at(field.len()).0);
    !crc32c::crc32c_append(crc, tail)
}

/// Writes the checksum into `covered`, the [`Superblock::checksummed_len`] bytes from the
/// superblock on. All other bytes in them have to be final.
pub fn seal(covered: &mut [u8]) {
    let sum = checksum(covered).to_le_bytes();
    if let Some(field) = covered.get_mut(Superblock::CHECKSUM_AT..).and_then(|rest| rest.first_chunk_mut()) {
        *field = sum;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn checksum_is_crc32c_without_the_final_inversion() {
        // The check value of CRC-32C is 0xe3069283; four zero bytes stand for the field at offset 4.
        assert_eq!(!crc32c::crc32c(b"123456789"), 0x1CF9_6D7C);
        assert_eq!(checksum(b"1234\xff\xff\xff\xff56789"), !crc32c::crc32c(b"1234\0\0\0\x0056789"));
    }

    #[test]
    fn sealing_does_not_change_what_the_checksum_is_taken_over() {
        let mut block = vec![7_u8; Superblock::checksummed_len(BlockBits::DEFAULT)];
        let before = checksum(&block);
        seal(&mut block);
        assert_eq!(block[4..8], before.to_le_bytes());
        assert_eq!(checksum(&block), before);
    }

    #[test]
    fn small_blocks_checksum_one_whole_block() {
        let covered =
            [9, 10, 11, 12, 16].map(|bits| Superblock::checksummed_len(BlockBits::new(bits).unwrap()));
        assert_eq!(covered, [512, 1024, 1024, 3072, 64512]);
    }

    #[test]
    fn other_files_are_refused() {
        assert_eq!(Superblock::decode(&[0; 128]), Err(SuperblockError::Magic { found: 0 }));
        let mut record = Superblock::new(BlockBits::DEFAULT).encode();
        record[0x0C] = 17;
        assert_eq!(Superblock::decode(&record), Err(SuperblockError::BlockSize { bits: 17 }));
    }

    #[test]
    fn the_wide_root_brings_48_bits_of_blocks() {
        let mut superblock = Superblock::new(BlockBits::DEFAULT);
        superblock.feature_incompat = incompat::WIDE;
        superblock.wide_root = true;
        superblock.root = Nid(0x1_0000_0001);
        superblock.blocks = 0xABCD_1234_5678;
        let record = superblock.encode();
        assert_eq!(record[0x0E..0x10], [0xCD, 0xAB]);
        assert_eq!(Superblock::decode(&record), Ok(superblock));
    }

    proptest! {
        #[test]
        fn what_is_decoded_encodes_to_the_same_bytes(mut record in any::<[u8; 128]>(), bits in 9_u8..=16) {
            record[..4].copy_from_slice(&Superblock::MAGIC.to_le_bytes());
            record[0x0C] = bits;
            record[0x6A..0x6C].fill(0);
            record[0x78..].fill(0);
            if record[0x50] & 0x80 == 0 {
                record[0x70..0x78].fill(0);
            }
            prop_assert_eq!(Superblock::decode(&record).unwrap().encode(), record);
        }
    }
}
