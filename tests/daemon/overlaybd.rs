//! Snapshots of devices: layers into them, layers out of them, and what is refused with which status.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    path::PathBuf,
};

use containerd_client::{
    services::v1::DiffRequest,
    types::{Descriptor, Mount},
};
use rustix::fs::{CWD, FileType, Mode};
use testkit::{
    containerd::{Snapshot, WriteFault},
    host,
    images::Mounted,
    mounts::Overlay,
    tree::{self, Kind},
};
use tonic::{Request, Status};

use super::{diff::shop, harness::*};

pub const TESTS: &[Test] = &[
    ("every_kind_of_layer_is_published_and_answered_for", published),
    ("published_ext4_is_denied_where_the_configuration_forbids_it", published_ext4),
    ("what_is_wrong_below_a_layer_has_a_status_of_its_own_and_nothing_is_published", below),
    ("layers_below_that_the_mounts_hide_are_found_without_attaching_a_device", hidden),
    ("layers_below_that_nobody_knows_are_refused_before_a_byte_is_read", unknown),
    ("a_diff_of_a_damaged_device_has_its_own_status_and_leaves_no_blob", diff_refusals),
    ("a_diff_of_a_device_that_the_store_refuses_leaves_nothing", diff_store),
];

pub const MOUNTED: &[Test] = &[
    ("a_mounted_device_below_a_container_gives_the_same_layers", mounted_device),
    ("a_container_that_runs_on_a_device_becomes_a_layer_with_its_tree", running_container),
];

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const VERSION: &str = "containerd.io/snapshot/overlaybd/version";
const BLOB_DIGEST: &str = "containerd.io/snapshot/overlaybd/blob-digest";
const TARGET: &str = "containerd.io/snapshot/overlaybd/turbo-oci/target-digest";
const CONVERT: &str = "containerd.io/snapshot/overlaybd/convert2turbo-oci";
const WRAPPED: &[u8] = include_bytes!("../fixtures/overlaybd/tarwrap/obd-commit-t.tar");
const PUBLISHED: &[u8] = include_bytes!("../fixtures/overlaybd/turbo/turboOCIv1.tar.gz");
const TOP: &[u8] = include_bytes!("../fixtures/overlaybd/turbo/top.tar");

fn node(settings: &str) -> Node {
    Node::with(&format!("[overlaybd]\nvirtual_gib = 1\n{settings}"))
}

fn device_names(node: &Node, id: u32) -> Vec<String> {
    node.device_files(id).into_iter().map(|(name, _)| name).collect()
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>) -> (i32, String) {
    let reply = Reply::refused(&outcome.unwrap_err());
    let (code, reason) = reply.code_and_reason();
    (code, reason.to_owned())
}

fn published() {
    let node = node("layers = \"turbo\"\nkernel_index = true");
    let daemon = node.start();
    node.lowest_device(9);
    let plain = |blob: &[u8]| {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(blob), &mut bytes).unwrap();
        bytes
    };
    let turbo: &[&str] = &["fs/.turbo.ociv1", "fs/erofs.fs.meta", "fs/gzip.meta"];
    let digest = ("containerd.io/snapshot/overlaybd/blob-digest", "sha256:x");
    for (id, media_type, annotations, blob, tar, names) in [
        (1, TAR, &[digest][..], WRAPPED.to_vec(), WRAPPED.to_vec(), &["fs/overlaybd.commit"][..]),
        (2, GZIP, &[digest, (TARGET, "sha256:y")], PUBLISHED.to_vec(), plain(PUBLISHED), turbo),
        (3, GZIP, &[], gzip(TOP), TOP.to_vec(), &["fs/overlaybd.commit", "layer.tar", "layer.tar.erofs"]),
    ] {
        node.device_snapshot(id);
        let mounts = if id == 3 { node.device_overlay(3, &["9/fs"]) } else { node.device_bind(id, "rw") };
        let request = node.device_request(mounts, media_type, annotations, &blob);
        for _ in 0..2 {
            assert_eq!(node.apply_over_grpc(&request).unwrap(), Node::applied(&tar), "{names:?}");
            assert_eq!(device_names(&node, id), names);
        }
        for name in names {
            let found = fs::symlink_metadata(node.device(id).join(name)).unwrap();
            assert_eq!((found.mode() & 0o7777, found.uid()), (0o644, 0), "{name}");
        }
    }
    let metrics = node.metrics();
    for layer in ["overlaybd", "turbo", "tar"] {
        let count = format!("layer=\"{layer}\",code=\"ok\",reason=\"\"}} 2");
        assert!(metrics.contains(&count), "{count} not in {metrics}");
    }
    daemon.stop();
}

