//! Limits on a client, and that others notice nothing when one exceeds them.

use std::{sync::atomic::Ordering, time::Duration};

use plywood::{config, rpc::convert, service::Capacity};
use testkit::Suite;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::{Instant, timeout},
};

use super::harness::{Reply, SOON, Server, request, ttrpc_by_hand, until};

pub fn add(suite: &mut Suite) {
    tests![suite;
        another_first_byte_is_closed_at_once,
        silence_is_closed_after_five_seconds_wherever_it_begins,
        connections_beyond_the_limit_are_closed_and_come_back_when_others_go,
        requests_beyond_the_streams_of_a_ttrpc_connection_are_refused,
        a_full_queue_is_busy_and_waiting_costs_only_time,
        a_waiting_request_is_cancelled_or_times_out_without_a_worker,
        oversized_messages_and_headers_are_refused,
        an_oversized_ttrpc_message_is_refused_and_the_connection_kept,
        other_users_are_closed_before_a_byte_is_read_and_counted,
        floods_of_resets_and_of_headers_end_their_connection_only,
    ];
}

/// Waits for the server to close the connection; returns how long that took.
async fn closed(mut stream: UnixStream) -> Duration {
    let start = Instant::now();
    let mut rest = Vec::new();
    // A reset is a close too.
    let _ = timeout(SOON, stream.read_to_end(&mut rest)).await.expect("the server closes the connection");
    start.elapsed()
}

async fn another_first_byte_is_closed_at_once() {
    let server = Server::start();
    for first in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), b"\x16\x03\x01", b"\xff"] {
        let mut stream = server.connect().await;
        stream.write_all(first).await.unwrap();
        assert!(closed(stream).await < Duration::from_secs(2), "{first:?}");
    }
    assert!(server.grpc().await.apply("tar").await.is_applied());
}

async fn silence_is_closed_after_five_seconds_wherever_it_begins() {
    let server = Server::start();
    let mut waits = tokio::task::JoinSet::new();
    for first in [
        b"".as_slice(),
        b"P",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0",
        b"\0\0\0\x05\0\0\0\x01\x01",
        b"\0\x10\0\0\0\0\0\x01\x01\0payload that does not come",
    ] {
        let mut stream = server.connect().await;
        stream.write_all(first).await.unwrap();
        waits.spawn(async move { (first, closed(stream).await) });
    }
    while let Some(wait) = waits.join_next().await {
        let (first, waited) = wait.unwrap();
        let seconds = waited.as_secs_f64();
        assert!((4.5..9.0).contains(&seconds), "{first:?} closed after {seconds}");
    }
}

async fn connections_beyond_the_limit_are_closed_and_come_back_when_others_go() {
    let settings = config::Server { max_connections: 3, ..config::Server::default() };
    let server = Server::with(&settings, Capacity { running: 2, waiting: 2 });
    let held = [server.ttrpc().await, server.ttrpc().await, server.ttrpc().await];
    for client in &held {
        assert!(client.apply("tar").await.is_applied());
    }
    assert!(closed(server.connect().await).await < Duration::from_secs(2));
    drop(held);
    let end = Instant::now() + SOON;
    loop {
        let mut stream = server.connect().await;
        let sent = stream.write_all(b"\0").await.is_ok();
        if sent && timeout(Duration::from_millis(200), stream.read_u8()).await.is_err() {
            break; // still open: the server waits for the rest of the frame
        }
        assert!(Instant::now() < end, "no place became free");
    }
}

async fn requests_beyond_the_streams_of_a_ttrpc_connection_are_refused() {
    let settings = config::Server { max_streams: 4, ..config::Server::default() };
    let server = Server::with(&settings, Capacity { running: 8, waiting: 8 });
    let ttrpc = server.ttrpc().await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let ttrpc = ttrpc.clone();
        calls.spawn(async move { ttrpc.apply("short").await });
    }
    server.until_started(4).await;
    let refused = ttrpc.apply("tar").await;
    assert_eq!(refused.code_and_reason().0, 8, "{refused:?}");
    while let Some(call) = calls.join_next().await {
        assert!(call.unwrap().is_applied());
    }
    assert!(ttrpc.apply("tar").await.is_applied(), "the connection is kept");
}

