//! Extended attributes: the records that lie behind an inode's fields or in a block of their own.
//!
//! Source: Linux `fs/ext4/xattr.h`; `fs/ext4/xattr.c` (`check_xattrs`, `ext4_xattr_block_csum`),
//! `Documentation/filesystems/ext4/attributes.rst`.

use super::{Block, InodeNumber, checksum};
use crate::format::record::get;

/// What attributes in an inode, and in a block, start with.
pub const MAGIC: u32 = 0xEA02_0000;

/// The head of a block of attributes, little-endian, 32 bytes.
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
    /// 1.
    pub blocks: u32,
    /// With METADATA_CSUM.
    pub checksum: u32,
}

/// One attribute, little-endian, 16 bytes, the name, and padding to 4 bytes. Four zeros end the list.
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
    /// Bytes of the name.
    pub name_len: u8,
    /// How the full name begins.
    pub name_index: u8,
    /// Where the value is.
    pub value_offset: u16,
    /// The inode that is the value.
    pub value_inode: Option<InodeNumber>,
    /// Bytes of the value.
    pub value_len: u32,
    /// Of name and value.
    pub hash: u32,
}

/// How the full name of an attribute begins, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// 1, 4, 6: a name follows.
    Namespace(&'static [u8]),
    /// 2, 3: an access control list, spelled otherwise than the kernel shows it.
    Acl(&'static [u8]),
    /// 7: what belongs to the file system itself, and is not shown: data of small files.
    System,
}

impl Prefix {
    /// The name of the attribute that is the rest of an inode's data, after [`Prefix::System`].
    pub const DATA: &'static [u8] = b"data";

    /// `None` for numbers that the kernel does not show: Lustre's, Hurd's, encryption's, and others.
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

/// What is wrong with extended attributes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XattrFault {
    /// Not attributes.
    #[error("the block starts with {found:#010x}, not 0xea020000")]
    Magic {
        /// As found.
        found: u32,
    },
    /// More than a block.
    #[error("they claim {found} blocks, not 1")]
    Blocks {
        /// As found.
        found: u32,
    },
    /// The checksum does not match.
    #[error("their checksum {stored:#010x} is not the computed {computed:#010x}")]
    Checksum {
        /// In the block.
        stored: u32,
        /// Of its bytes.
        computed: u32,
    },
    /// A record, or its name, beyond the end.
    #[error("the record at byte {offset} does not fit {len}")]
    Bounds {
        /// Where it starts.
        offset: usize,
        /// Bytes of all records and values.
        len: usize,
    },
    /// A value beyond the end, or among the records.
    #[error("a value of {len} bytes at byte {offset} is outside {low}..{high}")]
    Value {
        /// Where it starts.
        offset: usize,
        /// Its length in bytes.
        len: u32,
        /// Where the records end.
        low: usize,
        /// Where the attributes end.
        high: usize,
    },
    /// A name that the kernel would not take.
    #[error("a name of {len} bytes after prefix {index} is not acceptable")]
    Name {
        /// The prefix's number.
        index: u8,
        /// Bytes after it.
        len: usize,
    },
    /// One name twice.
    #[error("{name} is there twice")]
    Repeated {
        /// The name, quoted.
        name: String,
    },
    /// An access control list that has no meaning.
    #[error("its access control list {0}")]
    Acl(super::acl::AclFault),
    /// A value in an inode that is none.
    #[error("the value in inode {inode}: {fault}")]
    ValueInode {
        /// The inode.
        inode: InodeNumber,
        /// What is wrong.
        fault: &'static str,
    },
    /// More bytes than one file may have.
    #[error("they take more than {} bytes", crate::limits::XATTR_SUM_BYTES)]
    Sum,
}

impl BlockHeader {
    /// Length of the head, in bytes.
    pub const LEN: usize = 32;

    /// Reads the head of a block. Errors: [`XattrFault::Magic`], [`XattrFault::Blocks`].
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

    /// Computes the checksum of a whole block, given the file system's seed and the block's number.
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

    /// Reads one record.
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

    /// Bytes to the next record.
    pub fn record_len(&self) -> usize {
        (Self::LEN + usize::from(self.name_len)).next_multiple_of(4)
    }
}
