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
    /// Data, at most [`CHUNK_BYTES`].
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
        while !bytes.is_empty() {
            let zeros = leading_zeros(bytes);
            self.zeros = self.zeros.saturating_add(zeros as u64);
            let (_, rest) = bytes.split_at_checked(zeros).unwrap_or((bytes, &[]));
            if rest.is_empty() {
                break;
            }
            self.settle(take)?;
            let (data, rest) = rest.split_at_checked(start_of_zeros(rest)).unwrap_or((rest, &[]));
            self.data(data, take)?;
            bytes = rest;
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

    /// Adds data to the chunk, and hands over the chunks that end in it.
    fn data<E>(&mut self, mut bytes: &[u8], take: &mut dyn FnMut(Cut<'_>) -> Result<(), E>) -> Result<(), E> {
        while !bytes.is_empty() {
            let room = CHUNK_BYTES.saturating_sub(self.chunk.len());
            let fitting = bytes.get(..room.min(bytes.len())).unwrap_or_default();
            let least = self.least.saturating_sub(self.chunk.len());
            let end = self.sum.roll(fitting, least);
            let (data, rest) = bytes.split_at_checked(end.unwrap_or(fitting.len())).unwrap_or((bytes, &[]));
            self.chunk.extend_from_slice(data);
            bytes = rest;
            if end.is_some() || self.chunk.len() >= CHUNK_BYTES {
                self.cut(take)?;
            }
        }
        Ok(())
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
        pieces_of_zeros(data, &mut |zeros| self.data(zeros, take))?;
        if hole == 0 {
            return Ok(());
        }
        self.cut(take)?;
        // There are as many zeros as the sum is over.
        self.sum = RollingSum::default();
        pieces_of_zeros(hole, &mut |bytes| take(Cut { bytes, is_hole: true }))
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

/// Hands over `left` zeros, in pieces of a chunk at most.
fn pieces_of_zeros<E>(mut left: u64, take: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    while left > 0 {
        let step = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        take(ZEROS.get(..step).unwrap_or_default())?;
        left -= step as u64;
    }
    Ok(())
}

fn leading_zeros(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len())
}

fn trailing_zeros(bytes: &[u8]) -> usize {
    bytes.iter().rev().position(|byte| *byte != 0).unwrap_or(bytes.len())
}

/// Where the first zeros begin that are a hole, or may be one with what comes behind `bytes`.
fn start_of_zeros(bytes: &[u8]) -> usize {
    // A hole has one of any bytes that are so far apart.
    let mut probe = HOLE_BYTES - 1;
    while let Some((before, from)) = bytes.split_at_checked(probe).filter(|(_, from)| !from.is_empty()) {
        let behind = leading_zeros(from);
        if behind > 0 {
            let zeros = behind + trailing_zeros(before);
            if zeros >= HOLE_BYTES || behind == from.len() {
                return probe + behind - zeros;
            }
        }
        probe += behind + HOLE_BYTES;
    }
    bytes.len() - trailing_zeros(bytes)
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
    /// Sum of the bytes, the oldest 64 times and the newest once.
    weighted: u32,
    /// The bytes, the oldest first.
    window: [u8; WINDOW],
}

impl Default for RollingSum {
    fn default() -> Self {
        Self { plain: 64 * OFFSET, weighted: 64 * 63 * OFFSET, window: [0; WINDOW] }
    }
}

impl RollingSum {
    /// Adds bytes up to the first behind which a chunk may end, and that is not among the first `least - 1`; their number.
    /// `None`: all were added, and there is none.
    fn roll(&mut self, bytes: &[u8], least: usize) -> Option<usize> {
        let (mut plain, mut weighted) = (self.plain, self.weighted);
        let mut may_end = |(oldest, newest): (&u8, &u8)| {
            let oldest = u32::from(*oldest);
            plain = plain.wrapping_add(u32::from(*newest)).wrapping_sub(oldest);
            weighted = weighted.wrapping_add(plain).wrapping_sub(64 * (oldest + OFFSET));
            weighted & 0xffff == 0xffff
        };
        let mut end = None;
        let mut searched = 0;
        while end.is_none() && searched < bytes.len() {
            // The bytes that leave the window are those in it, and behind them those that came into it.
            let rest = bytes.get(searched..).unwrap_or_default();
            let found = match searched.checked_sub(WINDOW) {
                None => {
                    let leaving = self.window.get(searched..).unwrap_or_default();
                    let pairs = leaving.len().min(rest.len());
                    let found = leaving.iter().zip(rest).position(&mut may_end);
                    found.ok_or(pairs)
                }
                Some(leaving) => {
                    let leaving = bytes.get(leaving..).unwrap_or_default();
                    leaving.iter().zip(rest).position(&mut may_end).ok_or(rest.len())
                }
            };
            match found {
                Ok(at) => {
                    searched += at + 1;
                    end = Some(searched).filter(|end| *end >= least);
                }
                Err(all) => searched += all,
            }
        }
        (self.plain, self.weighted) = (plain, weighted);
        let added = bytes.get(..searched).unwrap_or_default();
        match added.last_chunk() {
            Some(window) => self.window = *window,
            None => {
                self.window.rotate_left(added.len());
                let places = self.window.iter_mut().rev().zip(added.iter().rev());
                places.for_each(|(place, byte)| *place = *byte);
            }
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn cuts(data: &[u8], step: usize) -> Vec<(usize, bool)> {
        cuts_of(data.len() as u64, data, step)
    }

    /// Sizes of the chunks of `data`, in a file of `size` bytes, and whether each is a hole; checks that they are the data.
    fn cuts_of(size: u64, data: &[u8], step: usize) -> Vec<(usize, bool)> {
        let (mut found, mut seen) = (Vec::new(), Vec::new());
        let mut take = |cut: Cut<'_>| -> Result<(), Infallible> {
            found.push((cut.bytes.len(), cut.is_hole));
            seen.extend_from_slice(cut.bytes);
            assert!(!cut.is_hole || cut.bytes.iter().all(|byte| *byte == 0));
            Ok(())
        };
        let mut cutter = Cutter::new(size, Vec::new());
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
            let count = cuts_of(size, &data, 50_000).len();
            assert!((least..=most).contains(&count), "{count} chunks in a file of {size} bytes");
        }
        // Where the least size is the largest as well, runs of zeros are longer than it that are no holes.
        let most = CHUNK_BYTES;
        let data = [vec![b'x'; 5], vec![0; 2 * most - 6], vec![b'x'; 5]].concat();
        assert_eq!(cuts_of(1 << 40, &data, 777_777), [(most, false), (most, false), (4, false)]);
        let data = [vec![b'x'; 5], vec![0; 2 * most], vec![b'x'; 5]].concat();
        assert_eq!(cuts_of(1 << 40, &data, 777_777), [(most, false), (most, true), (5, true), (5, false)]);
    }

    /// The sum, the holes and the least size as they are defined, byte by byte.
    #[test]
    fn chunks_end_where_the_definition_says() {
        let mut data = Vec::new();
        for round in 0..60 {
            data.extend(noise(round * 997 % 30_000, round as u64));
            data.extend(vec![0; [0, 1, 63, 64, 65, 1000, 1023, 1024, 1025, 5000][round % 10]]);
        }
        let (mut want, mut start) = (Vec::new(), 0);
        let mut window = std::collections::VecDeque::from([0_u8; 64]);
        let mut at = 0;
        while at < data.len() {
            let zeros = data[at..].iter().take_while(|byte| **byte == 0).count();
            let short = if at == start { 0 } else { 1024_usize.saturating_sub(at - start) };
            let is_run = zeros > 0 && (at == 0 || data[at - 1] != 0);
            if is_run && zeros >= short + 1024 {
                if short == 0 {
                    if at > start {
                        want.push((at - start, false));
                    }
                } else {
                    want.push((at - start + short, false));
                }
                want.push((zeros - short, true));
                at += zeros;
                start = at;
                window = std::collections::VecDeque::from([0; 64]);
                continue;
            }
            window.pop_front();
            window.push_back(data[at]);
            at += 1;
            let weigh = |(age, byte): (u32, &u8)| (64 - age) * (u32::from(*byte) + 31);
            let sum: u32 = (0..).zip(&window).map(weigh).sum();
            // For zeros the sum is 64 * 63 * 31 by definition, not 64 * 65 / 2 * 31.
            let sum = sum + 64 * 63 * 31 - 64 * 65 / 2 * 31;
            if sum & 0xffff == 0xffff && at - start >= 1024 {
                want.push((at - start, false));
                start = at;
            }
        }
        if start < data.len() {
            want.push((data.len() - start, false));
        }
        assert!(want.len() > 30, "{}", want.len());
        assert_eq!(cuts(&data, 4096), want);
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
