//! containerd as commands reach it, and the arguments about images that they share.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};

use super::output;
use crate::{
    call::{Call, Cancel, Namespace},
    containerd::{Containerd, Direct},
    error::{Error, Kind, Result},
    image::{
        options::Options,
        platform::Platform,
        pool::{Asked, Pool},
    },
    limits::Limits,
};

/// Default for `--max-bytes`: several times the largest images in use.
const MAX_BYTES: u64 = 64 << 30;

/// How containerd is reached.
#[derive(Debug, clap::Args)]
pub struct Address {
    /// containerd's socket
    #[arg(
        short,
        long,
        value_name = "SOCKET",
        env = "CONTAINERD_ADDRESS",
        default_value = "/run/containerd/containerd.sock"
    )]
    pub address: PathBuf,
    /// Namespace of the images
    #[arg(short, long, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    pub namespace: Namespace,
}

/// Inputs, and what is taken of them.
#[derive(Debug, clap::Args)]
pub struct Inputs {
    /// Archives of docker save or in the OCI form, compressed or not, and directories in the OCI layout. All of them are
    /// one pool: a layer of one may belong to an image of another
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Directory of a separated set, and the name of the image in it
    #[arg(long, num_args = 2, value_names = ["DIR", "IMAGE"])]
    pub set: Option<Vec<String>>,
    /// File with the base layer, in place of the set's own
    #[arg(long, value_name = "FILE", requires = "set")]
    pub base: Option<PathBuf>,
    /// File with the lib layers, in place of the set's own
    #[arg(long, value_name = "FILE", requires = "set")]
    pub lib: Option<PathBuf>,
    /// Do not compare the set's files with the hashes in its manifest. Layers are compared with the image in any case
    #[arg(long, requires = "set")]
    pub no_check: bool,
    /// Give the image of a set all names that its archive has
    #[arg(long, requires = "set")]
    pub all_tags: bool,
    /// Name for an image that has none. If the image has a tag alone, the tag is appended to a NAME without one
    #[arg(long)]
    pub name: Option<String>,
    /// Platform of the images to take from an index [default: that of this machine]
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    pub platform: Option<Platform>,
    /// Take the images of all platforms
    #[arg(long, conflicts_with = "platform")]
    pub all_platforms: bool,
    /// Most uncompressed bytes of one archive, and of one layer
    #[arg(long, value_name = "BYTES", default_value_t = MAX_BYTES)]
    pub max_bytes: u64,
}

impl Inputs {
    pub(super) fn options(&self) -> Options {
        Options {
            platform: self.platform.clone().unwrap_or_else(Platform::of_this_machine),
            all_platforms: self.all_platforms,
            name: self.name.clone(),
            nameless: false,
            all_tags: self.all_tags,
        }
    }

    pub(super) fn limits(&self) -> Limits {
        Limits { stream_bytes: self.max_bytes, ..Limits::default() }
    }

    /// Opens all inputs.
    pub(super) fn open(&self, cancel: &Cancel) -> Result<Pool> {
        let mut pool = Pool::new(self.limits(), cancel.clone());
        for file in &self.files {
            if file.as_os_str() == "-" {
                return Err(output::usage(
                    "-: an archive is read more than once, so it cannot come from a pipe",
                ));
            }
            pool.add(file)?;
        }
        if let Some([directory, image]) = self.set.as_deref() {
            let (directory, image) = (PathBuf::from(directory), image.clone());
            let (base, lib) = (self.base.clone(), self.lib.clone());
            pool.add_set(&Asked { directory, image, base, lib, no_check: self.no_check })?;
        }
        Ok(pool)
    }
}

/// A client of containerd with the runtime of its sockets.
pub(super) struct Connection {
    pub(super) client: Arc<Containerd>,
    pub(super) call: Call,
    /// Dropped last, and by itself: nothing is waited for.
    pub(super) runtime: Arc<Runtime>,
}

impl Address {
    /// A client for the work that `cancel` ends. Nothing is sent yet.
    pub(super) fn connect(&self, runtime: &Arc<Runtime>, cancel: &Cancel) -> Connection {
        let stall = Limits::default().stall;
        let client = Containerd::new(&self.address, runtime.handle().clone(), Direct::Introspect, stall);
        let call = Call { cancel: cancel.clone(), ..Call::new(self.namespace.clone()) };
        Connection { client: Arc::new(client), call, runtime: Arc::clone(runtime) }
    }

    /// The directory of the socket.
    pub(super) fn directory(&self) -> Option<&Path> {
        self.address.parent().filter(|directory| directory.is_absolute())
    }
}

/// A runtime, on which SIGINT and SIGTERM set `cancel`.
pub(super) fn runtime(cancel: &Cancel) -> Result<Arc<Runtime>> {
    let failed = |error| Error::from_io(error, Kind::Exhausted, "cli.runtime");
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(failed)?;
    let entered = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let (mut signals, cancel) = (signal(kind).map_err(failed)?, cancel.clone());
        runtime.spawn(async move {
            while signals.recv().await.is_some() {
                cancel.cancel();
            }
        });
    }
    drop(entered);
    Ok(Arc::new(runtime))
}
