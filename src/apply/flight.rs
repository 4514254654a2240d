//! Equal requests that arrive while the first is running share one conversion.
//!
//! A request for the layer that is being applied to its directory waits for that conversion and returns the same
//! reply. A request for another layer there is refused. When the caller of a conversion cancels it, one of the
//! waiting requests starts anew.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use super::request::{Applied, ApplyError, Payload, Request};
use crate::{
    call::{Call, Cancel, Namespace},
    digest::Digest,
    error::{Error, Kind, Result},
    snapshot::Mount,
};

/// The running conversions, by device and inode number of their directory.
#[derive(Debug, Default)]
pub(super) struct Flights {
    running: Mutex<HashMap<(u64, u64), Arc<Flight>>>,
}

#[derive(Debug)]
struct Flight {
    /// Namespace of the first request. A request of another one cannot join: its namespace may not have the blob.
    namespace: Namespace,
    digest: Digest,
    media_type: String,
    size_bytes: u64,
    sync_fs: bool,
    /// Mounts of the first request. They name the layers below, on which the image may depend.
    mounts: Vec<Mount>,
    /// Payloads of the first request. A processor may refuse other ones.
    payloads: BTreeMap<String, Payload>,
    landed: Mutex<Option<Outcome>>,
    changed: Condvar,
}

