//! Compression: algorithms and their configurations, and the records of a compressed file's map.
//!
//! Bytes in, values out: nothing here decodes data, and where the records of a map lie is decided by
//! [`super::reader`].
//!
//! Source: Linux `fs/erofs/erofs_fs.h`, `struct z_erofs_map_header`, `struct z_erofs_lcluster_index`,
//! `struct z_erofs_extent`; `fs/erofs/decompressor*.c` (configurations).

use crate::format::record::get;

/// Compression algorithm, with the format's numbers 0 to 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// Raw block without a frame.
    Lz4,
    /// LZMA1 without header and end mark; the first byte is the complement of the property byte.
    Lzma,
    /// Raw DEFLATE stream without zlib or gzip around it.
    Deflate,
    /// One ordinary Zstandard frame.
    Zstd,
}

impl Algorithm {
    /// All algorithms, in the order of their numbers in the format.
    pub const ALL: [Self; 4] = [Self::Lz4, Self::Lzma, Self::Deflate, Self::Zstd];

    /// Algorithm with the format's `number`; `None` above 3.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Bit of the algorithm in `available_compr_algs` of the superblock.
    pub fn bit(self) -> u16 {
        match self {
            Self::Lz4 => 1,
            Self::Lzma => 2,
            Self::Deflate => 4,
            Self::Zstd => 8,
        }
    }

    /// Lower-case name, as dumps and error texts show it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Lzma => "lzma",
            Self::Deflate => "deflate",
            Self::Zstd => "zstd",
        }
    }

    /// Reads the configuration record of the algorithm, whose length field is not part of `record`.
    ///
    /// Returns the largest LZ4 pcluster in blocks, 0 for the other algorithms. Errors: a sentence
    /// that names the field for which a kernel refuses to mount.
    ///
    /// | algorithm | offset | size | field             | unit and meaning               |
    /// |-----------|-------:|-----:|-------------------|--------------------------------|
    /// | LZ4       |      0 |    2 | max_distance      | bytes, 0 for 65535             |
    /// |           |      2 |    2 | max_pclusterblks  | blocks, 0 for 1                |
    /// | LZMA      |      0 |    4 | dict_size         | bytes, 4096 to 8 MiB           |
    /// |           |      4 |    2 | format            | 0                              |
    /// | DEFLATE   |      0 |    1 | windowbits        | at most 15                     |
    /// | Zstandard |      0 |    1 | format            | 0                              |
    /// |           |      1 |    1 | windowlog         | log2 of the window − 10, at most 10 |
    pub fn configuration(self, record: &[u8], block_len: u64) -> Result<u64, &'static str> {
        const SHORT: &str = "its record is too short";
        match self {
            Self::Lz4 => {
                let record: &[u8; 14] = record.first_chunk().ok_or(SHORT)?;
                let blocks = u64::from(u16::from_le_bytes(get::<2, _, _>(record))).max(1);
                if blocks * block_len > PCLUSTER_BYTES {
                    return Err("its pclusters are larger than 1 MiB");
                }
                Ok(blocks)
            }
            Self::Lzma => {
                let record: &[u8; 14] = record.first_chunk().ok_or(SHORT)?;
                let dictionary = u32::from_le_bytes(get::<0, _, _>(record));
                if !(4096..=8 << 20).contains(&dictionary) || get::<4, 2, _>(record) != [0; 2] {
                    return Err("its format is not 0, or its dictionary not within 4 KiB to 8 MiB");
                }
                Ok(0)
            }
            Self::Deflate => {
                let [window_bits, ..] = *record.first_chunk::<6>().ok_or(SHORT)?;
                if window_bits > 15 { Err("its window is larger than 2^15 bytes") } else { Ok(0) }
            }
            Self::Zstd => {
                let [format, window_log, ..] = *record.first_chunk::<6>().ok_or(SHORT)?;
                if format != 0 || window_log > 10 {
                    return Err("its format is not 0, or its window larger than 2^20 bytes");
                }
                Ok(0)
            }
        }
    }
}

/// Largest pcluster in bytes: the kernel's `Z_EROFS_PCLUSTER_MAX_SIZE`.
pub const PCLUSTER_BYTES: u64 = 1 << 20;
/// Most bytes a pcluster may decode to: the kernel's `Z_EROFS_PCLUSTER_MAX_DSIZE`.
pub const DECODED_BYTES: u64 = 12 << 20;

