//! The record at both ends of a ZFile: where the index is, and how blocks are compressed.
//!
//! Source: `docs/formats/overlaybd.md`, "ZFile, header and trailer".

use super::block::{Algorithm, BlockSize};
use crate::format::{
    crc32c,
    record::{get, put},
};

/// Header or trailer, little-endian, 512 bytes.
///
/// | offset | size | field              | unit and meaning                                              |
/// |-------:|-----:|--------------------|---------------------------------------------------------------|
/// |      0 |    8 | magic              | `ZFile`, 0, 1, 0                                              |
/// |      8 |   16 | magic              | `tuji.yyf@Alibaba`                                            |
/// |     24 |    4 | size               | bytes of the record that are used: 96                         |
/// |     28 |    4 | digest             | raw CRC-32C of all 512 bytes, with 0 in this field            |
/// |     32 |    8 | flags              | [`flag`]; only the low 32 bits mean anything                  |
/// |     40 |    8 | index_offset       | bytes                                                         |
/// |     48 |    8 | index_size         | number of blocks                                              |
/// |     56 |    8 | original_file_size | bytes of the contents                                         |
/// |     64 |    4 | index_crc          | raw CRC-32C of the index                                      |
/// |     68 |    4 |                    | 0                                                             |
/// |     72 |    4 | block_size         | bytes of contents in a block                                  |
/// |     76 |    1 | algo               | 1 LZ4, 2 zstd                                                 |
/// |     77 |    1 | level              | 0; not read                                                   |
/// |     78 |    1 | use_dict           | 0                                                             |
/// |     79 |    5 |                    | 0                                                             |
/// |     84 |    4 | dict_size          | bytes between the header and the first block: 0               |
/// |     88 |    1 | verify             | 1 when a checksum follows each block                          |
/// |     89 |  423 |                    | 0                                                             |
///
/// Writers of 2021 did not clear the record first. The digest, the checksum of the index, the high flags and
/// everything from byte 96 on then hold leftovers, and the flag [`flag::DIGEST`] is clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The low 32 bits of the flags.
    pub flags: u32,
    /// Byte at which the index begins.
    pub index_offset: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// Size of the contents in bytes.
    pub contents_bytes: u64,
    /// Checksum of the index. It means nothing without [`flag::DIGEST`].
    pub index_crc: u32,
    /// Contents of a block.
    pub block_size: BlockSize,
    /// Compression of the blocks.
    pub algorithm: Algorithm,
    /// Bytes between the header and the first block.
    pub dictionary_bytes: u32,
    /// Whether each block is followed by its checksum.
    pub verify: bool,
}

/// Bits of [`Header::flags`].
pub mod flag {
    /// The record is the header, not the trailer.
    pub const HEADER: u32 = 1;
    /// The file holds blocks.
    pub const DATA: u32 = 1 << 1;
    /// The record was written when the file was complete. Headers do not have it.
    pub const SEALED: u32 = 1 << 2;
    /// The header was written again at the end. Readers need no trailer.
    pub const FINAL_HEADER: u32 = 1 << 3;
    /// The digest and the checksum of the index are valid.
    pub const DIGEST: u32 = 1 << 4;
    /// The index is compressed. No writer does that.
    pub const COMPRESSED_INDEX: u32 = 1 << 5;
}

/// Fault of a header or a trailer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderFault {
    /// The record does not begin with the magic numbers.
    #[error("{} is not the magic number of a ZFile", found.escape_ascii())]
    Magic {
        /// First 24 bytes.
        found: [u8; 24],
    },
    /// The flags are not those of this end of a file.
    #[error("flags {found:#x} are not {want:#x} in the bits {mask:#x}")]
    Flags {
        /// Low 32 bits of the flags.
        found: u32,
        /// Flags wanted.
        want: u32,
        /// Bits that are compared.
        mask: u32,
    },
    /// The record was changed.
    #[error("digest {stored:#010x} is not the computed {computed:#010x}")]
    Digest {
        /// Digest in the record.
        stored: u32,
        /// Digest of the record.
        computed: u32,
    },
    /// The index is compressed.
    #[error("the index is compressed, which no reader supports")]
    CompressedIndex,
    /// The compression is unknown.
    #[error("algorithm {found} is not 1 (LZ4) or 2 (zstd)")]
    Algorithm {
        /// Number of the algorithm.
        found: u8,
    },
    /// The block size is out of range.
    #[error("a block size of {found} bytes is not a power of two within {} to {}", BlockSize::MIN.bytes(), BlockSize::MAX.bytes())]
    BlockSize {
        /// Size in bytes.
        found: u32,
    },
    /// The blocks need a dictionary.
    #[error("the blocks are compressed with a dictionary of {bytes} bytes, which is not supported")]
    Dictionary {
        /// Size of the dictionary.
        bytes: u32,
    },
}

