//! zstd in independent frames, one for each block.
//!
//! libzstd's own threads would write one frame, but they are threads, and their output differs from
//! that without them. A frame starts with an empty window, which costs 0.1 to 2 % of the output at
//! this length; in return a reader may decode frames in parallel. Every frame has a checksum. None
//! declares its length, because readers would take that of the first for the length of the stream.
//!
//! Source: RFC 8878.

use zstd::zstd_safe::{CCtx, CParameter, Strategy, compress_bound};

use super::{
    super::{coding::Coding, error::CodecError},
    coded::Coded,
};

/// Base-2 logarithm of the window at every level: 8 MiB, the largest that every decoder takes.
const WINDOW_LOG: u32 = 23;
/// Block length in bytes: the window, so that matches reach all of a block. Half of it costs 1 to 5
/// % of the output. Twice as much saves 1 to 2 % but takes twice the memory for each thread.
pub(super) const BLOCK: usize = 1 << WINDOW_LOG;
/// Parameters in place of libzstd's own level 3, whose window is a quarter. One table for words of
/// six bytes gives 0.96 to 1.01 of the size of `zstd -3` in 0.8 to 0.9 of the time.
const LEVEL_3: [CParameter; 3] =
    [CParameter::Strategy(Strategy::ZSTD_fast), CParameter::HashLog(18), CParameter::MinMatch(6)];

/// Largest output of a block in bytes: frame header, blocks and checksum.
pub(super) fn bound(len: usize) -> usize {
    compress_bound(len)
}

/// Compresses a block to one frame.
pub(super) fn encode(level: u8, block: &[u8], out: &mut [u8]) -> Result<Coded, CodecError> {
    let failed = |_code| CodecError::Encoder { coding: Coding::Zstd };
    let mut context = CCtx::try_create().ok_or(CodecError::Memory)?;
    let tables = if level == 3 { &LEVEL_3[..] } else { &[] };
    for parameter in [
        CParameter::CompressionLevel(level.into()),
        CParameter::WindowLog(WINDOW_LOG),
        CParameter::ChecksumFlag(true),
        CParameter::ContentSizeFlag(false),
    ]
    .iter()
    .chain(tables)
    {
        context.set_parameter(*parameter).map_err(failed)?;
    }
    let len = context.compress2(out, block).map_err(failed)?;
    Ok(Coded { len, crc32: 0 })
}

/// Appends a frame that decoders skip, so that there are at least `least` bytes. `None` when there
/// is no room.
pub(super) fn fill(out: &mut [u8], len: usize, least: usize) -> Option<usize> {
    // Last of the sixteen magic numbers. Other tools use the first ones.
    const MAGIC: [u8; 4] = 0x184D_2A5F_u32.to_le_bytes();
    let body_len = least.saturating_sub(len + 8);
    let end = len + 8 + body_len;
    let (magic, rest) = out.get_mut(len..end)?.split_first_chunk_mut()?;
    let (size, body) = rest.split_first_chunk_mut()?;
    *magic = MAGIC;
    *size = u32::try_from(body_len).ok()?.to_le_bytes();
    body.fill(0);
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::super::{
        Compression,
        tests::{encode, noise},
    };

    #[test]
    fn every_block_is_a_frame_with_a_checksum_and_without_a_length() {
        let plain = noise(2500);
        let stream = encode(Compression::ZSTD, &plain, 1000);
        let mut rest = &stream[..];
        let mut frames = 0;
        while !rest.is_empty() {
            // Magic number, then the descriptor: no length, no dictionary, a checksum, a window.
            assert_eq!(rest[..5], [0x28, 0xb5, 0x2f, 0xfd, 4]);
            rest = &rest[zstd::zstd_safe::find_frame_compressed_size(rest).unwrap()..];
            frames += 1;
        }
        assert_eq!(frames, 3);
        assert_eq!(zstd::decode_all(&stream[..]).unwrap(), plain);
        let empty = encode(Compression::ZSTD, &[], 1000);
        assert_eq!(zstd::decode_all(&empty[..]).unwrap(), b"");
    }
}
