//! Whose turn it is: a fixed number of workers, a bounded queue, fair among namespaces.
//!
//! Within a namespace the first to come is the first to be served; among namespaces it goes round, so that
//! the two hundred layers of one tenant do not keep another's single layer waiting. What waits holds no
//! buffers: only the request itself.
//!
//! A request whose blob does not come gives its slot to the next one, and gets one again, before those in the
//! queue, when bytes have come. Its thread waits with it, and another takes its place among the workers, up to
//! [`STALLED`] of them; a request that stalls beyond keeps its slot.

use std::{
    collections::VecDeque,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    call::{Cancel, Cancelled, Namespace, Part},
    error::{Classify, Kind},
    observe::Load,
    sys::thread::spawn,
};

/// Most requests that wait for their blobs without a slot. Each has a thread and its buffers; with the workers and
/// helpers of a large machine they stay below the 256 tasks of the shipped unit.
pub const STALLED: usize = 128;

/// How much is taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Requests worked on at a time: the number of worker threads.
    pub running: usize,
    /// Requests that may wait besides.
    pub waiting: usize,
}

impl Capacity {
    /// `running` as configured, or twice the processors, at least 4 and at most 32.
    pub fn new(running: u32, waiting: u32) -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let running = match usize::try_from(running) {
            Ok(0) | Err(_) => (2 * processors).clamp(4, 32),
            Ok(running) => running,
        };
        Self { running, waiting: usize::try_from(waiting).unwrap_or(usize::MAX) }
    }
}

/// The queue is full.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("busy: {running} requests are worked on and {waiting} wait")]
pub struct Busy {
    running: usize,
    waiting: usize,
}

impl Classify for Busy {
    fn kind(&self) -> Kind {
        Kind::Exhausted
    }

    fn reason(&self) -> &'static str {
        "server.busy"
    }
}

/// The work of a worker, given the time it waited and its slot. Dropped unrun when it is withdrawn.
type Job = Box<dyn FnOnce(Duration, Arc<Slot>) + Send>;

/// The queue and its workers. Dropping it lets the workers finish what is queued, then ends them.
pub struct Admission {
    shared: Arc<Shared>,
}

struct Shared {
    capacity: Capacity,
    state: Mutex<State>,
    /// There may be something to do for a worker.
    work: Condvar,
    /// There may be a slot for a request that gave its own away.
    slot: Condvar,
}

#[derive(Default)]
struct State {
    /// The namespaces that have something to do, the next one in front.
    queues: VecDeque<(Namespace, VecDeque<Waiting>)>,
    /// In the queues.
    waiting: usize,
    /// Beside the queues: they wait for the answer to another request.
    joined: usize,
    /// Slots that are taken.
    running: usize,
    /// Requests that gave their slot away.
    stalled: usize,
    /// Those of them that want one again.
    returning: usize,
    threads: usize,
    next_id: u64,
    closed: bool,
}

struct Waiting {
    id: u64,
    since: Instant,
    job: Job,
}

/// A request that waits for the answer to another one, for as long as this lives.
pub struct Joined {
    shared: Arc<Shared>,
}

/// The right to work. A request gives it away while its blob does not come.
pub struct Slot {
    shared: Arc<Shared>,
    given: AtomicBool,
}

/// A place in the queue. Dropping it gives the place up, unless a worker already took the job.
pub struct Ticket {
    shared: Arc<Shared>,
    id: u64,
}

impl Admission {
    /// Starts `capacity.running` workers.
    pub fn start(capacity: Capacity) -> io::Result<Self> {
        let (work, slot) = (Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { capacity, state: Mutex::default(), work, slot });
        for _ in 0..capacity.running {
            shared.start_worker(&mut shared.lock())?;
        }
        Ok(Self { shared })
    }

    /// Queues what `job` makes. `job` is called only when there is room for it.
    pub fn submit(&self, namespace: &Namespace, job: impl FnOnce() -> Job) -> Result<Ticket, Busy> {
        let mut state = self.shared.lock();
        let Capacity { running, waiting } = self.shared.capacity;
        // A job that an idle worker is about to take does not wait.
        let idle = running.saturating_sub(state.running + state.returning);
        if state.waiting >= waiting.saturating_sub(state.joined) + idle {
            return Err(state.busy());
        }
        let id = state.next_id;
        state.next_id += 1;
        let entry = Waiting { id, since: Instant::now(), job: job() };
        match state.queues.iter_mut().find(|(queued, _)| queued == namespace) {
            Some((_, queue)) => queue.push_back(entry),
            None => state.queues.push_back((namespace.clone(), VecDeque::from([entry]))),
        }
        state.waiting += 1;
        drop(state);
        self.shared.work.notify_one();
        Ok(Ticket { shared: Arc::clone(&self.shared), id })
    }

