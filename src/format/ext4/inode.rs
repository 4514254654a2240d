//! ext4 inodes: records of 128 bytes and more.
//!
//! [`Inode::content`] decides the meaning of the 60 bytes of i_block. The attributes after the
//! fixed fields are for the reader to find.
//!
//! Source: Linux `fs/ext4/ext4.h`, `struct ext4_inode`; `fs/ext4/inode.c` (`__ext4_iget`,
//! `ext4_inode_csum`), `Documentation/filesystems/ext4/inodes.rst`.

use super::{
    Block, InodeNumber, checksum,
    superblock::{Superblock, incompat},
};
use crate::{
    error::{Classify, Kind},
    format::record::get,
    tree::{Attributes, Device, FileType, Timestamp},
};

/// Inode, little-endian; only the fields that are read. Fields from 0x80 on exist as far as
/// i_extra_isize reaches.
///
/// | offset | size | field            | unit and meaning                                          |
/// |-------:|-----:|------------------|-----------------------------------------------------------|
/// |   0x00 |    2 | i_mode           | POSIX type and permission bits                            |
/// |   0x02 |    2 | i_uid            | low half                                                  |
/// |   0x04 |    4 | i_size_lo        | bytes                                                     |
/// |   0x10 |    4 | i_mtime          | signed seconds since 1970                                 |
/// |   0x18 |    2 | i_gid            | low half                                                  |
/// |   0x1A |    2 | i_links_count    | names                                                     |
/// |   0x1C |    4 | i_blocks_lo      | what it takes, in 512-byte units                          |
/// |   0x20 |    4 | i_flags          | [`flag`]                                                  |
/// |   0x28 |   60 | i_block          | block map, extents, data, or a device number              |
/// |   0x64 |    4 | i_generation     | sets it apart from earlier users of the number            |
/// |   0x68 |    4 | i_file_acl_lo    | block of extended attributes; 0: none                     |
/// |   0x6C |    4 | i_size_high      | bits 32..63, of regular files                             |
/// |   0x74 |    2 | l_i_blocks_high  | bits 32..47                                               |
/// |   0x76 |    2 | l_i_file_acl_high | bits 32..47, with 64BIT                                  |
/// |   0x78 |    2 | l_i_uid_high     | high half                                                 |
/// |   0x7A |    2 | l_i_gid_high     | high half                                                 |
/// |   0x7C |    2 | l_i_checksum_lo  | low half of the CRC-32C, with METADATA_CSUM               |
/// |   0x80 |    2 | i_extra_isize    | bytes of fixed fields from here on, a multiple of 4       |
/// |   0x82 |    2 | i_checksum_hi    | high half                                                 |
/// |   0x88 |    4 | i_mtime_extra    | bits 0..1: seconds' bits 32..33; the rest nanoseconds     |
/// |   0x8C |    4 | i_atime_extra    |                                                           |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Type from the upper bits of i_mode.
    pub file_type: FileType,
    /// Owner, permissions and time. Nanoseconds from a full second on are cut to 999 999 999.
    pub attributes: Attributes,
    /// Number of names; 1 for a directory with more subdirectories than can be counted.
    pub links: u16,
    /// Length of the data in bytes, holes included.
    pub size_bytes: u64,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Distinguishes this inode from earlier users of the number.
    pub generation: u32,
    /// Block with extended attributes; `None` without one.
    pub xattr_block: Option<Block>,
    /// Seconds of the access time. In the inode of a large attribute they are the hash of the
    /// value.
    pub atime_low: u32,
    /// Bytes of i_block, undecoded.
    pub payload: [u8; Self::PAYLOAD_LEN],
    /// Length of the fixed fields after the first 128 bytes, after which attributes follow; 0 for
    /// none.
    pub extra_len: u16,
    /// Space that the inode takes, in 512-byte units, or in blocks with the flag HUGE_FILE.
    sectors: u64,
    ea_inodes: bool,
    cluster_sectors: u64,
}

/// Bits of i_flags that a reader needs.
pub mod flag {
    /// The data is encrypted.
    pub const ENCRYPT: u32 = 0x800;
    /// The directory has a hash tree.
    pub const INDEX: u32 = 0x1000;
    /// i_block holds the root of an extent tree.
    pub const EXTENTS: u32 = 0x8_0000;
    /// The inode's data is the value of a large attribute.
    pub const EA_INODE: u32 = 0x20_0000;
    /// The data lies in the inode.
    pub const INLINE_DATA: u32 = 0x1000_0000;
    /// The directory compares names without case.
    pub const CASEFOLD: u32 = 0x4000_0000;
}