/// Bits of one file's map, see [`MapHeader::advise`].
pub mod advise {
    /// Compact layout: records of 2 bytes where they fit.
    pub const COMPACTED_2B: u16 = 0x01;
    /// Full layout: extent records take the place of the index. Shares its bit with
    /// [`COMPACTED_2B`].
    pub const EXTENTS: u16 = 0x01;
    /// Pclusters of the first algorithm may be larger than a block.
    pub const BIG_PCLUSTER_1: u16 = 0x02;
    /// Pclusters of the second algorithm, and plain ones, may be larger than a block.
    pub const BIG_PCLUSTER_2: u16 = 0x04;
    /// The last pcluster lies right after the map.
    pub const INLINE: u16 = 0x08;
    /// Plain pclusters keep their bytes at the same place within a block as in the file.
    pub const INTERLACED: u16 = 0x10;
    /// The end of the file lies in the packed file.
    pub const FRAGMENT: u16 = 0x20;
    /// All bits that have a meaning; kernels refuse others.
    pub const KNOWN: u16 = 0x3f;
}

/// The head of a compressed file's map, little-endian, 8 bytes, aligned to 8 after the attributes.
///
/// | offset | size | field           | unit and meaning                                                |
/// |-------:|-----:|-----------------|-----------------------------------------------------------------|
/// |      0 |    4 | fragment offset / extents | low half of the offset in the packed file; number of extents; or 2 reserved bytes and the length of the inline pcluster |
/// |      4 |    2 | advise          | [`advise`]                                                      |
/// |      6 |    1 | algorithms      | bits 0–3: the first, 4–7: the second; extent records: number, bits 32..39 |
/// |      7 |    1 | clusterbits     | bits 0–3: log2 of the lcluster, less that of the block; bit 7: the whole file is a fragment, and the other 63 bits its offset |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapHeader {
    /// All 8 bytes as one little-endian number.
    bits: u64,
}

impl MapHeader {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 8;

    /// Reads the header from its 8 bytes.
    pub fn decode(record: &[u8; Self::LEN]) -> Self {
        Self { bits: u64::from_le_bytes(*record) }
    }

    /// Byte of the packed file at which the file starts, if all of the file lies there.
    pub fn whole_fragment(self) -> Option<u64> {
        (self.bits >> 63 != 0).then_some(self.bits & !(1 << 63))
    }

    /// Feature bits of the map, see the module [`advise`].
    pub fn advise(self) -> u16 {
        let [_, _, _, _, a, b, _, _] = self.bits.to_le_bytes();
        u16::from_le_bytes([a, b])
    }

    /// True when `bit` of [`advise`] is set.
    pub fn has(self, bit: u16) -> bool {
        self.advise() & bit != 0
    }

    /// Lower 32 bits: low half of the fragment's offset, or of the number of extents.
    pub fn low(self) -> u64 {
        self.bits & 0xffff_ffff
    }

    /// Number of extent records, at most 48 bits.
    pub fn extents(self) -> u64 {
        self.low() | self.bits >> 48 << 32
    }

    /// Length of the inline pcluster, in bytes.
    pub fn inline_len(self) -> u64 {
        self.bits >> 16 & 0xffff
    }

    /// Algorithm numbers of first and second heads.
    pub fn algorithms(self) -> [u8; 2] {
        let [_, _, _, _, _, _, both, _] = self.bits.to_le_bytes();
        [both & 15, both >> 4]
    }

    /// log2 of the lcluster less that of the block, then the bits of the byte that have no meaning.
    pub fn cluster_bits(self) -> (u8, u8) {
        let [_, _, _, _, _, _, _, bits] = self.bits.to_le_bytes();
        (bits & 15, bits & 0x70)
    }

    /// Length of one extent record: 4, 8, 16 or 32 bytes.
    pub fn extent_len(self) -> u64 {
        4 << (self.advise() >> 1 & 3)
    }
}

/// Kind of extent that starts in an lcluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Extent whose bytes are stored uncompressed.
    Plain,
    /// Extent compressed with the first algorithm.
    First,
    /// No extent starts here: the one before goes on.
    Nothing,
    /// Extent compressed with the second algorithm.
    Second,
}

