//! Layers that go through stream processors, in the daemon as it is shipped.

use std::{
    fs,
    io::Write as _,
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use plywood::{
    apply::{Payload, Request},
    digest::Digest,
};
use testkit::{
    Need,
    unit_filter::{Filter, SYSTEMD_252, SYSTEMD_257, SYSTEMD_262, UNIT},
};

use super::harness::*;

pub const TESTS: &[Test] = &[
    ("a_layer_goes_through_its_processors_and_is_applied", applied),
    ("the_payload_of_a_processor_is_its_own_and_nobody_elses", payloads),
    ("a_status_other_than_0_fails_a_layer_that_looks_complete", status),
    ("an_output_that_is_cut_fails_the_layer", cut),
    ("a_type_without_a_processor_goes_to_the_next_differ", without),
    ("an_image_that_a_processor_returns_is_checked_and_published", native),
    ("a_table_that_cannot_work_ends_the_start", tables),
    ("the_death_of_the_broker_fails_those_layers_alone", death),
    ("eight_bad_processors_a_hundred_times_publish_nothing_and_leave_nothing", bad),
];

/// Needs what the tests of the filter need.
pub const FILTERED: &[Test] = &[
    ("under_the_filter_of_systemd_252_processors_run", filter_252),
    ("under_the_filter_of_systemd_257_processors_run", filter_257),
    ("under_the_filter_of_systemd_262_processors_run", filter_262),
];

/// For the test with real xz streams.
pub const XZ: Need = Need::Tool("xz");

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const XZ_TAR: &str = "application/vnd.oci.image.layer.v1.tar+xz";

/// A table in which `/bin/sh` is the program of each type.
fn table(shells: &[(&str, &str, &str, &str)]) -> String {
    let row = |(id, accepts, returns, shell): &(&str, &str, &str, &str)| {
        format!(
            "[stream_processors.{id:?}]\naccepts = [{accepts:?}]\nreturns = {returns:?}\npath = \"/bin/sh\"\n\
             args = [\"-c\", {shell:?}]\nenv = [\"PATH=/usr/bin:/bin\"]\n"
        )
    };
    shells.iter().map(row).collect()
}

/// The entry for `plywood stream`.
fn stream() -> String {
    let program = testkit::host::plywood().get_program().to_str().unwrap().to_owned();
    format!(
        "[stream_processors.plywood]\naccepts = [{XZ_TAR:?}]\nreturns = {TAR:?}\npath = {program:?}\nargs = [\"stream\"]\n"
    )
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new("xz").arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, bytes) = (child.stdin.take().unwrap(), bytes.to_vec());
    let feeder = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    output.stdout
}

/// A request for `blob`, which is put into the store.
fn typed(node: &Node, id: u32, media_type: &str, blob: &[u8]) -> Request {
    let digest = node.store.add(NAMESPACE, blob);
    node.request(id, media_type, &digest, blob.len())
}

fn snapshot(node: &Node, id: u32) -> std::path::PathBuf {
    node.root().join("snapshots").join(id.to_string())
}

fn applied() {
    let rot13 = "tr A-Za-z N-ZA-Mn-za-m";
    let shells = table(&[("outer", "x/outer", "x/inner", rot13), ("inner", "x/inner", XZ_TAR, rot13)]);
    let node = Node::with(&(shells + &stream()));
    let daemon = node.start();
    let tar = archive(20, 50_000);
    let packed = xz(&tar);
    assert_eq!(node.apply(&typed(&node, 1, XZ_TAR, &packed)), Reply::of_tar(&tar));
    // A chain of three.
    assert_eq!(node.apply(&typed(&node, 2, "x/outer", &packed)), Reply::of_tar(&tar));
    let ttrpc = node.ttrpc();
    assert_eq!(node.runtime.block_on(ttrpc.apply(&typed(&node, 3, XZ_TAR, &packed))), Reply::of_tar(&tar));
    for id in 1..=3 {
        assert_published(&snapshot(&node, id));
    }
    // The image depends on the blob's name, which is the same, and on the tar alone.
    let image = |id| fs::read(snapshot(&node, id).join("layer.erofs")).unwrap();
    assert!(image(1) == image(2) && image(1) == image(3));
    let plain = typed(&node, 4, TAR, &tar);
    assert!(node.apply(&plain).is_applied());
    assert_eq!(image(4).len(), image(1).len());
    daemon.stop();
}

