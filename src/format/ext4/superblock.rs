//! The ext4 superblock: 1024 bytes at byte 1024, its feature bits and its checksum.
//!
//! Decoding refuses geometry that does not add up and features that are unknown: no reader can do
//! without.
//!
//! Source: Linux `fs/ext4/ext4.h`, `struct ext4_super_block`; `fs/ext4/super.c`,
//! `Documentation/filesystems/ext4/super.rst`.

use super::{Block, BlockBits, InodeNumber, checksum};
use crate::{
    error::{Classify, Kind},
    format::record::get,
};

/// Superblock, little-endian, 1024 bytes; only the fields that are read.
///
/// | offset | size | field               | unit and meaning                                        |
/// |-------:|-----:|---------------------|---------------------------------------------------------|
/// |  0x000 |    4 | s_inodes_count      | inodes                                                  |
/// |  0x004 |    4 | s_blocks_count_lo   | blocks                                                  |
/// |  0x014 |    4 | s_first_data_block  | 1 with 1 KiB blocks, else 0                             |
/// |  0x018 |    4 | s_log_block_size    | block size is 2^(10 + this)                             |
/// |  0x01C |    4 | s_log_cluster_size  | cluster size is 2^(10 + this), with BIGALLOC            |
/// |  0x020 |    4 | s_blocks_per_group  | blocks                                                  |
/// |  0x028 |    4 | s_inodes_per_group  | inodes                                                  |
/// |  0x038 |    2 | s_magic             | 0xEF53                                                  |
/// |  0x048 |    4 | s_creator_os        | 0 Linux, 1 Hurd, which uses some fields otherwise       |
/// |  0x04C |    4 | s_rev_level         | 0: no features, 128-byte inodes; 1                      |
/// |  0x058 |    2 | s_inode_size        | bytes                                                   |
/// |  0x05C |    4 | s_feature_compat    | [`compat`]                                              |
/// |  0x060 |    4 | s_feature_incompat  | [`incompat`]                                            |
/// |  0x064 |    4 | s_feature_ro_compat | [`ro_compat`]                                           |
/// |  0x068 |   16 | s_uuid              |                                                         |
/// |  0x078 |   16 | s_volume_name       | padded with NUL                                         |
/// |  0x0E0 |    4 | s_journal_inum      | inode of the journal; 0: a device of its own            |
/// |  0x0FE |    2 | s_desc_size         | bytes of a group descriptor, with 64BIT                 |
/// |  0x104 |    4 | s_first_meta_bg     | with META_BG: first descriptor block that is spread     |
/// |  0x150 |    4 | s_blocks_count_hi   | bits 32..63, with 64BIT                                 |
/// |  0x175 |    1 | s_checksum_type     | 1: CRC-32C                                              |
/// |  0x24C |  2×4 | s_backup_bgs        | groups with copies, with SPARSE_SUPER2                  |
/// |  0x270 |    4 | s_checksum_seed     | with CSUM_SEED                                          |
/// |  0x3FC |    4 | s_checksum          | CRC-32C of the bytes before, with METADATA_CSUM         |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Number of inodes, the reserved ones included.
    pub inodes: u32,
    /// Number of blocks in the file system.
    pub blocks: u64,
    /// First block of group 0: 1 with blocks of 1 KiB, else 0.
    pub first_data_block: u32,
    /// Block size as a logarithm.
    pub block_bits: BlockBits,
    /// Smallest allocation in bytes: a block, or with BIGALLOC a cluster of blocks.
    pub cluster_len: u64,
    /// Number of blocks in a group.
    pub blocks_per_group: u32,
    /// Number of inodes in a group.
    pub inodes_per_group: u32,
    /// Length of an inode in bytes: a power of two from 128 to the block size.
    pub inode_len: u16,
    /// Bits of [`compat`].
    pub feature_compat: u32,
    /// Bits of [`incompat`].
    pub feature_incompat: u32,
    /// Bits of [`ro_compat`].
    pub feature_ro_compat: u32,
    /// Identifier of the file system.
    pub uuid: [u8; 16],
    /// Name of the volume, padded with NUL.
    pub volume_name: [u8; 16],
    /// Inode of the journal; `None` without a journal, or when it lies on another device.
    pub journal: Option<InodeNumber>,
    /// Length of a group descriptor in bytes: a power of two from 32 to 1024.
    pub descriptor_len: u16,
    /// First descriptor block that lies in its own group, with META_BG.
    pub first_meta_group: u32,
    /// Groups that hold copies of the superblock, with SPARSE_SUPER2.
    pub backup_groups: [u32; 2],
    /// Start value for the checksums of other records.
    pub checksum_seed: u32,
}

