//! Whose turn it is: a fixed number of workers, a bounded queue, fair among namespaces.
//!
//! Within a namespace the first to come is the first to be served; among namespaces it goes round, so that
//! the two hundred layers of one tenant do not keep another's single layer waiting. What waits holds no
//! buffers: only the request itself.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    call::Namespace,
    error::{Classify, Kind},
    observe::Load,
};

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

/// What a worker runs; it is told how long it waited. Dropped unrun when it is withdrawn.
type Job = Box<dyn FnOnce(Duration) + Send>;

/// The queue and its workers. Dropping it lets the workers finish what is queued, then ends them.
pub struct Admission {
    shared: Arc<Shared>,
}

struct Shared {
    capacity: Capacity,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    /// The namespaces that have something to do, the next one in front.
    queues: VecDeque<(Namespace, VecDeque<Waiting>)>,
    waiting: usize,
    running: usize,
    next_id: u64,
    closed: bool,
}

struct Waiting {
    id: u64,
    since: Instant,
    job: Job,
}

/// A place in the queue. Dropping it gives the place up, unless a worker already took the job.
pub struct Ticket {
    shared: Arc<Shared>,
    id: u64,
}

impl Admission {
    /// Starts `capacity.running` workers.
    pub fn start(capacity: Capacity) -> io::Result<Self> {
        let shared = Arc::new(Shared { capacity, state: Mutex::default(), work: Condvar::new() });
        for number in 0..capacity.running {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("worker-{number}")).spawn(move || shared.work())?;
        }
        Ok(Self { shared })
    }

    /// Queues what `job` makes. `job` is called only when there is room for it.
    pub fn submit(&self, namespace: &Namespace, job: impl FnOnce() -> Job) -> Result<Ticket, Busy> {
        let mut state = self.shared.lock();
        let Capacity { running, waiting } = self.shared.capacity;
        // A job that an idle worker is about to take does not wait.
        if state.waiting >= waiting + running.saturating_sub(state.running) {
            return Err(Busy { running: state.running, waiting: state.waiting });
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

    /// How much is going on.
    pub fn load(&self) -> Load {
        let state = self.shared.lock();
        Load { running: state.running as u64, waiting: state.waiting as u64, memory_bytes: 0 }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
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

    /// A worker's life.
    fn work(&self) {
        while let Some(next) = self.take() {
            let Waiting { job, since, .. } = next;
            // A job reports its own panics; this one keeps the worker alive whatever happens.
            let _reported = catch_unwind(AssertUnwindSafe(|| job(since.elapsed())));
            self.lock().running -= 1;
        }
    }

    /// The next job in turn; `None` when everything is done and nothing more comes.
    fn take(&self) -> Option<Waiting> {
        let mut state = self.lock();
        loop {
            if let Some((namespace, mut queue)) = state.queues.pop_front() {
                let next = queue.pop_front().expect("a queue that is kept is not empty");
                if !queue.is_empty() {
                    state.queues.push_back((namespace, queue));
                }
                state.waiting -= 1;
                state.running += 1;
                return Some(next);
            }
            if state.closed {
                return None;
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
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
                Box::new(move |_| {
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
                admission.submit(&name(job.0), || Box::new(move |_| done.send(job).unwrap())).unwrap()
            })
            .collect();
        assert_eq!(admission.load(), Load { running: 1, waiting: 6, memory_bytes: 0 });
        release.send(()).unwrap();
        let order: Vec<_> = (0..6).map(|_| order.recv().unwrap()).collect();
        assert_eq!(order, [("a", 1), ("b", 1), ("c", 1), ("a", 2), ("c", 2), ("a", 3)]);
        drop(tickets);
    }

    #[test]
    fn a_full_queue_refuses_and_does_not_make_the_job() {
        let (admission, release, _first) = held(1);
        let _second = admission.submit(&name("a"), || Box::new(|_| ())).unwrap();
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
        let _ticket = admission.submit(&name("a"), || Box::new(move |_| done.send(()).unwrap())).unwrap();
        seen.recv().unwrap();
    }

    #[test]
    fn a_withdrawn_job_never_runs_and_frees_its_place() {
        let (admission, release, _first) = held(1);
        let (done, seen) = mpsc::channel::<()>();
        let ticket = admission.submit(&name("a"), || Box::new(move |_| done.send(()).unwrap())).unwrap();
        drop(ticket);
        assert!(seen.recv().is_err(), "its sender is gone without having sent");
        assert_eq!(admission.load().waiting, 0);
        let _next = admission.submit(&name("a"), || Box::new(|_| ())).unwrap();
        release.send(()).unwrap();
    }

    #[test]
    fn a_panicking_job_leaves_its_worker_alive() {
        let admission = Admission::start(Capacity { running: 1, waiting: 4 }).unwrap();
        let _bad = admission.submit(&name("a"), || Box::new(|_| panic!("on purpose"))).unwrap();
        let (done, seen) = mpsc::channel();
        let _good = admission.submit(&name("a"), || Box::new(move |_| done.send(()).unwrap())).unwrap();
        seen.recv().unwrap();
    }

    #[test]
    fn the_number_of_workers_follows_the_processors_within_bounds() {
        let automatic = Capacity::new(0, 256);
        assert!((4..=32).contains(&automatic.running) && automatic.waiting == 256);
        assert_eq!(Capacity::new(3, 0), Capacity { running: 3, waiting: 0 });
    }
}