/// Meaning of the 60 bytes of i_block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Root of an extent tree.
    Extents,
    /// Twelve block numbers and three levels of block maps.
    BlockMap,
    /// Start of the data. The rest is the attribute `system.data`.
    Inline,
    /// Target of a short symbolic link.
    Target,
    /// Device number of a character or block device.
    Device(Device),
    /// Without a meaning: fifo or socket.
    None,
}

/// Refusal of bytes that are no inode, or of an inode that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InodeError {
    /// The stored checksum is not that of the bytes.
    #[error("its checksum {stored:#010x} is not the computed {computed:#010x}")]
    Checksum {
        /// Checksum that is stored in the inode.
        stored: u32,
        /// Checksum of the inode's bytes.
        computed: u32,
    },
    /// The inode has no names: it is not in use.
    #[error("it is not in use")]
    Free,
    /// The type bits of the mode name no file type.
    #[error("mode {mode:#o} names no type of file")]
    Mode {
        /// Value of i_mode.
        mode: u16,
    },
    /// The fixed fields are longer than the inode.
    #[error("{found} bytes of extra fields are not a multiple of 4 within {room}")]
    Extra {
        /// Value of i_extra_isize.
        found: u16,
        /// Length of the inode after the first 128 bytes.
        room: usize,
    },
    /// The size is 2^63 bytes or more.
    #[error("its size of {found} bytes is above 2^63")]
    Size {
        /// Size that was found, in bytes.
        found: u64,
    },
    /// The data is encrypted and not readable without a key.
    #[error("it is encrypted, which is not supported")]
    Encrypted,
    /// The directory compares names without case.
    #[error("it is a directory that ignores case, which is not supported")]
    Casefold,
}

impl Classify for InodeError {
    fn kind(&self) -> Kind {
        match self {
            // Not `NotImplemented`: containers make such files and must not choose which differ
            // reads them.
            Self::Encrypted | Self::Casefold => Kind::Conflict,
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Checksum { .. } => "ext4.inode.checksum",
            Self::Free => "ext4.inode.free",
            Self::Mode { .. } => "ext4.inode.mode",
            Self::Extra { .. } => "ext4.inode.extra",
            Self::Size { .. } => "ext4.inode.size",
            Self::Encrypted => "ext4.inode.encrypted",
            Self::Casefold => "ext4.inode.casefold",
        }
    }
}

impl Inode {
    /// Length of the fields that every inode has, in bytes.
    pub const LEN: usize = 128;
    /// Length of i_block, in bytes.
    pub const PAYLOAD_LEN: usize = 60;
    /// Fixed fields of an inode that has room for them but says 0, in bytes: the kernel's own
    /// `struct ext4_inode` after the first 128.
    const USUAL_EXTRA: u16 = 32;

