//! containerd's content store, over gRPC on its unix socket.
//!
//! Calls block the thread that makes them; the sockets live on the runtime that was handed in. The
//! connection is made with the first call and again after it was lost. `store::local` is used
//! instead of the stream when containerd says where its blobs are and they can be opened there.
//!
//! Source: docs/formats/containerd.md, "The content store"; containerd
//! `api/services/content/v1/content.proto`.

use std::{
    error::Error as _,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

use containerd_client::services::v1::{
    InfoRequest, PluginsRequest, ReadContentRequest, content_client::ContentClient,
    introspection_client::IntrospectionClient,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, runtime::Handle};
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint, Uri},
};

use super::{
    Blob, ContentStore,
    file::FileBlob,
    local::ContentRoot,
    memory::{check_size, in_memory},
    reason,
    stream::{Sender, stream},
};
use crate::{
    call::{Call, Cancel},
    descriptor::Descriptor,
    error::{Error, Kind, Result},
};

/// Bytes of one blob that may be under way: a request's read-ahead. HTTP/2's default of 64 KiB costs a
/// third more CPU time, 8 MiB gain nothing.
const STREAM_WINDOW: u32 = 4 << 20;
/// The same for all blobs together. More than the windows of all requests that can run, so that
/// one which waits for something else cannot keep another from its bytes.
const CONNECTION_WINDOW: u32 = 256 << 20;
/// Largest message, in bytes: containerd's own limit.
const MESSAGE_BYTES: usize = 16 << 20;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Pauses before a short call is tried again on a new connection.
const RETRIES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(250)];
/// containerd's type of content stores.
const CONTENT_PLUGIN: &str = "io.containerd.content.v1";

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

/// A client of one containerd.
pub struct Containerd {
    channel: Channel,
    runtime: Handle,
    address: PathBuf,
    stall: Duration,
    direct: Mutex<Discovery>,
}

/// What is known about the store's directory.
#[derive(Debug)]
enum Discovery {
    /// To be asked for; nobody has answered yet.
    Unknown,
    /// Named by the operator; perhaps containerd has yet to make it.
    Configured(PathBuf),
    Found(PathBuf, Arc<ContentRoot>),
    Unusable,
}

