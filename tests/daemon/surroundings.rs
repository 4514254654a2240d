//! Changes around a running daemon: containerd that is reset, late, away, or elsewhere.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use testkit::containerd::Fault;

use super::harness::*;

pub const TESTS: &[Test] = &[
    ("a_root_made_anew_five_times_ends_the_daemon_and_the_socket_unit_brings_it_back", made_anew),
    ("a_root_that_was_moved_away_gets_no_further_layer", moved_away),
    ("without_a_socket_unit_a_root_made_anew_still_ends_the_daemon", made_anew_without_socket_unit),
    ("a_content_store_made_after_the_start_is_read_directly_after_a_restart", late_content),
    ("without_a_socket_unit_a_late_content_store_is_a_warning", late_content_without_socket_unit),
    ("a_containerd_that_does_not_answer_is_a_warning_and_bad_health", no_containerd),
    ("a_failed_request_is_logged_as_a_warning", warned),
    ("a_log_level_that_is_none_is_refused_at_start_and_by_config_check", log_level),
    ("config_check_reports_what_this_machine_lacks", config_check),
    ("config_check_works_for_any_user_and_any_owner", config_check_in_ci),
];

/// How soon the daemon ends when it can serve nothing any more, and when it could be faster.
const AT_ONCE: Duration = Duration::from_secs(2);
const WHEN_QUIET: Duration = Duration::from_secs(8);

/// systemd's part with `plywood.socket`: the socket outlives the daemon, which is started again.
struct SocketUnit {
    node: Node,
    listener: UnixListener,
}

impl SocketUnit {
    fn new(node: Node) -> Self {
        let listener = UnixListener::bind(node.socket()).unwrap();
        Self { node, listener }
    }

    fn start(&self) -> Daemon {
        let socket = self.listener.try_clone().unwrap();
        self.node.start_with(&mut with_inherited(&self.node.command(), socket.into(), "plywood"))
    }
}

fn reset(root: &Path) {
    fs::remove_dir_all(root).unwrap();
    fs::create_dir_all(root.join("snapshots")).unwrap();
}

/// The daemon ends by itself, soon, with exit code 1 and `reason` in its last words.
fn assert_ends(daemon: &mut Daemon, since: Instant, limit: Duration, reason: &str) {
    let status = daemon.ended();
    let took = since.elapsed();
    assert_eq!(status.code(), Some(1), "{}", daemon.log());
    assert!(took < limit, "{took:?}\n{}", daemon.log());
    let log = daemon.log();
    let last = log.lines().last().unwrap();
    assert!(last.starts_with("plywood: ") && last.contains(reason), "{log}");
    assert!(log.lines().any(|line| line.contains("ERROR") && line.contains(reason)), "{log}");
}

fn made_anew() {
    let unit = SocketUnit::new(Node::new());
    let mut daemon = unit.start();
    for round in 1..=5 {
        assert!(unit.node.apply(&unit.node.request_for(1, &gzip(&archive(round, 10)))).is_applied());
        let since = Instant::now();
        reset(&unit.node.root());
        // A pull that comes before the daemon has ended waits for the next one, or fails and says why.
        let request = unit.node.request_for(2, &gzip(&archive(round, 20)));
        let mut grpc = unit.node.grpc();
        let pull = unit.node.runtime.spawn(async move { grpc.apply(&request).await });
        assert_ends(&mut daemon, since, AT_ONCE, "server.root-replaced");
        assert!(daemon.log().contains(unit.node.root().to_str().unwrap()));
        daemon = unit.start();
        let reply = unit.node.runtime.block_on(pull).unwrap();
        let expected = ["mount.root-replaced", "server.stopping", "call.cancelled", ""];
        assert!(expected.contains(&reply.code_and_reason().1), "{reply:?}");
        assert!(unit.node.apply(&unit.node.request_for(3, &gzip(&archive(round, 30)))).is_applied());
        assert_published(&unit.node.root().join("snapshots/3"));
        reset_snapshot(&unit.node, 1);
    }
    daemon.stop();
}

/// Makes room for the next round.
fn reset_snapshot(node: &Node, id: u32) {
    let _ = fs::remove_dir_all(node.root().join(format!("snapshots/{id}")));
}

