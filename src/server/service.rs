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
    apply::{Applied, Apply, Request},
    call::{Call, Cancel},
    error::{Error, Kind, Result},
    observe::{Load, Observer, Record, scrape::Report},
    pipeline::stage::panicked,
};

/// Reads the bytes of metadata memory that are charged to requests.
pub type MemoryGauge = Box<dyn Fn() -> u64 + Send + Sync>;

/// The Diff service behind the wires.
pub struct Service {
    applier: Arc<dyn Apply>,
    admission: Admission,
    under_way: Arc<UnderWay>,
    observer: Arc<Observer>,
    memory: MemoryGauge,
}

impl Service {
    /// Starts the workers. `memory` is looked at when metrics are read.
    pub fn start(
        applier: Arc<dyn Apply>,
        observer: Arc<Observer>,
        capacity: Capacity,
        memory: MemoryGauge,
    ) -> io::Result<Self> {
        let admission = Admission::start(capacity)?;
        Ok(Self { applier, admission, under_way: Arc::default(), observer, memory })
    }

    /// Where everything is counted.
    pub fn observer(&self) -> &Arc<Observer> {
        &self.observer
    }

    /// Logs and counts a request that ends before it begins; gives the error back.
    pub fn refuse(&self, caller: &Caller, error: Error) -> Error {
        Record::unread(caller).finish(&self.observer, Err(&error));
        error
    }

    /// The answer to Diff, so that containerd asks its next differ.
    pub fn diff_unsupported() -> Error {
        Error::new(
            Kind::NotImplemented,
            "diff.unsupported",
            "this differ applies layers and does not compare",
        )
    }

    /// Applies a layer. Dropping the future cancels the work: at once when it still waits, at its next
    /// look at the flag when it runs.
    pub async fn apply(&self, caller: &Caller, call: Call, request: Request) -> Result<Applied> {
        let (reply, answer) = oneshot::channel();
        let record = Record::new(caller, &call, &request);
        let entry = match self.under_way.enter(&call.cancel) {
            Ok(entry) => entry,
            Err(stopping) => return Err(self.turn_away(&record, stopping.into())),
        };
        let cancel = call.cancel.clone();
        let namespace = call.namespace.clone();
        let (applier, observer) = (Arc::clone(&self.applier), Arc::clone(&self.observer));
        let work = {
            let record = record.clone();
            move || Work { call, request, record, reply: Some(reply), applier, observer, _entry: entry }
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

    /// Takes no more requests; gives those under way `grace` to finish and cancels the rest.
    pub async fn drain(&self, grace: Duration) {
        // Cancelled work ends within a second; the rest is left to the end of the process.
        let (cancelled, stuck) = self.under_way.drain(grace, Duration::from_secs(2)).await;
        if cancelled > 0 {
            tracing::warn!(cancelled, stuck, "requests were cancelled because the daemon stops");
        }
    }

    fn turn_away(&self, record: &Record, error: Error) -> Error {
        let error = error.context(record.subject());
        record.finish(&self.observer, Err(&error));
        error
    }
}

impl Report for Service {
    fn metrics(&self) -> String {
        let load = Load { memory_bytes: (self.memory)(), ..self.admission.load() };
        self.observer.metrics.text(load)
    }

    fn health(&self) -> std::result::Result<(), String> {
        // Taking the queue's lock shows that it is not stuck.
        let _load = self.admission.load();
        if self.under_way.is_stopping() { Err(Stopping.to_string()) } else { Ok(()) }
    }
}

/// The client's side of a request. Whatever ends it, nobody works on for nothing.
struct CancelOnDrop {
    cancel: Cancel,
    ticket: Ticket,
}

impl CancelOnDrop {
    async fn outcome(&self, mut answer: oneshot::Receiver<Result<Applied>>) -> Result<Applied> {
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
struct Work {
    call: Call,
    request: Request,
    record: Record,
    reply: Option<oneshot::Sender<Result<Applied>>>,
    applier: Arc<dyn Apply>,
    observer: Arc<Observer>,
    _entry: Entry,
}

impl Work {
    fn run(mut self, queued: Duration) {
        self.record.started(queued, &self.observer);
        // Nothing is shared with a panicking request but the applier, whose locks are poison-proof.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            self.call.cancel.check().map_err(|error| Error::from(error).context(self.record.subject()))?;
            self.applier.apply(&self.call, &self.request)
        }));
        let outcome = outcome.unwrap_or_else(|panic| Err(panicked(&*panic)));
        self.finish(outcome);
    }

    fn finish(&mut self, outcome: Result<Applied>) {
        let Some(reply) = self.reply.take() else { return };
        self.record.finish(&self.observer, outcome.as_ref());
        // A client that went away does not want it.
        let _gone = reply.send(outcome);
    }
}

impl Drop for Work {
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
