//! A content store that answers like containerd's, and misbehaves on request.
//!
//! It serves the content, leases, namespaces and introspection services on a unix socket from a thread of the test, and
//! images, snapshots and a differ for clients that unpack.
//! Blobs belong to namespaces. What came with each call is recorded, except
//! for the lists, which the daemon asks for on its own account.

mod differ;
mod images;
mod leases;
mod made_up;
mod namespaces;
mod snapshotter;
mod writes;

use std::{
    collections::{BTreeMap, HashMap},
    fmt::{Debug, Display},
    path::{Path, PathBuf},
    pin::Pin,
    str::FromStr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use containerd_client::services::v1::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, InfoResponse, ListContentRequest,
    ListContentResponse, ListStatusesRequest, ListStatusesResponse, Plugin, PluginInfoRequest,
    PluginInfoResponse, PluginsRequest, PluginsResponse, ReadContentRequest, ReadContentResponse,
    ServerResponse, StatusRequest, StatusResponse, UpdateRequest, UpdateResponse, WriteContentRequest,
};
use tokio::{net::UnixListener, runtime::Runtime, sync::mpsc};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{ReceiverStream, UnixListenerStream},
};
use tonic::{Request, Response, Status, Streaming};

use crate::archive;

use content::content_server::{Content, ContentServer};
use introspection::introspection_server::{Introspection, IntrospectionServer};
pub use leases::LeaseView;
pub use made_up::Snapshot;
pub use snapshotter::{Snapshotter, View};
pub use writes::{Message, WriteFault};

/// Bytes of one message that is sent; containerd's own.
const MESSAGE: usize = 1 << 20;
/// Bytes of the largest message that is taken; containerd's own.
const LARGEST: usize = 16 << 20;

#[allow(clippy::all, missing_docs, unused_qualifications, reason = "generated")]
mod content {
    include!(concat!(env!("OUT_DIR"), "/containerd.services.content.v1.rs"));
}

#[allow(clippy::all, missing_docs, unused_qualifications, reason = "generated")]
mod introspection {
    include!(concat!(env!("OUT_DIR"), "/containerd.services.introspection.v1.rs"));
}

/// A fault of every read until it is cleared. Offsets are bytes of the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing more is sent from this byte on, and the stream stays open.
    Stall(usize),
    /// The stream ends well at this byte.
    CutShort(usize),
    /// This byte has its lowest bit turned.
    Flip(usize),
    /// Info reports so many bytes more.
    WrongSize(i64),
    /// So many bytes follow the last one.
    Extra(usize),
    /// Every connection is cut when this byte is reached.
    Disconnect(usize),
    /// The message that begins at or after this byte says it begins one byte later.
    SkippedOffset(usize),
    /// The message that begins at or after this byte is sent twice.
    Repeated(usize),
    /// A status without a code, as after a failed read of the store's disk.
    ReadError(usize),
    /// The blob vanished between Info and Read.
    Gone,
    /// Info answers that the service is not available.
    Unavailable,
    /// Info answers after so many milliseconds.
    SlowInfo(u64),
    /// Update answers well and changes nothing.
    DeafUpdate,
}

/// One call that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub method: &'static str,
    pub namespace: Option<String>,
    pub lease: Option<String>,
}

#[derive(Default)]
struct State {
    blobs: BTreeMap<(String, String), Held>,
    writes: writes::Writes,
    leases: leases::Leases,
    fault: Option<Fault>,
    plugins: Vec<Plugin>,
    images: images::Images,
    snapshots: snapshotter::Snapshots,
    made_up: made_up::Snapshots,
    differ: differ::Differ,
    seen: Vec<Seen>,
    connections: Vec<std::os::unix::net::UnixStream>,
    active_reads: usize,
    lists: usize,
    /// Blobs of which nothing is sent from this byte on, for the time being.
    held: HashMap<String, usize>,
}

/// A blob of one namespace.
#[derive(Clone, Debug, Default)]
pub struct Held {
    pub bytes: Arc<Vec<u8>>,
    pub labels: HashMap<String, String>,
    /// Put there by the test: something refers to it.
    rooted: bool,
    /// When it came, or its labels changed last.
    updated: Option<SystemTime>,
}

