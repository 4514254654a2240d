//! Encoders: plain bytes in, compressed bytes out, in blocks that depend on nothing but their
//! bytes.
//!
//! A stream is cut into blocks of a fixed length. Each is compressed by itself
//! ([`Compression::encode`]), given at most the bytes before it, so that any number of threads
//! writes the same bytes. The [`Envelope`] holds the bytes around the blocks. The caller brings the
//! threads.
//!
//! Source: `docs/formats/compression.md`, "What is written".

mod coded;
mod gzip;
mod zstd;

pub use self::coded::Coded;
use super::{coding::Coding, error::CodecError};
use crate::error::{Classify, Kind};

/// Highest ratio of a block to its output. Zeros are denser: a tar layer stores the holes of sparse
/// files as zeros, and readers would take the blob for a bomb; Apply refuses more than 250:1. Such
/// output is filled with bytes that decoders skip. Layers without large holes never reach this
/// ratio.
const DENSEST: usize = 200;

/// Coding and level of a stream to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    coding: Coding,
    level: u8,
}

/// Refusal of a level that the coding does not have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} has no level {level}, only {} to {}", coding.as_str(), levels.0, levels.1)]
pub struct LevelError {
    coding: Coding,
    level: u8,
    levels: (u8, u8),
}

impl Classify for LevelError {
    fn kind(&self) -> Kind {
        Kind::Malformed
    }
    fn reason(&self) -> &'static str {
        "codec.level"
    }
}

impl Compression {
    /// No compression, level 0.
    pub const PLAIN: Self = Self { coding: Coding::Plain, level: 0 };
    /// gzip at the level whose output is as small as that of Go's level 6, and not slower: 0.99 to
    /// 1.002 of its size.
    pub const GZIP: Self = Self { coding: Coding::Gzip, level: 4 };
    /// gzip that stores its bytes, for what is compressed already.
    pub const GZIP_STORED: Self = Self { coding: Coding::Gzip, level: 0 };
    /// zstd at the level that other tools write layers with.
    pub const ZSTD: Self = Self { coding: Coding::Zstd, level: 3 };

    /// Coding at its usual level: 4 for gzip, 3 for zstd.
    pub fn of(coding: Coding) -> Self {
        match coding {
            Coding::Plain => Self::PLAIN,
            Coding::Gzip => Self::GZIP,
            Coding::Zstd => Self::ZSTD,
        }
    }

    /// Coding at a given level: 1 to 9 for gzip, 1 to 19 for zstd, 0 for none. Errors:
    /// [`LevelError`].
    pub fn at_level(coding: Coding, level: u8) -> Result<Self, LevelError> {
        let levels = match coding {
            Coding::Plain => (0, 0),
            Coding::Gzip => (1, 9),
            // Higher levels need windows that decoders refuse by default.
            Coding::Zstd => (1, 19),
        };
        if level < levels.0 || level > levels.1 {
            return Err(LevelError { coding, level, levels });
        }
        Ok(Self { coding, level })
    }

    /// Coding of the stream.
    pub fn coding(self) -> Coding {
        self.coding
    }

    /// Level of the coding; 0 without compression.
    pub fn level(self) -> u8 {
        self.level
    }

    /// Length of every block but the last, in bytes.
    pub fn block_bytes(self) -> usize {
        match self.coding {
            Coding::Plain => 1 << 20,
            Coding::Gzip => gzip::BLOCK,
            Coding::Zstd => zstd::BLOCK,
        }
    }

    /// Largest output of a block of `len` bytes, in bytes.
    pub fn bound(self, len: usize) -> usize {
        match self.coding {
            Coding::Plain => len,
            Coding::Gzip => gzip::bound(len),
            Coding::Zstd => zstd::bound(len),
        }
    }

    /// True when a block depends on the one before it.
    pub fn looks_back(self) -> bool {
        self.coding == Coding::Gzip
    }

