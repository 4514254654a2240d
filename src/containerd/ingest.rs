//! What the writer of a blob and the task that talks to the store know of each other.
//!
//! The writer blocks, the task does not. Neither waits here for longer than it says.

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

/// Messages that may wait for their reply: enough to keep the store busy, and with [`PIECE_BYTES`] all the
/// memory that an ingest takes.
pub(super) const IN_FLIGHT: usize = 4;
/// Bytes of one message at most.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// One blob on its way.
#[derive(Default)]
pub(super) struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    /// Set once when the reference is ours to write; taken by the writer.
    opened: Option<Opened>,
    /// What was sent and not answered yet, in the order of sending.
    awaited: VecDeque<Awaited>,
    /// The last message was sent.
    committing: bool,
    /// And answered.
    committed: bool,
    last_reply: Option<Instant>,
    /// Set once, when nothing more comes.
    end: Option<Result<End, Error>>,
    /// The writer has what it wanted: nothing is to be taken back.
    kept: Option<Kept>,
    /// The writer is gone.
    abandoned: bool,
    /// The task has ended, and with it all cleaning up.
    gone: bool,
}

/// What the writer needs for writing.
pub(super) struct Opened {
    /// Room for all that may be in flight. `None`: the store has the blob, nothing is to be sent.
    pub(super) requests: Option<mpsc::Sender<WriteContentRequest>>,
    /// With the lease in use.
    pub(super) call: Call,
}

/// The reply that a message asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Awaited {
    pub(super) action: WriteAction,
    /// Bytes of the blob that the store has afterwards.
    pub(super) offset: u64,
    /// Their digest, where it is known.
    pub(super) digest: Option<String>,
}

/// A blob that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) digest: Digest,
    /// It was not in the store before.
    pub(super) is_new: bool,
}

/// How a stream ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The store closed it.
    Closed,
    /// The store has this blob already.
    Exists,
}

/// What a committing writer is told.
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

    /// The task: writing may begin.
    pub(super) fn open(&self, opened: Opened) {
        // A writer that is gone would never take it, and so never end the stream.
        self.change(|state| state.opened = Some(opened).filter(|_| !state.abandoned));
    }

    /// The task: a reply came. Errors: `DataLoss` when it is not the one that is due.
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

    /// The task: nothing more comes.
    pub(super) fn finish(&self, outcome: Result<End>) {
        self.change(|state| state.end.get_or_insert(outcome).is_ok());
    }

    /// The task: it ends.
    pub(super) fn leave(&self) {
        let stopped = || Error::new(Kind::Unavailable, reason::UNAVAILABLE, "the content client has stopped");
        self.change(|state| {
            state.gone = true;
            state.end.get_or_insert_with(|| Err(stopped())).is_ok()
        });
    }

    /// Whether the last message was sent.
    pub(super) fn committing(&self) -> bool {
        self.lock().committing
    }

    /// Whether it was answered, and well.
    pub(super) fn committed(&self) -> bool {
        self.lock().committed
    }

    /// The writer: everything is well.
    pub(super) fn keep(&self, kept: Kept) {
        self.change(|state| state.kept = Some(kept));
    }

    /// The argument of [`Progress::keep`], once it was called.
    pub(super) fn kept(&self) -> Option<Kept> {
        self.lock().kept.clone()
    }

    /// The writer: waits until writing may begin. The task bounds the time.
    pub(super) fn opened(&self, cancel: &Cancel) -> Result<Opened> {
        self.wait(cancel, None, |state| state.opened.take().map(Ok))
    }

    /// The writer: waits until another message may be sent, and notes what it asks for. `false`: nothing
    /// is to be sent any more, the store has the blob.
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

    /// The writer: waits for the answer to the last message, or for what made it needless.
    pub(super) fn outcome(&self, cancel: &Cancel, stall: Duration) -> Result<Outcome> {
        self.wait(cancel, Some(stall), |state| match state.end {
            _ if state.committed => Some(Ok(Outcome::Committed)),
            Some(Ok(End::Exists)) => Some(Ok(Outcome::Existed)),
            Some(Ok(End::Closed)) => Some(Err(closed())),
            _ => None,
        })
    }

    /// The writer: nothing will be written.
    pub(super) fn abandon(&self) {
        let opened = self.change(|state| {
            state.abandoned = true;
            state.opened.take()
        });
        drop(opened);
    }

    /// The writer: waits until the task has ended, for `limit` at most.
    pub(super) fn gone(&self, limit: Duration) {
        let _ = self.changed.wait_timeout_while(self.lock(), limit, |state| !state.gone);
    }

    /// Waits until `pick` finds something, the task has failed, or the call is cancelled; with a `stall`
    /// also until no reply has come for so long.
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
            // What failed stays failed, whatever came before.
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
