//! Layers that are applied, and requests that are somebody else's.

use std::fs;

use plywood::{digest::Digest, snapshot::Mount};

use super::harness::*;

pub const TESTS: &[Test] = &[
    ("both_wires_apply_layers_and_tell_about_it", both_wires),
    ("the_same_layer_gives_the_same_bytes_whichever_way_it_comes", same_bytes),
    ("blobs_are_read_from_the_stores_directory_within_the_sandbox", direct_content),
    ("a_store_elsewhere_is_read_over_grpc", store_elsewhere),
    ("an_existing_layer_is_replaced_and_a_link_is_not_followed", replaced),
    ("what_is_not_ours_is_left_to_the_next_differ_untouched", not_ours),
];

fn both_wires() {
    let node = Node::new();
    let daemon = node.start();
    let tar = archive(3, 10_000);
    let mut request = node.request_for(7, &gzip(&tar));
    request.sync_fs = true;
    assert_eq!(node.apply(&request), Reply::of_tar(&tar));
    assert_published(&node.root().join("snapshots/7"));
    // A plain and a zstd layer, mislabelled: the bytes decide.
    let zstd = zstd::encode_all(tar.as_slice(), 1).unwrap();
    let digest = node.store.add(NAMESPACE, zstd.as_slice());
    let request = node.request(8, "application/vnd.docker.image.rootfs.diff.tar.gzip", &digest, zstd.len());
    assert_eq!(node.runtime.block_on(node.ttrpc().apply(&request)), Reply::of_tar(&tar));
    assert_published(&node.root().join("snapshots/8"));

    let log = daemon.log();
    let line =
        log.lines().find(|line| line.contains("plywood::request") && line.contains("wire=\"grpc\"")).unwrap();
    for field in [
        "method=\"Apply\"",
        "namespace=\"default\"",
        "media_type=\"application/vnd.oci.image.layer.v1.tar+gzip\"",
        "snapshot=\"7\"",
        "code=\"ok\"",
        "coding=\"gzip\"",
        &format!("diff_id=\"{}\"", Digest::sha256(&tar)),
        &format!("bytes_out={}", tar.len()),
        "nodes=5",
        "peer_uid=0",
        &format!("peer_pid={}", std::process::id()),
        "queued_ms=",
        "duration_ms=",
    ] {
        assert!(line.contains(field), "{field} not in {line}");
    }
    let metrics = node.metrics();
    for wire in ["grpc", "ttrpc"] {
        let count = format!(
            "plywood_requests_total{{method=\"Apply\",wire=\"{wire}\",layer=\"tar\",code=\"ok\",reason=\"\"}} 1"
        );
        assert!(metrics.contains(&count), "{metrics}");
    }
    daemon.stop();
}

fn same_bytes() {
    let node = Node::new();
    let daemon = node.start();
    let tar = archive(20, 3000);
    let plain = "application/vnd.oci.image.layer.v1.tar";
    let mut images = Vec::new();
    for id in [1, 2, 3] {
        let digest = node.store.add(NAMESPACE, tar.as_slice());
        let request = node.request(id, plain, &digest, tar.len());
        assert_eq!(node.apply(&request), Reply::of_tar(&tar));
        images.push(fs::read(node.root().join(format!("snapshots/{id}/layer.erofs"))).unwrap());
    }
    assert!(images.windows(2).all(|pair| pair[0] == pair[1]));
    daemon.stop();
}

fn direct_content() {
    let node = Node::new();
    let tar = archive(3, 100_000);
    let blob = gzip(&tar);
    let request = node.request_for(1, &blob);
    let content = node.scratch.path().join("io.containerd.content.v1.content");
    place(&content, &request.diff.digest, &blob);
    node.store.export_root("content", &content);
    let daemon = node.start();
    assert_eq!(node.apply(&request), Reply::of_tar(&tar));
    let methods: Vec<_> = node.store.take_seen().into_iter().map(|seen| seen.method).collect();
    assert!(methods.contains(&"info") && !methods.contains(&"read"), "{methods:?}");
    daemon.stop();
}

fn store_elsewhere() {
    let node = Node::new();
    let tar = archive(3, 1000);
    let blob = gzip(&tar);
    let request = node.request_for(1, &blob);
    // Not beside the snapshots: the sandbox keeps it closed.
    let content = node.scratch.path().join("elsewhere");
    place(&content, &request.diff.digest, &blob);
    node.store.export_root("content", &content);
    let daemon = node.start();
    assert_eq!(node.apply(&request), Reply::of_tar(&tar));
    let methods: Vec<_> = node.store.take_seen().into_iter().map(|seen| seen.method).collect();
    let confined = daemon.log().contains("landlock=\"full\"");
    assert_eq!(methods.contains(&"read"), confined, "{methods:?}");
    daemon.stop();
}

fn place(content: &std::path::Path, digest: &Digest, blob: &[u8]) {
    let blobs = content.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(digest.hex()), blob).unwrap();
}

fn replaced() {
    let node = Node::new();
    let daemon = node.start();
    let tar = archive(1, 100);
    let request = node.request_for(1, &gzip(&tar));
    let directory = node.root().join("snapshots/1");
    let shared = node.scratch.path().join("shared.erofs");
    fs::write(&shared, "everybody's").unwrap();
    std::os::unix::fs::symlink(&shared, directory.join("layer.erofs")).unwrap();
    for _ in 0..2 {
        assert_eq!(node.apply(&request), Reply::of_tar(&tar));
        assert_published(&directory);
    }
    assert_eq!(fs::read(&shared).unwrap(), b"everybody's");
    daemon.stop();
}

fn not_ours() {
    let node = Node::new();
    let daemon = node.start();
    let blob = gzip(&archive(1, 100));
    let request = node.request_for(1, &blob);
    let other =
        Mount { source: "/var/lib/containerd/other/snapshots/1/fs".into(), ..request.mounts[0].clone() };
    let unmarked = node.snapshot(2);
    fs::remove_file(unmarked.join(".erofslayer")).unwrap();
    let unmarked = Mount { source: unmarked.join("fs").display().to_string(), ..request.mounts[0].clone() };
    let mut strange = request.clone();
    strange.diff.media_type = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted".to_owned();
    let none = plywood::apply::Request { mounts: Vec::new(), ..request.clone() };
    let with = |mount: Mount| plywood::apply::Request { mounts: vec![mount], ..request.clone() };
    for (request, reason) in [
        (with(other), "mount.outside-root"),
        (with(unmarked), "mount.no-marker"),
        (strange.clone(), "apply.media-type"),
    ] {
        let reply = node.apply(&request);
        assert_eq!(reply.code_and_reason(), (12, reason), "{reply:?}");
        // The user sees this text, so it names what was asked for.
        assert!(reply.message().contains(&request.diff.digest.to_string()), "{reply:?}");
        assert!(reply.message().contains(&request.diff.media_type), "{reply:?}");
    }
    // Another differ might crash on it, whatever the type.
    let nowhere = plywood::apply::Request { mounts: Vec::new(), ..strange };
    for request in [none, nowhere] {
        let reply = node.apply(&request);
        assert_eq!(reply.code_and_reason(), (3, "mount.empty"), "{reply:?}");
    }
    assert!(node.store.take_seen().is_empty(), "nothing was read");
    assert_eq!(names(&node.root().join("snapshots/1")), EMPTY);
    assert_eq!(names(&node.root().join("snapshots/2")), ["fs", "work"]);
    daemon.stop();
}
