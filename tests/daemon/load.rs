//! Many layers: at once, and one after the other.

use std::time::{Duration, Instant};

use super::harness::*;

pub const TESTS: &[Test] = &[
    ("two_hundred_and_fifty_six_layers_at_once_are_all_applied", at_once),
    ("a_hundred_equal_requests_are_one_conversion", equal),
    ("good_requests_do_not_wait_behind_thirty_that_stall", thirty_stall),
    ("good_requests_do_not_wait_behind_a_hundred_that_stall", hundred_stall),
    ("requests_that_stall_are_cancelled_and_drained_like_others", stalled_end),
    ("thousands_of_layers_leave_no_descriptor_thread_or_memory_behind", leaks),
];

fn at_once() {
    const LAYERS: u32 = 256;
    let node = Node::new();
    let daemon = node.start();
    // Eight layers, in four namespaces, over a few connections of either wire.
    let tars: Vec<_> = (0..8).map(|files| archive(files, 2000)).collect();
    let blobs: Vec<_> = tars.iter().map(|tar| gzip(tar)).collect();
    let mut calls = Vec::new();
    let (mut grpc, ttrpc) = (Vec::new(), [node.ttrpc(), node.ttrpc()]);
    for namespace in ["default", "k8s.io", "moby"] {
        for blob in &blobs {
            node.store.add::<String>(namespace, blob.as_slice());
        }
        grpc.push(Grpc { namespace: namespace.to_owned(), ..node.grpc() });
    }
    for id in 1..=LAYERS {
        let index = usize::try_from(id).unwrap();
        let which = index % blobs.len();
        let request = node.request_for(id, &blobs[which]);
        let (mut grpc, ttrpc) = (grpc[index % 3].clone(), ttrpc[index / 4 % 2].clone());
        let call = node.runtime.spawn(async move {
            // 64 requests per connection is the limit, and a quarter of 256 is that.
            if id % 4 == 0 { ttrpc.apply(&request).await } else { grpc.apply(&request).await }
        });
        calls.push((id, which, call));
    }
    for (id, which, call) in calls {
        assert_eq!(node.runtime.block_on(call).unwrap(), Reply::of_tar(&tars[which]), "{id}");
        assert_published(&node.root().join(format!("snapshots/{id}")));
    }
    daemon.stop();
}

/// The value of a gauge.
fn gauge(node: &Node, name: &str) -> usize {
    let text = node.metrics();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("plywood_requests_{name} ")));
    line.unwrap().parse().unwrap()
}

fn equal() {
    const REQUESTS: usize = 100;
    let node = Node::with("running_applies = 4");
    let daemon = node.start();
    let tar = archive(2, 1000);
    let request = node.request_for(1, &gzip(&tar));
    node.store.withhold(&request.diff.digest, 0);
    let clients = [node.grpc(), node.grpc()];
    let calls: Vec<_> = (0..REQUESTS)
        .map(|number| {
            let (mut grpc, request) = (clients[number % 2].clone(), request.clone());
            node.runtime.spawn(async move { grpc.apply(&request).await })
        })
        .collect();
    until("all but the first wait", SOON, || gauge(&node, "waiting") == REQUESTS - 1);
    assert_eq!(gauge(&node, "running") + gauge(&node, "stalled"), 1);
    node.store.release();
    for call in calls {
        assert_eq!(node.runtime.block_on(call).unwrap(), Reply::of_tar(&tar));
    }
    let conversions = node.store.take_seen().iter().filter(|seen| seen.method == "read").count();
    println!("{REQUESTS} equal requests: {conversions} conversions");
    assert_eq!(conversions, 1);
    assert_eq!(["running", "stalled", "waiting"].map(|name| gauge(&node, name)), [0; 3]);
    let ok = daemon.log().matches("code=\"ok\"").count();
    assert_eq!(ok, REQUESTS, "one line each");
    assert_published(&node.root().join("snapshots/1"));
    daemon.stop();
}