    /// Counts a request that waits for the answer to another one, without a turn of its own.
    pub fn join(&self) -> Result<Joined, Busy> {
        let mut state = self.shared.lock();
        if state.waiting + state.joined >= self.shared.capacity.waiting {
            return Err(state.busy());
        }
        state.joined += 1;
        Ok(Joined { shared: Arc::clone(&self.shared) })
    }

    /// How much is going on.
    pub fn load(&self) -> Load {
        let state = self.shared.lock();
        let waiting = (state.waiting + state.joined) as u64;
        Load { running: state.running as u64, stalled: state.stalled as u64, waiting, memory_bytes: 0 }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
    }
}

impl State {
    fn busy(&self) -> Busy {
        Busy { running: self.running, waiting: self.waiting + self.joined }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.shared.lock().joined -= 1;
    }
}

impl Part for Slot {
    fn give(&self) -> bool {
        let given = self.shared.give_slot();
        self.given.store(given, Ordering::Relaxed);
        given
    }

    fn take(&self, cancel: &Cancel) -> Result<(), Cancelled> {
        self.shared.take_slot(cancel)?;
        self.given.store(false, Ordering::Relaxed);
        Ok(())
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("given", &self.given).finish_non_exhaustive()
    }
}

impl Ticket {
    /// Takes the job out of the queue, if it is still there; it is dropped before this returns.
    pub fn withdraw(&self) {
        let mut state = self.shared.lock();
        let found = state.queues.iter().enumerate().find_map(|(index, (_, queue))| {
            queue.iter().position(|waiting| waiting.id == self.id).map(|at| (index, at))
        });
        let Some((index, at)) = found else { return };
        let withdrawn = state.queues.get_mut(index).and_then(|(_, queue)| queue.remove(at));
        if state.queues.get(index).is_some_and(|(_, queue)| queue.is_empty()) {
            state.queues.remove(index);
        }
        state.waiting -= 1;
        // Dropping it runs code of the request: not under the lock.
        drop(state);
        drop(withdrawn);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.withdraw();
    }
}

