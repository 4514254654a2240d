//! Progress of a request.

use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicU64, Ordering},
};

/// Counters that the work for a request sets. A clone reads them at any time.
///
/// ```
/// use plywood::call::{Phase, Progress};
/// let work = Progress::default();
/// let bar = work.clone();
/// work.begin(Phase::Transfer, Some(1000));
/// work.set_done(300);
/// assert_eq!((bar.look().done_bytes, bar.look().total_bytes), (300, Some(1000)));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Counters>);

// Each counter stands for itself, so no order between them is kept: a reader may see the count of the phase before
// while a phase begins, and the right one at the next look.
#[derive(Debug)]
struct Counters {
    phase: AtomicU8,
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
}

/// The part of the work that a request is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Waits for memory, or opens layers.
    #[default]
    Start,
    /// Lays out an image in a file of its own; counts its bytes.
    LayOut,
    /// Moves a layer: Apply counts the bytes of the blob it reads, Diff those of the layer before compression.
    Transfer,
    /// Writes the rest of an image, behind the data.
    Finish,
    /// Checks an image.
    Verify,
    /// Syncs and renames.
    Commit,
}

/// Progress at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The phase at that moment.
    pub phase: Phase,
    /// Bytes done in this phase; 0 in one that counts none.
    pub done_bytes: u64,
    /// Bytes this phase will have done in the end, where that is known.
    pub total_bytes: Option<u64>,
}

/// A total that is not known. No layer is so large.
const UNKNOWN: u64 = u64::MAX;

impl Default for Counters {
    fn default() -> Self {
        let [done_bytes, total_bytes] = [0, UNKNOWN].map(AtomicU64::new);
        Self { phase: AtomicU8::default(), done_bytes, total_bytes }
    }
}

impl Progress {
    /// Nothing has begun, but the size of what will be transferred is known.
    pub fn expecting(total_bytes: Option<u64>) -> Self {
        let progress = Self::default();
        progress.begin(Phase::Start, total_bytes);
        progress
    }

    /// Goes on to the next phase, of which nothing is done yet.
    pub fn begin(&self, phase: Phase, total_bytes: Option<u64>) {
        let Counters { phase: now, done_bytes, total_bytes: total } = &*self.0;
        done_bytes.store(0, Ordering::Relaxed);
        total.store(total_bytes.unwrap_or(UNKNOWN), Ordering::Relaxed);
        now.store(phase.number(), Ordering::Relaxed);
    }

    /// Notes how many bytes of this phase are done.
    pub fn set_done(&self, bytes: u64) {
        self.0.done_bytes.store(bytes, Ordering::Relaxed);
    }

    /// How far the work is now.
    pub fn look(&self) -> Seen {
        let Counters { phase, done_bytes, total_bytes } = &*self.0;
        let total_bytes = Some(total_bytes.load(Ordering::Relaxed)).filter(|total| *total != UNKNOWN);
        let phase = Phase::numbered(phase.load(Ordering::Relaxed));
        Seen { phase, done_bytes: done_bytes.load(Ordering::Relaxed), total_bytes }
    }
}

impl Phase {
    const ALL: [Self; 6] =
        [Self::Start, Self::LayOut, Self::Transfer, Self::Finish, Self::Verify, Self::Commit];

    fn number(self) -> u8 {
        match self {
            Self::Start => 0,
            Self::LayOut => 1,
            Self::Transfer => 2,
            Self::Finish => 3,
            Self::Verify => 4,
            Self::Commit => 5,
        }
    }

    fn numbered(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_shows_what_the_work_has_done() {
        let work = Progress::expecting(Some(10));
        let seen = work.clone();
        let at = |phase, done_bytes, total_bytes| Seen { phase, done_bytes, total_bytes };
        assert_eq!(seen.look(), at(Phase::Start, 0, Some(10)));
        work.begin(Phase::Transfer, None);
        work.set_done(7);
        assert_eq!(seen.look(), at(Phase::Transfer, 7, None));
        work.begin(Phase::Verify, None);
        assert_eq!(seen.look(), at(Phase::Verify, 0, None), "each phase counts from 0");
    }

    #[test]
    fn every_phase_keeps_its_number() {
        for phase in Phase::ALL {
            assert_eq!(Phase::numbered(phase.number()), phase);
        }
        assert_eq!(Phase::numbered(200), Phase::Start);
    }
}
