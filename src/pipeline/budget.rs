//! Memory for metadata and decoder windows, for all requests together.
//!
//! Every request has a small share from its start, enough for nearly all layers. One that outgrows it
//! waits for the large share, of which there is one: requests never hold a part of what another waits
//! for, so they cannot block each other for good. The sum stays within the operator's limit.
//!
//! A request that waits for its blob keeps the part of its small share that it uses, and gives the rest to others. One
//! whole share is always left for the requests at work: they finish, and then those that waited get theirs back.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use crate::{
    call::{Cancel, Cancelled, Part, Place},
    error::{Classify, Kind, Result},
    limits::Limits,
};

/// Small share of every request, in bytes: enough for some 300 000 entries with short names.
pub const SHARE_BYTES: u64 = 24 << 20;

/// A request needs more memory than one may use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("metadata and decoder window need {needed} bytes of memory, more than {limit}")]
struct MetadataLimit {
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
    /// Most bytes that one request may use.
    limit: u64,
    /// Bytes of all small shares together.
    shares: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Bytes of the small shares that nobody holds.
    free: u64,
    /// Bytes held by requests that wait for their blobs.
    kept: u64,
    large: bool,
    charged: u64,
}

/// A further small share of one request, for a helper thread; dropping it gives the memory back.
#[derive(Debug)]
pub struct Share(Arc<Budget>);

/// Memory of one request; dropping it gives the memory back.
#[derive(Debug)]
pub struct Lease {
    hold: Arc<Hold>,
    place: Option<Arc<Place>>,
}

#[derive(Debug)]
struct Hold {
    budget: Arc<Budget>,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    metadata: u64,
    index: u64,
    device: u64,
    window: u64,
    large: bool,
    /// Set while the request waits for its blob: the bytes of its small share that it used when the wait began, and
    /// all it has meanwhile.
    kept: Option<u64>,
}

impl Held {
    fn used(&self) -> u64 {
        [self.metadata, self.index, self.device, self.window].into_iter().fold(0, u64::saturating_add)
    }

    fn part(&mut self, purpose: Use) -> &mut u64 {
        match purpose {
            Use::Metadata => &mut self.metadata,
            Use::Index => &mut self.index,
            Use::Device => &mut self.device,
            Use::Window => &mut self.window,
        }
    }
}

/// A purpose that memory is charged for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The tree of a layer.
    Metadata,
    /// The tree of an image that is made beside the layer: an archive's index, or merged metadata.
    Index,
    /// The indexes of devices that are open, and what their readers keep.
    Device,
    /// The window of a decoder, or what a comparison remembers on its walk.
    Window,
}

impl Budget {
    /// One large share of `limits.metadata_bytes`, and as many small ones as fit beside it into
    /// `limits.total_metadata_bytes`, but at least one.
    pub fn new(limits: &Limits) -> Arc<Self> {
        let beside = limits.total_metadata_bytes.saturating_sub(limits.metadata_bytes);
        let shares = (beside / SHARE_BYTES).max(1) * SHARE_BYTES;
        Arc::new(Self {
            limit: limits.metadata_bytes,
            shares,
            state: Mutex::new(State { free: shares, kept: 0, large: true, charged: 0 }),
            changed: Condvar::new(),
        })
    }

    /// Takes a small share, and waits for one when all are in use. Errors: cancelled while waiting.
    pub fn lease(self: &Arc<Self>, cancel: &Cancel) -> Result<Lease> {
        self.reserve(cancel, 0)?;
        let held = Mutex::new(Held { metadata: 0, index: 0, device: 0, window: 0, large: false, kept: None });
        let hold = Arc::new(Hold { budget: Arc::clone(self), held });
        let place = cancel.place().cloned();
        if let Some(place) = &place {
            let hold = Arc::downgrade(&hold);
            place.add_memory(hold as Weak<dyn Part>);
        }
        Ok(Lease { hold, place })
    }

