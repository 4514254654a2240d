//! Restarts under load: a client like containerd's, and a daemon that is ended and started again and again.

use std::{
    io,
    os::unix::net::UnixListener,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use containerd_client::services::v1::ApplyResponse;
use h2::{Reason, client::SendRequest};
use plywood::{apply::Request, rpc::convert};
use prost::Message as _;
use rustix::process::Signal;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::Mutex,
    time::timeout,
};
use tonic::codegen::{Bytes, http};

use super::harness::*;

pub const TESTS: &[Test] = &[("restarts_under_load_lose_no_request", restarts)];

/// Time from one SIGTERM to the next.
const PERIOD: Duration = Duration::from_millis(400);
/// Requests at a time.
const CALLERS: usize = 4;

/// A client that does with its one connection what grpc-go does: it connects when there is a request and no
/// connection, sends on it until it has seen a GOAWAY or the end, and sends a request again, once, of which the server
/// said that it was not looked at. Any other end of a request is a failure.
struct Client {
    socket: PathBuf,
    connection: Mutex<(usize, Option<SendRequest<Bytes>>)>,
}

/// The client's socket. Writing to a server that has closed is no error yet: grpc-go reads on, to the last words.
struct Socket {
    stream: UnixStream,
    heard: Arc<AtomicBool>,
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if !buffer.filled().is_empty() {
            self.heard.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                Poll::Ready(Ok(bytes.len()))
            }
            written => written,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

enum Failure {
    /// The connection took no more requests.
    Unsent,
    /// The server never looked at it.
    Unprocessed,
    Failed(String),
}

impl Client {
    async fn call(&self, message: &Bytes) -> Result<ApplyResponse, String> {
        let mut again = true;
        loop {
            let (number, sender) = self.connection().await?;
            match attempt(sender, message.clone()).await {
                Ok(response) => return Ok(response),
                Err(Failure::Unsent) => {}
                Err(Failure::Unprocessed) if again => again = false,
                Err(Failure::Unprocessed) => return Err("not looked at, twice".to_owned()),
                Err(Failure::Failed(why)) => return Err(why),
            }
            let mut connection = self.connection.lock().await;
            if connection.0 == number {
                connection.1 = None;
            }
        }
    }

    async fn connection(&self) -> Result<(usize, SendRequest<Bytes>), String> {
        let mut connection = self.connection.lock().await;
        if let (number, Some(sender)) = &*connection {
            return Ok((*number, sender.clone()));
        }
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| format!("connect: {error}"))?;
        let heard = Arc::new(AtomicBool::new(false));
        let socket = Socket { stream, heard: Arc::clone(&heard) };
        let (sender, mut handled) =
            h2::client::handshake(socket).await.map_err(|error| format!("handshake: {error}"))?;
        let mut ping = handled.ping_pong().unwrap();
        tokio::spawn(handled);
        // Nothing is sent before the server has answered. When it says goodbye at once, that is an answer too.
        let answer = timeout(SOON, ping.ping(h2::Ping::opaque())).await;
        if !matches!(answer, Ok(Ok(_))) && !heard.load(Ordering::Relaxed) {
            return Err(format!("no answer to the handshake: {answer:?}"));
        }
        *connection = (connection.0 + 1, Some(sender.clone()));
        Ok((connection.0, sender))
    }
}

async fn attempt(sender: SendRequest<Bytes>, message: Bytes) -> Result<ApplyResponse, Failure> {
    let mut sender = sender.ready().await.map_err(|_closed| Failure::Unsent)?;
    let request = http::Request::post("http://unix/containerd.services.diff.v1.Diff/Apply")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("containerd-namespace", NAMESPACE)
        .body(())
        .unwrap();
    let (response, mut body) = sender.send_request(request, false).map_err(|_closed| Failure::Unsent)?;
    let failed = |what: &str, error: h2::Error| {
        let unprocessed =
            (error.is_go_away() && error.is_remote()) || error.reason() == Some(Reason::REFUSED_STREAM);
        if unprocessed { Failure::Unprocessed } else { Failure::Failed(format!("{what}: {error:?}")) }
    };
    body.send_data(message, true).map_err(|error| failed("send", error))?;
    let mut reply = response.await.map_err(|error| failed("response", error))?;
    let status = |headers: &http::HeaderMap| headers.get("grpc-status").is_some_and(|status| status != "0");
    if status(reply.headers()) {
        return Err(Failure::Failed(format!("{:?}", reply.headers())));
    }
    let mut bytes = Vec::new();
    while let Some(piece) = reply.body_mut().data().await {
        bytes.extend_from_slice(&piece.map_err(|error| failed("body", error))?);
    }
    let trailers = reply.body_mut().trailers().await.map_err(|error| failed("trailers", error))?;
    if trailers.as_ref().is_none_or(status) {
        return Err(Failure::Failed(format!("{trailers:?}")));
    }
    Ok(ApplyResponse::decode(&bytes[5..]).unwrap())
}

/// The message behind the five bytes that gRPC puts before it.
fn framed(request: &Request) -> Bytes {
    let message = convert::apply::request_to_grpc(request).encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], length.as_slice(), message.as_slice()].concat().into()
}

fn restarts() {
    let calls: usize = std::env::var("PLYWOOD_TEST_RESTART_CALLS").map_or(150, |text| text.parse().unwrap());
    let node = Node::with("\n[apply]\ndurability = \"never\"");
    let listener = UnixListener::bind(node.socket()).unwrap();
    let start = || {
        let socket = listener.try_clone().unwrap();
        node.start_with(&mut with_inherited(&node.command(), socket.into(), "plywood"))
    };
    let mut daemon = start();
    let blob = gzip(&archive(2, 1000));
    let client = Arc::new(Client { socket: node.socket(), connection: Mutex::new((0, None)) });
    let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let callers: Vec<_> = (1_u32..)
        .take(CALLERS)
        .map(|id| {
            let message = framed(&node.request_for(id, &blob));
            let (client, begun, ended) = (Arc::clone(&client), Arc::clone(&begun), Arc::clone(&ended));
            node.runtime.spawn(async move {
                let mut failures = Vec::new();
                while begun.fetch_add(1, Ordering::Relaxed) < calls || !ended.load(Ordering::Relaxed) {
                    if let Err(failure) = client.call(&message).await {
                        failures.push(failure);
                    }
                    // No rhythm of its own, so that restarts meet requests at every point of their way.
                    tokio::time::sleep(Duration::from_millis(5 + u64::from(id) * 7)).await;
                }
                failures
            })
        })
        .collect();
    let mut restarts = 0;
    // Enough restarts, however fast the machine is.
    while begun.load(Ordering::Relaxed) < calls || restarts < calls / 30 {
        let since = Instant::now();
        daemon.signal(Signal::TERM);
        assert!(daemon.ended().success(), "{}", daemon.log());
        daemon = start();
        restarts += 1;
        std::thread::sleep(PERIOD.saturating_sub(since.elapsed()));
    }
    ended.store(true, Ordering::Relaxed);
    let failures: Vec<String> =
        callers.into_iter().flat_map(|caller| node.runtime.block_on(caller).unwrap()).collect();
    let begun = begun.load(Ordering::Relaxed);
    println!("{restarts} restarts, {} of {begun} requests failed", failures.len());
    assert!(failures.is_empty(), "{} of {begun}: {:#?}", failures.len(), &failures[..failures.len().min(10)]);
    daemon.stop();
}