/// The server, which stops when it is dropped.
pub struct FakeContainerd {
    state: Arc<Mutex<State>>,
    socket: PathBuf,
    runtime: Option<Runtime>,
}

impl FakeContainerd {
    /// Listens on `containerd.sock` in `dir`.
    pub fn start(dir: &Path) -> Self {
        let mut server = Self { state: Arc::default(), socket: dir.join("containerd.sock"), runtime: None };
        server.restart();
        server
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Adds a blob to a namespace. Returns its digest as the type that the caller has for one.
    pub fn add<D: FromStr<Err: Debug>>(&self, namespace: &str, bytes: impl Into<Vec<u8>>) -> D {
        let bytes = bytes.into();
        let digest = archive::digest(&bytes);
        self.add_as(namespace, &digest, bytes);
        digest.parse().unwrap()
    }

    /// Adds bytes under a digest that need not be theirs.
    pub fn add_as(&self, namespace: &str, digest: &impl Display, bytes: impl Into<Vec<u8>>) {
        let key = (namespace.to_owned(), digest.to_string());
        let bytes = Arc::new(bytes.into());
        let held = Held { bytes, labels: HashMap::new(), rooted: true, updated: Some(SystemTime::now()) };
        self.state.lock().unwrap().blobs.insert(key, held);
    }

    /// The bytes and labels of a blob.
    pub fn blob(&self, namespace: &str, digest: &impl Display) -> Option<Held> {
        let key = (namespace.to_owned(), digest.to_string());
        self.state.lock().unwrap().blobs.get(&key).cloned()
    }

    /// Gives a blob exactly these labels.
    pub fn label(&self, namespace: &str, digest: &impl Display, labels: &[(&str, &str)]) {
        let key = (namespace.to_owned(), digest.to_string());
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut state = self.state.lock().unwrap();
        let held = state.blobs.get_mut(&key).unwrap();
        (held.labels, held.updated) = (labels, Some(SystemTime::now()));
    }

    /// Takes a blob away.
    pub fn remove(&self, namespace: &str, digest: &impl Display) {
        let key = (namespace.to_owned(), digest.to_string());
        self.state.lock().unwrap().blobs.remove(&key).unwrap();
    }

    /// How often the blobs were listed.
    pub fn lists(&self) -> usize {
        self.state.lock().unwrap().lists
    }

    /// Collects garbage as containerd does, at the time `now`: leases that are over go, then blobs and ingests
    /// that nothing holds any more.
    pub fn collect(&self, now: SystemTime) {
        let mut state = self.state.lock().unwrap();
        let State { blobs, writes, leases, .. } = &mut *state;
        leases.end(now);
        let holds = |namespace: &str, digest: &str, held: &Held| {
            held.rooted || leases.hold(namespace, "content", digest)
        };
        let mut referred = Vec::new();
        for ((namespace, _), held) in
            blobs.iter().filter(|((namespace, digest), held)| holds(namespace, digest, held))
        {
            let references =
                held.labels.iter().filter(|(key, _)| key.starts_with("containerd.io/gc.ref.content"));
            referred.extend(references.map(|(_, digest)| (namespace.clone(), digest.clone())));
        }
        blobs.retain(|key, held| holds(&key.0, &key.1, held) || referred.contains(key));
        writes.collect(leases);
    }

    /// Sets or clears what goes wrong.
    pub fn fault(&self, fault: impl Into<Option<Fault>>) {
        self.state.lock().unwrap().fault = fault.into();
    }

    /// Sends nothing of this blob from byte `at` on, until [`Self::release`].
    pub fn withhold(&self, digest: &impl Display, at: usize) {
        self.state.lock().unwrap().held.insert(digest.to_string(), at);
    }

    /// Goes on sending everything that was held.
    pub fn release(&self) {
        self.state.lock().unwrap().held.clear();
    }

    /// Reports a content plugin with this root; a second call reports a second one.
    pub fn export_root(&self, id: &str, root: &Path) {
        let exports = [("root".to_owned(), root.to_str().unwrap().to_owned())].into();
        let r#type = "io.containerd.content.v1".to_owned();
        self.state.lock().unwrap().plugins.push(Plugin {
            r#type,
            id: id.to_owned(),
            exports,
            ..Plugin::default()
        });
    }

    /// The calls so far, which are forgotten.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }

    /// Reads that have begun and neither ended nor been given up by the client.
    pub fn active_reads(&self) -> usize {
        self.state.lock().unwrap().active_reads
    }

    /// Stops listening and cuts every connection.
    pub fn stop(&mut self) {
        disconnect(&self.state);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
        let _ = std::fs::remove_file(&self.socket);
    }

    /// Listens again, with the same blobs.
    pub fn restart(&mut self) {
        self.stop();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = {
            let _entered = runtime.enter();
            UnixListener::bind(&self.socket).unwrap()
        };
        let state = Arc::clone(&self.state);
        let service = Service { state: Arc::clone(&self.state) };
        let incoming = UnixListenerStream::new(listener).map(move |stream| {
            let stream = stream?;
            // A second handle, by which a fault can cut the connection.
            let stream = stream.into_std()?;
            state.lock().unwrap().connections.push(stream.try_clone()?);
            tokio::net::UnixStream::from_std(stream)
        });
        runtime.spawn(
            tonic::transport::Server::builder()
                .initial_stream_window_size(8 << 20)
                .initial_connection_window_size(16 << 20)
                .add_service(ContentServer::new(service.clone()).max_decoding_message_size(LARGEST))
                .add_service(leases::service(service.clone()))
                .add_service(namespaces::service(service.clone()))
                .add_service(images::service(service.clone()))
                .add_service(snapshotter::service(service.clone()))
                .add_service(snapshotter::version(service.clone()))
                .add_service(differ::service(service.clone()))
                .add_service(IntrospectionServer::new(service))
                .serve_with_incoming(incoming),
        );
        self.runtime = Some(runtime);
    }
}

impl Drop for FakeContainerd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn disconnect(state: &Mutex<State>) {
    for connection in state.lock().unwrap().connections.drain(..) {
        let _ = connection.shutdown(std::net::Shutdown::Both);
    }
}

#[derive(Clone)]
struct Service {
    state: Arc<Mutex<State>>,
}

impl Service {
    /// Records the call, and finds the blob in its namespace.
    fn blob<T>(&self, method: &'static str, request: &Request<T>, digest: &str) -> Result<Held, Status> {
        let seen = self.record(method, request);
        let namespace = seen.namespace.ok_or_else(|| Status::failed_precondition("namespace is required"))?;
        let key = (namespace, digest.to_owned());
        let found = self.state.lock().unwrap().blobs.get(&key).cloned();
        found.ok_or_else(|| Status::not_found(format!("content {digest}: not found")))
    }

