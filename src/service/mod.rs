//! Entry point of both wires: a request is admitted, run on a worker, counted and logged.

mod admission;
mod drain;
mod join;

pub use admission::{Admission, Capacity};

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::oneshot,
    time::{sleep, sleep_until},
};

use self::{
    admission::{Slot, Ticket},
    drain::{Entry, Stopping, UnderWay},
    join::{Joins, Key, Leader, Role},
};
use crate::{
    apply::{self, Applied, Apply},
    call::{Call, Caller, Cancel, Place},
    compare::{self, Compare, Compared},
    error::{Error, Kind, Result},
    observe::{Load, Observer, Record, Subject, Success, scrape::Report},
    sys::thread::catch,
};

/// Reads the metadata memory that is charged to requests, in bytes.
pub type MemoryGauge = Box<dyn Fn() -> u64 + Send + Sync>;

/// Checks something that requests depend on. Errors: the reason for which it is unavailable, in
/// words.
pub type HealthCheck = Box<dyn Fn() -> std::result::Result<(), String> + Send + Sync>;

/// Implementations of the two methods.
#[derive(Clone)]
pub struct Domain {
    /// Implementation of the method Apply.
    pub applier: Arc<dyn Apply>,
    /// Implementation of Diff; `None` leaves Diff to containerd's next differ.
    pub comparer: Option<Arc<dyn Compare>>,
}

/// Request of either method, as the service runs it.
pub trait Job: Subject + Send + 'static {
    /// Result of a request that succeeds.
    type Done: Success + Clone + Send + Sync + 'static;

    /// Table in which equal requests meet, and this one's key; `None` when each request is worked
    /// on by itself.
    fn joins(&self, call: &Call, service: &Service) -> Option<(Arc<Joins<Self::Done>>, Key)>;

    /// Does the work. Blocks; returns within a second after the call is cancelled.
    fn run(&self, call: &Call, domain: &Domain) -> Result<Self::Done>;
}

impl Job for apply::Request {
    type Done = Applied;

    fn joins(&self, call: &Call, service: &Service) -> Option<(Arc<Joins<Applied>>, Key)> {
        Some((Arc::clone(&service.applies), (call.namespace.clone(), self.clone())))
    }

    fn run(&self, call: &Call, domain: &Domain) -> Result<Applied> {
        domain.applier.apply(call, self)
    }
}

impl Job for compare::Request {
    type Done = Compared;

    /// Two Diffs are never joined: each writes under its own lease and reference.
    fn joins(&self, _: &Call, _: &Service) -> Option<(Arc<Joins<Compared>>, Key)> {
        None
    }

    fn run(&self, call: &Call, domain: &Domain) -> Result<Compared> {
        match &domain.comparer {
            Some(comparer) => comparer.compare(call, self),
            None => {
                let why = "this differ applies layers and does not compare (diff.enabled = false)";
                let error = Error::new(Kind::NotImplemented, "diff.disabled", why);
                Err(error.context(self.about().subject))
            }
        }
    }
}

/// The Diff service, which both wires call.
pub struct Service {
    domain: Domain,
    admission: Admission,
    applies: Arc<Joins<Applied>>,
    under_way: Arc<UnderWay>,
    observer: Arc<Observer>,
    memory: MemoryGauge,
    roots: HealthCheck,
    store: HealthCheck,
    processors: HealthCheck,
    quiet_since: Mutex<Instant>,
}

impl Service {
    /// Starts the workers. `memory` is called when metrics are read. Errors: a thread cannot be
    /// started.
    pub fn start(
        domain: Domain,
        observer: Arc<Observer>,
        capacity: Capacity,
        memory: MemoryGauge,
    ) -> io::Result<Self> {
        let admission = Admission::start(capacity)?;
        let (applies, under_way) = (Arc::default(), Arc::default());
        let (roots, store, processors) = (Box::new(|| Ok(())), Box::new(|| Ok(())), Box::new(|| Ok(())));
        let quiet_since = Mutex::new(Instant::now());
        Ok(Self {
            domain,
            admission,
            applies,
            under_way,
            observer,
            memory,
            roots,
            store,
            processors,
            quiet_since,
        })
    }

