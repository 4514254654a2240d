//! `plywood unpack` into a containerd that takes parents at the commit, and whose answers a test decides.
//!
//! Layers are applied by a differ that writes nothing, or by the real daemon.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use testkit::{
    archive::digest,
    containerd::{Snapshotter, View},
    host,
    image::Image,
    random::noise,
};
use tonic::Status;

use super::harness::*;

pub const TESTS: &[Test] = &[
    ("sequential_and_parallel_runs_give_the_same_snapshots", same_both_ways),
    ("layers_are_applied_at_once_and_committed_from_the_lowest_up", at_once),
    ("twenty_layers_two_at_once_take_at_most_0_7_of_one_by_one", twenty),
    ("when_a_layer_fails_those_below_are_committed_and_no_key_stays", one_fails),
    ("of_several_failures_the_first_is_reported", several_fail),
    ("a_layer_that_is_not_what_the_image_says_is_never_committed", lies),
    ("a_key_that_is_taken_is_made_anew_three_times_at_most", taken_keys),
    ("a_client_that_was_faster_is_no_failure", raced),
    ("a_layer_that_the_snapshotter_has_is_committed_without_being_applied", staged),
    ("a_bind_mount_without_parent_is_an_overlay_for_the_differ", overlays),
    ("a_containerd_before_2_2_gets_one_layer_after_the_other", older),
    ("annotations_for_snapshotters_become_labels", annotated),
    ("an_interrupted_run_leaves_no_key", interrupted),
    ("a_run_waits_for_another_one_of_the_same_image", waits),
    ("progress_says_extracting_and_extracted", progress),
    ("our_own_daemon_reports_the_bytes_of_a_layer", bytes),
    ("layers_that_a_load_unpacked_are_there_for_unpack", loaded),
];

const NAME: &str = "example.test/app:1";

