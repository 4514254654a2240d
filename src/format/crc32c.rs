//! CRC-32C as overlaybd stores it: from a given register value, and not inverted at the end.
//!
//! Source: `docs/formats/overlaybd.md`, "Checksums".

/// Continues a CRC-32C from the register value `seed` over `bytes`. Neither end is inverted.
pub(crate) fn raw(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

#[cfg(test)]
mod tests {
    use super::raw;

    /// Computed bit by bit, as the definition says.
    fn slow(seed: u32, bytes: &[u8]) -> u32 {
        bytes.iter().fold(seed, |crc, byte| {
            let step = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
            (0..8).fold(crc ^ u32::from(*byte), step)
        })
    }

    #[test]
    fn no_end_of_a_raw_checksum_is_inverted() {
        for seed in [0, 1, 100_007, u32::MAX] {
            assert_eq!(raw(seed, b"123456789"), slow(seed, b"123456789"), "{seed}");
            assert_eq!(raw(raw(seed, b"1234"), b"56789"), slow(seed, b"123456789"), "{seed} in two parts");
        }
        assert_eq!(raw(0, &[0; 512]), 0);
    }
}
