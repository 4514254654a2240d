//! Admission: a fixed number of workers and a bounded queue, fair among namespaces.
//!
//! Within a namespace requests are served in the order of arrival. Among namespaces turns go round,
//! so that two hundred layers of one tenant do not delay a single layer of another. A waiting
//! request holds no buffers, only itself.
//!
//! A request whose blob stalls gives its slot to the next one. When bytes arrive, it gets a slot
//! again before the requests in the queue. Its thread waits with it, and a further thread takes its
//! place among the workers, up to 128 of them. Requests that stall beyond that number keep
//! their slots.

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

/// Most requests that wait for their blobs without a slot. Each has a thread and its buffers; with
/// the workers and helpers of a large machine they stay below the 256 tasks of the shipped unit.
const STALLED: usize = 128;

/// Numbers of requests that are worked on and that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Requests worked on at a time, which is the number of worker threads.
    pub running: usize,
    /// Most requests that wait in addition.
    pub waiting: usize,
}

impl Capacity {
    /// Takes `running` as configured; 0 stands for twice the processors, at least 4 and at most 32.
    pub fn new(running: u32, waiting: u32) -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let running = match usize::try_from(running) {
            Ok(0) | Err(_) => (2 * processors).clamp(4, 32),
            Ok(running) => running,
        };
        Self { running, waiting: usize::try_from(waiting).unwrap_or(usize::MAX) }
    }
}

/// Refusal of a request because the queue is full.
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

/// Work of one request, given the time it waited and its slot. Dropped without running when it is
/// withdrawn.
type Job = Box<dyn FnOnce(Duration, Arc<Slot>) + Send>;

/// The queue with its workers. When it is dropped, the workers finish the queued jobs and end.
pub struct Admission {
    shared: Arc<Shared>,
}

struct Shared {
    capacity: Capacity,
    state: Mutex<State>,
    /// Wakes a worker that may have a job.
    work: Condvar,
    /// Wakes a request that gave its slot away and may have one again.
    slot: Condvar,
}

#[derive(Default)]
struct State {
    /// Namespaces with queued jobs; the first one has the next turn.
    queues: VecDeque<(Namespace, VecDeque<Waiting>)>,
    /// Number of jobs in the queues.
    waiting: usize,
    /// Number of requests outside the queues that wait for the answer to an equal request.
    joined: usize,
    /// Number of slots in use.
    running: usize,
    /// Number of requests without a slot, whose blobs stall.
    stalled: usize,
    /// Number of these that want a slot again.
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

/// Place of a request that waits for the answer to an equal one, for as long as this lives.
pub struct Joined {
    shared: Arc<Shared>,
}

/// Permission to work. A request gives it away while its blob stalls.
pub struct Slot {
    shared: Arc<Shared>,
    given: AtomicBool,
}

/// Place in the queue. Dropping it withdraws the job, unless a worker already took it.
pub struct Ticket {
    shared: Arc<Shared>,
    id: u64,
}

impl Admission {
    /// Starts `capacity.running` workers. Errors: a thread cannot be started.
    pub fn start(capacity: Capacity) -> io::Result<Self> {
        let (work, slot) = (Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { capacity, state: Mutex::default(), work, slot });
        for _ in 0..capacity.running {
            shared.start_worker(&mut shared.lock())?;
        }
        Ok(Self { shared })
    }

    /// Queues the result of `job`, which is called only when the queue has room. Errors: [`Busy`].
    pub fn submit(&self, namespace: &Namespace, job: impl FnOnce() -> Job) -> Result<Ticket, Busy> {
        let mut state = self.shared.lock();
        let Capacity { running, waiting } = self.shared.capacity;
        // A job that an idle worker will take at once does not count as waiting.
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

    /// Counts a request that waits for the answer to an equal one, without a turn of its own.
    /// Errors: [`Busy`].
    pub fn join(&self) -> Result<Joined, Busy> {
        let mut state = self.shared.lock();
        if state.waiting + state.joined >= self.shared.capacity.waiting {
            return Err(state.busy());
        }
        state.joined += 1;
        Ok(Joined { shared: Arc::clone(&self.shared) })
    }

    /// Numbers of running, stalled and waiting requests.
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
    /// Takes the job out of the queue, if it is still there, and drops it before returning.
    fn withdraw(&self) {
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
        // Dropping a job runs code of its request, so not under the lock.
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
    /// Locks the state. No code of a request runs under the lock, so no panic leaves the state half
    /// changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_worker(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        let shared = Arc::clone(self);
        spawn(&format!("worker-{}", state.threads), move || shared.work())?;
        state.threads += 1;
        Ok(())
    }

    /// Runs jobs until this worker is no longer needed.
    fn work(self: &Arc<Self>) {
        while let Some(next) = self.next() {
            let Waiting { job, since, .. } = next;
            let slot = Arc::new(Slot { shared: Arc::clone(self), given: AtomicBool::new(false) });
            let own = Arc::clone(&slot);
            // A job reports its own panics. Catching them keeps the worker alive in any case.
            let _reported = catch_unwind(AssertUnwindSafe(|| job(since.elapsed(), own)));
            let mut state = self.lock();
            match slot.given.load(Ordering::Relaxed) {
                false => state.running -= 1,
                // The job was cancelled, or its store failed.
                true => state.stalled -= 1,
            }
            drop(state);
            self.freed();
        }
    }

    /// Wakes the requests and workers that may continue now.
    fn freed(&self) {
        self.slot.notify_one();
        self.work.notify_one();
    }

    /// Waits for the next job in turn; `None` when this worker is no longer needed.
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
        // This worker may have been woken for a job, which another one has to take now.
        self.work.notify_one();
        None
    }

    /// Frees the slot of the calling request, and provides a worker for it. False when the request
    /// keeps its slot.
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

    /// Waits until a request that gave its slot away has one again. It comes before those in the
    /// queue.
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
        // Either one worker is no longer needed, or one more request may begin.
        self.freed();
        cancelled
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Starts one worker and occupies it until the sender is used.
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

    /// Submits a job that gives its slot away at the first message, and wants it back at the
    /// second.
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
        // The thread that took the place of the stalled job ends.
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
        // The job that kept its slot continues, and then all others.
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
