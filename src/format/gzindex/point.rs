//! Point of a gzip index: a place at which a decoder can start.
//!
//! Source: `docs/formats/overlaybd.md`, "gzip index".

use super::{
    error::GzindexError,
    header::{Header, POINT_BYTES},
};
use crate::format::record::{get, put};

/// Longest packed window in bytes. Any encoder stores what it cannot compress: 32768 bytes with five for each stored
/// block, which encoders with little memory make as short as 128 bytes.
const PACKED_WINDOW_BYTES: u32 = 36 << 10;

/// Point, little-endian, 29 bytes.
///
/// | offset | size | field   | meaning                                                               |
/// |-------:|-----:|---------|-----------------------------------------------------------------------|
/// |      0 |    8 | de_pos  | uncompressed bytes before the block                                   |
/// |      8 |    8 | en_pos  | byte of the blob: the first whole one after the start of the block    |
/// |     16 |    8 | win_pos | byte of the index at which the window starts                          |
/// |     24 |    1 | bits    | high bits of the byte before en_pos that belong to the block, 0 to 7  |
/// |     25 |    4 | win_len | bytes of the window as it stands in the index                         |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Uncompressed bytes before the block.
    pub plain: u64,
    /// First whole byte of the block in the blob.
    pub byte: u64,
    /// Bits of the byte before it that belong to the block.
    pub bits: u8,
    /// Byte of the index at which the window starts.
    pub window_offset: u64,
    /// Bytes of the window as it stands in the index.
    pub window_bytes: u32,
}

impl Point {
    /// Length of the record in bytes.
    pub const LEN: usize = POINT_BYTES;

    /// Reads point number `point`, which comes after `before`, and compares it with the header.
    pub(super) fn decode(
        record: &[u8; Self::LEN],
        point: u64,
        before: Option<&Self>,
        header: &Header,
    ) -> Result<Self, GzindexError> {
        let within = |field, found: [u8; 8], least: u64, most: u64| {
            let found = i64::from_le_bytes(found);
            match u64::try_from(found) {
                Ok(value) if (least..=most).contains(&value) => Ok(value),
                _ => Err(GzindexError::Range { point, field, found: found.into(), least, most }),
            }
        };
        let plain = within("de_pos", get::<0, _, _>(record), 0, header.plain_bytes)?;
        let byte = within("en_pos", get::<8, _, _>(record), 1, header.blob_bytes)?;
        let [bits] = get::<24, 1, _>(record);
        if bits > 7 {
            return Err(GzindexError::Range { point, field: "bits", found: bits.into(), least: 0, most: 7 });
        }
        let window_bytes = u32::from_le_bytes(get::<25, _, _>(record));
        let (least, most) = if header.is_packed { (1, PACKED_WINDOW_BYTES) } else { (32_768, 32_768) };
        if !(least..=most).contains(&window_bytes) {
            let (found, least, most) = (window_bytes.into(), least.into(), most.into());
            return Err(GzindexError::Range { point, field: "win_len", found, least, most });
        }
        let most = header.table_offset.saturating_sub(window_bytes.into());
        let window_offset = within("win_pos", get::<16, _, _>(record), Header::LEN as u64, most)?;
        match before {
            None if plain > 0 => return Err(GzindexError::Start { found: plain }),
            None => {}
            Some(before) => {
                for (field, found, before) in [("de_pos", plain, before.plain), ("en_pos", byte, before.byte)]
                {
                    if found < before {
                        return Err(GzindexError::Order { point, field, found, before });
                    }
                }
            }
        }
        Ok(Self { plain, byte, bits, window_offset, window_bytes })
    }

    /// Writes the record. No offset of a file has more than 63 bits, so signed and unsigned numbers are the same.
    pub(super) fn encode(&self) -> [u8; Self::LEN] {
        let mut record = [0; Self::LEN];
        put::<0, _, _>(&mut record, self.plain.to_le_bytes());
        put::<8, _, _>(&mut record, self.byte.to_le_bytes());
        put::<16, _, _>(&mut record, self.window_offset.to_le_bytes());
        put::<24, _, _>(&mut record, [self.bits]);
        put::<25, _, _>(&mut record, self.window_bytes.to_le_bytes());
        record
    }

    /// Byte of the blob at which to start feeding a decoder, and the bits of it to skip.
    pub(super) fn start(&self) -> (u64, u32) {
        match self.bits {
            0 => (self.byte, 0),
            bits => (self.byte.saturating_sub(1), 8_u32.saturating_sub(bits.into())),
        }
    }
}
