//! Codecs: compressed bytes in, plain bytes out, in steps of any size; and back, in [`encode`].
//!
//! A decoder sees slices only: no files, sockets, clocks or threads, and no allocation sized by its
//! input. The first bytes of a layer choose its decoder ([`Coding::detect`]), because media types
//! in the wild lie about the compression. The rules of each format are listed in
//! `docs/formats/compression.md`.

// Bytes from outside must not be able to panic a root daemon.
#![deny(clippy::indexing_slicing)]

pub mod encode;
mod gzip;
mod zstd;

pub use self::{gzip::Gzip, zstd::Zstd};

use crate::error::{Classify, Kind};

/// Coding of a stream, detected from its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    /// No compression: any bytes.
    Plain,
    /// One or more gzip members, RFC 1952.
    Gzip,
    /// One or more zstd frames, RFC 8878.
    Zstd,
}

impl Coding {
    /// Number of first bytes that [`detect`](Self::detect) looks at.
    pub const PREFIX_LEN: usize = 4;

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

    /// Lower-case name for logs and statistics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

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
    /// `input` has been taken, with one exception: a decoder that is about to need more memory
    /// stops first, and [`memory_bytes`](Self::memory_bytes) has grown.
    fn decode(&mut self, input: &mut &[u8], output: &mut [u8]) -> Result<usize, CodecError>;

    /// Ends the stream. Call once the input has ended and all output was taken. Errors: the stream
    /// is cut short.
    fn finish(&mut self) -> Result<(), CodecError>;

    /// Memory that the next call of [`decode`](Self::decode) may hold for the window, in bytes. It
    /// is known before it is allocated, so that a caller can refuse.
    fn memory_bytes(&self) -> u64 {
        0
    }
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

/// Refusal of a compressed stream. Offsets count compressed bytes from the start of the stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A member does not start with the magic number, or the bytes after the last one are not NUL.
    #[error("gzip: byte {byte:#04x} at offset {offset} belongs to no member")]
    GzipTrailing {
        /// Offset of the first wrong byte.
        offset: u64,
        /// Value of that byte.
        byte: u8,
    },
    /// The method is not deflate, the only one that RFC 1952 knows.
    #[error("gzip: compression method {method} at offset {offset} is not 8")]
    GzipMethod {
        /// Method byte of the header.
        method: u8,
        /// Offset at which the member starts.
        offset: u64,
    },
    /// Reserved flags are set. RFC 1952 requires a refusal: they may announce further header
    /// fields.
    #[error("gzip: header flags {flags:#04x} at offset {offset} have reserved bits set")]
    GzipFlags {
        /// Flag byte of the header.
        flags: u8,
        /// Offset at which the member starts.
        offset: u64,
    },
    /// A file name or comment has no end within the limit.
    #[error("gzip: a header string of the member at offset {offset} is longer than {limit} bytes")]
    GzipHeaderString {
        /// Offset at which the member starts.
        offset: u64,
        /// Longest string in bytes, [`crate::limits::GZIP_HEADER_BYTES`].
        limit: u64,
    },
    /// The checksum of a member's header is not that of its bytes.
    #[error("gzip: header checksum {stored:#06x} of the member at offset {offset} should be {computed:#06x}")]
    GzipHeaderChecksum {
        /// Offset at which the member starts.
        offset: u64,
        /// Checksum that the header holds.
        stored: u16,
        /// Low half of the CRC-32 of the header's bytes.
        computed: u16,
    },
    /// The deflate stream of a member breaks RFC 1951.
    #[error("gzip: invalid deflate data in the member at offset {offset}, before offset {before}: {message}")]
    GzipDeflate {
        /// Offset at which the member starts.
        offset: u64,
        /// Number of compressed bytes read so far.
        before: u64,
        /// Error text of the inflater.
        message: &'static str,
    },
    /// The CRC-32 of a member is not that of its data.
    #[error("gzip: CRC-32 {stored:#010x} of the member at offset {offset} should be {computed:#010x}")]
    GzipChecksum {
        /// Offset at which the member starts.
        offset: u64,
        /// CRC-32 that the trailer holds.
        stored: u32,
        /// CRC-32 of the decoded bytes.
        computed: u32,
    },
    /// ISIZE of a member is not the length of its data.
    #[error("gzip: length {stored} of the member at offset {offset} should be {computed} (modulo 2^32)")]
    GzipLength {
        /// Offset at which the member starts.
        offset: u64,
        /// Length that the trailer holds, modulo 2^32.
        stored: u32,
        /// Number of decoded bytes, modulo 2^32.
        computed: u32,
    },
    /// The stream ends inside a member.
    #[error("gzip: the stream ends after {offset} bytes inside a member")]
    GzipTruncated {
        /// Length of the stream in bytes.
        offset: u64,
    },
    /// Bytes in the place of a frame do not start with a magic number of RFC 8878.
    #[error("zstd: the bytes at offset {offset} start no frame")]
    ZstdTrailing {
        /// Offset of these bytes.
        offset: u64,
    },
    /// The reserved bit is set, which RFC 8878 forbids.
    #[error("zstd: the header of the frame at offset {offset} has its reserved bit set")]
    ZstdReserved {
        /// Offset at which the frame starts.
        offset: u64,
    },
    /// The frame needs a dictionary, which layers do not carry.
    #[error("zstd: the frame at offset {offset} needs dictionary {id}")]
    ZstdDictionary {
        /// Offset at which the frame starts.
        offset: u64,
        /// Id of the dictionary, never 0.
        id: u32,
    },
    /// The window, or the content of a single segment, is larger than allowed.
    #[error("zstd: the frame at offset {offset} needs a window of {window_bytes} bytes, more than {limit}")]
    ZstdWindow {
        /// Offset at which the frame starts.
        offset: u64,
        /// Window that the frame needs, in bytes.
        window_bytes: u64,
        /// Largest window allowed, in bytes.
        limit: u64,
    },
    /// A block or the length of the frame breaks RFC 8878.
    #[error("zstd: invalid data in the frame at offset {offset}, before offset {before}: {message}")]
    ZstdFrame {
        /// Offset at which the frame starts.
        offset: u64,
        /// Number of compressed bytes read so far.
        before: u64,
        /// Error text of libzstd.
        message: &'static str,
    },
    /// The length of a frame's content is not the declared one.
    #[error("zstd: the frame at offset {offset} declares {declared} bytes and holds {produced}")]
    ZstdLength {
        /// Offset at which the frame starts.
        offset: u64,
        /// Length that the header declares, in bytes.
        declared: u64,
        /// Number of decoded bytes.
        produced: u64,
    },
    /// The checksum of a frame is not that of its content.
    #[error("zstd: wrong content checksum of the frame at offset {offset}")]
    ZstdChecksum {
        /// Offset at which the frame starts.
        offset: u64,
    },
    /// The stream ends inside a frame.
    #[error("zstd: the stream ends after {offset} bytes inside a frame")]
    ZstdTruncated {
        /// Length of the stream in bytes.
        offset: u64,
    },
    /// Memory for a decoder or encoder could not be allocated.
    #[error("no memory for a codec")]
    Memory,
    /// An encoder failed on a block, or had too little room for its output.
    #[error("the {} encoder failed", coding.as_str())]
    Encoder {
        /// Coding of the encoder.
        coding: Coding,
    },
}

