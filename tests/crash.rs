//! A publisher that is killed, or told that the disk is full or broken, at any of its system calls.
//!
//! strace runs the publisher once to list its calls, then again and again with one of them turned into
//! a SIGKILL, `ENOSPC` or `EIO`. Whatever happens, the snapshot directory holds no layer or a whole one,
//! a reply of success means a whole one, and after the next start nothing else is left.
//!
//! Needs strace; `CRASH_POINTS` sets how many calls of each scenario are tried.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use libtest_mimic::{Arguments, Failed, Trial};
use plywood::{
    error::Error,
    format::Sink,
    limits::Limits,
    snapshot::{Durability, LAYER_NAME, Mount, Roots},
};

/// Set for the process that is to be killed: what it shall do, and in which root.
const ROLE: &str = "PLYWOOD_CRASH_ROLE";
const ROOT: &str = "PLYWOOD_CRASH_ROOT";
/// What an earlier layer of the same snapshot holds.
const OLD: &[u8] = b"an earlier layer";
/// Bytes of one write.
const PIECE: usize = 128 << 10;
/// Calls tried per scenario in a normal run.
const POINTS: usize = 70;

fn main() -> ExitCode {
    if let Ok(role) = env::var(ROLE) {
        return act(&role, Path::new(&env::var_os(ROOT).unwrap()));
    }
    let arguments = Arguments::from_args();
    let missing = !works("strace", &["-f", "--seccomp-bpf", "-e", "trace=none", "true"]);
    let mut trials = Vec::new();
    for scenario in SCENARIOS {
        for fault in [Fault::Kill, Fault::NoSpace, Fault::Broken] {
            let name = format!("{} {}", scenario.name, fault.name());
            let trial = Trial::test(name, move || run(scenario, fault));
            trials.push(trial.with_ignored_flag(missing).with_kind("needs strace"));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn works(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// One way to publish.
#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    len: usize,
    /// A layer is there already.
    existing: bool,
    /// The file system has no unnamed files.
    named: bool,
}

const SCENARIOS: [Scenario; 5] = [
    Scenario { name: "a tiny layer", len: 10, existing: false, named: false },
    Scenario { name: "a small layer", len: 1 << 20, existing: false, named: false },
    Scenario { name: "a large layer", len: 12 << 20, existing: false, named: false },
    Scenario { name: "a replaced layer", len: 1 << 20, existing: true, named: false },
    Scenario { name: "a layer without unnamed files", len: 1 << 20, existing: false, named: true },
];

/// What happens to the chosen system call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    NoSpace,
    Broken,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "survives SIGKILL",
            Self::NoSpace => "survives ENOSPC",
            Self::Broken => "survives EIO",
        }
    }

    fn injection(self) -> &'static str {
        match self {
            Self::Kill => "signal=KILL",
            Self::NoSpace => "error=ENOSPC",
            Self::Broken => "error=EIO",
        }
    }

    /// The kind of error that the publisher must report.
    fn kind(self) -> &'static str {
        match self {
            Self::NoSpace => "resource_exhausted",
            _ => "unavailable",
        }
    }
}

/// The bytes of a layer.
fn contents(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

// --- the publisher ---------------------------------------------------------------------------

fn act(role: &str, root: &Path) -> ExitCode {
    let outcome = match role.strip_prefix("publish ") {
        Some(len) => publish(root, len.parse().unwrap()),
        None => sweep(root),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = format!("{} {}: {error}", error.kind().as_str(), error.reason());
            std::io::stderr().write_all(text.as_bytes()).unwrap();
            ExitCode::FAILURE
        }
    }
}

fn publish(root: &Path, len: usize) -> Result<(), Error> {
    let roots = Roots::open(&[root.to_owned()])?;
    let source = root.join("snapshots/1/fs").to_str().unwrap().to_owned();
    let mount = Mount { kind: "bind".into(), source, ..Mount::default() };
    let snapshot = roots.resolve(&[mount])?;
    let limits = Limits { reserve_bytes: 0, reserve_percent: 0, ..Limits::default() };
    let mut layer = snapshot.layer_file(LAYER_NAME, &limits)?;
    // The head last, as an image's superblock.
    let bytes = contents(len);
    let (head, body) = bytes.split_at(len.min(PIECE));
    let mut at = head.len() as u64;
    for piece in body.chunks(PIECE) {
        layer.write_at(at, piece).map_err(Error::disk)?;
        at += piece.len() as u64;
    }
    layer.write_at(0, head).map_err(Error::disk)?;
    layer.set_len(bytes.len() as u64).map_err(Error::disk)?;
    layer.commit(Durability::Always, false)?;
    Ok(())
}

