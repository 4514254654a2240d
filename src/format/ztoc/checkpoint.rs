//! Checkpoint of a zTOC: a place in a gzip stream at which a decoder can start.
//!
//! Source: `docs/formats/ztoc.md`, "Checkpoints".

use super::error::ZtocError;
use crate::{codec::deflate::WINDOW_BYTES, format::record::get};

/// Head of a checkpoint, little-endian, 17 bytes. The window follows it.
///
/// | offset | size | field  | meaning                                                            |
/// |-------:|-----:|--------|--------------------------------------------------------------------|
/// |      0 |    8 | in     | byte of the blob: the first whole one after the start of the block |
/// |      8 |    8 | out    | uncompressed bytes before the block                                |
/// |     16 |    1 | bits   | high bits of the byte before `in` that belong to the block, 0 to 7 |
/// |     17 | 32768 | window | uncompressed bytes before the block, after zeros where there are fewer |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// First bit of the block, from the start of the blob.
    pub bit: u64,
    /// Uncompressed bytes before the block.
    pub plain: u64,
    /// Byte of the file at which the window starts.
    pub window_offset: u64,
}

impl Checkpoint {
    /// Length of the head in bytes.
    pub(super) const HEAD_LEN: usize = 17;
    /// Length in bytes, window included.
    pub(super) const LEN: u64 = Self::HEAD_LEN as u64 + WINDOW_BYTES as u64;

    /// Reads the head of checkpoint number `number`, which comes after `before`. It stands at byte `offset` of the file, and
    /// the blob has `blob_bytes`.
    pub(super) fn decode(
        head: &[u8; Self::HEAD_LEN],
        offset: u64,
        number: u64,
        before: Option<&Self>,
        blob_bytes: u64,
    ) -> Result<Self, ZtocError> {
        let within = |field, found: i64, least: u64, most: u64| match u64::try_from(found) {
            Ok(value) if (least..=most).contains(&value) => Ok(value),
            _ => Err(ZtocError::Range { number, field, found, least, most }),
        };
        // The place of the first bit, counted in bits, has to fit 64 bits.
        let byte = within("in", i64::from_le_bytes(get::<0, _, _>(head)), 1, blob_bytes.min(1 << 60))?;
        // The size of the stream in the zTOC ends with the archive; zeros behind that may go on.
        let plain = within("out", i64::from_le_bytes(get::<8, _, _>(head)), 0, i64::MAX.unsigned_abs())?;
        let [bits] = get::<16, 1, _>(head);
        let bits = within("bits", bits.into(), 0, 7)?;
        let bit = byte.saturating_mul(8).saturating_sub(bits);
        for (field, found, before) in
            [("bit", bit, before.map(|before| before.bit)), ("out", plain, before.map(|before| before.plain))]
        {
            if let Some(before) = before.filter(|before| found <= *before) {
                return Err(ZtocError::Order { number, field, found, before });
            }
        }
        Ok(Self { bit, plain, window_offset: offset.saturating_add(Self::HEAD_LEN as u64) })
    }
}