impl Header {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 512;
    /// The magic numbers at the start.
    pub const MAGIC: [u8; 24] = *b"ZFile\x00\x01\x00tuji.yyf@Alibaba";
    /// Bytes of the record that are used.
    const USED: u32 = 96;

    /// Reads the record at the start of a file.
    ///
    /// Errors: [`HeaderFault`].
    pub fn decode_header(record: &[u8; Self::LEN]) -> Result<Self, HeaderFault> {
        Self::decode(record, flag::HEADER | flag::DATA, flag::HEADER | flag::DATA)
    }

    /// Reads the record at the end of a file.
    ///
    /// Errors: [`HeaderFault`].
    pub fn decode_trailer(record: &[u8; Self::LEN]) -> Result<Self, HeaderFault> {
        Self::decode(record, flag::DATA | flag::SEALED, flag::HEADER | flag::DATA | flag::SEALED)
    }

    fn decode(record: &[u8; Self::LEN], want: u32, mask: u32) -> Result<Self, HeaderFault> {
        let found = get::<0, 24, _>(record);
        if found != Self::MAGIC {
            return Err(HeaderFault::Magic { found });
        }
        let flags = u32::from_le_bytes(get::<32, _, _>(record));
        if flags & mask != want {
            return Err(HeaderFault::Flags { found: flags, want, mask });
        }
        if flags & flag::DIGEST != 0 {
            let (stored, computed) = (u32::from_le_bytes(get::<28, _, _>(record)), digest(record));
            if stored != computed {
                return Err(HeaderFault::Digest { stored, computed });
            }
        }
        if flags & flag::COMPRESSED_INDEX != 0 {
            return Err(HeaderFault::CompressedIndex);
        }
        let block_size = u32::from_le_bytes(get::<72, _, _>(record));
        let [algorithm] = get::<76, _, _>(record);
        let [use_dictionary] = get::<78, _, _>(record);
        let dictionary_bytes = u32::from_le_bytes(get::<84, _, _>(record));
        if use_dictionary != 0 {
            return Err(HeaderFault::Dictionary { bytes: dictionary_bytes });
        }
        Ok(Self {
            flags,
            index_offset: u64::from_le_bytes(get::<40, _, _>(record)),
            blocks: u64::from_le_bytes(get::<48, _, _>(record)),
            contents_bytes: u64::from_le_bytes(get::<56, _, _>(record)),
            index_crc: u32::from_le_bytes(get::<64, _, _>(record)),
            block_size: BlockSize::new(block_size).ok_or(HeaderFault::BlockSize { found: block_size })?,
            algorithm: Algorithm::from_byte(algorithm).ok_or(HeaderFault::Algorithm { found: algorithm })?,
            dictionary_bytes,
            verify: get::<88, 1, _>(record) != [0],
        })
    }

    /// Writes the record, with its digest if [`flag::DIGEST`] is set.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut record = [0; Self::LEN];
        put::<0, _, _>(&mut record, Self::MAGIC);
        put::<24, _, _>(&mut record, Self::USED.to_le_bytes());
        put::<32, _, _>(&mut record, u64::from(self.flags).to_le_bytes());
        put::<40, _, _>(&mut record, self.index_offset.to_le_bytes());
        put::<48, _, _>(&mut record, self.blocks.to_le_bytes());
        put::<56, _, _>(&mut record, self.contents_bytes.to_le_bytes());
        put::<64, _, _>(&mut record, self.index_crc.to_le_bytes());
        put::<72, _, _>(&mut record, self.block_size.bytes().to_le_bytes());
        put::<76, _, _>(&mut record, [self.algorithm.as_byte()]);
        put::<84, _, _>(&mut record, self.dictionary_bytes.to_le_bytes());
        put::<88, _, _>(&mut record, [u8::from(self.verify)]);
        if self.has_digest() {
            let digest = digest(&record);
            put::<28, _, _>(&mut record, digest.to_le_bytes());
        }
        record
    }

    /// Whether the digest and the checksum of the index are valid.
    pub fn has_digest(&self) -> bool {
        self.flags & flag::DIGEST != 0
    }
}