/// Requests for blobs of which nothing comes from byte `at` on, all under way.
fn stalling(node: &Node, count: u32, at: usize) -> Vec<(Vec<u8>, tokio::task::JoinHandle<Reply>)> {
    let clients = [node.grpc(), node.grpc(), node.grpc()];
    let calls = (1..=count)
        .map(|id| {
            // An archive as it is: several buffers, and no two the same.
            let tar = archive(4, 100_000 + usize::try_from(id).unwrap());
            let request = node.request_for(id, &tar);
            node.store.withhold(&request.diff.digest, at);
            let mut grpc = clients[usize::try_from(id).unwrap() % 3].clone();
            (tar, node.runtime.spawn(async move { grpc.apply(&request).await }))
        })
        .collect();
    let all = usize::try_from(count).unwrap();
    until("all have come", SOON, || {
        ["running", "stalled", "waiting"].map(|name| gauge(node, name)).iter().sum::<usize>() == all
    });
    calls
}

fn behind_stalled(count: u32) {
    for at in [0, 300_000] {
        let node = Node::with("running_applies = 4");
        let daemon = node.start();
        let calls = stalling(&node, count, at);
        let mut waits = Vec::new();
        for id in 1000..1005 {
            let tar = archive(1, 1000);
            let request = node.request_for(id, &gzip(&tar));
            let since = Instant::now();
            let mut grpc = node.grpc();
            let reply =
                node.runtime.block_on(async { tokio::time::timeout(SOON, grpc.apply(&request)).await });
            assert_eq!(reply.expect("a good request waits behind stalled ones"), Reply::of_tar(&tar));
            waits.push(since.elapsed());
        }
        let (_, threads, resident) = daemon.size();
        println!(
            "{count} stalled from byte {at}: good requests took {waits:?}; {threads} threads, {resident} bytes"
        );
        let all = usize::try_from(count).unwrap();
        until("all stall", SOON, || gauge(&node, "stalled") == all);
        node.store.release();
        for (tar, call) in calls {
            assert_eq!(node.runtime.block_on(call).unwrap(), Reply::of_tar(&tar));
        }
        assert_eq!(["running", "stalled", "waiting"].map(|name| gauge(&node, name)), [0; 3]);
        until("threads end", SOON, || daemon.size().1 < 30);
        daemon.stop();
    }
}

fn thirty_stall() {
    behind_stalled(30);
}

fn hundred_stall() {
    behind_stalled(100);
}

fn stalled_end() {
    let node = Node::with("running_applies = 2\ndrain_seconds = 1");
    let mut daemon = node.start();
    let mut calls = stalling(&node, 10, 1000);
    until("all stall", SOON, || gauge(&node, "stalled") == 10);
    let (_, call) = calls.pop().unwrap();
    call.abort();
    until("one is cancelled", Duration::from_secs(1), || gauge(&node, "stalled") == 9);
    let since = Instant::now();
    daemon.signal(rustix::process::Signal::TERM);
    for (_, call) in calls {
        assert_eq!(node.runtime.block_on(call).unwrap().code_and_reason(), (1, "call.cancelled"));
    }
    assert!(daemon.ended().success());
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
}

fn leaks() {
    let count: u32 = std::env::var("PLYWOOD_TEST_APPLIES").map_or(300, |text| text.parse().unwrap());
    let node = Node::with("\n[apply]\ndurability = \"never\"");
    let daemon = node.start();
    let tar = archive(4, 3000);
    let mut request = node.request_for(1, &gzip(&tar));
    let source = request.mounts[0].source.clone();
    let (mut grpc, ttrpc) = (node.grpc(), node.ttrpc());
    let mut warm = (0, 0, 0);
    let start = Instant::now();
    for number in 0..count {
        // A refusal now and then takes the other ways out.
        let spoil = number % 10 == 9;
        request.mounts[0].source = if spoil { format!("{source}/x") } else { source.clone() };
        let reply = node.runtime.block_on(async {
            if number % 2 == 0 { grpc.apply(&request).await } else { ttrpc.apply(&request).await }
        });
        assert_eq!(reply.is_applied(), !spoil, "{number}: {reply:?}");
        if number == 100 {
            warm = daemon.size();
        }
    }
    let took = start.elapsed();
    let (descriptors, threads, resident) = daemon.size();
    println!(
        "{count} layers in {took:?}: {descriptors} descriptors, {threads} threads, {resident} bytes; after 100: {warm:?}"
    );
    assert_eq!((descriptors, threads), (warm.0, warm.1));
    assert!(resident <= warm.2 + (2 << 20), "{resident} bytes after {count} layers, {} after 100", warm.2);
    assert_published(&node.root().join("snapshots/1"));
    daemon.stop();
}