fn payloads() {
    // Appends what is on descriptor 3 after the end of the archive, so that the diffID tells.
    let keep = "cat; if [ -e /proc/self/fd/3 ]; then cat <&3; fi";
    let node = Node::with(&table(&[("one", "x/one", "x/two", keep), ("two", "x/two", TAR, keep)]));
    let daemon = node.start();
    let tar = archive(2, 100);
    let payload = |text: &str| Payload { type_url: "t/u".into(), value: text.as_bytes().to_vec() };
    let any = |text: &str| {
        let value = u8::try_from(text.len()).unwrap();
        [&[0x0a, 3][..], b"t/u", &[0x12, value], text.as_bytes()].concat()
    };
    for (id, names, want) in [
        (1, &["one", "two", "three"][..], [any("one"), any("two")].concat()),
        (2, &["two"], any("two")),
        (3, &[], Vec::new()),
    ] {
        let mut request = typed(&node, id, "x/one", &tar);
        request.payloads = names.iter().map(|name| ((*name).to_owned(), payload(name))).collect();
        let want = [&tar[..], &want].concat();
        assert_eq!(node.apply(&request), Reply::of_tar(&want), "{names:?}");
    }
    let secret = "a key that nobody may see";
    let mut request = typed(&node, 4, "x/one", b"no archive");
    request.payloads = [("one".to_owned(), payload(secret))].into();
    assert!(!node.apply(&request).is_applied());
    assert!(!daemon.log().contains(secret), "{}", daemon.log());
    daemon.stop();
}

fn status() {
    let node = Node::with(&table(&[
        ("fails", "x/fails", TAR, "cat; echo 'the key is wrong' >&2; exit 7"),
        ("last", "x/last", "x/fails", "cat"),
    ]));
    let daemon = node.start();
    let tar = archive(3, 1000);
    for (id, media_type) in [(1, "x/fails"), (2, "x/last")] {
        let reply = node.apply(&typed(&node, id, media_type, &tar));
        assert_eq!(reply.code_and_reason(), (3, "processor.failed"), "{}", reply.message());
        let said = "processor fails exited with status 7: the key is wrong";
        assert!(reply.message().contains(said), "{}", reply.message());
        assert_eq!(names(&snapshot(&node, id)), EMPTY);
    }
    // A blob that is not what its digest says is the store's fault, whatever a processor makes of it.
    let request = node.request(3, "x/fails", &Digest::sha256(b"absent"), tar.len());
    assert_eq!(node.apply(&request).code_and_reason().0, 5);
    daemon.stop();
}

fn cut() {
    let node = Node::with(&table(&[
        ("head", "x/head", TAR, "head -c 700"),
        ("gzip", "x/gzip", GZIP, "head -c 100"),
    ]));
    let daemon = node.start();
    let tar = archive(3, 1000);
    for (id, media_type, blob, reason) in [
        (1, "x/head", tar.clone(), "tar.truncated.header"),
        (2, "x/gzip", gzip(&tar), "codec.gzip.truncated"),
    ] {
        let reply = node.apply(&typed(&node, id, media_type, &blob));
        assert_eq!(reply.code_and_reason(), (3, reason), "{}", reply.message());
        assert_eq!(names(&snapshot(&node, id)), EMPTY);
    }
    daemon.stop();
}

fn without() {
    let node = Node::with(&table(&[("dead-end", "x/dead-end", "x/unknown", "cat")]));
    let daemon = node.start();
    for (id, media_type) in [(1, XZ_TAR), (2, "x/dead-end"), (3, "x/unknown")] {
        let request = typed(&node, id, media_type, b"blob");
        node.store.take_seen();
        let reply = node.apply(&request);
        assert_eq!(reply.code_and_reason(), (12, "apply.media-type"), "{}", reply.message());
        assert!(node.store.take_seen().is_empty(), "nothing was read");
    }
    daemon.stop();
    // Without a table there is no broker.
    let node = Node::new();
    let daemon = node.start();
    assert!(children(daemon.pid()).is_empty());
    assert!(node.metrics().contains("plywood_processors_available 1\n"));
    daemon.stop();
}

fn native() {
    let image =
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/erofs/plain.erofs")).unwrap();
    let erofs = "application/vnd.erofs.layer.v1";
    let node = Node::with(&table(&[("cat", "x/erofs", erofs, "cat")]));
    let daemon = node.start();
    let reply = node.apply(&typed(&node, 1, "x/erofs", &image));
    let want = Reply::Applied {
        media_type: erofs.to_owned(),
        digest: Digest::sha256(&image).to_string(),
        size: i64::try_from(image.len()).unwrap(),
    };
    assert_eq!(reply, want);
    assert!(fs::read(snapshot(&node, 1).join("layer.erofs")).unwrap() == image);
    let reply = node.apply(&typed(&node, 2, "x/erofs", &image[..8192]));
    assert_eq!(reply.code_and_reason().0, 3, "{}", reply.message());
    daemon.stop();
}