/// A tar with one file of its own.
fn tar_of(number: usize, extra: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let own = format!("dir/file-{number}");
    let data = format!("of layer {number}\n").repeat(500);
    for (name, data) in [(own.as_str(), data.as_bytes())].iter().chain(extra) {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, name, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn tars(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| tar_of(number, &[])).collect()
}

fn add_snapshotter(node: &Node, name: &str, rebases: bool, version: &str) {
    node.store.add_snapshotter(&Snapshotter { name, rebases, version, root: &node.root() });
}

/// A node with a snapshotter that takes parents at the commit.
fn rebasing() -> Node {
    let node = Node::new();
    add_snapshotter(&node, "erofs", true, "v2.3.4");
    node
}

fn image(node: &Node, tars: &[Vec<u8>]) -> Image {
    Image::record(node, NAME, &diff_ids(tars), &blobs(tars), "{}")
}

fn blobs(tars: &[Vec<u8>]) -> Vec<Vec<u8>> {
    tars.iter().map(|tar| gzip(tar)).collect()
}

fn diff_ids(tars: &[Vec<u8>]) -> Vec<String> {
    tars.iter().map(|tar| digest(tar)).collect()
}

fn command(node: &Node, arguments: &[&str]) -> Command {
    let mut command = host::plywood();
    command.args(arguments).arg("--address").arg(node.store.socket());
    command.env_remove("CONTAINERD_NAMESPACE").env_remove("CONTAINERD_SNAPSHOTTER");
    command
}

fn run(node: &Node, arguments: &[&str]) -> Output {
    command(node, &[&["unpack", NAME, "--json"], arguments].concat()).output().unwrap()
}

/// Unpacks. Returns which layers are new.
fn unpack(node: &Node, arguments: &[&str]) -> Vec<bool> {
    let output = run(node, &[&["--progress", "none"], arguments].concat());
    assert!(output.status.success(), "{output:?}");
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    object["layers"].as_array().unwrap().iter().map(|layer| layer["new"].as_bool().unwrap()).collect()
}

/// Unpacks in vain. Returns the reason id and the message.
fn refused(node: &Node, arguments: &[&str]) -> (String, String) {
    let output = run(node, &[&["--progress", "none"], arguments].concat());
    let object: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let text = |key: &str| object["error"][key].as_str().unwrap_or_default().to_owned();
    (text("reason"), text("message"))
}

/// Committed snapshots without their directories. No active one is there.
fn committed(node: &Node) -> BTreeMap<String, View> {
    let mut snapshots = node.store.snapshots();
    for (name, view) in &mut snapshots {
        assert!(view.is_committed, "{name} is left");
        view.directory.clear();
    }
    snapshots
}

/// Names of the committed snapshots, in the order of the image.
fn names_of(node: &Node, image: &Image) -> Vec<usize> {
    let committed = committed(node);
    assert!(committed.keys().all(|name| image.chain_ids.contains(name)), "{committed:?}");
    (0..image.chain_ids.len()).filter(|number| committed.contains_key(&image.chain_ids[*number])).collect()
}

fn same_both_ways() {
    let node = rebasing();
    let daemon = node.start();
    let mut tars = tars(6);
    tars[2] = tar_of(2, &[("dir/.wh.file-0", b""), ("gone/.wh..wh..opq", b"")]);
    tars.push(tars[1].clone());
    let image = image(&node, &tars);
    let socket = node.socket().display().to_string();
    let layers = |node: &Node| {
        let snapshots = node.store.snapshots();
        let file = |name: &String| fs::read(snapshots[name].directory.join("layer.erofs")).unwrap();
        image.chain_ids.iter().map(file).collect::<Vec<_>>()
    };
    let mut found = Vec::new();
    for parallel in ["1", "4"] {
        assert_eq!(unpack(&node, &["--differ", &socket, "--parallel", parallel]), [true; 7]);
        assert!(node.store.leases().is_empty());
        let labels = node.store.blob(NAMESPACE, &image.config).unwrap().labels;
        assert_eq!(labels["containerd.io/gc.ref.snapshot.erofs"], image.chain_ids[6]);
        for (blob, diff_id) in image.blobs.iter().zip(&image.diff_ids) {
            let labels = node.store.blob(NAMESPACE, blob).unwrap().labels;
            assert_eq!(labels["containerd.io/uncompressed"], *diff_id);
        }
        found.push((committed(&node), layers(&node)));
        node.store.forget_snapshots();
    }
    let (sequential, parallel) = (&found[0], &found[1]);
    assert_eq!(sequential.0, parallel.0);
    assert!(sequential.1 == parallel.1, "the images differ");
    for (number, chain_id) in image.chain_ids.iter().enumerate() {
        let view = &parallel.0[chain_id];
        let parent = number.checked_sub(1).map(|below| image.chain_ids[below].clone()).unwrap_or_default();
        assert_eq!(view.parent, parent, "layer {number}");
        let mut want = BTreeMap::from([
            ("containerd.io/snapshot.ref".to_owned(), chain_id.clone()),
            ("containerd.io/snapshot/diff-id".to_owned(), image.diff_ids[number].clone()),
        ]);
        if number > 0 {
            want.insert("containerd.io/snapshot/parent-chain-id".to_owned(), parent);
        }
        assert_eq!(view.labels, want);
    }
    daemon.stop();
}

fn at_once() {
    let node = rebasing();
    let image = image(&node, &tars(6));
    // The lowest is the last to be done.
    node.store.slow_down(&image.blobs[0], Duration::from_millis(600));
    node.store.slow_down(&image.blobs[1], Duration::from_millis(100));
    assert_eq!(unpack(&node, &["--parallel", "3"]), [true; 6]);
    assert_eq!(node.store.most_applied_at_once(), 3);
    assert_eq!(names_of(&node, &image), [0, 1, 2, 3, 4, 5]);
    let order =
        node.store.take_seen().into_iter().filter(|seen| ["prepare", "commit"].contains(&seen.method));
    let order: Vec<_> = order.map(|seen| seen.method).collect();
    assert_eq!(order, [["prepare"; 6], ["commit"; 6]].concat());
}

/// The differ takes the same time for each layer, and no processor: the rest is the command's own.
fn twenty() {
    let node = rebasing();
    let image = image(&node, &tars(20));
    for blob in &image.blobs {
        node.store.slow_down(blob, Duration::from_millis(50));
    }
    // The best of several: others may be at work.
    let mut best = [Duration::MAX; 2];
    for _ in 0..3 {
        for (best, parallel) in best.iter_mut().zip(["1", "2"]) {
            let begun = Instant::now();
            assert_eq!(unpack(&node, &["--parallel", parallel]), [true; 20]);
            *best = begun.elapsed().min(*best);
            node.store.forget_snapshots();
        }
    }
    let [one_by_one, at_once] = best.map(|best| best.as_secs_f64());
    let ratio = at_once / one_by_one;
    println!("20 layers of 50 ms one by one {one_by_one:.3} s, two at once {at_once:.3} s, ratio {ratio:.2}");
    assert!(ratio <= 0.7, "{ratio}");
}

fn one_fails() {
    for parallel in ["1", "3"] {
        let node = rebasing();
        let image = image(&node, &tars(5));
        node.store.slow_down(&image.blobs[0], Duration::from_millis(200));
        node.store.refuse(&image.blobs[2], Some(Status::data_loss("the archive is broken")));
        let arguments = ["--resume", "--parallel", parallel];
        let (reason, message) = refused(&node, &arguments);
        assert_eq!(reason, "unpack.apply");
        let place = format!("layer 3 of 5: {}", image.blobs[2]);
        assert!(message.contains(&place) && message.contains("the archive is broken"), "{message}");
        assert_eq!(names_of(&node, &image), [0, 1], "--parallel {parallel}");
        let leases = node.store.leases();
        assert_eq!(leases.len(), 1);
        let kept = leases[0].resources.iter().filter(|(kind, _)| kind == "snapshots/erofs").count();
        assert_eq!(kept, 2, "{leases:?}");
        node.store.refuse(&image.blobs[2], None);
        assert_eq!(unpack(&node, &arguments), [false, false, true, true, true]);
        assert!(node.store.leases().is_empty());
        assert_eq!(names_of(&node, &image), [0, 1, 2, 3, 4]);
        // Once more, there is nothing to do.
        let before = node.store.applied().len();
        node.store.take_seen();
        assert_eq!(unpack(&node, &arguments), [false; 5]);
        assert_eq!(node.store.applied().len(), before);
        let touched =
            node.store.take_seen().into_iter().any(|seen| ["prepare", "commit"].contains(&seen.method));
        assert!(!touched);
    }
}

fn several_fail() {
    let node = rebasing();
    let image = image(&node, &tars(4));
    node.store.slow_down(&image.blobs[1], Duration::from_millis(300));
    node.store.refuse(&image.blobs[1], Some(Status::data_loss("second")));
    node.store.refuse(&image.blobs[3], Some(Status::data_loss("first")));
    let (_, message) = refused(&node, &["--resume", "--parallel", "4"]);
    assert!(message.contains("layer 4 of 4") && message.contains("first"), "{message}");
    assert_eq!(names_of(&node, &image), [0]);
}

fn lies() {
    for parallel in ["1", "3"] {
        let node = rebasing();
        let tars = tars(3);
        let mut wrong = diff_ids(&tars);
        wrong[1] = digest(b"something else");
        let image = Image::record(&node, NAME, &wrong, &blobs(&tars), "{}");
        let (reason, message) = refused(&node, &["--parallel", parallel]);
        assert_eq!(reason, "image.digest");
        for part in ["layer 2 of 3", &image.blobs[1], &image.diff_ids[1], &digest(&tars[1])] {
            assert!(message.contains(part), "{message}");
        }
        assert!(names_of(&node, &image).iter().all(|number| *number == 0));
        assert!(node.store.leases().is_empty());
        let labels = node.store.blob(NAMESPACE, &image.config).unwrap().labels;
        assert!(labels.is_empty(), "{labels:?}");
        assert!(node.store.blob(NAMESPACE, &image.blobs[1]).unwrap().labels.is_empty());
    }
}

fn taken_keys() {
    for parallel in ["1", "2"] {
        let node = rebasing();
        let image = image(&node, &tars(2));
        node.store.take_keys(2);
        assert_eq!(unpack(&node, &["--parallel", parallel]), [true; 2]);
        node.store.forget_snapshots();
        node.store.take_keys(3);
        let (reason, message) = refused(&node, &["--parallel", parallel]);
        assert_eq!(reason, "unpack.key", "{message}");
        assert!(names_of(&node, &image).is_empty());
    }
}

fn raced() {
    for parallel in ["1", "3"] {
        let node = rebasing();
        let image = image(&node, &tars(3));
        node.store.race(&image.chain_ids[1]);
        assert_eq!(unpack(&node, &["--parallel", parallel]), [true, false, true]);
        assert_eq!(names_of(&node, &image), [0, 1, 2]);
    }
}

fn staged() {
    for parallel in ["1", "3"] {
        let node = rebasing();
        let image = image(&node, &tars(3));
        node.store.stage(&image.chain_ids[1]);
        assert_eq!(unpack(&node, &["--parallel", parallel]), [true; 3]);
        assert_eq!(names_of(&node, &image), [0, 1, 2]);
        let mut applied: Vec<_> = node.store.applied().into_iter().map(|(blob, _)| blob).collect();
        let mut want = vec![image.blobs[0].clone(), image.blobs[2].clone()];
        applied.sort();
        want.sort();
        assert_eq!(applied, want);
        // Nobody has compared it.
        assert!(node.store.blob(NAMESPACE, &image.blobs[1]).unwrap().labels.is_empty());
    }
}

fn overlays() {
    let node = Node::new();
    add_snapshotter(&node, "overlayfs", true, "v2.2.0");
    let image = image(&node, &tars(3));
    let arguments = ["--snapshotter", "overlayfs", "--parallel", "3"];
    assert_eq!(unpack(&node, &arguments), [true; 3]);
    for (blob, mounts) in node.store.applied() {
        let [mount] = mounts.as_slice() else { panic!("{mounts:?}") };
        if blob == image.blobs[0] {
            assert_eq!(
                (mount.r#type.as_str(), &mount.options[..]),
                ("bind", &["rw".to_owned(), "rbind".to_owned()][..])
            );
        } else {
            assert_eq!(mount.r#type, "overlay");
            let [rw, upper] = mount.options.as_slice() else { panic!("{mount:?}") };
            assert!(rw == "rw" && upper.starts_with("upperdir=/"), "{mount:?}");
        }
    }
}

fn older() {
    let node = Node::new();
    // A proxy may announce what this containerd does not pass on.
    add_snapshotter(&node, "erofs", true, "2.1.9~ds1");
    let image = image(&node, &tars(3));
    let output = run(&node, &["--parallel", "3", "--progress", "none"]);
    assert!(output.status.success(), "{output:?}");
    let note = String::from_utf8_lossy(&output.stderr);
    assert!(note.contains("one layer after the other"), "{note}");
    assert_eq!(node.store.most_applied_at_once(), 1);
    let parents: Vec<_> =
        node.store.applied().into_iter().map(|(_, mounts)| mounts[0].r#type.clone()).collect();
    assert_eq!(parents, ["bind", "overlay", "overlay"]);
    assert_eq!(names_of(&node, &image), [0, 1, 2]);
    let (reason, message) = refused(&node, &["--snapshotter", "none"]);
    assert_eq!(reason, "unpack.snapshotter");
    assert!(message.contains("\"none\"") && message.contains("erofs"), "{message}");
}

fn annotated() {
    let node = rebasing();
    let annotations = r#"{"containerd.io/snapshot/cri.image-ref": "x", "containerd.io/snapshot/diff-id": "a lie",
        "containerd.io/gc.root": "not for layers"}"#;
    let tars = tars(2);
    let image = Image::record(&node, NAME, &diff_ids(&tars), &blobs(&tars), annotations);
    unpack(&node, &[]);
    for (number, view) in committed(&node).values().enumerate() {
        let keys: Vec<_> =
            view.labels.keys().map(|key| key.trim_start_matches("containerd.io/snapshot")).collect();
        let without_parent = [".ref", "/cri.image-ref", "/diff-id"];
        assert!(
            keys == without_parent || keys == [".ref", "/cri.image-ref", "/diff-id", "/parent-chain-id"],
            "{number}: {keys:?}"
        );
        assert!(image.diff_ids.contains(&view.labels["containerd.io/snapshot/diff-id"]));
    }
}

fn interrupted() {
    for parallel in ["1", "3"] {
        let node = rebasing();
        let image = image(&node, &tars(4));
        for blob in &image.blobs[1..] {
            node.store.slow_down(blob, SOON);
        }
        let mut child =
            command(&node, &["unpack", NAME, "--resume", "--parallel", parallel, "--progress", "none"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
        until("a layer is committed and another one begun", SOON, || {
            node.store.applied().len() > 1 && node.store.snapshots().contains_key(&image.chain_ids[0])
        });
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(!child.wait().unwrap().success());
        assert_eq!(names_of(&node, &image), [0]);
        assert_eq!(node.store.leases().len(), 1);
    }
}

fn waits() {
    let node = rebasing();
    let image = image(&node, &tars(3));
    node.store.slow_down(&image.blobs[1], Duration::from_millis(500));
    let begin = || {
        command(&node, &["unpack", NAME, "--progress", "none", "--json"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let (one, other) = (begin(), begin());
    for child in [one, other] {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(node.store.applied().len(), 3, "each layer once");
    assert_eq!(names_of(&node, &image), [0, 1, 2]);
    assert!(node.store.leases().is_empty());
    let left: Vec<_> = names(node.scratch.path()).into_iter().filter(|name| name.ends_with("lock")).collect();
    assert!(left.is_empty(), "{left:?}");
}

fn progress() {
    let node = rebasing();
    let image = image(&node, &tars(2));
    for blob in &image.blobs {
        node.store.slow_down(blob, Duration::from_millis(700));
    }
    let output = run(&node, &["--parallel", "1", "--progress", "json"]);
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stderr).unwrap();
    let states = |blob: &str| {
        let name = format!("layer ({})", blob.strip_prefix("sha256:").and_then(|hex| hex.get(..12)).unwrap());
        let objects = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let of = objects.filter(|object| object["name"] == name);
        let mut states: Vec<_> = of.map(|object| object["status"].as_str().unwrap().to_owned()).collect();
        states.dedup();
        states
    };
    assert_eq!(states(&image.blobs[0]).last().map(String::as_str), Some("extracted"));
    assert_eq!(states(&image.blobs[1]), ["waiting", "extracting", "extracted"]);
    let again = run(&node, &["--progress", "json"]);
    let lines = String::from_utf8(again.stderr).unwrap();
    assert_eq!(lines.matches("already exists").count(), 2, "{lines}");
}

fn loaded() {
    let node = rebasing();
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/separated/archives/oci.tar");
    let platform = ["--platform", "linux/amd64"];
    let load = ["load", fixture, "--unpack", "--json", "--progress", "none"];
    let output = command(&node, &[&load[..], &platform].concat()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let applied = node.store.applied().len();
    assert!(applied > 0 && committed(&node).len() == applied);
    assert!(node.store.leases().is_empty());
    let seen = node.store.take_seen();
    let last = |method: &str| seen.iter().rposition(|seen| seen.method == method).unwrap();
    assert!(last("commit") < last("create image"), "the image is recorded last");
    for name in node.store.images() {
        let unpack = ["unpack", &name, "--json", "--progress", "none"];
        let output = command(&node, &[&unpack[..], &platform].concat()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(node.store.applied().len(), applied);
}

fn bytes() {
    let node = rebasing();
    let daemon = node.start();
    let tar = tar_of(0, &[("dir/data", &noise(4 << 20, 1))]);
    let image = Image::record(&node, NAME, &[digest(&tar)], &[gzip(&tar)], "{}");
    let total = node.store.blob(NAMESPACE, &image.blobs[0]).unwrap().bytes.len();
    node.store.withhold(&image.blobs[0], total / 2);
    let socket = node.socket().display().to_string();
    let log = fs::File::create(node.scratch.path().join("progress")).unwrap();
    let mut child = command(&node, &["unpack", NAME, "--differ", &socket, "--progress", "json"])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let lines = || fs::read_to_string(node.scratch.path().join("progress")).unwrap();
    let seen = || {
        let objects = lines();
        let objects = objects.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        objects
            .filter(|object| object["status"] == "extracting")
            .filter_map(|object| object["progress"].as_u64())
            .max()
    };
    let half = u64::try_from(total / 2).unwrap();
    until("half of the layer is reported", SOON, || seen().is_some_and(|bytes| bytes > 0));
    assert!(seen().unwrap() <= half, "{}", lines());
    node.store.release();
    assert!(child.wait().unwrap().success(), "{}", lines());
    let last = lines().lines().last().map(|line| serde_json::from_str::<Value>(line).unwrap()).unwrap();
    assert_eq!(
        (&last["status"], last["progress"].as_u64()),
        (&Value::from("extracted"), u64::try_from(total).ok())
    );
    daemon.stop();
}
