//! The client of one containerd that others hold: how it is made, and what it knows from call to call.
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

/// How long a lease of our own keeps a blob if nobody says otherwise. Clients refer to a layer within seconds;
/// one that makes many layers first, or writes a large image slowly, has minutes. Longer keeps deleted images
/// on disk.
const LEASE_LIFETIME: Duration = Duration::from_secs(900);

/// Whether blobs are read from the store's directory when that is possible.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// Never.
    Off,
    /// Where containerd's introspection service says.
    #[default]
    Introspect,
    /// In this directory.
    At(PathBuf),
}

/// What is known about the store's directory.
#[derive(Debug)]
pub(super) enum Discovery {
    /// To be asked for; nobody has answered yet.
    Unknown,
    /// Named by the operator or by containerd, which perhaps has yet to make it.
    Named(PathBuf),
    Found(PathBuf, Arc<ContentRoot>),
    Unusable,
}

/// A client of one containerd.
pub struct Containerd {
    pub(super) client: Client,
    pub(super) direct: Mutex<Discovery>,
    /// Whether the log says that the store's directory may not be read.
    pub(super) refused: AtomicBool,
    pub(super) lease_lifetime: Duration,
    pub(super) names: Names,
    pub(super) watch: Watch,
}

impl Containerd {
    /// A client of the containerd that listens on the socket `address`. Nothing is sent yet.
    ///
    /// `stall` is how long a call or a stream may make no progress.
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

    /// How long what is written for a call without a lease stays when nothing refers to it; a quarter of an
    /// hour if this is not called.
    #[must_use]
    pub fn with_lease_lifetime(self, lease_lifetime: Duration) -> Self {
        let watch = Watch::new(self.client.clone(), self.names.clone(), lease_lifetime);
        Self { lease_lifetime, watch, ..self }
    }

    /// Names what is written after the daemon that listens on `socket`, so that [`Containerd::sweep`] finds
    /// after the next start what this one could not take back. Without it names say nothing, and nothing
    /// is swept.
    ///
    /// Errors: without random numbers.
    pub fn with_instance(self, socket: &Path) -> Result<Self> {
        let names = Names::of(socket)?;
        let watch = Watch::new(self.client.clone(), names.clone(), self.lease_lifetime);
        Ok(Self { names, watch, ..self })
    }

    /// Lets go the leases of ours that nothing needs any more, before the runtime ends. The others end by
    /// themselves, or with the next daemon, whose [`Containerd::sweep`] finds them.
    pub async fn settle(&self) {
        self.watch.settle().await;
    }
}