impl Classify for CodecError {
    fn kind(&self) -> Kind {
        match self {
            Self::ZstdWindow { .. } | Self::Memory => Kind::Exhausted,
            Self::Encoder { .. } => Kind::Internal,
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::GzipTrailing { .. } => "codec.gzip.trailing",
            Self::GzipMethod { .. } => "codec.gzip.method",
            Self::GzipFlags { .. } => "codec.gzip.flags",
            Self::GzipHeaderString { .. } => "codec.gzip.header-string",
            Self::GzipHeaderChecksum { .. } => "codec.gzip.header-checksum",
            Self::GzipDeflate { .. } => "codec.gzip.deflate",
            Self::GzipChecksum { .. } => "codec.gzip.checksum",
            Self::GzipLength { .. } => "codec.gzip.length",
            Self::GzipTruncated { .. } => "codec.gzip.truncated",
            Self::ZstdTrailing { .. } => "codec.zstd.trailing",
            Self::ZstdReserved { .. } => "codec.zstd.reserved",
            Self::ZstdDictionary { .. } => "codec.zstd.dictionary",
            Self::ZstdWindow { .. } => "codec.zstd.window",
            Self::ZstdFrame { .. } => "codec.zstd.frame",
            Self::ZstdLength { .. } => "codec.zstd.length",
            Self::ZstdChecksum { .. } => "codec.zstd.checksum",
            Self::ZstdTruncated { .. } => "codec.zstd.truncated",
            Self::Memory => "codec.memory",
            Self::Encoder { .. } => "codec.encoder",
        }
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