fn tables() {
    for (table, part) in [
        (table(&[("own", "x/own", "x/own", "cat")]), "goes round in a circle: own"),
        (table(&[("a", "x/a", TAR, "cat"), ("b", "x/a", TAR, "cat")]), "a and b both accept"),
        (table(&[("a", "x/a", TAR, "cat")]).replace("/bin/sh", "/nonexistent/sh"), "/nonexistent/sh"),
        (table(&[("a", "x/a", TAR, "cat")]).replace("/bin/sh", "/etc/passwd"), "is not a program"),
    ] {
        let node = Node::with(&table);
        let output = node.command().output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && said.contains(part), "{part}: {said}");
    }
}

/// The ids of the children of a process, zombies included.
fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn broker_of(daemon: &Daemon) -> u32 {
    let found = children(daemon.pid());
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

/// Status line of `GET /health`.
fn health(node: &Node) -> String {
    use std::io::Read as _;
    let mut stream = UnixStream::connect(node.scratch.path().join("metrics.sock")).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.lines().next().unwrap().to_owned()
}

fn death() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let node = Node::with(&table(&[("slow", "x/slow", TAR, "cat; sleep 1000")]));
    let daemon = node.start();
    let broker = broker_of(&daemon);
    let serving = |service: &str| {
        let channel = {
            let _entered = node.runtime.enter();
            testkit::grpc::channel(&node.socket())
        };
        let request = HealthCheckRequest { service: service.to_owned() };
        let reply = node.runtime.block_on(async { HealthClient::new(channel).check(request).await });
        reply.unwrap().into_inner().status
    };
    until("it reports", SOON, || serving("plywood.processors") == 1);
    assert!(node.metrics().contains("plywood_processors_available 1\n"));
    let tar = archive(1, 100);
    let request = typed(&node, 1, "x/slow", &tar);
    let running = {
        let (mut grpc, request) = (node.grpc(), request.clone());
        node.runtime.spawn(async move { grpc.apply(&request).await })
    };
    until("it runs", SOON, || children(broker).len() == 1);
    let processor = children(broker)[0];
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(i32::try_from(broker).unwrap()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let reply = node.runtime.block_on(running).unwrap();
    assert_eq!(reply.code_and_reason(), (14, "processor.broker"), "{}", reply.message());
    until("the processor is gone", SOON, || {
        let stat = fs::read_to_string(format!("/proc/{processor}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
    let reply = node.apply(&typed(&node, 2, "x/slow", &tar));
    assert_eq!(reply.code_and_reason(), (14, "processor.broker"), "{}", reply.message());
    assert!(reply.message().contains("restart the daemon"), "{}", reply.message());
    assert_eq!(
        (names(&snapshot(&node, 1)), names(&snapshot(&node, 2))),
        (EMPTY.map(Into::into).to_vec(), EMPTY.map(Into::into).to_vec())
    );
    // Everything else goes on.
    assert!(node.apply(&node.request_for(3, &gzip(&tar))).is_applied());
    assert!(children(daemon.pid()).is_empty(), "no zombie");
    until("it is logged", SOON, || daemon.log().contains("the broker has ended"));
    until("it reports", SOON, || serving("plywood.processors") == 2);
    assert_eq!((serving(""), serving("containerd.services.diff.v1.Diff")), (1, 1));
    assert!(node.metrics().contains("plywood_processors_available 0\n"));
    assert!(health(&node).contains("200"), "{}", health(&node));
    daemon.stop();
}

/// How a bad processor is got rid of.
enum End {
    Refused(&'static str),
    Cancelled,
}

fn bad() {
    const ROUNDS: u32 = 100;
    let leaves = "exec 4<&0; (sleep 5; cat <&4) & exit 0";
    let strays = "exec 4<&0; setsid sh -c 'sleep 5; cat <&4' & exit 0";
    let cases = [
        ("hangs", "sleep 1000", End::Cancelled),
        ("floods", "yes 'a line of standard error' >&2", End::Cancelled),
        ("fails", "cat; exit 1", End::Refused("processor.failed")),
        ("dies", "cat; kill -SEGV $$", End::Refused("processor.failed")),
        ("leaves", leaves, End::Refused("processor.left-behind")),
        ("strays", strays, End::Refused("processor.left-behind")),
        ("stays", "trap '' TERM HUP INT; sleep 1000 & while :; do wait; done", End::Cancelled),
        ("silent", "cat > /dev/null", End::Refused("processor.empty")),
    ];
    let types = cases.each_ref().map(|(id, ..)| format!("x/{id}"));
    let rows: Vec<_> = cases
        .iter()
        .zip(&types)
        .map(|((id, shell, _), accepts)| (*id, accepts.as_str(), TAR, *shell))
        .collect();
    let node = Node::with(&table(&rows));
    let daemon = node.start();
    let broker = broker_of(&daemon);
    let tar = archive(2, 1000);
    let digest: Digest = node.store.add(NAMESPACE, &*tar);
    assert!(node.apply(&node.request(1, TAR, &digest, tar.len())).is_applied());
    let mut grpc = node.grpc();
    assert!(
        !node.runtime.block_on(grpc.apply(&node.request(2, "x/silent", &digest, tar.len()))).is_applied()
    );
    let before = (descriptors(daemon.pid()), descriptors(broker));
    let mut id = 100;
    let mut slowest = Duration::ZERO;
    for ((name, _, end), media_type) in cases.iter().zip(&types) {
        let started = Instant::now();
        for _ in 0..ROUNDS {
            id += 1;
            let request = node.request(id, media_type, &digest, tar.len());
            match end {
                End::Refused(reason) => {
                    let reply = node.runtime.block_on(grpc.apply(&request));
                    assert_eq!(reply.code_and_reason(), (3, *reason), "{name}: {}", reply.message());
                }
                End::Cancelled => {
                    let mut grpc = grpc.clone();
                    let call = node.runtime.spawn(async move { grpc.apply(&request).await });
                    until("it runs", SOON, || children(broker).len() == 1);
                    let leader = children(broker)[0];
                    // One that has begun, not only been started.
                    until("it has begun", SOON, || {
                        *name == "hangs" || !children(leader).is_empty() || call.is_finished()
                    });
                    let cancelled = Instant::now();
                    call.abort();
                    until("it is gone", Duration::from_secs(1), || children(broker).is_empty());
                    slowest = slowest.max(cancelled.elapsed());
                }
            }
            assert!(children(broker).is_empty(), "{name}: left behind, or a zombie");
            let left = names(&snapshot(&node, id));
            assert_eq!(left, EMPTY, "{name}");
        }
        println!("{name}: {ROUNDS} times in {:?}", started.elapsed());
    }
    println!("the slowest was gone {slowest:?} after it was cancelled");
    // The one that returns its own type is refused before it is ever run.
    for _ in 0..ROUNDS {
        let own = table(&[("own", "x/own", "x/own", "cat")]);
        assert!(plywood::config::parse(&own, "test").is_err());
    }
    // The first reply may have come before the last descriptor of its request was closed.
    until("descriptors are closed", SOON, || {
        descriptors(daemon.pid()) <= before.0 && descriptors(broker) <= before.1
    });
    assert_eq!(children(daemon.pid()), [broker]);
    daemon.stop();
}

fn filter_252() {
    filtered(&Filter::of_unit(SYSTEMD_252, UNIT));
}

fn filter_257() {
    filtered(&Filter::of_unit(SYSTEMD_257, UNIT));
}

fn filter_262() {
    filtered(&Filter::of_unit(SYSTEMD_262, UNIT));
}

/// With the unit's filter and capabilities, and what the daemon itself gives up.
fn filtered(filter: &Filter) {
    let node = Node::with(
        &(table(&[("keeps", "x/keeps", XZ_TAR, "cat; cat <&3 >&2; yes | head -c 1000 >&2")]) + &stream()),
    );
    let daemon = node.start_with(&mut filter.around(&node.command()));
    let status = fs::read_to_string(format!("/proc/{}/status", broker_of(&daemon))).unwrap();
    assert!(status.contains("Seccomp:\t2\n") && status.contains("CapPrm:\t0000000000000000\n"), "{status}");
    let tar = archive(5, 100_000);
    let mut request = typed(&node, 1, "x/keeps", &xz(&tar));
    let payload = Payload { type_url: "t/u".into(), value: vec![7; 200_000] };
    request.payloads = [("keeps".to_owned(), payload)].into();
    assert_eq!(node.apply(&request), Reply::of_tar(&tar));
    assert_published(&snapshot(&node, 1));
    daemon.stop();
}
