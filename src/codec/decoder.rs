//! Decoders: what they have in common, and the one that decodes nothing.
//!
//! Described in `docs/formats/compression.md`.

use super::error::CodecError;

/// Decoder of one stream, from its first byte to its last.
///
/// ```
/// use plywood::codec::{Coding, Decoder};
/// let mut decoder = Coding::Plain.decoder(0)?;
/// let (mut input, mut output) = (&b"bytes"[..], [0; 3]);
/// assert_eq!(decoder.decode(&mut input, &mut output)?, 3); // full: there may be more
/// assert_eq!(decoder.decode(&mut input, &mut output)?, 2); // not full: the input is used up
/// decoder.finish()?;
/// # Ok::<(), plywood::codec::CodecError>(())
/// ```
pub trait Decoder: Send {
    /// Takes bytes off the front of `input` and fills `output` from its start. Returns the number
    /// of bytes of `output` that are filled.
    ///
    /// A full `output` may mean that more is to come without further input. Otherwise all of
    /// `input` has been taken, with two exceptions: a decoder that is about to need more memory
    /// stops first, and [`memory_bytes`](Self::memory_bytes) has grown; and a decoder that lists
    /// blocks stops when it has [`BLOCKS_MAX`].
    fn decode(&mut self, input: &mut &[u8], output: &mut [u8]) -> Result<usize, CodecError>;

    /// Ends the stream. Call once the input has ended and all output was taken. Errors: the stream
    /// is cut short.
    fn finish(&mut self) -> Result<(), CodecError>;

    /// Memory that the next call of [`decode`](Self::decode) may hold for the window, in bytes. It
    /// is known before it is allocated, so that a caller can refuse.
    fn memory_bytes(&self) -> u64 {
        0
    }

    /// From now on, lists every block at which a decoder could start. Only gzip has such blocks.
    fn list_blocks(&mut self) {}

    /// Blocks that start within the output of the last call of [`decode`](Self::decode) or right behind it, in their
    /// order.
    fn blocks(&self) -> &[BlockStart] {
        &[]
    }
}

/// Most blocks that a decoder lists in one call. A block that holds nothing takes ten bits of input.
pub const BLOCKS_MAX: usize = 4096;

/// Start of a deflate block in a gzip stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStart {
    /// Bytes before it of the output that it was found in.
    pub at: usize,
    /// Compressed byte at which the block's member starts.
    pub member: u64,
    /// Compressed bits before the block, from the start of the stream.
    pub bit: u64,
}

/// Decoder that passes the bytes on unchanged.
#[derive(Debug)]
pub struct Plain;

impl Decoder for Plain {
    fn decode(&mut self, input: &mut &[u8], output: &mut [u8]) -> Result<usize, CodecError> {
        let (bytes, rest) = input.split_at_checked(output.len()).unwrap_or((input, &[]));
        if let Some(output) = output.get_mut(..bytes.len()) {
            output.copy_from_slice(bytes);
        }
        *input = rest;
        Ok(bytes.len())
    }

    fn finish(&mut self) -> Result<(), CodecError> {
        Ok(())
    }
}
