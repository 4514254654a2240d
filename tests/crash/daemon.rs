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
    devices::FILES,
    node::{GZIP, Node, SOON},
    strace::Fault,
    tree::names,
};
use tonic::Code;

use super::{Outcome, Publisher};

/// A gzip layer of so many files of so many bytes.
pub struct Service {
    scenario: Scenario,
    layer: OnceLock<Layer>,
}

#[derive(Clone, Copy)]
pub struct Scenario {
    files: usize,
    len: usize,
    form: Form,
}

/// Form that the layer gets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// An EROFS image.
    Image,
    /// A layer of a device, above one of overlaybd's, of `overlaybd.layers` and with these settings.
    Device(&'static str),
    /// The same, in the place of another layer with all files.
    Replaced(&'static str),
}

/// The blob, the answer it gets, and the files that it becomes.
struct Layer {
    blob: Vec<u8>,
    answer: Descriptor,
    files: Files,
}

type Files = Vec<(String, Vec<u8>)>;

const SMALL: Scenario = Scenario { files: 100, len: 5_000, form: Form::Image };
const TURBO: &str = "layers = \"turbo\"";
const INDEXED: &str = "layers = \"turbo\"\nkernel_index = true";
const NATIVE: &str = "layers = \"native\"";

pub const SCENARIOS: [(&str, Scenario); 7] = [
    ("a tiny layer", Scenario { files: 3, len: 10, ..SMALL }),
    ("a small layer", SMALL),
    ("a large layer", Scenario { files: 3_000, len: 4_000, ..SMALL }),
    ("an archive and its layer", Scenario { form: Form::Device(TURBO), ..SMALL }),
    ("an archive, its index and its layer", Scenario { form: Form::Device(INDEXED), ..SMALL }),
    ("an archive and its layer replaced", Scenario { form: Form::Replaced(INDEXED), ..SMALL }),
    (
        "an archive and its layer replaced by a native layer",
        Scenario { form: Form::Replaced(NATIVE), ..SMALL },
    ),
];

/// Contents of the files that stood in the place of a layer.
const OLD: &[u8] = b"an earlier layer";

impl Form {
    fn node(self) -> Node {
        match self {
            Self::Image => Node::new(),
            Self::Device(settings) | Self::Replaced(settings) => {
                Node::with(&format!("[overlaybd]\nvirtual_gib = 1\n{settings}"))
            }
        }
    }

    /// The request to apply `blob` to a fresh snapshot.
    fn request(self, node: &Node, blob: &[u8]) -> ApplyRequest {
        if self == Self::Image {
            return node.apply_request(1, blob);
        }
        let directory = node.device_snapshot(1);
        if let Self::Replaced(_) = self {
            for name in FILES {
                fs::write(directory.join(name), OLD).unwrap();
            }
        }
        node.lowest_device(2);
        node.device_request(node.device_overlay(1, &["2/fs"]), GZIP, &[], blob)
    }

    /// The files of the snapshot that its snapshotter did not make.
    fn files(self, node: &Node) -> Files {
        if self != Self::Image {
            return node.device_files(1);
        }
        let directory = node.root().join("snapshots/1");
        let mut names = names(&directory);
        names.retain(|name| !matches!(name.as_str(), "fs" | "work" | ".erofslayer"));
        names.into_iter().map(|name| (name.clone(), fs::read(directory.join(name)).unwrap())).collect()
    }

    /// The file that makes the others a layer.
    fn last(self) -> &'static str {
        if self == Self::Image { "layer.erofs" } else { FILES[2] }
    }
}

impl Service {
    pub fn new(scenario: Scenario) -> Self {
        Self { scenario, layer: OnceLock::new() }
    }

    /// Made by an undisturbed daemon.
    fn layer(&self) -> &Layer {
        self.layer.get_or_init(|| {
            let Scenario { files, len, form } = self.scenario;
            let tar = archive(files, len);
            let blob = gzip(&tar);
            let node = form.node();
            let daemon = node.start();
            let request = form.request(&node, &blob);
            assert_eq!(node.apply_over_grpc(&request).unwrap(), Node::applied(&tar));
            daemon.stop();
            Layer { blob, answer: Node::applied(&tar), files: form.files(&node) }
        })
    }