impl Start {
    /// Reads the lowest two bits.
    pub fn of(bits: u16) -> Self {
        match bits & 3 {
            0 => Self::Plain,
            1 => Self::First,
            2 => Self::Nothing,
            _ => Self::Second,
        }
    }
}

/// Bit of a distance that marks the rest of it as the number of blocks of a pcluster.
pub const BLOCK_COUNT: u16 = 0x800;

/// One lcluster of a full index, little-endian, 8 bytes.
///
/// | offset | size | field      | unit and meaning                                                      |
/// |-------:|-----:|------------|-----------------------------------------------------------------------|
/// |      0 |    2 | di_advise  | bits 0–1: [`Start`]; 0x4000: a hole; 0x8000: the pcluster holds more  |
/// |      2 |    2 | clusterofs | where in the lcluster the extent starts, in bytes                     |
/// |      4 |    4 | block / distances | first block; without a start: u16 lclusters back, or [`BLOCK_COUNT`] and blocks; u16 lclusters forward |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FullRecord {
    /// Kind of the extent that starts in the lcluster.
    pub start: Start,
    /// True for a hole, which has no pcluster.
    pub hole: bool,
    /// True when the pcluster decodes to more than this extent.
    pub partial: bool,
    /// Byte of the lcluster at which the extent starts.
    pub offset: u16,
    /// First block of the pcluster, on the unified line.
    pub block: u32,
    /// Lclusters back to a start, or [`BLOCK_COUNT`] with the blocks of the pcluster.
    pub back: u16,
    /// Lclusters forward to the next start.
    pub ahead: u16,
}

impl FullRecord {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 8;

    /// Reads one record of a full index.
    pub fn decode(record: &[u8; Self::LEN]) -> Self {
        let advise = u16::from_le_bytes(get::<0, _, _>(record));
        Self {
            start: Start::of(advise),
            hole: advise & 0x4000 != 0,
            partial: advise & 0x8000 != 0,
            offset: u16::from_le_bytes(get::<2, _, _>(record)),
            block: u32::from_le_bytes(get::<4, _, _>(record)),
            back: u16::from_le_bytes(get::<4, _, _>(record)),
            ahead: u16::from_le_bytes(get::<6, _, _>(record)),
        }
    }
}

/// Pack of a compact index: 2 records of 16 bits or 16 of 14 bits, then a base address of 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pack {
    bytes: [u8; Self::WIDE_LEN],
    /// Number of records: 2 or 16.
    records: usize,
    /// Bits of a record's value. The two bits above them are a [`Start`].
    value_bits: u8,
}

impl Pack {
    /// Length of a pack of two records, in bytes.
    pub const NARROW_LEN: usize = 8;
    /// Length of a pack of sixteen records, in bytes.
    pub const WIDE_LEN: usize = 32;

    /// Takes the bytes of a pack, 8 or 32; `value_bits` is 12 to 14.
    pub fn new(bytes: &[u8], value_bits: u8) -> Self {
        let mut pack = Self { bytes: [0; Self::WIDE_LEN], records: 2, value_bits };
        pack.records = if bytes.len() == Self::WIDE_LEN { 16 } else { 2 };
        for (to, from) in pack.bytes.iter_mut().zip(bytes) {
            *to = *from;
        }
        pack
    }

    /// Number of records: 2 or 16.
    pub fn records(&self) -> usize {
        self.records
    }

    /// Kind of the extent that starts at record `index`, and the value of the record.
    pub fn record(&self, index: usize) -> (Start, u16) {
        let width = if self.records == 16 { 14 } else { 16 };
        let bit = width * index;
        let word = self.bytes.get(bit / 8..).and_then(|rest| rest.first_chunk());
        let word = u32::from_le_bytes(*word.unwrap_or(&[0; 4])) >> (bit % 8);
        let [a, b, c, _] = (word & ((1 << self.value_bits) - 1)).to_le_bytes();
        debug_assert!(c == 0, "a value has at most 14 bits");
        let [start, ..] = (word >> self.value_bits & 3).to_le_bytes();
        (Start::of(start.into()), u16::from_le_bytes([a, b]))
    }