    /// Makes health depend on the snapshot roots and on the content store. Without this both count
    /// as healthy.
    #[must_use]
    pub fn with_health(self, roots: HealthCheck, store: HealthCheck) -> Self {
        Self { roots, store, ..self }
    }

    /// Reports `processors` in the metrics. Health does not depend on it: most layers need no stream processor.
    #[must_use]
    pub fn with_processors(self, processors: HealthCheck) -> Self {
        Self { processors, ..self }
    }

    /// Time since a request was last worked on or waiting.
    pub fn quiet_for(&self) -> Duration {
        let Load { running, stalled, waiting, .. } = self.admission.load();
        let is_busy = running + stalled + waiting > 0;
        let mut quiet_since = self.quiet_since.lock().unwrap_or_else(PoisonError::into_inner);
        if is_busy {
            *quiet_since = Instant::now();
        }
        quiet_since.elapsed()
    }

    /// Log and metrics of the service.
    pub fn observer(&self) -> &Arc<Observer> {
        &self.observer
    }

    /// Logs and counts a request that is refused before it begins. Returns the error.
    pub fn refuse(&self, caller: &Caller, error: Error) -> Error {
        Record::unread(caller).finish(&self.observer, refused(&error));
        error
    }

    /// Runs a request, or waits for the answer to an equal one that came earlier. Dropping the
    /// future cancels the work: at once while it waits, at its next check of the flag while it
    /// runs.
    pub async fn run<J: Job>(&self, caller: &Caller, call: Call, job: J) -> Result<J::Done> {
        *self.quiet_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let (reply, answer) = oneshot::channel();
        let record = Record::new(caller, &call, &job);
        let entry = match self.under_way.enter(&call.cancel) {
            Ok(entry) => entry,
            Err(stopping) => {
                let error = Error::from(stopping).context(record.subject());
                record.finish(&self.observer, refused(&error));
                return Err(error);
            }
        };
        let namespace = call.namespace.clone();
        let cancel = call.cancel.clone();
        let joins = job.joins(&call, self);
        let (domain, observer) = (self.domain.clone(), Arc::clone(&self.observer));
        let mut work = Work { call, job, record, reply: Some(reply), domain, observer, _entry: entry };
        // Dropped before `work`, which logs the reason why it did not run.
        let mut waiting = CancelOnDrop { cancel, ticket: None };
        let leader = match joins {
            None => None,
            Some((joins, key)) => match self.lead(&joins, &key, &waiting.cancel).await {
                Ok(Turn::Own(leader)) => Some(leader),
                Ok(Turn::Answered(outcome)) => {
                    work.finish(outcome);
                    return answer.await.unwrap_or_else(|_| Err(lost()));
                }
                Err(error) => {
                    let error = error.context(work.record.subject());
                    work.finish(Err(error));
                    return answer.await.unwrap_or_else(|_| Err(lost()));
                }
            },
        };
        let mut work = Some(work);
        let submitted = self.admission.submit(&namespace, || {
            let work = work.take();
            Box::new(move |queued, slot| {
                if let Some(work) = work {
                    work.run(queued, slot);
                }
            })
        });
        let outcome = match submitted {
            Ok(ticket) => {
                waiting.ticket = Some(ticket);
                waiting.outcome(answer).await
            }
            Err(busy) => {
                if let Some(mut work) = work {
                    let error = Error::from(busy).context(work.record.subject());
                    work.finish(Err(error));
                }
                answer.await.unwrap_or_else(|_| Err(lost()))
            }
        };
        if let Some(leader) = leader {
            leader.answer(&outcome);
        }
        outcome
    }

    /// Waits until the request is the first of its equals, or until the first one has an answer.
    async fn lead<T: Clone>(&self, joins: &Arc<Joins<T>>, key: &Key, cancel: &Cancel) -> Result<Turn<T>> {
        loop {
            let follower = match joins.join(key) {
                Role::Leader(leader) => return Ok(Turn::Own(leader)),
                Role::Follower(follower) => follower,
            };
            let _joined = self.admission.join()?;
            let answer = follower.answer();
            tokio::pin!(answer);
            let answered = loop {
                cancel.check()?;
                tokio::select! {
                    answered = &mut answer => break answered,
                    () = sleep(Cancel::POLL) => {}
                }
            };
            if let Some(outcome) = answered {
                return Ok(Turn::Answered(outcome));
            }
        }
    }

