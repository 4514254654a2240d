//! Layers that must not be published, whatever the reason: the directory stays as it was.

use std::time::{Duration, Instant};

use plywood::apply::Request;
use testkit::containerd::Fault;

use super::harness::*;

pub const TESTS: &[Test] = &[
    ("a_layer_that_is_not_what_it_claims_is_refused_and_leaves_nothing", not_what_it_claims),
    ("a_store_that_misbehaves_is_reported_and_leaves_nothing", misbehaving_store),
    ("a_cancelled_request_stops_reading_within_a_second_and_leaves_nothing", cancelled),
    ("a_store_that_went_away_is_found_again", store_restarts),
];

fn refused(node: &Node, id: u32, request: &Request, want: (i32, &str)) {
    let reply = node.apply(request);
    assert_eq!(reply.code_and_reason(), want, "{reply:?}");
    assert!(reply.message().contains(&request.diff.digest.to_string()), "{reply:?}");
    assert!(reply.message().ends_with(&format!("[{}]", want.1)), "{reply:?}");
    assert_eq!(names(&node.root().join(format!("snapshots/{id}"))), EMPTY, "{reply:?}");
}

fn not_what_it_claims() {
    let node = Node::new();
    let daemon = node.start();
    let tar = archive(3, 5000);
    let blob = gzip(&tar);

    // Other bytes than the digest's, of the same size.
    let mut request = node.request_for(1, &blob);
    let other = gzip(&archive(3, 5000)[..tar.len() - 1]);
    let mut other = other;
    other.resize(blob.len(), 0);
    node.store.add_as(NAMESPACE, &request.diff.digest, other);
    refused(&node, 1, &request, (15, "blob.digest"));

    // A size that is not the blob's.
    node.store.add::<String>(NAMESPACE, blob.as_slice());
    request.diff.size_bytes += 1;
    let reply = node.apply(&request);
    assert_eq!(reply.code_and_reason(), (15, "store.size"), "{reply:?}");

    // Truncated, and then stored under the digest it has now.
    let request = node.request_for(2, &blob[..blob.len() / 2]);
    let reply = node.apply(&request);
    assert_eq!(reply.code_and_reason().0, 3, "{reply:?}");
    assert_eq!(names(&node.root().join("snapshots/2")), EMPTY);

    // Not an archive at all.
    let request = node.request_for(3, &gzip(b"this is no archive, however one looks at it"));
    let reply = node.apply(&request);
    assert_eq!(reply.code_and_reason().0, 3, "{reply:?}");
    assert_eq!(names(&node.root().join("snapshots/3")), EMPTY);

    // In another namespace only.
    let foreign = gzip(&archive(1, 1));
    let digest = node.store.add("other", foreign.as_slice());
    let request = node.request(4, GZIP, &digest, foreign.len());
    let reply = node.apply(&request);
    assert_eq!(reply.code_and_reason().0, 5, "{reply:?}");
    assert_eq!(names(&node.root().join("snapshots/4")), EMPTY);

    let metrics = node.metrics();
    assert!(metrics.contains("plywood_security_events_total{event=\"digest-mismatch\"}"), "{metrics}");
    daemon.stop();
}

fn misbehaving_store() {
    let node = Node::new();
    let daemon = node.start();
    let tar = archive(30, 100_000);
    let blob = tar.clone();
    let digest = node.store.add(NAMESPACE, blob.as_slice());
    let middle = blob.len() / 2;
    for (number, (fault, code)) in [
        (Fault::Flip(middle), 15),
        (Fault::CutShort(middle), 15),
        (Fault::Extra(10), 15),
        (Fault::SkippedOffset(middle), 15),
        (Fault::Gone, 5),
        (Fault::Unavailable, 14),
        (Fault::Disconnect(middle), 14),
    ]
    .into_iter()
    .enumerate()
    {
        let id = 10 + u32::try_from(number).unwrap();
        let request = node.request(id, GZIP, &digest, blob.len());
        node.store.fault(fault);
        let reply = node.apply(&request);
        assert_eq!(reply.code_and_reason().0, code, "{fault:?} {reply:?}");
        assert_eq!(names(&node.root().join(format!("snapshots/{id}"))), EMPTY, "{fault:?}");
        node.store.fault(None);
        assert_eq!(node.apply(&request), Reply::of_tar(&tar), "after {fault:?}");
    }
    daemon.stop();
}

fn cancelled() {
    let node = Node::new();
    let daemon = node.start();
    let tar = archive(30, 100_000);
    let digest = node.store.add(NAMESPACE, tar.as_slice());
    let request = node.request(1, GZIP, &digest, tar.len());
    node.store.fault(Fault::Stall(tar.len() / 2));
    let mut grpc = node.grpc();
    let call = {
        let request = request.clone();
        node.runtime.spawn(async move { grpc.apply(&request).await })
    };
    until("reading", SOON, || node.store.active_reads() == 1);
    std::thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    call.abort();
    until("the read is given up", SOON, || node.store.active_reads() == 0);
    until("the request is logged", SOON, || daemon.log().contains("reason=\"call.cancelled\""));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(names(&node.root().join("snapshots/1")), EMPTY);
    node.store.fault(None);
    assert_eq!(node.apply(&request), Reply::of_tar(&tar));
    daemon.stop();
}

fn store_restarts() {
    let mut node = Node::new();
    let tar = archive(3, 1000);
    let request = node.request_for(1, &gzip(&tar));
    node.store.stop();
    let daemon = node.start();
    let reply = node.apply(&request);
    assert_eq!(reply.code_and_reason().0, 14, "{reply:?}");
    node.store.restart();
    assert_eq!(node.apply(&request), Reply::of_tar(&tar));
    node.store.stop();
    node.store.restart();
    assert_eq!(node.apply(&request), Reply::of_tar(&tar));
    daemon.stop();
}
