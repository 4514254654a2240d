//! Divides the data of a file into chunks by what is in it, so that two versions of a file have most of their chunks in
//! common.
//!
//! A chunk ends where a sum over the last 64 bytes has 16 bits set, which it has once in some 55 000 bytes of noise, and
//! around holes. Sum and holes are those of the containers tools: readers look for the chunks of a layer among those of
//! the layers that they have, whoever wrote those.
//!
//! Source: containers/storage `pkg/chunked/compressor/` (only where chunks end); the rolling sum of bup, `lib/bup/bupsplit.h`;
//! `docs/formats/stargz.md`, "What is written".

use super::writer::CHUNK_BYTES;

/// Zeros from which on a run of them is a hole, in bytes.
const HOLE_BYTES: usize = 1 << 10;
/// Least size of a chunk before another one, in bytes: a file made for that could have chunks of one byte.
const LEAST_BYTES: u64 = 1 << 10;
/// Most chunks of a file, nearly: entries of a table take 250 bytes each, and readers take 150 MiB. Only files of more than
/// 64 MiB have chunks that are longer for it.
const MOST_CHUNKS: u64 = 1 << 16;
static ZEROS: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];

/// A chunk of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut<'a> {
    /// Its data, at most [`CHUNK_BYTES`].
    pub bytes: &'a [u8],
    /// Whether it is a hole, or a part of one.
    pub is_hole: bool,
}

/// Divides one file.
#[derive(Debug)]
pub struct Cutter {
    sum: RollingSum,
    least: usize,
    /// Data of the chunk being gathered.
    chunk: Vec<u8>,
    /// Zeros behind it that may be a hole.
    zeros: u64,
}

impl Cutter {
    /// A cutter for a file of `size_bytes`. The buffer `space` is used again: [`Cutter::end`] returns it.
    pub fn new(size_bytes: u64, mut space: Vec<u8>) -> Self {
        let least = (size_bytes / MOST_CHUNKS).max(LEAST_BYTES);
        let least = usize::try_from(least).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        space.clear();
        Self { sum: RollingSum::default(), least, chunk: space, zeros: 0 }
    }