fn sweep(root: &Path) -> Result<(), Error> {
    let swept = Roots::open(&[root.to_owned()])?.sweep().run(Duration::from_secs(60));
    assert!(swept.finished && swept.failed == 0 && swept.live == 0, "{swept:?}");
    Ok(())
}

// --- the tests -------------------------------------------------------------------------------

/// One system call of the publisher: the `number`th of its name in its thread.
#[derive(Clone, Debug)]
struct Point {
    call: String,
    number: usize,
    line: String,
}

fn run(scenario: Scenario, fault: Fault) -> Result<(), Failed> {
    let scratch = tempfile::tempdir().unwrap();
    let unnamed = if scenario.named { Some(unnamed_open(scenario, scratch.path())) } else { None };
    let points = points(scenario, fault, unnamed, scratch.path());
    let want = env::var("CRASH_POINTS").ok().and_then(|text| text.parse().ok()).unwrap_or(POINTS);
    let chosen: Vec<&Point> = match points.len() {
        few if few <= want => points.iter().collect(),
        many => (0..want).map(|index| &points[index * many / want]).collect(),
    };
    assert!(chosen.len() > 10, "only {} system calls found", chosen.len());
    let next = AtomicUsize::new(0);
    let struck = AtomicUsize::new(0);
    let failures: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|worker| {
                let root = scratch.path().join(format!("worker-{worker}"));
                let (chosen, next, struck) = (&chosen, &next, &struck);
                scope.spawn(move || {
                    let mut failures = Vec::new();
                    while let Some(point) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                        match attempt(scenario, fault, unnamed, point, &root) {
                            Ok(Outcome::Struck) => _ = struck.fetch_add(1, Ordering::Relaxed),
                            Ok(Outcome::Unharmed) => {}
                            Err(what) => failures
                                .push(format!("{} {} ({}): {what}", point.call, point.number, point.line)),
                        }
                    }
                    failures
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    if !failures.is_empty() {
        return Err(failures.join("\n").into());
    }
    // Some calls may fail without harm, as those that only ask for something nice to have.
    let struck = struck.into_inner();
    let enough = if fault == Fault::Kill { chosen.len() * 9 / 10 } else { chosen.len() / 2 };
    assert!(struck >= enough, "only {struck} of {} faults had an effect", chosen.len());
    Ok(())
}

/// What a fault did that was survived.
enum Outcome {
    /// It ended the publisher.
    Struck,
    /// The publisher reported success.
    Unharmed,
}

/// A fresh snapshot directory.
fn prepare(scenario: Scenario, root: &Path) -> PathBuf {
    let _ = fs::remove_dir_all(root);
    let snapshot = root.join("snapshots/1");
    fs::create_dir_all(snapshot.join("fs")).unwrap();
    fs::write(snapshot.join(".erofslayer"), "").unwrap();
    for dir in [root, &snapshot] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
    }
    if scenario.existing {
        fs::write(snapshot.join("layer.erofs"), OLD).unwrap();
    }
    snapshot
}

/// The publisher as a child process, behind `strace` with these arguments if there are any.
fn publisher(scenario: Scenario, root: &Path, strace: &[String]) -> Output {
    let own = env::current_exe().unwrap();
    let mut command = if strace.is_empty() {
        Command::new(own)
    } else {
        let mut command = Command::new("strace");
        command.args(strace).arg(own);
        command
    };
    command.env(ROLE, format!("publish {}", scenario.len)).env(ROOT, root).output().unwrap()
}

/// Which of the publisher's `openat` calls asks for an unnamed file.
fn unnamed_open(scenario: Scenario, scratch: &Path) -> usize {
    let calls = trace(scenario, None, scratch);
    let open = calls.iter().find(|point| point.call == "openat" && point.line.contains("O_TMPFILE"));
    open.expect("the publisher asks for an unnamed file first").number
}

/// The injection that takes unnamed files away from the publisher.
fn without_unnamed(number: Option<usize>) -> Vec<String> {
    let inject = |number| vec!["-e".into(), format!("inject=openat:error=EOPNOTSUPP:when={number}")];
    number.map(inject).unwrap_or_default()
}

/// All system calls of an undisturbed run, in their order.
fn trace(scenario: Scenario, unnamed: Option<usize>, scratch: &Path) -> Vec<Point> {
    let root = scratch.join("traced");
    prepare(scenario, &root);
    let log = scratch.join("trace.log");
    let mut strace: Vec<String> = ["-f", "-y", "-s", "0", "-o"].map(String::from).into();
    strace.push(log.to_str().unwrap().to_owned());
    strace.extend(without_unnamed(unnamed));
    let output = publisher(scenario, &root, &strace);
    assert!(output.status.success(), "{output:?}");
    let mut counts = BTreeMap::new();
    let mut points = Vec::new();
    for line in fs::read_to_string(&log).unwrap().lines() {
        let Some((thread, text)) = line.split_once(' ') else { continue };
        let Some((call, _)) = text.trim_start().split_once('(') else { continue };
        if !call.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            continue;
        }
        let number = counts.entry((thread.to_owned(), call.to_owned())).or_insert(0_usize);
        *number += 1;
        points.push(Point { call: call.to_owned(), number: *number, line: text.to_owned() });
    }
    points
}

