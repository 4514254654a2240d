//! Codings of layers that no differ decodes by itself: xz, LZ4 frames, bzip2, brotli. `plywood stream` does.
//!
//! A stream processor has a process of its own, so these readers pull: input and output are [`Read`]s. Memory is bounded
//! by the window that the caller allows and by the block sizes of the formats. Described in
//! `docs/formats/compression.md`.

mod brotli;
mod coding;
mod counted;
mod decoding;
mod error;
mod lz4;

use std::io::{self, BufRead, Read};

use lzma_rust2::XzReader;

use self::{brotli::Brotli, counted::Counted, lz4::Lz4};
pub use self::{coding::Foreign, decoding::Decoding, error::ForeignError};
use crate::error::{Error, Kind};

impl Foreign {
    /// Decodes all of `input`. xz blocks with a dictionary above `window_bytes` are refused; the other formats never need
    /// more than 16 MiB.
    ///
    /// Errors: those of `input`, unchanged; a [`ForeignError`], packed with
    /// [`Error::into_io`](crate::error::Error::into_io).
    pub fn reader<'r>(self, input: impl BufRead + 'r, window_bytes: u64) -> Box<dyn Read + 'r> {
        let input = Counted::new(input);
        let taken = input.taken();
        match self {
            Self::Lz4 => Box::new(Lz4::new(input)),
            Self::Brotli => Box::new(Brotli::new(input)),
            Self::Xz => {
                // What the decoder holds besides the dictionary: its state and one compressed chunk.
                const BESIDE_KIB: u32 = 1024;
                let window_kib = u32::try_from(window_bytes >> 10).unwrap_or(u32::MAX);
                let limit_kib = window_kib.saturating_add(BESIDE_KIB);
                let reader = XzReader::new_mem_limit(input, true, limit_kib);
                Box::new(Named { coding: self, window_bytes, taken, reader })
            }
            Self::Bzip2 => {
                let reader = ::bzip2::bufread::MultiBzDecoder::new(input);
                Box::new(Named { coding: self, window_bytes, taken, reader })
            }
        }
    }
}

impl Foreign {
    /// The coding that the first byte of a fuzz input selects, and the stream behind it.
    pub fn of_fuzz(data: &[u8]) -> Option<(Self, &[u8])> {
        let (selector, stream) = data.split_first()?;
        let coding = match selector % 4 {
            0 => Self::Xz,
            1 => Self::Lz4,
            2 => Self::Bzip2,
            _ => Self::Brotli,
        };
        Some((coding, stream))
    }
}

/// Fuzz entry: decodes `data` in the coding that its first byte selects, from inputs and into outputs of different sizes,
/// and compares the results.
///
/// # Panics
///
/// When the results differ, or an error has no reason of its own.
pub fn fuzz(data: &[u8]) {
    /// Most decoded bytes: enough to cross every buffer inside the decoders.
    const OUTPUT_LIMIT: usize = 4 << 20;
    const WINDOW_LIMIT: u64 = 1 << 20;
    let Some((coding, stream)) = Foreign::of_fuzz(data) else { return };
    let decode = |step_in: usize, step_out: usize| {
        let input = io::BufReader::with_capacity(step_in, stream);
        let (mut reader, mut buffer) = (coding.reader(input, WINDOW_LIMIT), vec![0; step_out]);
        let (mut total, mut sum) = (0_usize, 0_u32);
        while total <= OUTPUT_LIMIT {
            match reader.read(&mut buffer) {
                Ok(0) => return Some(Ok((total, sum))),
                Ok(filled) => {
                    sum = zlib_rs::crc32::crc32(sum, buffer.get(..filled).unwrap_or_default());
                    total = total.saturating_add(filled);
                }
                Err(error) => return Some(Err(Error::from_io(error, Kind::Internal, "not named").reason())),
            }
        }
        None
    };
    match (decode(1 << 16, 1 << 16), decode(7, 61)) {
        // Over the limit: how far each got does not matter.
        (None, _) | (_, None) => {}
        (whole, pieces) => {
            assert_eq!(whole, pieces, "the outcome depends on the steps");
            assert_ne!(whole, Some(Err("not named")), "an error without a reason");
        }
    }
}

/// The reader of a library, whose errors become [`ForeignError`]s.
struct Named<R> {
    coding: Foreign,
    window_bytes: u64,
    taken: counted::Taken,
    reader: R,
}

impl<R: Read> Read for Named<R> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        self.reader.read(output).map_err(|error| {
            if error.kind() == io::ErrorKind::Interrupted || counted::is_of_the_input(&error) {
                return error;
            }
            let (coding, offset) = (self.coding, self.taken.get());
            let named = match error.kind() {
                io::ErrorKind::UnexpectedEof => ForeignError::Truncated { coding, offset },
                io::ErrorKind::OutOfMemory => {
                    ForeignError::Window { coding, offset, limit: self.window_bytes }
                }
                _ => ForeignError::Data { coding, offset, message: error.to_string() },
            };
            named.into_io()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    #[test]
    fn an_error_of_the_input_stays_what_it_is() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("the pipe broke"))
            }
        }
        for coding in [Foreign::Xz, Foreign::Lz4, Foreign::Bzip2, Foreign::Brotli] {
            let error = coding.reader(BufReader::new(Broken), 1 << 20).read(&mut [0; 10]).unwrap_err();
            let error = Error::from_io(error, Kind::Internal, "not named");
            assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "stream.read"), "{error}");
        }
    }

    #[test]
    fn an_empty_input_is_a_stream_that_is_cut_off() {
        for coding in [Foreign::Xz, Foreign::Lz4, Foreign::Bzip2, Foreign::Brotli] {
            let error = coding.reader(&b""[..], 1 << 20).read(&mut [0; 10]).unwrap_err();
            let error = Error::from_io(error, Kind::Internal, "not named");
            assert_eq!(error.reason(), "codec.foreign.truncated", "{error}");
        }
    }
}
