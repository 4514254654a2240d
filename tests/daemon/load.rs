//! Many layers: at once, and one after the other.

use std::time::Instant;

use super::harness::*;

pub const TESTS: &[Test] = &[
    ("two_hundred_and_fifty_six_layers_at_once_are_all_applied", at_once),
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
            node.store.add(namespace, blob.as_slice());
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
