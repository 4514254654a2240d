//! Diffs that do not come to their end.

use std::{
    fs,
    time::{Duration, Instant},
};

use plywood::compare::Request;
use rustix::process::Signal;
use testkit::containerd::WriteFault;

use super::{
    lists::{Mode, Release},
    shop::*,
};
use crate::harness::*;

pub const TESTS: &[Test] = &[
    ("a_cancelled_diff_ends_within_a_second_and_leaves_nothing", cancelled),
    ("a_failed_diff_leaves_a_given_reference_to_its_owner", given_reference),
    ("what_a_killed_daemon_left_is_taken_away_by_the_next", killed),
    ("a_diff_that_runs_when_the_daemon_is_stopped_is_finished", drained),
    ("an_upper_directory_that_is_no_layer_by_itself_is_refused", not_self_contained),
    ("a_daemon_that_may_not_compare_leaves_it_to_the_next_differ", disabled),
];

/// A container with more than one message's worth of data, and the request for it.
fn container(shop: &Shop) -> Request {
    shop.layer(1, base);
    shop.run(10, &[1], work, |_| ());
    let large: Vec<u8> = (0..2_000_000_u32).flat_map(|n| n.wrapping_mul(n).to_le_bytes()).collect();
    fs::write(shop.directory(10).join("fs/large"), large).unwrap();
    let lists = shop.lists(Release::V22);
    request(lists.view(10, &[1]), lists.active(10, &[1], Mode::Directory), TAR)
}

fn cancelled() {
    let shop = Shop::new();
    let request = container(&shop);
    let store = &shop.node.store;
    store.write_fault(WriteFault::Stall(3));
    let mut grpc = shop.node.grpc();
    let call = {
        let request = request.clone();
        shop.node.runtime.spawn(async move { grpc.diff(&request).await })
    };
    until("writing", SOON, || store.active_writes() == 1);
    std::thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    call.abort();
    until("the request is logged", SOON, || shop.daemon.log().contains("reason=\"call.cancelled\""));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    until("nothing is left", SOON, || {
        store.ingests().is_empty() && store.leases().is_empty() && store.active_writes() == 0
    });
    store.write_fault(None);
    shop.bytes(&Blob::of(&shop.diff(&request)));
    shop.daemon.stop();
}

fn given_reference() {
    let shop = Shop::new();
    let mut request = container(&shop);
    request.reference = "of-the-client".to_owned();
    let store = &shop.node.store;
    store.write_fault(WriteFault::Full(2));
    let reply = shop.diff(&request);
    assert_eq!(reply.code_and_reason().0, 8, "{reply:?}");
    assert!(reply.message().contains("snapshots/10/fs"), "{reply:?}");
    let references: Vec<_> = store.ingests().into_iter().map(|(_, reference, _)| reference).collect();
    assert_eq!(references, ["of-the-client"]);
    store.write_fault(None);
    shop.bytes(&Blob::of(&shop.diff(&request)));
    assert!(store.ingests().is_empty());
    shop.daemon.stop();
}

