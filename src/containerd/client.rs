//! The connection to containerd, and the calls over it: with namespace and lease of the request, repeated when
//! containerd does not answer, and with an error of ours for each status.
//!
//! Source: docs/formats/containerd.md, "The content store".

use std::{
    error::Error as _,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Duration,
};

use containerd_client::services::v1::{Info, InfoRequest, content_client::ContentClient};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, runtime::Handle, sync::Notify};
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint, Uri},
};

use crate::{
    call::{Call, Cancel},
    digest::Digest,
    error::{Error, Kind, Result},
    store::reason,
};

/// HTTP/2 window of one blob, in bytes: the read-ahead of a request. The default of 64 KiB costs a third more CPU
/// time, 8 MiB gain nothing.
const STREAM_WINDOW: u32 = 4 << 20;
/// HTTP/2 window of all blobs together, in bytes. Larger than the windows of all requests that can run, so that one
/// which waits for something else cannot keep another from its bytes.
const CONNECTION_WINDOW: u32 = 256 << 20;
/// Longest time to connect.
const CONNECT: Duration = Duration::from_secs(5);
/// Largest message, in bytes: containerd's own limit.
pub(super) const MESSAGE_BYTES: usize = 16 << 20;
/// Pauses before the second and the third try of a short call, on a new connection.
pub(super) const RETRIES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(250)];
/// A connection to containerd. Clones share it.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) channel: Channel,
    pub(super) runtime: Handle,
    pub(super) address: Arc<Path>,
    /// Longest time for which a call or a stream may make no progress.
    pub(super) stall: Duration,
    pub(super) contact: Arc<Contact>,
}

impl Client {
    /// A client of the containerd that listens on the socket `address`. Nothing is sent yet.
    pub(super) fn new(address: &Path, runtime: Handle, stall: Duration) -> Self {
        let socket = address.to_owned();
        let connect = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(connect(&socket).await?)) }
        });
        // The name is never looked up: the connector opens the socket.
        let channel = {
            let _entered = runtime.enter();
            Endpoint::from_static("http://containerd")
                .connect_timeout(CONNECT)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .connect_with_connector_lazy(connect)
        };
        Self { channel, runtime, address: address.into(), stall, contact: Arc::default() }
    }

    pub(super) fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    /// Returns the store's record of a blob in the call's namespace, and the blob's size in bytes.
    pub(super) fn info(&self, call: &Call, digest: &Digest) -> Result<(Info, u64)> {
        let digest = digest.to_string();
        let response = self.retried(call, "content info", |_channel| {
            let request = request(call, InfoRequest { digest: digest.clone() });
            let mut content = self.content();
            async move { content.info(request?).await.map_err(from_status) }
        })?;
        let info = response.into_inner().info.unwrap_or_default();
        if info.digest != digest {
            let message = format!("the store answered for {:?}", info.digest);
            return Err(Error::new(Kind::DataLoss, reason::SIZE, message));
        }
        let size_bytes = u64::try_from(info.size).map_err(|_negative| {
            Error::new(Kind::DataLoss, reason::SIZE, format!("the store's blob has {} bytes", info.size))
        })?;
        Ok((info, size_bytes))
    }

    /// Makes a short call and waits for its answer. Repeats it up to two times while containerd does not answer. `what`
    /// names the call in errors.
    pub(super) fn retried<T, F>(&self, call: &Call, what: &str, make: impl Fn(Channel) -> F) -> Result<T>
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
                    if outcome.as_ref().is_err_and(|error| error.kind() == Kind::Unavailable) {
                        self.contact.doubt();
                    }
                    return outcome.map_err(|error| self.name(error, what));
                }
            }
        }
    }

    /// Like [`Client::retried`], for a call that must not be repeated.
    pub(super) fn once<T, F>(&self, call: &Call, what: &str, make: impl FnOnce(Channel) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let outcome = self.wait(&call.cancel, make(self.channel.clone()));
        outcome.map_err(|error| self.name(error, what))
    }

    fn name(&self, error: Error, what: &str) -> Error {
        error.context(format!("{what} from containerd at {}", self.address.display()))
    }

    /// Runs `future` on the runtime and blocks until it is done, cancelled or stalled.
    fn wait<T: Send + 'static>(
        &self,
        cancel: &Cancel,
        future: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (send, receive) = mpsc::sync_channel(1);
        let task = self.runtime.spawn(async move {
            // Without a receiver after the call was cancelled.
            let _ = send.send(future.await);
        });
        let wait = cancel.wait();
        let stop = loop {
            match receive.recv_timeout(Cancel::POLL.min(self.stall)) {
                Ok(outcome) => {
                    wait.end()?;
                    return outcome;
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    break Error::new(Kind::Unavailable, reason::STALL, "the content client has stopped");
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            if let Err(stop) = wait.go_on() {
                break stop.into();
            }
            if wait.elapsed() >= self.stall {
                let message = format!("no answer for {} s", self.stall.as_secs_f32());
                break Error::new(Kind::Unavailable, reason::STALL, message);
            }
        };
        task.abort();
        Err(stop)
    }
}

