//! `integration/demo.sh` as a stranger uses it: asked for help, run twice, and interrupted.
//!
//! Every run has a directory for its files of its own, and it must be empty afterwards.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use plywood_integration::host;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use testkit::host::tools;
use testkit::{Need, Suite};

/// The programs that the demo starts.
const PROGRAMS: [&str; 9] = [
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
    "docker-registry",
    "oras",
    "busybox",
    "tar",
    "unshare",
];
/// Columns of the narrowest terminal that the demo is for.
const COLUMNS: usize = 80;
/// Longest time that a demo with a built program may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let mut suite = Suite::new();
    suite.test("help_is_printed_and_nothing_is_built", &[], help);
    suite.test("an_unknown_argument_is_wrong_usage", &[], unknown_argument);
    // Programs of the host are not enough: the demo would unpack its own first.
    let unpacked = Need::Other("setup/tools.sh", || tools().join(".stamp").exists());
    let needs = [&host::needs(&PROGRAMS)[..], &[unpacked]].concat();
    for (name, test) in [
        ("two_runs_show_the_same_and_fit_a_narrow_terminal", two_runs as fn()),
        ("a_demo_interrupted_while_it_builds_leaves_nothing", interrupted_build),
        ("a_demo_interrupted_at_its_daemons_leaves_nothing", || interrupted("== A registry", Signal::INT)),
        ("a_demo_interrupted_at_a_pull_leaves_nothing", || interrupted("== Pull", Signal::TERM)),
        ("a_demo_interrupted_at_a_container_leaves_nothing", || interrupted("== Run", Signal::HUP)),
    ] {
        suite.test(name, &needs, test);
    }
    suite.run()
}

fn script() -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("demo.sh"));
    command.stdin(Stdio::null());
    command
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8(bytes.to_vec()).unwrap().lines().map(ToOwned::to_owned).collect()
}

/// The script with an argument, and no tools with which it could do anything.
fn asked(argument: &str) -> Output {
    let scratch = TempDir::new().unwrap();
    let mut command = script();
    let command =
        command.arg(argument).env_clear().env("PATH", "/usr/bin:/bin").env("TMPDIR", scratch.path());
    // Should it go on all the same, it ends here.
    let output = command.env("PLYWOOD_BIN", "/nonexistent").output().unwrap();
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    output
}

fn help() {
    for argument in ["--help", "-h"] {
        let output = asked(argument);
        let shown = lines(&output.stdout);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        assert!(shown[0].starts_with("Usage: integration/demo.sh"), "{shown:?}");
        assert!(shown.iter().all(|line| line.len() <= COLUMNS && !line.starts_with("==")), "{shown:?}");
    }
}

fn unknown_argument() {
    for argument in ["--halp", "image", ""] {
        let output = asked(argument);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(output.stdout.is_empty() && lines(&output.stderr)[0].starts_with("demo: "), "{output:?}");
    }
}