fn killed() {
    let shop = Shop::new();
    let request = container(&shop);
    let before = listing(&shop);
    let store = &shop.node.store;
    // A Diff that came to its end, whose blob is still guarded; and what is somebody else's.
    let finished = Blob::of(&shop.diff(&request));
    let guard = store.leases();
    assert_eq!(guard.len(), 1, "{guard:?}");
    let large = shop.directory(10).join("fs/large");
    fs::write(&large, fs::read(&large).unwrap().repeat(2)).unwrap();
    let others = format!("plywood-diff-{}-{}-{}", "0".repeat(8), "0".repeat(8), "0".repeat(32));
    store.leave(NAMESPACE, &others, b"another instance's");
    store.write_fault(WriteFault::Stall(3));
    let mut grpc = shop.node.grpc();
    let call = {
        let request = request.clone();
        shop.node.runtime.spawn(async move { grpc.diff(&request).await })
    };
    until("writing", SOON, || store.active_writes() == 1 && store.leases().len() == 2);
    let Shop { mut node, mut daemon, .. } = shop;
    daemon.signal(Signal::KILL);
    daemon.ended();
    // A connection that breaks is "unknown" or "unavailable", as the client comes to notice it.
    let reply = node.runtime.block_on(call).unwrap();
    assert!([2, 14].contains(&reply.code_and_reason().0), "{reply:?}");
    node.store.write_fault(None);
    until("the store notices", SOON, || node.store.active_writes() == 0);
    // The store has an ingest under a lease that ends by itself: no blob, and nothing in the snapshots.
    let names = |node: &Node| -> Vec<_> { node.store.ingests().into_iter().map(|found| found.1).collect() };
    assert_eq!(names(&node).len(), 2);
    let leases = node.store.leases();
    assert_eq!(leases.len(), 2);
    assert!(leases.iter().all(|lease| lease.labels.contains_key("containerd.io/gc.expire")), "{leases:?}");
    // containerd may start later than we do.
    node.store.stop();
    let daemon = node.start();
    assert_eq!(listing_of(&node), before);
    node.store.restart();
    until("swept", SOON, || daemon.log().matches("swept the content store").count() == 2);
    assert!(daemon.log().contains("ingests=1 leases=1"), "{}", daemon.log());
    assert_eq!(names(&node), [others]);
    assert_eq!(node.store.leases(), guard);
    node.store.collect(std::time::SystemTime::now());
    assert!(node.store.blob(NAMESPACE, &finished.digest).is_some(), "its lease was taken away");
    let reply = node.runtime.block_on(node.grpc().diff(&request));
    assert!(reply.is_applied(), "{reply:?}");
    daemon.stop();
}

/// Every name below the snapshot root.
fn listing(shop: &Shop) -> Vec<String> {
    listing_of(&shop.node)
}

fn listing_of(node: &Node) -> Vec<String> {
    scan(&node.root()).into_keys().map(|name| String::from_utf8_lossy(&name).into_owned()).collect()
}

fn drained() {
    let shop = Shop::new();
    let request = container(&shop);
    let store = &shop.node.store;
    store.write_fault(WriteFault::Slow(100));
    let mut grpc = shop.node.grpc();
    let call = shop.node.runtime.spawn(async move { grpc.diff(&request).await });
    until("writing", SOON, || store.active_writes() == 1);
    shop.daemon.signal(Signal::TERM);
    let blob = Blob::of(&shop.node.runtime.block_on(call).unwrap());
    shop.bytes(&blob);
    let mut daemon = shop.daemon;
    assert!(daemon.ended().success());
}

fn not_self_contained() {
    let shop = Shop::new();
    shop.layer(1, base);
    let lists = shop.lists(Release::V22);
    for (number, attribute) in [(10, "redirect"), (11, "metacopy")] {
        shop.run(number, &[1], work, |_| ());
        // Nothing of that name lies below.
        let added = if attribute == "redirect" { "fs/etc/added-too" } else { "fs/etc/added" };
        let file = shop.directory(number).join(added);
        if attribute == "redirect" {
            fs::create_dir(&file).unwrap();
        }
        let name = format!("trusted.overlay.{attribute}");
        let value: &[u8] = if attribute == "redirect" { b"absent" } else { b"" };
        rustix::fs::lsetxattr(file, name, value, rustix::fs::XattrFlags::empty()).unwrap();
        let right = lists.active(number, &[1], Mode::Directory);
        let reply = shop.diff(&request(lists.view(number, &[1]), right, TAR));
        assert_eq!(reply.code_and_reason().0, 9, "{reply:?}");
        assert!(reply.message().contains("etc/added") && reply.message().contains(attribute), "{reply:?}");
    }
    shop.daemon.stop();
}

fn disabled() {
    let shop = Shop::with("\n[diff]\nenabled = false");
    shop.layer(1, base);
    let lists = shop.lists(Release::V22);
    let request = request(lists.view(1, &[]), lists.view(1, &[1]), TAR);
    let reply = shop.diff(&request);
    assert_eq!(reply.code_and_reason(), (12, "diff.disabled"), "{reply:?}");
    // Nor has it the rights for that.
    assert!(shop.daemon.log().contains("capabilities=\"none\""), "{}", shop.daemon.log());
    // And writes nothing that it would have to look for.
    assert!(!shop.daemon.log().contains("swept the content store"), "{}", shop.daemon.log());
    shop.daemon.stop();
}
