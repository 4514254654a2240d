//! The daemon as a child, its snapshot directories, layers, and clients for both wires.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Write as _,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use containerd_client::services::v1::diff_client::DiffClient;
use hyper_util::rt::TokioIo;
use plywood::{
    apply::Request,
    descriptor::Descriptor,
    digest::Digest,
    rpc::{convert, proto::ttrpc::diff_ttrpc, status},
    snapshot::Mount,
};
use rustix::process::{Pid, Signal, kill_process};
use testkit::containerd::FakeContainerd;
use tokio::{net::UnixStream, runtime::Runtime};
use tonic::transport::{Channel, Endpoint};

/// How long anything may take that should take no time.
pub const SOON: Duration = Duration::from_secs(20);
pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const NAMESPACE: &str = "default";

/// One of the functions in a table of tests.
pub type Test = (&'static str, fn());

/// A node in a directory: content store, snapshot root, configuration. The daemon is started by the test.
pub struct Node {
    pub scratch: tempfile::TempDir,
    pub store: FakeContainerd,
    pub runtime: Runtime,
    extra: String,
}

/// A running daemon.
pub struct Daemon {
    pub child: Child,
    log: PathBuf,
}

impl Node {
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
        // Where containerd keeps its mounts, and the other snapshotter its directories.
        fs::create_dir(node.scratch.path().join("state")).unwrap();
        fs::create_dir_all(node.scratch.path().join("overlayfs/snapshots")).unwrap();
        fs::write(node.config(), node.settings()).unwrap();
        node
    }

    fn settings(&self) -> String {
        let at = |name: &str| self.scratch.path().join(name).display().to_string();
        format!(
            "[containerd]\naddress = {:?}\nstate_dir = {:?}\n[snapshots]\nroots = [{:?}]\noverlayfs_roots = [{:?}]\n[limits]\nreserve_bytes = 0\n\
             reserve_percent = 0\n[server]\nsocket = {:?}\nmetrics_socket = {:?}\n{}\n",
            at("containerd.sock"),
            at("state"),
            self.root().display().to_string(),
            at("overlayfs"),
            at("plywood.sock"),
            at("metrics.sock"),
            self.extra
        )
    }

    pub fn config(&self) -> PathBuf {
        self.scratch.path().join("config.toml")
    }

    pub fn socket(&self) -> PathBuf {
        self.scratch.path().join("plywood.sock")
    }

    pub fn root(&self) -> PathBuf {
        self.scratch.path().join("io.containerd.snapshotter.v1.erofs")
    }

    /// `plywood serve` on this node, not started.
    pub fn command(&self) -> Command {
        let mut command = testkit::host::plywood();
        command.arg("serve").arg("--config").arg(self.config()).env_remove("RUST_LOG");
        command
    }

    /// Starts the daemon and waits until it is ready.
    pub fn start(&self) -> Daemon {
        self.start_with(&mut self.command())
    }

    pub fn start_with(&self, command: &mut Command) -> Daemon {
        let log = self.scratch.path().join("log");
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let before = fs::read_to_string(&log).unwrap().matches(" ready ").count();
        let child = command.stderr(file).spawn().unwrap();
        let mut daemon = Daemon { child, log };
        let end = Instant::now() + SOON;
        while daemon.log().matches(" ready ").count() == before {
            let ended = daemon.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < end, "{ended:?}\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(5));
        }
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

    /// A request to apply a blob of the store to a fresh snapshot.
    pub fn request(&self, id: u32, media_type: &str, digest: &Digest, size: usize) -> Request {
        let directory = self.snapshot(id);
        Request {
            diff: Descriptor::new(media_type, digest.clone(), i64::try_from(size).unwrap()).unwrap(),
            mounts: vec![Mount {
                kind: "bind".to_owned(),
                source: directory.join("fs").display().to_string(),
                target: String::new(),
                options: vec!["rw".to_owned(), "rbind".to_owned()],
            }],
            payloads: BTreeMap::new(),
            sync_fs: false,
        }
    }

    /// Puts `blob` into the store and asks for it.
    pub fn request_for(&self, id: u32, blob: &[u8]) -> Request {
        let digest = self.store.add(NAMESPACE, blob);
        self.request(id, GZIP, &digest, blob.len())
    }

    pub fn grpc(&self) -> Grpc {
        let path = self.socket();
        let connector = tower::service_fn(move |_: tonic::transport::Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://unix");
        let _entered = self.runtime.enter();
        Grpc {
            client: DiffClient::new(endpoint.connect_with_connector_lazy(connector)),
            namespace: NAMESPACE.into(),
        }
    }

    pub fn ttrpc(&self) -> Ttrpc {
        let address = format!("unix://{}", self.socket().display());
        let client = self.runtime.block_on(ttrpc::r#async::Client::connect(&address)).unwrap();
        Ttrpc(diff_ttrpc::DiffClient::new(client))
    }

    /// Applies over gRPC and waits.
    pub fn apply(&self, request: &Request) -> Reply {
        self.runtime.block_on(self.grpc().apply(request))
    }

    pub fn metrics(&self) -> String {
        use std::io::Read as _;
        let mut stream =
            std::os::unix::net::UnixStream::connect(self.scratch.path().join("metrics.sock")).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }
}

impl Daemon {
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end of the process.
    pub fn ended(&mut self) -> ExitStatus {
        let end = Instant::now() + 2 * SOON;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "still running\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to end and expects that it does, well.
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.ended();
        assert!(status.success(), "{status}\n{}", self.log());
    }

    /// Open descriptors, threads, resident bytes.
    pub fn size(&self) -> (usize, usize, u64) {
        let at = |name: &str| format!("/proc/{}/{name}", self.child.id());
        let entries = |name: &str| fs::read_dir(at(name)).unwrap().count();
        let statm = fs::read_to_string(at("statm")).unwrap();
        let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
        (entries("fd"), entries("task"), pages * 4096)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a call came to, the same for both wires.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Applied { media_type: String, digest: String, size: i64 },
    Refused { code: i32, reason: String, message: String },
}

impl Reply {
    pub fn of_tar(tar: &[u8]) -> Self {
        Self::Applied {
            media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
            digest: Digest::sha256(tar).to_string(),
            size: i64::try_from(tar.len()).unwrap(),
        }
    }

    pub fn refused(status: &tonic::Status) -> Self {
        Self::Refused {
            code: status.code() as i32,
            reason: status::reason_of(status).unwrap_or_default(),
            message: status.message().to_owned(),
        }
    }

    pub fn refused_by_ttrpc(error: ttrpc::Error) -> Self {
        use protobuf::Enum as _;
        match error {
            ttrpc::Error::RpcStatus(status) => Self::Refused {
                code: status.code().value(),
                reason: status::reason_of_ttrpc(&status).unwrap_or_default(),
                message: status.message,
            },
            other => panic!("{other:?}"),
        }
    }

    pub fn is_applied(&self) -> bool {
        matches!(self, Self::Applied { .. })
    }

    pub fn code_and_reason(&self) -> (i32, &str) {
        match self {
            Self::Applied { .. } => (0, ""),
            Self::Refused { code, reason, .. } => (*code, reason),
        }
    }

    pub fn message(&self) -> &str {
        match self {
            Self::Applied { .. } => "",
            Self::Refused { message, .. } => message,
        }
    }
}

#[derive(Clone)]
pub struct Grpc {
    pub client: DiffClient<Channel>,
    pub namespace: String,
}

impl Grpc {
    pub async fn apply(&mut self, request: &Request) -> Reply {
        let mut message = tonic::Request::new(convert::apply::request_to_grpc(request));
        message.metadata_mut().insert("containerd-namespace", self.namespace.parse().unwrap());
        match self.client.apply(message).await {
            Ok(reply) => {
                let applied = reply.into_inner().applied.unwrap();
                Reply::Applied { media_type: applied.media_type, digest: applied.digest, size: applied.size }
            }
            Err(status) => Reply::refused(&status),
        }
    }
}

#[derive(Clone)]
pub struct Ttrpc(diff_ttrpc::DiffClient);

impl Ttrpc {
    pub fn client(&self) -> &diff_ttrpc::DiffClient {
        &self.0
    }

    pub fn context() -> ttrpc::context::Context {
        let namespace = ("containerd-namespace-ttrpc".to_owned(), vec![NAMESPACE.to_owned()]);
        ttrpc::context::with_metadata(HashMap::from([namespace]))
    }

    pub async fn apply(&self, request: &Request) -> Reply {
        match self.0.apply(Self::context(), &convert::apply::request_to_ttrpc(request)).await {
            Ok(reply) => {
                let applied = reply.applied.unwrap();
                Reply::Applied { media_type: applied.media_type, digest: applied.digest, size: applied.size }
            }
            Err(error) => Reply::refused_by_ttrpc(error),
        }
    }
}

/// An archive with a directory and `files` files of `bytes` bytes each.
pub fn archive(files: usize, bytes: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut entry = |path: &str, kind, mode, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, path, data).unwrap();
    };
    entry("etc/", tar::EntryType::Directory, 0o755, b"");
    for number in 0..files {
        // Different enough that no two files compress into one.
        let data: Vec<u8> =
            (0..bytes).map(|at| u8::try_from((at * 31 + number * 7 + at / 251) % 256).unwrap()).collect();
        entry(&format!("etc/file-{number}"), tar::EntryType::Regular, 0o644, &data);
    }
    builder.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The names in a snapshot directory, sorted.
pub fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A snapshot directory before any layer is in it.
pub const EMPTY: [&str; 3] = [".erofslayer", "fs", "work"];

/// Expects one published layer and nothing beside it.
pub fn assert_published(directory: &Path) {
    assert_eq!(names(directory), [".erofslayer", "fs", "layer.erofs", "work"]);
    let found = fs::symlink_metadata(directory.join("layer.erofs")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid(), found.len() % 4096), (0o644, 0, 0));
    let image = fs::read(directory.join("layer.erofs")).unwrap();
    assert_eq!(image[1024..1028], 0xe0f5_e1e2_u32.to_le_bytes(), "the EROFS magic");
}

/// Waits until `done`.
pub fn until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Lets `command` inherit `listener` as a service manager would hand it over, under `name`.
pub fn with_inherited(command: &Command, listener: OwnedFd, name: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    // The descriptor comes in as standard input, and the process keeps its id through exec.
    shell
        .arg("-c")
        .arg("exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"")
        .arg("sh")
        .arg(command.get_program())
        .args(command.get_args())
        .env("LISTEN_FDNAMES", name)
        .stdin(Stdio::from(listener));
    shell
}
