//! Header and trailer of an LSMT file: one structure, 390 bytes in a block of 4096.
//!
//! Source: `docs/formats/overlaybd.md`, "LSMT"; overlaybd `src/overlaybd/lsmt/file.cpp`, `HeaderTrailer`.

use std::fmt;

use super::HEADER_BLOCK;
use crate::format::record::{get, put};

/// Magic number of LSMT: a name of its own, then a random one.
const MAGIC: [u8; 24] = [
    b'L', b'S', b'M', b'T', 0, 1, 2, 0, 0x65, 0x7e, 0x63, 0xd2, 0x94, 0x44, 0x08, 0x4c, 0xa2, 0xd2, 0xc8,
    0xec, 0x4f, 0xcf, 0xae, 0x8a,
];

/// Bits of the flags.
pub(super) mod flags {
    /// The structure is the header; otherwise the trailer.
    pub(in super::super) const HEADER: u32 = 1;
    /// The file holds data; otherwise it is the index file of a writable layer.
    pub(in super::super) const DATA: u32 = 1 << 1;
    /// The layer is read-only: it has its index inside.
    pub(in super::super) const SEALED: u32 = 1 << 2;
    /// Data lies at its place on the device, and holes are not mapped.
    pub(in super::super) const SPARSE: u32 = 1 << 4;
}

/// Header or trailer, little-endian, 390 bytes. The rest of its block of 4096 bytes has no meaning.
///
/// | offset | size | field        | unit and meaning                                            |
/// |-------:|-----:|--------------|-------------------------------------------------------------|
/// |      0 |   24 | magic        | "LSMT" 0 1 2 0, then 16 random bytes                        |
/// |     24 |    4 | size         | 390                                                         |
/// |     28 |    4 | flags        | header, data file, sealed, sparse                           |
/// |     32 |    8 | index_offset | bytes; in the trailer                                       |
/// |     40 |    8 | index_size   | entries; in the trailer                                     |
/// |     48 |    8 | virtual_size | size of the device in bytes; 0: that of the layers below    |
/// |     56 |   37 | uuid         | text, NUL at the end                                        |
/// |     93 |   37 | parent_uuid  | text, NUL at the end                                        |
/// |    130 |    2 | reserved     | 0                                                           |
/// |    132 |    1 | version      | 1                                                           |
/// |    133 |    1 | sub_version  | 1                                                           |
/// |    134 |  256 | user_tag     | text, filled with NUL                                       |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Kind of the file and of this structure.
    pub(super) flags: u32,
    /// Place of the index in bytes; 0 in a header.
    pub(super) index_offset: u64,
    /// Number of entries, unused ones included; 0 in a header.
    pub(super) index_entries: u64,
    /// Size of the device in bytes; 0 when the layers below decide.
    pub virtual_size: u64,
    /// Identity of the layer.
    pub uuid: Uuid,
    /// Identity of the layer below.
    pub parent_uuid: Uuid,
    /// Version of the format.
    pub(super) version: u8,
    /// Free text, at most 256 bytes.
    pub user_tag: Vec<u8>,
}

impl Header {
    /// Length of the structure, in bytes.
    pub(super) const LEN: usize = 390;
    /// Longest user tag, in bytes.
    pub const USER_TAG_BYTES: usize = 256;
    const VERSION: u8 = 1;

    /// The header of a file with `flags`, or its trailer.
    pub(super) fn new(flags: u32, virtual_size: u64) -> Self {
        Self {
            flags,
            index_offset: 0,
            index_entries: 0,
            virtual_size,
            uuid: Uuid::NULL,
            parent_uuid: Uuid::NULL,
            version: Self::VERSION,
            user_tag: Vec::new(),
        }
    }

    /// Reads the structure; `None` without the magic number.
    pub(super) fn decode(record: &[u8; Self::LEN]) -> Option<Self> {
        if get::<0, 24, _>(record) != MAGIC {
            return None;
        }
        let user_tag = get::<134, 256, _>(record);
        let end = user_tag.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        Some(Self {
            flags: u32::from_le_bytes(get::<28, _, _>(record)),
            index_offset: u64::from_le_bytes(get::<32, _, _>(record)),
            index_entries: u64::from_le_bytes(get::<40, _, _>(record)),
            virtual_size: u64::from_le_bytes(get::<48, _, _>(record)),
            uuid: Uuid::decode(get::<56, _, _>(record)),
            parent_uuid: Uuid::decode(get::<93, _, _>(record)),
            version: get::<132, 1, _>(record)[0],
            user_tag: user_tag.get(..end).unwrap_or_default().to_vec(),
        })
    }

