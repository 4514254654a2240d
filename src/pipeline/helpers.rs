//! Helper threads: how many there may be, and who may start one.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
};

/// Permits for the threads that help those of the callers, for all requests together.
#[derive(Debug)]
pub struct Helpers {
    free: Mutex<usize>,
}

/// The right to run one helper thread.
#[derive(Debug)]
pub struct Permit(Arc<Helpers>);

impl Helpers {
    /// Permits for `threads` helpers at a time.
    pub fn new(threads: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::new(threads) })
    }

    /// As many as a machine keeps busy. Three helpers keep one layer going at full speed; one for each further
    /// processor lets several layers share a larger machine. Together with the callers' own threads they stay below
    /// eight more than there are processors.
    pub fn default_threads() -> usize {
        thread::available_parallelism().map_or(1, usize::from) + 1
    }

    /// A permit, if one is free. Nobody waits for one: without, the work is done on the caller's thread.
    pub fn take(self: &Arc<Self>) -> Option<Permit> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = free.checked_sub(1)?;
        Some(Permit(Arc::clone(self)))
    }

    /// As many permits as are free, at most `wanted`.
    pub fn take_up_to(self: &Arc<Self>, wanted: usize) -> Vec<Permit> {
        (0..wanted).map_while(|_| self.take()).collect()
    }

    /// How many permits nobody holds.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        *self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }
}
