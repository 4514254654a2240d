//! Memory for metadata and decoder windows, for all requests together.
//!
//! Every request has a small share from its start, enough for nearly all layers. One that outgrows it
//! waits for the large share, of which there is one: requests never hold a part of what another waits
//! for, so they cannot block each other for good. The sum stays within the operator's limit.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::{
    call::Cancel,
    error::{Classify, Kind, Result},
    limits::Limits,
};

/// What every request may use without asking, in bytes: some 300 000 entries with short names.
pub const SHARE_BYTES: u64 = 24 << 20;

/// Why a request may not use more memory.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("metadata and decoder window need {needed} bytes of memory, more than {limit}")]
pub struct MetadataLimit {
    needed: u64,
    limit: u64,
}

impl Classify for MetadataLimit {
    fn kind(&self) -> Kind {
        Kind::Exhausted
    }
    fn reason(&self) -> &'static str {
        "limit.metadata"
    }
}

/// The memory of all requests.
#[derive(Debug)]
pub struct Budget {
    /// Most that one request may use, in bytes.
    limit: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    shares: u64,
    large: bool,
    charged: u64,
}

/// What one request holds of it; given back when dropped.
#[derive(Debug)]
pub struct Lease {
    budget: Arc<Budget>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    metadata: u64,
    window: u64,
    large: bool,
}

/// What memory is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The tree of a layer.
    Metadata,
    /// The window of a decoder, or what a comparison remembers on its walk.
    Window,
}

impl Budget {
    /// One large share of `limits.metadata_bytes`, and as many small ones as fit beside it into
    /// `limits.total_metadata_bytes`, but at least one.
    pub fn new(limits: &Limits) -> Arc<Self> {
        let beside = limits.total_metadata_bytes.saturating_sub(limits.metadata_bytes);
        Arc::new(Self {
            limit: limits.metadata_bytes,
            state: Mutex::new(State { shares: (beside / SHARE_BYTES).max(1), large: true, charged: 0 }),
            changed: Condvar::new(),
        })
    }

    /// A small share; waits for one when all are in use. Errors: cancelled while waiting.
    pub fn lease(self: &Arc<Self>, cancel: &Cancel) -> Result<Lease> {
        self.wait(cancel, |state| match state.shares.checked_sub(1) {
            Some(rest) => {
                state.shares = rest;
                true
            }
            None => false,
        })?;
        Ok(Lease { budget: Arc::clone(self), held: Mutex::new(Held::default()) })
    }

    /// Bytes in use now, for metrics.
    pub fn charged_bytes(&self) -> u64 {
        self.lock().charged
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `take` succeeds.
    fn wait(&self, cancel: &Cancel, mut take: impl FnMut(&mut State) -> bool) -> Result<()> {
        let mut state = self.lock();
        while !take(&mut state) {
            cancel.check()?;
            let waited = self.changed.wait_timeout(state, Cancel::POLL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

impl Lease {
    /// Says that `bytes` are now used for `purpose`, before they are. Waits for the large share when
    /// the small one does not suffice. Errors: [`MetadataLimit`], or cancelled while waiting.
    pub fn charge(&self, purpose: Use, bytes: u64, cancel: &Cancel) -> Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let before = held.metadata.saturating_add(held.window);
        let needed = match purpose {
            Use::Metadata => held.window.saturating_add(bytes),
            Use::Window => held.metadata.saturating_add(bytes),
        };
        let limit = self.budget.limit.max(SHARE_BYTES);
        if needed > limit {
            return Err(MetadataLimit { needed, limit }.into());
        }
        if needed > SHARE_BYTES && !held.large {
            self.budget.wait(cancel, |state| std::mem::take(&mut state.large))?;
            held.large = true;
        }
        match purpose {
            Use::Metadata => held.metadata = bytes,
            Use::Window => held.window = bytes,
        }
        let mut state = self.budget.lock();
        state.charged = state.charged.saturating_add(needed).saturating_sub(before);
        Ok(())
    }
}

impl Lease {
    /// Whether it holds the large share.
    pub fn is_large(&self) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).large
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.budget.lock();
        state.shares += 1;
        state.large |= held.large;
        state.charged = state.charged.saturating_sub(held.metadata.saturating_add(held.window));
        drop(state);
        self.budget.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    fn budget(shares: u64) -> Arc<Budget> {
        let metadata_bytes = 10 * SHARE_BYTES;
        let total_metadata_bytes = metadata_bytes + shares * SHARE_BYTES;
        Budget::new(&Limits { metadata_bytes, total_metadata_bytes, ..Limits::default() })
    }

    fn cancelled_soon() -> Cancel {
        Cancel::with_deadline(std::time::Instant::now() + Duration::from_millis(20))
    }

    #[test]
    fn the_defaults_give_as_many_shares_as_there_may_be_requests() {
        assert_eq!(Budget::new(&Limits::default()).lock().shares, 32);
    }

    #[test]
    fn one_request_at_a_time_has_the_large_share() {
        let budget = budget(3);
        let cancel = Cancel::new();
        let [first, second, third] = [(); 3].map(|()| budget.lease(&cancel).unwrap());
        first.charge(Use::Metadata, SHARE_BYTES, &cancel).unwrap();
        second.charge(Use::Metadata, SHARE_BYTES + 1, &cancel).unwrap();
        let error = first.charge(Use::Window, 1, &cancelled_soon()).unwrap_err();
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        third.charge(Use::Window, SHARE_BYTES, &cancel).unwrap();
        assert_eq!(budget.charged_bytes(), 3 * SHARE_BYTES + 1);
        assert_eq!(budget.lease(&cancelled_soon()).unwrap_err().kind(), Kind::DeadlineExceeded);

        thread::scope(|scope| {
            let waiting = scope.spawn(|| first.charge(Use::Window, 1, &cancel));
            thread::sleep(Duration::from_millis(20));
            assert!(!waiting.is_finished());
            drop(second);
            waiting.join().unwrap().unwrap();
        });
        drop((first, third));
        assert_eq!(budget.charged_bytes(), 0);
        let state = budget.lock();
        assert_eq!((state.shares, state.large), (3, true));
    }

    #[test]
    fn metadata_and_window_together_stay_within_the_limit() {
        let budget = budget(1);
        let cancel = Cancel::new();
        let lease = budget.lease(&cancel).unwrap();
        lease.charge(Use::Window, SHARE_BYTES, &cancel).unwrap();
        lease.charge(Use::Metadata, 9 * SHARE_BYTES, &cancel).unwrap();
        let error = lease.charge(Use::Metadata, 9 * SHARE_BYTES + 1, &cancel).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.metadata"));
        lease.charge(Use::Window, 0, &cancel).unwrap();
        lease.charge(Use::Metadata, 10 * SHARE_BYTES, &cancel).unwrap();
    }
}