    fn record<T>(&self, method: &'static str, request: &Request<T>) -> Seen {
        let value =
            |key| request.metadata().get(key).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let seen =
            Seen { method, namespace: value("containerd-namespace"), lease: value("containerd-lease") };
        self.state.lock().unwrap().seen.push(seen.clone());
        seen
    }

    fn fault_now(&self) -> Option<Fault> {
        self.state.lock().unwrap().fault
    }
}

/// Counts a read as active for as long as its task lives.
struct Active(Arc<Mutex<State>>);

impl Active {
    fn new(state: &Arc<Mutex<State>>) -> Self {
        state.lock().unwrap().active_reads += 1;
        Self(Arc::clone(state))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.lock().unwrap().active_reads -= 1;
    }
}

type Messages = mpsc::Sender<Result<ReadContentResponse, Status>>;

/// Sends `bytes`, which begin at byte 0 of the read, with the fault worked in. `None`: the client left.
async fn send(
    bytes: &[u8],
    digest: &str,
    fault: Option<Fault>,
    state: &Mutex<State>,
    to: &Messages,
) -> Option<()> {
    let mut at = 0;
    let mut tricked = false;
    loop {
        let mut end = (at + MESSAGE).min(bytes.len());
        let held = || state.lock().unwrap().held.get(digest).copied();
        while let Some(stop) = held() {
            if at < stop {
                end = end.min(stop);
                break;
            }
            if to.is_closed() {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if let Some(
            Fault::Stall(stop) | Fault::CutShort(stop) | Fault::Disconnect(stop) | Fault::ReadError(stop),
        ) = fault
        {
            end = end.min(stop.max(at));
            if at == end && stop < bytes.len() {
                match fault {
                    Some(Fault::Stall(_)) => {
                        to.closed().await;
                    }
                    Some(Fault::Disconnect(_)) => disconnect(state),
                    Some(Fault::ReadError(_)) => {
                        to.send(Err(Status::unknown("read blob: input/output error"))).await.ok()?;
                    }
                    _ => {}
                }
                return Some(());
            }
        }
        if at == bytes.len() {
            break;
        }
        let mut message =
            ReadContentResponse { offset: i64::try_from(at).unwrap(), data: bytes[at..end].to_vec() };
        match fault {
            Some(Fault::Flip(byte)) if (at..end).contains(&byte) => message.data[byte - at] ^= 1,
            Some(Fault::SkippedOffset(byte)) if at >= byte && !tricked => {
                tricked = true;
                message.offset += 1;
            }
            Some(Fault::Repeated(byte)) if at >= byte && !tricked => {
                tricked = true;
                to.send(Ok(message.clone())).await.ok()?;
            }
            _ => {}
        }
        to.send(Ok(message)).await.ok()?;
        at = end;
    }
    if let Some(Fault::Extra(extra)) = fault {
        let offset = i64::try_from(bytes.len()).unwrap();
        to.send(Ok(ReadContentResponse { offset, data: vec![0; extra] })).await.ok()?;
    }
    Some(())
}

/// The label for whose presence a filter asks.
fn key_of(filter: &str) -> String {
    filter.strip_prefix("labels.\"").and_then(|rest| rest.strip_suffix('"')).expect(filter).to_owned()
}

#[tonic::async_trait]
impl Content for Service {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let digest = request.get_ref().digest.clone();
        let fault = self.fault_now();
        match fault {
            Some(Fault::Unavailable) => {
                self.record("info", &request);
                return Err(Status::unavailable("the store is starting"));
            }
            Some(Fault::SlowInfo(ms)) => tokio::time::sleep(Duration::from_millis(ms)).await,
            _ => {}
        }
        let Held { bytes, labels, .. } = self.blob("info", &request, &digest)?;
        let mut size = i64::try_from(bytes.len()).unwrap();
        if let Some(Fault::WrongSize(more)) = fault {
            size += more;
        }
        Ok(Response::new(InfoResponse { info: Some(Info { digest, size, labels, ..Info::default() }) }))
    }

    type ReadStream = Pin<Box<dyn Stream<Item = Result<ReadContentResponse, Status>> + Send>>;

    async fn read(&self, request: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let ReadContentRequest { digest, offset, size } = request.get_ref().clone();
        let blob = self.blob("read", &request, &digest)?.bytes;
        let fault = self.fault_now();
        if fault == Some(Fault::Gone) {
            return Err(Status::not_found(format!("content {digest}: not found")));
        }
        let start = usize::try_from(offset)
            .ok()
            .filter(|start| *start <= blob.len())
            .ok_or_else(|| Status::out_of_range("offset beyond the end"))?;
        let end = match usize::try_from(size).unwrap() {
            0 => blob.len(),
            size => (start + size).min(blob.len()),
        };
        let (to, messages) = mpsc::channel(1);
        let active = Active::new(&self.state);
        let state = Arc::clone(&self.state);
        tokio::spawn(async move {
            let _active = active;
            send(&blob[start..end], &digest, fault, &state, &to).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        let info = request.get_ref().info.clone().unwrap_or_default();
        let paths = request.get_ref().update_mask.clone().unwrap_or_default().paths;
        let held = self.blob("update", &request, &info.digest)?;
        let namespace = namespace(&request)?;
        let mut labels = held.labels;
        if paths.is_empty() {
            labels = info.labels.clone();
        }
        for path in &paths {
            let Some(key) = path.strip_prefix("labels.") else {
                return Err(Status::invalid_argument(format!("cannot update {path:?} field")));
            };
            labels.insert(key.to_owned(), info.labels.get(key).cloned().unwrap_or_default());
        }
        let labels = writes::checked(labels)?;
        let size = i64::try_from(held.bytes.len()).unwrap();
        let deaf = self.fault_now() == Some(Fault::DeafUpdate);
        let mut state = self.state.lock().unwrap();
        let now = &mut state.blobs.get_mut(&(namespace, info.digest.clone())).unwrap().labels;
        if !deaf {
            now.clone_from(&labels);
        }
        let info = Info { digest: info.digest, size, labels: now.clone(), ..Info::default() };
        Ok(Response::new(UpdateResponse { info: Some(info) }))
    }

    type ListStream = Pin<Box<dyn Stream<Item = Result<ListContentResponse, Status>> + Send>>;

    async fn list(&self, request: Request<ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        let namespace = namespace(&request)?;
        let keys: Vec<_> = request.into_inner().filters.iter().map(|filter| key_of(filter)).collect();
        let mut state = self.state.lock().unwrap();
        state.lists += 1;
        let of = state.blobs.iter().filter(|((of, _), held)| {
            *of == namespace && (keys.is_empty() || keys.iter().any(|key| held.labels.contains_key(key)))
        });
        let info = |((_, digest), held): (&(String, String), &Held)| Info {
            digest: digest.clone(),
            size: i64::try_from(held.bytes.len()).unwrap(),
            labels: held.labels.clone(),
            updated_at: held.updated.map(Into::into),
            ..Info::default()
        };
        let each = |info| Ok(ListContentResponse { info: vec![info] });
        let answers: Vec<_> = of.map(info).map(each).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(answers))))
    }

    async fn delete(&self, _: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("delete"))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.record("status", &request);
        let namespace = namespace(&request)?;
        let reference = &request.get_ref().r#ref;
        let status = self.state.lock().unwrap().writes.status(&namespace, reference)?;
        Ok(Response::new(StatusResponse { status: Some(status) }))
    }