impl Containerd {
    /// A client of the containerd that listens on the socket `address`. Nothing is sent yet.
    ///
    /// `stall` is how long a call or a stream may make no progress.
    pub fn new(address: &Path, runtime: Handle, direct: Direct, stall: Duration) -> Self {
        let socket = address.to_owned();
        let connect = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(connect(&socket).await?)) }
        });
        // The name is never looked up: the connector knows where to go.
        let channel = {
            let _entered = runtime.enter();
            Endpoint::from_static("http://containerd")
                .connect_timeout(CONNECT)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .connect_with_connector_lazy(connect)
        };
        let direct = match direct {
            Direct::Off => Discovery::Unusable,
            Direct::Introspect => Discovery::Unknown,
            Direct::At(path) => Discovery::Configured(path),
        };
        Self { channel, runtime, address: address.to_owned(), stall, direct: Mutex::new(direct) }
    }

    /// The directory that blobs are read from, asking containerd for it if need be; `None` when they
    /// are read over gRPC. For the sandbox, which has to allow it.
    pub fn content_root(&self, call: &Call) -> Option<PathBuf> {
        self.root(call).map(|(path, _)| path)
    }

    /// The size of a blob in the call's namespace, in bytes.
    fn info(&self, call: &Call, descriptor: &Descriptor) -> Result<u64> {
        let digest = descriptor.digest.to_string();
        let response = self.retried(call, "content info", |channel| {
            let request = request(call, InfoRequest { digest: digest.clone() });
            async move { ContentClient::new(channel).info(request?).await.map_err(from_status) }
        })?;
        let info = response.into_inner().info.unwrap_or_default();
        if info.digest != digest {
            let message = format!("the store answered for {:?}", info.digest);
            return Err(Error::new(Kind::DataLoss, reason::SIZE, message));
        }
        u64::try_from(info.size).map_err(|_negative| {
            Error::new(Kind::DataLoss, reason::SIZE, format!("the store's blob has {} bytes", info.size))
        })
    }

    /// The store's directory, if it can be used.
    fn root(&self, call: &Call) -> Option<(PathBuf, Arc<ContentRoot>)> {
        let lock = || self.direct.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut direct = lock();
            if let Discovery::Configured(path) = &*direct
                && let found @ Discovery::Found(..) = usable(path)
            {
                *direct = found;
            }
            match &*direct {
                Discovery::Found(path, root) => return Some((path.clone(), Arc::clone(root))),
                Discovery::Unusable | Discovery::Configured(_) => return None,
                Discovery::Unknown => {}
            }
        }
        // Not under the lock: two requests may both ask, with the same result.
        let discovered = match self.introspect(call) {
            Ok(Some(path)) => usable(&path),
            Ok(None) => Discovery::Unusable,
            Err(error) if error.kind() == Kind::Unavailable => return None,
            Err(error) => {
                tracing::debug!(%error, "introspection failed, blobs are read over gRPC");
                Discovery::Unusable
            }
        };
        let found = match &discovered {
            Discovery::Found(path, root) => Some((path.clone(), Arc::clone(root))),
            _ => None,
        };
        *lock() = discovered;
        found
    }

    /// Asks for the root of the one content store that containerd has.
    fn introspect(&self, call: &Call) -> Result<Option<PathBuf>> {
        let response = self.retried(call, "introspection", |channel| {
            let filters = vec![format!("type=={CONTENT_PLUGIN}")];
            let request = request(call, PluginsRequest { filters });
            async move { IntrospectionClient::new(channel).plugins(request?).await.map_err(from_status) }
        })?;
        let mut plugins = response.into_inner().plugins;
        plugins.retain(|plugin| plugin.r#type == CONTENT_PLUGIN);
        let root = match plugins.as_slice() {
            [plugin] if plugin.init_err.is_none() => plugin.exports.get("root").map(PathBuf::from),
            // With several, the blobs may be in any of them.
            _ => None,
        };
        tracing::debug!(plugins = plugins.len(), ?root, "content stores of containerd");
        Ok(root.filter(|root| root.is_absolute()))
    }

    /// Makes a short call, up to three times while nobody answers, and waits for its answer.
    fn retried<T, F>(&self, call: &Call, what: &str, make: impl Fn(Channel) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut pauses = RETRIES.iter();
        loop {
            let outcome = self.wait(&call.cancel, make(self.channel.clone()));
            match (outcome, pauses.next()) {
                (Err(error), Some(pause)) if error.reason() == reason::UNAVAILABLE => {
                    tracing::debug!(%error, what, "trying again");
                    self.wait(&call.cancel, async {
                        tokio::time::sleep(*pause).await;
                        Ok(())
                    })?;
                }
                (outcome, _) => {
                    return outcome.map_err(|error| {
                        error.context(format!("{what} from containerd at {}", self.address.display()))
                    });
                }
            }
        }
    }

    /// Runs `future` on the runtime and blocks until it is done, cancelled or stalled.
    fn wait<T: Send + 'static>(
        &self,
        cancel: &Cancel,
        future: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (send, receive) = mpsc::sync_channel(1);
        let task = self.runtime.spawn(async move {
            // Nobody listens any more once the call was cancelled.
            let _ = send.send(future.await);
        });
        let begun = Instant::now();
        let stop = loop {
            match receive.recv_timeout(Cancel::POLL.min(self.stall)) {
                Ok(outcome) => return outcome,
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    break Error::new(Kind::Unavailable, reason::STALL, "the content client has stopped");
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            if let Err(stop) = cancel.check() {
                break stop.into();
            }
            if begun.elapsed() >= self.stall {
                let message = format!("no answer for {} s", self.stall.as_secs_f32());
                break Error::new(Kind::Unavailable, reason::STALL, message);
            }
        };
        task.abort();
        Err(stop)
    }

    fn stream(&self, call: &Call, descriptor: &Descriptor) -> Result<Box<dyn Blob>> {
        let size_bytes = descriptor.size_bytes;
        let read = ReadContentRequest {
            digest: descriptor.digest.to_string(),
            offset: 0,
            size: i64::try_from(size_bytes).map_err(|_wide| {
                Error::new(Kind::Malformed, reason::SIZE, format!("{size_bytes} bytes are not a blob's size"))
            })?,
        };
        let request = request(call, read)?;
        let client = ContentClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES);
        Ok(Box::new(stream(size_bytes, self.stall, call.cancel.clone(), |sender| {
            self.runtime.spawn(receive(client, request, size_bytes, sender)).abort_handle()
        })))
    }
}

impl ContentStore for Containerd {
    fn open(&self, call: &Call, descriptor: &Descriptor) -> Result<Box<dyn Blob>> {
        call.cancel.check()?;
        check_size(descriptor, self.info(call, descriptor)?)?;
        if descriptor.size_bytes == 0 {
            // A read of 0 bytes means "to the end" to containerd.
            return Ok(in_memory(Arc::from([]), call.cancel.clone()));
        }
        if let Some((path, root)) = self.root(call) {
            match root.blob(descriptor) {
                Ok(file) => return Ok(Box::new(FileBlob::new(file, call.cancel.clone())?)),
                Err(error) => {
                    tracing::debug!(%error, root = %path.display(), digest = %descriptor.digest, "blob is read over gRPC");
                }
            }
        }
        self.stream(call, descriptor)
    }
}

fn usable(path: &Path) -> Discovery {
    match ContentRoot::open(path) {
        Ok(root) => Discovery::Found(path.to_owned(), Arc::new(root)),
        Err(error) => {
            tracing::debug!(%error, root = %path.display(), "blobs are read over gRPC");
            Discovery::Unusable
        }
    }
}