    /// Writes the structure and the rest of its block. A user tag is cut after 256 bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut record = [0; Self::LEN];
        put::<0, _, _>(&mut record, MAGIC);
        put::<24, _, _>(&mut record, 390_u32.to_le_bytes());
        put::<28, _, _>(&mut record, self.flags.to_le_bytes());
        put::<32, _, _>(&mut record, self.index_offset.to_le_bytes());
        put::<40, _, _>(&mut record, self.index_entries.to_le_bytes());
        put::<48, _, _>(&mut record, self.virtual_size.to_le_bytes());
        put::<56, _, _>(&mut record, self.uuid.encode());
        put::<93, _, _>(&mut record, self.parent_uuid.encode());
        put::<132, _, _>(&mut record, [self.version, 1]);
        let mut user_tag = [0; Self::USER_TAG_BYTES];
        user_tag.iter_mut().zip(&self.user_tag).for_each(|(to, from)| *to = *from);
        put::<134, _, _>(&mut record, user_tag);
        let mut block = record.to_vec();
        block.resize(HEADER_BLOCK.try_into().expect("a small constant"), 0);
        block
    }
}

/// Identity of a layer, written as text in upper case.
///
/// ```
/// use plywood::format::lsmt::Uuid;
/// let uuid = Uuid::parse("0b0b0b0b-1111-4111-8111-000000000001").unwrap();
/// assert_eq!(uuid.to_string(), "0B0B0B0B-1111-4111-8111-000000000001");
/// assert_eq!(Uuid::parse("none"), None);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uuid(uuid::Uuid);

impl Uuid {
    /// Stands for "none".
    pub const NULL: Self = Self(uuid::Uuid::nil());
    /// Length of the text with its NUL, in bytes.
    const LEN: usize = 37;

    /// Reads the text of 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != Self::LEN - 1 {
            return None;
        }
        uuid::Uuid::try_parse(text).ok().map(Self)
    }

    /// A version 4 identity of 128 random bits.
    pub fn from_random(bits: [u8; 16]) -> Self {
        Self(uuid::Builder::from_random_bytes(bits).into_uuid())
    }

    // Identities are not verified by any reader, so text that is none counts as none.
    fn decode(text: [u8; Self::LEN]) -> Self {
        text.split_last()
            .and_then(|(_, text)| uuid::Uuid::try_parse_ascii(text).ok())
            .map_or(Self::NULL, Self)
    }

    fn encode(self) -> [u8; Self::LEN] {
        let mut text = [0; Self::LEN];
        self.0.hyphenated().encode_upper(&mut text);
        text
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}", self.0.hyphenated())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn first(block: &[u8]) -> &[u8; Header::LEN] {
        block.first_chunk().unwrap()
    }

    proptest! {
        #[test]
        fn a_header_reads_back_as_it_was_written(
            numbers in any::<[u64; 3]>(),
            flags in any::<u32>(),
            uuids in any::<[[u8; 16]; 2]>(),
            tag in "[a-z]{0,256}",
        ) {
            let [index_offset, index_entries, virtual_size] = numbers;
            let [uuid, parent_uuid] = uuids.map(Uuid::from_random);
            let header = Header {
                index_offset,
                index_entries,
                uuid,
                parent_uuid,
                user_tag: tag.into_bytes(),
                ..Header::new(flags, virtual_size)
            };
            let block = header.encode();
            prop_assert_eq!(block.len(), 4096);
            prop_assert_eq!(Header::decode(first(&block)), Some(header));
        }
    }

    #[test]
    fn another_magic_number_is_no_header() {
        for at in 0..MAGIC.len() {
            let mut block = Header::new(flags::HEADER, 0).encode();
            block[at] ^= 1;
            assert_eq!(Header::decode(first(&block)), None, "byte {at}");
        }
    }

    #[test]
    fn an_identity_that_cannot_be_read_counts_as_none() {
        let mut block = Header::new(flags::HEADER, 0).encode();
        block[56..93].fill(0xff);
        assert!(Header::decode(first(&block)).unwrap().uuid == Uuid::NULL);
        assert_eq!(Uuid::NULL.to_string(), "00000000-0000-0000-0000-000000000000");
        // Other spellings that a parser of UUIDs may take.
        assert_eq!(Uuid::parse("0b0b0b0b11114111811100000000000001"), None);
        assert_eq!(Uuid::parse("{0b0b0b0b-1111-4111-8111-000000000001}"), None);
    }
}