fn moved_away() {
    let unit = SocketUnit::new(Node::new());
    let mut daemon = unit.start();
    assert!(unit.node.apply(&unit.node.request_for(1, &gzip(&archive(1, 1)))).is_applied());
    let aside = unit.node.scratch.path().join("aside");
    fs::rename(unit.node.root(), &aside).unwrap();
    let published = || fs::metadata(aside.join("snapshots/1/layer.erofs")).unwrap().modified().unwrap();
    let before = published();
    // The new root has a snapshot of the same number. The daemon still runs: it would find the old one.
    let request = unit.node.request_for(1, &gzip(&archive(2, 2)));
    let since = Instant::now();
    let mut grpc = unit.node.grpc();
    let call = unit.node.runtime.spawn(async move { grpc.apply(&request).await });
    assert_ends(&mut daemon, since, AT_ONCE, "server.root-replaced");
    let daemon = unit.start();
    let reply = unit.node.runtime.block_on(call).unwrap();
    assert_eq!(published(), before, "{reply:?}");
    assert_eq!(reply.is_applied(), unit.node.root().join("snapshots/1/layer.erofs").exists(), "{reply:?}");
    daemon.stop();
}

fn made_anew_without_socket_unit() {
    let node = Node::new();
    let mut daemon = node.start();
    let since = Instant::now();
    reset(&node.root());
    assert_ends(&mut daemon, since, AT_ONCE, "server.root-replaced");
    let daemon = node.start();
    assert!(node.apply(&node.request_for(1, &gzip(&archive(1, 1)))).is_applied());
    daemon.stop();
}

fn content(node: &Node) -> PathBuf {
    node.scratch.path().join("io.containerd.content.v1.content")
}

/// Puts a blob into the store and into the store's directory, as containerd has it.
fn add_with_file(node: &Node, id: u32, blob: &[u8]) -> plywood::apply::Request {
    let request = node.request_for(id, blob);
    let directory = content(node).join("blobs/sha256");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(request.diff.digest.hex()), blob).unwrap();
    request
}

fn read_over_grpc(node: &Node) -> bool {
    node.store.take_seen().iter().any(|call| call.method == "read")
}

const LATE: &str = "containerd has no content store there yet";

fn late_content() {
    let node = Node::new();
    node.store.export_root("content", &content(&node));
    let unit = SocketUnit::new(node);
    let mut daemon = unit.start();
    assert!(
        daemon.log().lines().any(|line| line.contains("WARN") && line.contains(LATE)),
        "{}",
        daemon.log()
    );
    let since = Instant::now();
    let request = add_with_file(&unit.node, 1, &gzip(&archive(1, 1)));
    assert_ends(&mut daemon, since, WHEN_QUIET, "server.directory-replaced");
    let daemon = unit.start();
    unit.node.store.take_seen();
    assert!(unit.node.apply(&request).is_applied());
    assert!(!read_over_grpc(&unit.node), "{}", daemon.log());
    daemon.stop();
}

fn late_content_without_socket_unit() {
    let node = Node::new();
    node.store.export_root("content", &content(&node));
    let daemon = node.start();
    let request = add_with_file(&node, 1, &gzip(&archive(1, 1)));
    assert!(node.apply(&request).is_applied());
    assert!(read_over_grpc(&node));
    let warned = "out of reach until the next start";
    until("it is logged", SOON, || daemon.log().contains(warned));
    daemon.stop();
    let daemon = node.start();
    node.store.take_seen();
    assert!(node.apply(&add_with_file(&node, 2, &gzip(&archive(2, 1)))).is_applied());
    assert!(!read_over_grpc(&node), "{}", daemon.log());
    daemon.stop();
}

