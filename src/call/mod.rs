//! One request: its caller, whether it is still wanted, and how far it is.
//!
//! A [`Call`] goes with every request from the edge down to the content store. [`Cancel`] is the one
//! flag that every stage looks at, at least once a buffer and in every wait. It also leads to the request's
//! [`Place`], which a wait for the store gives to others when it lasts. The progress bar reads [`Progress`].

mod caller;
mod cancel;
mod namespace;
mod progress;
mod trace;

pub use caller::{Caller, Method, Peer, Wire};
pub use cancel::{Cancel, Cancelled, Part, Place, Wait};
pub use namespace::{Namespace, NamespaceError};
pub use progress::{Phase, Progress, Seen};
pub use trace::TraceParent;

/// One request: the namespace it works in, its cancellation and its progress. Cheap to clone.
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
    /// How far the request is.
    pub progress: Progress,
}

impl Call {
    /// A call without lease or deadline.
    pub fn new(namespace: Namespace) -> Self {
        let (cancel, progress) = (Cancel::new(), Progress::default());
        Self { namespace, lease: None, trace_parent: None, cancel, progress }
    }

    /// The part of it that has nothing to do with the store.
    pub fn work(&self) -> Work<'_> {
        Work { cancel: &self.cancel, progress: &self.progress }
    }
}

/// Cancellation and progress of a piece of work. A command, which works in no namespace, makes its own.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// Ends the work early.
    pub cancel: &'a Cancel,
    /// How far the work is.
    pub progress: &'a Progress,
}
