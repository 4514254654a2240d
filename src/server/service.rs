//! What both wires call: one request, admitted, run on a worker, counted and logged.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, time::sleep_until};

use super::{
    admission::{Admission, Capacity, Ticket},
    caller::Caller,
    drain::{Entry, Stopping, UnderWay},
};
use crate::{
    apply::{self, Applied, Apply},
    call::{Call, Cancel},
    compare::{self, Compare, Compared},
    error::{Error, Kind, Result},
    observe::{Load, Observer, Record, Subject, Success, scrape::Report},
    pipeline::stage::panicked,
};

/// Reads the bytes of metadata memory that are charged to requests.
pub type MemoryGauge = Box<dyn Fn() -> u64 + Send + Sync>;

/// Errors: why something that requests depend on is not there.
pub type HealthCheck = Box<dyn Fn() -> std::result::Result<(), String> + Send + Sync>;

/// The domain's half of both methods.
#[derive(Clone)]
pub struct Domain {
    /// Does Apply.
    pub applier: Arc<dyn Apply>,
    /// Does Diff; `None` leaves it to containerd's next differ.
    pub comparer: Option<Arc<dyn Compare>>,
}

/// A request of either method.
pub trait Job: Subject + Send + 'static {
    /// What it comes to.
    type Done: Success + Send + 'static;

    /// Does the work. Blocks; ends within a second of the call's cancellation.
    fn run(&self, call: &Call, domain: &Domain) -> Result<Self::Done>;
}

impl Job for apply::Request {
    type Done = Applied;

    fn run(&self, call: &Call, domain: &Domain) -> Result<Applied> {
        domain.applier.apply(call, self)
    }
}

impl Job for compare::Request {
    type Done = Compared;

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

/// The Diff service behind the wires.
pub struct Service {
    domain: Domain,
    admission: Admission,
    under_way: Arc<UnderWay>,
    observer: Arc<Observer>,
    memory: MemoryGauge,
    roots: HealthCheck,
    store: HealthCheck,
}

impl Service {
    /// Starts the workers. `memory` is looked at when metrics are read.
    pub fn start(
        domain: Domain,
        observer: Arc<Observer>,
        capacity: Capacity,
        memory: MemoryGauge,
    ) -> io::Result<Self> {
        let admission = Admission::start(capacity)?;
        let (roots, store) = (Box::new(|| Ok(())), Box::new(|| Ok(())));
        Ok(Self { domain, admission, under_way: Arc::default(), observer, memory, roots, store })
    }

    /// Lets health depend on the snapshot roots and on the content store; without this, both are fine.
    #[must_use]
    pub fn with_health(self, roots: HealthCheck, store: HealthCheck) -> Self {
        Self { roots, store, ..self }
    }

    /// Whether no request is worked on or waits.
    pub fn is_idle(&self) -> bool {
        let Load { running, waiting, .. } = self.admission.load();
        running == 0 && waiting == 0
    }

    /// Where everything is counted.
    pub fn observer(&self) -> &Arc<Observer> {
        &self.observer
    }

    /// Logs and counts a request that ends before it begins; gives the error back.
    pub fn refuse(&self, caller: &Caller, error: Error) -> Error {
        Record::unread(caller).finish(&self.observer, refused(&error));
        error
    }

    /// Runs a request. Dropping the future cancels the work: at once when it still waits, at its next
    /// look at the flag when it runs.
    pub async fn run<J: Job>(&self, caller: &Caller, call: Call, job: J) -> Result<J::Done> {
        let (reply, answer) = oneshot::channel();
        let record = Record::new(caller, &call, &job);
        let entry = match self.under_way.enter(&call.cancel) {
            Ok(entry) => entry,
            Err(stopping) => return Err(self.turn_away(&record, stopping.into())),
        };
        let cancel = call.cancel.clone();
        let namespace = call.namespace.clone();
        let (domain, observer) = (self.domain.clone(), Arc::clone(&self.observer));
        let work = {
            let record = record.clone();
            move || Work { call, job, record, reply: Some(reply), domain, observer, _entry: entry }
        };
        let ticket = match self.admission.submit(&namespace, || {
            let work = work();
            Box::new(move |queued| work.run(queued))
        }) {
            Ok(ticket) => ticket,
            Err(busy) => return Err(self.turn_away(&record, busy.into())),
        };
        let waiting = CancelOnDrop { cancel, ticket };
        waiting.outcome(answer).await
    }

    /// Notes that the daemon stops: [`Report::health`] says so from now on. Requests are still taken.
    pub fn stop(&self) {
        self.under_way.stop();
    }

    /// Waits until no request is under way.
    pub async fn idle(&self) {
        self.under_way.empty().await;
    }

    /// Takes no more requests and cancels those under way.
    pub async fn close(&self) {
        // Cancelled work ends within a second; the rest is left to the end of the process.
        let (cancelled, stuck) = self.under_way.close(Duration::from_secs(2)).await;
        if cancelled > 0 {
            tracing::warn!(cancelled, stuck, "requests were cancelled because the daemon stops");
        }
    }

    fn turn_away(&self, record: &Record, error: Error) -> Error {
        let error = error.context(record.subject());
        record.finish(&self.observer, refused(&error));
        error
    }
}

/// A request that came to nothing, whichever it was.
fn refused(error: &Error) -> Result<&dyn Success, &Error> {
    Err(error)
}

impl Report for Service {
    fn metrics(&self) -> String {
        let load = Load { memory_bytes: (self.memory)(), ..self.admission.load() };
        self.observer.metrics.containerd_reachable.set(i64::from((self.store)().is_ok()));
        self.observer.metrics.text(load)
    }

    fn health(&self) -> std::result::Result<(), String> {
        // Taking the queue's lock shows that it is not stuck.
        let _load = self.admission.load();
        if self.under_way.is_stopping() {
            return Err(Stopping.to_string());
        }
        (self.roots)().and_then(|()| (self.store)())
    }
}

/// The client's side of a request. Whatever ends it, nobody works on for nothing.
struct CancelOnDrop {
    cancel: Cancel,
    ticket: Ticket,
}

impl CancelOnDrop {
    async fn outcome<T>(&self, mut answer: oneshot::Receiver<Result<T>>) -> Result<T> {
        if let Some(deadline) = self.cancel.deadline() {
            tokio::select! {
                outcome = &mut answer => return outcome.unwrap_or_else(|_| Err(lost())),
                // Running work sees the deadline itself; waiting work is taken out of the queue.
                () = sleep_until(deadline.into()) => self.ticket.withdraw(),
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

/// A worker that ended without an answer, which none does.
fn lost() -> Error {
    Error::new(Kind::Internal, "server.lost", "the request was lost")
}

/// The worker's side of a request. However it ends, it is logged, counted and answered exactly once.
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
    fn run(mut self, queued: Duration) {
        self.record.started(queued, &self.observer);
        // Nothing is shared with a panicking request but the domain, whose locks are poison-proof.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            self.call.cancel.check().map_err(|error| Error::from(error).context(self.record.subject()))?;
            self.job.run(&self.call, &self.domain)
        }));
        let outcome = outcome.unwrap_or_else(|panic| Err(panicked(&*panic)));
        self.finish(outcome);
    }

    fn finish(&mut self, outcome: Result<J::Done>) {
        let Some(reply) = self.reply.take() else { return };
        self.record.finish(&self.observer, outcome.as_ref().map(|done| done as &dyn Success));
        // A client that went away does not want it.
        let _gone = reply.send(outcome);
    }
}

impl<J: Job> Drop for Work<J> {
    /// Withdrawn from the queue: cancelled or too late.
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