    /// Reads inode `number`. `record` has the length that the superblock gives.
    ///
    /// Errors: [`InodeError`] for a wrong checksum, an unused inode, or a field without a meaning.
    pub fn decode(record: &[u8], number: InodeNumber, superblock: &Superblock) -> Result<Self, InodeError> {
        let Some((fixed, rest)) = record.split_first_chunk::<{ Self::LEN }>() else {
            return Err(InodeError::Extra { found: 0, room: 0 });
        };
        let stored_extra = rest.first_chunk().map_or(0, |field| u16::from_le_bytes(*field));
        if usize::from(stored_extra) > rest.len() || !stored_extra.is_multiple_of(4) {
            return Err(InodeError::Extra { found: stored_extra, room: rest.len() });
        }
        if superblock.has_checksums() {
            verify(fixed, rest, stored_extra, number, superblock)?;
        }
        let mode = u16::from_le_bytes(get::<0x00, _, _>(fixed));
        let links = u16::from_le_bytes(get::<0x1A, _, _>(fixed));
        if links == 0 {
            return Err(InodeError::Free);
        }
        let file_type = FileType::from_mode(mode).ok_or(InodeError::Mode { mode })?;
        let flags = u32::from_le_bytes(get::<0x20, _, _>(fixed));
        if flags & flag::ENCRYPT != 0 && superblock.has_incompat(incompat::ENCRYPT) {
            return Err(InodeError::Encrypted);
        }
        if flags & flag::CASEFOLD != 0 && superblock.has_incompat(incompat::CASEFOLD) {
            return Err(InodeError::Casefold);
        }
        let half = |low: [u8; 2], high: [u8; 2]| {
            u32::from(u16::from_le_bytes(low)) | (u32::from(u16::from_le_bytes(high)) << 16)
        };
        let long = file_type == FileType::Regular || superblock.has_incompat(incompat::LARGEDIR);
        let size_high = if long { u32::from_le_bytes(get::<0x6C, _, _>(fixed)) } else { 0 };
        let size_bytes =
            u64::from(u32::from_le_bytes(get::<0x04, _, _>(fixed))) | (u64::from(size_high) << 32);
        if i64::try_from(size_bytes).is_err() {
            return Err(InodeError::Size { found: size_bytes });
        }
        let xattr_high = match superblock.has_incompat(incompat::WIDE) {
            true => u16::from_le_bytes(get::<0x76, _, _>(fixed)),
            false => 0,
        };
        let xattr_low = u32::from_le_bytes(get::<0x68, _, _>(fixed));
        let xattr_block = u64::from(xattr_low) | (u64::from(xattr_high) << 32);
        let sectors_high = u16::from_le_bytes(get::<0x74, _, _>(fixed));
        let sectors_low = u32::from_le_bytes(get::<0x1C, _, _>(fixed));
        let mtime = u32::from_le_bytes(get::<0x10, _, _>(fixed));
        Ok(Self {
            file_type,
            attributes: Attributes {
                mode: mode & 0o7777,
                uid: half(get::<0x02, _, _>(fixed), get::<0x78, _, _>(fixed)),
                gid: half(get::<0x18, _, _>(fixed), get::<0x7A, _, _>(fixed)),
                mtime: time(mtime, mtime_extra(rest, stored_extra)),
            },
            links,
            size_bytes,
            flags,
            generation: u32::from_le_bytes(get::<0x64, _, _>(fixed)),
            xattr_block: (xattr_block != 0).then_some(Block(xattr_block)),
            atime_low: u32::from_le_bytes(get::<0x08, _, _>(fixed)),
            payload: get::<0x28, _, _>(fixed),
            extra_len: stored_extra,
            sectors: u64::from(sectors_low) | (u64::from(sectors_high) << 32),
            ea_inodes: superblock.has_incompat(incompat::EA_INODE),
            cluster_sectors: superblock.cluster_len >> 9,
        })
    }

    /// Meaning of i_block, by type and flags.
    pub fn content(&self) -> Content {
        let has = |flag| self.flags & flag != 0;
        match self.file_type {
            FileType::CharDevice | FileType::BlockDevice => Content::Device(device(&self.payload)),
            FileType::Fifo | FileType::Socket => Content::None,
            _ if has(flag::INLINE_DATA) => Content::Inline,
            FileType::Symlink if self.is_short_link() => Content::Target,
            _ if has(flag::EXTENTS) => Content::Extents,
            _ => Content::BlockMap,
        }
    }

    /// True for a link whose only blocks are those of its attributes. The kernel decides in the
    /// same way.
    fn is_short_link(&self) -> bool {
        if self.ea_inodes {
            // Attribute values in inodes count as blocks too, so the size decides.
            return (1..Self::PAYLOAD_LEN as u64).contains(&self.size_bytes);
        }
        let xattr_sectors = if self.xattr_block.is_some() { self.cluster_sectors } else { 0 };
        self.sectors == xattr_sectors
    }

    /// Start value for the checksums of blocks that belong to the inode.
    pub fn checksum_seed(&self, number: InodeNumber, superblock: &Superblock) -> u32 {
        seed(number, self.generation, superblock)
    }
}

fn seed(number: InodeNumber, generation: u32, superblock: &Superblock) -> u32 {
    let crc = checksum::crc32c(superblock.checksum_seed, &number.0.to_le_bytes());
    checksum::crc32c(crc, &generation.to_le_bytes())
}