    /// Bytes in use now, for metrics.
    pub fn charged_bytes(&self) -> u64 {
        self.lock().charged
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a small share, `kept` bytes of which the request still has.
    fn reserve(&self, cancel: &Cancel, kept: u64) -> Result<(), Cancelled> {
        self.wait(cancel, |state| match state.free.checked_sub(SHARE_BYTES - kept) {
            Some(rest) => {
                state.free = rest;
                state.kept -= kept;
                true
            }
            None => false,
        })
    }

    /// Waits until `take` succeeds.
    fn wait(&self, cancel: &Cancel, mut take: impl FnMut(&mut State) -> bool) -> Result<(), Cancelled> {
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
    /// Sets the memory used for `purpose` to `bytes`; call it before they are used. Waits for the large share when
    /// the small one does not suffice. Errors: the request needs more than the large share; cancelled while waiting.
    pub fn charge(&self, purpose: Use, bytes: u64, cancel: &Cancel) -> Result<()> {
        let budget = &self.hold.budget;
        let (mut held, needed) = loop {
            let mut held = self.hold.lock();
            let others = held.used().saturating_sub(*held.part(purpose));
            let needed = others.saturating_add(bytes);
            if held.kept.is_none_or(|kept| needed <= kept) {
                break (held, needed);
            }
            // A thread of the request is at work while another waits for the blob, and needs what was given away.
            drop(held);
            cancel.check()?;
            if let Some(place) = &self.place {
                place.take(cancel)?;
            }
        };
        let limit = budget.limit.max(SHARE_BYTES);
        if needed > limit {
            return Err(MetadataLimit { needed, limit }.into());
        }
        if needed > SHARE_BYTES && !held.large {
            budget.wait(cancel, |state| std::mem::take(&mut state.large))?;
            held.large = true;
        }
        let before = held.used();
        *held.part(purpose) = bytes;
        let mut state = budget.lock();
        state.charged = state.charged.saturating_add(needed).saturating_sub(before);
        Ok(())
    }

    /// Adds `bytes` to those used for `purpose`. Errors: as for [`Self::charge`].
    pub fn add(&self, purpose: Use, bytes: u64, cancel: &Cancel) -> Result<()> {
        self.charge(purpose, self.used(purpose).saturating_add(bytes), cancel)
    }

    /// Bytes that are used for `purpose`.
    pub fn used(&self, purpose: Use) -> u64 {
        *self.hold.lock().part(purpose)
    }

    /// A further small share, for a helper that the request can do without: nobody waits for one, and one is left for the
    /// next request.
    pub fn share(&self) -> Option<Share> {
        let budget = &self.hold.budget;
        let mut state = budget.lock();
        state.free.checked_sub(2 * SHARE_BYTES)?;
        state.free -= SHARE_BYTES;
        state.charged = state.charged.saturating_add(SHARE_BYTES);
        Some(Share(Arc::clone(budget)))
    }

    /// Whether the request holds the large share.
    pub fn is_large(&self) -> bool {
        self.hold.lock().large
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.free += SHARE_BYTES;
        state.charged = state.charged.saturating_sub(SHARE_BYTES);
        drop(state);
        self.0.changed.notify_all();
    }
}

impl Hold {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part for Hold {
    /// Refuses with the large share: the requests that wait for it hold slots, and this one would wait for a slot.
    fn give(&self) -> bool {
        let mut held = self.lock();
        let used = held.used();
        let mut state = self.budget.lock();
        // One whole share has to be left, or those that come back might all wait for the rest of theirs.
        if held.large || held.kept.is_some() || state.kept + used > self.budget.shares - SHARE_BYTES {
            return false;
        }
        held.kept = Some(used);
        state.kept += used;
        state.free += SHARE_BYTES - used;
        drop(state);
        self.budget.changed.notify_all();
        true
    }

    fn take(&self, cancel: &Cancel) -> Result<(), Cancelled> {
        let mut held = self.lock();
        if let Some(kept) = held.kept {
            self.budget.reserve(cancel, kept)?;
            held.kept = None;
        }
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.budget.lock();
        state.free += held.kept.unwrap_or(SHARE_BYTES);
        state.kept -= held.kept.unwrap_or(0);
        state.large |= held.large;
        state.charged = state.charged.saturating_sub(held.used());
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
        assert_eq!(Budget::new(&Limits::default()).lock().free, 32 * SHARE_BYTES);
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
        assert_eq!((state.free, state.kept, state.large), (3 * SHARE_BYTES, 0, true));
    }

    /// A slot that is always there.
    #[derive(Debug)]
    struct Slot;

    impl Part for Slot {
        fn give(&self) -> bool {
            true
        }

        fn take(&self, _: &Cancel) -> Result<(), Cancelled> {
            Ok(())
        }
    }

    fn kept_and_free(budget: &Budget) -> (u64, u64) {
        let state = budget.lock();
        (state.kept, state.free)
    }

    /// Waits for so long that the place is given away.
    fn stall(cancel: &Cancel) -> crate::call::Wait<'_> {
        let wait = cancel.wait();
        thread::sleep(Duration::from_millis(250));
        wait.go_on().unwrap();
        wait
    }

    #[test]
    fn a_request_that_waits_for_its_blob_keeps_what_it_uses() {
        let budget = budget(2);
        let cancel = Cancel::new().with_place(Place::new(Arc::new(Slot)));
        let stalled = budget.lease(&cancel).unwrap();
        stalled.charge(Use::Metadata, SHARE_BYTES / 2, &cancel).unwrap();
        let wait = stall(&cancel);
        assert_eq!(budget.lock().kept, SHARE_BYTES / 2);
        assert_eq!(budget.charged_bytes(), SHARE_BYTES / 2, "still in use");
        // One and a half of two shares are left.
        let other = budget.lease(&Cancel::new()).unwrap();
        assert!(budget.lease(&cancelled_soon()).is_err());
        // A thread of the request that needs more while another waits takes the rest of the share.
        stalled.charge(Use::Metadata, SHARE_BYTES / 4, &cancel).unwrap();
        assert_eq!(budget.lock().kept, SHARE_BYTES / 2);
        stalled.charge(Use::Metadata, SHARE_BYTES, &cancel).unwrap();
        assert_eq!(kept_and_free(&budget), (0, 0));
        wait.end().unwrap();
        assert_eq!(budget.lock().kept, 0);
        drop((stalled, other));
        assert_eq!(budget.lock().free, 2 * SHARE_BYTES);
    }

    #[test]
    fn one_share_is_always_left_to_those_at_work() {
        let budget = budget(2);
        let places = [(); 2].map(|()| Cancel::new().with_place(Place::new(Arc::new(Slot))));
        let [first, second] = places.each_ref().map(|cancel| budget.lease(cancel).unwrap());
        for (lease, cancel) in [(&first, &places[0]), (&second, &places[1])] {
            lease.charge(Use::Window, SHARE_BYTES, cancel).unwrap();
        }
        let _waits = places.each_ref().map(stall);
        // The second kept its place, and with it its share.
        assert_eq!(kept_and_free(&budget), (SHARE_BYTES, 0));
        second.charge(Use::Window, 0, &places[1]).unwrap();
        places[1].wait().end().unwrap();
        let _again = stall(&places[1]);
        assert_eq!(kept_and_free(&budget), (SHARE_BYTES, SHARE_BYTES));
        drop((first, second));
        assert_eq!(kept_and_free(&budget), (0, 2 * SHARE_BYTES));
    }

    #[test]
    fn who_has_the_large_share_keeps_its_place() {
        let budget = budget(2);
        let cancel = Cancel::new().with_place(Place::new(Arc::new(Slot)));
        let lease = budget.lease(&cancel).unwrap();
        lease.charge(Use::Metadata, SHARE_BYTES + 1, &cancel).unwrap();
        let _wait = stall(&cancel);
        assert_eq!(kept_and_free(&budget), (0, SHARE_BYTES));
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
