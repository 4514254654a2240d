//! The end of a server: who is waited for, and for how long.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use containerd_client::services::v1::ApplyResponse;
use plywood::{config, daemon::Daemon, rpc::convert, rpc::socket::Listening, service::Capacity};
use prost::Message as _;
use testkit::Suite;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};

use super::harness::{SOON, Server, request, ttrpc_frame, ttrpc_reply, until};

pub fn add(suite: &mut Suite) {
    tests![suite;
        running_and_waiting_requests_finish_before_the_server_ends,
        what_a_client_sends_before_it_has_heard_the_goodbye_is_served,
        a_client_that_never_answers_holds_up_the_end_for_the_grace_only,
        a_connection_that_is_silent_at_the_stop_is_served_when_it_speaks,
        what_waits_in_the_queue_of_a_socket_of_our_own_is_served,
        what_waits_in_the_queue_of_an_inherited_socket_is_left_to_the_next,
        a_ttrpc_connection_is_served_to_its_last_request_and_then_takes_none,
        a_ttrpc_client_that_leaves_during_the_drain_cancels_its_requests,
        whoever_watches_the_health_hears_of_the_end_and_does_not_hold_it_up,
        requests_that_outlast_the_grace_are_cancelled_within_a_second,
        work_that_does_not_look_at_its_flag_does_not_hold_up_the_end,
    ];
}

