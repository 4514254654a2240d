//! The content store after a Diff: one blob, its labels, and something that keeps it.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, SystemTime},
};

use plywood::{compare::Request, tree::Timestamp};
use testkit::containerd::WriteFault;

use super::{
    lists::{Mode, Release},
    shop::*,
};
use crate::harness::*;

pub const TESTS: &[Test] = &[
    ("diff_twice_gives_one_digest_whatever_the_threads", twice),
    ("diff_lowers_later_times_to_the_epoch", epoch),
    ("diff_starts_a_reference_that_was_left_half_written_anew", half_written),
    ("diff_repairs_the_labels_of_content_that_is_there_already", exists),
    ("diff_sets_requested_labels_and_always_the_one_of_the_uncompressed_layer", labels),
    ("diff_puts_its_blob_under_the_callers_lease_or_one_of_its_own", leases),
    ("a_hundred_failed_diffs_leave_nothing_behind", failures),
];

const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// A container that has stopped, and the request for what it did.
fn container(shop: &Shop) -> Request {
    shop.image();
    shop.run(10, &[3, 2, 1], work, |_| ());
    let lists = shop.lists(Release::V22);
    let right = lists.active(10, &[3, 2, 1], Mode::Directory);
    request(lists.view(10, &[3, 2, 1]), right, TAR_GZIP)
}

fn twice() {
    let shop = Shop::new();
    let mut request = container(&shop);
    // More than one block for every thread.
    let large: Vec<u8> = (0..6_000_000_u32).flat_map(|n| (n.wrapping_mul(n) >> 9).to_le_bytes()).collect();
    fs::write(shop.directory(10).join("fs/large"), large).unwrap();
    let mut blobs = BTreeMap::new();
    for media_type in [TAR, TAR_GZIP, TAR_ZSTD, EROFS, EROFS_ZSTD] {
        request.media_type = media_type.to_owned();
        blobs.insert(media_type, shop.diff_both(&request));
    }
    shop.daemon.signal(rustix::process::Signal::TERM);
    let Shop { node, mut daemon, .. } = shop;
    assert!(daemon.ended().success());
    // On one processor every step takes turns with every other.
    let mut command = std::process::Command::new("taskset");
    let inner = node.command();
    command.args(["-c", "0"]).arg(inner.get_program()).args(inner.get_args()).env_remove("RUST_LOG");
    let daemon = node.start_with(&mut command);
    for (media_type, blob) in blobs {
        request.media_type = media_type.to_owned();
        let reply = node.runtime.block_on(node.grpc().diff(&request));
        assert_eq!(Blob::of(&reply), blob);
    }
    daemon.stop();
}

fn epoch() {
    let shop = Shop::new();
    let mut request = container(&shop);
    request.media_type = TAR.to_owned();
    let epoch = 1_500_000_000;
    request.source_date_epoch = Some(Timestamp { seconds: epoch, nanoseconds: 0 });
    let first = shop.diff_both(&request);
    let bytes = shop.bytes(&first);
    let mut archive = tar::Archive::new(&bytes[..]);
    let mut whiteouts = 0;
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let time = i64::try_from(entry.header().mtime().unwrap()).unwrap();
        let name = entry.path().unwrap().display().to_string();
        if name.contains(".wh.") {
            whiteouts += 1;
            assert_eq!(time, 0, "{name}");
        } else {
            assert_eq!(time, epoch, "{name}: everything was made after the epoch");
        }
    }
    assert!(whiteouts > 0);
    // Work repeated at another time gives the same layer.
    let touched = fs::File::options().append(true).open(shop.directory(10).join("fs/etc/added")).unwrap();
    touched.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
    assert_eq!(shop.diff_both(&request), first);
    request.source_date_epoch = None;
    assert_ne!(shop.diff_both(&request), first);
    shop.daemon.stop();
}

fn half_written() {
    let shop = Shop::new();
    let mut request = container(&shop);
    request.reference = "layer-of-a-client".to_owned();
    shop.node.store.leave(NAMESPACE, &request.reference, b"what an earlier attempt got done");
    let blob = Blob::of(&shop.diff(&request));
    shop.bytes(&blob);
    assert!(shop.node.store.ingests().is_empty());
    let messages = shop.node.store.take_messages();
    assert!(messages.iter().all(|message| message.reference == request.reference), "{messages:?}");
    // Without a name it gets one that nobody else has, each time another.
    let mut references = Vec::new();
    for _ in 0..2 {
        request.reference.clear();
        shop.diff(&request);
        references.push(shop.node.store.take_messages()[0].reference.clone());
    }
    assert!(!references[0].is_empty() && references[0] != references[1], "{references:?}");
    shop.daemon.stop();
}

fn exists() {
    let shop = Shop::new();
    let mut request = container(&shop);
    let blob = Blob::of(&shop.diff(&request));
    for media_type in [TAR, TAR_GZIP] {
        request.media_type = media_type.to_owned();
        let blob = if media_type == TAR { Blob::of(&shop.diff(&request)) } else { blob.clone() };
        shop.node.store.label(NAMESPACE, &blob.digest, &[("somebody", "else's")]);
        request.labels = BTreeMap::from([("wanted".to_owned(), "by the client".to_owned())]);
        assert_eq!(Blob::of(&shop.diff(&request)), blob);
        // Looks at the label of the uncompressed layer as well.
        shop.bytes(&blob);
        let labels = shop.node.store.blob(NAMESPACE, &blob.digest).unwrap().labels;
        assert_eq!(labels["wanted"], "by the client");
        assert_eq!(labels["somebody"], "else's");
    }
    shop.daemon.stop();
}

