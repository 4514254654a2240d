//! CRC-64 with the polynomial of ISO 3309, by which tar-split knows the data of files.
//!
//! Source: ISO 3309; Go `hash/crc64`, table `ISO`.

use std::sync::LazyLock;

/// The polynomial x^64 + x^4 + x^3 + x + 1, lowest power first.
const POLYNOMIAL: u64 = 0xD800_0000_0000_0000;
/// Bytes taken at a time.
const LANES: usize = 8;

/// What each value of a byte adds to the sum.
type Table = [u64; 256];

/// The table for a byte with 7 others behind it, with 6, and so on.
static TABLES: LazyLock<[Table; LANES]> = LazyLock::new(|| {
    let step = |crc: u64, _bit| if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
    let last: Table = std::array::from_fn(|byte| (0..8).fold(byte as u64, step));
    let mut tables = [last; LANES];
    let mut table = last;
    for place in tables.iter_mut().rev().skip(1) {
        table = table.map(|crc| next(&last, crc, 0));
        *place = table;
    }
    tables
});

fn next(last: &Table, crc: u64, byte: u8) -> u64 {
    let [low, ..] = crc.to_le_bytes();
    (crc >> 8) ^ of(last, low ^ byte)
}

fn of(table: &Table, byte: u8) -> u64 {
    table.get(usize::from(byte)).copied().unwrap_or_default()
}

/// A running sum.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crc64(u64);

impl Default for Crc64 {
    fn default() -> Self {
        Self(u64::MAX)
    }
}

impl Crc64 {
    /// Adds bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        let tables: &[Table; LANES] = &TABLES;
        let [.., last] = tables;
        let (lanes, rest) = bytes.as_chunks::<LANES>();
        let mut crc = self.0;
        for lane in lanes {
            let mixed = (crc ^ u64::from_le_bytes(*lane)).to_le_bytes();
            crc = tables.iter().zip(mixed).fold(0, |sum, (table, byte)| sum ^ of(table, byte));
        }
        self.0 = rest.iter().fold(crc, |crc, byte| next(last, crc, *byte));
    }

    /// The sum of all bytes.
    pub(super) fn finish(self) -> u64 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_go() {
        for (want, text) in [
            (0x0, ""),
            (0x3420_0000_0000_0000, "a"),
            (0x36c4_2000_0000_0000, "ab"),
            (0x3776_c420_0000_0000, "abc"),
            (0x0e21_b002_d367_76c4, "abcdefgh"),
            (0xb909_56c7_75a4_1001, "123456789"),
        ] {
            for split in 0..=text.len() {
                let mut crc = Crc64::default();
                let (first, second) = text.as_bytes().split_at(split);
                crc.update(first);
                crc.update(second);
                assert_eq!(crc.finish(), want, "{text} after {split} bytes");
            }
        }
    }
}