    /// Compresses `block` into `out`, which has at least [`Compression::bound`] bytes. `before` is
    /// the whole block before it; it is empty for the first block and where
    /// [`Compression::looks_back`] is false. Every stream has at least one block, so the first may
    /// be empty.
    ///
    /// Creates a new compressor for every block, which costs less than 1 % of the time. A reused
    /// one remembers earlier data: zlib-rs hashes stale bytes behind the end of a dictionary, and
    /// libzstd salts its hashes from level 5 on. The output would then depend on which thread took
    /// which block.
    ///
    /// Errors: [`CodecError::Memory`]; [`CodecError::Encoder`] when `out` is too short.
    ///
    /// ```
    /// use plywood::codec::{Coding, encode::{Compression, Envelope}};
    ///
    /// # fn main() -> Result<(), plywood::codec::CodecError> {
    /// let compression = Compression::GZIP;
    /// let mut envelope = Envelope::new(compression);
    /// let mut stream = envelope.start().to_vec();
    /// let mut before = &b""[..];
    /// for block in [&b"one "[..], b"two"] {
    ///     let mut out = vec![0; compression.bound(block.len())];
    ///     let coded = compression.encode(before, block, &mut out)?;
    ///     stream.extend_from_slice(&out[..coded.len]);
    ///     envelope.add(coded, block.len() as u64);
    ///     before = block;
    /// }
    /// stream.extend(envelope.end());
    /// assert_eq!(Coding::detect(&stream), Coding::Gzip);
    /// # Ok(())
    /// # }
    /// ```
    pub fn encode(self, before: &[u8], block: &[u8], out: &mut [u8]) -> Result<Coded, CodecError> {
        let coded = match self.coding {
            Coding::Plain => {
                let space =
                    out.get_mut(..block.len()).ok_or(CodecError::Encoder { coding: Coding::Plain })?;
                space.copy_from_slice(block);
                Coded { len: block.len(), crc32: 0 }
            }
            Coding::Gzip => gzip::encode(self.level, before, block, out)?,
            Coding::Zstd => zstd::encode(self.level, block, out)?,
        };
        let least = block.len() / DENSEST;
        if coded.len >= least {
            return Ok(coded);
        }
        let len = match self.coding {
            Coding::Plain => Some(coded.len),
            Coding::Gzip => gzip::fill(out, coded.len, least),
            Coding::Zstd => zstd::fill(out, coded.len, least),
        };
        let len = len.ok_or(CodecError::Encoder { coding: self.coding })?;
        Ok(Coded { len, ..coded })
    }
}