/// A demo that runs, its files in a directory of its own.
struct Demo {
    /// Where its files are.
    files: TempDir,
    /// Where its messages are.
    messages: TempDir,
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Demo {
    /// Starts `command`, a form of [`script`].
    fn start(command: &mut Command) -> Self {
        let [files, messages] = [(); 2].map(|()| tempfile::tempdir_in("/tmp").unwrap());
        command.env("TMPDIR", files.path()).stdout(Stdio::piped());
        command.env("PLYWOOD_TOOLS_DIR", tools());
        let mut child =
            command.stderr(File::create(messages.path().join("stderr")).unwrap()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { files, messages, child, output }
    }

    /// Reads on to the line that starts with `text`, which is returned with all before it.
    fn read_to(&mut self, text: &str) -> Vec<String> {
        let mut read = Vec::new();
        loop {
            let mut line = String::new();
            let bytes = self.output.read_line(&mut line).unwrap();
            assert!(bytes > 0, "no {text:?} in {read:?}: {}", self.messages());
            read.push(line.trim_end().to_owned());
            if line.starts_with(text) {
                return read;
            }
        }
    }

    fn messages(&self) -> String {
        fs::read_to_string(self.messages.path().join("stderr")).unwrap()
    }

    /// The name of its directory, under which its cgroups are as well.
    fn name(&self) -> String {
        let entry = fs::read_dir(self.files.path()).unwrap().next().unwrap().unwrap();
        entry.file_name().into_string().unwrap()
    }

    fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "it goes on: {}", self.messages());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Nothing of what the demo called `name` is there any more.
    fn assert_nothing_is_left(&self, name: &str) {
        let files: Vec<_> = fs::read_dir(self.files.path()).unwrap().collect();
        assert!(files.is_empty(), "{files:?}");
        assert_eq!(processes_with(self.files.path()), Vec::<String>::new());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(name), "{mounts}");
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
        let groups: Vec<PathBuf> = hierarchies
            .flat_map(|hierarchy| [hierarchy.join(name), hierarchy])
            .filter(|group| group.ends_with(name) && group.exists())
            .collect();
        assert!(groups.is_empty(), "{groups:?}");
    }
}

/// The command lines of processes that were started with `directory` in their environment.
fn processes_with(directory: &Path) -> Vec<String> {
    let wanted = directory.as_os_str().as_bytes();
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let found = processes.filter(|process| {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        environment.windows(wanted.len()).any(|part| part == wanted)
    });
    found.map(|process| fs::read_to_string(process.join("cmdline")).unwrap_or_default()).collect()
}

fn with_program() -> Command {
    let mut command = script();
    command.env("PLYWOOD_BIN", host::plywood_binary().unwrap());
    command
}

fn two_runs() {
    let mut demos = [(); 2].map(|()| Demo::start(&mut with_program()));
    let names = demos.each_mut().map(|demo| {
        demo.read_to("== Set-up");
        demo.name()
    });
    let mut names = names.iter();
    let [first, second] = demos.each_mut().map(|demo| {
        let name = names.next().unwrap();
        let shown = demo.read_to("== Done");
        assert!(demo.wait().success(), "{shown:?}: {}", demo.messages());
        demo.assert_nothing_is_left(name);
        shown
    });
    assert_eq!(first, second);
    // Blobs and layers have digests, the manifest as well.
    assert!(first.iter().filter(|line| line.contains("sha256:")).count() >= 4, "{first:?}");
    for line in first.iter().filter(|line| !line.starts_with("programs of")) {
        assert!(line.chars().count() <= COLUMNS, "{line}");
    }
}

fn interrupted(step: &str, signal: Signal) {
    interrupt(&mut with_program(), step, signal);
}

/// Sends `signal` to the script alone once it has shown the line `step`.
fn interrupt(command: &mut Command, step: &str, signal: Signal) {
    let mut demo = Demo::start(command);
    demo.read_to(step);
    let name = demo.name();
    // Some way into the step.
    std::thread::sleep(Duration::from_millis(100));
    kill_process(Pid::from_child(&demo.child), signal).unwrap();
    let status = demo.wait();
    assert_eq!(status.code(), Some(128 + signal.as_raw()), "{}", demo.messages());
    assert_eq!(demo.messages(), "demo: interrupted, cleaning up\n");
    demo.assert_nothing_is_left(&name);
}

/// A compiler that never comes to an end, and a helper of its own.
fn interrupted_build() {
    let programs = TempDir::new().unwrap();
    for (name, text) in [
        ("cargo", "mktemp >/dev/null; sleep 600 & sleep 600"),
        ("rustc", "echo rustc 9.0.0"),
        ("dpkg-query", "echo installed"),
    ] {
        let file = programs.path().join(name);
        fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap());
    interrupt(script().env_remove("PLYWOOD_BIN").env("PATH", path), "== Build", Signal::INT);
}
