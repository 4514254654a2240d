//! Start, readiness, sockets, signals, and what a start refuses.

use std::{
    fs,
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixDatagram, UnixListener, UnixStream},
    },
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use testkit::containerd::Fault;

use super::harness::*;

pub const TESTS: &[Test] = &[
    ("sigterm_lets_a_running_request_finish", drain),
    ("sigterm_cancels_what_outlasts_the_grace", cancel_rest),
    ("a_second_signal_ends_at_once", second_signal),
    ("after_sigkill_the_next_start_cleans_up_and_serves", killed),
    ("an_inherited_socket_outlives_the_daemon", inherited),
    ("the_service_manager_hears_ready_alive_and_stopping", notified),
    ("two_daemons_do_not_share_a_socket", second_daemon),
    ("capabilities_are_kept_for_diff_and_none_is_effective", capabilities),
    ("a_bad_configuration_is_refused_with_its_reason", bad_configuration),
];

fn slow(node: &Node, id: u32, millis: u64) -> tokio::task::JoinHandle<Reply> {
    let request = node.request_for(id, &gzip(&archive(1, 100)));
    node.store.fault(Fault::SlowInfo(millis));
    let mut grpc = node.grpc();
    let call = node.runtime.spawn(async move { grpc.apply(&request).await });
    until("the request is under way", SOON, || node.metrics().contains("plywood_requests_running 1\n"));
    call
}

/// Where the kernel shows `CAP_DAC_READ_SEARCH` and `CAP_SYS_ADMIN`.
const READING: u64 = 1 << 2 | 1 << 21;

fn capabilities() {
    for (extra, names, bits) in
        [("", "DAC_READ_SEARCH+SYS_ADMIN", READING), ("[diff]\nenabled = false", "none", 0)]
    {
        let node = Node::with(extra);
        let daemon = node.start();
        let log = daemon.log();
        assert!(log.contains(&format!("capabilities=\"{names}\"")), "{log}");
        // Every thread, those of the workers included.
        for thread in fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap() {
            let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
            let set = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
                u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap()
            };
            let sets = ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"].map(set);
            assert_eq!(sets, [0, bits, bits, 0, 0], "{extra}\n{status}");
        }
        daemon.stop();
    }
}

fn drain() {
    let node = Node::new();
    let mut daemon = node.start();
    let call = slow(&node, 1, 700);
    daemon.signal(Signal::TERM);
    assert!(node.runtime.block_on(call).unwrap().is_applied());
    assert!(daemon.ended().success());
    assert!(!node.socket().exists(), "the socket is gone");
    assert!(daemon.log().contains("stopped"));
}

fn cancel_rest() {
    let node = Node::with("drain_seconds = 1");
    let mut daemon = node.start();
    let call = slow(&node, 1, 60_000);
    let start = Instant::now();
    daemon.signal(Signal::TERM);
    let reply = node.runtime.block_on(call).unwrap();
    assert_eq!(reply.code_and_reason(), (1, "call.cancelled"), "{reply:?}");
    assert!(daemon.ended().success());
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_eq!(names(&node.root().join("snapshots/1")), EMPTY);
}

fn second_signal() {
    let node = Node::new();
    let mut daemon = node.start();
    let _call = slow(&node, 1, 60_000);
    daemon.signal(Signal::TERM);
    until("it begins to stop", SOON, || daemon.log().contains("stopping"));
    let start = Instant::now();
    daemon.signal(Signal::INT);
    assert_eq!(daemon.ended().code(), Some(1));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

fn killed() {
    let node = Node::new();
    let mut daemon = node.start();
    let _call = slow(&node, 1, 60_000);
    daemon.kill().unwrap();
    assert!(node.socket().exists(), "a dead socket stays");
    // A killed daemon leaves such a file on a file system without unnamed files.
    let stale = node.root().join("snapshots/1").join(format!(".plywood-{}.tmp", "0a".repeat(16)));
    fs::write(&stale, "half a layer").unwrap();
    let precious = node.root().join("snapshots/1/.plywood-notes.tmp");
    fs::write(&precious, "not ours").unwrap();

    let daemon = node.start();
    assert!(!stale.exists() && precious.exists());
    assert!(daemon.log().contains("removed=1"), "{}", daemon.log());
    node.store.fault(None);
    assert!(node.apply(&node.request_for(2, &gzip(&archive(1, 1)))).is_applied());
    daemon.stop();
}

fn inherited() {
    let node = Node::new();
    let listener = UnixListener::bind(node.socket()).unwrap();
    let start = || {
        let socket = listener.try_clone().unwrap();
        node.start_with(&mut with_inherited(&node.command(), socket.into(), "plywood"))
    };
    let daemon = start();
    assert!(node.apply(&node.request_for(1, &gzip(&archive(1, 1)))).is_applied());
    daemon.stop();
    assert!(node.socket().exists(), "the service manager's socket is not ours to remove");
    // Nobody is there, and yet the connection is not refused: it waits.
    let request = node.request_for(2, &gzip(&archive(1, 1)));
    let mut grpc = node.grpc();
    let call = node.runtime.spawn(async move { grpc.apply(&request).await });
    std::thread::sleep(Duration::from_millis(100));
    let daemon = start();
    assert!(node.runtime.block_on(call).unwrap().is_applied());
    daemon.stop();
}

fn notified() {
    let node = Node::new();
    let path = node.scratch.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let hear = || {
        let mut buffer = [0; 4096];
        let len = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    let mut command = node.command();
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000").env_remove("WATCHDOG_PID");
    let mut daemon = node.start_with(&mut command);
    let mut heard = Vec::new();
    while heard.iter().filter(|message: &&String| message.contains("WATCHDOG=1")).count() < 3 {
        heard.push(hear());
    }
    assert!(heard.iter().any(|message| message.contains("READY=1")), "{heard:?}");
    daemon.signal(Signal::TERM);
    while !hear().contains("STOPPING=1") {}
    assert!(daemon.ended().success());
}

fn second_daemon() {
    let node = Node::new();
    let daemon = node.start();
    let second = node.command().output().unwrap();
    let message = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1));
    assert!(message.contains("another process is listening there [socket.in-use]"), "{message}");
    assert!(node.apply(&node.request_for(1, &gzip(&archive(1, 1)))).is_applied(), "the first is unharmed");
    daemon.stop();
}

fn bad_configuration() {
    let node = Node::new();
    let refused = |want: &str| {
        let output = node.command().output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(want), "{want} not in {message}");
        assert!(UnixStream::connect(node.socket()).is_err());
    };
    let good = fs::read_to_string(node.config()).unwrap();
    fs::write(node.config(), format!("{good}\nmax_connectionz = 3\n")).unwrap();
    refused("max_connectionz");
    fs::write(node.config(), &good).unwrap();
    fs::set_permissions(node.config(), fs::Permissions::from_mode(0o666)).unwrap();
    refused("[config.owner]");
    fs::set_permissions(node.config(), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_dir(node.root().join("snapshots")).unwrap();
    fs::remove_dir(node.root()).unwrap();
    refused("[config.snapshot-root]");

    let check = |file: &std::path::Path| {
        Command::new(env!("CARGO_BIN_EXE_plywood")).args(["config", "check"]).arg(file).output().unwrap()
    };
    assert!(check(&node.config()).status.success());
    assert_eq!(check(&node.scratch.path().join("absent")).status.code(), Some(1));
}