    /// Lclusters back from record `index`, at which nothing starts, to a start or to a record that
    /// leads further back; or [`BLOCK_COUNT`] and blocks.
    ///
    /// The last record of a pack holds the distance forward. One more than the distance of the
    /// record before is its distance back.
    pub fn back(&self, index: usize) -> u16 {
        let (_, value) = self.record(index);
        if value & BLOCK_COUNT != 0 || index + 1 != self.records {
            return value;
        }
        match self.record(index - 1) {
            (Start::Nothing, before) if before & BLOCK_COUNT != 0 => 2,
            (Start::Nothing, before) => before + 1,
            _ => 1,
        }
    }

    /// Lclusters forward from record `index`, at which nothing starts, to the next start; 0 when
    /// one starts at `index`.
    pub fn ahead(&self, index: usize) -> u16 {
        let (mut distance, mut last) = (0, 0);
        for index in index..self.records {
            match self.record(index) {
                (Start::Nothing, value) => (distance, last) = (distance + 1, value),
                _ => return distance,
            }
        }
        if last & BLOCK_COUNT != 0 { distance } else { distance + last - 1 }
    }

    /// First block of the pcluster that starts at record `index`.
    ///
    /// `big` says whether pclusters may be larger than a block; then `None` where a distance back
    /// in this pack is below 2.
    pub fn block(&self, index: usize, big: bool) -> Option<u32> {
        let mut blocks = u32::from(!big);
        let mut index = i64::try_from(index).ok()?;
        while index > 0 {
            index -= 1;
            let (start, value) = self.record(usize::try_from(index).ok()?);
            match (start, big) {
                (Start::Nothing, false) => {
                    index -= i64::from(value);
                    blocks += u32::from(index >= 0);
                }
                (Start::Nothing, true) if value & BLOCK_COUNT != 0 => {
                    index -= 1;
                    blocks += u32::from(value & !BLOCK_COUNT);
                }
                (Start::Nothing, true) => index -= i64::from(value.checked_sub(2)?),
                _ => blocks += 1,
            }
        }
        let at = if self.records == 16 { Self::WIDE_LEN } else { Self::NARROW_LEN } - 4;
        let base = self.bytes.get(at..).and_then(|rest| rest.first_chunk());
        // The kernel adds in 32 bits too.
        Some(u32::from_le_bytes(*base.unwrap_or(&[0; 4])).wrapping_add(blocks))
    }
}

/// Extent record, little-endian. Only the first 4, 8, 16 or 32 bytes may be stored.
///
/// | offset | size | field     | unit and meaning                                                           |
/// |-------:|-----:|-----------|----------------------------------------------------------------------------|
/// |      0 |    4 | plen      | bits 0–20: encoded bytes, 0 for a hole; 27: the pcluster holds more; 28–31: algorithm + 1, 0 for plain |
/// |      4 |    4 | pstart_lo | first byte of the pcluster                                                 |
/// |      8 |    4 | pstart_hi |                                                                            |
/// |     12 |    4 | lstart_lo | first byte in the file                                                     |
/// |     16 |    4 | lstart_hi |                                                                            |
/// |     20 |   12 | reserved  | 0                                                                          |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentRecord {
    /// Encoded length and flags; for a fragment the low half of the offset in the packed file.
    pub word: u32,
    /// First byte of the pcluster, on the unified line.
    pub physical: u64,
    /// Byte of the file at which the extent starts.
    pub logical: u64,
}

impl ExtentRecord {
    /// Length of the longest form, in bytes.
    pub const LEN: usize = 32;
    const UNKNOWN: u32 = 0x07e0_0000;

    /// Reads a record; the caller fills bytes that are not stored with zeros.
    pub fn decode(record: &[u8; Self::LEN]) -> Self {
        Self {
            word: u32::from_le_bytes(get::<0, _, _>(record)),
            physical: u64::from_le_bytes(get::<4, _, _>(record)),
            logical: u64::from_le_bytes(get::<12, _, _>(record)),
        }
    }

    /// Length of the pcluster in bytes, 0 for a hole.
    pub fn encoded_len(&self) -> u64 {
        u64::from(self.word & 0x1f_ffff)
    }

    /// True when the pcluster decodes to more than this extent.
    pub fn partial(&self) -> bool {
        self.word >> 27 & 1 != 0
    }

