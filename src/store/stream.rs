//! Bytes on their way from an asynchronous receiver to a blocking reader, a bounded number at a
//! time.
//!
//! Independent of where the bytes come from.

use std::{
    collections::VecDeque,
    io::{self, Read},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::{Blob, reason};
use crate::{
    call::Cancel,
    error::{Error, Kind},
};

/// Bytes that may wait for the reader before the receiver stops asking for more. The last message
/// may exceed it by its own length. The transport's window holds further bytes.
const WAITING_BYTES: usize = 1 << 20;

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the reader: a piece or the end has arrived.
    filled: Condvar,
    /// Wakes the receiver: a piece was taken.
    drained: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    /// Outcome, set once after the last piece.
    end: Option<Result<(), Error>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Receiver's side. Dropping it without [`Sender::finish`] ends the stream with an error.
pub(crate) struct Sender {
    shared: Arc<Shared>,
}

impl Sender {
    /// Passes on a piece, and waits until there is room for the next one.
    pub(crate) async fn send(&self, piece: Vec<u8>) {
        {
            let mut state = self.shared.lock();
            state.waiting_bytes += piece.len();
            state.waiting.push_back(piece);
        }
        self.shared.filled.notify_one();
        while self.shared.lock().waiting_bytes >= WAITING_BYTES {
            self.shared.drained.notified().await;
        }
    }

    /// Ends the stream with its outcome, which the reader sees after all pieces.
    pub(crate) fn finish(self, outcome: Result<(), Error>) {
        self.shared.lock().end.get_or_insert(outcome);
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared.lock().end.get_or_insert_with(|| {
            Err(Error::new(Kind::Unavailable, reason::UNAVAILABLE, "the content client has stopped"))
        });
        self.shared.filled.notify_one();
    }
}

/// Reader's side: a blob whose bytes come through a [`Sender`].
pub(crate) struct Stream {
    shared: Arc<Shared>,
    piece: Vec<u8>,
    taken: usize,
    size_bytes: u64,
    read_bytes: u64,
    stall: Duration,
    cancel: Cancel,
    receiver: tokio::task::AbortHandle,
}

/// Creates a connected pair. `stall` is the longest time that the reader waits for the next piece.
/// `start` gets the sender and starts the task that uses it, which is aborted when the reader is
/// dropped.
pub(crate) fn stream(
    size_bytes: u64,
    stall: Duration,
    cancel: Cancel,
    start: impl FnOnce(Sender) -> tokio::task::AbortHandle,
) -> Stream {
    let shared = Arc::new(Shared::default());
    let receiver = start(Sender { shared: Arc::clone(&shared) });
    Stream { shared, piece: Vec::new(), taken: 0, size_bytes, read_bytes: 0, stall, cancel, receiver }
}

impl Stream {
    /// Waits for the next piece; `None` at the end. Errors: the stream's own, a stall, or
    /// cancellation.
    fn next(&self) -> Result<Option<Vec<u8>>, Error> {
        let wait = self.cancel.wait();
        loop {
            wait.go_on()?;
            if let Some(outcome) = self.poll() {
                wait.end()?;
                return outcome;
            }
            if wait.elapsed() >= self.stall {
                let message = format!(
                    "the content store sent nothing for {} s, after {} of {} bytes",
                    self.stall.as_secs_f32(),
                    self.read_bytes,
                    self.size_bytes
                );
                return Err(Error::new(Kind::Unavailable, reason::STALL, message));
            }
        }
    }

    /// Next piece or end; `None` when the cancel flag has to be checked again first.
    fn poll(&self) -> Option<Result<Option<Vec<u8>>, Error>> {
        let mut state = self.shared.lock();
        if state.waiting.is_empty() && state.end.is_none() {
            let wait = Cancel::POLL.min(self.stall);
            state = self.shared.filled.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
        if let Some(piece) = state.waiting.pop_front() {
            state.waiting_bytes -= piece.len();
            self.shared.drained.notify_one();
            return Some(Ok(Some(piece)));
        }
        match state.end.take()? {
            Ok(()) => {
                state.end = Some(Ok(()));
                Some(Ok(None))
            }
            // A second read after an error returns the same kind of error.
            Err(error) => {
                let again = Error::new(error.kind(), error.reason(), error.to_string());
                state.end = Some(Err(again));
                Some(Err(error))
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        while self.taken == self.piece.len() {
            match self.next().map_err(Error::into_io)? {
                Some(piece) => (self.piece, self.taken) = (piece, 0),
                None => return Ok(0),
            }
        }
        self.cancel.check().map_err(|stop| Error::from(stop).into_io())?;
        let mut rest = self.piece.get(self.taken..).unwrap_or_default();
        let read = rest.read(buf)?;
        self.taken += read;
        self.read_bytes += read as u64;
        Ok(read)
    }
}

impl Blob for Stream {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.receiver.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    }

    fn outcome(result: io::Result<usize>) -> (Kind, &'static str) {
        let error = Error::from_io(result.unwrap_err(), Kind::Internal, "");
        (error.kind(), error.reason())
    }

    #[test]
    fn pieces_arrive_in_order_and_the_end_after_them() {
        let runtime = runtime();
        let mut stream = stream(6, Duration::from_secs(5), Cancel::new(), |sender| {
            let task = runtime.spawn(async move {
                for piece in [b"ab".to_vec(), Vec::new(), b"cdef".to_vec()] {
                    sender.send(piece).await;
                }
                sender.finish(Ok(()));
            });
            task.abort_handle()
        });
        let mut read = Vec::new();
        stream.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"abcdef");
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_slow_reader_stops_the_sender() {
        let runtime = runtime();
        let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = Arc::clone(&sent);
        let mut stream = stream(64 << 20, Duration::from_secs(5), Cancel::new(), |sender| {
            let task = runtime.spawn(async move {
                for _ in 0..64 {
                    count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    sender.send(vec![0; 1 << 20]).await;
                }
                sender.finish(Ok(()));
            });
            task.abort_handle()
        });
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(sent.load(std::sync::atomic::Ordering::SeqCst), 1);
        assert_eq!(io::copy(&mut stream, &mut io::sink()).unwrap(), 64 << 20);
    }

    #[test]
    fn silence_is_a_stall_and_a_lost_sender_is_not() {
        let runtime = runtime();
        let mut silent = stream(1, Duration::from_millis(20), Cancel::new(), |sender| {
            let task = runtime.spawn(async move {
                let _held = sender;
                std::future::pending::<()>().await;
            });
            task.abort_handle()
        });
        assert_eq!(outcome(silent.read(&mut [0; 1])), (Kind::Unavailable, reason::STALL));
        let mut lost = stream(1, Duration::from_secs(5), Cancel::new(), |sender| {
            runtime.spawn(async move { drop(sender) }).abort_handle()
        });
        assert_eq!(outcome(lost.read(&mut [0; 1])), (Kind::Unavailable, reason::UNAVAILABLE));
        assert_eq!(outcome(lost.read(&mut [0; 1])), (Kind::Unavailable, reason::UNAVAILABLE));
    }

    #[test]
    fn a_cancellation_ends_the_wait_within_its_poll() {
        let runtime = runtime();
        let cancel = Cancel::new();
        let mut stream = stream(1, Duration::from_secs(60), cancel.clone(), |sender| {
            let task = runtime.spawn(async move {
                let _held = sender;
                std::future::pending::<()>().await;
            });
            task.abort_handle()
        });
        let canceller = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            cancel.cancel();
        });
        let begun = Instant::now();
        assert_eq!(outcome(stream.read(&mut [0; 1])).0, Kind::Cancelled);
        assert!(begun.elapsed() < Duration::from_secs(1));
        canceller.join().unwrap();
    }
}
