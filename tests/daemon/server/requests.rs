//! One request: what comes back over either wire.

use std::{sync::atomic::Ordering, time::Duration};

use plywood::digest::Digest;
use testkit::Suite;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    harness::{Reply, Server, ttrpc_by_hand, ttrpc_refused, until},
    limits::{http2, http2_preface},
};

pub fn add(suite: &mut Suite) {
    tests![suite;
        both_wires_are_served_at_once_on_one_socket,
        a_refusal_is_the_same_over_both_wires,
        diff_is_answered_the_same_over_both_wires,
        a_diff_whose_client_goes_away_is_cancelled,
        a_daemon_that_does_not_compare_leaves_it_to_the_next_differ,
        unknown_services_and_methods_are_unimplemented,
        dropping_a_grpc_call_cancels_its_work,
        losing_a_connection_cancels_its_work_on_either_wire,
        a_deadline_ends_the_work_on_either_wire,
        the_health_service_and_the_health_page_agree,
        the_metrics_socket_answers_two_pages_and_refuses_the_rest,
        a_client_that_names_the_path_of_the_socket_is_served,
    ];
}

async fn both_wires_are_served_at_once_on_one_socket() {
    let server = Server::start();
    let (mut grpc, ttrpc) = (server.grpc().await, server.ttrpc().await);
    let want = Reply::Applied { digest: Digest::sha256(b"layer").to_string(), size: 10 };
    for _ in 0..20 {
        let (a, b) = tokio::join!(grpc.apply("tar"), ttrpc.apply("tar"));
        assert_eq!((&a, &b), (&want, &want));
    }
    let metrics = server.metrics().await;
    for wire in ["grpc", "ttrpc"] {
        let line = format!(
            "plywood_requests_total{{method=\"Apply\",wire=\"{wire}\",layer=\"other\",code=\"ok\",reason=\"\"}} 20"
        );
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
    assert!(
        metrics.contains("plywood_connections 2") && metrics.contains("plywood_metadata_memory_bytes 42")
    );
}

async fn a_refusal_is_the_same_over_both_wires() {
    let server = Server::start();
    let (mut grpc, ttrpc) = (server.grpc().await, server.ttrpc().await);
    for (media_type, namespace, want) in [
        ("refuse", "default", (3, "tar.name")),
        ("unknown", "default", (12, "apply.media-type")),
        ("panic", "default", (13, "internal.panic")),
        ("tar", "", (9, "request.namespace")),
        ("tar", "a/b", (3, "request.namespace")),
    ] {
        let a = grpc.apply_in(media_type, namespace, None).await;
        let b = ttrpc.apply_in(media_type, namespace).await;
        assert_eq!(a.code_and_reason(), want, "{a:?}");
        assert_eq!(a, b);
    }
    let Reply::Refused { message, .. } = grpc.apply("refuse").await else { panic!("applied") };
    assert_eq!(message, "apply x: name \"\\u{1b}[2J\\n\" [tar.name]");
    // The daemon lives on after a panic, and has counted it.
    assert!(grpc.apply("tar").await.is_applied());
    let metrics = server.metrics().await;
    assert!(metrics.contains("plywood_security_events_total{event=\"panic\"} 2"), "{metrics}");
}

async fn diff_is_answered_the_same_over_both_wires() {
    let server = Server::start();
    let (mut grpc, ttrpc) = (server.grpc().await, server.ttrpc().await);
    let want = Reply::Applied { digest: Digest::sha256(b"a").to_string(), size: 45 };
    let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
    assert_eq!(grpc.diff(zstd).await, want);
    assert_eq!(ttrpc.diff(zstd).await, want);
    for (media_type, want) in [("unknown", (12, "apply.media-type")), ("panic", (13, "internal.panic"))] {
        let reply = grpc.diff(media_type).await;
        assert_eq!(reply.code_and_reason(), want, "{reply:?}");
        assert_eq!(ttrpc.diff(media_type).await, reply);
    }
    let metrics = server.metrics().await;
    for line in [
        "plywood_requests_total{method=\"Diff\",wire=\"grpc\",layer=\"tar\",code=\"ok\",reason=\"\"} 1",
        "plywood_diff_duration_seconds_count{layer=\"tar\"} 2",
        "plywood_diff_uncompressed_bytes_total{layer=\"tar\"} 2048",
        "plywood_diff_written_bytes_total{layer=\"tar\"} 90",
        "plywood_diff_entries_total 4",
        "plywood_stage_duration_seconds_count{method=\"Diff\",stage=\"encode\"} 2",
        "plywood_apply_duration_seconds_count",
    ] {
        assert_eq!(metrics.contains(line), !line.contains("apply"), "{line}\n{metrics}");
    }
}

async fn a_diff_whose_client_goes_away_is_cancelled() {
    let server = Server::start();
    let mut grpc = server.grpc().await;
    let call = tokio::spawn(async move { grpc.diff("wait").await });
    server.until_started(1).await;
    call.abort();
    until("cancelled", || server.work.cancelled.load(Ordering::SeqCst) == 1).await;
}

async fn a_daemon_that_does_not_compare_leaves_it_to_the_next_differ() {
    let server = Server::that_only_applies();
    let (mut grpc, ttrpc) = (server.grpc().await, server.ttrpc().await);
    let reply = grpc.diff("any").await;
    assert_eq!(reply.code_and_reason(), (12, "diff.disabled"), "{reply:?}");
    assert_eq!(ttrpc.diff("any").await, reply);
    assert!(grpc.apply("tar").await.is_applied());
}

async fn unknown_services_and_methods_are_unimplemented() {
    let server = Server::start();
    let channel = server.channel().await;
    let mut other = containerd_client::services::v1::content_client::ContentClient::new(channel);
    let refused = other.info(containerd_client::services::v1::InfoRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented);

    let address = format!("unix://{}", server.path().display());
    let client = ttrpc::r#async::Client::connect(&address).await.unwrap();
    for (service, method) in [("other.Service", "Apply"), ("containerd.services.diff.v1.Diff", "Other")] {
        let mut request = ttrpc::Request::new();
        request.set_service(service.to_owned());
        request.set_method(method.to_owned());
        let refused = client.request(request).await.unwrap_err();
        assert_eq!(ttrpc_refused(refused).code_and_reason().0, 12, "{service}/{method}");
    }
    let mut request = ttrpc::Request::new();
    request.set_service("containerd.services.diff.v1.Diff".to_owned());
    request.set_method("Apply".to_owned());
    request.payload = vec![0xff; 10];
    let refused = client.request(request).await.unwrap_err();
    assert_eq!(ttrpc_refused(refused).code_and_reason().0, 3);
}

async fn dropping_a_grpc_call_cancels_its_work() {
    let server = Server::start();
    let mut grpc = server.grpc().await;
    let call = tokio::spawn(async move { grpc.apply("wait").await });
    server.until_started(1).await;
    call.abort();
    until("cancelled", || server.work.cancelled.load(Ordering::SeqCst) == 1).await;
    let metrics = server.metrics().await;
    assert!(metrics.contains("code=\"cancelled\",reason=\"call.cancelled\"} 1"), "{metrics}");
}

async fn losing_a_connection_cancels_its_work_on_either_wire() {
    let server = Server::start();
    let ttrpc = server.ttrpc().await;
    let call = tokio::spawn(async move { ttrpc.apply("wait").await });
    server.until_started(1).await;
    call.abort();
    until("ttrpc cancelled", || server.work.cancelled.load(Ordering::SeqCst) == 1).await;

    let runtime = std::thread::spawn({
        let path = server.path();
        move || {
            // A client whose process ends: its runtime, and with it the socket, just goes away.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let channel = testkit::grpc::connected(&path).await.unwrap();
                let client = containerd_client::services::v1::diff_client::DiffClient::new(channel);
                let call = tokio::spawn(async move { super::harness::Grpc(client).apply("wait").await });
                tokio::time::sleep(Duration::from_millis(300)).await;
                assert!(!call.is_finished());
            });
        }
    });
    tokio::task::spawn_blocking(|| runtime.join().unwrap()).await.unwrap();
    until("gRPC cancelled", || server.work.cancelled.load(Ordering::SeqCst) == 2).await;
}