/// Features that readers may ignore.
mod compat {
    /// The file system has a journal.
    pub const HAS_JOURNAL: u32 = 0x4;
    /// Only two groups hold copies of the superblock.
    pub const SPARSE_SUPER2: u32 = 0x200;
}

/// Features that a reader must know.
pub mod incompat {
    /// Files may be compressed. Mainline Linux never implemented it.
    pub const COMPRESSION: u32 = 0x1;
    /// Directory records hold file types.
    pub const FILETYPE: u32 = 0x2;
    /// The journal has to be replayed before reading.
    pub const RECOVER: u32 = 0x4;
    /// The device is a journal for another file system.
    pub const JOURNAL_DEV: u32 = 0x8;
    /// Group descriptors are spread over the groups.
    pub const META_BG: u32 = 0x10;
    /// Files may use extent trees.
    pub const EXTENTS: u32 = 0x40;
    /// Block numbers have 64 bits, and group descriptors are larger: 64BIT.
    pub const WIDE: u32 = 0x80;
    /// Multiple-mount protection is on.
    pub const MMP: u32 = 0x100;
    /// Bitmaps and inode tables may lie in other groups.
    pub const FLEX_BG: u32 = 0x200;
    /// Large attribute values may lie in inodes of their own.
    pub const EA_INODE: u32 = 0x400;
    /// Directory records may carry data. Mainline Linux never implemented it.
    pub const DIRDATA: u32 = 0x1000;
    /// The seed of checksums is stored instead of computed from the UUID.
    pub const CSUM_SEED: u32 = 0x2000;
    /// Directories may be above 2 GiB, or have a deeper hash tree.
    pub const LARGEDIR: u32 = 0x4000;
    /// Small files and directories may lie in their inodes.
    pub const INLINE_DATA: u32 = 0x8000;
    /// Files may be encrypted.
    pub const ENCRYPT: u32 = 0x1_0000;
    /// Directories may compare names without case.
    pub const CASEFOLD: u32 = 0x2_0000;

    /// Incompatible features that are read. Encrypted files and directories without case are
    /// refused one by one.
    pub const READABLE: u32 = FILETYPE
        | RECOVER
        | META_BG
        | EXTENTS
        | WIDE
        | MMP
        | FLEX_BG
        | EA_INODE
        | CSUM_SEED
        | LARGEDIR
        | INLINE_DATA
        | ENCRYPT
        | CASEFOLD;
}

/// Features that a program may ignore if it only reads.
pub mod ro_compat {
    /// Only some groups hold copies of the superblock.
    pub const SPARSE_SUPER: u32 = 0x1;
    /// Group descriptors hold a CRC-16.
    pub const GDT_CSUM: u32 = 0x10;
    /// Space is allocated in clusters. Files still map blocks.
    pub const BIGALLOC: u32 = 0x200;
    /// Every metadata record holds a CRC-32C.
    pub const METADATA_CSUM: u32 = 0x400;
}

/// Refusal of bytes as a superblock, or of the file system that it describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SuperblockError {
    /// The record does not have the magic number.
    #[error("magic number {found:#06x} is not 0xef53")]
    Magic {
        /// Number in the place of the magic number.
        found: u16,
    },
    /// The stored checksum is not that of the bytes.
    #[error("superblock checksum {stored:#010x} is not the computed {computed:#010x}")]
    Checksum {
        /// Checksum that is stored in the superblock.
        stored: u32,
        /// Checksum of the covered bytes.
        computed: u32,
    },
    /// A field has a value that no kernel mounts.
    #[error("superblock field {field} is {found}, not {want}")]
    Field {
        /// Name of the field, as the kernel spells it.
        field: &'static str,
        /// Value that was found in the field.
        found: u64,
        /// Values that are accepted, in words.
        want: &'static str,
    },
    /// A known feature that is not supported.
    #[error("the file system uses {name}, which is not supported")]
    Feature {
        /// Name of the feature, as mke2fs spells it.
        name: &'static str,
    },
    /// Incompatible features with bits that have no name here.
    #[error("incompatible features {bits:#x} are not known")]
    Unknown {
        /// Bits of the unknown features.
        bits: u32,
    },
}

impl Classify for SuperblockError {
    fn kind(&self) -> Kind {
        match self {
            // Another differ may mount the file system.
            Self::Feature { .. } | Self::Unknown { .. } => Kind::NotImplemented,
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Magic { .. } => "ext4.superblock.magic",
            Self::Checksum { .. } => "ext4.superblock.checksum",
            Self::Field { .. } => "ext4.superblock.field",
            Self::Feature { .. } | Self::Unknown { .. } => "ext4.superblock.feature",
        }
    }
}