/// Connects, and makes sure that it is root or our own user who listens.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket).await?;
    check_peer(stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw())?;
    Ok(stream)
}

/// A user of another user namespace, its root too, has another number here.
fn check_peer(peer: u32, own: u32) -> io::Result<()> {
    if peer == 0 || peer == own {
        return Ok(());
    }
    let message = format!("user {peer} listens on the socket, not root");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

/// A message with the namespace and the lease of the call.
fn request<T>(call: &Call, message: T) -> Result<Request<T>> {
    let value = |text: &str| {
        MetadataValue::try_from(text).map_err(|error| {
            Error::from_io(io::Error::other(error), Kind::Malformed, "request.metadata")
                .context(format!("{text:?}"))
        })
    };
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", value(call.namespace.as_str())?);
    if let Some(lease) = &call.lease {
        request.metadata_mut().insert("containerd-lease", value(lease)?);
    }
    Ok(request)
}

/// Passes on the messages of one read, and checks that they are the blob's bytes from first to last.
async fn receive(
    mut client: ContentClient<Channel>,
    request: Request<ReadContentRequest>,
    size_bytes: u64,
    sender: Sender,
) {
    let outcome = async {
        let mut messages = client.read(request).await.map_err(from_status)?.into_inner();
        let mut received = 0_u64;
        while let Some(message) = messages.message().await.map_err(from_status)? {
            if u64::try_from(message.offset) != Ok(received) {
                let text = format!("bytes at offset {} follow byte {received}", message.offset);
                return Err(Error::new(Kind::DataLoss, reason::OFFSET, text));
            }
            received = received.saturating_add(message.data.len() as u64);
            if received > size_bytes {
                let text = format!("the store sent at least {received} bytes of {size_bytes}");
                return Err(Error::new(Kind::DataLoss, reason::LONG, text));
            }
            sender.send(message.data).await;
        }
        if received < size_bytes {
            let text = format!("the store sent {received} of {size_bytes} bytes");
            return Err(Error::new(Kind::DataLoss, reason::SHORT, text));
        }
        Ok(())
    }
    .await;
    sender.finish(outcome);
}

/// What an answer other than OK means to our caller.
///
/// Never `NotImplemented`: whether another differ is asked must not depend on the store.
fn from_status(status: Status) -> Error {
    // A status made on this side, for a connection that broke, has a cause; one that was sent has none.
    let local = status.source().is_some();
    let (kind, reason) = match status.code() {
        Code::NotFound => (Kind::NotFound, reason::NOT_FOUND),
        Code::ResourceExhausted => (Kind::Exhausted, reason::REFUSED),
        Code::PermissionDenied | Code::Unauthenticated => (Kind::Denied, reason::REFUSED),
        Code::FailedPrecondition | Code::InvalidArgument => (Kind::Conflict, reason::REFUSED),
        Code::DataLoss | Code::OutOfRange => (Kind::DataLoss, reason::READ),
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Aborted => {
            (Kind::Unavailable, reason::UNAVAILABLE)
        }
        _ if local => (Kind::Unavailable, reason::UNAVAILABLE),
        // containerd reports a failed read of its own disk without a code.
        Code::Unknown | Code::Internal => (Kind::DataLoss, reason::READ),
        _ => (Kind::Unavailable, reason::REFUSED),
    };
    let mut message = format!("{:?}: {}", status.code(), status.message());
    let mut cause = status.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    Error::new(kind, reason, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_answer_of_the_store_asks_for_the_next_differ() {
        for code in (0..=16).map(Code::from_i32).filter(|code| *code != Code::Ok) {
            let error = from_status(Status::new(code, "text"));
            assert_ne!(error.kind(), Kind::NotImplemented, "{code:?}");
            assert!(error.reason().starts_with("store."), "{code:?}");
        }
        assert_eq!(from_status(Status::not_found("gone")).kind(), Kind::NotFound);
        assert_eq!(from_status(Status::unknown("input/output error")).kind(), Kind::DataLoss);
    }

    #[test]
    fn nobody_but_root_and_ourselves_is_believed() {
        assert!(check_peer(0, 0).is_ok());
        assert!(check_peer(0, 1000).is_ok());
        assert!(check_peer(1000, 1000).is_ok());
        assert!(check_peer(1000, 0).is_err());
        assert!(check_peer(1001, 1000).is_err());
    }

    #[test]
    fn namespace_and_lease_go_with_every_call() {
        let mut call = Call::new("k8s.io".parse().unwrap());
        let made = request(&call, ()).unwrap();
        assert_eq!(made.metadata().get("containerd-namespace").unwrap(), "k8s.io");
        assert!(made.metadata().get("containerd-lease").is_none());
        call.lease = Some("lease-1".into());
        assert_eq!(request(&call, ()).unwrap().metadata().get("containerd-lease").unwrap(), "lease-1");
        call.lease = Some("a\nb".into());
        assert_eq!(request(&call, ()).unwrap_err().kind(), Kind::Malformed);
    }
}
