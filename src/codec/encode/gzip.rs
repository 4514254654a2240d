//! gzip in independent blocks: one member, whose deflate stream consists of the blocks.
//!
//! Each block is compressed with the last 32 KiB before it as a dictionary, so matches reach back
//! as in a single piece. It ends with an empty stored block on a byte boundary (a "sync flush").
//! The stream ends with an empty block that is marked as the last. Any decoder reads this; `pigz`
//! writes the same.
//!
//! Source: RFC 1951 (deflate), RFC 1952 (gzip).

use zlib_rs::{
    Deflate, DeflateFlush,
    crc32::{crc32, crc32_combine},
};

use super::{
    super::{coding::Coding, error::CodecError},
    coded::Coded,
};

/// Block length in bytes. From 256 KiB on the output is within 0.1 % of that of a single piece.
/// Longer blocks only leave threads idle at the end of small layers.
pub(super) const BLOCK: usize = 512 << 10;
/// Widest window of deflate, in bytes.
const WINDOW: usize = 32 << 10;

/// Member header: magic, deflate, no flags, no time, no extra flags, and 255 for an unknown system.
/// Go writes the same, on every machine.
pub(super) const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// Empty block with fixed codes, marked as the last.
const LAST_BLOCK: [u8; 2] = [3, 0];

/// Encodes the end of the member: the last block, CRC-32 and length.
pub(super) fn end(crc32: u32, size_bytes: u64) -> [u8; 10] {
    let [a, b] = LAST_BLOCK;
    let [c0, c1, c2, c3] = crc32.to_le_bytes();
    // ISIZE is the length modulo 2^32.
    let [l0, l1, l2, l3, ..] = size_bytes.to_le_bytes();
    [a, b, c0, c1, c2, c3, l0, l1, l2, l3]
}

/// CRC-32 of two consecutive pieces, the second of which has `second_bytes` bytes.
pub(super) fn join(first: u32, second: u32, second_bytes: u64) -> u32 {
    crc32_combine(first, second, second_bytes)
}

/// Largest output of a block in bytes. Incompressible data is stored, which costs 5 bytes each 16
/// KiB at most. Level 1 has fixed codes instead, which take 9 bits for a byte.
pub(super) fn bound(len: usize) -> usize {
    len + len / 8 + len / 1024 + 64
}

/// Compresses a block to raw deflate that ends on a byte boundary.
pub(super) fn encode(level: u8, before: &[u8], block: &[u8], out: &mut [u8]) -> Result<Coded, CodecError> {
    let failed = || CodecError::Encoder { coding: Coding::Gzip };
    // Raw deflate with the widest window, 32 KiB.
    let mut deflate = Deflate::new(level.into(), false, 15);
    let dictionary = before.get(before.len().saturating_sub(WINDOW)..).unwrap_or_default();
    if !dictionary.is_empty() {
        deflate.set_dictionary(dictionary).map_err(|_state| failed())?;
    }
    deflate.compress(block, out, DeflateFlush::SyncFlush).map_err(|_state| failed())?;
    let len = usize::try_from(deflate.total_out()).ok().filter(|len| *len < out.len());
    let all_taken = deflate.total_in() == block.len() as u64;
    // A full output may be cut off.
    match len {
        Some(len) if all_taken => Ok(Coded { len, crc32: crc32(0, block) }),
        _ => Err(failed()),
    }
}

/// Appends empty stored blocks, which decode to nothing, until there are at least `least` bytes.
/// `None` when there is no room. The output ends on a byte boundary, as after [`encode`].
pub(super) fn fill(out: &mut [u8], len: usize, least: usize) -> Option<usize> {
    const NOTHING: [u8; 5] = [0, 0, 0, 0xff, 0xff];
    let end = len + least.saturating_sub(len).next_multiple_of(NOTHING.len());
    for space in out.get_mut(len..end)?.chunks_exact_mut(NOTHING.len()) {
        space.copy_from_slice(&NOTHING);
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::super::{
        Compression,
        tests::{encode, noise},
    };
    use super::*;

    #[test]
    fn matches_reach_into_the_block_before() {
        let words = noise(16 << 10);
        let plain = words.repeat(4);
        let in_blocks = encode(Compression::GZIP, &plain, words.len());
        let in_one = encode(Compression::GZIP, &plain, plain.len());
        assert!(in_blocks.len() < in_one.len() + 4 * 100, "{} and {}", in_blocks.len(), in_one.len());
    }

    #[test]
    fn the_stream_is_one_member_without_a_time() {
        let stream = encode(Compression::GZIP, b"one two three", 4);
        assert_eq!(stream[..10], HEADER);
        let mut decoder = flate2::bufread::GzDecoder::new(&stream[..]);
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut decoder, &mut plain).unwrap();
        assert_eq!(plain, b"one two three");
        assert!(decoder.into_inner().is_empty(), "nothing after the first member");
        let empty = encode(Compression::GZIP, b"", 4);
        assert_eq!(empty, [&HEADER[..], &[0, 0, 0, 0xff, 0xff], &[3, 0], &[0; 8]].concat());
    }
}