    /// Records that the daemon stops, which [`Report::health`] reports from now on. Requests are
    /// still accepted.
    pub fn stop(&self) {
        self.under_way.stop();
    }

    /// Waits until no request is under way.
    pub async fn idle(&self) {
        self.under_way.empty().await;
    }

    /// Refuses further requests and cancels those under way.
    pub async fn close(&self) {
        // Cancelled work ends within a second. The end of the process stops the rest.
        let (cancelled, stuck) = self.under_way.close(Duration::from_secs(2)).await;
        if cancelled > 0 {
            tracing::warn!(cancelled, stuck, "requests were cancelled because the daemon stops");
        }
    }
}

/// Turn of a request among its equals.
enum Turn<T> {
    /// The request is worked on; others may wait for its answer.
    Own(Leader<T>),
    /// An equal request had this answer.
    Answered(Result<T>),
}

/// Result of a failed request, in a type that fits both methods.
fn refused(error: &Error) -> Result<&dyn Success, &Error> {
    Err(error)
}

impl Report for Service {
    fn metrics(&self) -> String {
        let load = Load { memory_bytes: (self.memory)(), ..self.admission.load() };
        self.observer.metrics.containerd_reachable.set(i64::from((self.store)().is_ok()));
        self.observer.metrics.processors_available.set(i64::from((self.processors)().is_ok()));
        self.observer.metrics.text(load)
    }

    fn health(&self) -> std::result::Result<(), String> {
        // Taking the lock of the queue proves that it is not stuck.
        let _load = self.admission.load();
        if self.under_way.is_stopping() {
            return Err(Stopping.to_string());
        }
        (self.roots)().and_then(|()| (self.store)())
    }
}

/// Client's side of a request. Whatever ends it, the work is cancelled.
struct CancelOnDrop {
    cancel: Cancel,
    /// Place in the queue. Given up after the flag is set, from which the log line has the reason.
    ticket: Option<Ticket>,
}

impl CancelOnDrop {
    async fn outcome<T>(&mut self, mut answer: oneshot::Receiver<Result<T>>) -> Result<T> {
        if let Some(deadline) = self.cancel.deadline() {
            tokio::select! {
                outcome = &mut answer => return outcome.unwrap_or_else(|_| Err(lost())),
                // Running work checks the deadline itself. Waiting work is taken out of the queue.
                () = sleep_until(deadline.into()) => self.ticket = None,
            }
        }
        answer.await.unwrap_or_else(|_| Err(lost()))
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Error for a worker that ended without an answer, which should never happen.
fn lost() -> Error {
    Error::new(Kind::Internal, "server.lost", "the request was lost")
}

/// Worker's side of a request. However it ends, it is logged, counted and answered exactly once.
struct Work<J: Job> {
    call: Call,
    job: J,
    record: Record,
    reply: Option<oneshot::Sender<Result<J::Done>>>,
    domain: Domain,
    observer: Arc<Observer>,
    _entry: Entry,
}

impl<J: Job> Work<J> {
    fn run(mut self, queued: Duration, slot: Arc<Slot>) {
        self.record.started(queued, &self.observer);
        self.call.cancel = self.call.cancel.clone().with_place(Place::new(slot));
        // A panicking request shares only the domain with others, whose locks ignore poisoning.
        let outcome = catch(|| {
            self.call.cancel.check().map_err(|error| Error::from(error).context(self.record.subject()))?;
            self.job.run(&self.call, &self.domain)
        });
        self.finish(outcome);
    }

    fn finish(&mut self, outcome: Result<J::Done>) {
        let Some(reply) = self.reply.take() else { return };
        self.record.finish(&self.observer, outcome.as_ref().map(|done| done as &dyn Success));
        // A client that went away does not receive it.
        let _gone = reply.send(outcome);
    }
}

impl<J: Job> Drop for Work<J> {
    /// Answers a job that never ran: cancelled, or withdrawn because the daemon stops.
    fn drop(&mut self) {
        if self.reply.is_some() {
            let error = match self.call.cancel.check() {
                Err(cancelled) => cancelled.into(),
                Ok(()) => Stopping.into(),
            };
            let error: Error = error;
            self.finish(Err(error.context(self.record.subject())));
        }
    }
}
