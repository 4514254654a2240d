//! Codecs: compressed bytes in, plain bytes out, in steps of any size; and back, in [`encode`].
//!
//! A decoder sees slices only: no files, sockets, clocks or threads, and no allocation sized by its
//! input. Which decoder reads a layer is decided by the first bytes ([`Coding::detect`]), because media
//! types in the wild lie about the compression. What each format may hold is in
//! `docs/formats/compression.md`.

// Bytes from outside must not be able to panic a root daemon.
#![deny(clippy::indexing_slicing)]

pub mod encode;
mod gzip;
mod zstd;

pub use self::{gzip::Gzip, zstd::Zstd};

use crate::error::{Classify, Kind};

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    /// Not at all.
    Plain,
    /// gzip members, RFC 1952.
    Gzip,
    /// zstd frames, RFC 8878.
    Zstd,
}

impl Coding {
    /// As many first bytes as [`detect`](Self::detect) can make use of.
    pub const PREFIX_LEN: usize = 4;

    /// The coding that the first bytes of a stream announce: the gzip magic number, or that of a zstd
    /// frame or skippable frame. Everything else, also a stream shorter than a magic number, is plain.
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

    /// A decoder for a whole stream of this coding. A zstd frame with a window above
    /// `zstd_window_bytes` is refused. Errors: [`CodecError::Memory`].
    pub fn decoder(self, zstd_window_bytes: u64) -> Result<Box<dyn Decoder>, CodecError> {
        Ok(match self {
            Self::Plain => Box::new(Plain),
            Self::Gzip => Box::new(Gzip::new()),
            Self::Zstd => Box::new(Zstd::new(zstd_window_bytes)?),
        })
    }

    /// The name used in logs and statistics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// Decodes one stream from its first byte to its last.
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
    /// Takes bytes off the front of `input` and fills `output` from its start; returns how many bytes
    /// of `output` are now filled.
    ///
    /// When `output` comes back full there may be more to come without further input. Otherwise all of
    /// `input` has been taken, with one exception: a decoder that is about to need more memory stops
    /// first, and [`memory_bytes`](Self::memory_bytes) has grown.
    fn decode(&mut self, input: &mut &[u8], output: &mut [u8]) -> Result<usize, CodecError>;

    /// Tells that the input has ended and everything was taken out. Errors: the stream is cut short.
    fn finish(&mut self) -> Result<(), CodecError>;

    /// Memory the next call of [`decode`](Self::decode) may hold for the window, in bytes. It is known
    /// before it is used, so that a caller can refuse.
    fn memory_bytes(&self) -> u64 {
        0
    }
}

/// No compression: passes the bytes on.
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

