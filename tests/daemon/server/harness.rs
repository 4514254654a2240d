//! A server in this process, its clients, and the stand-in applier.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use containerd_client::services::v1::{ApplyResponse, diff_client::DiffClient};
use plywood::{
    apply::{Applied, Apply, Contents, Request, Stats},
    call::Call,
    codec::Coding,
    compare::{self, Compare, Compared},
    config,
    daemon::Daemon,
    descriptor::Descriptor,
    digest::Digest,
    error::{Error, Kind, Result},
    observe::{Observer, scrape},
    pipeline::{AheadFacts, StageTimes},
    rpc::socket::Bound,
    rpc::{convert, proto::ttrpc::diff_ttrpc, status},
    service::{Capacity, Domain, Service},
    snapshot::Mount,
};
use testkit::grpc;
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::Channel;

/// How long anything may take that should take no time.
pub const SOON: Duration = Duration::from_secs(10);

/// Does what the media type says.
#[derive(Default)]
pub struct StandIn {
    pub started: AtomicUsize,
    pub ended: AtomicUsize,
    /// How many saw that they were cancelled.
    pub cancelled: AtomicUsize,
}

impl Apply for StandIn {
    fn apply(&self, call: &Call, request: &Request) -> Result<Applied> {
        self.act(call, &request.diff.media_type)?;
        Ok(Applied {
            descriptor: Descriptor::of(
                "application/vnd.oci.image.layer.v1.tar",
                request.diff.digest.clone(),
                2 * request.diff.size_bytes,
            ),
            stats: Stats {
                blob: request.diff.digest.clone(),
                blob_bytes: request.diff.size_bytes,
                coding: Coding::Plain,
                image_bytes: 4096,
                contents: Contents { nodes: 3, ..Contents::default() },
                times: StageTimes::default(),
                ahead: AheadFacts::default(),
                total: Duration::from_millis(1),
            },
        })
    }
}

impl Compare for StandIn {
    fn compare(&self, call: &Call, request: &compare::Request) -> Result<Compared> {
        self.act(call, &request.media_type)?;
        let digest = Digest::sha256(request.reference.as_bytes());
        Ok(Compared {
            stats: compare::Stats {
                diff_id: digest.clone(),
                uncompressed_bytes: 1024,
                coding: Coding::Gzip,
                contents: compare::Contents { entries: 2, ..compare::Contents::default() },
                times: compare::Times::default(),
                total: Duration::from_millis(1),
            },
            descriptor: Descriptor::of(&request.media_type, digest, 45),
        })
    }
}

impl StandIn {
    fn act(&self, call: &Call, media_type: &str) -> Result<()> {
        self.started.fetch_add(1, Ordering::SeqCst);
        let outcome = self.outcome(call, media_type);
        self.ended.fetch_add(1, Ordering::SeqCst);
        outcome
    }

