//! Steps of work on a stream, each on the caller's thread or on one of its own.
//!
//! Bytes are pushed from the source downwards. A stage that has a thread is fed through a bounded
//! channel, so a slow one holds up those before it and nothing piles up. Errors come back up: a push into
//! a stage that failed returns the error of that stage. A panic is such an error.
//!
//! No wait here is cancellable, and none needs to be: at the source a read ends soon after a
//! cancellation, and so does the only wait downstream, the one for memory.

use std::{
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::Scope,
};

use super::{buffer::Chunk, helpers::Permit};
use crate::{
    error::{Error, Kind, Result},
    sys::thread::{Scoped, spawn_scoped},
};

/// Chunks on their way to a thread. Fewer leave one end idle when the other is uneven or waits for a processor; more only
/// hold memory.
const CHANNEL_DEPTH: usize = 6;

/// One step of work over a stream of bytes.
pub trait Stage: Send {
    /// Result of the whole stream.
    type Output: Send;

    /// Takes in the next bytes. After an error the caller drops the stage.
    fn push(&mut self, chunk: Chunk) -> Result<()>;

    /// Ends the stream.
    fn finish(self) -> Result<Self::Output>;
}

/// A stage where it runs: here, or on a thread.
#[derive(Debug)]
pub enum Placed<'scope, S: Stage> {
    /// On the thread that pushes.
    Here(S),
    /// On a thread of its own.
    Apart(Apart<'scope, S::Output>),
}

/// The near end of a stage on a thread.
#[derive(Debug)]
pub struct Apart<'scope, T> {
    sender: SyncSender<Message>,
    /// Taken when it is joined.
    thread: Option<Scoped<'scope, T>>,
}

#[derive(Debug)]
enum Message {
    Chunk(Chunk),
    End,
}

impl<'scope, S: Stage + 'scope> Placed<'scope, S> {
    /// Puts `stage` on a thread called `name` if there is a permit for one. Errors: the system has no
    /// more threads.
    pub fn new<'env>(
        scope: &'scope Scope<'scope, 'env>,
        permit: Option<Permit>,
        name: &str,
        stage: S,
    ) -> Result<Self> {
        let Some(permit) = permit else { return Ok(Self::Here(stage)) };
        let (sender, receiver) = sync_channel(CHANNEL_DEPTH);
        let thread = spawn_scoped(scope, name, move || {
            let _held = permit;
            serve(stage, receiver)
        })?;
        Ok(Self::Apart(Apart { sender, thread: Some(thread) }))
    }

    /// Moves a stage that is at work here to a thread of its own. Errors: the system has no more threads.
    pub fn apart<'env>(self, scope: &'scope Scope<'scope, 'env>, permit: Permit, name: &str) -> Result<Self> {
        match self {
            Self::Here(stage) => Self::new(scope, Some(permit), name, stage),
            apart @ Self::Apart(_) => Ok(apart),
        }
    }
}

/// The life of a stage on a thread. It and its receiver are gone when this returns.
fn serve<S: Stage>(mut stage: S, receiver: Receiver<Message>) -> Result<S::Output> {
    loop {
        match receiver.recv() {
            Ok(Message::Chunk(chunk)) => stage.push(chunk)?,
            Ok(Message::End) => return stage.finish(),
            // The pushing side has failed and reports that.
            Err(_hung_up) => return Err(Error::new(Kind::Internal, "pipeline.abandoned", "abandoned")),
        }
    }
}

impl<T> Apart<'_, T> {
    fn send(&mut self, message: Message) -> Result<()> {
        if self.sender.send(message).is_ok() {
            return Ok(());
        }
        // A thread hangs up early only because its stage failed.
        match self.join() {
            Err(error) => Err(error),
            Ok(_) => Err(Error::new(Kind::Internal, "pipeline.abandoned", "a stage ended before its input")),
        }
    }

    fn join(&mut self) -> Result<T> {
        match self.thread.take() {
            Some(thread) => thread.join(),
            None => Err(Error::new(Kind::Internal, "pipeline.abandoned", "the stage has failed before")),
        }
    }
}

