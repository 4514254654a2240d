//! Work for many threads, whose results come back in the order of the items.
//!
//! The thread that submits items works on them too: when enough items wait, it takes one itself instead of waiting
//! for others. So the same code runs without helpers, where it does everything, and with many; and since each item
//! stands for itself, the results are the same.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread::Scope,
};

use super::helpers::{Helpers, Permit};
use crate::{
    error::{Error, Kind, Result},
    sys::thread::{catch, spawn_scoped},
};

/// Most threads that work on the items of one stream, beside the one that submits them: each holds buffers.
const WORKERS_MAX: usize = 16;
/// Items that wait for a helper, so that none is idle while the next item is made. The submitting thread takes one
/// only when there are more: all others depend on it for items.
const WAITING: usize = 2;

/// Works on items, on any thread.
pub(super) trait Worker: Clone + Send {
    /// A piece of work.
    type Item: Send;
    /// The result of one.
    type Done: Send;

    /// Works on one item. A panic is an error of that item.
    fn work(&self, item: Self::Item) -> Result<Self::Done>;
}

/// Takes items in, and gives their results back in order.
///
/// After each [`submit`](Self::submit), take results until [`due`](Self::due) has none: that keeps the items under way
/// few. After the last item, take the others with [`rest`](Self::rest).
pub(super) struct Ordered<'scope, 'env, W: Worker> {
    scope: &'scope Scope<'scope, 'env>,
    helpers: Arc<Helpers>,
    /// For the first helper.
    permit: Option<Permit>,
    /// Name of the threads.
    name: &'static str,
    worker: W,
    queue: QueueEnd<W>,
    threads: usize,
    /// Results that were not taken yet, in order.
    pending: VecDeque<Receiver<Result<W::Done>>>,
}

/// An item, and where its result goes.
struct Task<W: Worker> {
    item: W::Item,
    done: SyncSender<Result<W::Done>>,
}

impl<'scope, 'env, W: Worker + 'scope> Ordered<'scope, 'env, W> {
    /// Threads called `name` live in `scope`. `permit` is for the first of them, `helpers` gives those for the others;
    /// without `permit` there are none.
    pub(super) fn new(
        scope: &'scope Scope<'scope, 'env>,
        helpers: &Arc<Helpers>,
        permit: Option<Permit>,
        name: &'static str,
        worker: W,
    ) -> Self {
        Self {
            scope,
            helpers: Arc::clone(helpers),
            permit,
            name,
            worker,
            queue: QueueEnd::default(),
            threads: 0,
            pending: VecDeque::new(),
        }
    }

    /// Hands in the next item. Errors: the system has no more threads.
    pub(super) fn submit(&mut self, item: W::Item) -> Result<()> {
        let (done, result) = sync_channel(1);
        let backlog = self.queue.0.add(Task { item, done });
        self.pending.push_back(result);
        self.hire(backlog)
    }

    /// The next result in order, if it is there or so many items are under way that the next one has to wait.
    /// Errors: that of the item.
    pub(super) fn due(&mut self) -> Result<Option<W::Done>> {
        match self.threads {
            0 => self.next(0, 0),
            threads => self.next(WAITING, threads + 2 * WAITING),
        }
    }

    /// The next result in order, however long it takes; `None` after the last. Errors: that of the item.
    pub(super) fn rest(&mut self) -> Result<Option<W::Done>> {
        self.next(0, 0)
    }

    /// Starts a thread, if none is waiting for work and there is a permit.
    fn hire(&mut self, backlog: usize) -> Result<()> {
        if self.threads >= WORKERS_MAX || (self.threads > 0 && backlog == 0) {
            return Ok(());
        }
        let permit = match self.permit.take() {
            None if self.threads > 0 => self.helpers.take(),
            permit => permit,
        };
        let Some(permit) = permit else { return Ok(()) };
        let queue = Arc::clone(&self.queue.0);
        let worker = self.worker.clone();
        spawn_scoped(self.scope, self.name, move || {
            let _held = permit;
            while let Some(task) = queue.wait() {
                task.run(&worker);
            }
            Ok(())
        })?;
        self.threads += 1;
        Ok(())
    }

    /// The next result, if it is there. Works until at most `waiting` items wait for a thread, and waits until at most
    /// `under_way` results are missing.
    fn next(&mut self, waiting: usize, under_way: usize) -> Result<Option<W::Done>> {
        loop {
            let Some(first) = self.pending.front() else { return Ok(None) };
            let result = match first.try_recv() {
                Ok(result) => result,
                Err(TryRecvError::Disconnected) => return Err(lost()),
                Err(TryRecvError::Empty) => {
                    if let Some(task) = self.queue.0.take(waiting) {
                        task.run(&self.worker);
                        continue;
                    }
                    if self.pending.len() <= under_way {
                        return Ok(None);
                    }
                    // Another thread has it, and an item takes it a moment.
                    first.recv().map_err(|_hung_up| lost())?
                }
            };
            self.pending.pop_front();
            return result.map(Some);
        }
    }
}

fn lost() -> Error {
    Error::new(Kind::Internal, "pipeline.abandoned", "a piece of work was lost")
}