    async fn list_statuses(
        &self,
        request: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        let statuses = self.state.lock().unwrap().writes.statuses(&namespace(&request)?);
        Ok(Response::new(ListStatusesResponse { statuses }))
    }

    type WriteStream = writes::Replies;

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let seen = self.record("write", &request);
        let namespace = namespace(&request)?;
        let replies = writes::serve(&self.state, namespace, seen.lease, request.into_inner()).await?;
        Ok(Response::new(replies))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<()>, Status> {
        self.record("abort", &request);
        let namespace = namespace(&request)?;
        let mut state = self.state.lock().unwrap();
        state.writes.abort(&namespace, &request.get_ref().r#ref)?;
        Ok(Response::new(()))
    }
}

/// The namespace of a call, which each needs.
fn namespace<T>(request: &Request<T>) -> Result<String, Status> {
    let value = request.metadata().get("containerd-namespace").and_then(|value| value.to_str().ok());
    value.map(str::to_owned).ok_or_else(|| Status::failed_precondition("namespace is required"))
}

#[tonic::async_trait]
impl Introspection for Service {
    /// Knows one kind of filter: `type==NAME`.
    async fn plugins(&self, request: Request<PluginsRequest>) -> Result<Response<PluginsResponse>, Status> {
        self.record("plugins", &request);
        let filters = request.into_inner().filters;
        let mut plugins = self.state.lock().unwrap().plugins.clone();
        plugins.retain(|plugin| {
            filters.is_empty() || filters.iter().any(|filter| *filter == format!("type=={}", plugin.r#type))
        });
        Ok(Response::new(PluginsResponse { plugins }))
    }

    async fn server(&self, _: Request<()>) -> Result<Response<ServerResponse>, Status> {
        Err(Status::unimplemented("server"))
    }

    async fn plugin_info(
        &self,
        _: Request<PluginInfoRequest>,
    ) -> Result<Response<PluginInfoResponse>, Status> {
        Err(Status::unimplemented("plugin info"))
    }
}
