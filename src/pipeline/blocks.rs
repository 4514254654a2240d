//! The stage that compresses: blocks go to whatever threads are free, and come back in their order.
//!
//! The thread that pushes compresses too: whenever enough blocks wait, it takes one itself instead of waiting
//! for others. So the same code runs with no helper, where it compresses everything, and with many; and the
//! output is the same, because each block depends on nothing but its bytes and those before it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread::Scope,
    time::{Duration, Instant},
};

use super::{
    buffer::{Chunk, Pool},
    helpers::{Helpers, Permit},
    stage::Stage,
};
use crate::{
    codec::encode::{Coded, Compression, Envelope},
    error::{Error, Kind, Result},
    sys::thread::{catch, spawn_scoped},
};

/// Most threads that compress one stream, beside the one that pushes: each holds its buffers.
const WORKERS_MAX: usize = 16;
/// Blocks that wait for a worker, so that none is idle while the next block is produced. The pushing thread
/// takes one only when there are more: it is the one that all others depend on.
const WAITING: usize = 2;

/// Compresses the chunks pushed into it, each a block, and pushes what they become to the next stage.
pub(super) struct Blocks<'scope, 'env, S> {
    scope: &'scope Scope<'scope, 'env>,
    helpers: Arc<Helpers>,
    /// For the first worker.
    permit: Option<Permit>,
    envelope: Envelope,
    queue: QueueEnd,
    /// What every thread does, this one included.
    worker: Worker,
    workers: usize,
    /// Of blocks that were not passed on yet, in order.
    pending: VecDeque<Receiver<Result<Finished>>>,
    before: Option<Chunk>,
    started: bool,
    busy: Duration,
    next: S,
}

/// A block to compress.
struct Job {
    before: Option<Chunk>,
    block: Chunk,
    done: SyncSender<Result<Finished>>,
}

/// A compressed block.
struct Finished {
    bytes: Chunk,
    coded: Coded,
    block_bytes: u64,
    busy: Duration,
}

impl<'scope, 'env, S: Stage> Blocks<'scope, 'env, S> {
    /// A stage whose threads live in `scope`; `permit` is for the first of them, `helpers` gives those for
    /// the others. Without a permit there are none.
    pub fn new(
        scope: &'scope Scope<'scope, 'env>,
        helpers: &Arc<Helpers>,
        permit: Option<Permit>,
        compression: Compression,
        next: S,
    ) -> Self {
        // For compressed blocks.
        let pool = Pool::new(compression.bound(compression.block_bytes()));
        Self {
            scope,
            helpers: Arc::clone(helpers),
            permit,
            envelope: Envelope::new(compression),
            queue: QueueEnd::default(),
            worker: Worker { compression, pool },
            workers: 0,
            pending: VecDeque::new(),
            before: None,
            started: false,
            busy: Duration::ZERO,
            next,
        }
    }

    /// Starts a worker, if nobody is waiting for work and there is a permit for another.
    fn hire(&mut self, backlog: usize) -> Result<()> {
        if self.workers >= WORKERS_MAX || (self.workers > 0 && backlog == 0) {
            return Ok(());
        }
        let permit = match self.permit.take() {
            None if self.workers > 0 => self.helpers.take(),
            permit => permit,
        };
        let Some(permit) = permit else { return Ok(()) };
        let queue = Arc::clone(&self.queue.0);
        let worker = self.worker.clone();
        spawn_scoped(self.scope, "encode", move || {
            let _held = permit;
            while let Some(job) = queue.wait() {
                worker.run(job);
            }
            Ok(())
        })?;
        self.workers += 1;
        Ok(())
    }

