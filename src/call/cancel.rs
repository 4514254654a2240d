//! Whether a request is still wanted, and what it gives to others while it waits.
//!
//! Both are in one file because a wait ends with a cancellation, and a cancelled request waits for nothing.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use crate::error::{Classify, Kind};

/// Flag that ends the work for one request; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    deadline: Option<Instant>,
    place: Option<Arc<Place>>,
}

/// Why work stopped early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cancelled {
    /// The client cancelled or went away.
    #[error("cancelled")]
    ByCaller,
    /// The client's deadline passed.
    #[error("deadline exceeded")]
    Deadline,
}

impl Classify for Cancelled {
    fn kind(&self) -> Kind {
        match self {
            Self::ByCaller => Kind::Cancelled,
            Self::Deadline => Kind::DeadlineExceeded,
        }
    }
    fn reason(&self) -> &'static str {
        match self {
            Self::ByCaller => "call.cancelled",
            Self::Deadline => "call.deadline",
        }
    }
}

impl Cancel {
    /// Longest time that a wait goes without looking at the flag.
    pub const POLL: Duration = Duration::from_millis(100);

    /// A flag that is not set, without deadline.
    pub fn new() -> Self {
        Self::default()
    }

    /// A flag that is set at `deadline`.
    pub fn with_deadline(deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..Self::default() }
    }

    /// Adds the place of the request, which waits give to others.
    #[must_use]
    pub fn with_place(self, place: Arc<Place>) -> Self {
        Self { place: Some(place), ..self }
    }

    /// The place of the request, if it has one.
    pub fn place(&self) -> Option<&Arc<Place>> {
        self.place.as_ref()
    }

    /// Begins a wait for somebody outside this process.
    pub fn wait(&self) -> Wait<'_> {
        Wait { cancel: self, since: Instant::now() }
    }

    /// The deadline, if there is one.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Sets the flag.
    pub fn cancel(&self) {
        self.flag.store(true, Ordering::Release);
    }

    /// Errors: the work should stop. A caller that goes away at its deadline gets the error of the deadline.
    pub fn check(&self) -> Result<(), Cancelled> {
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Cancelled::Deadline),
            _ if self.flag.load(Ordering::Acquire) => Err(Cancelled::ByCaller),
            _ => Ok(()),
        }
    }
}

/// Something that a request holds while it is worked on, and that others wait for.
pub trait Part: Send + Sync + fmt::Debug {
    /// Gives it away; `false` when the request keeps it.
    fn give(&self) -> bool;

    /// Waits for it, and takes it back. Errors: cancelled meanwhile; the request does not have it then.
    fn take(&self, cancel: &Cancel) -> Result<(), Cancelled>;
}

/// The place of a request among those that are worked on: its slot, and the memory set aside for it.
#[derive(Debug)]
pub struct Place {
    /// The thread that may give the place away. Others of the request may not: this one may be at work while they wait.
    thread: ThreadId,
    slot: Arc<dyn Part>,
    parts: Mutex<Parts>,
}

#[derive(Debug, Default)]
struct Parts {
    away: bool,
    memory: Option<Weak<dyn Part>>,
}

impl Place {
    /// The place of the request that the current thread works on.
    pub fn new(slot: Arc<dyn Part>) -> Arc<Self> {
        Arc::new(Self { thread: thread::current().id(), slot, parts: Mutex::default() })
    }

    /// Notes the memory that goes with the slot.
    pub fn add_memory(&self, memory: Weak<dyn Part>) {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).memory = Some(memory);
    }

    fn give(&self, cancel: &Cancel) -> Result<(), Cancelled> {
        if thread::current().id() != self.thread {
            return Ok(());
        }
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if parts.away {
            return Ok(());
        }
        let memory = parts.memory.as_ref().and_then(Weak::upgrade);
        if memory.as_ref().is_some_and(|memory| !memory.give()) {
            return Ok(());
        }
        parts.away = self.slot.give();
        match memory {
            Some(memory) if !parts.away => memory.take(cancel),
            _ => Ok(()),
        }
    }

    /// Takes the place back if it was given away, and waits for it. Errors: cancelled meanwhile.
    pub fn take(&self, cancel: &Cancel) -> Result<(), Cancelled> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if !parts.away {
            return Ok(());
        }
        // In the order in which a request gets them at first. So every request that holds memory has a slot, and
        // finishes.
        self.slot.take(cancel)?;
        parts.away = false;
        match parts.memory.as_ref().and_then(Weak::upgrade) {
            Some(memory) => memory.take(cancel),
            None => Ok(()),
        }
    }
}

/// A wait for somebody outside this process, who may take long.
#[derive(Debug)]
pub struct Wait<'a> {
    cancel: &'a Cancel,
    since: Instant,
}

impl Wait<'_> {
    /// Time that a request keeps its place while it waits. Stores answer within milliseconds; a pause of a slow disk
    /// should not cost a request its turn.
    const KEEPS_PLACE: Duration = Duration::from_millis(200);

    /// Goes on waiting; gives the place away once the wait has lasted. Call it every [`Cancel::POLL`], without a lock.
    /// Errors: the work should stop.
    pub fn go_on(&self) -> Result<(), Cancelled> {
        self.cancel.check()?;
        match &self.cancel.place {
            Some(place) if self.since.elapsed() >= Self::KEEPS_PLACE => place.give(self.cancel),
            _ => Ok(()),
        }
    }

    /// Time since the wait began.
    pub fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }

    /// Ends the wait, and takes the place back if it was given away. Errors: cancelled meanwhile.
    pub fn end(self) -> Result<(), Cancelled> {
        self.cancel.place.as_ref().map_or(Ok(()), |place| place.take(self.cancel))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_shares_the_flag() {
        let cancel = Cancel::new();
        let seen = cancel.clone();
        assert_eq!(seen.check(), Ok(()));
        cancel.cancel();
        assert_eq!(seen.check(), Err(Cancelled::ByCaller));
    }

    #[test]
    fn a_passed_deadline_is_an_error_of_its_own() {
        assert_eq!(Cancel::with_deadline(Instant::now()).check(), Err(Cancelled::Deadline));
    }
}
