//! The task behind one ingest: takes a lease, opens the stream, passes replies on, and removes reference and lease
//! when the blob was not finished.
//!
//! It outlives its writer until that is done, so that a request is undone even when its answer came too late for the
//! writer.
//!
//! Source: docs/formats/containerd.md, "Writing a blob"; containerd
//! `plugins/services/content/contentserver/contentserver.go`, `core/metadata/content.go`.

use std::{
    error::Error as _,
    future::Future,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use containerd_client::services::v1::{AbortRequest, WriteAction, WriteContentRequest, WriteContentResponse};
use prost_types::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use super::{
    client::{Client, RETRIES, from_status, request, text_of},
    ingest::{End, IN_FLIGHT, Kept, Opened, Progress},
    lease,
    watch::{Held, Watch},
};
use crate::{
    call::Call,
    error::{Error, Kind, Result},
    store::reason,
};

/// Longest wait for another writer of the same reference: a client that retries has just lost its connection, and the
/// store needs a moment to notice. The stall, if it is shorter, ends the wait.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// First and longest pause between two attempts to open or to remove.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Time for a stream to end in order once its writer is gone.
const GRACE: Duration = Duration::from_secs(1);
/// Longest time for one call of the clean-up, and for all calls that remove one reference or lease.
const CLEAN_UP: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));

/// Longest time for a write. The lease of a write expires so much later than the lifetime of blobs asks for, because
/// with an expired lease goes the blob that is being written.
const WRITE: Duration = Duration::from_secs(3600);

/// One ingest as the store sees it.
pub(super) struct Upload {
    client: Client,
    /// The call, with the lease in use.
    call: Call,
    reference: String,
    /// Name of ours, for the reference if the caller gave none, and for a lease of ours.
    name: String,
    watch: Watch,
    lease_lifetime: Duration,
    manner: Manner,
    /// Lease that this task has created, or tried to create.
    lease: Option<String>,
    /// Time of its creation, by containerd's clock.
    leased_at: Option<Timestamp>,
    /// Whether the store may know the reference.
    begun: bool,
}

/// Treatment of bytes that an earlier attempt left under the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// They are discarded.
    Anew,
    /// The rest is written behind them.
    Resume,
}

/// An open write stream to the store.
struct Session {
    requests: mpsc::Sender<WriteContentRequest>,
    replies: Streaming<WriteContentResponse>,
    /// Bytes that an earlier attempt left under the reference.
    left_bytes: i64,
}