impl Compression {
    /// Compresses `plain` into a stream of its own: one gzip member, or one zstd frame for each block.
    ///
    /// Errors: [`CodecError::Memory`].
    pub fn whole(self, plain: &[u8]) -> Result<Vec<u8>, CodecError> {
        let mut envelope = Envelope::new(self);
        let mut stream = envelope.start().to_vec();
        let mut before = &[][..];
        let mut rest = plain;
        loop {
            let (block, later) = rest.split_at_checked(self.block_bytes()).unwrap_or((rest, &[]));
            let start = stream.len();
            stream.resize(start.saturating_add(self.bound(block.len())), 0);
            let out = stream.get_mut(start..).unwrap_or_default();
            let coded = self.encode(before, block, out)?;
            stream.truncate(start.saturating_add(coded.len));
            envelope.add(coded, block.len() as u64);
            if self.looks_back() {
                before = block;
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        stream.extend(envelope.end());
        Ok(stream)
    }
}

/// Bytes around the blocks of a stream, with the sums that they hold.
#[derive(Debug)]
pub struct Envelope {
    coding: Coding,
    crc32: u32,
    /// Plain bytes of all blocks so far.
    size_bytes: u64,
}

impl Envelope {
    /// Envelope of a stream without blocks.
    pub fn new(compression: Compression) -> Self {
        Self { coding: compression.coding, crc32: 0, size_bytes: 0 }
    }

    /// Bytes before the first block.
    pub fn start(&self) -> &'static [u8] {
        match self.coding {
            Coding::Gzip => &gzip::HEADER,
            Coding::Plain | Coding::Zstd => &[],
        }
    }

    /// Adds the next block, of `block_bytes` plain bytes, to the sums.
    pub fn add(&mut self, coded: Coded, block_bytes: u64) {
        if self.coding == Coding::Gzip {
            self.crc32 = gzip::join(self.crc32, coded.crc32, block_bytes);
        }
        self.size_bytes = self.size_bytes.wrapping_add(block_bytes);
    }

    /// Bytes after the last block.
    pub fn end(self) -> Vec<u8> {
        match self.coding {
            Coding::Gzip => gzip::end(self.crc32, self.size_bytes).to_vec(),
            Coding::Plain | Coding::Zstd => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Compresses in blocks of `block` bytes.
    pub(super) fn encode(compression: Compression, plain: &[u8], block: usize) -> Vec<u8> {
        let mut envelope = Envelope::new(compression);
        let mut stream = envelope.start().to_vec();
        let blocks: Vec<&[u8]> = if plain.is_empty() { vec![&[]] } else { plain.chunks(block).collect() };
        let mut before = &[][..];
        for block in blocks {
            let mut out = vec![0xaa; compression.bound(block.len())];
            let coded = compression.encode(before, block, &mut out).unwrap();
            stream.extend_from_slice(&out[..coded.len]);
            envelope.add(coded, block.len() as u64);
            before = block;
        }
        stream.extend(envelope.end());
        stream
    }

    fn decoded(coding: Coding, stream: &[u8]) -> Vec<u8> {
        let mut decoder = coding.decoder(8 << 20).unwrap();
        let (mut plain, mut space, mut input) = (Vec::new(), vec![0; 1 << 16], stream);
        loop {
            let filled = decoder.decode(&mut input, &mut space).unwrap();
            plain.extend_from_slice(&space[..filled]);
            if input.is_empty() && filled < space.len() {
                break;
            }
        }
        decoder.finish().unwrap();
        plain
    }

    pub(super) fn noise(len: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let step = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        (0..len).map(step).collect()
    }

    fn every_level() -> impl Iterator<Item = Compression> {
        [(Coding::Plain, 0..=0), (Coding::Gzip, 1..=9), (Coding::Zstd, 1..=19)].into_iter().flat_map(
            |(coding, levels)| levels.map(move |level| Compression::at_level(coding, level).unwrap()),
        )
    }

    #[test]
    fn only_the_levels_of_a_coding_are_taken() {
        for (coding, level) in
            [(Coding::Plain, 1), (Coding::Gzip, 0), (Coding::Gzip, 10), (Coding::Zstd, 0), (Coding::Zstd, 20)]
        {
            let error = Compression::at_level(coding, level).unwrap_err();
            assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "codec.level"), "{error}");
        }
        for coding in [Coding::Plain, Coding::Gzip, Coding::Zstd] {
            let usual = Compression::of(coding);
            assert_eq!(Compression::at_level(coding, usual.level()), Ok(usual));
        }
    }

    #[test]
    fn every_level_round_trips_at_its_block_length_and_fits_its_bound() {
        for compression in every_level() {
            let block = compression.block_bytes();
            // Incompressible data has to fit too.
            for plain in [noise(100_000), vec![0; block + 1], Vec::new()] {
                let stream = encode(compression, &plain, block);
                assert_eq!(
                    Coding::detect(&stream),
                    if plain.is_empty() { Coding::detect(&stream) } else { compression.coding() }
                );
                assert!(decoded(compression.coding(), &stream) == plain, "{compression:?}");
            }
        }
        for compression in [Compression::GZIP, Compression::ZSTD] {
            let plain = noise(compression.block_bytes() * 2 + 1);
            let stream = encode(compression, &plain, compression.block_bytes());
            assert!(stream.len() > plain.len());
            assert!(decoded(compression.coding(), &stream) == plain);
        }
    }

    #[test]
    fn no_block_becomes_less_than_a_two_hundredth_of_itself() {
        for compression in every_level() {
            let block = compression.block_bytes();
            for len in [block, block - 1, 4096, 400, 0] {
                let plain = vec![0; len];
                let stream = encode(compression, &[&plain[..], &plain].concat(), len.max(1));
                assert!(stream.len() >= 2 * (len / DENSEST), "{compression:?}: {}", stream.len());
                assert!(stream.len() <= len / 50 + 200 || compression == Compression::PLAIN);
                assert!(decoded(compression.coding(), &stream).len() == 2 * len);
                // Other decoders skip the filling too.
                let other: Vec<u8> = match compression.coding() {
                    Coding::Zstd => ::zstd::decode_all(&stream[..]).unwrap(),
                    Coding::Gzip => {
                        let mut out = Vec::new();
                        let mut decoder = flate2::read::GzDecoder::new(&stream[..]);
                        std::io::Read::read_to_end(&mut decoder, &mut out).unwrap();
                        out
                    }
                    Coding::Plain => stream,
                };
                assert!(other == [&plain[..], &plain].concat());
            }
        }
    }

    /// zlib-rs hashes the byte behind the end of a dictionary, which is left from earlier data. A
    /// word that continues with that byte at the end of the dictionary is then not found.
    #[test]
    fn a_block_becomes_the_same_whatever_was_compressed_before_it() {
        let word = b"XYZWabcdefghijkl";
        let before = [&noise(1000)[..], word, &noise(2000)[1000..], b"XYZ"].concat();
        let block = [b"QQ", &noise(3000)[2000..], word, &noise(4000)[3000..]].concat();
        for compression in every_level() {
            let mut out = vec![0; compression.bound(20_000)];
            let mut run = |before: &[u8], block: &[u8]| {
                let coded = compression.encode(before, block, &mut out).unwrap();
                (coded, out[..coded.len].to_vec())
            };
            let want = run(&before, &block);
            for earlier in [&[b'W'; 20_000][..], &noise(20_000), &[]] {
                run(&[], earlier);
                assert!(run(&before, &block) == want, "{compression:?}");
            }
        }
    }

    #[test]
    fn a_stream_in_one_call_is_that_of_its_blocks() {
        for compression in [Compression::PLAIN, Compression::GZIP, Compression::ZSTD] {
            let block = compression.block_bytes();
            for plain in [Vec::new(), noise(1000), noise(block), [noise(block), vec![7; block + 1]].concat()]
            {
                let stream = compression.whole(&plain).unwrap();
                assert!(stream == encode(compression, &plain, block), "{compression:?}, {}", plain.len());
            }
        }
    }

    #[test]
    fn too_little_room_is_an_error() {
        for compression in every_level() {
            let plain = noise(1000);
            let error = compression.encode(&[], &plain, &mut [0; 900]).unwrap_err();
            assert_eq!((error.kind(), error.reason()), (Kind::Internal, "codec.encoder"), "{compression:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_bytes_in_any_blocks_round_trip(
            plain in proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), any::<u8>()], 0..4000),
            block in 1_usize..2000,
        ) {
            for coding in [Coding::Plain, Coding::Gzip, Coding::Zstd] {
                let stream = encode(Compression::of(coding), &plain, block);
                prop_assert_eq!(&decoded(coding, &stream), &plain);
            }
        }
    }
}