async fn a_full_queue_is_busy_and_waiting_costs_only_time() {
    let server = Server::with(&config::Server::default(), Capacity { running: 1, waiting: 2 });
    let ttrpc = server.ttrpc().await;
    let mut calls = tokio::task::JoinSet::new();
    let (first, waiting) = (ttrpc.clone(), ttrpc.clone());
    calls.spawn(async move { first.apply("short").await });
    server.until_started(1).await;
    for _ in 0..2 {
        let waiting = waiting.clone();
        calls.spawn(async move { waiting.apply("tar").await });
    }
    let is_busy = |text: &str| text.contains("plywood_requests_waiting 2\n");
    let end = Instant::now() + SOON;
    while !is_busy(&server.metrics().await) {
        assert!(Instant::now() < end);
    }
    let Reply::Refused { code, reason, message } = ttrpc.apply("tar").await else { panic!("applied") };
    assert_eq!((code, reason.as_str()), (8, "server.busy"));
    assert!(message.contains("busy: 1 requests are worked on and 2 wait"), "{message}");
    while let Some(call) = calls.join_next().await {
        assert!(call.unwrap().is_applied());
    }
}

async fn a_waiting_request_is_cancelled_or_times_out_without_a_worker() {
    let server = Server::with(&config::Server::default(), Capacity { running: 1, waiting: 4 });
    let (ttrpc, mut grpc) = (server.ttrpc().await, server.grpc().await);
    let holder = ttrpc.clone();
    let held = tokio::spawn(async move { holder.apply("wait").await });
    server.until_started(1).await;
    let late = ttrpc_by_hand(&server, "tar", Duration::from_millis(100)).await;
    assert_eq!(late.code_and_reason(), (4, "call.deadline"), "{late:?}");
    let waiting = tokio::spawn(async move { grpc.apply("tar").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    waiting.abort();
    let end = Instant::now() + SOON;
    while !server.metrics().await.contains("plywood_requests_waiting 0\n") {
        assert!(Instant::now() < end);
    }
    assert_eq!(server.work.started.load(Ordering::SeqCst), 1, "neither reached the worker");
    // ttrpc has no way to cancel one call: the client goes.
    held.abort();
    drop(ttrpc);
    until("the holder is cancelled", || server.work.cancelled.load(Ordering::SeqCst) == 1).await;
}

async fn oversized_messages_and_headers_are_refused() {
    let server = Server::start();
    let mut grpc = server.grpc().await.0.max_encoding_message_size(usize::MAX);
    let with_lease = |bytes: usize, extra: usize| {
        let mut message = convert::apply::request_to_grpc(&request("tar"));
        message.mounts[0].options.push("x".repeat(bytes));
        let mut message = tonic::Request::new(message);
        message.metadata_mut().insert("containerd-namespace", "default".parse().unwrap());
        message.metadata_mut().insert("x-padding", "y".repeat(extra).parse().unwrap());
        message
    };
    assert!(grpc.apply(with_lease(100 << 10, 1000)).await.is_ok());
    // Below the message limit, above that of mounts.
    let refused = grpc.apply(with_lease(15 << 20, 0)).await.unwrap_err();
    assert_eq!(plywood::rpc::status::reason_of(&refused).as_deref(), Some("limit.mounts"));
    let refused = grpc.apply(with_lease(17 << 20, 0)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::OutOfRange, "{refused:?}");
    assert!(grpc.apply(with_lease(0, 20 << 10)).await.is_err());
    assert!(grpc.apply(with_lease(0, 0)).await.is_ok(), "the connection is kept");
}

async fn an_oversized_ttrpc_message_is_refused_and_the_connection_kept() {
    use ttrpc::proto::Codec as _;
    let server = Server::start();
    let mut stream = server.connect().await;
    let mut send = async |stream_id: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap();
        let header: Vec<u8> = ttrpc::MessageHeader::new_request(stream_id, length).into();
        stream.write_all(&header).await.unwrap();
        stream.write_all(payload).await.unwrap();
        let reply = timeout(SOON, ttrpc::proto::GenMessage::read_from(&mut stream)).await.unwrap().unwrap();
        assert_eq!(reply.header.stream_id, stream_id);
        ttrpc::Response::decode(&reply.payload).unwrap().status.code()
    };
    let long = vec![0; (4 << 20) + 1];
    assert_eq!(send(1, &long).await, ttrpc::Code::RESOURCE_EXHAUSTED);
    let mut unknown = ttrpc::Request::new();
    unknown.set_service("nobody".to_owned());
    let unknown = unknown.encode().unwrap();
    assert_eq!(send(3, &unknown).await, ttrpc::Code::UNIMPLEMENTED);
    assert_eq!(send(1, &unknown).await, ttrpc::Code::UNIMPLEMENTED, "clients swap neighbours");
    assert_eq!(send(8, &unknown).await, ttrpc::Code::INVALID_ARGUMENT, "an even id");
    assert_eq!(send(9, b"\xff\xff").await, ttrpc::Code::INVALID_ARGUMENT, "not a request");
}

async fn other_users_are_closed_before_a_byte_is_read_and_counted() {
    const NOBODY: u32 = 65_534;
    let settings = config::Server { allowed_uid: 1, ..config::Server::default() };
    let server = Server::with(&settings, Capacity { running: 1, waiting: 1 });
    if rustix::process::geteuid().is_root() {
        // The kernel attributes a connection to the thread that makes it.
        let (path, directory) = (server.path(), server.scratch.path().to_owned());
        open_to_all(&directory, &path);
        let connected = std::thread::spawn(move || {
            let nobody = rustix::process::Uid::from_raw(NOBODY);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            std::os::unix::net::UnixStream::connect(path).unwrap()
        });
        let stream = connected.join().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut stream = UnixStream::from_std(stream).unwrap();
        let _ = stream.write_all(b"P").await;
        assert!(closed(stream).await < Duration::from_secs(2));
    } else {
        // Without root we are the other user.
        assert!(closed(server.connect().await).await < Duration::from_secs(2));
    }
    let metrics = server.metrics().await;
    assert!(metrics.contains("plywood_security_events_total{event=\"peer-refused\"} 1"), "{metrics}");
}

/// Lets the mode of the files stand back, so that only the peer's identity is left to decide.
fn open_to_all(directory: &std::path::Path, socket: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666)).unwrap();
}

