//! The origin of a request.

/// Which wire a request came over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wire {
    /// HTTP/2 with protobuf messages.
    Grpc,
    /// containerd's own framing for small machines.
    Ttrpc,
}

impl Wire {
    /// The name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Ttrpc => "ttrpc",
        }
    }
}

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
    /// Apply or Diff.
    pub method: Method,
    /// The process that connected, where the wire knows it.
    pub peer: Option<Peer>,
}

impl Caller {
    /// The origin of one request.
    pub fn new(wire: Wire, method: Method, peer: Option<Peer>) -> Self {
        Self { wire, method, peer }
    }
}

/// Credentials of the process that connected, taken by the kernel at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Effective user of the process.
    pub uid: u32,
    /// Process id, if the process is visible in our process namespace.
    pub pid: Option<i32>,
}

impl Peer {
    /// Whether the process belongs to root or to the one configured user.
    pub fn is_allowed(&self, allowed_uid: u32) -> bool {
        self.uid == 0 || self.uid == allowed_uid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_configured_user_may_connect_and_nobody_else() {
        let peer = |uid| Peer { uid, pid: Some(1) };
        assert!(peer(0).is_allowed(0) && peer(0).is_allowed(1000) && peer(1000).is_allowed(1000));
        assert!(!peer(1000).is_allowed(0) && !peer(1001).is_allowed(1000) && !peer(u32::MAX).is_allowed(0));
    }
}
