//! Codecs: compressed bytes in, plain bytes out, in steps of any size; and back, in [`encode`].
//!
//! A decoder sees slices only: no files, sockets, clocks or threads, and no allocation sized by its
//! input. The first bytes of a layer choose its decoder ([`Coding::detect`]), because media types
//! in the wild lie about the compression. The rules of each format are listed in
//! `docs/formats/compression.md`.

// Bytes from outside must not be able to panic a root daemon.
#![deny(clippy::indexing_slicing)]

mod coding;
mod decoder;
pub mod deflate;
pub mod encode;
mod error;
pub mod foreign;
mod gzip;
mod starts;
pub(crate) mod zlib;
mod zstd;

use self::decoder::Plain;
pub use self::{
    coding::Coding,
    decoder::{BLOCKS_MAX, BlockStart, Decoder},
    error::CodecError,
    gzip::{Cut, Gzip},
    starts::Starts,
    zstd::Zstd,
};
use crate::error::Classify as _;

impl Coding {
    /// Detects the coding from the first bytes of a stream: the gzip magic number, or that of a
    /// zstd frame or skippable frame. Everything else, and a stream shorter than a magic number, is
    /// plain.
    ///
    /// ```
    /// use plywood::codec::Coding;
    /// assert_eq!(Coding::detect(&[0x1f, 0x8b, 8, 0]), Coding::Gzip);
    /// assert_eq!(Coding::detect(b"etc/"), Coding::Plain);
    /// ```
    pub fn detect(prefix: &[u8]) -> Self {
        if prefix.starts_with(&gzip::MAGIC) {
            return Self::Gzip;
        }
        match prefix.first_chunk().map(|magic| u32::from_le_bytes(*magic)) {
            Some(magic) if zstd::is_magic(magic) => Self::Zstd,
            _ => Self::Plain,
        }
    }

    /// Creates a decoder for a whole stream of this coding. It refuses zstd frames with a window
    /// above `zstd_window_bytes`. Errors: [`CodecError::Memory`].
    pub fn decoder(self, zstd_window_bytes: u64) -> Result<Box<dyn Decoder>, CodecError> {
        Ok(match self {
            Self::Plain => Box::new(Plain),
            Self::Gzip => Box::new(Gzip::new()),
            Self::Zstd => Box::new(Zstd::new(zstd_window_bytes)?),
        })
    }
}

/// Fuzz entry: decodes `data` as gzip in steps of different sizes, and compares the results.
///
/// # Panics
///
/// When the results differ, or a decoder breaks a promise of [`Decoder`].
pub fn fuzz_gzip(data: &[u8]) {
    fuzz(Coding::Gzip, data);
}

/// Fuzz entry for zstd, otherwise like [`fuzz_gzip`].
pub fn fuzz_zstd(data: &[u8]) {
    fuzz(Coding::Zstd, data);
}

fn fuzz(coding: Coding, data: &[u8]) {
    /// Most decoded bytes: enough to cross every buffer inside the decoders.
    const OUTPUT_LIMIT: u64 = 4 << 20;
    const WINDOW_LIMIT: u64 = 1 << 20;
    let decode = |step_in: usize, step_out: usize| {
        let mut decoder = coding.decoder(WINDOW_LIMIT)?;
        let (mut total, mut sum, mut memory) = (0_u64, 0_u32, 0);
        let mut output = vec![0; step_out];
        for mut step in data.chunks(step_in) {
            loop {
                let filled = decoder.decode(&mut step, &mut output)?;
                sum = zlib_rs::crc32::crc32(sum, output.get(..filled).unwrap_or_default());
                total = total.saturating_add(filled as u64);
                if total > OUTPUT_LIMIT {
                    return Ok(None);
                }
                let grown = decoder.memory_bytes() > memory;
                memory = decoder.memory_bytes();
                assert!(memory <= WINDOW_LIMIT, "a window of {memory} bytes");
                if filled < output.len() && !grown {
                    assert!(step.is_empty(), "input is left although the output is not full");
                    break;
                }
            }
        }
        decoder.finish()?;
        Ok::<_, CodecError>(Some((total, sum)))
    };
    match (decode(1 << 16, 1 << 16), decode(7, 61)) {
        (Ok(Some(whole)), Ok(Some(pieces))) => assert_eq!(whole, pieces, "the output depends on the steps"),
        (Err(whole), Err(pieces)) => {
            assert_eq!(whole.reason(), pieces.reason(), "the refusal depends on the steps");
        }
        (Ok(None), _) | (_, Ok(None)) => {} // Over the limit: how far each got does not matter.
        (whole, pieces) => panic!("the outcome depends on the steps: {whole:?} or {pieces:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes in steps of `step_in` compressed and `step_out` plain bytes.
    pub(super) fn decode(
        mut decoder: impl Decoder,
        input: &[u8],
        step_in: usize,
        step_out: usize,
    ) -> Result<Vec<u8>, CodecError> {
        let (mut plain, mut output) = (Vec::new(), vec![0; step_out]);
        let mut known = decoder.memory_bytes();
        for mut step in input.chunks(step_in) {
            loop {
                let filled = decoder.decode(&mut step, &mut output)?;
                plain.extend_from_slice(&output[..filled]);
                let grown = decoder.memory_bytes() > known;
                known = known.max(decoder.memory_bytes());
                if filled < step_out && !grown {
                    assert!(step.is_empty(), "input left over although the output is not full");
                    break;
                }
            }
        }
        decoder.finish()?;
        Ok(plain)
    }

    #[test]
    fn first_bytes_select_the_coding() {
        for (prefix, want) in [
            (&[][..], Coding::Plain),
            (&[0x1f], Coding::Plain),
            (&[0x1f, 0x8b], Coding::Gzip),
            (&[0x1f, 0x8b, 8, 0, 0, 0], Coding::Gzip),
            (&[0x28, 0xb5, 0x2f], Coding::Plain),
            (&[0x28, 0xb5, 0x2f, 0xfd], Coding::Zstd),
            (&[0x50, 0x2a, 0x4d, 0x18, 9], Coding::Zstd),
            (&[0x5f, 0x2a, 0x4d, 0x18], Coding::Zstd),
            (&[0x60, 0x2a, 0x4d, 0x18], Coding::Plain),
            (b"etc/passwd", Coding::Plain),
        ] {
            assert_eq!(Coding::detect(prefix), want, "{prefix:x?}");
        }
    }

    #[test]
    fn plain_passes_bytes_on_in_any_steps() {
        let bytes: Vec<u8> = (0..=255).collect();
        for step in [1, 7, 256, 1000] {
            assert_eq!(decode(Plain, &bytes, step, 5).as_deref(), Ok(&bytes[..]), "{step}");
        }
    }
}
