//! Files with holes: chooses the chunk size that stores them best, and maps their data.
//!
//! A chunk that holds any data is stored whole; a chunk without data is a hole. Small chunks store
//! fewer zeros, large chunks need a shorter array. The size with the smallest sum wins. Readers
//! since Linux 5.15 take every size.
//!
//! Source: Linux `fs/erofs/erofs_fs.h`, `struct erofs_inode_chunk_info`; `fs/erofs/data.c`.

use crate::{
    format::erofs::{
        Block, BlockBits,
        chunk::{BlockMapEntry, ChunkFormat},
    },
    limits,
    tree::Extent,
};

/// Longest array considered, in bytes: longer ones exceed the limit for a whole image.
const LONGEST_ARRAY: u64 = limits::SPARSE_OVERHEAD_BYTES;

/// Chunk layout of a sparse file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunks {
    bits: BlockBits,
    /// Base-2 logarithm of the chunk size in bytes.
    chunk_bits: u32,
    size_bytes: u64,
    /// Runs of chunks with data, ascending and not adjacent.
    runs: Vec<Run>,
}

/// Run of consecutive chunks with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// Number of its first chunk.
    first: u64,
    chunks: u64,
    /// Blocks of data before the run.
    blocks_before: u64,
}

/// Calls `each` for every run of chunks of 2^`chunk_bits` bytes that hold data, with the number of
/// the first chunk and of the one after the last.
fn stretches(extents: &[Extent], chunk_bits: u32, mut each: impl FnMut(u64, u64)) {
    let mut open: Option<(u64, u64)> = None;
    for extent in extents.iter().filter(|extent| extent.len > 0) {
        let first = extent.offset >> chunk_bits;
        let end = ((extent.offset + extent.len - 1) >> chunk_bits) + 1;
        open = match open {
            Some((start, open_end)) if first <= open_end => Some((start, open_end.max(end))),
            Some((start, open_end)) => {
                each(start, open_end);
                Some((first, end))
            }
            None => Some((first, end)),
        };
    }
    if let Some((start, end)) = open {
        each(start, end);
    }
}

impl Chunks {
    /// Chooses the chunk size for a file of `size_bytes` with data at `extents`, which ascend and
    /// lie within the size. `None` when no hole is worth an array.
    pub fn plan(bits: BlockBits, size_bytes: u64, extents: &[Extent]) -> Option<Self> {
        let all = bits.blocks_for(size_bytes);
        let dense = all << bits.get();
        let mut best: Option<(u64, u32)> = None;
        for log_blocks in 0..32 {
            let chunk_bits = u32::from(bits.get()) + log_blocks;
            let array = (((size_bytes - 1) >> chunk_bits) + 1).saturating_mul(BlockMapEntry::LEN as u64);
            let mut blocks = 0_u64;
            stretches(extents, chunk_bits, |first, end| {
                blocks += (end << log_blocks).min(all) - (first << log_blocks);
            });
            let cost = (blocks << bits.get()).saturating_add(array);
            if array <= LONGEST_ARRAY && best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, chunk_bits));
            }
            if first_chunk_holds_all(size_bytes, chunk_bits) {
                break;
            }
        }
        let (cost, chunk_bits) = best?;
        if cost >= dense {
            return None;
        }
        let mut runs = Vec::new();
        let mut blocks_before = 0;
        let log_blocks = chunk_bits - u32::from(bits.get());
        stretches(extents, chunk_bits, |first, end| {
            runs.push(Run { first, chunks: end - first, blocks_before });
            blocks_before += (end << log_blocks).min(all) - (first << log_blocks);
        });
        Some(Self { bits, chunk_bits, size_bytes, runs })
    }

    fn log_blocks(&self) -> u32 {
        self.chunk_bits - u32::from(self.bits.get())
    }

    /// Blocks that the data takes.
    pub fn blocks(&self) -> u64 {
        let all = self.bits.blocks_for(self.size_bytes);
        self.runs.last().map_or(0, |run| {
            let (first, end) =
                (run.first << self.log_blocks(), (run.first + run.chunks) << self.log_blocks());
            run.blocks_before + end.min(all) - first
        })
    }

    /// Bytes of data blocks and array. Inode and attributes are not counted.
    pub fn stored_bytes(&self) -> u64 {
        (self.blocks() << self.bits.get()) + self.array_len()
    }

    /// Chunk format for the inode.
    pub fn format(&self) -> Option<ChunkFormat> {
        ChunkFormat::new(u8::try_from(self.log_blocks()).ok()?, false)
    }

    /// Length of the chunk array, in bytes.
    pub fn array_len(&self) -> u64 {
        (((self.size_bytes - 1) >> self.chunk_bits) + 1) * BlockMapEntry::LEN as u64
    }

    /// Encodes the records of the array, with the data from block `start` on.
    pub fn array(&self, start: u32) -> impl Iterator<Item = [u8; BlockMapEntry::LEN]> {
        let chunks = self.array_len() / BlockMapEntry::LEN as u64;
        let mut runs = self.runs.iter().peekable();
        (0..chunks).map(move |chunk| {
            while runs.peek().is_some_and(|run| chunk >= run.first + run.chunks) {
                runs.next();
            }
            let run = runs.peek().filter(|run| chunk >= run.first);
            let start = run.map(|run| {
                Block(u64::from(start) + run.blocks_before + ((chunk - run.first) << self.log_blocks()))
            });
            BlockMapEntry { start }.encode()
        })
    }

    /// Maps byte `offset` of the file to the byte of its data, with the number of bytes that are
    /// consecutive from there; `None` in a hole.
    pub fn locate(&self, offset: u64) -> Option<(u64, u64)> {
        let chunk = offset >> self.chunk_bits;
        let run = self.runs.get(self.runs.partition_point(|run| run.first <= chunk).checked_sub(1)?)?;
        let start = run.first << self.chunk_bits;
        // The last chunk of a file near 2^63 bytes may end beyond 2^63, but never beyond 2^64.
        let len = (run.chunks << self.chunk_bits).checked_sub(offset - start).filter(|len| *len > 0)?;
        Some(((run.blocks_before << self.bits.get()) + (offset - start), len))
    }
}

