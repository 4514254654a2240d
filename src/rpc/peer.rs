//! Who is at the other end of a connection, as the kernel vouches for it.

use tokio::net::UnixStream;

/// Credentials of the process that connected, taken by the kernel at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its process, if the kernel can name it in our process namespace.
    pub pid: Option<i32>,
}

impl Peer {
    /// Reads `SO_PEERCRED`.
    pub fn of(stream: &UnixStream) -> std::io::Result<Self> {
        let credentials = stream.peer_cred()?;
        Ok(Self { uid: credentials.uid(), pid: credentials.pid() })
    }

    /// Whether it is root or the one configured user.
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