async fn a_deadline_ends_the_work_on_either_wire() {
    let server = Server::start();
    let mut grpc = server.grpc().await;
    let late = grpc.apply_in("wait", "default", Some(Duration::from_millis(100))).await;
    // tonic's client looks at the clock itself, and words it its own way.
    assert!([1, 4].contains(&late.code_and_reason().0), "{late:?}");

    // So does the ttrpc crate's; this is what the server says.
    let late = ttrpc_by_hand(&server, "wait", Duration::from_millis(100)).await;
    assert_eq!(late.code_and_reason(), (4, "call.deadline"));
    until("both ended", || server.work.cancelled.load(Ordering::SeqCst) == 2).await;
    let metrics = server.metrics().await;
    for wire in ["grpc", "ttrpc"] {
        let line = format!(
            "wire=\"{wire}\",layer=\"other\",code=\"deadline_exceeded\",reason=\"call.deadline\"}} 1"
        );
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
}

async fn the_health_service_and_the_health_page_agree() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let server = Server::start();
    let mut health = HealthClient::new(server.channel().await);
    for service in ["", plywood::rpc::DIFF_SERVICE] {
        let request = HealthCheckRequest { service: service.to_owned() };
        assert_eq!(health.check(request).await.unwrap().into_inner().status, 1, "{service:?} serves");
    }
    assert_eq!(server.get("/health").await, "ok\n");
    server.service.stop();
    assert_eq!(server.get("/health").await, "the daemon is stopping\n");
}

