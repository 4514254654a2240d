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

/// A flag shared by everything that works for one request.
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
    /// How long any wait may last before it looks at the flag again.
    pub const POLL: Duration = Duration::from_millis(100);

    /// Not cancelled, no deadline.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels itself at `deadline`.
    pub fn with_deadline(deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..Self::default() }
    }

    /// A handle to this flag for work that has a place.
    #[must_use]
    pub fn with_place(self, place: Arc<Place>) -> Self {
        Self { place: Some(place), ..self }
    }

    /// The place of the request that is worked on, if others wait for places.
    pub fn place(&self) -> Option<&Arc<Place>> {
        self.place.as_ref()
    }

    /// Begins a wait for somebody outside.
    pub fn wait(&self) -> Wait<'_> {
        Wait { cancel: self, since: Instant::now() }
    }

    /// When it cancels itself.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Asks everything that shares this flag to stop.
    pub fn cancel(&self) {
        self.flag.store(true, Ordering::Release);
    }

    /// Errors when work should stop. A caller that gives up because its deadline passed is told so.
    pub fn check(&self) -> Result<(), Cancelled> {
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Cancelled::Deadline),
            _ if self.flag.load(Ordering::Acquire) => Err(Cancelled::ByCaller),
            _ => Ok(()),
        }
    }
}

/// A part of what a request holds while it is worked on, and others wait for.
pub trait Part: Send + Sync + fmt::Debug {
    /// Gives it away. `false`: it stays.
    fn give(&self) -> bool;

    /// Waits until it is there again. Errors: cancelled meanwhile; then it is not.
    fn take(&self, cancel: &Cancel) -> Result<(), Cancelled>;
}

/// The place of a request among those that are worked on: its slot, and the memory set aside for it.
#[derive(Debug)]
pub struct Place {
    /// Only this thread gives the place away: while another one of the request waits, this one may be at work.
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

    /// Waits until the place is there again, if it was given away. Errors: cancelled meanwhile.
    pub fn take(&self, cancel: &Cancel) -> Result<(), Cancelled> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if !parts.away {
            return Ok(());
        }
        // In the order in which a request gets them at first. So whoever holds memory that others wait for has a
        // slot, and gets on.
        self.slot.take(cancel)?;
        parts.away = false;
        match parts.memory.as_ref().and_then(Weak::upgrade) {
            Some(memory) => memory.take(cancel),
            None => Ok(()),
        }
    }
}

/// A wait for somebody outside, who may take long.
#[derive(Debug)]
pub struct Wait<'a> {
    cancel: &'a Cancel,
    since: Instant,
}

impl Wait<'_> {
    /// How long a request keeps its place while it waits. Stores answer within milliseconds; a pause of a slow disk
    /// should not cost a request its turn.
    const KEEPS_PLACE: Duration = Duration::from_millis(200);

    /// To be called every [`Cancel::POLL`], not under a lock: gives the place away once the wait has lasted.
    /// Errors: work should stop.
    pub fn go_on(&self) -> Result<(), Cancelled> {
        self.cancel.check()?;
        match &self.cancel.place {
            Some(place) if self.since.elapsed() >= Self::KEEPS_PLACE => place.give(self.cancel),
            _ => Ok(()),
        }
    }

    /// How long it has lasted.
    pub fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }

    /// Ends the wait; waits for a place if it was given away. Errors: cancelled meanwhile.
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
