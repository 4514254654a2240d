//! Which stretches of an image are in use, and whether any is in use twice.
//!
//! Described in `docs/formats/erofs.md`, "Checking".

/// Half-open stretches, in the order they were found; neighbours that are found one after the other
/// become one, so that files laid out in order cost next to nothing.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    list: Vec<(u64, u64)>,
}

impl Ranges {
    /// Adds `start..end`; an empty stretch is none.
    pub(super) fn add(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        match self.list.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => self.list.push((start, end)),
        }
    }

    /// Extends the stretch added last from `end` to `until`, if it ends there.
    pub(super) fn extend_last(&mut self, end: u64, until: u64) {
        if let Some(last) = self.list.last_mut()
            && last.1 == end
        {
            last.1 = until;
        }
    }

    /// Memory held, in bytes.
    pub(super) fn memory_bytes(&self) -> u64 {
        (self.list.capacity() * size_of::<(u64, u64)>()) as u64
    }

    /// Sorts the stretches and returns the first place that is in two of them.
    pub(super) fn sort(&mut self) -> Option<u64> {
        self.list.sort_unstable();
        self.list.windows(2).find_map(|pair| match pair {
            [(_, end), (start, _)] if start < end => Some(*start),
            _ => None,
        })
    }

    /// Places that are in more than one of the sorted stretches; each counts once.
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

    /// The first place that is both in these and in `other`; both are sorted.
    pub(super) fn meets(&self, other: &Self) -> Option<u64> {
        let (mut own, mut others) = (self.list.iter().peekable(), other.list.iter().peekable());
        while let (Some(a), Some(b)) = (own.peek(), others.peek()) {
            if a.0.max(b.0) < a.1.min(b.1) {
                return Some(a.0.max(b.0));
            }
            // Stretches may overlap within one set, yet none that ends first can meet a later one.
            if a.1 <= b.1 {
                own.next();
            } else {
                others.next();
            }
        }
        None
    }

    /// The same stretches in units of `1 << bits` bytes, each unit once; these are sorted.
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