async fn the_metrics_socket_answers_two_pages_and_refuses_the_rest() {
    let server = Server::start();
    let status = async |request: &str| {
        let reply = server.raw_http(request.as_bytes()).await;
        reply.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(status("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await, "HTTP/1.1 200 OK");
    assert_eq!(status("GET /etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n").await, "HTTP/1.1 404 Not Found");
    assert_eq!(status("POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await, "HTTP/1.1 405 Method Not Allowed");
    assert_eq!(status("nonsense\r\n\r\n").await, "HTTP/1.1 400 Bad Request");
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(20_000));
    let answer = status(&long).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    let text = server.metrics().await;
    assert!(text.ends_with("# EOF\n") && text.contains("process_open_fds"));
}

/// Clients' names for a server without a host: gRPC's C core sends the escaped path of the socket, Java's the path.
async fn a_client_that_names_the_path_of_the_socket_is_served() {
    let server = Server::start();
    for authority in
        ["%2Frun%2Fplywood%2Fplywood.sock", "unix%3A%2Frun%2Fp", "/run/p", "unix:/run/a:b", "x y"]
    {
        let mut stream = server.connect().await;
        let string = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        let field = |name: &str, value: &str| [vec![0x00], string(name), string(value)].concat();
        let request = |id: u32, authority: &[u8]| {
            // POST over http.
            let block = [
                vec![0x83, 0x86],
                field(":path", "/grpc.health.v1.Health/Check"),
                authority.to_vec(),
                field("content-type", "application/grpc"),
                field("te", "trailers"),
            ];
            [http2(1, 4, id, &block.concat()), http2(0, 1, id, &[0; 5])].concat()
        };
        // As the C core has it: spelt out and kept, and from then on its number in the table.
        let spelt = [vec![0x40], string(":authority"), string(authority)].concat();
        let sent = [http2_preface(), request(1, &spelt), request(3, &[0xbe])].concat();
        stream.write_all(&sent).await.unwrap();
        let mut ended = Vec::new();
        while ended.len() < 2 {
            let mut header = [0; 9];
            stream.read_exact(&mut header).await.unwrap();
            let [_, l1, l2, kind, flags, .., id] = header;
            let mut payload = vec![0; usize::from(l1) << 8 | usize::from(l2)];
            stream.read_exact(&mut payload).await.unwrap();
            assert!(kind != 3 && kind != 7, "{authority}: a reset or the end: {header:?} {payload:?}");
            // HEADERS with the end of the stream: the trailers.
            if kind == 1 && flags & 1 != 0 {
                ended.push(id);
            }
        }
        ended.sort_unstable();
        assert_eq!(ended, [1, 3], "{authority}");
    }
}