/// Status line and body of `GET /health`.
fn health(node: &Node) -> String {
    let mut stream = UnixStream::connect(node.scratch.path().join("metrics.sock")).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn no_containerd() {
    let mut node = Node::new();
    node.store.stop();
    let daemon = node.start();
    until("it is noticed", SOON, || health(&node).contains("HTTP/1.1 503"));
    let address = node.store.socket().display().to_string();
    assert!(health(&node).contains(&format!("containerd at {address} does not answer")), "{}", health(&node));
    assert!(node.metrics().contains("plywood_containerd_reachable 0\n"));
    // Long enough for a second question.
    std::thread::sleep(Duration::from_millis(1500));
    let log = daemon.log();
    let warnings: Vec<_> =
        log.lines().filter(|line| line.contains("WARN") && line.contains("does not answer")).collect();
    assert!(matches!(warnings.as_slice(), [one] if one.contains(&address)), "{log}");
    node.store.restart();
    until("it is there", SOON, || health(&node).contains("HTTP/1.1 200"));
    assert!(node.metrics().contains("plywood_containerd_reachable 1\n"));
    assert!(daemon.log().contains("containerd answers"));
    // Away again, and nobody notices before somebody asks.
    node.store.stop();
    assert!(!node.apply(&node.request_for(1, &gzip(&archive(1, 1)))).is_applied());
    until("it is noticed", SOON, || health(&node).contains("HTTP/1.1 503"));
    daemon.stop();
}

fn warned() {
    let node = Node::new();
    let daemon = node.start();
    assert!(node.apply(&node.request_for(1, &gzip(&archive(1, 1)))).is_applied());
    let request = node.request_for(2, &gzip(&archive(1, 2)));
    node.store.fault(Fault::Flip(11));
    assert!(!node.apply(&request).is_applied());
    let log = daemon.log();
    let level = |snapshot: &str| {
        let field = format!(" snapshot=\"{snapshot}\"");
        let line = log.lines().find(|line| line.contains("plywood::request") && line.contains(&field));
        line.unwrap_or_else(|| panic!("{log}")).split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!([level("1"), level("2")], ["INFO", "WARN"]);
    daemon.stop();
}

fn check(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plywood"));
    command.args(["config", "check"]).args(arguments).output().unwrap()
}

/// Exit code, and everything that was printed.
fn told(output: &Output) -> (Option<i32>, String) {
    let text = [&output.stdout[..], &output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn log_level() {
    let node = Node::new();
    let good = fs::read_to_string(node.config()).unwrap();
    let config = node.config();
    let path = config.to_str().unwrap();
    for level in ["loud", "", "fatal", "info,loud", "plywod=debug"] {
        fs::write(&config, format!("{good}\n[log]\nlevel = {level:?}\n")).unwrap();
        let (code, text) = told(&check(&[path]));
        assert!(code == Some(1) && text.contains("log.level = "), "{level}: {text}");
        let (code, text) = told(&node.command().output().unwrap());
        assert!(code == Some(1) && text.contains("log.level = "), "{level}: {text}");
    }
    fs::write(&config, &good).unwrap();
    let (code, text) = told(&node.command().env("RUST_LOG", "loud").output().unwrap());
    assert!(code == Some(1) && text.contains("RUST_LOG = \"loud\""), "{text}");
    fs::write(&config, format!("{good}\n[log]\nlevel = \"warning,plywood::daemon=info\"\n")).unwrap();
    assert_eq!(told(&check(&[path])).0, Some(0));
    node.start().stop();
}

fn config_check() {
    let node = Node::new();
    fs::create_dir(content(&node)).unwrap();
    let config = node.config();
    let path = config.to_str().unwrap();
    let (code, text) = told(&check(&["--strict", path]));
    assert!(code == Some(0) && text.contains("no problem found"), "{text}");
    let root = node.root();
    fs::remove_dir_all(&root).unwrap();
    for make in [None, Some("a file")] {
        if let Some(text) = make {
            fs::write(&root, text).unwrap();
        }
        let (code, text) = told(&check(&[path]));
        assert_eq!(code, Some(0), "another machine may have it\n{text}");
        assert!(text.contains(&format!("warning: snapshots.roots = {root:?}: ")), "{text}");
        assert!(text.contains("1 warning"), "{text}");
        let (code, text) = told(&check(&["--strict", path]));
        assert!(code == Some(1) && text.contains("[config.node]"), "{text}");
    }
}

fn config_check_in_ci() {
    let node = Node::new();
    let config = node.scratch.path().join("ci.toml");
    fs::write(&config, "[log]\nlevel = \"debug\"\n").unwrap();
    for path in [node.scratch.path(), &config] {
        std::os::unix::fs::chown(path, Some(1234), Some(1234)).unwrap();
    }
    let binary = node.scratch.path().join("plywood");
    fs::copy(env!("CARGO_BIN_EXE_plywood"), &binary).unwrap();
    let as_user = |config: &Path| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "1234", "--regid", "1234", "--clear-groups"]);
        told(&command.arg(&binary).args(["config", "check"]).arg(config).output().unwrap())
    };
    let (code, text) = as_user(&config);
    assert!(code == Some(0) && text.contains("belongs to uid 1234"), "{text}");
    // The daemon itself obeys none but root's.
    let strict = told(&check(&["--strict", config.to_str().unwrap()]));
    assert_eq!(strict.0, Some(1), "{strict:?}");
    let mut serve = Command::new("setpriv");
    serve.args(["--reuid", "1234", "--regid", "1234", "--clear-groups"]).arg(&binary).arg("serve");
    let (code, text) = told(&serve.output().unwrap());
    let want = "plywood: serve must run as root, not as uid 1234 [server.root]\n";
    assert_eq!((code, text.as_str()), (Some(1), want));
    fs::write(&config, "[log]\nlevel = \"loud\"\n").unwrap();
    let (code, text) = as_user(&config);
    assert!(code == Some(1) && text.contains("log.level"), "{text}");
}
