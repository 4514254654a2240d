//! State shared by the writer of a blob, which blocks, and the task that talks to the store, which does not.
//!
//! The writer's waits end when the call is cancelled, and most also after a time that the caller sets.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use containerd_client::services::v1::{WriteAction, WriteContentRequest, WriteContentResponse};
use tokio::sync::mpsc;

use crate::{
    call::{Call, Cancel},
    digest::Digest,
    error::{Error, Kind, Result},
    store::reason,
};

/// Most messages without a reply: enough to keep the store busy. With [`PIECE_BYTES`] it bounds the memory of an
/// ingest.
pub(super) const IN_FLIGHT: usize = 4;
/// Most bytes of the blob in one message: as many as containerd's own replies to reads carry, and well below its
/// largest message of 16 MiB.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// State of one ingest.
#[derive(Default)]
pub(super) struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    /// Set once by the task when the reference is ours to write, and taken by the writer.
    opened: Option<Opened>,
    /// Replies that are due, in the order of the messages.
    awaited: VecDeque<Awaited>,
    /// Whether the commit was sent.
    committing: bool,
    /// Whether the store has answered the commit.
    committed: bool,
    last_reply: Option<Instant>,
    /// Outcome of the stream, set once at its end.
    end: Option<Result<End, Error>>,
    /// The blob, once the writer has finished it: nothing is to be removed then.
    kept: Option<Kept>,
    /// Whether the writer is gone.
    abandoned: bool,
    /// Whether the task has ended, and with it the clean-up.
    gone: bool,
}

/// Access to the stream, for the writer.
pub(super) struct Opened {
    /// Channel with room for [`IN_FLIGHT`] messages. `None`: the store has the blob, nothing is to be sent.
    pub(super) requests: Option<mpsc::Sender<WriteContentRequest>>,
    /// The call, with the lease in use.
    pub(super) call: Call,
    /// Bytes that the store has under the reference.
    pub(super) left_bytes: u64,
}

/// The reply that is due for a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Awaited {
    pub(super) action: WriteAction,
    /// Bytes of the blob that the store has after the message.
    pub(super) offset: u64,
    /// Digest of these bytes, for a commit.
    pub(super) digest: Option<String>,
}

/// A blob that the writer has finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) digest: Digest,
    /// Whether the blob was not in the store before.
    pub(super) is_new: bool,
}

/// End of a stream without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The store closed the stream.
    Closed,
    /// The store has this blob already.
    Exists,
}

