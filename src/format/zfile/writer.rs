//! Writes a ZFile: compresses blocks, and lays them out.
//!
//! Blocks do not depend on each other. So an [`Encoder`] compresses any of them, on any thread, and a [`Layout`] places
//! them in order. The bytes are the same for any number of encoders.
//!
//! Source: `docs/formats/overlaybd.md`, "ZFile"; the LZ4 block format; RFC 8878.

use lz4_flex::block::CompressTable;
use zstd::zstd_safe::{CCtx, CParameter, compress_bound};

use super::{
    ZfileError,
    block::{Algorithm, BlockSize, CHECKSUM_LEN, checksum},
    header::{Header, flag},
    index::BLOCKS_MAX,
};
use crate::format::crc32c;

/// zstd level of the upstream tools.
const ZSTD_LEVEL: i32 = 3;
/// Most stored bytes of a block that every reader takes.
const STORED_MAX: u32 = 65_536;

/// How contents are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Compression of the blocks.
    pub algorithm: Algorithm,
    /// Contents of a block. With blocks of 64 KiB, contents that cannot be compressed are an error: readers elsewhere
    /// take no block that is stored in more than that.
    pub block_size: BlockSize,
}

/// The choice of the upstream tools: a file system asks for a few KiB at a time, and LZ4 gives them in a microsecond.
impl Default for Options {
    fn default() -> Self {
        Self { algorithm: Algorithm::Lz4, block_size: BlockSize::MIN }
    }
}

impl Options {
    /// Most stored bytes of a block, its checksum included.
    fn stored_bound(self) -> usize {
        let len = self.block_bytes();
        let compressed = match self.algorithm {
            Algorithm::Lz4 => lz4_flex::block::get_maximum_output_size(len),
            Algorithm::Zstd => compress_bound(len),
        };
        compressed + CHECKSUM_LEN
    }

    fn block_bytes(self) -> usize {
        usize::try_from(self.block_size.bytes()).unwrap_or(usize::MAX)
    }

    /// Room that [`Encoder::encode`] takes for `len` bytes of contents.
    pub fn bound(self, len: usize) -> usize {
        len.div_ceil(self.block_bytes()) * self.stored_bound()
    }
}

/// Compresses blocks. It keeps its tables from block to block, and what it writes does not depend on them.
pub struct Encoder {
    options: Options,
    tables: Tables,
}

enum Tables {
    Lz4(CompressTable),
    Zstd(CCtx<'static>),
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Encoder {
    /// Errors: no memory.
    pub fn new(options: Options) -> Result<Self, ZfileError> {
        let tables = match options.algorithm {
            // The table with positions of 16 bits is half as large to clear, but takes no block of 64 KiB.
            Algorithm::Lz4 if options.block_size == BlockSize::MAX => Tables::Lz4(CompressTable::large()),
            Algorithm::Lz4 => Tables::Lz4(CompressTable::small()),
            Algorithm::Zstd => {
                let mut context = CCtx::try_create().ok_or(ZfileError::Memory)?;
                for parameter in [CParameter::CompressionLevel(ZSTD_LEVEL), CParameter::ChecksumFlag(false)] {
                    context.set_parameter(parameter).map_err(|_code| ZfileError::Encoder)?;
                }
                Tables::Zstd(context)
            }
        };
        Ok(Self { options, tables })
    }

    /// Compresses `contents`, block after block, to the start of `out`, which has the room that [`Options::bound`]
    /// asks for. Adds the stored length of each block to `lengths`, and returns their sum.
    ///
    /// Contents that end within a block end the file.
    pub fn encode(
        &mut self,
        contents: &[u8],
        out: &mut [u8],
        lengths: &mut Vec<u32>,
    ) -> Result<usize, ZfileError> {
        let mut rest = out;
        let mut stored_bytes = 0;
        for block in contents.chunks(self.options.block_bytes()) {
            let compressed = match &mut self.tables {
                Tables::Lz4(table) => lz4_flex::block::compress_into_with_table(block, rest, table)
                    .map_err(|_too_small| ZfileError::Encoder)?,
                Tables::Zstd(context) => {
                    context.compress2(rest, block).map_err(|_code| ZfileError::Encoder)?
                }
            };
            let (block, after) = rest.split_at_mut_checked(compressed).ok_or(ZfileError::Encoder)?;
            let (sum, after) = after.split_first_chunk_mut().ok_or(ZfileError::Encoder)?;
            *sum = checksum(block).to_le_bytes();
            let stored = compressed + CHECKSUM_LEN;
            lengths.push(u32::try_from(stored).unwrap_or(u32::MAX));
            stored_bytes += stored;
            rest = after;
        }
        Ok(stored_bytes)
    }
}

/// Places of blocks in a file that is being written. In memory it has the index, four bytes for each block.
#[derive(Debug)]
pub struct Layout {
    options: Options,
    index: Vec<u8>,
    blocks: u64,
    /// End of the last block in the file.
    end: u64,
    contents_bytes: u64,
}

/// Bytes after the blocks, and before them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Byte of the file at which the tail belongs.
    pub tail_offset: u64,
    /// Index and trailer.
    pub tail: Vec<u8>,
    /// Header, at the start of the file.
    pub header: [u8; Header::LEN],
}

impl Layout {
    /// A file without blocks.
    pub fn new(options: Options) -> Self {
        let end = Header::LEN as u64;
        Self { options, index: Vec::new(), blocks: 0, end, contents_bytes: 0 }
    }