impl<W: Worker> Task<W> {
    fn run(self, worker: &W) {
        let Self { item, done } = self;
        // Nobody waits for it any more once another item has failed.
        let _hung_up = done.send(catch(|| worker.work(item)));
    }
}

/// Tasks that wait for a thread, the first one first.
struct Queue<W: Worker> {
    state: Mutex<Waiting<W>>,
    changed: Condvar,
}

struct Waiting<W: Worker> {
    tasks: VecDeque<Task<W>>,
    closed: bool,
}

/// The submitting end of a queue: when it goes, the threads do, also after an error.
struct QueueEnd<W: Worker>(Arc<Queue<W>>);

impl<W: Worker> Default for QueueEnd<W> {
    fn default() -> Self {
        let state = Mutex::new(Waiting { tasks: VecDeque::new(), closed: false });
        Self(Arc::new(Queue { state, changed: Condvar::new() }))
    }
}

impl<W: Worker> Queue<W> {
    fn lock(&self) -> MutexGuard<'_, Waiting<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a task and returns how many there were before it.
    fn add(&self, task: Task<W>) -> usize {
        let mut waiting = self.lock();
        let before = waiting.tasks.len();
        waiting.tasks.push_back(task);
        drop(waiting);
        self.changed.notify_one();
        before
    }

    /// The first task, if there are more than `left`.
    fn take(&self, left: usize) -> Option<Task<W>> {
        let mut waiting = self.lock();
        if waiting.tasks.len() > left { waiting.tasks.pop_front() } else { None }
    }

    /// The first task, as soon as there is one; `None` when no more will come.
    fn wait(&self) -> Option<Task<W>> {
        let mut waiting = self.lock();
        loop {
            match waiting.tasks.pop_front() {
                Some(task) => return Some(task),
                None if waiting.closed => return None,
                None => waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl<W: Worker> Drop for QueueEnd<W> {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.closed = true;
        waiting.tasks.clear();
        drop(waiting);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
        time::Duration,
    };

    use super::*;

    /// Sleeps for as many milliseconds as the item says, and gives it back; 99 panics, 98 is refused.
    #[derive(Clone, Default)]
    struct Sleeper {
        begun: Arc<AtomicUsize>,
    }

    impl Worker for Sleeper {
        type Item = u64;
        type Done = u64;

        fn work(&self, item: u64) -> Result<u64> {
            self.begun.fetch_add(1, Ordering::Relaxed);
            assert_ne!(item, 99, "the item to panic at");
            if item == 98 {
                return Err(Error::new(Kind::Malformed, "test.refused", "refused"));
            }
            thread::sleep(Duration::from_millis(item));
            Ok(item)
        }
    }

    /// The results of `items`, up to the first error; checks that all permits come back.
    fn run(items: &[u64], threads: usize) -> (Vec<u64>, Result<()>) {
        let helpers = Helpers::new(threads);
        let mut done = Vec::new();
        let outcome = thread::scope(|scope| {
            let mut ordered = Ordered::new(scope, &helpers, helpers.take(), "sleeper", Sleeper::default());
            for item in items {
                ordered.submit(*item)?;
                while let Some(result) = ordered.due()? {
                    done.push(result);
                }
            }
            while let Some(result) = ordered.rest()? {
                done.push(result);
            }
            Ok(())
        });
        assert_eq!(helpers.free(), threads, "permits come back");
        (done, outcome)
    }

    #[test]
    fn results_come_in_the_order_of_the_items_however_long_each_takes() {
        let items = [9, 0, 5, 1, 7, 2, 0, 0, 8, 3, 6, 4, 0, 1];
        for threads in [0, 1, 2, 5, 20] {
            let (done, outcome) = run(&items, threads);
            outcome.unwrap();
            assert_eq!(done, items, "{threads} threads");
        }
        assert!(run(&[], 2).0.is_empty());
    }

    #[test]
    fn an_item_that_fails_or_panics_ends_the_stream_where_it_stands() {
        for threads in [0, 1, 4] {
            for (bad, reason) in [(98, "test.refused"), (99, "internal.panic")] {
                let (done, outcome) = run(&[3, 1, bad, 0, 0, 0, 0, 0, 0, 0, 0], threads);
                assert_eq!((&done[..], outcome.unwrap_err().reason()), (&[3, 1][..], reason));
            }
        }
    }

    #[test]
    fn few_items_are_under_way_however_slow_the_first_is() {
        let helpers = Helpers::new(2);
        let worker = Sleeper::default();
        thread::scope(|scope| {
            let mut ordered = Ordered::new(scope, &helpers, helpers.take(), "sleeper", worker.clone());
            let mut submitted = 0;
            for item in std::iter::once(200).chain([0; 50]) {
                ordered.submit(item).unwrap();
                submitted += 1;
                if ordered.due().unwrap().is_some() {
                    break;
                }
            }
            // Two threads, and two items for each end that may wait.
            assert!(submitted <= 2 + 2 * WAITING + 1, "{submitted}");
            assert!(worker.begun.load(Ordering::Relaxed) > 1, "others were begun meanwhile");
        });
    }
}