impl<S: Stage> Stage for Placed<'_, S> {
    type Output = S::Output;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        match self {
            Self::Here(stage) => stage.push(chunk),
            Self::Apart(apart) => apart.send(Message::Chunk(chunk)),
        }
    }

    fn finish(self) -> Result<S::Output> {
        match self {
            Self::Here(stage) => stage.finish(),
            Self::Apart(mut apart) => {
                apart.send(Message::End)?;
                apart.join()
            }
        }
    }
}

/// Two stages that see the same bytes.
#[derive(Debug)]
pub struct Both<A, B>(pub A, pub B);

impl<A: Stage, B: Stage> Stage for Both<A, B> {
    type Output = (A::Output, B::Output);

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        self.0.push(chunk.clone())?;
        self.1.push(chunk)
    }

    fn finish(self) -> Result<Self::Output> {
        Ok((self.0.finish()?, self.1.finish()?))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::{
        super::{buffer::Pool, helpers::Helpers},
        *,
    };

    /// Adds up bytes; fails or panics at a given one.
    struct Sum {
        sum: u64,
        refuse: u8,
        panic: u8,
    }

    const SUM: Sum = Sum { sum: 0, refuse: 255, panic: 254 };

    impl Stage for Sum {
        type Output = u64;

        fn push(&mut self, chunk: Chunk) -> Result<()> {
            for byte in chunk.iter() {
                assert_ne!(*byte, self.panic, "the byte to panic at");
                if *byte == self.refuse {
                    return Err(Error::new(Kind::Malformed, "test.refused", "refused"));
                }
                self.sum += u64::from(*byte);
            }
            Ok(())
        }

        fn finish(self) -> Result<u64> {
            Ok(self.sum)
        }
    }

    fn chunk(bytes: &[u8]) -> Chunk {
        let mut buffer = Pool::new(bytes.len()).take();
        buffer.space().copy_from_slice(bytes);
        buffer.freeze(bytes.len())
    }

    /// Pushes each byte on its own through two stages, with as many helpers as given.
    fn run(bytes: &[u8], helpers: &Arc<Helpers>) -> Result<(u64, u64)> {
        thread::scope(|scope| {
            let first = Placed::new(scope, helpers.take(), "first", SUM)?;
            let second = Placed::new(scope, helpers.take(), "second", SUM)?;
            let mut both = Placed::new(scope, helpers.take(), "both", Both(first, second))?;
            for byte in bytes {
                both.push(chunk(&[*byte]))?;
            }
            both.finish()
        })
    }

    #[test]
    fn where_a_stage_runs_makes_no_difference() {
        for threads in 0..=3 {
            let helpers = Helpers::new(threads);
            assert_eq!(run(&[1; 100], &helpers).unwrap(), (100, 100));
            assert_eq!(run(&[], &helpers).unwrap(), (0, 0));
            assert_eq!(helpers.free(), threads, "permits come back");
        }
    }

    #[test]
    fn the_error_of_a_stage_comes_back_to_whoever_pushes() {
        for threads in 0..=3 {
            let helpers = Helpers::new(threads);
            let mut bytes = vec![1; 100];
            bytes[50] = 255;
            assert_eq!(run(&bytes, &helpers).unwrap_err().reason(), "test.refused");
            bytes[50] = 1;
            bytes[99] = 255; // noticed at the end only
            assert_eq!(run(&bytes, &helpers).unwrap_err().reason(), "test.refused");
            assert_eq!(helpers.free(), threads, "permits come back");
        }
    }

    #[test]
    fn a_panic_on_a_thread_is_an_internal_error_and_gives_the_permit_back() {
        let helpers = Helpers::new(3);
        let error = run(&[1, 254, 1, 1, 1, 1, 1, 1, 1], &helpers).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Internal, "internal.panic"));
        assert!(error.to_string().contains("the byte to panic at"), "{error}");
        assert_eq!(helpers.free(), 3);
    }

    #[test]
    fn dropping_the_near_end_ends_the_thread() {
        let helpers = Helpers::new(1);
        thread::scope(|scope| {
            let mut placed = Placed::new(scope, helpers.take(), "dropped", SUM).unwrap();
            placed.push(chunk(&[1])).unwrap();
            drop(placed);
        });
        assert_eq!(helpers.free(), 1);
    }
}
