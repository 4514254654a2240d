//! ext4 directory records: names of variable length chained through a block, and the checksum at
//! its end.
//!
//! Source: Linux `fs/ext4/ext4.h`, `struct ext4_dir_entry_2`, `struct ext4_dir_entry_tail`;
//! `fs/ext4/dir.c` (`__ext4_check_dir_entry`), `fs/ext4/namei.c` (`struct dx_root`, `struct dx_tail`),
//! `Documentation/filesystems/ext4/directory.rst`.

use super::{BlockBits, InodeNumber};
use crate::{limits::NAME_BYTES, tree::FileType};

/// One directory record, little-endian, at least 12 bytes, 4-byte aligned.
///
/// | offset | size | field     | unit and meaning                                                       |
/// |-------:|-----:|-----------|------------------------------------------------------------------------|
/// |      0 |    4 | inode     | 0: not in use                                                          |
/// |      4 |    2 | rec_len   | bytes to the next record; the last one ends with the block             |
/// |      6 |    1 | name_len  | bytes                                                                  |
/// |      7 |    1 | file_type | with FILETYPE: 1 regular, 2 directory, 3 character device, 4 block device, 5 fifo, 6 socket, 7 symlink; 0xDE: the checksum of the block |
/// |      8 |    – | name      |                                                                        |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirent<'b> {
    /// Byte of the block at which the record starts.
    pub offset: usize,
    /// Number of the inode that the record names.
    pub inode: InodeNumber,
    /// Name of 1 to 255 bytes without slash or NUL.
    pub name: &'b [u8],
    /// Type that the record claims for the inode; `None` without the feature FILETYPE.
    pub file_type: Option<FileType>,
}

/// Length of a record in front of its name, in bytes.
pub const HEAD: usize = 8;

/// Fault of a directory or of one of its blocks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DirentFault {
    /// A record ends off 4 bytes, inside its head, or beyond the block.
    #[error("the record at byte {offset}, {len} bytes long, does not fit the block of {room}")]
    Length {
        /// Byte of the block at which the record starts.
        offset: usize,
        /// Length of the record in bytes.
        len: usize,
        /// Bytes left in the block.
        room: usize,
    },
    /// A name is empty or longer than its record.
    #[error("the record at byte {offset}, {len} bytes long, has a name of {name_len}")]
    Name {
        /// Byte of the block at which the record starts.
        offset: usize,
        /// Length of the record in bytes.
        len: usize,
        /// Length of the name in bytes.
        name_len: usize,
    },
    /// A name holds a slash or NUL.
    #[error("name {name} holds a slash or NUL")]
    NameByte {
        /// Name with quotes and escapes.
        name: String,
    },
    /// The type byte of a record is none of 1 to 7.
    #[error("file type {found} of the record at byte {offset} is not one of 1..=7")]
    FileType {
        /// Byte of the block at which the record starts.
        offset: usize,
        /// Type byte of the record.
        found: u8,
    },
    /// The record's type differs from the inode's.
    #[error("name {name} is a {found:?}, by its record, but inode {inode} is a {is:?}")]
    WrongType {
        /// Name with quotes and escapes.
        name: String,
        /// Type that the record claims.
        found: FileType,
        /// Number of the named inode.
        inode: InodeNumber,
        /// Type in the mode of the inode.
        is: FileType,
    },
    /// `..` of a directory does not lead to the directory that names it.
    #[error("its parent is {found}, not {want}, where it was found")]
    Parent {
        /// Inode that `..` names.
        found: InodeNumber,
        /// Inode of the directory that was read.
        want: InodeNumber,
    },
    /// The first records of a directory hold no `..`.
    #[error("it does not begin with `..`")]
    NoParent,
    /// One name occurs twice in a directory.
    #[error("{name} is there twice")]
    Repeated {
        /// Name with quotes and escapes.
        name: String,
    },
    /// One directory has two names.
    #[error("directory {inode} is there twice")]
    Linked {
        /// Inode of that directory.
        inode: InodeNumber,
    },
    /// The directory has more names than the index may hold.
    #[error("it has more than {} names", crate::limits::DIRECTORY_NAMES)]
    Names,
    /// The block has no checksum, or a wrong one.
    #[error("its checksum {stored:?} is not the computed {computed:#010x}")]
    Checksum {
        /// Checksum in the block; `None` without one.
        stored: Option<u32>,
        /// Checksum of the block's bytes.
        computed: u32,
    },
    /// The size is no multiple of the block size, or above 2^32 bytes or the file system.
    #[error("{size_bytes} bytes are not a size of a directory")]
    Size {
        /// Size of the directory in bytes.
        size_bytes: u64,
    },
    /// The size of a directory in its inode is below 60 bytes, or above the data in the inode.
    #[error("{size_bytes} bytes in the inode are too few")]
    Inline {
        /// Size of the directory in bytes.
        size_bytes: u64,
    },
}

