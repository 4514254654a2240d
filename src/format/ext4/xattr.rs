//! Extended attributes: the records that follow an inode's fields or lie in a block of their own.
//!
//! Source: Linux `fs/ext4/xattr.h`; `fs/ext4/xattr.c` (`check_xattrs`, `ext4_xattr_block_csum`),
//! `Documentation/filesystems/ext4/attributes.rst`.

use super::{Block, InodeNumber, checksum};
use crate::format::record::get;

/// First four bytes of the attributes in an inode or a block, little-endian.
pub const MAGIC: u32 = 0xEA02_0000;

/// Header of a block of attributes, little-endian, 32 bytes.
///
/// | offset | size | field      | unit and meaning                                        |
/// |-------:|-----:|------------|---------------------------------------------------------|
/// |   0x00 |    4 | h_magic    | 0xEA020000                                              |
/// |   0x04 |    4 | h_refcount | inodes that share the block                             |
/// |   0x08 |    4 | h_blocks   | 1                                                       |
/// |   0x0C |    4 | h_hash     |                                                         |
/// |   0x10 |    4 | h_checksum | CRC-32C of the block's number and bytes, itself as zero |
/// |   0x14 |   12 | h_reserved |                                                         |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// Number of blocks, always 1.
    pub blocks: u32,
    /// CRC-32C of the block, with METADATA_CSUM.
    pub checksum: u32,
}

/// Record of one attribute, little-endian, 16 bytes, then the name and padding to 4 bytes. Four
/// zeros end the list.
///
/// | offset | size | field        | unit and meaning                                                |
/// |-------:|-----:|--------------|-----------------------------------------------------------------|
/// |      0 |    1 | e_name_len   | bytes after the prefix                                          |
/// |      1 |    1 | e_name_index | [`Prefix`]                                                      |
/// |      2 |    2 | e_value_offs | bytes to the value, from the block's start or the first record  |
/// |      4 |    4 | e_value_inum | inode that is the value; 0: it is here                          |
/// |      8 |    4 | e_value_size | bytes                                                           |
/// |     12 |    4 | e_hash       | of name and value                                               |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Length of the name after the prefix, in bytes.
    pub name_len: u8,
    /// Number of the prefix, see [`Prefix`].
    pub name_index: u8,
    /// Byte of the value, counted from the start of the block or from the first record.
    pub value_offset: u16,
    /// Inode that holds the value; `None` when the value is in the list.
    pub value_inode: Option<InodeNumber>,
    /// Length of the value in bytes.
    pub value_len: u32,
    /// Hash of name and value.
    pub hash: u32,
}

