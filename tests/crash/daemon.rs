//! The publisher as it is: the daemon, with a content store in this process.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use containerd_client::{services::v1::ApplyRequest, types::Descriptor};
use testkit::{
    archive::{archive, gzip},
    daemon::Daemon,
    node::{Node, SOON},
    strace::Fault,
    tree::names,
};
use tonic::Code;

use super::{Outcome, Publisher};

/// A gzip layer of so many files of so many bytes.
pub struct Service {
    files: usize,
    len: usize,
    layer: OnceLock<Layer>,
}

/// The blob, the answer it gets, and the image that it becomes.
struct Layer {
    blob: Vec<u8>,
    answer: Descriptor,
    image: Vec<u8>,
}

pub const SCENARIOS: [(&str, (usize, usize)); 3] =
    [("a tiny layer", (3, 10)), ("a small layer", (100, 5_000)), ("a large layer", (3_000, 4_000))];

impl Service {
    pub fn new((files, len): (usize, usize)) -> Self {
        Self { files, len, layer: OnceLock::new() }
    }

    /// Made by an undisturbed daemon.
    fn layer(&self) -> &Layer {
        self.layer.get_or_init(|| {
            let tar = archive(self.files, self.len);
            let blob = gzip(&tar);
            let node = Node::new();
            let daemon = node.start();
            let request = node.apply_request(1, &blob);
            assert_eq!(node.apply_over_grpc(&request).unwrap(), Node::applied(&tar));
            daemon.stop();
            let image = fs::read(node.root().join("snapshots/1/layer.erofs")).unwrap();
            Layer { blob, answer: Node::applied(&tar), image }
        })
    }

    /// A daemon behind strace, and the request that it shall get. The snapshot is newer than the
    /// daemon's sweep.
    fn node(&self, strace: &[String]) -> (Node, Daemon, Attached, ApplyRequest) {
        let node = Node::new();
        let daemon = node.start();
        let attached = Attached::to(&daemon, strace);
        let request = node.apply_request(1, &self.layer().blob);
        (node, daemon, attached, request)
    }
}

/// Lets a call of the daemon fail each time it is made during one request, and then no more: whatever the
/// daemon concluded from it, the next request succeeds.
pub fn failures_are_not_remembered() {
    const CALLS: [&str; 9] =
        ["statx", "openat2", "fstat", "newfstatat", "fallocate", "linkat", "fstatfs", "fsync", "getrandom"];
    let service = Service::new((3, 10));
    for call in CALLS {
        for error in ["ENOSYS", "EPERM"] {
            let inject = format!("inject={call}:error={error}");
            let strace = ["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject];
            let (node, daemon, attached, request) = service.node(&strace.map(String::from));
            let disturbed = node.apply_over_grpc(&request);
            drop(attached);
            let reply = node.apply_over_grpc(&request).unwrap_or_else(|status| {
                panic!("{call} {error}: {disturbed:?}, then {status:?}");
            });
            assert_eq!(reply, service.layer().answer, "{call} {error}");
            daemon.stop();
        }
    }
}

/// strace on a process that runs already, so that its start is neither listed nor disturbed.
struct Attached(Child);

impl Attached {
    fn to(daemon: &Daemon, strace: &[String]) -> Self {
        let pid = daemon.pid().to_string();
        let mut child = Command::new("strace")
            .args(strace)
            .args(["-p", &pid])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let own = format!("TracerPid:\t{}\n", child.id());
        let traced = |task: fs::DirEntry| {
            fs::read_to_string(task.path().join("status")).is_ok_and(|status| status.contains(&own))
        };
        let end = Instant::now() + SOON;
        let tasks = || fs::read_dir(format!("/proc/{pid}/task"));
        while !tasks().is_ok_and(|mut tasks| tasks.all(|task| task.is_ok_and(traced))) {
            // A thread that only waits makes calls too: the fault may have ended the daemon already.
            if child.try_wait().unwrap().is_some() {
                break;
            }
            assert!(Instant::now() < end, "strace attaches to no process");
            std::thread::sleep(Duration::from_millis(2));
        }
        Self(child)
    }

    /// Waits until strace has seen the end of the process.
    fn wait(mut self) {
        self.0.wait().unwrap();
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Publisher for Service {
    fn traced(&self, _: &Path, strace: &[String]) {
        let (node, daemon, attached, request) = self.node(strace);
        assert_eq!(node.apply_over_grpc(&request).unwrap(), self.layer().answer);
        daemon.stop();
        attached.wait();
    }

    fn concerns(&self, _: &Path, line: &str) -> bool {
        line.contains("snapshotter.v1.erofs/snapshots") || line.contains("\"snapshots/1\"")
    }

    fn attempt(&self, _: &Path, strace: &[String], fault: Fault) -> Result<Outcome, String> {
        let Layer { answer, image, .. } = self.layer();
        let (node, daemon, attached, request) = self.node(strace);
        let snapshot = node.root().join("snapshots/1");
        let reply = node.apply_over_grpc(&request);
        let found = fs::read(snapshot.join("layer.erofs")).ok();
        if found.as_ref().is_some_and(|found| found != image) {
            return Err(format!("a layer of {:?} bytes is left", found.map(|found| found.len())));
        }
        let left = |when: &str, published: bool| {
            let mut names = names(&snapshot);
            names.retain(|name| !matches!(name.as_str(), "fs" | "work" | ".erofslayer"));
            names.retain(|name| !(published && name == "layer.erofs"));
            if names.is_empty() { Ok(()) } else { Err(format!("{names:?} left {when}")) }
        };
        let want = if fault == Fault::NoSpace { Code::ResourceExhausted } else { Code::Unavailable };
        match &reply {
            Ok(reply) if reply != answer => return Err(format!("a wrong answer: {reply:?}")),
            Ok(_) if found.is_none() => return Err("success was reported without a layer".into()),
            Ok(_) => {}
            Err(_) if fault == Fault::Kill => {}
            Err(status) if status.code() != want => {
                return Err(format!("{status:?} instead of {want:?}; {}", daemon.log()));
            }
            Err(_) => left("after the refusal", false)?,
        }
        drop(attached);
        // The next start sweeps, and the same request then works.
        drop(daemon);
        let next = node.start();
        left("after the next start", true)?;
        let again = node.apply_over_grpc(&request);
        if again.as_ref().ok() != Some(answer) {
            return Err(format!("the next request fails: {again:?}; {}", next.log()));
        }
        next.stop();
        if fs::read(snapshot.join("layer.erofs")).ok().as_ref() != Some(image) {
            return Err("the next request made another image".into());
        }
        Ok(if reply.is_ok() { Outcome::Unharmed } else { Outcome::Struck })
    }
}
