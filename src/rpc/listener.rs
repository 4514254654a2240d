//! The accept loop: checks who connects, bounds the number of connections, and detects the wire.
//!
//! An HTTP/2 client speaks first, and its first byte is `P` (`PRI * HTTP/2.0`, RFC 9113 section
//! 3.4). A ttrpc client speaks first too. Its first byte is 0, the highest of a big-endian length
//! of at most 4 MiB. The byte is peeked at and stays in the socket. A connection with any other
//! byte is closed, and so is a silent one.

use std::{
    io, iter,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustix::net::{RecvFlags, Shutdown, SocketFlags};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
    time::{Sleep, sleep, timeout},
};
use tonic::transport::server::Connected;

use super::{authority::Amender, socket::SocketFile, ttrpc};
use crate::{
    call::{Peer, Wire},
    limits,
    observe::{Observer, SecurityEvent},
    service::Service,
};

/// Length of the first complete gRPC frame in bytes: the client preface and the header of its
/// SETTINGS frame.
const GRPC_FIRST_FRAME: u64 = 24 + 9;

/// Bounds of connections: allowed user, and numbers.
#[derive(Clone, Copy, Debug)]
pub struct Admittance {
    /// User id besides root whose processes may connect.
    pub allowed_uid: u32,
    /// Most connections open at a time.
    pub max_connections: u32,
    /// Most requests in flight on one ttrpc connection.
    pub max_streams: u32,
}

/// Accepted gRPC connection. It closes itself when no first frame arrives in time.
pub struct Connection {
    stream: UnixStream,
    peer: Peer,
    seen_bytes: u64,
    first_frame: Option<Pin<Box<Sleep>>>,
    authority: Amender,
    _open: Open,
}

/// Counts one open connection for as long as it lives.
pub(super) struct Open {
    observer: Arc<Observer>,
    _permit: OwnedSemaphorePermit,
}

impl Open {
    fn new(observer: Arc<Observer>, permit: OwnedSemaphorePermit) -> Self {
        observer.metrics.connections.inc();
        Self { observer, _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.observer.metrics.connections.dec();
    }
}

/// Accepts connections until `stop` is ready. Sends gRPC connections to `grpc`, and serves each
/// ttrpc connection in a task of its own, which ends when `stop` is ready and its requests are
/// done. Returns when all tasks have ended.
///
/// Accepted connections are served to their end. Connections in the queue of an inherited socket
/// are then left to the next daemon; those in the queue of the daemon's own socket are served.
pub async fn accept(
    listener: UnixListener,
    file: SocketFile,
    admittance: Admittance,
    service: Arc<Service>,
    grpc: mpsc::Sender<Connection>,
    stop: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(usize::try_from(admittance.max_connections).unwrap_or(usize::MAX)));
    let mut stopped = stop.clone();
    let mut entrance = Entrance { admittance, service, grpc, stop, slots, connections: JoinSet::new() };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stop| *stop) => break,
            Some(_ended) = entrance.connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _address)) => entrance.admit(stream),
            Err(error) => {
                // Without descriptors or memory, the connection stays in the backlog until some are
                // free.
                tracing::warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    if !file.is_inherited() {
        for stream in last_connections(&listener) {
            entrance.admit(stream);
        }
    }
    drop((listener, file));
    let Entrance { mut connections, grpc, .. } = entrance;
    drop(grpc);
    while connections.join_next().await.is_some() {}
}

/// Process at the other end, as the kernel reports it (`SO_PEERCRED`).
fn credentials(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    Ok(Peer { uid: credentials.uid(), pid: credentials.pid() })
}

/// Closes the socket to further clients, and accepts those that have connected before.
fn last_connections(listener: &UnixListener) -> impl Iterator<Item = UnixStream> {
    if let Err(error) = rustix::net::shutdown(listener, Shutdown::Read) {
        tracing::warn!(%error, "cannot close the socket");
    }
    // Bypasses the runtime, to which a closed socket is always ready.
    let accept =
        move || rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).ok();
    iter::from_fn(move || UnixStream::from_std(accept()?.into()).ok())
}

/// Accepts single connections and starts their tasks.
struct Entrance {
    admittance: Admittance,
    service: Arc<Service>,
    grpc: mpsc::Sender<Connection>,
    stop: watch::Receiver<bool>,
    slots: Arc<Semaphore>,
    connections: JoinSet<()>,
}

impl Entrance {
    /// Starts the task of a connection, if its peer may connect.
    fn admit(&mut self, stream: UnixStream) {
        let Admittance { allowed_uid, max_connections, max_streams } = self.admittance;
        let observer = self.service.observer();
        let peer = match credentials(&stream) {
            Ok(peer) if peer.is_allowed(allowed_uid) => peer,
            Ok(peer) => {
                return observer
                    .security(SecurityEvent::PeerRefused, &format!("uid {} pid {:?}", peer.uid, peer.pid));
            }
            Err(error) => {
                return observer.security(SecurityEvent::PeerRefused, &format!("no credentials: {error}"));
            }
        };
        let Ok(permit) = Arc::clone(&self.slots).try_acquire_owned() else {
            return observer
                .security(SecurityEvent::LimitHit, &format!("more than {max_connections} connections"));
        };
        let open = Open::new(Arc::clone(observer), permit);
        let (service, grpc, stop) = (Arc::clone(&self.service), self.grpc.clone(), self.stop.clone());
        self.connections.spawn(async move {
            // `stop` does not cut this short: the first byte may be on its way.
            match timeout(limits::FIRST_FRAME, sniff(&stream)).await {
                Ok(Ok(Wire::Grpc)) => {
                    let first_frame = Some(Box::pin(sleep(limits::FIRST_FRAME)));
                    let connection = Connection {
                        stream,
                        peer,
                        seen_bytes: 0,
                        first_frame,
                        authority: Amender::new(),
                        _open: open,
                    };
                    // Sending fails only when the gRPC server is gone, at the end of everything.
                    let _stopping = grpc.send(connection).await;
                }
                Ok(Ok(Wire::Ttrpc)) => {
                    // The gRPC server waits until the last sender is dropped.
                    drop(grpc);
                    ttrpc::serve(stream, peer, service, max_streams, stop).await;
                    drop(open);
                }
                Ok(Err(error)) => tracing::debug!(%error, ?peer, "connection closed before its first frame"),
                Err(_elapsed) => tracing::debug!(?peer, "connection closed: no first byte"),
            }
        });
    }
}

/// Peeks at the first byte, which stays in the socket.
async fn sniff(stream: &UnixStream) -> io::Result<Wire> {
    let mut first = [0_u8; 1];
    let peek = || rustix::net::recv(stream, &mut first, RecvFlags::PEEK).map_err(io::Error::from);
    let (_, received) = stream.async_io(Interest::READABLE, peek).await?;
    match (received, first) {
        (0, _) => Err(io::ErrorKind::UnexpectedEof.into()),
        (_, [b'P']) => Ok(Wire::Grpc),
        (_, [0]) => Ok(Wire::Ttrpc),
        (_, [byte]) => Err(io::Error::other(format!("first byte {byte:#04x} is neither gRPC nor ttrpc"))),
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Some(new) = buffer.filled_mut().get_mut(before..) {
            self.authority.amend(new);
        }
        if let Some(timer) = &mut self.first_frame {
            if read.is_pending() {
                return timer.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()));
            }
            self.seen_bytes += (buffer.filled().len() - before) as u64;
            if self.seen_bytes >= GRPC_FIRST_FRAME {
                self.first_frame = None;
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