/// Notes the end of the task when it is dropped, so that the writer learns of it even if the task never ran.
pub(super) struct Leaving(pub(super) Arc<Progress>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Upload {
    pub(super) fn new(
        client: Client,
        call: Call,
        reference: String,
        name: String,
        watch: Watch,
        lease_lifetime: Duration,
        manner: Manner,
    ) -> Self {
        Self {
            client,
            call,
            reference,
            name,
            watch,
            lease_lifetime,
            manner,
            lease: None,
            leased_at: None,
            begun: false,
        }
    }

    /// Runs until the blob is written, or reference and lease are removed. The writer closes `wanted` when it is done
    /// or has given up.
    pub(super) async fn run(mut self, leaving: Leaving, mut wanted: watch::Receiver<()>) {
        let progress = &leaving.0;
        let mut relayed = wanted.clone();
        let mut waited = wanted.clone();
        let outcome = tokio::select! {
            outcome = self.relay(progress, &mut relayed) => outcome,
            () = async { closed(&mut waited).await; sleep(GRACE).await } => Err(given_up()),
        };
        let failed = outcome.is_err();
        progress.finish(outcome);
        if !failed {
            closed(&mut wanted).await;
        }
        match progress.kept() {
            None => self.clean_up().await,
            Some(Kept { digest, is_new }) => {
                let Some(id) = self.lease else { return };
                // The creation of the lease was not answered. Now is later, so fewer holders count as younger.
                let since = self.leased_at.unwrap_or_else(|| SystemTime::now().into());
                let namespace = self.call.namespace.clone();
                self.watch.add(Held { namespace, id, digest, since, is_new }).await;
            }
        }
    }

    /// Takes a lease, opens the stream and passes replies on until it ends.
    async fn relay(&mut self, progress: &Progress, wanted: &mut watch::Receiver<()>) -> Result<End> {
        if self.call.lease.is_none() {
            self.lease().await?;
        }
        let Some(mut session) = self.open(wanted).await? else {
            progress.open(Opened { requests: None, call: self.call.clone(), left_bytes: 0 });
            return Ok(End::Exists);
        };
        if session.left_bytes != 0 && self.manner == Manner::Anew {
            self.truncate(&mut session).await?;
            session.left_bytes = 0;
        }
        let Session { requests, mut replies, left_bytes } = session;
        let left_bytes = u64::try_from(left_bytes).map_err(|_negative| {
            Error::new(Kind::DataLoss, reason::OFFSET, format!("the store is at byte {left_bytes}"))
        })?;
        progress.open(Opened { requests: Some(requests), call: self.call.clone(), left_bytes });
        loop {
            match replies.message().await {
                Ok(Some(reply)) => progress.reply(&reply)?,
                Ok(None) => return Ok(End::Closed),
                // The blob is committed: an error after that does not matter.
                Err(_) if progress.committed() => return Ok(End::Closed),
                Err(status) if status.code() == Code::AlreadyExists => return Ok(End::Exists),
                Err(status) => return Err(failure(&status, progress.committing())),
            }
        }
    }

    /// Creates a lease of our own, under which the blob is written.
    async fn lease(&mut self) -> Result<()> {
        let id = self.name.clone();
        let mut call = self.call.clone();
        call.lease = None;
        // Set before the call: when its answer is lost, the lease may exist.
        self.lease = Some(id.clone());
        let mut pauses = RETRIES.iter();
        loop {
            // The lifetime counts from the end of the write.
            let create = lease::create(&self.client, &call, &id, WRITE.saturating_add(self.lease_lifetime));
            let status = match timeout(self.client.stall, create).await {
                Err(_elapsed) => return Err(self.stalled("the lease")),
                Ok(Ok(created)) => {
                    self.leased_at = created;
                    break;
                }
                // The answer to an earlier attempt was lost.
                Ok(Err(status)) if status.code() == Code::AlreadyExists => break,
                Ok(Err(status)) => status,
            };
            match pauses.next() {
                Some(pause) if status.source().is_some() => sleep(*pause).await,
                _ => return Err(from_status(status).context("lease")),
            }
        }
        self.call.lease = Some(id);
        Ok(())
    }

    /// Opens the stream. Waits while the reference is locked. `None`: the store has the blob.
    async fn open(&mut self, wanted: &mut watch::Receiver<()>) -> Result<Option<Session>> {
        let begun = Instant::now();
        let mut unreachable = 0;
        let patience = LOCK_WAIT.min(self.client.stall);
        let (mut pause, longest) = PAUSES;
        loop {
            let (requests, messages) = mpsc::channel(IN_FLIGHT + 2);
            let stat = self.message(WriteAction::Stat);
            if requests.try_send(stat).is_err() {
                return Err(given_up());
            }
            let message = request(&self.call, ReceiverStream::new(messages))?;
            self.begun = true;
            let attempt = attempt(&self.client, message, requests);
            let status = match timeout(self.client.stall, attempt).await {
                Err(_elapsed) => return Err(self.stalled("the reference")),
                Ok(Ok(session)) => return Ok(Some(session)),
                Ok(Err(status)) => status,
            };
            let mut wait = pause;
            match status.code() {
                Code::AlreadyExists => return Ok(None),
                Code::NotFound if self.lease.is_none() => {
                    tracing::debug!(lease = ?self.call.lease, %status, "the caller's lease is gone, one of ours is taken");
                    self.lease().await?;
                    continue;
                }
                // A store that restarts gets the same time as from every other call.
                _ if status.source().is_some() && unreachable < RETRIES.len() => {
                    wait = RETRIES.get(unreachable).copied().unwrap_or(pause);
                    unreachable += 1;
                }
                Code::Unavailable if status.source().is_none() && begun.elapsed() < patience => {}
                _ => return Err(failure(&status, false)),
            }
            tracing::debug!(%status, reference = self.reference, "the reference cannot be written yet");
            tokio::select! {
                () = sleep(wait) => {}
                () = closed(wanted) => return Err(given_up()),
            }
            pause = (pause * 2).min(longest);
        }
    }

    /// Discards the bytes that an earlier attempt left. Errors: `DataLoss` when they are not gone.
    async fn truncate(&self, session: &mut Session) -> Result<()> {
        tracing::debug!(
            reference = self.reference,
            left_bytes = session.left_bytes,
            "begun anew over what was left"
        );
        // The store truncates at a write with offset 0.
        if session.requests.try_send(self.message(WriteAction::Write)).is_err() {
            return Err(given_up());
        }
        let reply = timeout(self.client.stall, session.replies.message()).await;
        let reply = reply.map_err(|_elapsed| self.stalled("the truncation"))?;
        match reply.map_err(|status| failure(&status, false))? {
            Some(reply) if reply.action() == WriteAction::Write && reply.offset == 0 => Ok(()),
            reply => {
                let offset = reply.map(|reply| reply.offset);
                let message = format!(
                    "{} bytes that were left are not gone, the store is at {offset:?}",
                    session.left_bytes
                );
                Err(Error::new(Kind::DataLoss, reason::OFFSET, message))
            }
        }
    }

    fn message(&self, action: WriteAction) -> WriteContentRequest {
        let (action, r#ref) = (action.into(), self.reference.clone());
        WriteContentRequest { action, r#ref, ..WriteContentRequest::default() }
    }

    fn stalled(&self, what: &str) -> Error {
        let seconds = self.client.stall.as_secs_f32();
        Error::new(Kind::Unavailable, reason::STALL, format!("no answer about {what} for {seconds} s"))
    }

    /// Removes the reference, if it is ours, and then the lease.
    async fn clean_up(&self) {
        if self.reference == self.name && self.begun {
            let abort = || async {
                let message = AbortRequest { r#ref: self.reference.clone() };
                let message =
                    request(&self.call, message).map_err(|error| Status::internal(error.to_string()))?;
                match self.client.content().abort(message).await {
                    Err(status) if status.code() != Code::NotFound => Err(status),
                    _ => Ok(()),
                }
            };
            persist("reference", &self.reference, abort).await;
        }
        if let Some(id) = &self.lease {
            persist("lease", id, || async { lease::delete(&self.client, &self.call, id).await.map(drop) })
                .await;
        }
    }
}

/// Opens a stream whose first message is in the channel already, and waits for the reply to it.
async fn attempt(
    client: &Client,
    message: Request<ReceiverStream<WriteContentRequest>>,
    requests: mpsc::Sender<WriteContentRequest>,
) -> Result<Session, Status> {
    let mut replies = client.content().write(message).await?.into_inner();
    match replies.message().await? {
        Some(reply) => Ok(Session { requests, replies, left_bytes: reply.offset }),
        None => Err(Status::data_loss("the store closed the stream without a reply")),
    }
}

/// Runs `undo` until it succeeds, for the time of [`CLEAN_UP`] at most. Logs what is left then.
async fn persist<F>(what: &str, name: &str, mut undo: impl FnMut() -> F)
where
    F: Future<Output = Result<(), Status>>,
{
    let (each, all) = CLEAN_UP;
    let begun = Instant::now();
    let (mut pause, longest) = PAUSES;
    loop {
        let problem = match timeout(each, undo()).await {
            Ok(Ok(())) => return,
            Ok(Err(status)) => text_of(&status),
            Err(_elapsed) => format!("no answer for {} s", each.as_secs_f32()),
        };
        if begun.elapsed() + pause >= all {
            tracing::warn!(what, name, problem, "left in the content store");
            return;
        }
        sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

/// Waits until the writer has finished, or is gone.
async fn closed(wanted: &mut watch::Receiver<()>) {
    while wanted.changed().await.is_ok() {}
}

fn given_up() -> Error {
    Error::new(Kind::Cancelled, "call.cancelled", "the write was given up")
}

/// Converts a status other than OK of a write into an error.
fn failure(status: &Status, committing: bool) -> Error {
    let local = status.source().is_some();
    let full = ["no space left on device", "disk quota exceeded", "file too large"];
    let (kind, reason) = match status.code() {
        // containerd passes on errors of its disk without a code.
        Code::Unknown | Code::Internal if !local => {
            if full.iter().any(|text| status.message().contains(text)) {
                (Kind::Exhausted, reason::FULL)
            } else {
                (Kind::Unavailable, reason::WRITE)
            }
        }
        Code::Unavailable if !local && status.message().contains("locked") => {
            (Kind::Unavailable, reason::LOCKED)
        }
        // A write can miss nothing but its lease.
        Code::NotFound => (Kind::Unavailable, reason::LEASE),
        Code::InvalidArgument => (Kind::Malformed, reason::REFUSED),
        Code::OutOfRange => (Kind::DataLoss, reason::OFFSET),
        // The bytes that arrived differ in size or digest from those that were sent.
        Code::FailedPrecondition if committing => (Kind::DataLoss, reason::DIGEST),
        _ => return from_status(status.clone()),
    };
    Error::new(kind, reason, text_of(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_a_write_tells_what_can_be_done() {
        for (status, committing, want) in [
            (
                Status::unknown("write /var/lib/x: no space left on device"),
                false,
                (Kind::Exhausted, "store.full"),
            ),
            (Status::unknown("write: input/output error"), false, (Kind::Unavailable, "store.write")),
            (Status::unavailable("ref x locked for 1s"), false, (Kind::Unavailable, "store.locked")),
            (Status::unavailable("shutting down"), false, (Kind::Unavailable, "store.unavailable")),
            (Status::not_found("lease \"x\": not found"), true, (Kind::Unavailable, "store.lease")),
            (Status::failed_precondition("namespace is required"), false, (Kind::Conflict, "store.refused")),
            (Status::failed_precondition("unexpected commit digest"), true, (Kind::DataLoss, "store.digest")),
            (
                Status::out_of_range("write @1 must occur at current offset 0"),
                false,
                (Kind::DataLoss, "store.offset"),
            ),
            (Status::resource_exhausted("message too large"), false, (Kind::Exhausted, "store.refused")),
        ] {
            let error = failure(&status, committing);
            assert_eq!((error.kind(), error.reason()), want, "{status:?}");
            assert!(error.to_string().contains(status.message()), "{error}");
        }
        for code in (1..=16).map(Code::from_i32) {
            assert_ne!(failure(&Status::new(code, ""), true).kind(), Kind::NotImplemented, "{code:?}");
        }
    }
}
