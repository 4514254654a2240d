//! Helper threads: how many there may be, and who may start one.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Most permits for idle processors: with the threads of all requests they stay below the 256 tasks of the shipped unit.
const IDLE_MAX: usize = 16;

/// Permits for the threads that help those of the callers, for all requests together.
#[derive(Debug)]
pub struct Helpers {
    free: Mutex<Free>,
    /// Processors but one.
    others: usize,
    /// Layers that are taken in or written now.
    layers: AtomicUsize,
}

/// Permits that nobody holds.
#[derive(Debug)]
struct Free {
    threads: usize,
    idle: usize,
}

/// The right to run one thread that works only when a processor has nothing else to do.
#[derive(Debug)]
pub struct IdlePermit(Arc<Helpers>);

/// A layer that is taken in or written, for as long as this lives.
#[derive(Debug)]
pub struct LayerAtWork<'a>(&'a Helpers);

/// The right to run one helper thread.
#[derive(Debug)]
pub struct Permit(Arc<Helpers>);

impl Helpers {
    /// Permits for `threads` helpers at a time; and for two fewer that use idle processors, which is one less than there
    /// are processors by default, but at most 16.
    pub fn new(threads: usize) -> Arc<Self> {
        let others = threads.saturating_sub(2);
        Arc::new(Self {
            free: Mutex::new(Free { threads, idle: others.min(IDLE_MAX) }),
            others,
            layers: AtomicUsize::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As many as a machine keeps busy. Three helpers keep one layer going at full speed; one for each further
    /// processor lets several layers share a larger machine. Together with the callers' own threads they stay below
    /// eight more than there are processors, those that use idle processors not counted.
    pub fn default_threads() -> usize {
        thread::available_parallelism().map_or(1, usize::from) + 1
    }

    /// A permit, if one is free. Nobody waits for one: without, the work is done on the caller's thread.
    pub fn take(self: &Arc<Self>) -> Option<Permit> {
        let mut free = self.lock();
        free.threads = free.threads.checked_sub(1)?;
        Some(Permit(Arc::clone(self)))
    }

    /// A permit for a thread that uses idle processors, if one is free.
    pub fn take_idle(self: &Arc<Self>) -> Option<IdlePermit> {
        let mut free = self.lock();
        free.idle = free.idle.checked_sub(1)?;
        Some(IdlePermit(Arc::clone(self)))
    }

    /// Notes that a layer is at work.
    pub fn begin_layer(&self) -> LayerAtWork<'_> {
        self.layers.fetch_add(1, Ordering::Relaxed);
        LayerAtWork(self)
    }

    /// How many processors each layer at work may have beside one of its own.
    pub fn idle_processors(&self) -> usize {
        let layers = self.layers.load(Ordering::Relaxed).max(1);
        ((self.others + 1) / layers).saturating_sub(1)
    }

    /// As many permits as are free, at most `wanted`.
    pub fn take_up_to(self: &Arc<Self>, wanted: usize) -> Vec<Permit> {
        (0..wanted).map_while(|_| self.take()).collect()
    }

    /// How many permits nobody holds.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.lock().threads
    }

    /// How many permits for idle processors nobody holds.
    #[cfg(test)]
    pub(super) fn free_idle(&self) -> usize {
        self.lock().idle
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.lock().threads += 1;
    }
}

impl Drop for IdlePermit {
    fn drop(&mut self) {
        self.0.lock().idle += 1;
    }
}

impl Drop for LayerAtWork<'_> {
    fn drop(&mut self) {
        self.0.layers.fetch_sub(1, Ordering::Relaxed);
    }
}