/// Computes the digest of a record, whatever its field holds.
fn digest(record: &[u8; Header::LEN]) -> u32 {
    let (head, rest) = record.split_at(28);
    let (_stored, tail) = rest.split_at(4);
    [head, &[0; 4], tail].iter().fold(0, |crc, part| crc32c::raw(crc, part))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sound() -> Header {
        Header {
            flags: flag::HEADER | flag::DATA | flag::FINAL_HEADER | flag::DIGEST,
            index_offset: 92_291,
            blocks: 46,
            contents_bytes: 188_416,
            index_crc: 0xA804_FE6D,
            block_size: BlockSize::MIN,
            algorithm: Algorithm::Lz4,
            dictionary_bytes: 0,
            verify: true,
        }
    }

    #[test]
    fn every_byte_of_a_record_with_a_digest_is_protected() {
        let sound = sound().encode();
        Header::decode_header(&sound).unwrap();
        for at in 0..Header::LEN {
            let mut record = sound;
            record[at] ^= 0x40;
            assert!(Header::decode_header(&record).is_err(), "byte {at}");
        }
    }

    #[test]
    fn leftovers_in_records_of_old_writers_are_ignored() {
        let mut header = sound();
        header.flags = flag::HEADER | flag::DATA;
        let mut record = header.encode();
        record[28..32].fill(0xAA);
        record[36..40].fill(0xAA);
        record[64..72].fill(0xAA);
        record[96..].fill(0xAA);
        let found = Header::decode_header(&record).unwrap();
        assert_eq!(found, Header { index_crc: 0xAAAA_AAAA, ..header });
    }

    #[test]
    fn each_end_of_a_file_has_flags_of_its_own() {
        let with = |flags| Header { flags, ..sound() }.encode();
        for (flags, header, trailer) in [
            (0x13, true, false),
            (0x1B, true, false),
            (0x16, false, true),
            (0x12, false, false),
            (0x14, false, false),
            (3, true, false),
            (6, false, true),
        ] {
            assert_eq!(Header::decode_header(&with(flags)).is_ok(), header, "{flags:#x}");
            assert_eq!(Header::decode_trailer(&with(flags)).is_ok(), trailer, "{flags:#x}");
        }
    }

    #[test]
    fn what_no_reader_supports_is_refused() {
        let change = |at: usize, byte| {
            let mut record = Header { flags: 3, ..sound() }.encode();
            record[at] = byte;
            Header::decode_header(&record)
        };
        assert_eq!(change(32, 0x23), Err(HeaderFault::CompressedIndex));
        assert_eq!(change(76, 0), Err(HeaderFault::Algorithm { found: 0 }));
        assert_eq!(change(76, 3), Err(HeaderFault::Algorithm { found: 3 }));
        assert_eq!(change(73, 0x08), Err(HeaderFault::BlockSize { found: 2048 }));
        assert_eq!(change(72, 1), Err(HeaderFault::BlockSize { found: 4097 }));
        assert_eq!(change(74, 2), Err(HeaderFault::BlockSize { found: 135_168 }));
        assert_eq!(change(78, 1), Err(HeaderFault::Dictionary { bytes: 0 }));
        assert_eq!(change(77, 9).map(|header| header.algorithm), Ok(Algorithm::Lz4));
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(
            sizes: (u64, u64, u64), index_crc: u32, bits in 12_u32..=16, zstd: bool, verify: bool,
            digest: bool, dictionary_bytes: u32,
        ) {
            let header = Header {
                flags: flag::DATA | flag::SEALED | if digest { flag::DIGEST } else { 0 },
                index_offset: sizes.0, blocks: sizes.1, contents_bytes: sizes.2, index_crc,
                block_size: BlockSize::new(1 << bits).unwrap(),
                algorithm: if zstd { Algorithm::Zstd } else { Algorithm::Lz4 },
                dictionary_bytes, verify,
            };
            prop_assert_eq!(Header::decode_trailer(&header.encode()), Ok(header));
        }
    }
}
