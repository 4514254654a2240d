//! EROFS directory records: the 12-byte entries at the head of a directory block.
//!
//! Bytes in, values out. This module knows how a record is spelled; where records and names go in a
//! block is decided by the writer and judged by the reader.
//!
//! Source: Linux `fs/erofs/erofs_fs.h`, `struct erofs_dirent`; the types are those of `fs/fs_types.c`.

use super::Nid;
use crate::{
    error::{Classify, Kind},
    format::record::{get, put},
    tree::FileType,
};

/// One directory record, little-endian, 12 bytes.
///
/// | offset | size | field     | unit and meaning                              |
/// |-------:|-----:|-----------|-----------------------------------------------|
/// |      0 |    8 | nid       | inode slot, counted in 32-byte units          |
/// |      8 |    2 | nameoff   | bytes from the start of the block to the name |
/// |     10 |    1 | file_type | 1 regular, 2 directory, 3 character device, 4 block device, 5 fifo, 6 socket, 7 symlink |
/// |     11 |    1 | reserved  | 0                                             |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirent {
    /// Number of the inode that the record names.
    pub nid: Nid,
    /// Bytes from the start of the block to the name.
    pub name_offset: u16,
    /// Type of that inode, as the record claims it.
    pub file_type: FileType,
}

/// Refusal of bytes that are no directory record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DirentError {
    /// Byte 10 is not one of 1 to 7.
    #[error("file type {found} of a directory record is not one of 1..=7")]
    FileType {
        /// Byte 10 of the record.
        found: u8,
    },
}

impl Classify for DirentError {
    fn kind(&self) -> Kind {
        Kind::Malformed
    }
    fn reason(&self) -> &'static str {
        "erofs.dirent.type"
    }
}

impl Dirent {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 12;

    /// Reads one record. Errors: [`DirentError::FileType`] when byte 10 names no file type.
    pub fn decode(record: &[u8; Self::LEN]) -> Result<Self, DirentError> {
        let [kind] = get::<10, _, _>(record);
        Ok(Self {
            nid: Nid(u64::from_le_bytes(get::<0, _, _>(record))),
            name_offset: u16::from_le_bytes(get::<8, _, _>(record)),
            file_type: file_type_of_byte(kind).ok_or(DirentError::FileType { found: kind })?,
        })
    }

    /// Spells the record; the reserved byte is 0.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut record = [0; Self::LEN];
        put::<0, _, _>(&mut record, self.nid.0.to_le_bytes());
        put::<8, _, _>(&mut record, self.name_offset.to_le_bytes());
        put::<10, _, _>(&mut record, [byte_of_file_type(self.file_type)]);
        record
    }
}

fn byte_of_file_type(file_type: FileType) -> u8 {
    match file_type {
        FileType::Regular => 1,
        FileType::Directory => 2,
        FileType::CharDevice => 3,
        FileType::BlockDevice => 4,
        FileType::Fifo => 5,
        FileType::Socket => 6,
        FileType::Symlink => 7,
    }
}

fn file_type_of_byte(byte: u8) -> Option<FileType> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn types_outside_the_table_are_refused() {
        for found in [0, 8, 255] {
            let mut record = [0; Dirent::LEN];
            record[10] = found;
            assert_eq!(Dirent::decode(&record), Err(DirentError::FileType { found }));
        }
    }

    proptest! {
        #[test]
        fn what_is_decoded_encodes_to_the_same_bytes(mut record in any::<[u8; 12]>(), kind in 1_u8..=7) {
            record[10] = kind;
            record[11] = 0;
            prop_assert_eq!(Dirent::decode(&record).unwrap().encode(), record);
        }
    }
}
