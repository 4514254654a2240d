//! Sets of stretches in use, with a test whether any place is in use twice.
//!
//! Described in `docs/formats/erofs.md`, "Checking".

/// Half-open stretches in the order they were added. A stretch that continues the one before is
/// joined to it, so files laid out in order need little memory.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    list: Vec<(u64, u64)>,
}

impl Ranges {
    /// Adds `start..end`, unless it is empty.
    pub(super) fn add(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        match self.list.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => self.list.push((start, end)),
        }
    }

    /// Extends the stretch added last to `until`, if it ends at `end`.
    pub(super) fn extend_last(&mut self, end: u64, until: u64) {
        if let Some(last) = self.list.last_mut()
            && last.1 == end
        {
            last.1 = until;
        }
    }

    /// Memory held by the list, in bytes.
    pub(super) fn memory_bytes(&self) -> u64 {
        (self.list.capacity() * size_of::<(u64, u64)>()) as u64
    }

    /// Sorts the stretches and returns the first place that two of them cover.
    pub(super) fn sort(&mut self) -> Option<u64> {
        self.list.sort_unstable();
        self.list.windows(2).find_map(|pair| match pair {
            [(_, end), (start, _)] if start < end => Some(*start),
            _ => None,
        })
    }

    /// Number of places that several of the sorted stretches cover.
    pub(super) fn shared(&self) -> u64 {
        let (mut covered, mut shared_until, mut shared) = (0_u64, 0_u64, 0_u64);
        for (start, end) in &self.list {
            let common = (*end).min(covered);
            let from = (*start).max(shared_until);
            if from < common {
                shared += common - from;
                shared_until = common;
            }
            covered = covered.max(*end);
        }
        shared
    }

    /// First place that is both in this set and in `other`; both are sorted.
    pub(super) fn meets(&self, other: &Self) -> Option<u64> {
        let (mut own, mut others) = (self.list.iter().peekable(), other.list.iter().peekable());
        while let (Some(a), Some(b)) = (own.peek(), others.peek()) {
            if a.0.max(b.0) < a.1.min(b.1) {
                return Some(a.0.max(b.0));
            }
            // Stretches of one set may overlap, but the one that ends first cannot meet a later
            // one.
            if a.1 <= b.1 {
                own.next();
            } else {
                others.next();
            }
        }
        None
    }

    /// Converts to units of 2^`bits` bytes, each unit once. The stretches are sorted.
    pub(super) fn in_units(&self, bits: u8) -> Self {
        let mut units = Self::default();
        for (start, end) in &self.list {
            let (start, end) = (start >> bits, ((end - 1) >> bits) + 1);
            let start = units.list.last().map_or(start, |last| start.max(last.1));
            units.add(start, end);
        }
        units
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(list: &[(u64, u64)]) -> Ranges {
        let mut ranges = Ranges::default();
        for (start, end) in list {
            ranges.add(*start, *end);
        }
        ranges
    }

    #[test]
    fn neighbours_become_one() {
        assert_eq!(ranges(&[(1, 2), (2, 5), (7, 7), (5, 6)]).list, [(1, 6)]);
    }

    #[test]
    fn units_are_counted_once() {
        let mut bytes = ranges(&[(0, 10), (500, 513), (600, 700), (1024, 1025)]);
        assert_eq!(bytes.sort(), None);
        assert_eq!(bytes.in_units(9).list, [(0, 3)]);
    }

    proptest! {
        #[test]
        fn overlaps_are_those_of_a_bitmap(
            a in prop::collection::vec((0_u64..60, 0_u64..6), 0..12),
            b in prop::collection::vec((0_u64..60, 0_u64..6), 0..12),
        ) {
            let spans = |list: &[(u64, u64)]| -> Vec<(u64, u64)> {
                list.iter().map(|(start, len)| (*start, start + len)).collect()
            };
            let counts = |list: &[(u64, u64)]| -> Vec<u64> {
                (0..70)
                    .map(|at| list.iter().filter(|(start, end)| (start..end).contains(&&at)).count() as u64)
                    .collect()
            };
            let (a, b) = (spans(&a), spans(&b));
            let (count_a, count_b) = (counts(&a), counts(&b));
            let (mut ranges_a, mut ranges_b) = (ranges(&a), ranges(&b));
            let twice = count_a.iter().position(|count| *count > 1);
            prop_assert_eq!(ranges_a.sort(), twice.map(|at| at as u64));
            ranges_b.sort();
            prop_assert_eq!(ranges_a.shared(), count_a.iter().filter(|count| **count > 1).count() as u64);
            let meet = (0..70).find(|at| count_a[*at] > 0 && count_b[*at] > 0);
            prop_assert_eq!(ranges_a.meets(&ranges_b).is_some(), meet.is_some());
        }
    }
}
