//! Who asks: the namespace and lease a request came with, and whether it is still wanted.
//!
//! A [`Call`] goes with every request from the edge down to the content store. [`Cancel`] is the one
//! flag that every stage looks at, at least once a buffer and in every wait. It also leads to the request's
//! [`Place`], which a wait for the store gives to others when it lasts.

mod caller;

pub use caller::{Caller, Method, Peer, Wire};

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use crate::error::{Classify, Kind};

/// A containerd namespace, checked against containerd's identifier grammar.
///
/// Source: containerd `pkg/identifiers/validate.go`: at most 76 bytes, runs of `[A-Za-z0-9]` joined
/// by single `.`, `_` or `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(String);

/// Why a namespace header is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamespaceError {
    /// The header is absent; the same status the daemon itself answers.
    #[error("the request names no namespace")]
    Missing,
    /// Not an identifier.
    #[error("namespace {0:?} is not an identifier of at most 76 bytes")]
    Malformed(String),
}

impl Classify for NamespaceError {
    fn kind(&self) -> Kind {
        match self {
            Self::Missing => Kind::Conflict,
            Self::Malformed(_) => Kind::Malformed,
        }
    }
    fn reason(&self) -> &'static str {
        "request.namespace"
    }
}

impl Namespace {
    /// Longest identifier containerd accepts, in bytes.
    const MAX_LEN: usize = 76;

    /// The identifier.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Namespace {
    type Err = NamespaceError;

    fn from_str(text: &str) -> Result<Self, NamespaceError> {
        let runs = text.split(['.', '_', '-']);
        let well_formed =
            runs.into_iter().all(|run| !run.is_empty() && run.bytes().all(|b| b.is_ascii_alphanumeric()));
        if text.len() > Self::MAX_LEN || !well_formed {
            return Err(NamespaceError::Malformed(text.chars().take(80).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One request's identity; cheap to clone.
#[derive(Clone, Debug)]
pub struct Call {
    /// Forwarded on every call to the content store.
    pub namespace: Namespace,
    /// Forwarded when the request brought one.
    pub lease: Option<String>,
    /// W3C trace context of the caller, forwarded so that its trace reaches the content store.
    pub trace_parent: Option<TraceParent>,
    /// Set when the client goes away, asks to stop, or its deadline passes.
    pub cancel: Cancel,
}

impl Call {
    /// A call without lease or deadline.
    pub fn new(namespace: Namespace) -> Self {
        Self { namespace, lease: None, trace_parent: None, cancel: Cancel::new() }
    }
}

/// A `traceparent` header, version 00.
///
/// Source: W3C Trace Context, section 3.2: `00-` 32 hex digits `-` 16 hex digits `-` 2 hex digits, lower
/// case, the two identifiers not all zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceParent(String);

impl TraceParent {
    /// The header's value.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `None` when `text` is not of that form; a request is not refused for its trace.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('-').collect();
        let hex = |part: &&str, len: usize| {
            part.len() == len && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let named = |part: &&str| part.bytes().any(|byte| byte != b'0');
        let [version, trace, parent, flags] = parts.as_slice() else { return None };
        let well_formed = *version == "00" && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
        (well_formed && named(trace) && named(parent)).then(|| Self(text.to_owned()))
    }
}

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
    fn namespaces_follow_containerds_identifier_grammar() {
        for good in ["default", "k8s.io", "moby", "a_b-c.d0", &"a".repeat(76)] {
            assert!(good.parse::<Namespace>().is_ok(), "{good}");
        }
        for bad in ["", ".", "a..b", "-a", "a-", "a/b", "a b", "é", &"a".repeat(77)] {
            assert!(bad.parse::<Namespace>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_trace_parent_is_taken_in_its_one_form_only() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(TraceParent::parse(good).map(|parent| parent.as_str().to_owned()), Some(good.to_owned()));
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad}");
        }
    }

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