/// Result of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Committed,
    Existed,
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.lock());
        self.changed.notify_all();
        changed
    }

    /// For the task: lets the writer begin.
    pub(super) fn open(&self, opened: Opened) {
        // A writer that is gone would never take the channel, and the stream would never end.
        self.change(|state| state.opened = Some(opened).filter(|_| !state.abandoned));
    }

    /// For the task: compares a reply with the one that is due. Errors: `DataLoss` when they differ.
    pub(super) fn reply(&self, reply: &WriteContentResponse) -> Result<()> {
        self.change(|state| {
            // The last reply of a stream comes twice.
            let Some(due) = state.awaited.pop_front() else { return Ok(()) };
            if reply.action() != due.action || u64::try_from(reply.offset) != Ok(due.offset) {
                let message = format!(
                    "the store is at byte {} after {:?}, not at byte {} after {:?}",
                    reply.offset,
                    reply.action(),
                    due.offset,
                    due.action
                );
                return Err(Error::new(Kind::DataLoss, reason::OFFSET, message));
            }
            if let Some(digest) = due.digest.filter(|digest| *digest != reply.digest) {
                let message = format!("the store committed {:?}, not {digest}", reply.digest);
                return Err(Error::new(Kind::DataLoss, reason::DIGEST, message));
            }
            state.committed |= due.action == WriteAction::Commit;
            state.last_reply = Some(Instant::now());
            Ok(())
        })
    }

    /// For the task: sets the outcome of the stream.
    pub(super) fn finish(&self, outcome: Result<End>) {
        self.change(|state| state.end.get_or_insert(outcome).is_ok());
    }

    /// For the task: notes its end.
    pub(super) fn leave(&self) {
        let stopped = || Error::new(Kind::Unavailable, reason::UNAVAILABLE, "the content client has stopped");
        self.change(|state| {
            state.gone = true;
            state.end.get_or_insert_with(|| Err(stopped())).is_ok()
        });
    }

    /// Whether the commit was sent.
    pub(super) fn committing(&self) -> bool {
        self.lock().committing
    }

    /// Whether the store has answered the commit with the digest that was sent.
    pub(super) fn committed(&self) -> bool {
        self.lock().committed
    }

    /// For the writer: notes that the blob is finished, so that nothing is removed.
    pub(super) fn keep(&self, kept: Kept) {
        self.change(|state| state.kept = Some(kept));
    }

    /// Returns the argument of [`Progress::keep`], once that was called.
    pub(super) fn kept(&self) -> Option<Kept> {
        self.lock().kept.clone()
    }

    /// For the writer: waits until it may begin. The task bounds the time.
    pub(super) fn opened(&self, cancel: &Cancel) -> Result<Opened> {
        self.wait(cancel, None, |state| state.opened.take().map(Ok))
    }

    /// For the writer: waits until another message may be sent, and notes the reply that is due for it. Returns `false`
    /// when nothing is to be sent any more, because the store has the blob.
    pub(super) fn begin(&self, cancel: &Cancel, stall: Duration, asks: Awaited) -> Result<bool> {
        let mut asks = Some(asks);
        self.wait(cancel, Some(stall), |state| match state.end {
            Some(Ok(End::Exists)) => Some(Ok(false)),
            Some(Ok(End::Closed)) => Some(Err(closed())),
            _ if state.awaited.len() >= IN_FLIGHT => None,
            _ => asks.take().map(|asks| {
                state.committing |= asks.action == WriteAction::Commit;
                state.awaited.push_back(asks);
                Ok(true)
            }),
        })
    }

    /// For the writer: waits until the commit is answered, or the store reports that it has the blob.
    pub(super) fn outcome(&self, cancel: &Cancel, stall: Duration) -> Result<Outcome> {
        self.wait(cancel, Some(stall), |state| match state.end {
            _ if state.committed => Some(Ok(Outcome::Committed)),
            Some(Ok(End::Exists)) => Some(Ok(Outcome::Existed)),
            Some(Ok(End::Closed)) => Some(Err(closed())),
            _ => None,
        })
    }

    /// For the writer: notes that it is gone.
    pub(super) fn abandon(&self) {
        let opened = self.change(|state| {
            state.abandoned = true;
            state.opened.take()
        });
        drop(opened);
    }

    /// For the writer: waits until the task has ended, for `limit` at most.
    pub(super) fn gone(&self, limit: Duration) {
        let _ = self.changed.wait_timeout_while(self.lock(), limit, |state| !state.gone);
    }

    /// Waits until `pick` returns something. Errors: that of the task; the call is cancelled; no reply has come for
    /// `stall`, if one is set.
    fn wait<T>(
        &self,
        cancel: &Cancel,
        stall: Option<Duration>,
        mut pick: impl FnMut(&mut State) -> Option<Result<T>>,
    ) -> Result<T> {
        let begun = Instant::now();
        let mut state = self.lock();
        loop {
            cancel.check()?;
            // A stream that failed stays failed, whatever came before.
            if let Some(Err(error)) = &state.end {
                return Err(Error::new(error.kind(), error.reason(), error.to_string()));
            }
            if let Some(picked) = pick(&mut state) {
                return picked;
            }
            let silent = state.last_reply.map_or(begun, |last| last.max(begun)).elapsed();
            if let Some(stall) = stall.filter(|stall| silent >= *stall) {
                let message = format!("the content store answered nothing for {} s", stall.as_secs_f32());
                return Err(Error::new(Kind::Unavailable, reason::STALL, message));
            }
            let poll = Cancel::POLL.min(stall.unwrap_or(Cancel::POLL));
            state = self.changed.wait_timeout(state, poll).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn closed() -> Error {
    Error::new(Kind::Unavailable, reason::UNAVAILABLE, "the store closed the stream before the commit")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(30);

    fn asks(action: WriteAction, offset: u64) -> Awaited {
        Awaited { action, offset, digest: (action == WriteAction::Commit).then(|| "sha256:ours".to_owned()) }
    }

    fn reply(action: WriteAction, offset: i64, digest: &str) -> WriteContentResponse {
        WriteContentResponse {
            action: action.into(),
            offset,
            digest: digest.to_owned(),
            ..WriteContentResponse::default()
        }
    }

    fn begin(progress: &Progress, asks: Awaited) -> Result<bool> {
        progress.begin(&Cancel::new(), SOON, asks)
    }

    #[test]
    fn so_many_messages_are_in_flight_and_no_more() {
        let progress = Progress::default();
        for number in 1..=IN_FLIGHT as u64 {
            assert!(begin(&progress, asks(WriteAction::Write, number)).unwrap());
        }
        assert_eq!(begin(&progress, asks(WriteAction::Write, 9)).unwrap_err().reason(), "store.stall");
        progress.reply(&reply(WriteAction::Write, 1, "")).unwrap();
        assert!(begin(&progress, asks(WriteAction::Write, 9)).unwrap());
    }

    #[test]
    fn a_reply_is_the_one_that_is_due_or_data_loss() {
        for (wrong, want) in [
            (reply(WriteAction::Write, 11, ""), "store.offset"),
            (reply(WriteAction::Write, -10, ""), "store.offset"),
            (reply(WriteAction::Commit, 10, ""), "store.offset"),
        ] {
            let progress = Progress::default();
            begin(&progress, asks(WriteAction::Write, 10)).unwrap();
            assert_eq!(progress.reply(&wrong).unwrap_err().reason(), want);
        }
        let progress = Progress::default();
        begin(&progress, asks(WriteAction::Commit, 10)).unwrap();
        let error = progress.reply(&reply(WriteAction::Commit, 10, "sha256:theirs")).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "store.digest"));
    }

    #[test]
    fn the_last_reply_may_come_twice() {
        let progress = Progress::default();
        begin(&progress, asks(WriteAction::Commit, 10)).unwrap();
        for _ in 0..2 {
            progress.reply(&reply(WriteAction::Commit, 10, "sha256:ours")).unwrap();
        }
        assert_eq!(progress.outcome(&Cancel::new(), SOON).unwrap(), Outcome::Committed);
    }

    #[test]
    fn a_stream_that_ends_without_a_commit_is_no_success() {
        let progress = Progress::default();
        progress.finish(Ok(End::Closed));
        let error = begin(&progress, asks(WriteAction::Write, 1)).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, "store.unavailable"));
        assert!(progress.outcome(&Cancel::new(), SOON).is_err());
    }

    #[test]
    fn a_blob_that_exists_swallows_what_is_still_written() {
        let progress = Progress::default();
        progress.finish(Ok(End::Exists));
        assert!(!begin(&progress, asks(WriteAction::Write, 1)).unwrap());
        assert_eq!(progress.outcome(&Cancel::new(), SOON).unwrap(), Outcome::Existed);
    }

    #[test]
    fn a_failure_is_told_every_time_and_a_lost_task_is_one() {
        let progress = Progress::default();
        progress.finish(Err(Error::new(Kind::Exhausted, "store.full", "no space")));
        progress.leave();
        for _ in 0..2 {
            let error = begin(&progress, asks(WriteAction::Write, 1)).unwrap_err();
            assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "store.full"));
        }
        let lost = Progress::default();
        lost.leave();
        assert_eq!(lost.opened(&Cancel::new()).err().unwrap().reason(), "store.unavailable");
        lost.gone(Duration::from_secs(60));
    }
}
