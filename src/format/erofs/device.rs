//! Device slots: the table of extra devices that an image refers to.
//!
//! Source: Linux `fs/erofs/erofs_fs.h`, `struct erofs_deviceslot`.

use crate::format::record::{get, put};

/// One device slot, little-endian, 128 bytes.
///
/// | offset | size | field      | unit and meaning                                      |
/// |-------:|-----:|------------|-------------------------------------------------------|
/// |   0x00 |   64 | tag        | a name or digest, padded with NUL                     |
/// |   0x40 |    4 | blocks_lo  | size of the device, in blocks of the image            |
/// |   0x44 |    4 | uniaddr_lo | first block on the unified line                       |
/// |   0x48 |    2 | blocks_hi  | bits 32..47, with 48BIT                               |
/// |   0x4A |    2 | uniaddr_hi | bits 32..47, with 48BIT                               |
/// |   0x4C |   52 | reserved   | 0                                                     |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSlot {
    /// Name or digest, padded with NUL.
    pub tag: [u8; 64],
    /// Size in blocks, at most 48 bits.
    pub blocks: u64,
    /// First block on the unified line, at most 48 bits; 0: not on the line.
    pub unified_start: u64,
}

impl DeviceSlot {
    /// Length of the encoded record, in bytes; also the unit in which the table is placed.
    pub const LEN: usize = 128;

    /// Reads one slot; `wide` is the feature 48BIT.
    pub fn decode(record: &[u8; Self::LEN], wide: bool) -> Self {
        let join = |low: [u8; 4], high: [u8; 2]| {
            let high = if wide { u64::from(u16::from_le_bytes(high)) } else { 0 };
            u64::from(u32::from_le_bytes(low)) | high << 32
        };
        Self {
            tag: get::<0x00, _, _>(record),
            blocks: join(get::<0x40, _, _>(record), get::<0x48, _, _>(record)),
            unified_start: join(get::<0x44, _, _>(record), get::<0x4A, _, _>(record)),
        }
    }

    /// Spells the slot; bits of `blocks` and `unified_start` above 48 are cut.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut record = [0; Self::LEN];
        let [b0, b1, b2, b3, b4, b5, ..] = self.blocks.to_le_bytes();
        let [u0, u1, u2, u3, u4, u5, ..] = self.unified_start.to_le_bytes();
        put::<0x00, _, _>(&mut record, self.tag);
        put::<0x40, _, _>(&mut record, [b0, b1, b2, b3]);
        put::<0x44, _, _>(&mut record, [u0, u1, u2, u3]);
        put::<0x48, _, _>(&mut record, [b4, b5]);
        put::<0x4A, _, _>(&mut record, [u4, u5]);
        record
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn high_halves_count_only_with_48_bit_addresses() {
        let slot = DeviceSlot { tag: [b'x'; 64], blocks: 1 << 32 | 5, unified_start: 2 << 32 | 7 };
        assert_eq!(DeviceSlot::decode(&slot.encode(), true), slot);
        let narrow = DeviceSlot::decode(&slot.encode(), false);
        assert_eq!((narrow.blocks, narrow.unified_start), (5, 7));
    }

    proptest! {
        #[test]
        fn what_is_decoded_encodes_to_the_same_bytes(mut record in any::<[u8; 128]>()) {
            record[0x4C..].fill(0);
            prop_assert_eq!(DeviceSlot::decode(&record, true).encode(), record);
        }
    }
}