/// Prefix of an attribute's full name, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// Namespace, after which a name follows: numbers 1, 4 and 6.
    Namespace(&'static [u8]),
    /// Access control list, stored in another form than the kernel shows: numbers 2 and 3.
    Acl(&'static [u8]),
    /// Data of the file system itself, which is not shown: number 7.
    System,
}

impl Prefix {
    /// Name after [`Prefix::System`] of the attribute that holds the rest of an inode's data.
    pub const DATA: &'static [u8] = b"data";

    /// Prefix with the number `index`. `None` for those that the kernel does not show: Lustre's,
    /// Hurd's, encryption's, and others.
    pub fn from_index(index: u8) -> Option<Self> {
        Some(match index {
            1 => Self::Namespace(b"user."),
            2 => Self::Acl(b"system.posix_acl_access"),
            3 => Self::Acl(b"system.posix_acl_default"),
            4 => Self::Namespace(b"trusted."),
            6 => Self::Namespace(b"security."),
            7 => Self::System,
            _ => return None,
        })
    }
}

/// Fault in the extended attributes of an inode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XattrFault {
    /// The block does not start with the magic number.
    #[error("the block starts with {found:#010x}, not 0xea020000")]
    Magic {
        /// Number in the place of the magic number.
        found: u32,
    },
    /// The attributes take more than one block.
    #[error("they claim {found} blocks, not 1")]
    Blocks {
        /// Number of blocks in the header.
        found: u32,
    },
    /// The stored checksum is not that of the bytes.
    #[error("their checksum {stored:#010x} is not the computed {computed:#010x}")]
    Checksum {
        /// Checksum that is stored in the block.
        stored: u32,
        /// Checksum of the block's bytes.
        computed: u32,
    },
    /// A record or its name ends beyond the list.
    #[error("the record at byte {offset} does not fit {len}")]
    Bounds {
        /// Byte of the list at which the record starts.
        offset: usize,
        /// Length of the list in bytes.
        len: usize,
    },
    /// A value is above 64 KiB, ends beyond the list, or overlaps the records.
    #[error("a value of {len} bytes at byte {offset} is outside {low}..{high}")]
    Value {
        /// Byte of the list at which the value starts.
        offset: usize,
        /// Length of the value in bytes.
        len: u32,
        /// Byte after the last record.
        low: usize,
        /// Byte after the list.
        high: usize,
    },
    /// A name that the kernel refuses: empty, too long, with a NUL, or after a prefix that is a
    /// whole name.
    #[error("a name of {len} bytes after prefix {index} is not acceptable")]
    Name {
        /// Number of the prefix in the record.
        index: u8,
        /// Length of the name after the prefix, in bytes.
        len: usize,
    },
    /// One name occurs twice on an inode.
    #[error("{name} is there twice")]
    Repeated {
        /// Name with quotes and escapes.
        name: String,
    },
    /// An access control list is malformed.
    #[error("its access control list {0}")]
    Acl(super::acl::AclFault),
    /// The inode of a value is not a value, or not this one.
    #[error("the value in inode {inode}: {fault}")]
    ValueInode {
        /// Number of that inode.
        inode: InodeNumber,
        /// Reason for which it is no value.
        fault: &'static str,
    },
    /// All attributes together are longer than one file may have.
    #[error("they take more than {} bytes", crate::limits::XATTR_SUM_BYTES)]
    Sum,
}

impl BlockHeader {
    /// Length of the encoded header, in bytes.
    pub const LEN: usize = 32;

    /// Reads the header of a block. Errors: [`XattrFault::Magic`], [`XattrFault::Blocks`].
    pub fn decode(record: &[u8; Self::LEN]) -> Result<Self, XattrFault> {
        let magic = u32::from_le_bytes(get::<0x00, _, _>(record));
        if magic != MAGIC {
            return Err(XattrFault::Magic { found: magic });
        }
        let blocks = u32::from_le_bytes(get::<0x08, _, _>(record));
        if blocks != 1 {
            return Err(XattrFault::Blocks { found: blocks });
        }
        Ok(Self { blocks, checksum: u32::from_le_bytes(get::<0x10, _, _>(record)) })
    }

    /// Computes the checksum of a whole block from the file system's seed and the block's number.
    pub fn checksum(seed: u32, number: Block, block: &[u8]) -> u32 {
        let (head, rest) = block.split_at_checked(0x10).unwrap_or_default();
        let after = rest.get(4..).unwrap_or_default();
        let parts = [&number.0.to_le_bytes()[..], head, &[0; 4], after];
        parts.iter().fold(seed, |crc, part| checksum::crc32c(crc, part))
    }
}

impl Entry {
    /// Length of a record without its name, in bytes.
    pub const LEN: usize = 16;

    /// Reads one record without its name.
    pub fn decode(record: &[u8; Self::LEN]) -> Self {
        let [name_len, name_index] = get::<0, _, _>(record);
        let inode = u32::from_le_bytes(get::<4, _, _>(record));
        Self {
            name_len,
            name_index,
            value_offset: u16::from_le_bytes(get::<2, _, _>(record)),
            value_inode: (inode != 0).then_some(InodeNumber(inode)),
            value_len: u32::from_le_bytes(get::<8, _, _>(record)),
            hash: u32::from_le_bytes(get::<12, _, _>(record)),
        }
    }

    /// Length of the record with name and padding, in bytes.
    pub fn record_len(&self) -> usize {
        (Self::LEN + usize::from(self.name_len)).next_multiple_of(4)
    }
}