    /// Passes on what is done, and compresses until at most `waiting` blocks wait for a thread and at most
    /// `under_way` have not been passed on.
    fn settle(&mut self, waiting: usize, under_way: usize) -> Result<()> {
        loop {
            let ready = match self.pending.front() {
                None => return Ok(()),
                Some(first) => match first.try_recv() {
                    Ok(outcome) => outcome,
                    Err(TryRecvError::Disconnected) => return Err(abandoned()),
                    Err(TryRecvError::Empty) => {
                        if let Some(job) = self.queue.0.take(waiting) {
                            self.worker.run(job);
                            continue;
                        }
                        if self.pending.len() <= under_way {
                            return Ok(());
                        }
                        // A worker has it, and a block takes it a moment.
                        first.recv().map_err(|_hung_up| abandoned())?
                    }
                },
            };
            self.pending.pop_front();
            let Finished { bytes, coded, block_bytes, busy } = ready?;
            self.envelope.add(coded, block_bytes);
            self.busy += busy;
            self.next.push(bytes)?;
        }
    }

    fn start(&mut self) -> Result<()> {
        self.started = true;
        match self.envelope.start() {
            [] => Ok(()),
            start => self.next.push(Chunk::copy_of(start)),
        }
    }
}

impl<S: Stage> Stage for Blocks<'_, '_, S> {
    /// What the next stage gives, and the time spent compressing.
    type Output = (S::Output, Duration);

    /// Every chunk but the last has the block length of the compression.
    fn push(&mut self, chunk: Chunk) -> Result<()> {
        if !self.started {
            self.start()?;
        }
        let (done, finished) = sync_channel(1);
        let looks_back = self.worker.compression.looks_back();
        let before = if looks_back { self.before.replace(chunk.clone()) } else { None };
        let backlog = self.queue.0.add(Job { before, block: chunk, done });
        self.pending.push_back(finished);
        self.hire(backlog)?;
        match self.workers {
            0 => self.settle(0, 0),
            workers => self.settle(WAITING, workers + 2 * WAITING),
        }
    }

    fn finish(mut self) -> Result<Self::Output> {
        if !self.started {
            // A stream has one block at least.
            self.push(Chunk::copy_of(&[]))?;
        }
        self.settle(0, 0)?;
        let Self { envelope, mut next, busy, .. } = self;
        match envelope.end().as_slice() {
            [] => {}
            end => next.push(Chunk::copy_of(end))?,
        }
        Ok((next.finish()?, busy))
    }
}

fn abandoned() -> Error {
    Error::new(Kind::Internal, "pipeline.abandoned", "a block was not compressed")
}

/// Compresses, on any thread.
#[derive(Clone)]
struct Worker {
    compression: Compression,
    pool: Arc<Pool>,
}

impl Worker {
    fn run(&self, job: Job) {
        let Job { before, block, done } = job;
        let outcome = catch(|| self.encode(before.as_deref(), &block));
        // Nobody waits for it any more once another block has failed.
        let _hung_up = done.send(outcome);
    }

    fn encode(&self, before: Option<&[u8]>, block: &[u8]) -> Result<Finished> {
        let started = Instant::now();
        let mut buffer = self.pool.take();
        let coded = self.compression.encode(before.unwrap_or_default(), block, buffer.space())?;
        let bytes = buffer.freeze(coded.len);
        Ok(Finished { bytes, coded, block_bytes: block.len() as u64, busy: started.elapsed() })
    }
}

/// Blocks that wait for a thread, the first one first.
#[derive(Default)]
struct Queue {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// The pushing end of a queue: when it goes, the workers do, also after an error.
#[derive(Default)]
struct QueueEnd(Arc<Queue>);

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job; how many there were before it.
    fn add(&self, job: Job) -> usize {
        let mut waiting = self.lock();
        let before = waiting.jobs.len();
        waiting.jobs.push_back(job);
        drop(waiting);
        self.changed.notify_one();
        before
    }

    /// The first job, if there are more than `left`.
    fn take(&self, left: usize) -> Option<Job> {
        let mut waiting = self.lock();
        if waiting.jobs.len() > left { waiting.jobs.pop_front() } else { None }
    }

    /// The first job, as soon as there is one; `None` when there will be none any more.
    fn wait(&self) -> Option<Job> {
        let mut waiting = self.lock();
        loop {
            match waiting.jobs.pop_front() {
                Some(job) => return Some(job),
                None if waiting.closed => return None,
                None => waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Drop for QueueEnd {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.closed = true;
        waiting.jobs.clear();
        drop(waiting);
        self.0.changed.notify_all();
    }
}
