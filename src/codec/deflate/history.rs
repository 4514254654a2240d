//! The last bytes given out, for matches that start before the output at hand.
//!
//! Source: RFC 1951, section 2: a match reaches back 32 KiB at most.

use super::unit::{Unit, WINDOW_BYTES};

/// The last [`WINDOW_BYTES`] units, or as many as there were.
#[derive(Clone, Debug)]
pub(crate) struct History<T> {
    /// A ring: the oldest unit stands at `next` once it is full.
    ring: Box<[T]>,
    next: usize,
    len: usize,
}

impl<T: Unit> History<T> {
    pub(crate) fn new() -> Self {
        Self { ring: vec![T::default(); WINDOW_BYTES].into_boxed_slice(), next: 0, len: 0 }
    }

    pub(crate) fn clear(&mut self) {
        self.next = 0;
        self.len = 0;
    }

    /// Adds what was given out.
    pub(crate) fn append(&mut self, units: &[T]) {
        let kept = units.len().min(WINDOW_BYTES);
        let units = units.get(units.len().wrapping_sub(kept)..).unwrap_or_default();
        let until_end = kept.min(WINDOW_BYTES.wrapping_sub(self.next));
        let (first, second) = units.split_at_checked(until_end).unwrap_or_default();
        if let Some(place) = self.ring.get_mut(self.next..self.next.wrapping_add(first.len())) {
            place.copy_from_slice(first);
        }
        if let Some(place) = self.ring.get_mut(..second.len()) {
            place.copy_from_slice(second);
        }
        self.next = self.next.wrapping_add(kept) % WINDOW_BYTES;
        self.len = self.len.saturating_add(kept).min(WINDOW_BYTES);
    }

    /// All units of the history, the oldest first, in the two pieces that they are kept in.
    pub(crate) fn pieces(&self) -> [&[T]; 2] {
        match self.next.checked_sub(self.len) {
            Some(start) => [self.ring.get(start..self.next).unwrap_or_default(), &[]],
            None => {
                let start = WINDOW_BYTES.wrapping_add(self.next).wrapping_sub(self.len);
                [self.ring.get(start..).unwrap_or_default(), self.ring.get(..self.next).unwrap_or_default()]
            }
        }
    }

    /// Copies a match of `length` units to `output[at..]`, where there is room for it, from `distance` units
    /// before: from the output, this history, or first the one and then the other. `false` when it starts
    /// before both.
    pub(super) fn copy(&self, output: &mut [T], mut at: usize, distance: usize, length: usize) -> bool {
        let mut left = length;
        if let Some(back) = distance.checked_sub(at).filter(|back| *back > 0) {
            if back > self.len {
                return false;
            }
            // Two pieces where the ring wraps.
            let mut from = self.next.wrapping_add(WINDOW_BYTES).wrapping_sub(back) % WINDOW_BYTES;
            let mut kept = left.min(back);
            left = left.wrapping_sub(kept);
            while kept > 0 {
                let now = kept.min(WINDOW_BYTES.wrapping_sub(from));
                if let (Some(place), Some(units)) =
                    (output.get_mut(at..at.wrapping_add(now)), self.ring.get(from..from.wrapping_add(now)))
                {
                    place.copy_from_slice(units);
                }
                at = at.wrapping_add(now);
                kept = kept.wrapping_sub(now);
                from = 0;
            }
        }
        // What is copied may be what was just written.
        for to in at..at.wrapping_add(left) {
            let unit = output.get(to.wrapping_sub(distance)).copied().unwrap_or_default();
            if let Some(place) = output.get_mut(to) {
                *place = unit;
            }
        }
        true
    }
}
