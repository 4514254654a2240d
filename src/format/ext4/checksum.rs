//! The three checksums of ext4 and its journal, in the kernel's forms: without the usual inversion
//! at the end.
//!
//! Source: Linux `fs/ext4/ext4.h` (`ext4_chksum`), `lib/crc16.c`, `lib/crc/crc32.c` (`crc32_be`).

/// Start value of every CRC-32C of a file system.
pub const START: u32 = !0;

/// Continues a CRC-32C from `seed` over `bytes`. Neither end is inverted.
pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// Continues a CRC-16 (polynomial 0x8005, reflected) from `seed` over `bytes`. Older group
/// descriptors have it.
pub fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xA001 } else { 0 })
    })
}

/// Continues a CRC-32 (polynomial 0x04C11DB7, highest bit first) from `seed` over `bytes`. It
/// covers whole transactions in journals with the first form of checksums.
pub fn crc32_be(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |crc, byte| {
        let [index, ..] = crc.to_be_bytes();
        (crc << 8) ^ TABLE.get(usize::from(index ^ byte)).copied().unwrap_or(0)
    })
}

/// CRC-32 of each single byte, started from 0.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    let mut rest: &mut [u32] = &mut table;
    while let Some((entry, after)) = rest.split_first_mut() {
        let mut crc: u32 = index << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc << 1) ^ if crc >> 31 == 1 { 0x04C1_1DB7 } else { 0 };
            bit += 1;
        }
        *entry = crc;
        index += 1;
        rest = after;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Check values of "123456789" in the CRC catalogue: CRC-32/ISCSI, CRC-16/ARC and
    /// CRC-32/MPEG-2.
    #[test]
    fn check_values_are_those_of_the_catalogue() {
        let input = b"123456789";
        assert_eq!(!crc32c(START, input), 0xE306_9283);
        assert_eq!(crc16(0, input), 0xBB3D);
        assert_eq!(crc32_be(!0, input), 0x0376_E6E7);
    }

    #[test]
    fn a_checksum_goes_on_where_it_stopped() {
        let (head, tail) = b"123456789".split_at(4);
        assert_eq!(crc32c(crc32c(START, head), tail), crc32c(START, b"123456789"));
        assert_eq!(crc16(crc16(!0, head), tail), crc16(!0, b"123456789"));
        assert_eq!(crc32_be(crc32_be(!0, head), tail), crc32_be(!0, b"123456789"));
    }
}