fn first_chunk_holds_all(size_bytes: u64, chunk_bits: u32) -> bool {
    (size_bytes - 1) >> chunk_bits == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extent(offset: u64, len: u64) -> Extent {
        Extent { offset, len }
    }

    fn plan(size_bytes: u64, extents: &[Extent]) -> Option<Chunks> {
        Chunks::plan(BlockBits::DEFAULT, size_bytes, extents)
    }

    #[test]
    fn a_file_of_one_hole_is_one_record() {
        for size in [4097, 1 << 20, (1 << 43) - 1] {
            let chunks = plan(size, &[]).unwrap();
            assert_eq!((chunks.blocks(), chunks.array_len()), (0, 4), "{size}");
            assert_eq!(chunks.array(9).collect::<Vec<_>>(), [[0xff; 4]]);
        }
        let largest = plan(i64::MAX as u64, &[]).unwrap();
        assert_eq!((largest.blocks(), largest.array_len()), (0, 4 << 20), "a chunk is at most 2^43 bytes");
    }

    #[test]
    fn data_everywhere_is_no_sparse_file() {
        assert_eq!(plan(1 << 20, &[extent(0, 1 << 20)]), None);
        assert_eq!(plan(8192, &[extent(4000, 200)]), None, "both blocks have data");
        assert_eq!(plan(1, &[extent(0, 1)]), None);
    }

    #[test]
    fn a_few_bytes_in_a_terabyte_take_little() {
        let end = 1 << 40;
        let chunks = plan(end, &[extent(0, 1), extent(end - 1, 1)]).unwrap();
        assert!(chunks.stored_bytes() < 8 << 20, "{}", chunks.stored_bytes());
        assert_eq!(chunks.locate(0), Some((0, 1 << chunks.chunk_bits)));
        assert_eq!(chunks.locate(end / 2), None);
    }

    proptest! {
        #[test]
        fn every_byte_of_data_has_a_place_of_its_own(
            gaps in prop::collection::vec((0_u64..50_000, 1_u64..9000), 1..20),
            end in 0_u64..50_000,
        ) {
            let mut at = 0;
            let extents: Vec<Extent> = gaps.into_iter().map(|(gap, len)| {
                let next = extent(at + gap, len);
                at = next.offset + len;
                next
            }).collect();
            let size = at + end;
            if let Some(chunks) = plan(size, &extents) {
                let blocks: Vec<u32> = chunks.array(100).map(u32::from_le_bytes).collect();
                let mut last = None;
                for offset in extents.iter().flat_map(|e| e.offset..e.offset + e.len) {
                    let (place, together) = chunks.locate(offset).unwrap();
                    prop_assert!(together > 0 && place >> 12 < chunks.blocks());
                    prop_assert!(last.is_none_or(|last| place > last));
                    last = Some(place);
                    // The array gives the same block.
                    let start = blocks[usize::try_from(offset >> chunks.chunk_bits).unwrap()];
                    prop_assert!(start != u32::MAX);
                    let within = offset & ((1 << chunks.chunk_bits) - 1);
                    prop_assert_eq!(place, (u64::from(start - 100) << 12) + within);
                }
            }
        }
    }
}