fn verify(
    fixed: &[u8; Inode::LEN],
    rest: &[u8],
    extra: u16,
    number: InodeNumber,
    superblock: &Superblock,
) -> Result<(), InodeError> {
    let mut crc = seed(number, u32::from_le_bytes(get::<0x64, _, _>(fixed)), superblock);
    for part in [&get::<0, 0x7C, _>(fixed)[..], &[0; 2], &get::<0x7E, 2, _>(fixed)] {
        crc = checksum::crc32c(crc, part);
    }
    let mut stored = u32::from(u16::from_le_bytes(get::<0x7C, _, _>(fixed)));
    let mut mask = 0xFFFF;
    // The high half of the checksum counts as zero, if the inode has one.
    if let Some(([e0, e1, c0, c1], after)) = rest.split_first_chunk() {
        crc = checksum::crc32c(crc, &[*e0, *e1]);
        if extra >= 4 {
            crc = checksum::crc32c(crc, &[0; 2]);
            stored |= u32::from(u16::from_le_bytes([*c0, *c1])) << 16;
            mask = u32::MAX;
        } else {
            crc = checksum::crc32c(crc, &[*c0, *c1]);
        }
        crc = checksum::crc32c(crc, after);
    }
    let computed = crc & mask;
    if stored == computed { Ok(()) } else { Err(InodeError::Checksum { stored, computed }) }
}

/// Reads i_mtime_extra; 0 for an inode without the field.
fn mtime_extra(rest: &[u8], extra: u16) -> u32 {
    // The kernel too gives an inode with room and i_extra_isize 0 the usual fields, all zero.
    let extra = if extra == 0 { Inode::USUAL_EXTRA } else { extra };
    let field = rest.get(..usize::from(extra).min(rest.len())).and_then(|fields| fields.get(8..12));
    field.and_then(|field| field.first_chunk()).map_or(0, |field| u32::from_le_bytes(*field))
}

fn time(low: u32, extra: u32) -> Timestamp {
    // Signed seconds, plus 2^32 for each step of the epoch bits.
    let base = i64::from(i32::from_le_bytes(low.to_le_bytes()));
    let seconds = base + (i64::from(extra & 3) << 32);
    Timestamp { seconds, nanoseconds: (extra >> 2).min(999_999_999) }
}

/// Decodes a device number: 8 and 8 bits in the first word, or 12 and 20 bits in the second.
fn device(payload: &[u8; Inode::PAYLOAD_LEN]) -> Device {
    let old = u32::from_le_bytes(get::<0, _, _>(payload));
    if old != 0 {
        return Device { major: (old >> 8) & 0xFF, minor: old & 0xFF };
    }
    let new = u32::from_le_bytes(get::<4, _, _>(payload));
    Device { major: (new >> 8) & 0xFFF, minor: (new & 0xFF) | ((new >> 12) & 0xF_FF00) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_can_make_is_never_left_to_another_differ() {
        for error in [InodeError::Encrypted, InodeError::Casefold, InodeError::Free] {
            assert_ne!(error.kind(), Kind::NotImplemented, "{error}");
        }
    }

    #[test]
    fn times_reach_from_1901_to_2446() {
        for (low, extra, seconds) in [
            (0x8000_0000, 0, -0x8000_0000),
            (0xFFFF_FFFF, 0, -1),
            (0, 0, 0),
            (0x7FFF_FFFF, 0, 0x7FFF_FFFF),
            (0x8000_0000, 1, 0x8000_0000),
            (0, 1, 0x1_0000_0000),
            (0x7FFF_FFFF, 3, 0x3_7FFF_FFFF),
        ] {
            assert_eq!(time(low, extra), Timestamp { seconds, nanoseconds: 0 }, "{low:#x} {extra}");
        }
        assert_eq!(time(0, 999_999_999 << 2).nanoseconds, 999_999_999);
        assert_eq!(time(0, u32::MAX).nanoseconds, 999_999_999, "beyond a second is its end");
    }

    #[test]
    fn device_numbers_are_read_in_both_forms() {
        let number = |first: u32, second: u32| {
            let mut payload = [0; Inode::PAYLOAD_LEN];
            payload[..4].copy_from_slice(&first.to_le_bytes());
            payload[4..8].copy_from_slice(&second.to_le_bytes());
            let Device { major, minor } = device(&payload);
            (major, minor)
        };
        assert_eq!(number(0x0801, 0), (8, 1));
        assert_eq!(number(0x0801, 0x1234_5678), (8, 1), "the old form counts first");
        assert_eq!(number(0, 0), (0, 0));
        assert_eq!(number(0, 0x0010_0801), (8, 257), "minors above 255 lie around the major");
        assert_eq!(number(0, 0xFFFF_FFFF), (0xFFF, 0xF_FFFF));
    }
}
