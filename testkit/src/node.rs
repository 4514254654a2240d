//! A machine in a directory: a content store, a root of snapshots, a configuration, and the real daemon on them.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use containerd_client::{
    services::v1::{ApplyRequest, diff_client::DiffClient},
    types::{Descriptor, Mount},
};
use tokio::runtime::Runtime;
use tonic::{Request, Status, transport::Channel};

use crate::{archive::digest, containerd::FakeContainerd, daemon::Daemon, grpc, host};

/// How long anything may take that should take no time.
pub const SOON: Duration = Duration::from_secs(20);
/// The media type of most layers.
pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The namespace of most requests.
pub const NAMESPACE: &str = "default";

/// A node. The daemon is started by the test.
pub struct Node {
    /// Holds all of it.
    pub scratch: tempfile::TempDir,
    /// The daemon takes it for its containerd.
    pub store: FakeContainerd,
    /// Where clients run.
    pub runtime: Runtime,
    extra: String,
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    /// With the least that a configuration has to say.
    pub fn new() -> Self {
        Self::with("")
    }

    /// `extra` is appended to the configuration, whose last table is `[server]`.
    pub fn with(extra: &str) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let store = FakeContainerd::start(scratch.path());
        let runtime = Runtime::new().unwrap();
        let node = Self { scratch, store, runtime, extra: extra.to_owned() };
        fs::create_dir_all(node.root().join("snapshots")).unwrap();
        // Where containerd keeps its mounts, and the other snapshotters their directories.
        fs::create_dir(node.scratch.path().join("state")).unwrap();
        for other in ["overlayfs", "overlaybd"] {
            fs::create_dir_all(node.scratch.path().join(other).join("snapshots")).unwrap();
        }
        fs::write(node.config(), node.settings()).unwrap();
        node
    }

    fn settings(&self) -> String {
        let at = |name: &str| self.scratch.path().join(name).display().to_string();
        format!(
            "[containerd]\naddress = {:?}\nstate_dir = {:?}\n[snapshots]\nroots = [{:?}]\noverlayfs_roots = [{:?}]\noverlaybd_roots = [{:?}]\n[limits]\nreserve_bytes = 0\n\
             reserve_percent = 0\n[server]\nsocket = {:?}\nmetrics_socket = {:?}\n{}\n",
            at("containerd.sock"),
            at("state"),
            self.root().display().to_string(),
            at("overlayfs"),
            at("overlaybd"),
            at("plywood.sock"),
            at("metrics.sock"),
            self.extra
        )
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.scratch.path().join("config.toml")
    }

    /// The socket that the daemon listens on.
    pub fn socket(&self) -> PathBuf {
        self.scratch.path().join("plywood.sock")
    }

    /// The directory of the snapshotter.
    pub fn root(&self) -> PathBuf {
        self.scratch.path().join("io.containerd.snapshotter.v1.erofs")
    }

    /// `plywood serve` on this node, not started.
    pub fn command(&self) -> Command {
        let mut command = host::plywood();
        command.arg("serve").arg("--config").arg(self.config()).env_remove("RUST_LOG");
        command
    }

    /// Starts the daemon and waits until it is ready.
    pub fn start(&self) -> Daemon {
        self.start_with(&mut self.command())
    }

    /// Starts `command` as the daemon and waits until it is ready.
    pub fn start_with(&self, command: &mut Command) -> Daemon {
        let log = self.scratch.path().join("log");
        let starts = |log: &str| log.matches(" ready ").count();
        let before = starts(&fs::read_to_string(&log).unwrap_or_default());
        let mut daemon = Daemon::start("plywood", command, &log).unwrap();
        daemon.wait_until(|daemon| starts(&daemon.log()) > before).unwrap_or_else(|error| panic!("{error}"));
        daemon
    }

    /// A fresh directory as the snapshotter leaves it for the differ.
    pub fn snapshot(&self, id: u32) -> PathBuf {
        let directory = self.root().join("snapshots").join(id.to_string());
        fs::create_dir_all(directory.join("fs")).unwrap();
        fs::create_dir(directory.join("work")).unwrap();
        fs::write(directory.join(".erofslayer"), "").unwrap();
        directory
    }

    /// Puts `blob`, a compressed tar, into the store; the request to apply it to a fresh snapshot.
    pub fn apply_request(&self, id: u32, blob: &[u8]) -> ApplyRequest {
        let digest = self.store.add(NAMESPACE, blob);
        let size = i64::try_from(blob.len()).unwrap();
        let source = self.snapshot(id).join("fs").display().to_string();
        let options = vec!["rw".to_owned(), "rbind".to_owned()];
        ApplyRequest {
            diff: Some(Descriptor { media_type: GZIP.to_owned(), digest, size, ..Descriptor::default() }),
            mounts: vec![Mount { r#type: "bind".to_owned(), source, options, ..Mount::default() }],
            ..ApplyRequest::default()
        }
    }

    /// The reply to a layer that was this tar.
    pub fn applied(tar: &[u8]) -> Descriptor {
        Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
            digest: digest(tar),
            size: i64::try_from(tar.len()).unwrap(),
            ..Descriptor::default()
        }
    }

    /// Applies over gRPC and waits.
    pub fn apply_over_grpc(&self, request: &ApplyRequest) -> Result<Descriptor, Status> {
        let mut request = Request::new(request.clone());
        request.metadata_mut().insert("containerd-namespace", NAMESPACE.parse().unwrap());
        let mut client = self.diff_client();
        let reply = self.runtime.block_on(client.apply(request))?;
        Ok(reply.into_inner().applied.unwrap())
    }

    /// A client of the daemon.
    pub fn diff_client(&self) -> DiffClient<Channel> {
        let _entered = self.runtime.enter();
        DiffClient::new(grpc::channel(&self.socket()))
    }

    /// The answer of the daemon's metrics socket.
    pub fn metrics(&self) -> String {
        let mut stream =
            std::os::unix::net::UnixStream::connect(self.scratch.path().join("metrics.sock")).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }
}