async fn running_and_waiting_requests_finish_before_the_server_ends() {
    let server = Server::with(&config::Server::default(), Capacity { running: 1, waiting: 4 });
    let (mut grpc, ttrpc) = (server.grpc().await, server.ttrpc().await);
    let waiting = ttrpc.clone();
    let calls = [
        tokio::spawn(async move { grpc.apply("short").await }),
        tokio::spawn(async move { waiting.apply("short").await }),
    ];
    server.until_started(1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let path = server.path();
    let Server { daemon, work, scratch, .. } = server;
    timeout(SOON, daemon.stop(SOON)).await.unwrap();
    for call in calls {
        assert!(call.await.unwrap().is_applied());
    }
    assert_eq!(work.ended.load(Ordering::SeqCst), 2);
    assert!(UnixStream::connect(path).await.is_err(), "nobody listens any more");
    drop(scratch);
}

/// A client of HTTP/2 by hand, which hears only what it reads.
struct Raw(UnixStream);

/// Types of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

impl Raw {
    async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.0.write_all(&[head.as_slice(), payload].concat()).await.unwrap();
    }

    /// The preface and empty settings.
    async fn greet(&mut self) {
        self.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        self.frame(4, 0, 0, &[]).await;
    }

    /// An Apply of a layer of this type.
    async fn send(&mut self, stream: u32, media_type: &str) {
        let literal = |name: &str, value: &str| {
            let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
            [vec![0], text(name), text(value)].concat()
        };
        let headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/containerd.services.diff.v1.Diff/Apply"),
            (":authority", "x"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("containerd-namespace", "default"),
        ];
        let headers: Vec<u8> = headers.into_iter().flat_map(|(name, value)| literal(name, value)).collect();
        self.frame(HEADERS, 4, stream, &headers).await;
        let message = convert::apply::request_to_grpc(&request(media_type)).encode_to_vec();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        self.frame(DATA, 1, stream, &[&[0], length.as_slice(), message.as_slice()].concat()).await;
    }

    /// The stream and payload of the next frame of this type; `None` at the end of the connection.
    async fn next(&mut self, wanted: u8) -> Option<(u32, Vec<u8>)> {
        loop {
            let mut head = [0; 9];
            match timeout(SOON, self.0.read_exact(&mut head)).await.unwrap() {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return None,
                Err(error) => panic!("{error}"),
            }
            let [l0, l1, l2, kind, _flags, stream @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
            self.0.read_exact(&mut payload).await.unwrap();
            if kind == wanted {
                return Some((u32::from_be_bytes(stream), payload));
            }
        }
    }

    /// Expects the answer to a request that was applied.
    async fn is_applied(&mut self, stream: u32) {
        let (answered, payload) = self.next(DATA).await.expect("an answer");
        assert_eq!(answered, stream);
        assert!(ApplyResponse::decode(&payload[5..]).unwrap().applied.is_some());
    }
}

async fn what_a_client_sends_before_it_has_heard_the_goodbye_is_served() {
    let server = Server::start();
    let mut raw = Raw(server.connect().await);
    raw.greet().await;
    raw.next(4).await.expect("the server's settings");
    let Server { daemon, scratch, work, .. } = server;
    let stop = tokio::spawn(daemon.stop(SOON));
    let (_, goaway) = raw.next(GOAWAY).await.unwrap();
    assert_eq!(goaway[..4], 0x7fff_ffff_u32.to_be_bytes(), "any stream may still come");
    let (_, ping) = raw.next(PING).await.unwrap();
    // The ping has not been answered: for the server, the client has heard nothing yet.
    raw.send(1, "short").await;
    raw.send(3, "tar").await;
    raw.is_applied(3).await;
    raw.frame(PING, 1, 0, &ping).await;
    let (_, goaway) = raw.next(GOAWAY).await.unwrap();
    assert_eq!(goaway[..4], 3_u32.to_be_bytes(), "these were the last");
    raw.is_applied(1).await;
    assert_eq!(raw.next(GOAWAY).await, None);
    timeout(SOON, stop).await.unwrap().unwrap();
    assert_eq!(work.ended.load(Ordering::SeqCst), 2);
    drop(scratch);
}

async fn a_client_that_never_answers_holds_up_the_end_for_the_grace_only() {
    let server = Server::start();
    let mut raw = Raw(server.connect().await);
    raw.greet().await;
    raw.next(4).await.unwrap();
    let Server { daemon, scratch, .. } = server;
    let start = Instant::now();
    daemon.stop(Duration::from_millis(200)).await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    drop(scratch);
}

async fn a_connection_that_is_silent_at_the_stop_is_served_when_it_speaks() {
    let server = Server::start();
    let mut raw = Raw(server.connect().await);
    let mut frames = server.connect().await;
    until("both are accepted", || server.service.observer().metrics.connections.get() == 2).await;
    let Server { daemon, scratch, .. } = server;
    let stop = tokio::spawn(daemon.stop(SOON));
    tokio::time::sleep(Duration::from_millis(50)).await;
    raw.greet().await;
    raw.send(1, "tar").await;
    raw.is_applied(1).await;
    frames.write_all(&ttrpc_frame(1, "tar")).await.unwrap();
    assert!(
        ttrpc_reply(&mut frames).await.status.into_option().is_none_or(|status| status.code.value() == 0)
    );
    let (_, ping) = raw.next(PING).await.unwrap();
    raw.frame(PING, 1, 0, &ping).await;
    timeout(SOON, stop).await.unwrap().unwrap();
    drop(scratch);
}

/// On one thread: connections are in the queue before the server can take any of them.
async fn what_waits_in_the_queue_of_a_socket_of_our_own_is_served() {
    let server = Server::start();
    let path = server.path();
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
            std::io::Write::write_all(&mut &stream, &ttrpc_frame(1, "tar")).unwrap();
            stream.set_nonblocking(true).unwrap();
            UnixStream::from_std(stream).unwrap()
        })
        .collect();
    let Server { daemon, scratch, work, .. } = server;
    let stop = tokio::spawn(daemon.stop(SOON));
    for mut stream in waiting {
        let status = ttrpc_reply(&mut stream).await.status;
        assert!(status.into_option().is_none_or(|status| status.code.value() == 0));
    }
    timeout(SOON, stop).await.unwrap().unwrap();
    assert_eq!(work.ended.load(Ordering::SeqCst), 20);
    assert!(!path.exists(), "and nobody can connect any more");
    drop(scratch);
}

async fn what_waits_in_the_queue_of_an_inherited_socket_is_left_to_the_next() {
    let server = Server::start();
    let Server { daemon, scratch, service, .. } = server;
    let path = scratch.path().join("inherited.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let start = |listener: std::os::unix::net::UnixListener| {
        let (listener, file) = Listening::inherited(listener).into_parts();
        let settings =
            config::Server { allowed_uid: rustix::process::geteuid().as_raw(), ..config::Server::default() };
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        Daemon::start(listener, file, &settings, Arc::clone(&service))
    };
    let first = start(listener.try_clone().unwrap());
    tokio::task::yield_now().await;
    timeout(SOON, first.stop(SOON)).await.unwrap();
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(&ttrpc_frame(1, "tar")).await.unwrap();
    let _second = start(listener);
    assert!(
        ttrpc_reply(&mut stream).await.status.into_option().is_none_or(|status| status.code.value() == 0)
    );
    drop((daemon, scratch));
}

