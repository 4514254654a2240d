//! A decoder of this house behind [`Read`].
//!
//! Described in `docs/formats/compression.md`.

use std::io::{self, BufRead, Read};

use crate::{codec::Decoder, error::Error};

/// Decodes an input as it is read.
pub struct Decoding<R> {
    input: R,
    decoder: Box<dyn Decoder>,
    ended: bool,
}

impl<R: BufRead> Decoding<R> {
    /// The bytes of `input`, decoded by `decoder`.
    pub fn new(input: R, decoder: Box<dyn Decoder>) -> Self {
        Self { input, decoder, ended: false }
    }
}

impl<R: BufRead> Read for Decoding<R> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        let pack = |error| Error::from(error).into_io();
        while !self.ended && !output.is_empty() {
            let available = self.input.fill_buf()?;
            let (mut rest, had) = (available, available.len());
            let filled = self.decoder.decode(&mut rest, output).map_err(pack)?;
            let taken = had - rest.len();
            self.input.consume(taken);
            if filled > 0 {
                return Ok(filled);
            }
            if had == 0 {
                self.decoder.finish().map_err(pack)?;
                self.ended = true;
            }
        }
        Ok(0)
    }
}
