//! zlib streams of a length that is known: small records of other formats.
//!
//! Source: RFC 1950.

use zlib_rs::{Deflate, DeflateFlush, Inflate, InflateFlush, Status, compress_bound};

use super::{coding::Coding, error::CodecError};

/// Most bytes that deflate makes of one: a match of 258 bytes takes two bits.
const DENSEST: usize = 1032;

/// Why a zlib stream is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZlibError {
    /// The stream breaks RFC 1950 or RFC 1951, its checksum is wrong, or it is cut short.
    #[error("{0}")]
    Data(&'static str),
    /// The stream ends early.
    #[error("its {found} bytes are fewer than {expected}")]
    Short {
        /// Bytes that it holds.
        found: u64,
        /// Bytes that it has to hold.
        expected: usize,
    },
    /// The stream goes on.
    #[error("it holds more than {expected} bytes")]
    Long {
        /// Bytes that it has to hold.
        expected: usize,
    },
    /// Bytes behind the end of the stream.
    #[error("{left} bytes follow its end")]
    Trailing {
        /// How many.
        left: u64,
    },
}

/// Unpacks a stream that has to hold exactly `len` bytes. A `len` that no stream this short can hold is refused before
/// anything is allocated.
pub(crate) fn unpack(stream: &[u8], len: usize) -> Result<Vec<u8>, ZlibError> {
    let most = stream.len().saturating_mul(DENSEST);
    if len > most {
        return Err(ZlibError::Short { found: most as u64, expected: len });
    }
    // One byte more, so that a longer stream is seen.
    let mut bytes = vec![0; len.saturating_add(1)];
    let mut inflate = Inflate::new(true, 15);
    let status = inflate
        .decompress(stream, &mut bytes, InflateFlush::NoFlush)
        .map_err(|error| ZlibError::Data(inflate.error_message().unwrap_or(error.as_str())))?;
    let (found, taken) = (inflate.total_out(), inflate.total_in());
    if found > len as u64 {
        return Err(ZlibError::Long { expected: len });
    }
    if status != Status::StreamEnd {
        return Err(ZlibError::Data("the stream is cut short"));
    }
    if found < len as u64 {
        return Err(ZlibError::Short { found, expected: len });
    }
    match (stream.len() as u64).saturating_sub(taken) {
        0 => {
            bytes.truncate(len);
            Ok(bytes)
        }
        left => Err(ZlibError::Trailing { left }),
    }
}

/// Packs `bytes` at a level from 0 to 9.
pub(crate) fn pack(level: u8, bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
    let failed = CodecError::Encoder { coding: Coding::Gzip };
    let mut stream = vec![0; compress_bound(bytes.len())];
    let mut deflate = Deflate::new(level.into(), true, 15);
    match deflate.compress(bytes, &mut stream, DeflateFlush::Finish) {
        Ok(Status::StreamEnd) => {}
        _ => return Err(failed),
    }
    stream.truncate(usize::try_from(deflate.total_out()).map_err(|_too_long| failed)?);
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_any_level_come_back() {
        for plain in [&b""[..], b"one two one two", &[7; 70_000]] {
            for level in 0..=9 {
                let stream = pack(level, plain).unwrap();
                assert_eq!(unpack(&stream, plain.len()).unwrap(), plain);
            }
        }
    }

    #[test]
    fn a_stream_of_another_length_is_refused() {
        let stream = pack(6, &[7; 32_768]).unwrap();
        assert_eq!(unpack(&stream, 32_767), Err(ZlibError::Long { expected: 32_767 }));
        assert_eq!(unpack(&stream, 32_769), Err(ZlibError::Short { found: 32_768, expected: 32_769 }));
        assert_eq!(unpack(&[&stream[..], b"x"].concat(), 32_768), Err(ZlibError::Trailing { left: 1 }));
        for cut in 0..stream.len() {
            assert!(unpack(&stream[..cut], 32_768).is_err(), "{cut}");
        }
    }

    #[test]
    fn a_length_that_no_stream_can_hold_allocates_nothing() {
        let error = unpack(&[0x78, 0x9c], usize::MAX).unwrap_err();
        assert_eq!(error, ZlibError::Short { found: 2064, expected: usize::MAX });
    }

    #[test]
    fn damage_is_refused() {
        let good = pack(6, b"some text, some text").unwrap();
        for at in 0..good.len() {
            let mut stream = good.clone();
            stream[at] ^= 0x10;
            assert!(unpack(&stream, 20).is_err(), "byte {at}");
        }
    }
}