    /// A daemon behind strace, and the request that it shall get. The snapshot is newer than the
    /// daemon's sweep.
    fn node(&self, strace: &[String]) -> (Node, Daemon, Attached, ApplyRequest) {
        let form = self.scenario.form;
        let node = form.node();
        let daemon = node.start();
        let attached = Attached::to(&daemon, strace);
        let request = form.request(&node, &self.layer().blob);
        (node, daemon, attached, request)
    }

    /// Looks at the files of a snapshot. Returns whether they are a whole layer, this one or an earlier one; otherwise
    /// there is none. Errors: a torn file, a layer beside files of another one, or a file that belongs to none.
    fn is_layer(&self, found: &Files) -> Result<Option<Made>, String> {
        let (form, made) = (self.scenario.form, &self.layer().files);
        let sizes = || found.iter().map(|(name, bytes)| (name.as_str(), bytes.len())).collect::<Vec<_>>();
        let is_old = |(name, bytes): &(String, Vec<u8>)| bytes == OLD && FILES.contains(&name.as_str());
        let replaces = matches!(form, Form::Replaced(_));
        if found.iter().any(|file| !(made.contains(file) || (replaces && is_old(file)))) {
            return Err(format!("torn, or none of ours: {:?}", sizes()));
        }
        if !found.iter().any(|(name, _)| name == form.last()) {
            return Ok(None);
        }
        if found == made {
            return Ok(Some(Made::Now));
        }
        match found.len() == FILES.len() && found.iter().all(is_old) {
            true => Ok(Some(Made::Before)),
            false => Err(format!("a layer beside files of another one: {:?}", sizes())),
        }
    }
}

/// The time at which a layer was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    Before,
    Now,
}

/// Lets a call of the daemon fail each time it is made during one request, and then no more: whatever the
/// daemon concluded from it, the next request succeeds.
pub fn failures_are_not_remembered() {
    const CALLS: [&str; 9] =
        ["statx", "openat2", "fstat", "newfstatat", "fallocate", "linkat", "fstatfs", "fsync", "getrandom"];
    let service = Service::new(Scenario { files: 3, len: 10, ..SMALL });
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
        // Not the device below, which is only read: what a read answers is no matter of publishing.
        ["snapshotter.v1.erofs/snapshots", "overlaybd/snapshots/1", "\"snapshots/1\""]
            .iter()
            .any(|name| line.contains(name))
    }

    fn attempt(&self, _: &Path, strace: &[String], fault: Fault) -> Result<Outcome, String> {
        let (form, Layer { answer, files, .. }) = (self.scenario.form, self.layer());
        let (node, daemon, attached, request) = self.node(strace);
        let reply = node.apply_over_grpc(&request);
        let found = form.files(&node);
        // Temporary files of a killed daemon are no part of any layer.
        let named: Files = found.iter().filter(|(name, _)| !name.starts_with(".plywood-")).cloned().collect();
        let layer = self.is_layer(&named)?;
        let want = if fault == Fault::NoSpace { Code::ResourceExhausted } else { Code::Unavailable };
        match &reply {
            Ok(reply) if reply != answer => return Err(format!("a wrong answer: {reply:?}")),
            Ok(_) if layer != Some(Made::Now) => {
                return Err(format!("success was reported without a layer: {layer:?}"));
            }
            Ok(_) => {}
            Err(_) if fault == Fault::Kill => {}
            Err(status) if status.code() != want => {
                return Err(format!("{status:?} instead of {want:?}; {}", daemon.log()));
            }
            // Of an earlier layer of several files some may be gone.
            Err(_) if matches!(form, Form::Replaced(_)) && layer != Some(Made::Now) => {}
            Err(_) if found.is_empty() => {}
            Err(_) => return Err(format!("left after the refusal: {layer:?}, {}", listed(&found))),
        }
        drop(attached);
        // The next start sweeps, and the same request then works.
        drop(daemon);
        let next = node.start();
        let swept = form.files(&node);
        if swept != named {
            return Err(format!("after the next start: {} of {}", listed(&swept), listed(&named)));
        }
        let again = node.apply_over_grpc(&request);
        if again.as_ref().ok() != Some(answer) {
            return Err(format!("the next request fails: {again:?}; {}", next.log()));
        }
        next.stop();
        if form.files(&node) != *files {
            return Err(format!("the next request left {}", listed(&form.files(&node))));
        }
        Ok(if reply.is_ok() { Outcome::Unharmed } else { Outcome::Struck })
    }
}

fn listed(files: &Files) -> String {
    format!("{:?}", files.iter().map(|(name, bytes)| (name, bytes.len())).collect::<Vec<_>>())
}
