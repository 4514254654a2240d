//! Where a sparse file has data, in bounded memory.

use crate::{limits::SPARSE_REGIONS, tree::Extent};

/// Holes of fewer bytes count as data from the start.
// Describing a smaller one takes about as much room as its zeros: tar counts in records of 512 bytes.
const SMALLEST_HOLE: u64 = 512;

/// Gathers the extents of one file as they are found.
///
/// Extents that touch become one. In a file with more than [`SPARSE_REGIONS`] extents the smallest holes
/// become data until few enough are left, so that every file can be described.
///
/// ```
/// use plywood::{tree::Extent, view::Extents};
/// let mut extents = Extents::new(1 << 20);
/// extents.push(4096, 4096);
/// extents.push(8192, 100);
/// assert_eq!(extents.finish(), Some(vec![Extent { offset: 4096, len: 4196 }]));
/// assert_eq!(Extents::new(0).finish(), None);
/// ```
#[derive(Debug)]
pub struct Extents {
    size_bytes: u64,
    found: Vec<Extent>,
    /// Holes of fewer bytes count as data.
    smallest_hole: u64,
    limit: usize,
}

impl Extents {
    /// No extents yet, of a file of `size_bytes`.
    pub fn new(size_bytes: u64) -> Self {
        Self { size_bytes, found: Vec::new(), smallest_hole: SMALLEST_HOLE, limit: SPARSE_REGIONS }
    }

    /// Adds `len` bytes of data at `offset`. Calls come in ascending order; data behind the end of the file
    /// is ignored.
    pub fn push(&mut self, offset: u64, len: u64) {
        let len = len.min(self.size_bytes.saturating_sub(offset));
        if len == 0 {
            return;
        }
        join(&mut self.found, Extent { offset, len }, self.smallest_hole);
        while self.found.len() > self.limit {
            self.smallest_hole = self.smallest_hole.saturating_mul(2);
            let mut fewer = Vec::new();
            for extent in std::mem::take(&mut self.found) {
                join(&mut fewer, extent, self.smallest_hole);
            }
            self.found = fewer;
        }
    }

    /// The extents; `None` for a file that is data from beginning to end.
    pub fn finish(self) -> Option<Vec<Extent>> {
        let whole = match self.found.as_slice() {
            [] => self.size_bytes == 0,
            [only] => only.offset == 0 && only.len == self.size_bytes,
            _ => false,
        };
        if whole { None } else { Some(self.found) }
    }
}

/// Adds `next`, to the last extent when the hole between them is small.
fn join(extents: &mut Vec<Extent>, next: Extent, smallest_hole: u64) {
    match extents.last_mut() {
        Some(last) if next.offset.saturating_sub(last.offset + last.len) < smallest_hole => {
            last.len = next.offset.saturating_add(next.len).saturating_sub(last.offset);
        }
        _ => extents.push(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(size_bytes: u64, pushes: &[(u64, u64)]) -> Option<Vec<(u64, u64)>> {
        let mut extents = Extents::new(size_bytes);
        pushes.iter().for_each(|(offset, len)| extents.push(*offset, *len));
        let found = extents.finish()?;
        Some(found.into_iter().map(|extent| (extent.offset, extent.len)).collect())
    }

    #[test]
    fn a_file_without_holes_has_no_list() {
        assert_eq!(gathered(0, &[]), None);
        assert_eq!(gathered(10, &[(0, 10)]), None);
        assert_eq!(gathered(10, &[(0, 4), (4, 6)]), None);
        assert_eq!(gathered(10, &[(0, 4096)]), None);
    }

    #[test]
    fn a_file_without_data_has_an_empty_list() {
        assert_eq!(gathered(10, &[]), Some(vec![]));
        assert_eq!(gathered(10, &[(10, 5), (3, 0)]), Some(vec![]));
        assert_eq!(gathered(u64::MAX >> 1, &[]), Some(vec![]));
    }

    #[test]
    fn holes_count_from_512_bytes_on() {
        assert_eq!(gathered(4000, &[(0, 100), (611, 1)]), Some(vec![(0, 612)]));
        assert_eq!(gathered(4000, &[(0, 100), (612, 1)]), Some(vec![(0, 100), (612, 1)]));
    }

    #[test]
    fn of_too_many_holes_the_smallest_are_filled() {
        let mut extents = Extents { limit: 4, ..Extents::new(1 << 40) };
        // Holes of 1 KiB, and a large one in the middle.
        for n in 0..64_u64 {
            let far = if n < 32 { 0 } else { 1 << 30 };
            extents.push(far + n * 2048, 1024);
        }
        let found = extents.finish().unwrap();
        let want = [(0, 31 * 2048 + 1024), ((1 << 30) + 32 * 2048, 31 * 2048 + 1024)];
        assert_eq!(found, want.map(|(offset, len)| Extent { offset, len }));
    }
}
