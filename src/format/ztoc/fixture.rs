//! zTOCs put together by hand for tests, right or wrong, and the right one of a stream.
//!
//! Described in `docs/formats/ztoc.md`.

use crate::codec::{Decoder as _, Gzip};

/// A checkpoint: its fields and its window.
#[derive(Clone)]
pub(crate) struct Point {
    pub(crate) byte: u64,
    pub(crate) plain: u64,
    pub(crate) bits: u8,
    pub(crate) window: Vec<u8>,
}

/// The file of a zTOC.
pub(crate) fn file(blob_bytes: u64, points: &[Point]) -> Vec<u8> {
    let count = u32::try_from(points.len()).unwrap();
    let mut checkpoints = [&count.to_le_bytes()[..], &4096_u64.to_le_bytes()].concat();
    for Point { byte, plain, bits, window } in points {
        checkpoints.extend([&byte.to_le_bytes()[..], &plain.to_le_bytes(), &[*bits], window].concat());
    }
    let words = |words: &[u16]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let long = |number: u32| number.to_le_bytes().to_vec();
    [
        long(20),
        // The root: two sizes and a table.
        words(&[16, 24, 0, 0, 4, 12, 0, 20]),
        long(16),
        blob_bytes.to_le_bytes().to_vec(),
        0_u64.to_le_bytes().to_vec(),
        long(16),
        // The table of the compression: the last span and the checkpoints.
        words(&[12, 12, 0, 4, 0, 8]),
        long(12),
        long(count.wrapping_sub(1)),
        long(4),
        long(u32::try_from(checkpoints.len()).unwrap()),
        checkpoints,
    ]
    .concat()
}

/// Checkpoints of a gzip blob, the first one and then those that are more than `span` bytes apart.
pub(crate) fn points(blob: &[u8], span: usize) -> Vec<Point> {
    let (mut gzip, mut plain, mut input) = (Gzip::new(), Vec::new(), blob);
    gzip.list_blocks();
    let (mut points, mut output): (Vec<Point>, _) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        let before = plain.len();
        let filled = gzip.decode(&mut input, &mut output).unwrap();
        plain.extend_from_slice(&output[..filled]);
        for block in gzip.blocks() {
            let at = before + block.at;
            if points.last().is_some_and(|last| at as u64 - last.plain <= span as u64) {
                continue;
            }
            let window =
                [vec![0; 32_768_usize.saturating_sub(at)], plain[at.saturating_sub(32_768)..at].to_vec()]
                    .concat();
            let bits = u8::try_from(block.bit.div_ceil(8) * 8 - block.bit).unwrap();
            points.push(Point { byte: block.bit.div_ceil(8), plain: at as u64, bits, window });
        }
        if filled == 0 && input.is_empty() {
            return points;
        }
    }
}