impl Shared {
    /// No code of a request runs under the lock, so no panic leaves the state half changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_worker(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        let shared = Arc::clone(self);
        spawn(&format!("worker-{}", state.threads), move || shared.work())?;
        state.threads += 1;
        Ok(())
    }

    /// A worker's life.
    fn work(self: &Arc<Self>) {
        while let Some(next) = self.next() {
            let Waiting { job, since, .. } = next;
            let slot = Arc::new(Slot { shared: Arc::clone(self), given: AtomicBool::new(false) });
            let own = Arc::clone(&slot);
            // A job reports its own panics; this one keeps the worker alive whatever happens.
            let _reported = catch_unwind(AssertUnwindSafe(|| job(since.elapsed(), own)));
            let mut state = self.lock();
            match slot.given.load(Ordering::Relaxed) {
                false => state.running -= 1,
                // Cancelled, or its store gave up.
                true => state.stalled -= 1,
            }
            drop(state);
            self.freed();
        }
    }

    /// Wakes who may go on now.
    fn freed(&self) {
        self.slot.notify_one();
        self.work.notify_one();
    }

    /// The next job in turn; `None` when this worker is not needed any more.
    fn next(&self) -> Option<Waiting> {
        let mut state = self.lock();
        loop {
            if state.threads > self.capacity.running + state.stalled {
                break;
            }
            if state.running + state.returning < self.capacity.running
                && let Some((namespace, mut queue)) = state.queues.pop_front()
            {
                let next = queue.pop_front().expect("a queue that is kept is not empty");
                if !queue.is_empty() {
                    state.queues.push_back((namespace, queue));
                }
                state.waiting -= 1;
                state.running += 1;
                return Some(next);
            }
            if state.closed && state.queues.is_empty() {
                break;
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.threads -= 1;
        drop(state);
        // It may have been woken for a job that another worker has to take now.
        self.work.notify_one();
        None
    }

    /// Frees the slot of the request whose thread this is, and has a worker for it.
    fn give_slot(self: &Arc<Self>) -> bool {
        let mut state = self.lock();
        if state.stalled >= STALLED {
            return false;
        }
        if state.threads <= self.capacity.running + state.stalled
            && let Err(error) = self.start_worker(&mut state)
        {
            tracing::debug!(%error, "a request that waits for its blob keeps its slot");
            return false;
        }
        state.stalled += 1;
        state.running -= 1;
        drop(state);
        self.freed();
        true
    }

    /// Waits for a slot for a request that gave its own away; it comes before those in the queue.
    fn take_slot(&self, cancel: &Cancel) -> Result<(), Cancelled> {
        let mut state = self.lock();
        state.returning += 1;
        let cancelled = loop {
            if state.running < self.capacity.running {
                state.running += 1;
                state.stalled -= 1;
                break Ok(());
            }
            if let Err(cancelled) = cancel.check() {
                break Err(cancelled);
            }
            state = self.slot.wait_timeout(state, Cancel::POLL).unwrap_or_else(PoisonError::into_inner).0;
        };
        state.returning -= 1;
        drop(state);
        // One worker less is needed, or one more request may begin.
        self.freed();
        cancelled
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// One worker that is held until the sender is used.
    fn held(waiting: usize) -> (Admission, mpsc::Sender<()>, Ticket) {
        let admission = Admission::start(Capacity { running: 1, waiting }).unwrap();
        let (release, released) = mpsc::channel::<()>();
        let (started, has_started) = mpsc::channel();
        let first = admission
            .submit(&name("first"), || {
                Box::new(move |_, _| {
                    started.send(()).unwrap();
                    let _ = released.recv();
                })
            })
            .unwrap();
        has_started.recv().unwrap();
        (admission, release, first)
    }

    fn name(text: &str) -> Namespace {
        text.parse().unwrap()
    }

    #[test]
    fn namespaces_take_turns_and_each_is_served_in_order() {
        let (admission, release, _first) = held(16);
        let (done, order) = mpsc::channel();
        let tickets: Vec<_> = [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("c", 1), ("c", 2)]
            .into_iter()
            .map(|job| {
                let done = done.clone();
                admission.submit(&name(job.0), || Box::new(move |_, _| done.send(job).unwrap())).unwrap()
            })
            .collect();
        assert_eq!(admission.load(), Load { running: 1, stalled: 0, waiting: 6, memory_bytes: 0 });
        release.send(()).unwrap();
        let order: Vec<_> = (0..6).map(|_| order.recv().unwrap()).collect();
        assert_eq!(order, [("a", 1), ("b", 1), ("c", 1), ("a", 2), ("c", 2), ("a", 3)]);
        drop(tickets);
    }

    #[test]
    fn a_full_queue_refuses_and_does_not_make_the_job() {
        let (admission, release, _first) = held(1);
        let _second = admission.submit(&name("a"), || Box::new(|_, _| ())).unwrap();
        let refused = admission.submit(&name("b"), || unreachable!("no room, no job"));
        let busy = refused.err().unwrap();
        assert_eq!(busy, Busy { running: 1, waiting: 1 });
        assert_eq!(busy.to_string(), "busy: 1 requests are worked on and 1 wait");
        release.send(()).unwrap();
    }

    #[test]
    fn an_idle_worker_takes_a_job_even_when_nothing_may_wait() {
        let admission = Admission::start(Capacity { running: 1, waiting: 0 }).unwrap();
        let (done, seen) = mpsc::channel();
        let _ticket = admission.submit(&name("a"), || Box::new(move |_, _| done.send(()).unwrap())).unwrap();
        seen.recv().unwrap();
    }

    #[test]
    fn a_withdrawn_job_never_runs_and_frees_its_place() {
        let (admission, release, _first) = held(1);
        let (done, seen) = mpsc::channel::<()>();
        let ticket = admission.submit(&name("a"), || Box::new(move |_, _| done.send(()).unwrap())).unwrap();
        drop(ticket);
        assert!(seen.recv().is_err(), "its sender is gone without having sent");
        assert_eq!(admission.load().waiting, 0);
        let _next = admission.submit(&name("a"), || Box::new(|_, _| ())).unwrap();
        release.send(()).unwrap();
    }

    #[test]
    fn a_panicking_job_leaves_its_worker_alive() {
        let admission = Admission::start(Capacity { running: 1, waiting: 4 }).unwrap();
        let _bad = admission.submit(&name("a"), || Box::new(|_, _| panic!("on purpose"))).unwrap();
        let (done, seen) = mpsc::channel();
        let _good = admission.submit(&name("a"), || Box::new(move |_, _| done.send(()).unwrap())).unwrap();
        seen.recv().unwrap();
    }

    /// A job that gives its slot away when it is told to, and wants it again when it is told to once more.
    fn stalling(admission: &Admission) -> (mpsc::Sender<()>, mpsc::Receiver<bool>, Ticket) {
        let (tell, told) = mpsc::channel::<()>();
        let (say, said) = mpsc::channel();
        let ticket = admission
            .submit(&name("stalled"), || {
                Box::new(move |_, slot| {
                    let _ = told.recv();
                    let given = slot.give();
                    say.send(given).unwrap();
                    let _ = told.recv();
                    say.send(!given || slot.take(&Cancel::new()).is_ok()).unwrap();
                })
            })
            .unwrap();
        (tell, said, ticket)
    }

    fn load(running: u64, stalled: u64, waiting: u64) -> Load {
        Load { running, stalled, waiting, memory_bytes: 0 }
    }

    fn until(admission: &Admission, want: Load) {
        let end = Instant::now() + Duration::from_secs(10);
        while admission.load() != want {
            assert!(Instant::now() < end, "{:?} instead of {want:?}", admission.load());
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_stalled_job_lets_others_work_and_returns_before_those_that_wait() {
        let admission = Admission::start(Capacity { running: 1, waiting: 9 }).unwrap();
        let (tell, said, _stalled) = stalling(&admission);
        until(&admission, load(1, 0, 0));
        tell.send(()).unwrap();
        assert!(said.recv().unwrap());
        until(&admission, load(0, 1, 0));

        let (release, released) = mpsc::channel::<()>();
        let _second = admission
            .submit(&name("a"), || {
                Box::new(move |_, _| {
                    let _ = released.recv();
                })
            })
            .unwrap();
        until(&admission, load(1, 1, 0));
        let (done, order) = mpsc::channel();
        let _third = admission.submit(&name("a"), || Box::new(move |_, _| done.send(()).unwrap())).unwrap();
        tell.send(()).unwrap();
        thread::sleep(Duration::from_millis(50));
        assert_eq!(admission.load(), load(1, 1, 1), "one slot, one at work");
        assert!(said.try_recv().is_err() && order.try_recv().is_err());
        release.send(()).unwrap();
        assert!(said.recv().unwrap());
        order.recv().unwrap();
        until(&admission, load(0, 0, 0));
        // The thread that took the place of the stalled one is gone.
        let end = Instant::now() + Duration::from_secs(10);
        while admission.shared.lock().threads > 1 {
            assert!(Instant::now() < end);
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn the_threads_of_stalled_jobs_are_bounded() {
        let admission = Admission::start(Capacity { running: 1, waiting: 2 * STALLED }).unwrap();
        let jobs: Vec<_> = (0..STALLED + 2).map(|_| stalling(&admission)).collect();
        for (number, (tell, said, _)) in jobs.iter().enumerate().take(STALLED + 1) {
            tell.send(()).unwrap();
            assert_eq!(said.recv().unwrap(), number < STALLED, "{number}");
        }
        assert_eq!(admission.load(), load(1, STALLED as u64, 1));
        assert_eq!(admission.shared.lock().threads, STALLED + 1);
        // The one that kept its slot goes on, and then all others.
        for (tell, ..) in jobs.iter().rev() {
            let _ = tell.send(());
            let _ = tell.send(());
        }
        until(&admission, load(0, 0, 0));
    }

    #[test]
    fn joined_requests_count_among_those_that_wait() {
        let (admission, release, _first) = held(2);
        let joined = admission.join().unwrap();
        let _second = admission.submit(&name("a"), || Box::new(|_, _| ())).unwrap();
        assert!(admission.join().is_err());
        assert!(admission.submit(&name("a"), || unreachable!("no room, no job")).is_err());
        assert_eq!(admission.load(), load(1, 0, 2));
        drop(joined);
        drop(admission.join().unwrap());
        release.send(()).unwrap();
    }

    #[test]
    fn the_number_of_workers_follows_the_processors_within_bounds() {
        let automatic = Capacity::new(0, 256);
        assert!((4..=32).contains(&automatic.running) && automatic.waiting == 256);
        assert_eq!(Capacity::new(3, 0), Capacity { running: 3, waiting: 0 });
    }
}