/// Why a compressed stream is refused. Offsets count compressed bytes from the start of the stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A member does not start with the magic number, or what follows the last one is not NUL bytes.
    #[error("gzip: byte {byte:#04x} at offset {offset} belongs to no member")]
    GzipTrailing {
        /// Where it is.
        offset: u64,
        /// What it is.
        byte: u8,
    },
    /// RFC 1952 knows no method but deflate.
    #[error("gzip: compression method {method} at offset {offset} is not 8")]
    GzipMethod {
        /// The method byte.
        method: u8,
        /// Where the member starts.
        offset: u64,
    },
    /// RFC 1952: a decoder must refuse reserved flags, they may announce further header fields.
    #[error("gzip: header flags {flags:#04x} at offset {offset} have reserved bits set")]
    GzipFlags {
        /// The flag byte.
        flags: u8,
        /// Where the member starts.
        offset: u64,
    },
    /// A file name or comment without an end in sight.
    #[error("gzip: a header string of the member at offset {offset} is longer than {limit} bytes")]
    GzipHeaderString {
        /// Where the member starts.
        offset: u64,
        /// [`crate::limits::GZIP_HEADER_BYTES`].
        limit: u64,
    },
    /// The header's own checksum is wrong.
    #[error("gzip: header checksum {stored:#06x} of the member at offset {offset} should be {computed:#06x}")]
    GzipHeaderChecksum {
        /// Where the member starts.
        offset: u64,
        /// What the header says.
        stored: u16,
        /// What its bytes give.
        computed: u16,
    },
    /// The deflate stream of a member breaks RFC 1951.
    #[error("gzip: invalid deflate data in the member at offset {offset}, before offset {before}: {message}")]
    GzipDeflate {
        /// Where the member starts.
        offset: u64,
        /// How far the input had been read.
        before: u64,
        /// The inflater's word for it.
        message: &'static str,
    },
    /// A member's CRC-32 is wrong.
    #[error("gzip: CRC-32 {stored:#010x} of the member at offset {offset} should be {computed:#010x}")]
    GzipChecksum {
        /// Where the member starts.
        offset: u64,
        /// What the trailer says.
        stored: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// A member's ISIZE is wrong.
    #[error("gzip: length {stored} of the member at offset {offset} should be {computed} (modulo 2^32)")]
    GzipLength {
        /// Where the member starts.
        offset: u64,
        /// What the trailer says.
        stored: u32,
        /// How many bytes there were.
        computed: u32,
    },
    /// The stream ends inside a member.
    #[error("gzip: the stream ends after {offset} bytes inside a member")]
    GzipTruncated {
        /// Length of the stream.
        offset: u64,
    },
    /// What should be a frame does not start with a magic number of RFC 8878.
    #[error("zstd: the bytes at offset {offset} start no frame")]
    ZstdTrailing {
        /// Where they are.
        offset: u64,
    },
    /// RFC 8878: the reserved bit must be zero.
    #[error("zstd: the header of the frame at offset {offset} has its reserved bit set")]
    ZstdReserved {
        /// Where the frame starts.
        offset: u64,
    },
    /// Layers bring no dictionary along.
    #[error("zstd: the frame at offset {offset} needs dictionary {id}")]
    ZstdDictionary {
        /// Where the frame starts.
        offset: u64,
        /// The dictionary's id.
        id: u32,
    },
    /// Decoding would need more memory than is allowed.
    #[error("zstd: the frame at offset {offset} needs a window of {window_bytes} bytes, more than {limit}")]
    ZstdWindow {
        /// Where the frame starts.
        offset: u64,
        /// What it needs.
        window_bytes: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A block or the length of the frame breaks RFC 8878.
    #[error("zstd: invalid data in the frame at offset {offset}, before offset {before}: {message}")]
    ZstdFrame {
        /// Where the frame starts.
        offset: u64,
        /// How far the input had been read.
        before: u64,
        /// libzstd's word for it.
        message: &'static str,
    },
    /// The frame's content is not as long as its header declares.
    #[error("zstd: the frame at offset {offset} declares {declared} bytes and holds {produced}")]
    ZstdLength {
        /// Where the frame starts.
        offset: u64,
        /// What its header says.
        declared: u64,
        /// How many bytes there were.
        produced: u64,
    },
    /// The frame's content checksum is wrong.
    #[error("zstd: wrong content checksum of the frame at offset {offset}")]
    ZstdChecksum {
        /// Where the frame starts.
        offset: u64,
    },
    /// The stream ends inside a frame.
    #[error("zstd: the stream ends after {offset} bytes inside a frame")]
    ZstdTruncated {
        /// Length of the stream.
        offset: u64,
    },
    /// The state of a decoder or encoder could not be set up.
    #[error("no memory for a codec")]
    Memory,
    /// An encoder did not take a block, or had too little room for it.
    #[error("the {} encoder failed", coding.as_str())]
    Encoder {
        /// Which one.
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

/// Fuzz entry: decodes `data` as gzip, in steps of different sizes, and compares what comes out.
///
/// # Panics
///
/// When the outcomes differ, or a decoder breaks a promise of [`Decoder`].
pub fn fuzz_gzip(data: &[u8]) {
    fuzz(Coding::Gzip, data);
}

/// The same as [`fuzz_gzip`], for zstd.
pub fn fuzz_zstd(data: &[u8]) {
    fuzz(Coding::Zstd, data);
}

fn fuzz(coding: Coding, data: &[u8]) {
    /// Enough to cross every buffer inside the decoders.
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
