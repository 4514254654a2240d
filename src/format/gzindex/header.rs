//! Header of a gzip index.
//!
//! Source: `docs/formats/overlaybd.md`, "gzip index".

use super::error::GzindexError;
use crate::{
    codec::deflate::WINDOW_BYTES,
    format::{
        crc32c,
        record::{get, put},
    },
    limits::GZIP_INDEX_POINTS,
};

const MAGIC: [u8; 8] = *b"ddgzidx\0";
const MAJOR: u8 = 1;
/// Length of a point in bytes.
pub(super) const POINT_BYTES: usize = 29;

/// Header of an index, little-endian, 333 bytes.
///
/// | offset | size | field                | meaning                                             |
/// |-------:|-----:|----------------------|-----------------------------------------------------|
/// |      0 |    8 | magic                | `ddgzidx` and NUL                                   |
/// |      8 |    1 | major                | 1                                                   |
/// |      9 |    1 | minor                | 0                                                   |
/// |     10 |    1 | dict_compress_algo   | 0: windows and table as they are, 1: zlib streams   |
/// |     11 |    1 | dict_compress_level  | level of these streams, of no use to readers        |
/// |     12 |    1 | flag                 | 0                                                   |
/// |     13 |    4 | span                 | distance of points, uncompressed bytes              |
/// |     17 |    4 | window               | 32768, bytes                                        |
/// |     21 |    4 | index_size           | 29, bytes of a point                                |
/// |     25 |    8 | index_num            | number of points                                    |
/// |     33 |    8 | gzip_file_size       | size of the blob, bytes                             |
/// |     41 |    8 | index_file_size      | size of the index, bytes                            |
/// |     49 |    8 | uncompress_file_size | size of the uncompressed stream, bytes              |
/// |     57 |  256 | reserve              | 0                                                   |
/// |    313 |    8 | index_start          | byte at which the table of points starts            |
/// |    321 |    8 | index_area_len       | bytes of the table as it stands in the file         |
/// |    329 |    4 | crc                  | CRC-32C without the inversions, of bytes 0 to 328   |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// True when windows and table are zlib streams.
    pub is_packed: bool,
    /// Level that the streams were compressed at.
    pub level: u8,
    /// Distance of points in uncompressed bytes.
    pub span_bytes: u32,
    /// Number of points.
    pub points: u64,
    /// Size of the blob in bytes.
    pub blob_bytes: u64,
    /// Size of the index in bytes.
    pub file_bytes: u64,
    /// Size of the uncompressed stream in bytes.
    pub plain_bytes: u64,
    /// Byte at which the table of points starts.
    pub table_offset: u64,
    /// Bytes of the table as it stands in the file.
    pub table_bytes: u64,
}

impl Header {
    /// Length of the record in bytes.
    pub const LEN: usize = 333;