impl Superblock {
    /// Length of the record, in bytes.
    pub const LEN: usize = 1024;
    /// Byte of the image at which the superblock starts.
    pub const OFFSET: u64 = 1024;
    /// Offset of the magic number in the record, in bytes.
    pub const MAGIC_OFFSET: u64 = 0x38;
    /// Number that marks an ext2, ext3 or ext4 superblock.
    pub const MAGIC: u16 = 0xEF53;

    /// Reads the superblock. Errors: [`SuperblockError`].
    pub fn decode(record: &[u8; Self::LEN]) -> Result<Self, SuperblockError> {
        let magic = u16::from_le_bytes(get::<0x38, _, _>(record));
        if magic != Self::MAGIC {
            return Err(SuperblockError::Magic { found: magic });
        }
        let revised = u32::from_le_bytes(get::<0x4C, _, _>(record)) != 0;
        let features = |bits: [u8; 4]| if revised { u32::from_le_bytes(bits) } else { 0 };
        let feature_incompat = features(get::<0x60, _, _>(record));
        let feature_ro_compat = features(get::<0x64, _, _>(record));
        // Checked first, so that damage is not reported as an unknown feature.
        if feature_ro_compat & ro_compat::METADATA_CSUM != 0 {
            verify(record)?;
        }
        supported(feature_incompat)?;
        let field = |field, found, want| SuperblockError::Field { field, found, want };
        let os = u32::from_le_bytes(get::<0x48, _, _>(record));
        if os == 1 {
            return Err(field("s_creator_os", os.into(), "one other than Hurd"));
        }
        let log = u32::from_le_bytes(get::<0x18, _, _>(record));
        let block_bits = u8::try_from(log)
            .ok()
            .and_then(|log| BlockBits::new(log.checked_add(BlockBits::MIN)?))
            .ok_or_else(|| field("s_log_block_size", log.into(), "0 to 6"))?;
        let clustered = feature_ro_compat & ro_compat::BIGALLOC != 0;
        let cluster_log = u32::from_le_bytes(get::<0x1C, _, _>(record));
        // The kernel allows clusters of up to 2^30 bytes.
        if clustered && !(log..=20).contains(&cluster_log) {
            return Err(field("s_log_cluster_size", cluster_log.into(), "from that of the block to 20"));
        }
        let wide = feature_incompat & incompat::WIDE != 0;
        let high = if wide { u32::from_le_bytes(get::<0x150, _, _>(record)) } else { 0 };
        let uuid = get::<0x68, _, _>(record);
        let stored_seed = u32::from_le_bytes(get::<0x270, _, _>(record));
        let journal = u32::from_le_bytes(get::<0xE0, _, _>(record));
        let feature_compat = features(get::<0x5C, _, _>(record));
        let has_journal = feature_compat & compat::HAS_JOURNAL != 0;
        let superblock = Self {
            inodes: u32::from_le_bytes(get::<0x00, _, _>(record)),
            blocks: u64::from(u32::from_le_bytes(get::<0x04, _, _>(record))) | (u64::from(high) << 32),
            first_data_block: u32::from_le_bytes(get::<0x14, _, _>(record)),
            block_bits,
            cluster_len: 1024 << if clustered { cluster_log } else { log },
            blocks_per_group: u32::from_le_bytes(get::<0x20, _, _>(record)),
            inodes_per_group: u32::from_le_bytes(get::<0x28, _, _>(record)),
            inode_len: if revised { u16::from_le_bytes(get::<0x58, _, _>(record)) } else { 128 },
            feature_compat,
            feature_incompat,
            feature_ro_compat,
            uuid,
            volume_name: get::<0x78, _, _>(record),
            journal: (has_journal && journal != 0).then_some(InodeNumber(journal)),
            descriptor_len: if wide { u16::from_le_bytes(get::<0xFE, _, _>(record)) } else { 32 },
            first_meta_group: u32::from_le_bytes(get::<0x104, _, _>(record)),
            backup_groups: [
                u32::from_le_bytes(get::<0x24C, _, _>(record)),
                u32::from_le_bytes(get::<0x250, _, _>(record)),
            ],
            checksum_seed: if feature_incompat & incompat::CSUM_SEED != 0 {
                stored_seed
            } else {
                checksum::crc32c(checksum::START, &uuid)
            },
        };
        superblock.adds_up()?;
        Ok(superblock)
    }