    /// Algorithm number; `None` for uncompressed bytes.
    pub fn algorithm(&self) -> Option<u8> {
        let [_, _, _, top] = self.word.to_le_bytes();
        (top >> 4).checked_sub(1)
    }

    /// True when bits of the word without a meaning are set.
    pub fn has_unknown_bits(&self) -> bool {
        self.word & Self::UNKNOWN != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pack of sixteen records: (start bits, value).
    fn pack(records: [(u16, u16); 16], base: u32) -> Pack {
        let mut bits = [0_u8; 32];
        for (index, (start, value)) in records.iter().enumerate() {
            let word = start << 12 | value;
            for bit in 0..14 {
                if word >> bit & 1 != 0 {
                    let at = 14 * index + bit;
                    bits[at / 8] |= 1 << (at % 8);
                }
            }
        }
        bits[28..].copy_from_slice(&base.to_le_bytes());
        Pack::new(&bits, 12)
    }

    #[test]
    fn heads_of_a_pack_count_up_from_its_base() {
        let mut records = [(2, 1); 16];
        (records[0], records[1], records[2], records[5]) = ((1, 7), (1, 9), (2, 1), (0, 3));
        (records[3], records[4]) = ((2, 2), (2, 3));
        let pack = pack(records, 41);
        assert_eq!(pack.record(0), (Start::First, 7));
        assert_eq!([0, 1, 5].map(|index| pack.block(index, false)), [Some(42), Some(43), Some(44)]);
    }

    #[test]
    fn block_counts_of_a_pack_are_added_to_its_base() {
        let mut records = [(2, 2); 16];
        // One pcluster of 5 blocks, one of a single block, then the one at the last record.
        (records[0], records[1], records[2], records[3]) = ((1, 0), (2, BLOCK_COUNT | 5), (2, 2), (1, 4));
        records[4] = (1, 8);
        let packed = pack(records, 100);
        assert_eq!([0, 3, 4].map(|index| packed.block(index, true)), [Some(100), Some(105), Some(106)]);
        // A distance of 1 would be a block count.
        records[2] = (2, 1);
        assert_eq!(pack(records, 100).block(3, true), None);
    }

    #[test]
    fn the_last_record_of_a_pack_looks_forward() {
        let mut records = [(2, 0); 16];
        records[0] = (1, 0);
        for (index, record) in records.iter_mut().enumerate().skip(1) {
            *record = (2, u16::try_from(index).unwrap());
        }
        records[15] = (2, 9);
        let pack = pack(records, 0);
        assert_eq!((pack.back(14), pack.back(15)), (14, 15));
        assert_eq!((pack.ahead(15), pack.ahead(14), pack.ahead(1)), (9, 10, 23));
    }

    #[test]
    fn configurations_that_no_kernel_mounts_are_refused() {
        let lz4 = |blocks: u16| [&[0, 0][..], &blocks.to_le_bytes(), &[0; 10]].concat();
        assert_eq!(Algorithm::Lz4.configuration(&lz4(0), 4096), Ok(1));
        assert_eq!(Algorithm::Lz4.configuration(&lz4(256), 4096), Ok(256));
        assert!(Algorithm::Lz4.configuration(&lz4(257), 4096).is_err());
        assert!(Algorithm::Lz4.configuration(&[0; 13], 4096).is_err());
        let lzma =
            |dictionary: u32, format: u8| [&dictionary.to_le_bytes()[..], &[format, 0], &[0; 8]].concat();
        for (dictionary, format, fine) in [
            (4095, 0, false),
            (4096, 0, true),
            (8 << 20, 0, true),
            ((8 << 20) + 1, 0, false),
            (4096, 1, false),
        ] {
            assert_eq!(Algorithm::Lzma.configuration(&lzma(dictionary, format), 4096).is_ok(), fine);
        }
        for (record, deflate, zstd) in
            [([15, 0], true, false), ([16, 0], false, false), ([0, 10], true, true), ([0, 11], true, false)]
        {
            let record = [&record[..], &[0; 4]].concat();
            assert_eq!(Algorithm::Deflate.configuration(&record, 4096).is_ok(), deflate, "{record:?}");
            assert_eq!(Algorithm::Zstd.configuration(&record, 4096).is_ok(), zstd, "{record:?}");
        }
    }
}