    /// Reads the header of a file of `file_bytes` bytes. Everything that sizes something or points somewhere has been
    /// checked against that size and the limits.
    pub fn decode(record: &[u8; Self::LEN], file_bytes: u64) -> Result<Self, GzindexError> {
        let found = get::<0, 8, _>(record);
        if found != MAGIC {
            return Err(GzindexError::Magic { found });
        }
        let [found] = get::<8, 1, _>(record);
        if found != MAJOR {
            return Err(GzindexError::Version { found });
        }
        let stored = u32::from_le_bytes(get::<329, _, _>(record));
        let computed = checksum(record);
        if stored != computed {
            return Err(GzindexError::Checksum { stored, computed });
        }
        let [algorithm] = get::<10, 1, _>(record);
        let [level] = get::<11, 1, _>(record);
        let window = u32::from_le_bytes(get::<17, _, _>(record));
        let point = u32::from_le_bytes(get::<21, _, _>(record));
        for (field, found, expected, is_known) in [
            ("dict_compress_algo", u64::from(algorithm), "0 or 1", algorithm <= 1),
            ("window", window.into(), "32768", usize::try_from(window) == Ok(WINDOW_BYTES)),
            ("index_size", point.into(), "29", usize::try_from(point) == Ok(POINT_BYTES)),
        ] {
            if !is_known {
                return Err(GzindexError::Field { field, found, expected });
            }
        }
        let header = Self {
            is_packed: algorithm == 1,
            level,
            span_bytes: u32::from_le_bytes(get::<13, _, _>(record)),
            points: u64::from_le_bytes(get::<25, _, _>(record)),
            blob_bytes: u64::from_le_bytes(get::<33, _, _>(record)),
            file_bytes: u64::from_le_bytes(get::<41, _, _>(record)),
            plain_bytes: u64::from_le_bytes(get::<49, _, _>(record)),
            table_offset: u64::from_le_bytes(get::<313, _, _>(record)),
            table_bytes: u64::from_le_bytes(get::<321, _, _>(record)),
        };
        if header.file_bytes != file_bytes {
            return Err(GzindexError::FileSize { stored: header.file_bytes, found: file_bytes });
        }
        if header.points > GZIP_INDEX_POINTS {
            return Err(GzindexError::Points { found: header.points, limit: GZIP_INDEX_POINTS });
        }
        // Files have at most so many bytes, and other readers take these for signed numbers.
        for (field, found) in
            [("gzip_file_size", header.blob_bytes), ("uncompress_file_size", header.plain_bytes)]
        {
            if i64::try_from(found).is_err() {
                return Err(GzindexError::Field { field, found, expected: "below 2^63" });
            }
        }
        let end = header.table_offset.checked_add(header.table_bytes);
        if header.table_offset < Self::LEN as u64 || end != Some(file_bytes) {
            let (offset, len) = (header.table_offset, header.table_bytes);
            return Err(GzindexError::Table { offset, len, size_bytes: file_bytes });
        }
        Ok(header)
    }

    /// Writes the header, checksum included.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut record = [0; Self::LEN];
        put::<0, _, _>(&mut record, MAGIC);
        put::<8, _, _>(&mut record, [MAJOR, 0, u8::from(self.is_packed), self.level, 0]);
        put::<13, _, _>(&mut record, self.span_bytes.to_le_bytes());
        put::<17, _, _>(&mut record, 32_768_u32.to_le_bytes());
        put::<21, _, _>(&mut record, 29_u32.to_le_bytes());
        put::<25, _, _>(&mut record, self.points.to_le_bytes());
        put::<33, _, _>(&mut record, self.blob_bytes.to_le_bytes());
        put::<41, _, _>(&mut record, self.file_bytes.to_le_bytes());
        put::<49, _, _>(&mut record, self.plain_bytes.to_le_bytes());
        put::<313, _, _>(&mut record, self.table_offset.to_le_bytes());
        put::<321, _, _>(&mut record, self.table_bytes.to_le_bytes());
        let crc = checksum(&record);
        put::<329, _, _>(&mut record, crc.to_le_bytes());
        record
    }
}

/// CRC-32C that starts from 0 and is not inverted at the end.
fn checksum(record: &[u8; Header::LEN]) -> u32 {
    let covered = record.get(..329).unwrap_or_default();
    crc32c::raw(0, covered)
}

/// Corrects the sizes and the checksum of an index for a fuzzer.
pub(super) fn mend(index: &mut [u8], blob_bytes: u64) {
    let len = index.len() as u64;
    let Some(record) = index.first_chunk_mut::<{ Header::LEN }>() else { return };
    put::<0, _, _>(record, MAGIC);
    put::<33, _, _>(record, blob_bytes.to_le_bytes());
    put::<41, _, _>(record, len.to_le_bytes());
    let offset = u64::from_le_bytes(get::<313, _, _>(record));
    put::<321, _, _>(record, len.saturating_sub(offset).to_le_bytes());
    let crc = checksum(record);
    put::<329, _, _>(record, crc.to_le_bytes());
}