/// Iterator over the records of one block.
#[derive(Clone, Copy, Debug)]
pub struct Dirents<'b> {
    block: &'b [u8],
    offset: usize,
    /// True when the records hold types: feature FILETYPE.
    typed: bool,
}

impl<'b> Dirents<'b> {
    /// Starts at byte `offset` of `block`, which is a whole block or a part of an inode.
    pub fn new(block: &'b [u8], offset: usize, typed: bool) -> Self {
        Self { block, offset, typed }
    }

    /// Byte of the block at which the next record starts.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Next record in use; `None` after the last. Records with inode 0 are skipped.
    ///
    /// Errors: [`DirentFault::Length`], [`DirentFault::Name`], [`DirentFault::NameByte`],
    /// [`DirentFault::FileType`].
    pub fn next_used(&mut self) -> Result<Option<Dirent<'b>>, DirentFault> {
        while self.offset < self.block.len() {
            let record = self.block.get(self.offset..).unwrap_or_default();
            let room = self.block.len();
            let offset = self.offset;
            let Some(([i0, i1, i2, i3, l0, l1, name_len, kind], rest)) =
                record.split_first_chunk::<{ HEAD }>()
            else {
                return Err(DirentFault::Length { offset, len: record.len(), room });
            };
            let len = record_len(u16::from_le_bytes([*l0, *l1]), room);
            // The shortest record has 12 bytes: a head and a padded name.
            if len < 12 || !len.is_multiple_of(4) || len > record.len() {
                return Err(DirentFault::Length { offset, len, room });
            }
            self.offset += len;
            let inode = InodeNumber(u32::from_le_bytes([*i0, *i1, *i2, *i3]));
            let name_len = usize::from(*name_len);
            if HEAD + name_len > len {
                return Err(DirentFault::Name { offset, len, name_len });
            }
            if inode.0 == 0 {
                continue;
            }
            let name = rest.get(..name_len).unwrap_or_default();
            if name.is_empty() || name.len() > NAME_BYTES {
                return Err(DirentFault::Name { offset, len, name_len });
            }
            if name.iter().any(|byte| matches!(byte, 0 | b'/')) {
                let name = crate::error::Quoted(name).to_string();
                return Err(DirentFault::NameByte { name });
            }
            // Without FILETYPE this byte is the high half of the name's length, which is 0.
            let file_type = match (self.typed, *kind) {
                (false, _) | (true, 0) => None,
                (true, found) => Some(file_type(found).ok_or(DirentFault::FileType { offset, found })?),
            };
            return Ok(Some(Dirent { offset, inode, name, file_type }));
        }
        Ok(None)
    }
}

/// Decodes a record's length. In blocks of 64 KiB the value 65536 does not fit its 16 bits and is
/// spelled as 0 or 65535.
fn record_len(field: u16, room: usize) -> usize {
    let len = usize::from(field);
    match room {
        0x1_0000 if matches!(field, 0 | 0xFFFF) => room,
        0x1_0000 => (len & 0xFFFC) | ((len & 3) << 16),
        _ => len,
    }
}

fn file_type(byte: u8) -> Option<FileType> {
    Some(match byte {
        1 => FileType::Regular,
        2 => FileType::Directory,
        3 => FileType::CharDevice,
        4 => FileType::BlockDevice,
        5 => FileType::Fifo,
        6 => FileType::Socket,
        7 => FileType::Symlink,
        _ => return None,
    })
}

/// Checksum of a directory block, and the bytes that it covers.
///
/// | block | checksum | covers |
/// |-------|----------|--------|
/// | records | last 4 bytes, behind a record of 12 bytes with inode 0, no name and type 0xDE | all bytes before that record |
/// | hash tree | 4 bytes, behind 4 reserved ones, behind the last entry that fits | the entries in use, and all before; the reserved bytes; four zeros |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Checksum that is stored in the block.
    pub stored: u32,
    /// Number of bytes covered from the start of the block on.
    pub covered: usize,
    /// Bytes that are covered after those.
    pub then: Option<[u8; 4]>,
}

impl Tail {
    /// Length of the record that holds the checksum, in bytes.
    const LEN: usize = 12;