fn published_ext4() {
    let node = node("published_ext4 = false");
    let daemon = node.start();
    node.device_snapshot(1);
    let apply = |media_type, annotations: &[(&str, &str)], blob| {
        node.apply_over_grpc(&node.device_request(node.device_bind(1, "rw"), media_type, annotations, blob))
    };
    // A native layer with an ext4 file system, and a turboOCI layer with EROFS.
    let ext4 = apply(TAR, &[(BLOB_DIGEST, "sha256:x")], WRAPPED);
    assert_eq!(refused(ext4), (7, "overlaybd.published-ext4".to_owned()));
    assert!(device_names(&node, 1).is_empty());
    apply(GZIP, &[(BLOB_DIGEST, "sha256:x"), (TARGET, "sha256:y")], PUBLISHED).unwrap();
    assert_eq!(device_names(&node, 1), ["fs/.turbo.ociv1", "fs/erofs.fs.meta", "fs/gzip.meta"]);
    daemon.stop();
}

type Damage = fn(&Node);

fn edit(node: &Node, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
    let path = node.device(2).join(name);
    let mut bytes = fs::read(&path).unwrap();
    edit(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn remove(node: &Node, name: &str) {
    fs::remove_file(node.device(2).join(name)).unwrap();
}

/// Damages of the device in snapshot 2, and the status that requests which read it get.
const DAMAGES: [(&str, Damage, i32, &str); 15] = [
    ("no layer", |node| remove(node, "fs/overlaybd.commit"), 5, "overlaybd.lower.missing"),
    ("no archive", |node| remove(node, "layer.tar"), 5, "overlaybd.lower.missing"),
    (
        "a layer that is in a registry",
        |node| {
            node.describe_device(2, r#"{"repoBlobUrl": "https://r/v2/x/blobs", "lowers": [{"digest": "sha256:aa", "size": 5, "dir": ""}]}"#)
        },
        5,
        "overlaybd.lower.missing",
    ),
    (
        "a flipped bit in what the layer says of the file system",
        |node| edit(node, "fs/overlaybd.commit", |bytes| bytes[650] ^= 1),
        15,
        "zfile.block.checksum",
    ),
    (
        "a flipped bit",
        |node| edit(node, "fs/overlaybd.commit", |bytes| bytes[600] ^= 1),
        15,
        "zfile.block.checksum",
    ),
    (
        "a short layer",
        |node| edit(node, "fs/overlaybd.commit", |bytes| bytes.truncate(600)),
        15,
        "zfile.truncated",
    ),
    (
        "a short archive",
        |node| edit(node, "layer.tar", |bytes| bytes.truncate(2000)),
        15,
        "overlaybd.target.size",
    ),
    (
        "a file of the host",
        |node| node.describe_device(2, r#"{"lowers": [{"file": "/etc/passwd"}]}"#),
        7,
        "mount.foreign",
    ),
    (
        "a directory of the host",
        |node| node.describe_device(2, r#"{"lowers": [{"dir": "/etc"}]}"#),
        7,
        "mount.foreign",
    ),
    (
        "a result file of the host",
        |node| {
            let config = fs::read_to_string(node.device(2).join("block/config.v1.json")).unwrap();
            node.describe_device(2, &config.replacen('{', r#"{"resultFile": "/etc/passwd", "#, 1));
        },
        7,
        "mount.foreign",
    ),
    (
        "a link to a file of the host",
        |node| {
            remove(node, "fs/overlaybd.commit");
            symlink("/etc/passwd", node.device(2).join("fs/overlaybd.commit")).unwrap();
        },
        7,
        "mount.link",
    ),
    (
        "a pipe",
        |node| {
            remove(node, "layer.tar");
            let path = node.device(2).join("layer.tar");
            rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        },
        7,
        "mount.file",
    ),
    (
        "its own archive",
        |node| {
            remove(node, "layer.tar");
            let at = |name| node.device(2).join(name);
            fs::hard_link(at("fs/overlaybd.commit"), at("layer.tar")).unwrap();
        },
        3,
        "overlaybd.config.cycle",
    ),
    ("no description", |node| node.describe_device(2, "{"), 3, "overlaybd.config.json"),
    (
        "too many layers",
        |node| node.describe_device(2, &format!(r#"{{"lowers": [{}]}}"#, vec!["{}"; 256].join(","))),
        8,
        "overlaybd.config.lowers",
    ),
];

fn below() {
    let node = node("layers = \"native\"");
    let daemon = node.start();
    node.device_snapshot(1);
    node.lowest_device(2);
    let request = node.device_request(node.device_overlay(1, &["2/fs"]), TAR, &[], TOP);
    let good = fs::read(node.device(2).join("block/config.v1.json")).unwrap();
    for (case, damage, code, reason) in DAMAGES {
        damage(&node);
        let outcome = node.apply_over_grpc(&request);
        let message = format!("{case}: {outcome:?}");
        assert_eq!(refused(outcome), (code, reason.to_owned()), "{message}");
        // Whose fault it is can be read.
        assert!(message.contains("snapshots/2"), "{message}");
        assert_eq!(device_names(&node, 1), [""; 0], "{case}");
        fs::remove_dir_all(node.device(2)).unwrap();
        node.lowest_device(2);
        fs::write(node.device(2).join("block/config.v1.json"), &good).unwrap();
    }
    assert_eq!(node.apply_over_grpc(&request).unwrap(), Node::applied(TOP));
    assert_eq!(device_names(&node, 1), ["fs/overlaybd.commit"]);
    daemon.stop();
}

/// A snapshot on record whose layer is to be converted.
fn labelled(name: &str, parent: &str, mounts: Option<Vec<Mount>>) -> Snapshot {
    Snapshot {
        name: name.to_owned(),
        parent: parent.to_owned(),
        labels: HashMap::from([(CONVERT.to_owned(), String::new())]),
        is_committed: false,
        mounts,
    }
}

fn committed(name: &str, mounts: Option<Vec<Mount>>) -> Snapshot {
    Snapshot { name: name.to_owned(), is_committed: true, mounts, ..Snapshot::default() }
}

fn asked(node: &Node) -> Vec<&'static str> {
    let seen = node.store.take_seen().into_iter().map(|seen| seen.method);
    seen.filter(|method| method.starts_with("snapshots.")).collect()
}

fn hidden() {
    let node = node("");
    let daemon = node.start();
    node.lowest_device(2);
    node.device_snapshot(1);
    node.device_snapshot(3);
    node.store.add_snapshot(committed("parent", Some(node.device_bind(2, "ro"))));
    // Asked for them, the snapshotter would attach the device of the layer below, if it can.
    node.store.add_snapshot(labelled("extract", "parent", None));
    // A container is none of them, and is not asked for either.
    node.store.add_snapshot(Snapshot { labels: HashMap::new(), ..labelled("container", "parent", None) });
    let request = node.device_request(node.device_bind(1, "rw"), TAR, &[], TOP);
    asked(&node);
    assert_eq!(node.apply_over_grpc(&request).unwrap(), Node::applied(TOP));
    assert_eq!(asked(&node), ["snapshots.list", "snapshots.view", "snapshots.remove"]);
    assert!(node.store.views().is_empty());
    let first = node.device_files(1);
    assert_eq!(device_names(&node, 1), ["fs/overlaybd.commit", "layer.tar"]);

    // Two at a time: now their mounts tell which is which, and those that cannot be had do not matter.
    let on_device = |id| Some(node.device_overlay(id, &["2/block/mountpoint"]));
    node.store.add_snapshot(committed("another", None));
    node.store.add_snapshot(labelled("broken", "another", None));
    node.store.add_snapshot(labelled("other", "another", on_device(3)));
    node.store.add_snapshot(labelled("extract", "parent", on_device(1)));
    assert_eq!(node.apply_over_grpc(&request).unwrap(), Node::applied(TOP));
    assert_eq!(node.device_files(1), first);

    // A lowest one is known by its mounts alone.
    let lowest =
        Snapshot { parent: String::new(), ..labelled("lowest", "", Some(node.device_bind(3, "rw"))) };
    node.store.add_snapshot(lowest);
    asked(&node);
    let request = node.device_request(node.device_bind(3, "rw"), TAR, &[], TOP);
    assert_eq!(node.apply_over_grpc(&request).unwrap(), Node::applied(TOP));
    assert_eq!(asked(&node), ["snapshots.list", "snapshots.mounts"]);
    assert_ne!(node.device_files(3), first, "nothing is below");
    daemon.stop();
}

fn unknown() {
    let node = node("layers = \"turbo\"");
    let daemon = node.start();
    node.device_snapshot(1);
    node.lowest_device(2);
    let request = node.device_request(node.device_bind(1, "rw"), TAR, &[], TOP);
    let nothing = |code, reason: &str| {
        let outcome = node.apply_over_grpc(&request);
        assert_eq!(refused(outcome), (code, reason.to_owned()));
        assert_eq!(device_names(&node, 1), [""; 0]);
        assert!(node.store.take_seen().iter().all(|seen| seen.method != "read"));
        assert!(node.store.views().is_empty());
    };
    nothing(9, "overlaybd.parent");
    // The view of the layer below fails.
    node.store.add_snapshot(labelled("extract", "parent", None));
    node.store.add_snapshot(committed("parent", None));
    nothing(14, "store.refused");
    // It is gone.
    node.store.add_snapshot(labelled("extract", "removed", None));
    nothing(5, "store.not-found");
    // Another differ unpacked it: this layer is for that one as well.
    node.device_snapshot(4);
    node.store.add_snapshot(committed("removed", Some(node.device_bind(4, "ro"))));
    nothing(12, "mount.no-device");
    // It is another snapshotter's.
    let elsewhere = Mount {
        r#type: "bind".to_owned(),
        source: "/elsewhere/snapshots/1/fs".to_owned(),
        ..Mount::default()
    };
    node.store.add_snapshot(committed("removed", Some(vec![elsewhere])));
    nothing(12, "mount.outside-root");
    daemon.stop();
}

fn diff(node: &Node, left: Vec<Mount>, right: Vec<Mount>, is_layer: bool) -> Result<Descriptor, Status> {
    let labels =
        if is_layer { HashMap::from([(VERSION.to_owned(), "0.1.0".to_owned())]) } else { HashMap::new() };
    let message = DiffRequest { left, right, media_type: TAR.to_owned(), labels, ..DiffRequest::default() };
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", NAMESPACE.parse().unwrap());
    let reply = node.runtime.block_on(node.diff_client().diff(request))?;
    Ok(reply.into_inner().diff.unwrap())
}

/// A container above the device in snapshot 2, in snapshot 3.
fn container(node: &Node) {
    node.lowest_device(2);
    let upper = node.device_snapshot(3).join("fs");
    fs::write(upper.join("new"), vec![7; 50_000]).unwrap();
    rustix::fs::mknodat(CWD, upper.join("etc"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

fn nothing_is_left(node: &Node) {
    assert!(node.store.ingests().is_empty(), "{:?}", node.store.ingests());
    assert!(node.store.leases().is_empty(), "{:?}", node.store.leases());
}

fn diff_refusals() {
    let node = node("");
    let daemon = node.start();
    container(&node);
    for is_layer in [true, false] {
        let sides = |node: &Node| (node.device_bind(2, "ro"), node.device_overlay(3, &["2/fs"]));
        for (case, damage, code, reason) in DAMAGES {
            damage(&node);
            let (left, right) = sides(&node);
            let outcome = diff(&node, left, right, is_layer);
            let message = format!("{case}: {outcome:?}");
            assert_eq!(refused(outcome), (code, reason.to_owned()), "{message}");
            nothing_is_left(&node);
            fs::remove_dir_all(node.device(2)).unwrap();
            node.lowest_device(2);
        }
        let (left, right) = sides(&node);
        diff(&node, left, right, is_layer).unwrap();
        for lease in node.store.leases() {
            node.store.delete_lease(&lease.namespace, &lease.id);
        }
    }
    let outcome = diff(&node, Vec::new(), node.device_overlay(3, &["2/fs"]), true);
    assert_eq!(refused(outcome), (9, "diff.device".to_owned()));
    // A writable device whose index is gone.
    let mut right = node.device_bind(3, "rw");
    right[0].source = node.device(3).join("block/mountpoint").display().to_string();
    fs::write(node.device(3).join("block/writable_data"), "").unwrap();
    assert_eq!(refused(diff(&node, Vec::new(), right, false)), (9, "mount.missing".to_owned()));
    nothing_is_left(&node);
    daemon.stop();
}

fn diff_store() {
    let node = node("");
    let daemon = node.start();
    container(&node);
    let sides = || (node.device_bind(2, "ro"), node.device_overlay(3, &["2/fs"]));
    node.store.write_fault(WriteFault::Full(1));
    let (left, right) = sides();
    assert_eq!(refused(diff(&node, left, right, true)).0, 8);
    nothing_is_left(&node);
    node.store.write_fault(None);
    let (left, right) = sides();
    let made = diff(&node, left, right, true).unwrap();
    assert_eq!(made.annotations.get(BLOB_DIGEST), Some(&made.digest));
    daemon.stop();
}

/// Mounts the device of a committed snapshot on the new directory `at`, flattened.
fn mount_device(node: &Node, id: u32, at: PathBuf) -> Mounted {
    let flat = node.scratch.path().join(format!("flat-{id}"));
    let mut flatten = host::plywood();
    flatten.args(["overlaybd", "flatten", "--config"]).arg(node.device(id).join("block/config.v1.json"));
    host::run(flatten.arg("-o").arg(&flat)).unwrap();
    Mounted::new(&flat, at).unwrap()
}

/// Does what the snapshotter does when the mounts of a container or a view are asked for.
fn attach(node: &Node, id: u32) -> Mounted {
    let point = node.device(id).join("block/mountpoint");
    fs::remove_dir(&point).unwrap();
    mount_device(node, id, point)
}

/// Mounts of a view of an attached device.
fn view(node: &Node, id: u32) -> Vec<Mount> {
    let mut mounts = node.device_bind(id, "ro");
    mounts[0].source = node.device(id).join("block/mountpoint").display().to_string();
    mounts
}

fn mounted_device() {
    let node = node("layers = \"native\"");
    let daemon = node.start();
    container(&node);
    let idle = [true, false].map(|is_layer| {
        diff(&node, node.device_bind(2, "ro"), node.device_overlay(3, &["2/fs"]), is_layer).unwrap()
    });
    let attached = attach(&node, 2);
    let above = || node.device_overlay(3, &["2/block/mountpoint"]);
    for (is_layer, want) in [true, false].into_iter().zip(&idle) {
        assert_eq!(diff(&node, view(&node, 2), above(), is_layer).unwrap().digest, want.digest, "{is_layer}");
    }
    // The layers of an image do not change because it is in use.
    let layer = diff(&node, Vec::new(), view(&node, 2), true).unwrap();
    assert!(layer.annotations.contains_key(BLOB_DIGEST));
    // The snapshotter takes a client that does not say that it unpacks a layer for a container.
    node.device_snapshot(4);
    let mounts = node.device_overlay(4, &["2/block/mountpoint"]);
    let request = node.device_request(mounts, TAR, &[], TOP);
    assert_eq!(node.apply_over_grpc(&request).unwrap(), Node::applied(TOP));
    assert_eq!(device_names(&node, 4), ["fs/overlaybd.commit"]);
    drop(attached);
    daemon.stop();
}

fn running_container() {
    let node = node("");
    let daemon = node.start();
    node.lowest_device(2);
    let attached = attach(&node, 2);
    let directory = node.device_snapshot(3);
    let upper = [directory.join("fs"), directory.join("work")];
    let merged = node.scratch.path().join("merged");
    let overlay = Overlay::new(merged, &[attached.path()], Some([&upper[0], &upper[1]])).unwrap();
    shop::work(overlay.path());
    for name in ["app", "srv/note.txt"] {
        let path = overlay.path().join(name);
        let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
    }
    fs::create_dir(overlay.path().join("app")).unwrap();
    let want = shop::scan(overlay.path());
    let made = diff(&node, view(&node, 2), node.device_overlay(3, &["2/block/mountpoint"]), true).unwrap();
    drop(overlay);

    node.device_snapshot(5);
    let blob = node.store.blob(NAMESPACE, &made.digest).unwrap().bytes;
    let annotations: Vec<_> =
        made.annotations.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let request =
        node.device_request(node.device_overlay(5, &["2/block/mountpoint"]), TAR, &annotations, &blob);
    assert_eq!(node.apply_over_grpc(&request).unwrap(), Node::applied(&blob));
    node.commit_device(&[2, 5]);
    let mounted = mount_device(&node, 5, node.scratch.path().join("new"));
    let [want, found] = [want, shop::scan(mounted.path())].map(|mut tree| {
        tree.retain(|_, node| node.kind != Kind::Socket);
        // That of the root alone is no change.
        if let Some(root) = tree.get_mut(&b""[..]) {
            root.mtime = (0, 0);
        }
        tree::count_links(&mut tree);
        tree
    });
    tree::compare(&want, &found).unwrap_or_else(|failed| panic!("{}", failed.message().unwrap_or_default()));
    drop(mounted);
    drop(attached);
    daemon.stop();
}