fn labels() {
    let shop = Shop::new();
    let mut request = container(&shop);
    for media_type in [TAR, TAR_GZIP, TAR_ZSTD, EROFS, EROFS_ZSTD] {
        request.media_type = media_type.to_owned();
        request.labels = BTreeMap::from([
            ("containerd.io/distribution.source.x".to_owned(), "y".to_owned()),
            // Not for the client to say.
            (UNCOMPRESSED.to_owned(), "sha256:0".to_owned()),
        ]);
        let blob = Blob::of(&shop.diff(&request));
        shop.bytes(&blob);
        let labels = shop.node.store.blob(NAMESPACE, &blob.digest).unwrap().labels;
        assert_eq!(labels.len(), 2, "{labels:?}");
        assert_eq!(labels["containerd.io/distribution.source.x"], "y");
    }
    shop.daemon.stop();
}

fn leases() {
    let shop = Shop::with("\n[diff]\nlease_seconds = 600");
    let request = container(&shop);
    let store = &shop.node.store;
    // Without a lease of the caller's: one that ends by itself.
    let blob = Blob::of(&shop.diff(&request));
    let leases = store.leases();
    assert_eq!(leases.len(), 1, "{leases:?}");
    assert_eq!(leases[0].namespace, NAMESPACE);
    assert!(leases[0].labels.contains_key("containerd.io/gc.expire"), "{leases:?}");
    assert!(!leases[0].labels.contains_key("containerd.io/gc.root"), "it would stay for ever");
    let in_seconds = |seconds| SystemTime::now() + Duration::from_secs(seconds);
    store.collect(in_seconds(500));
    assert!(store.blob(NAMESPACE, &blob.digest).is_some(), "within the ten minutes");
    // The write may have taken an hour.
    store.collect(in_seconds(3600 + 700));
    assert!(store.blob(NAMESPACE, &blob.digest).is_none() && store.leases().is_empty());

    // With one: that, and no other.
    store.add_lease(NAMESPACE, "of-the-client");
    let under = |lease| shop.node.runtime.block_on(shop.node.grpc().diff_under(&request, Some(lease)));
    assert_eq!(Blob::of(&under("of-the-client")), blob);
    let ids: Vec<_> = store.leases().into_iter().map(|lease| lease.id).collect();
    assert_eq!(ids, ["of-the-client"]);
    store.collect(in_seconds(700));
    assert!(store.blob(NAMESPACE, &blob.digest).is_some());
    store.delete_lease(NAMESPACE, "of-the-client");
    store.collect(in_seconds(0));
    assert!(store.blob(NAMESPACE, &blob.digest).is_none());

    // One that is gone already is as good as none.
    assert_eq!(Blob::of(&under("of-the-client")), blob);
    store.collect(in_seconds(500));
    assert!(store.blob(NAMESPACE, &blob.digest).is_some());
    shop.daemon.stop();
}

fn failures() {
    let shop = Shop::new();
    let good = container(&shop);
    let lists = shop.lists(Release::V22);
    let mut elsewhere = good.clone();
    elsewhere.right = lists.active(99, &[3, 2, 1], Mode::Directory);
    // A directory that was renamed where renames are recorded: not a layer by itself.
    shop.run(11, &[1], |root| fs::create_dir(root.join("moved")).unwrap(), |_| ());
    let moved = shop.directory(11).join("fs/moved");
    rustix::fs::lsetxattr(moved, "trusted.overlay.redirect", b"old", rustix::fs::XattrFlags::empty())
        .unwrap();
    let mut incomplete = good.clone();
    incomplete.left = lists.view(10, &[1]);
    incomplete.right = lists.active(11, &[1], Mode::Directory);
    let mut unknown = good.clone();
    unknown.media_type = "x/y".to_owned();
    Blob::of(&shop.diff(&good));
    shop.node.store.collect(SystemTime::now() + Duration::from_secs(7200));
    let (grpc, ttrpc) = (shop.node.grpc(), shop.node.ttrpc());
    let mut warm = (0, 0, 0);
    let count = std::env::var("PLYWOOD_TEST_FAILURES").map_or(100, |text| text.parse::<usize>().unwrap());
    for number in 0..count {
        let (request, fault, codes) = match number % 6 {
            0 => (&elsewhere, None, &[9][..]),
            1 => (&unknown, None, &[12][..]),
            2 => (&incomplete, None, &[9][..]),
            3 => (&good, Some(WriteFault::Full(1)), &[8, 14][..]),
            4 => (&good, Some(WriteFault::Fail(1, tonic::Code::Internal, "on purpose")), &[13, 14][..]),
            _ => (&good, Some(WriteFault::Disconnect(1)), &[14][..]),
        };
        shop.node.store.write_fault(fault);
        let reply = shop.node.runtime.block_on(async {
            if number % 2 == 0 { grpc.clone().diff(request).await } else { ttrpc.diff(request).await }
        });
        let (code, reason) = reply.code_and_reason();
        assert!(codes.contains(&code) && !reason.is_empty(), "{number}: {reply:?}");
        if number == 50 {
            warm = shop.daemon.size();
        }
    }
    shop.node.store.write_fault(None);
    let store = &shop.node.store;
    // Taking things back may outlive the reply.
    until("nothing is left", SOON, || {
        store.ingests().is_empty() && store.leases().is_empty() && store.active_writes() == 0
    });
    let (descriptors, threads, resident) = shop.daemon.size();
    assert!(descriptors <= warm.0 + 2 && threads <= warm.1 + 1, "{descriptors} {threads}, at 50: {warm:?}");
    println!("{count} failures: {resident} bytes, after 50 {}", warm.2);
    assert!(resident <= warm.2 + (16 << 20), "{resident} bytes, after 50 {}", warm.2);
    shop.bytes(&Blob::of(&shop.diff(&good)));
    shop.daemon.stop();
}
