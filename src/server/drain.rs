//! The requests that are under way, so that they can be waited for and, if need be, told to stop.

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

/// Requests are no longer taken.
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

/// Every request between its admission and its end.
#[derive(Default)]
pub(super) struct UnderWay {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    stopping: bool,
    next_id: u64,
    requests: HashMap<u64, Cancel>,
}

/// One request under way, for as long as this lives.
pub(super) struct Entry {
    all: Arc<UnderWay>,
    id: u64,
}

impl UnderWay {
    /// Notes a request, unless the daemon is stopping.
    pub(super) fn enter(self: &Arc<Self>, cancel: &Cancel) -> Result<Entry, Stopping> {
        let mut state = self.lock();
        if state.stopping {
            return Err(Stopping);
        }
        let id = state.next_id;
        state.next_id += 1;
        state.requests.insert(id, cancel.clone());
        Ok(Entry { all: Arc::clone(self), id })
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// Takes no more requests, waits `grace` for those under way, cancels the rest and waits `last` more.
    /// Returns how many were cancelled, and how many did not even end then.
    pub(super) async fn drain(&self, grace: Duration, last: Duration) -> (usize, usize) {
        self.lock().stopping = true;
        if timeout(grace, self.empty()).await.is_ok() {
            return (0, 0);
        }
        let cancelled = {
            let state = self.lock();
            state.requests.values().for_each(Cancel::cancel);
            state.requests.len()
        };
        let _late = timeout(last, self.empty()).await;
        (cancelled, self.lock().requests.len())
    }

    async fn empty(&self) {
        loop {
            // Registered before the look, so that no change between the two is missed.
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
    async fn nothing_under_way_ends_at_once_and_takes_no_more() {
        let all = Arc::new(UnderWay::default());
        drop(all.enter(&Cancel::new()).unwrap());
        assert_eq!(all.drain(LONG, LONG).await, (0, 0));
        assert!(all.is_stopping());
        assert_eq!(all.enter(&Cancel::new()).err(), Some(Stopping));
    }

    #[tokio::test]
    async fn what_finishes_in_time_is_not_cancelled() {
        let all = Arc::new(UnderWay::default());
        let cancel = Cancel::new();
        let entry = all.enter(&cancel).unwrap();
        tokio::spawn(async move {
            tokio::time::sleep(SHORT).await;
            drop(entry);
        });
        assert_eq!(all.drain(LONG, LONG).await, (0, 0));
        assert!(cancel.check().is_ok());
    }

    #[tokio::test]
    async fn what_does_not_is_cancelled_and_waited_for_once_more() {
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
        assert_eq!(all.drain(SHORT, SHORT).await, (2, 1));
        assert!(ignores.check().is_err());
    }
}
