//! Where a request came from.

use crate::rpc::{Wire, peer::Peer};

/// A method of the Diff service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// A layer into a snapshot.
    Apply,
    /// Two snapshots into a layer.
    Diff,
}

impl Method {
    /// The name on the wire, in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Diff => "Diff",
        }
    }
}

/// The wire, the method and the process behind one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// gRPC or ttrpc.
    pub wire: Wire,
    /// What is asked for.
    pub method: Method,
    /// Who asks.
    pub peer: Option<Peer>,
}

impl Caller {
    /// Puts the three together.
    pub fn new(wire: Wire, method: Method, peer: Option<Peer>) -> Self {
        Self { wire, method, peer }
    }
}