/// Result of the last check whether containerd answers.
#[derive(Debug, Default)]
pub(super) struct Contact {
    /// Reason for which containerd did not answer; `None` if it did, and before the first check.
    trouble: Mutex<Option<String>>,
    doubt: Notify,
}

impl Contact {
    /// Notes that a call got no answer.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Waits until a call has got no answer.
    pub(super) async fn doubted(&self) {
        self.doubt.notified().await;
    }

    /// Returns the reason for which containerd did not answer the last check.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stores the result of a check. Returns the one before.
    pub(super) fn replace(&self, trouble: Option<String>) -> Option<String> {
        std::mem::replace(&mut *self.trouble.lock().unwrap_or_else(PoisonError::into_inner), trouble)
    }
}

/// Connects to `socket`. Errors: `PermissionDenied` unless root or our own user listens there.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket).await?;
    check_peer(stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw())?;
    Ok(stream)
}

/// Accepts root and our own user. Users of other user namespaces, their roots too, have other numbers here.
fn check_peer(peer: u32, own: u32) -> io::Result<()> {
    if peer == 0 || peer == own {
        return Ok(());
    }
    let message = format!("user {peer} listens on the socket, not root");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

/// Returns a request with the namespace, the lease and the trace parent of the call.
pub(super) fn request<T>(call: &Call, message: T) -> Result<Request<T>> {
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
    if let Some(parent) = &call.trace_parent {
        request.metadata_mut().insert("traceparent", value(parent.as_str())?);
    }
    Ok(request)
}

/// Converts a status other than OK into an error for our caller.
///
/// Never `NotImplemented`: whether another differ is asked must not depend on the store.
pub(super) fn from_status(status: Status) -> Error {
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
    Error::new(kind, reason, text_of(&status))
}

/// Returns the code, the message and the causes of a status as text, each text once.
pub(super) fn text_of(status: &Status) -> String {
    let mut texts = vec![status.message().to_owned()];
    let mut cause = status.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // tonic's layer says no more than that; its cause says the rest.
        if text != "transport error" && !texts.contains(&text) {
            texts.push(text);
        }
        cause = error.source();
    }
    format!("{:?}: {}", status.code(), texts.join(": "))
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
    fn a_cause_is_told_once() {
        let missing = || io::Error::from_raw_os_error(2);
        let mut status = Status::unavailable(missing().to_string());
        status.set_source(Arc::new(io::Error::other(missing())));
        assert_eq!(text_of(&status), "Unavailable: No such file or directory (os error 2)");
        status.set_source(Arc::new(io::Error::other("the peer went away")));
        assert_eq!(
            text_of(&status),
            "Unavailable: No such file or directory (os error 2): the peer went away"
        );
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
