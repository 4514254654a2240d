//! CRC-64 with the polynomial of ISO 3309, by which tar-split knows the data of files.
//!
//! Source: ISO 3309; Go `hash/crc64`, table `ISO`.

use std::fmt;

use crc::{CRC_64_GO_ISO, Crc, Digest, Table};

static CRC: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_GO_ISO);

/// A running sum.
#[derive(Clone)]
pub(super) struct Crc64(Digest<'static, u64, Table<16>>);

impl Default for Crc64 {
    fn default() -> Self {
        Self(CRC.digest())
    }
}

impl fmt::Debug for Crc64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Crc64").finish_non_exhaustive()
    }
}

impl Crc64 {
    /// Adds bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The sum of all bytes.
    pub(super) fn finish(self) -> u64 {
        self.0.finalize()
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