/// ttrpc knows no goodbye: what was sent before the stop is served, and what comes later fails where it is sent.
async fn a_ttrpc_connection_is_served_to_its_last_request_and_then_takes_none() {
    let server = Server::start();
    let mut stream = server.connect().await;
    stream.write_all(&ttrpc_frame(1, "short")).await.unwrap();
    server.until_started(1).await;
    // All of one request and a part of another.
    let (next, last) = (ttrpc_frame(3, "tar"), ttrpc_frame(5, "short"));
    stream.write_all(&next).await.unwrap();
    stream.write_all(&last[..20]).await.unwrap();
    let Server { daemon, scratch, work, .. } = server;
    let stop = tokio::spawn(daemon.stop(SOON));
    tokio::time::sleep(Duration::from_millis(50)).await;
    stream.write_all(&last[20..]).await.unwrap();
    until("the last is begun", || work.started.load(Ordering::SeqCst) == 3).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let error = stream.write_all(&ttrpc_frame(7, "tar")).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    for _ in 0..3 {
        let status = ttrpc_reply(&mut stream).await.status;
        assert!(status.into_option().is_none_or(|status| status.code.value() == 0));
    }
    timeout(SOON, stop).await.unwrap().unwrap();
    assert_eq!(work.ended.load(Ordering::SeqCst), 3);
    drop(scratch);
}

async fn a_ttrpc_client_that_leaves_during_the_drain_cancels_its_requests() {
    let server = Server::start();
    let mut stream = server.connect().await;
    stream.write_all(&ttrpc_frame(1, "wait")).await.unwrap();
    server.until_started(1).await;
    let Server { daemon, scratch, work, .. } = server;
    let stop = tokio::spawn(daemon.stop(3 * SOON));
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(stream);
    timeout(SOON, stop).await.unwrap().unwrap();
    assert_eq!(work.cancelled.load(Ordering::SeqCst), 1);
    drop(scratch);
}

async fn whoever_watches_the_health_hears_of_the_end_and_does_not_hold_it_up() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let server = Server::start();
    let mut health = HealthClient::new(server.channel().await);
    let mut watched = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status, 1);
    let Server { daemon, scratch, .. } = server;
    timeout(SOON / 2, daemon.stop(SOON)).await.unwrap();
    assert_eq!(watched.message().await.unwrap().unwrap().status, 2);
    assert!(watched.message().await.unwrap().is_none());
    drop(scratch);
}

async fn requests_that_outlast_the_grace_are_cancelled_within_a_second() {
    let server = Server::start();
    let (mut grpc, ttrpc) = (server.grpc().await, server.ttrpc().await);
    let calls = [
        tokio::spawn(async move { grpc.apply("wait").await }),
        tokio::spawn(async move { ttrpc.apply("wait").await }),
    ];
    server.until_started(2).await;
    let Server { daemon, work, scratch, .. } = server;
    let start = Instant::now();
    daemon.stop(Duration::from_millis(100)).await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    for call in calls {
        assert_eq!(call.await.unwrap().code_and_reason(), (1, "call.cancelled"));
    }
    assert_eq!(work.cancelled.load(Ordering::SeqCst), 2);
    drop(scratch);
}

async fn work_that_does_not_look_at_its_flag_does_not_hold_up_the_end() {
    let server = Server::start();
    let mut grpc = server.grpc().await;
    let _call = tokio::spawn(async move { grpc.apply("stuck").await });
    server.until_started(1).await;
    let Server { daemon, scratch, .. } = server;
    let start = Instant::now();
    daemon.stop(Duration::ZERO).await;
    // Two seconds for the work, one for the connections; the process then ends with the thread.
    assert!(start.elapsed() < Duration::from_millis(3700), "{:?}", start.elapsed());
    drop(scratch);
}
