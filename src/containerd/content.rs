//! The client of one containerd: settings, and state that is kept from call to call.
//!
//! Source: docs/formats/containerd.md, "The content store".

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use tokio::runtime::Handle;

use super::{client::Client, name::Names, watch::Watch};
use crate::{error::Result, store::local::ContentRoot};

/// Default time for which a lease of ours keeps a blob. Clients refer to a layer within seconds; one that makes many
/// layers first, or writes a large image slowly, has minutes. A longer time keeps deleted images on disk.
const LEASE_LIFETIME: Duration = Duration::from_secs(900);

/// Source of the directory from which blobs are read instead of over gRPC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// None: all blobs are read over gRPC.
    Off,
    /// The directory that containerd's introspection service returns.
    #[default]
    Introspect,
    /// The given directory.
    At(PathBuf),
}

/// State of the search for the store's directory.
#[derive(Debug)]
pub(super) enum Discovery {
    /// containerd has not answered yet.
    Unknown,
    /// Named by the operator or by containerd. It may not exist yet.
    Named(PathBuf),
    Found(PathBuf, Arc<ContentRoot>),
    Unusable,
}

/// A client of one containerd.
pub struct Containerd {
    pub(super) client: Client,
    pub(super) direct: Mutex<Discovery>,
    /// Whether it has been logged that the sandbox does not allow the store's directory.
    pub(super) refused: AtomicBool,
    pub(super) lease_lifetime: Duration,
    pub(super) names: Names,
    pub(super) watch: Watch,
}

impl Containerd {
    /// A client of the containerd that listens on the socket `address`. Nothing is sent yet.
    ///
    /// A call or a stream that makes no progress for `stall` fails.
    pub fn new(address: &Path, runtime: Handle, direct: Direct, stall: Duration) -> Self {
        let direct = match direct {
            Direct::Off => Discovery::Unusable,
            Direct::Introspect => Discovery::Unknown,
            Direct::At(path) => Discovery::Named(path),
        };
        let client = Client::new(address, runtime, stall);
        let (lease_lifetime, names) = (LEASE_LIFETIME, Names::anonymous());
        let watch = Watch::new(client.clone(), names.clone(), lease_lifetime);
        let (direct, refused) = (Mutex::new(direct), AtomicBool::new(false));
        Self { client, direct, refused, lease_lifetime, names, watch }
    }

    /// Sets the time for which a blob stays that was written for a call without a lease and to which nothing refers.
    /// Default: a quarter of an hour.
    #[must_use]
    pub fn with_lease_lifetime(self, lease_lifetime: Duration) -> Self {
        let watch = Watch::new(self.client.clone(), self.names.clone(), lease_lifetime);
        Self { lease_lifetime, watch, ..self }
    }

    /// Puts the daemon that listens on `socket` into the names of ingests and leases, so that after the next start
    /// [`Containerd::sweep`] finds those that this one could not remove. Without it nothing is swept.
    ///
    /// Errors: without random numbers.
    pub fn with_instance(self, socket: &Path) -> Result<Self> {
        let names = Names::of(socket)?;
        let watch = Watch::new(self.client.clone(), names.clone(), self.lease_lifetime);
        Ok(Self { names, watch, ..self })
    }

    /// Deletes the leases of ours that nothing needs any more. Call it before the runtime ends. The other leases
    /// expire, or the next daemon finds them in its [`Containerd::sweep`].
    pub async fn settle(&self) {
        self.watch.settle().await;
    }
}