/// The system calls to disturb: for a kill all from the first that concerns the root on, for an error
/// those that concern it.
fn points(scenario: Scenario, fault: Fault, unnamed: Option<usize>, scratch: &Path) -> Vec<Point> {
    let root = scratch.join("traced").to_str().unwrap().to_owned();
    let mut points = trace(scenario, unnamed, scratch);
    let begin = points.iter().position(|point| point.line.contains(&root)).unwrap();
    points.drain(..begin);
    // strace injects one fault per name of a call.
    points.retain(|point| unnamed.is_none() || point.call != "openat");
    if fault != Fault::Kill {
        // A file that cannot be closed or unlocked has been written all the same.
        points.retain(|point| {
            point.line.contains(&root) && !matches!(point.call.as_str(), "close" | "unlink" | "unlinkat")
        });
    }
    points
}

/// Runs the publisher with one fault and looks at what it leaves.
fn attempt(
    scenario: Scenario,
    fault: Fault,
    unnamed: Option<usize>,
    point: &Point,
    root: &Path,
) -> Result<Outcome, String> {
    let snapshot = prepare(scenario, root);
    let mut strace: Vec<String> = ["-f", "-qq", "-o", "/dev/null"].map(String::from).into();
    if fault != Fault::Kill {
        // Stops at the traced calls only; signals are not injected that way.
        strace.push("--seccomp-bpf".into());
    }
    let traced = if unnamed.is_some() { format!("{},openat", point.call) } else { point.call.clone() };
    strace.extend(["-e".into(), format!("trace={traced}")]);
    strace.extend(without_unnamed(unnamed));
    let what = format!("inject={}:{}:when={}", point.call, fault.injection(), point.number);
    strace.extend(["-e".into(), what]);
    let output = publisher(scenario, root, &strace);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    let killed = output.status.signal() == Some(9);

    let found = fs::read(snapshot.join("layer.erofs")).ok();
    let whole = found.as_deref() == Some(&contents(scenario.len)[..]);
    let before = found.as_deref() == scenario.existing.then_some(OLD);
    if !whole && !before {
        return Err(format!("a layer of {:?} bytes is left", found.map(|bytes| bytes.len())));
    }
    match fault {
        _ if output.status.success() && whole => {}
        _ if output.status.success() => return Err("success was reported without a layer".into()),
        Fault::Kill if killed => {}
        Fault::Kill => return Err(format!("not killed: {:?}: {message}", output.status)),
        _ if !message.starts_with(fault.kind()) => {
            return Err(format!("{:?} instead of {}: {message}", output.status, fault.kind()));
        }
        // What was replaced before the directory could not be synced stays replaced.
        _ if whole && !scenario.existing => return Err(format!("a layer is left after {message}")),
        _ => {}
    }
    let leftovers = |when: &str| {
        let mut names: Vec<_> =
            fs::read_dir(&snapshot).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.retain(|name| !matches!(name.to_str(), Some(".erofslayer" | "fs" | "layer.erofs")));
        if names.is_empty() { Ok(()) } else { Err(format!("{names:?} left {when}")) }
    };
    if !killed {
        leftovers("by the publisher")?;
    }
    let own = env::current_exe().unwrap();
    let next = Command::new(own).env(ROLE, "sweep").env(ROOT, root).output().unwrap();
    if !next.status.success() {
        return Err(format!("the next start fails: {}", String::from_utf8_lossy(&next.stderr)));
    }
    leftovers("after the next start")?;
    if fs::read(snapshot.join("layer.erofs")).ok() != found {
        return Err("the next start touched the layer".into());
    }
    Ok(if output.status.success() { Outcome::Unharmed } else { Outcome::Struck })
}