/// An HTTP/2 frame (RFC 9113, section 4.1).
pub fn http2(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The client preface and an empty SETTINGS frame.
pub fn http2_preface() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &http2(4, 0, 0, b"")].concat()
}

/// `POST http /`, from the static table of HPACK.
const POST: [u8; 3] = [0x83, 0x86, 0x84];

/// Sends until the server closes the connection; false when it takes everything.
async fn flood(server: &Server, pieces: u32, piece: impl Fn(u32) -> Vec<u8>) -> bool {
    let (mut reader, mut writer) = server.connect().await.into_split();
    writer.write_all(&http2_preface()).await.unwrap();
    let replies = tokio::spawn(async move {
        let mut sink = vec![0; 64 << 10];
        while reader.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    });
    for number in 0..pieces {
        if writer.write_all(&piece(number)).await.is_err() {
            return true;
        }
    }
    // The last pieces may lie in the socket while the server closes.
    timeout(Duration::from_secs(1), replies).await.is_ok()
}

async fn floods_of_resets_and_of_headers_end_their_connection_only() {
    const HEADERS: u8 = 1;
    const RESET: u8 = 3;
    const CONTINUATION: u8 = 9;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;
    let server = Server::start();
    let bystander = server.ttrpc().await;
    let resets = |number| {
        let stream = 2 * number + 1;
        let open = http2(HEADERS, END_STREAM | END_HEADERS, stream, &POST);
        [open, http2(RESET, 0, stream, &8_u32.to_be_bytes())].concat()
    };
    let continuations = |number| match number {
        0 => http2(HEADERS, END_STREAM, 1, &POST),
        // A literal header without indexing: name "a", value of 100 bytes.
        _ => http2(CONTINUATION, 0, 1, &[b"\x00\x01a\x64".as_slice(), &[b'x'; 100]].concat()),
    };
    let (few_resets, few_continuations) =
        tokio::join!(flood(&server, 5, resets), flood(&server, 5, continuations));
    assert!(!few_resets && !few_continuations, "a few are nothing unusual");
    assert!(flood(&server, 20_000, resets).await, "rapid resets");
    assert!(flood(&server, 20_000, continuations).await, "endless headers");
    assert!(bystander.apply("tar").await.is_applied());
    assert!(server.grpc().await.apply("tar").await.is_applied());
}
