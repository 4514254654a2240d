//! The last bytes given out, for matches that start before the output at hand.
//!
//! Source: RFC 1951, section 2: a match reaches back 32 KiB at most.

/// Farthest distance of a match, in bytes.
pub(super) const WINDOW_BYTES: usize = 1 << 15;

/// The last [`WINDOW_BYTES`] bytes, or as many as there were.
#[derive(Clone, Debug)]
pub(super) struct History {
    /// A ring: the oldest byte stands at `next` once it is full.
    ring: Box<[u8]>,
    next: usize,
    len: usize,
}

impl History {
    pub(super) fn new() -> Self {
        Self { ring: vec![0; WINDOW_BYTES].into_boxed_slice(), next: 0, len: 0 }
    }

    pub(super) fn clear(&mut self) {
        self.next = 0;
        self.len = 0;
    }

    /// Adds what was given out.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        let kept = bytes.len().min(WINDOW_BYTES);
        let bytes = bytes.get(bytes.len().wrapping_sub(kept)..).unwrap_or_default();
        let until_end = kept.min(WINDOW_BYTES.wrapping_sub(self.next));
        let (first, second) = bytes.split_at_checked(until_end).unwrap_or_default();
        if let Some(place) = self.ring.get_mut(self.next..self.next.wrapping_add(first.len())) {
            place.copy_from_slice(first);
        }
        if let Some(place) = self.ring.get_mut(..second.len()) {
            place.copy_from_slice(second);
        }
        self.next = self.next.wrapping_add(kept) % WINDOW_BYTES;
        self.len = self.len.saturating_add(kept).min(WINDOW_BYTES);
    }

    /// All bytes of the history, the oldest first.
    pub(super) fn to_vec(&self) -> Vec<u8> {
        let (newer, older) = self.ring.split_at_checked(self.next).unwrap_or_default();
        let all = [older, newer].concat();
        all.get(WINDOW_BYTES.wrapping_sub(self.len)..).unwrap_or_default().to_vec()
    }

    /// Copies a match of `length` bytes to `output[at..]`, where there is room for it, from `distance` bytes
    /// before: from the output, this history, or first the one and then the other. `false` when it starts
    /// before both.
    pub(super) fn copy(&self, output: &mut [u8], mut at: usize, distance: usize, length: usize) -> bool {
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
                if let (Some(place), Some(bytes)) =
                    (output.get_mut(at..at.wrapping_add(now)), self.ring.get(from..from.wrapping_add(now)))
                {
                    place.copy_from_slice(bytes);
                }
                at = at.wrapping_add(now);
                kept = kept.wrapping_sub(now);
                from = 0;
            }
        }
        // What is copied may be what was just written.
        for to in at..at.wrapping_add(left) {
            let byte = output.get(to.wrapping_sub(distance)).copied().unwrap_or_default();
            if let Some(place) = output.get_mut(to) {
                *place = byte;
            }
        }
        true
    }
}