    /// Adds the next blocks, which hold `contents_bytes`, by their stored lengths. Returns the byte of the file at
    /// which they belong.
    ///
    /// Errors: a block is longer than readers take, or there are too many.
    pub fn add(&mut self, lengths: &[u32], contents_bytes: u64) -> Result<u64, ZfileError> {
        let start = self.end;
        for stored in lengths {
            if *stored > STORED_MAX {
                let (block, stored, max) = (self.blocks, *stored, STORED_MAX);
                return Err(ZfileError::Incompressible { block, stored, max });
            }
            self.blocks += 1;
            self.end += u64::from(*stored);
            self.index.extend_from_slice(&stored.to_le_bytes());
        }
        if self.blocks > BLOCKS_MAX {
            return Err(ZfileError::TooManyBlocks { blocks: self.blocks, max: BLOCKS_MAX });
        }
        self.contents_bytes += contents_bytes;
        Ok(start)
    }

    /// Bytes of contents so far.
    pub fn contents_bytes(&self) -> u64 {
        self.contents_bytes
    }

    /// Ends the file.
    pub fn finish(self) -> Ends {
        let Self { options, index: mut tail, blocks, end, contents_bytes } = self;
        let trailer = Header {
            flags: flag::DATA | flag::SEALED | flag::DIGEST,
            index_offset: end,
            blocks,
            contents_bytes,
            index_crc: crc32c::raw(0, &tail),
            block_size: options.block_size,
            algorithm: options.algorithm,
            dictionary_bytes: 0,
            verify: true,
        };
        tail.extend_from_slice(&trailer.encode());
        let flags = flag::HEADER | flag::DATA | flag::FINAL_HEADER | flag::DIGEST;
        let header = Header { flags, ..trailer }.encode();
        Ends { tail_offset: end, tail, header }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Classify,
        format::{ReadAt, zfile::reader::Reader},
    };

    /// Compressible in places, and not at all in others.
    fn contents(len: usize) -> Vec<u8> {
        let mut state = 1_u32;
        (0..len)
            .map(|at| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let [.., high] = state.to_le_bytes();
                if at / 10_000 % 2 == 0 { high } else { b"layer "[at % 6] }
            })
            .collect()
    }

    fn write(options: Options, contents: &[u8], batch: usize) -> Result<Vec<u8>, ZfileError> {
        let mut encoder = Encoder::new(options)?;
        let mut layout = Layout::new(options);
        let mut file = vec![0; Header::LEN];
        for contents in contents.chunks(batch) {
            let (mut out, mut lengths) = (vec![0; options.bound(contents.len())], Vec::new());
            let stored = encoder.encode(contents, &mut out, &mut lengths)?;
            assert_eq!(layout.add(&lengths, contents.len() as u64)?, file.len() as u64);
            file.extend_from_slice(&out[..stored]);
        }
        let ends = layout.finish();
        assert_eq!(ends.tail_offset, file.len() as u64);
        file.extend_from_slice(&ends.tail);
        file[..Header::LEN].copy_from_slice(&ends.header);
        Ok(file)
    }

    #[test]
    fn contents_are_read_as_they_were_written_and_batches_do_not_matter() {
        for algorithm in [Algorithm::Lz4, Algorithm::Zstd] {
            for bits in 12..=15 {
                let options = Options { algorithm, block_size: BlockSize::new(1 << bits).unwrap() };
                for len in [0, 1, 12, 4095, 4096, 4097, 250_000] {
                    let contents = contents(len);
                    let file = write(options, &contents, 1 << 16).unwrap();
                    let reader = Reader::open(&file[..]).unwrap();
                    let mut found = vec![0; len];
                    reader.read_exact_at(0, &mut found).unwrap();
                    assert!(found == contents, "{options:?}, {len} bytes");
                    for batch in [1 << bits, 5 << bits] {
                        assert!(
                            write(options, &contents, batch).unwrap() == file,
                            "{options:?}, {len} bytes"
                        );
                    }
                    let flags = |at: usize| u64::from_le_bytes(*file[at + 32..].first_chunk().unwrap());
                    assert_eq!((flags(0), flags(file.len() - Header::LEN)), (0x1B, 0x16));
                }
            }
        }
    }

    /// The upstream reader sums the stored lengths of 64 KiB of contents, without the last, in 16 bits.
    #[test]
    fn readers_with_sums_of_16_bits_find_every_block() {
        let noise = contents(10_000).repeat(30);
        for algorithm in [Algorithm::Lz4, Algorithm::Zstd] {
            for bits in 12..=15 {
                let options = Options { algorithm, block_size: BlockSize::new(1 << bits).unwrap() };
                let group = 65_536 >> bits;
                let (mut out, mut lengths) = (vec![0; options.bound(noise.len())], Vec::new());
                Encoder::new(options).unwrap().encode(&noise, &mut out, &mut lengths).unwrap();
                for lengths in lengths.chunks(group) {
                    let sum: u32 = lengths[..lengths.len() - 1].iter().sum();
                    assert!(sum < 65_535, "{options:?}: {sum}");
                }
            }
        }
    }

    #[test]
    fn blocks_of_64_kib_that_grow_are_refused() {
        for algorithm in [Algorithm::Lz4, Algorithm::Zstd] {
            let options = Options { algorithm, block_size: BlockSize::MAX };
            let text = b"layer ".repeat(40_000);
            let file = write(options, &text, 1 << 16).unwrap();
            assert_eq!(Reader::open(&file[..]).unwrap().size_bytes(), 240_000);
            let noise: Vec<u8> = contents(1 << 18).chunks(10_000).step_by(2).flatten().copied().collect();
            let error = write(options, &[&text[..1 << 16], &noise].concat(), 1 << 17).unwrap_err();
            assert_eq!(error.reason(), "zfile.incompressible", "{error}");
            assert!(error.to_string().starts_with("block 1 "), "{error}");
        }
    }
}