    /// Takes the next bytes of the file, and hands over the chunks that end in them.
    ///
    /// Errors: those of `take`.
    pub fn push<E>(
        &mut self,
        mut bytes: &[u8],
        take: &mut dyn FnMut(Cut<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(first) = bytes.first() {
            if *first == 0 {
                let zeros = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
                self.zeros = self.zeros.saturating_add(zeros as u64);
                bytes = bytes.get(zeros..).unwrap_or_default();
                continue;
            }
            self.settle(take)?;
            let (len, ends) = self.reach(bytes);
            let (data, rest) = bytes.split_at_checked(len).unwrap_or((bytes, &[]));
            self.chunk.extend_from_slice(data);
            bytes = rest;
            if ends {
                self.cut(take)?;
            }
        }
        Ok(())
    }

    /// Ends the file: hands over the rest, and returns the buffer.
    ///
    /// Errors: those of `take`.
    pub fn end<E>(mut self, take: &mut dyn FnMut(Cut<'_>) -> Result<(), E>) -> Result<Vec<u8>, E> {
        self.settle(take)?;
        self.cut(take)?;
        Ok(self.chunk)
    }

    /// How many of `bytes` belong to the chunk, up to the next zero, and whether it ends there.
    fn reach(&mut self, bytes: &[u8]) -> (usize, bool) {
        let len = self.chunk.len();
        let mut sum = self.sum;
        let mut reached = (bytes.len(), false);
        for (at, byte) in bytes.iter().enumerate() {
            if *byte == 0 {
                reached = (at, false);
                break;
            }
            if (sum.roll(*byte) && len + at + 1 >= self.least) || len + at + 1 >= CHUNK_BYTES {
                reached = (at + 1, true);
                break;
            }
        }
        self.sum = sum;
        reached
    }

    /// Decides about the zeros that came: they are a hole, or data.
    fn settle<E>(&mut self, take: &mut dyn FnMut(Cut<'_>) -> Result<(), E>) -> Result<(), E> {
        let zeros = std::mem::take(&mut self.zeros);
        // A chunk that is too short before a hole takes the first zeros of it.
        let short =
            if self.chunk.is_empty() { 0 } else { self.least.saturating_sub(self.chunk.len()) as u64 };
        let (data, hole) = match zeros.checked_sub(short) {
            Some(hole) if hole >= HOLE_BYTES.max(self.least) as u64 => (short, hole),
            _ => (zeros, 0),
        };
        for _ in 0..data {
            let ends = self.sum.roll(0) && self.chunk.len() + 1 >= self.least;
            self.chunk.push(0);
            if ends || self.chunk.len() >= CHUNK_BYTES {
                self.cut(take)?;
            }
        }
        if hole == 0 {
            return Ok(());
        }
        self.cut(take)?;
        self.sum.roll_zeros();
        let mut left = hole;
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            take(Cut { bytes: ZEROS.get(..step).unwrap_or_default(), is_hole: true })?;
            left -= step as u64;
        }
        Ok(())
    }

    /// Ends the chunk, if there is anything in it.
    fn cut<E>(&mut self, take: &mut dyn FnMut(Cut<'_>) -> Result<(), E>) -> Result<(), E> {
        if !self.chunk.is_empty() {
            take(Cut { bytes: &self.chunk, is_hole: false })?;
            self.chunk.clear();
        }
        Ok(())
    }
}

/// Bytes that the sum is over.
const WINDOW: usize = 64;
/// Added to every byte, so that zeros count.
const OFFSET: u32 = 31;

/// A sum over the last [`WINDOW`] bytes, at first zeros.
#[derive(Clone, Copy, Debug)]
struct RollingSum {
    /// Sum of the bytes.
    plain: u32,
    /// Sum of the bytes, the newest 64 times and the oldest once.
    weighted: u32,
    window: [u8; WINDOW],
    at: usize,
}

impl Default for RollingSum {
    fn default() -> Self {
        let window = 64;
        Self { plain: window * OFFSET, weighted: window * (window - 1) * OFFSET, window: [0; WINDOW], at: 0 }
    }
}

impl RollingSum {
    /// Adds a byte; whether a chunk may end behind it.
    #[inline]
    fn roll(&mut self, byte: u8) -> bool {
        let oldest = match self.window.get_mut(self.at) {
            Some(place) => u32::from(std::mem::replace(place, byte)),
            None => 0,
        };
        self.at = (self.at + 1) % WINDOW;
        self.plain = self.plain.wrapping_add(byte.into()).wrapping_sub(oldest);
        self.weighted = self.weighted.wrapping_add(self.plain).wrapping_sub(64 * (oldest + OFFSET));
        self.weighted & 0xffff == 0xffff
    }

    /// Adds at least as many zeros as the window holds. More of them change nothing.
    fn roll_zeros(&mut self) {
        for _ in 0..WINDOW {
            self.roll(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Sizes of the chunks of `data`, and whether each is a hole; checks that they are the data.
    fn cuts(data: &[u8], step: usize) -> Vec<(usize, bool)> {
        let (mut found, mut seen) = (Vec::new(), Vec::new());
        let mut take = |cut: Cut<'_>| -> Result<(), Infallible> {
            found.push((cut.bytes.len(), cut.is_hole));
            seen.extend_from_slice(cut.bytes);
            assert!(!cut.is_hole || cut.bytes.iter().all(|byte| *byte == 0));
            Ok(())
        };
        let mut cutter = Cutter::new(data.len() as u64, Vec::new());
        for piece in data.chunks(step) {
            cutter.push(piece, &mut take).unwrap();
        }
        cutter.end(&mut take).unwrap();
        assert!(seen == data, "the chunks are not the file");
        found
    }

    fn noise(len: usize, mut seed: u64) -> Vec<u8> {
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56).to_le_bytes()[0]
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn chunks_do_not_depend_on_the_pieces_in_which_a_file_comes() {
        let data =
            [noise(300_000, 1), vec![0; 5000], noise(3, 2), vec![0; 100_000], noise(70_000, 3)].concat();
        let want = cuts(&data, data.len());
        assert!(want.len() > 5, "{want:?}");
        for step in [1, 63, 4096, 65_537] {
            assert_eq!(cuts(&data, step), want, "pieces of {step} bytes");
        }
    }

    #[test]
    fn a_change_in_a_file_changes_the_chunks_around_it_alone() {
        let before = noise(4 << 20, 4);
        let after = [&before[..1_000_000], b"inserted", &before[1_000_000..]].concat();
        let (old, new) = (cuts(&before, 9999), cuts(&after, 9999));
        assert!(old.len() > 30 && old.len() < 200, "{} chunks", old.len());
        let kept = new.iter().filter(|cut| old.contains(cut)).count();
        assert!(kept + 3 >= new.len(), "{kept} of {}", new.len());
    }

    #[test]
    fn runs_of_zeros_are_holes_from_a_kibibyte_on() {
        let part = |len| vec![b'x'; len];
        let file = |zeros: usize| [part(2000), vec![0; zeros], part(2000)].concat();
        assert_eq!(cuts(&file(1023), 777), [(5023, false)]);
        assert_eq!(cuts(&file(1024), 777), [(2000, false), (1024, true), (2000, false)]);
        assert_eq!(cuts(&[0; 1023], 100), [(1023, false)]);
        assert_eq!(cuts(&[0; 1024], 100), [(1024, true)]);
        assert_eq!(cuts(&[vec![0; 5000], part(1)].concat(), 100), [(5000, true), (1, false)]);
        // A byte between two holes takes zeros, until it is as long as a chunk has to be.
        let lonely = [vec![0; 5000], part(1), vec![0; 5000]].concat();
        assert_eq!(cuts(&lonely, 100), [(5000, true), (1024, false), (3977, true)]);
        assert_eq!(cuts(&[], 1), []);
    }

    #[test]
    fn no_chunk_is_longer_than_four_mebibytes() {
        let most = CHUNK_BYTES;
        assert_eq!(cuts(&vec![b'x'; 2 * most + 5], 99_999), [(most, false), (most, false), (5, false)]);
        assert_eq!(cuts(&vec![0; 2 * most + 5], 99_999), [(most, true), (most, true), (5, true)]);
    }

    #[test]
    fn the_chunks_of_a_large_file_are_longer_so_that_there_are_no_more_of_them() {
        let data = noise(2_000_000, 5);
        for (size, least, most) in [(1_u64 << 26, 10, 100), (1 << 34, 1, 8), (1 << 40, 1, 1)] {
            let mut cutter = Cutter::new(size, Vec::new());
            let mut count = 0;
            let mut take = |_: Cut<'_>| -> Result<(), Infallible> {
                count += 1;
                Ok(())
            };
            cutter.push(&data, &mut take).unwrap();
            cutter.end(&mut take).unwrap();
            assert!((least..=most).contains(&count), "{count} chunks in a file of {size} bytes");
        }
    }

    /// Data in which every byte could end a chunk, if that had no least size.
    #[test]
    fn a_file_cannot_have_a_chunk_for_each_byte() {
        let data: Vec<u8> = (0..200_000_u32).flat_map(|n| [n.to_le_bytes()[0], 0xff]).collect();
        assert!(cuts(&data, 5000).len() <= data.len() / 1024 + 1);
        let holes: Vec<u8> = (0..400_000).map(|at| u8::from(at % 1100 == 0)).collect();
        assert!(cuts(&holes, 5000).len() <= 2 * (holes.len() / 1024) + 1);
    }
}