#[derive(Clone, Debug)]
enum Outcome {
    Applied(Box<Applied>),
    Failed(Kind, &'static str, String),
    /// The call that ran the conversion was cancelled, ran out of time or panicked.
    Abandoned,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Flights {
    /// Runs `work` for `request`, or waits for an equal request that is running and returns its outcome.
    ///
    /// Errors: [`ApplyError::Busy`] when another layer is being applied to `directory`; those of `work`; `Cancelled`.
    pub(super) fn fly(
        &self,
        directory: (u64, u64),
        call: &Call,
        request: &Request,
        work: impl FnOnce() -> Result<Applied>,
    ) -> Result<Applied> {
        loop {
            let flight = {
                let mut running = lock(&self.running);
                match running.get(&directory) {
                    Some(flight) => Arc::clone(flight),
                    None => {
                        let flight = Arc::new(Flight::new(call, request));
                        running.insert(directory, Arc::clone(&flight));
                        drop(running);
                        // Dropped without an outcome when the work panics: the flight then counts as abandoned.
                        let landing = Landing { flights: self, directory, flight };
                        let outcome = work();
                        landing.land(&outcome);
                        return outcome;
                    }
                }
            };
            if !flight.is_for(call, request) {
                let (digest, media_type) = (flight.digest.clone(), flight.media_type.clone());
                return Err(ApplyError::Busy { digest, media_type }.into());
            }
            match flight.wait(&call.cancel)? {
                // On top of other layers the same archive may give another image.
                _ if flight.mounts != request.mounts || flight.payloads != request.payloads => {}
                // A layer that was not synced is no answer to a request with `sync_fs`.
                Outcome::Applied(applied) if flight.sync_fs || !request.sync_fs => return Ok(*applied),
                Outcome::Failed(kind, reason, message) => return Err(Error::new(kind, reason, message)),
                Outcome::Applied(_) | Outcome::Abandoned => {}
            }
        }
    }
}

impl Flight {
    fn new(call: &Call, request: &Request) -> Self {
        Self {
            namespace: call.namespace.clone(),
            digest: request.diff.digest.clone(),
            media_type: request.diff.media_type.clone(),
            size_bytes: request.diff.size_bytes,
            sync_fs: request.sync_fs,
            mounts: request.mounts.clone(),
            payloads: request.payloads.clone(),
            landed: Mutex::new(None),
            changed: Condvar::new(),
        }
    }

    fn is_for(&self, call: &Call, request: &Request) -> bool {
        self.namespace == call.namespace
            && self.digest == request.diff.digest
            && self.media_type == request.diff.media_type
            && self.size_bytes == request.diff.size_bytes
    }

    fn wait(&self, cancel: &Cancel) -> Result<Outcome> {
        let mut landed = lock(&self.landed);
        loop {
            if let Some(outcome) = &*landed {
                return Ok(outcome.clone());
            }
            cancel.check()?;
            landed =
                self.changed.wait_timeout(landed, Cancel::POLL).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Removes a flight from the running ones when it is dropped, and wakes the requests that wait for it.
struct Landing<'a> {
    flights: &'a Flights,
    directory: (u64, u64),
    flight: Arc<Flight>,
}

impl Landing<'_> {
    fn land(self, outcome: &Result<Applied>) {
        *lock(&self.flight.landed) = Some(match outcome {
            Ok(applied) => Outcome::Applied(Box::new(applied.clone())),
            Err(error) if matches!(error.kind(), Kind::Cancelled | Kind::DeadlineExceeded) => {
                Outcome::Abandoned
            }
            Err(error) => Outcome::Failed(error.kind(), error.reason(), error.to_string()),
        });
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        // The place is freed before the others wake: one of them may start anew at once.
        lock(&self.flights.running).remove(&self.directory);
        lock(&self.flight.landed).get_or_insert(Outcome::Abandoned);
        self.flight.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Barrier,
            atomic::{AtomicUsize, Ordering},
        },
        thread,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::{
        apply::{Contents, Stats},
        codec::Coding,
        descriptor::Descriptor,
        pipeline::{AheadFacts, StageTimes},
    };

    fn call() -> Call {
        Call::new("default".parse().unwrap())
    }

    fn request(name: &[u8], sync_fs: bool) -> Request {
        let diff = Descriptor::new("a/b", Digest::sha256(name), 1).unwrap();
        Request { diff, mounts: Vec::new(), payloads: BTreeMap::new(), sync_fs }
    }

    fn applied() -> Applied {
        let digest = Digest::sha256(b"applied");
        let stats = Stats {
            blob: digest.clone(),
            blob_bytes: 1,
            coding: Coding::Plain,
            image_bytes: 0,
            contents: Contents::default(),
            times: StageTimes::default(),
            ahead: AheadFacts::default(),
            total: Duration::ZERO,
        };
        Applied { descriptor: Descriptor::of("a/b", digest, 1), stats }
    }

    #[test]
    fn the_same_request_many_times_is_worked_on_once() {
        let flights = Flights::default();
        let (started, worked) = (Barrier::new(8), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    started.wait();
                    let got = flights.fly((1, 1), &call(), &request(b"x", false), || {
                        worked.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(100));
                        Ok(applied())
                    });
                    assert_eq!(got.unwrap(), applied());
                });
            }
        });
        assert_eq!(worked.into_inner(), 1);
        assert!(flights.running.lock().unwrap().is_empty());
    }

    /// Runs `second` while the first request works for 50 ms and then ends as `outcome` says.
    fn beside(
        outcome: fn() -> Result<Applied>,
        first_syncs: bool,
        second: impl FnOnce(&Flights) -> Result<Applied>,
    ) -> Result<Applied> {
        let (flights, begun) = (Flights::default(), Barrier::new(2));
        thread::scope(|scope| {
            scope.spawn(|| {
                let _whatever = flights.fly((1, 1), &call(), &request(b"x", first_syncs), || {
                    begun.wait();
                    thread::sleep(Duration::from_millis(50));
                    outcome()
                });
            });
            begun.wait();
            let got = second(&flights);
            assert!(lock(&flights.running).len() <= 1);
            got
        })
    }

    fn never() -> Result<Applied> {
        panic!("not to be worked on")
    }

    #[test]
    fn another_layer_for_the_same_directory_is_a_conflict() {
        let other = |call: Call, request: Request| {
            beside(|| Ok(applied()), false, |flights| flights.fly((1, 1), &call, &request, never))
        };
        let mut foreign = call();
        foreign.namespace = "other".parse().unwrap();
        let mut relabelled = request(b"x", false);
        relabelled.diff.media_type = "a/c".to_owned();
        for (call, request) in
            [(call(), request(b"y", false)), (foreign, request(b"x", false)), (call(), relabelled)]
        {
            let error = other(call, request).unwrap_err();
            assert_eq!((error.kind(), error.reason()), (Kind::Conflict, "apply.busy"));
        }
        let elsewhere = beside(
            || Ok(applied()),
            false,
            |flights| flights.fly((1, 2), &call(), &request(b"y", false), || Ok(applied())),
        );
        assert!(elsewhere.is_ok());
    }

    #[test]
    fn failures_are_shared_and_cancellations_are_not() {
        let join = |flights: &Flights| flights.fly((1, 1), &call(), &request(b"x", false), never);
        let error = beside(|| Err(Error::new(Kind::Malformed, "tar.x", "bad")), false, join).unwrap_err();
        assert_eq!(
            (error.kind(), error.reason(), error.to_string()),
            (Kind::Malformed, "tar.x", "bad".into())
        );

        let retry = |flights: &Flights| flights.fly((1, 1), &call(), &request(b"x", false), || Ok(applied()));
        assert!(beside(|| Err(crate::call::Cancelled::ByCaller.into()), false, retry).is_ok());
    }

    #[test]
    fn a_request_that_asks_for_sync_does_not_take_a_reply_without() {
        let (mut worked, sync) = (false, request(b"x", true));
        let work = |flights: &Flights| {
            flights.fly((1, 1), &call(), &sync, || {
                worked = true;
                Ok(applied())
            })
        };
        beside(|| Ok(applied()), false, work).unwrap();
        assert!(worked);
        let join = |flights: &Flights| flights.fly((1, 1), &call(), &sync, never);
        beside(|| Ok(applied()), true, join).unwrap();
    }

    #[test]
    fn a_request_with_other_layers_below_is_worked_on_for_itself() {
        for outcome in [|| Ok(applied()), || Err(Error::new(Kind::Malformed, "tar.x", "bad"))] {
            let (mut worked, mut other) = (false, request(b"x", false));
            other.mounts.push(Mount::default());
            let work = |flights: &Flights| {
                flights.fly((1, 1), &call(), &other, || {
                    worked = true;
                    Ok(applied())
                })
            };
            beside(outcome, false, work).unwrap();
            assert!(worked);
        }
    }

    #[test]
    fn waiting_for_another_request_can_be_cancelled() {
        let started = Instant::now();
        let error = beside(
            || {
                thread::sleep(Duration::from_millis(300));
                Ok(applied())
            },
            false,
            |flights| {
                let call = call();
                call.cancel.cancel();
                let got = flights.fly((1, 1), &call, &request(b"x", false), never);
                assert!(started.elapsed() < Duration::from_millis(250));
                got
            },
        )
        .unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled);
    }
}
