//! brotli: one stream, with the window of RFC 7932, which is at most 16 MiB.
//!
//! The format has neither a magic number nor a checksum. What follows the stream is refused, because it cannot be told
//! from a damaged stream.
//!
//! Source: RFC 7932, section 9.1 (window sizes) and 10 (decoding).

use std::io::{self, BufRead, Read};

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};

use super::{coding::Foreign, counted::Counted, error::ForeignError};

/// Decoder of one brotli stream.
pub(super) struct Brotli<R> {
    input: Counted<R>,
    state: BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    ended: bool,
}

impl<R: BufRead> Brotli<R> {
    pub(super) fn new(input: Counted<R>) -> Self {
        let alloc = StandardAlloc::default;
        Self { input, state: BrotliState::new_strict(alloc(), alloc(), alloc()), ended: false }
    }
}

impl<R: BufRead> Read for Brotli<R> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        let (coding, mut filled) = (Foreign::Brotli, 0);
        while !self.ended && !output.is_empty() {
            let available = self.input.fill_buf()?;
            let (mut left, mut taken) = (available.len(), 0);
            let (mut room, mut total) = (output.len(), 0);
            let result = BrotliDecompressStream(
                &mut left,
                &mut taken,
                available,
                &mut room,
                &mut filled,
                output,
                &mut total,
                &mut self.state,
            );
            let at_the_end = available.is_empty();
            self.input.consume(taken);
            let offset = self.input.taken().get();
            match result {
                BrotliResult::ResultSuccess => {
                    self.ended = true;
                    if !self.input.fill_buf()?.is_empty() {
                        return Err(ForeignError::Trailing { coding, offset }.into_io());
                    }
                }
                BrotliResult::ResultFailure => {
                    let message = format!("{:?}", self.state.error_code);
                    return Err(ForeignError::Data { coding, offset, message }.into_io());
                }
                BrotliResult::NeedsMoreInput if at_the_end && filled == 0 => {
                    return Err(ForeignError::Truncated { coding, offset }.into_io());
                }
                BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
            }
            if filled > 0 {
                break;
            }
        }
        Ok(filled)
    }
}