    fn outcome(&self, call: &Call, media_type: &str) -> Result<()> {
        match media_type {
            "wait" => {
                let end = Instant::now() + 3 * SOON;
                while Instant::now() < end {
                    if let Err(cancelled) = call.cancel.check() {
                        self.cancelled.fetch_add(1, Ordering::SeqCst);
                        return Err(cancelled.into());
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                panic!("nobody cancelled");
            }
            "short" => std::thread::sleep(Duration::from_millis(300)),
            "stuck" => std::thread::sleep(Duration::from_secs(4)),
            // Past the hook, which would write it among the results.
            "panic" => std::panic::resume_unwind(Box::new("on purpose")),
            "refuse" => {
                let hostile = "name \"\u{1b}[2J\n\"";
                return Err(Error::new(Kind::Malformed, "tar.name", hostile).context("apply x"));
            }
            "unknown" => return Err(Error::new(Kind::NotImplemented, "apply.media-type", "not ours")),
            _ => {}
        }
        Ok(())
    }
}

/// A server on a socket in a directory of its own.
pub struct Server {
    pub scratch: tempfile::TempDir,
    pub work: Arc<StandIn>,
    pub service: Arc<Service>,
    pub daemon: Daemon,
}

impl Server {
    /// With the default settings; more workers than any test needs.
    pub fn start() -> Self {
        Self::with(&config::Server::default(), Capacity { running: 8, waiting: 256 })
    }

    pub fn with(settings: &config::Server, capacity: Capacity) -> Self {
        Self::of(settings, capacity, true)
    }

    /// One that does not compare.
    pub fn that_only_applies() -> Self {
        Self::of(&config::Server::default(), Capacity { running: 1, waiting: 1 }, false)
    }

    fn of(settings: &config::Server, capacity: Capacity, compares: bool) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let work = Arc::new(StandIn::default());
        let applier = Arc::clone(&work) as Arc<dyn Apply>;
        let domain = Domain { applier, comparer: compares.then(|| Arc::clone(&work) as Arc<dyn Compare>) };
        let observer = Arc::new(Observer::new());
        let service = Arc::new(Service::start(domain, observer, capacity, Box::new(|| 42)).unwrap());
        // The user who runs the tests may connect; that others may not is a test of its own.
        let mut settings = settings.clone();
        if settings.allowed_uid == 0 {
            settings.allowed_uid = rustix::process::geteuid().as_raw();
        }
        let listen = |name: &str| {
            let bound = Bound::new(&scratch.path().join(name), 0).unwrap();
            let (listener, file) = bound.listen().unwrap().into_parts();
            (UnixListener::from_std(listener).unwrap(), file)
        };
        let (diff, diff_file) = listen("diff.sock");
        let daemon = Daemon::start(diff, diff_file, &settings, Arc::clone(&service));
        let (metrics, metrics_file) = listen("metrics.sock");
        // Dropping the guard would remove the file; the directory goes in the end.
        Box::leak(Box::new(metrics_file));
        tokio::spawn(scrape::serve(metrics, Arc::clone(&service) as Arc<dyn scrape::Report>));
        Self { scratch, work, service, daemon }
    }

    pub fn path(&self) -> PathBuf {
        self.scratch.path().join("diff.sock")
    }

    pub async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path()).await.unwrap()
    }

    pub async fn channel(&self) -> Channel {
        grpc::connected(&self.path()).await.unwrap()
    }

    pub async fn grpc(&self) -> Grpc {
        Grpc(DiffClient::new(self.channel().await))
    }

    pub async fn ttrpc(&self) -> Ttrpc {
        let address = format!("unix://{}", self.path().display());
        Ttrpc(diff_ttrpc::DiffClient::new(ttrpc::r#async::Client::connect(&address).await.unwrap()))
    }

    /// One line per metric.
    pub async fn metrics(&self) -> String {
        self.get("/metrics").await
    }

    /// The body of a reply over the metrics socket.
    pub async fn get(&self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        let reply = self.raw_http(request.as_bytes()).await;
        reply.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or(reply)
    }

    pub async fn raw_http(&self, request: &[u8]) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = UnixStream::connect(self.scratch.path().join("metrics.sock")).await.unwrap();
        let _ = stream.write_all(request).await;
        let mut reply = Vec::new();
        // A refused request may end in a reset; what came before it counts.
        let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut reply)).await.unwrap();
        String::from_utf8(reply).unwrap()
    }

    /// Waits until `count` requests have reached the stand-in.
    pub async fn until_started(&self, count: usize) {
        until("requests started", || self.work.started.load(Ordering::SeqCst) >= count).await;
    }
}

/// Waits until `done`, and fails when that takes too long.
pub async fn until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < end, "{what}: not within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A request that the stand-in answers as its media type says; no two are equal.
pub fn request(media_type: &str) -> Request {
    static SNAPSHOT: AtomicUsize = AtomicUsize::new(7);
    let snapshot = SNAPSHOT.fetch_add(1, Ordering::Relaxed);
    Request {
        diff: Descriptor::new(media_type, Digest::sha256(b"layer"), 5).unwrap(),
        mounts: vec![Mount {
            kind: "bind".into(),
            source: format!("/root/snapshots/{snapshot}/fs"),
            options: vec!["rw".into()],
            ..Mount::default()
        }],
        payloads: std::collections::BTreeMap::new(),
        sync_fs: false,
    }
}

/// A request to compare, answered the same way.
pub fn diff_request(media_type: &str) -> compare::Request {
    compare::Request {
        left: Vec::new(),
        right: vec![Mount { kind: "bind".into(), source: "/root/snapshots/7/fs".into(), ..Mount::default() }],
        media_type: media_type.to_owned(),
        reference: "a".to_owned(),
        labels: Default::default(),
        source_date_epoch: None,
    }
}

/// Reply to a call, alike for both protocols: diffID, or code and reason and message.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Applied { digest: String, size: i64 },
    Refused { code: i32, reason: String, message: String },
}

impl Reply {
    pub fn is_applied(&self) -> bool {
        matches!(self, Self::Applied { .. })
    }

    pub fn code_and_reason(&self) -> (i32, &str) {
        match self {
            Self::Applied { .. } => (0, ""),
            Self::Refused { code, reason, .. } => (*code, reason),
        }
    }
}

#[derive(Clone)]
pub struct Grpc(pub DiffClient<Channel>);

impl Grpc {
    pub async fn apply(&mut self, media_type: &str) -> Reply {
        self.apply_in(media_type, "default", None).await
    }

    pub async fn apply_in(&mut self, media_type: &str, namespace: &str, timeout: Option<Duration>) -> Reply {
        let mut message = tonic::Request::new(convert::apply::request_to_grpc(&request(media_type)));
        if !namespace.is_empty() {
            message.metadata_mut().insert("containerd-namespace", namespace.parse().unwrap());
        }
        if let Some(timeout) = timeout {
            message.set_timeout(timeout);
        }
        match self.0.apply(message).await {
            Ok(reply) => grpc_applied(reply.into_inner()),
            Err(status) => Reply::Refused {
                code: status.code() as i32,
                reason: status::reason_of(&status).unwrap_or_default(),
                message: status.message().to_owned(),
            },
        }
    }
}

