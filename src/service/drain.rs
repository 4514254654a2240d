//! Requests under way, so that the daemon can wait for them and, if need be, cancel them.
//!
//! A daemon that stops still accepts requests: clients send until they have seen its goodbye, and
//! requests sent before are served. Requests are refused only after the time for that is over.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

use crate::{
    call::Cancel,
    error::{Classify, Kind},
};

/// Refusal of a request after the daemon stopped accepting them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the daemon is stopping")]
pub struct Stopping;

impl Classify for Stopping {
    fn kind(&self) -> Kind {
        Kind::Unavailable
    }

    fn reason(&self) -> &'static str {
        "server.stopping"
    }
}

/// All requests between their admission and their end.
#[derive(Default)]
pub(super) struct UnderWay {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    phase: Phase,
    next_id: u64,
    requests: HashMap<u64, Cancel>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Serving,
    /// Requests are accepted, but the daemon has begun to stop.
    Draining,
    Closed,
}

/// Entry of one request under way, for as long as this lives.
pub(super) struct Entry {
    all: Arc<UnderWay>,
    id: u64,
}

impl UnderWay {
    /// Registers a request. Errors: [`Stopping`] once the time for requests is over.
    pub(super) fn enter(self: &Arc<Self>, cancel: &Cancel) -> Result<Entry, Stopping> {
        let mut state = self.lock();
        if state.phase == Phase::Closed {
            return Err(Stopping);
        }
        let id = state.next_id;
        state.next_id += 1;
        state.requests.insert(id, cancel.clone());
        Ok(Entry { all: Arc::clone(self), id })
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.lock().phase != Phase::Serving
    }

    /// Records that the daemon stops. Requests are still accepted.
    pub(super) fn stop(&self) {
        self.lock().phase = Phase::Draining;
    }

    /// Refuses further requests, cancels those under way and waits up to `last` for their end.
    /// Returns how many were cancelled, and how many of them had not ended by then.
    pub(super) async fn close(&self, last: Duration) -> (usize, usize) {
        let cancelled = {
            let mut state = self.lock();
            state.phase = Phase::Closed;
            state.requests.values().for_each(Cancel::cancel);
            state.requests.len()
        };
        let _late = timeout(last, self.empty()).await;
        (cancelled, self.lock().requests.len())
    }

    /// Waits until no request is under way.
    pub(super) async fn empty(&self) {
        loop {
            // Registered before the check, so that no change in between is missed.
            let changed = self.changed.notified();
            if self.lock().requests.is_empty() {
                return;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.all.lock().requests.remove(&self.id);
        self.all.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn requests_are_taken_until_the_end_of_the_drain() {
        let all = Arc::new(UnderWay::default());
        assert!(!all.is_stopping());
        all.stop();
        assert!(all.is_stopping());
        let late = all.enter(&Cancel::new()).unwrap();
        assert!(timeout(SHORT, all.empty()).await.is_err());
        drop(late);
        timeout(LONG, all.empty()).await.unwrap();
        assert_eq!(all.close(LONG).await, (0, 0));
        assert!(all.is_stopping());
        assert_eq!(all.enter(&Cancel::new()).err(), Some(Stopping));
    }

    #[tokio::test]
    async fn what_outlasts_the_drain_is_cancelled_and_waited_for_once_more() {
        let all = Arc::new(UnderWay::default());
        let (obeys, ignores) = (Cancel::new(), Cancel::new());
        let first = all.enter(&obeys).unwrap();
        let _second = all.enter(&ignores).unwrap();
        let seen = obeys.clone();
        tokio::spawn(async move {
            while seen.check().is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(first);
        });
        assert_eq!(all.close(SHORT).await, (2, 1));
        assert!(ignores.check().is_err());
    }
}