    /// Finds the checksum of a block of records; `None` when the block has none.
    pub fn of_records(block: &[u8]) -> Option<Self> {
        let (covered, tail) = block.split_last_chunk::<{ Self::LEN }>()?;
        let [0, 0, 0, 0, 12, 0, 0, 0xDE, c0, c1, c2, c3] = tail else { return None };
        let stored = u32::from_le_bytes([*c0, *c1, *c2, *c3]);
        Some(Self { stored, covered: covered.len(), then: None })
    }

    /// Finds the checksum of a block of a hash tree; `None` for any other block.
    pub fn of_index(block: &[u8], bits: BlockBits) -> Option<Self> {
        let word = |at: usize| Some(u16::from_le_bytes(*block.get(at..)?.first_chunk()?));
        let size = bits.buffer_len();
        let counts = match record_len(word(4)?, size) {
            // An inner node starts with one unused record over all of the block, then its entries.
            len if len == size => 8,
            // The root starts with `.`, then `..` over the rest of the block, then eight bytes
            // about the tree.
            12 if record_len(word(12 + 4)?, size) == size - 12 && block.get(29) == Some(&8) => 32,
            _ => return None,
        };
        let (limit, count) = (usize::from(word(counts)?), usize::from(word(counts + 2)?));
        if count > limit {
            return None;
        }
        let tail = block.get(counts + 8 * limit..)?.first_chunk::<8>()?;
        let [r0, r1, r2, r3, c0, c1, c2, c3] = *tail;
        Some(Self {
            stored: u32::from_le_bytes([c0, c1, c2, c3]),
            covered: counts + 8 * count,
            then: Some([r0, r1, r2, r3]),
        })
    }

    /// Computes the checksum of the block. `seed` is that of the directory's inode.
    pub fn compute(&self, seed: u32, block: &[u8]) -> u32 {
        let crc = super::checksum::crc32c(seed, block.get(..self.covered).unwrap_or_default());
        match self.then {
            None => crc,
            Some(reserved) => super::checksum::crc32c(super::checksum::crc32c(crc, &reserved), &[0; 4]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(inode: u32, len: u16, name: &[u8], kind: u8) -> Vec<u8> {
        let mut record = inode.to_le_bytes().to_vec();
        record.extend(len.to_le_bytes());
        record.extend([u8::try_from(name.len()).unwrap(), kind]);
        record.extend(name);
        record.resize(record.len().max(len.into()), 0);
        record
    }

    fn read(block: &[u8], typed: bool) -> Result<Vec<(u32, Vec<u8>)>, DirentFault> {
        let mut walk = Dirents::new(block, 0, typed);
        let mut found = Vec::new();
        while let Some(entry) = walk.next_used()? {
            found.push((entry.inode.0, entry.name.to_vec()));
        }
        Ok(found)
    }

    #[test]
    fn records_that_are_not_in_use_are_passed_over() {
        let block = [record(11, 12, b"a", 1), record(0, 16, b"gone", 1), record(12, 20, b"bb", 2)].concat();
        assert_eq!(read(&block, true).unwrap(), [(11, b"a".to_vec()), (12, b"bb".to_vec())]);
        assert_eq!(read(&[], true).unwrap(), []);
    }

    #[test]
    fn records_that_do_not_fit_are_refused() {
        for (block, reason) in [
            (record(11, 12, b"a", 1)[..11].to_vec(), "length"),
            (record(11, 8, b"", 1), "length"),
            (record(11, 0, b"abcd", 1), "length"),
            (record(11, 14, b"a", 1), "length"),
            ([record(11, 12, b"a", 1), vec![0; 4]].concat(), "length"),
            (record(11, 12, b"abcde", 1)[..12].to_vec(), "name"),
            (record(11, 12, b"", 1), "name"),
            (record(11, 12, b"a/b", 1), "byte"),
            (record(11, 12, b"a\0", 1), "byte"),
            (record(11, 12, b"a", 8), "type"),
        ] {
            let found = match read(&block, true).unwrap_err() {
                DirentFault::Length { .. } => "length",
                DirentFault::Name { .. } => "name",
                DirentFault::NameByte { .. } => "byte",
                DirentFault::FileType { .. } => "type",
                other => panic!("{other}"),
            };
            assert_eq!(found, reason, "{block:?}");
        }
        assert_eq!(read(&record(11, 12, b"a", 8), false).unwrap().len(), 1, "there are no types");
    }

    #[test]
    fn the_largest_blocks_have_lengths_of_their_own() {
        for (field, want) in [(0, 65_536), (0xFFFF, 65_536), (12, 12), (0xFFFC, 65_532), (1, 65_536)] {
            assert_eq!(record_len(field, 65_536), want, "{field:#x}");
        }
        assert_eq!(record_len(0, 4096), 0);
    }
}