impl Grpc {
    pub async fn diff(&mut self, media_type: &str) -> Reply {
        let request = convert::diff::request_to_grpc(&diff_request(media_type));
        let mut message = tonic::Request::new(request);
        message.metadata_mut().insert("containerd-namespace", "default".parse().unwrap());
        match self.0.diff(message).await {
            Ok(reply) => {
                let blob = reply.into_inner().diff.unwrap();
                assert_eq!(blob.media_type, media_type);
                Reply::Applied { digest: blob.digest, size: blob.size }
            }
            Err(status) => Reply::Refused {
                code: status.code() as i32,
                reason: status::reason_of(&status).unwrap_or_default(),
                message: status.message().to_owned(),
            },
        }
    }
}

fn grpc_applied(reply: ApplyResponse) -> Reply {
    let applied = reply.applied.unwrap();
    Reply::Applied { digest: applied.digest, size: applied.size }
}

#[derive(Clone)]
pub struct Ttrpc(pub diff_ttrpc::DiffClient);

impl Ttrpc {
    pub async fn apply(&self, media_type: &str) -> Reply {
        self.apply_in(media_type, "default").await
    }

    pub async fn apply_in(&self, media_type: &str, namespace: &str) -> Reply {
        let mut metadata = HashMap::new();
        if !namespace.is_empty() {
            metadata.insert("containerd-namespace-ttrpc".to_owned(), vec![namespace.to_owned()]);
        }
        let context = ttrpc::context::with_metadata(metadata);
        let message = convert::apply::request_to_ttrpc(&request(media_type));
        match self.0.apply(context, &message).await {
            Ok(reply) => {
                let applied = reply.applied.unwrap();
                Reply::Applied { digest: applied.digest, size: applied.size }
            }
            Err(error) => ttrpc_refused(error),
        }
    }
}

impl Ttrpc {
    pub async fn diff(&self, media_type: &str) -> Reply {
        let metadata = [("containerd-namespace-ttrpc".to_owned(), vec!["default".to_owned()])];
        let context = ttrpc::context::with_metadata(metadata.into());
        let message = convert::diff::request_to_ttrpc(&diff_request(media_type));
        match self.0.diff(context, &message).await {
            Ok(reply) => {
                let blob = reply.diff.unwrap();
                assert_eq!(blob.media_type, media_type);
                Reply::Applied { digest: blob.digest, size: blob.size }
            }
            Err(error) => ttrpc_refused(error),
        }
    }
}

pub fn ttrpc_refused(error: ttrpc::Error) -> Reply {
    use protobuf::Enum as _;
    match error {
        ttrpc::Error::RpcStatus(status) => Reply::Refused {
            code: status.code().value(),
            reason: status::reason_of_ttrpc(&status).unwrap_or_default(),
            message: status.message,
        },
        other => panic!("no status: {other:?}"),
    }
}

/// A call with a deadline on a connection of its own. The crate's client looks at the clock itself and does
/// not wait for what the server says.
pub async fn ttrpc_by_hand(server: &Server, media_type: &str, timeout: Duration) -> Reply {
    use tokio::io::AsyncWriteExt as _;
    let mut stream = server.connect().await;
    stream.write_all(&ttrpc_request(1, media_type, timeout)).await.unwrap();
    ttrpc_refused(ttrpc::Error::RpcStatus(ttrpc_reply(&mut stream).await.status.unwrap()))
}

/// The frame of a request to apply, without a deadline.
pub fn ttrpc_frame(stream_id: u32, media_type: &str) -> Vec<u8> {
    ttrpc_request(stream_id, media_type, Duration::ZERO)
}

fn ttrpc_request(stream_id: u32, media_type: &str, timeout: Duration) -> Vec<u8> {
    use ttrpc::proto::Codec as _;
    let mut message = ttrpc::Request::new();
    message.set_service(plywood::rpc::DIFF_SERVICE.to_owned());
    message.set_method("Apply".to_owned());
    message.set_timeout_nano(timeout.as_nanos().try_into().unwrap());
    let namespace = ("containerd-namespace-ttrpc".to_owned(), vec!["default".to_owned()]);
    message.set_metadata(ttrpc::context::to_pb([namespace].into()));
    message.payload = convert::apply::request_to_ttrpc(&request(media_type)).encode().unwrap();
    let payload = message.encode().unwrap();
    let header = ttrpc::MessageHeader::new_request(stream_id, payload.len().try_into().unwrap());
    [Vec::from(header), payload].concat()
}

/// The next answer on a connection.
pub async fn ttrpc_reply(stream: &mut UnixStream) -> ttrpc::Response {
    use ttrpc::proto::Codec as _;
    let reply = tokio::time::timeout(SOON, ttrpc::proto::GenMessage::read_from(stream)).await;
    ttrpc::Response::decode(&reply.unwrap().unwrap().payload).unwrap()
}