    /// Checks the geometry, on which later arithmetic relies.
    fn adds_up(&self) -> Result<(), SuperblockError> {
        let field = |field, found, want| Err(SuperblockError::Field { field, found, want });
        let bits = self.block_bits;
        // A group has one bitmap block for blocks or clusters and one for inodes, so as many as a
        // block has bits.
        let clustered = self.feature_ro_compat & ro_compat::BIGALLOC != 0;
        if self.blocks_per_group == 0 || !clustered && u64::from(self.blocks_per_group) > 8 * bits.size() {
            return field("s_blocks_per_group", self.blocks_per_group.into(), "1 to 8 times the block size");
        }
        let len = u64::from(self.inode_len);
        if !self.inode_len.is_power_of_two() || !(128..=bits.size()).contains(&len) {
            return field("s_inode_size", len, "a power of two from 128 to the block size");
        }
        let most = 8 * bits.size();
        if self.inodes_per_group == 0 || u64::from(self.inodes_per_group) > most {
            return field("s_inodes_per_group", self.inodes_per_group.into(), "1 to 8 times the block size");
        }
        let descriptor = u64::from(self.descriptor_len);
        let least = if self.has_incompat(incompat::WIDE) { 64 } else { 32 };
        if !self.descriptor_len.is_power_of_two() || !(least..=1024).contains(&descriptor) {
            return field("s_desc_size", descriptor, "a power of two from 64 to 1024");
        }
        if u64::from(self.first_data_block) >= self.blocks {
            return field("s_first_data_block", self.first_data_block.into(), "below the number of blocks");
        }
        if self.blocks > u64::MAX >> bits.get() || self.blocks >> 48 != 0 {
            return field("s_blocks_count", self.blocks, "one that bytes can be counted for");
        }
        let inodes = self.groups().checked_mul(self.inodes_per_group.into());
        if inodes != Some(self.inodes.into()) {
            return field("s_inodes_count", self.inodes.into(), "the inodes of all groups together");
        }
        Ok(())
    }

    /// Number of groups, the last one perhaps shorter.
    pub fn groups(&self) -> u64 {
        (self.blocks - u64::from(self.first_data_block)).div_ceil(self.blocks_per_group.into())
    }

    /// First block of the group `group`.
    pub fn group_start(&self, group: u64) -> Block {
        let distance = group.saturating_mul(self.blocks_per_group.into());
        Block(distance.saturating_add(self.first_data_block.into()))
    }

    /// True when the group starts with a copy of the superblock.
    pub fn has_copy(&self, group: u64) -> bool {
        let power_of = |base: u64| {
            let mut rest = group;
            while rest > 1 && rest.is_multiple_of(base) {
                rest /= base;
            }
            rest == 1
        };
        if group == 0 {
            true
        } else if self.feature_compat & compat::SPARSE_SUPER2 != 0 {
            self.backup_groups.iter().any(|backup| u64::from(*backup) == group)
        } else {
            self.feature_ro_compat & ro_compat::SPARSE_SUPER == 0 || [3, 5, 7].into_iter().any(power_of)
        }
    }

    /// True when all bits of `features`, of [`incompat`], are set.
    pub fn has_incompat(&self, features: u32) -> bool {
        self.feature_incompat & features == features
    }

    /// True when records hold a CRC-32C: METADATA_CSUM.
    pub fn has_checksums(&self) -> bool {
        self.feature_ro_compat & ro_compat::METADATA_CSUM != 0
    }

    /// Size of the file system, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.blocks << self.block_bits.get()
    }
}

fn verify(record: &[u8; Superblock::LEN]) -> Result<(), SuperblockError> {
    let [kind] = get::<0x175, _, _>(record);
    if kind != 1 {
        return Err(SuperblockError::Field { field: "s_checksum_type", found: kind.into(), want: "1" });
    }
    let stored = u32::from_le_bytes(get::<0x3FC, _, _>(record));
    let computed = checksum::crc32c(checksum::START, &get::<0, 0x3FC, _>(record));
    if stored == computed { Ok(()) } else { Err(SuperblockError::Checksum { stored, computed }) }
}

fn supported(features: u32) -> Result<(), SuperblockError> {
    for (bit, name) in [
        (incompat::COMPRESSION, "compression"),
        (incompat::JOURNAL_DEV, "journal_dev: it is a journal"),
        (incompat::DIRDATA, "dirdata"),
    ] {
        if features & bit != 0 {
            return Err(SuperblockError::Feature { name });
        }
    }
    match features & !incompat::READABLE {
        0 => Ok(()),
        bits => Err(SuperblockError::Unknown { bits }),
    }
}
