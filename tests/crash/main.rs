//! A publisher that is killed, or whose disk is full or broken, at any of its system calls.
//!
//! strace runs it once to list its calls, then again and again with one of them turned into a SIGKILL,
//! `ENOSPC` or `EIO`. Whatever happens, the snapshot directory holds no layer or a whole one, a reply of
//! success means a whole one, and after the next start nothing else is left.
//!
//! Three publishers: the library alone, which has few calls and all of them about the layer, the daemon, and a command
//! that makes several files. Needs strace, and root for the daemon; `CRASH_POINTS` sets how many calls of each scenario are tried.

#![allow(clippy::print_stdout, reason = "counts are for people")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod command;
mod daemon;
mod library;

use std::{
    env,
    path::Path,
    process::{Command, ExitCode, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use libtest_mimic::Failed;
use testkit::{
    Need, Suite,
    strace::{self, Fault, Point},
};

/// Calls tried per scenario in a normal run.
const POINTS: usize = 200;

/// One way to publish a layer.
trait Publisher: Send + Sync + 'static {
    /// Publishes in `place`, undisturbed, behind strace with these arguments.
    fn traced(&self, place: &Path, strace: &[String]);

    /// Whether a line of the trace is about the snapshot directory in `place`.
    fn concerns(&self, place: &Path, line: &str) -> bool;

    /// Publishes in `place` behind strace with these arguments, which make one call fail, and looks at
    /// what is left.
    fn attempt(&self, place: &Path, strace: &[String], fault: Fault) -> Result<Outcome, String>;

    /// Arguments of strace that every run needs.
    fn always(&self, _scratch: &Path) -> Vec<String> {
        Vec::new()
    }
}

/// Effect of a fault after which the publisher kept its promises.
enum Outcome {
    /// It ended the work.
    Struck,
    /// Success was reported all the same, and rightly.
    Unharmed,
}

fn main() -> ExitCode {
    if let Some(code) = library::act() {
        return code;
    }
    let mut suite = Suite::new();
    let mut add = |name: &str, needs: &[Need], make: &dyn Fn() -> Box<dyn Publisher>| {
        for fault in [Fault::Kill, Fault::NoSpace, Fault::Broken] {
            let publisher = make();
            suite.test(format!("{name} {}", fault.name()), needs, move || run(&*publisher, fault));
        }
    };
    for (name, library) in library::SCENARIOS {
        add(&format!("library: {name}"), &[STRACE], &|| Box::new(library));
    }
    for (name, size) in daemon::SCENARIOS {
        let name = format!("daemon: {name}");
        add(&name, &[STRACE, Need::Root], &|| Box::new(daemon::Service::new(size)));
    }
    for (name, arguments) in command::SCENARIOS {
        add(&format!("command: {name}"), &[STRACE], &|| Box::new(command::Stargz::new(arguments)));
    }
    let name = "daemon: a_system_call_that_failed_once_is_made_again";
    suite.test(name, &[STRACE, Need::Root], daemon::failures_are_not_remembered);
    suite.run()
}

/// strace that can inject faults.
const STRACE: Need =
    Need::Other("strace", || run_quietly("strace", &["-f", "--seccomp-bpf", "-e", "trace=none", "true"]));

fn run_quietly(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn run(publisher: &dyn Publisher, fault: Fault) -> Result<(), Failed> {
    let scratch = tempfile::tempdir().unwrap();
    let always = publisher.always(scratch.path());
    let points = points(publisher, fault, &always, scratch.path());
    let asked = env::var("CRASH_POINTS").ok().and_then(|text| text.parse().ok());
    let want = asked.unwrap_or(POINTS);
    let chosen: Vec<&Point> = match points.len() {
        few if few <= want => points.iter().collect(),
        many => (0..want).map(|index| &points[index * many / want]).collect(),
    };
    assert!(chosen.len() > 10, "only {} system calls found", chosen.len());
    let next = AtomicUsize::new(0);
    let struck = AtomicUsize::new(0);
    let work = |place: &Path| {
        let mut failures = Vec::new();
        while let Some(point) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            match publisher.attempt(place, &point.injection(fault, &always), fault) {
                Ok(Outcome::Struck) => _ = struck.fetch_add(1, Ordering::Relaxed),
                Ok(Outcome::Unharmed) => {}
                Err(what) => failures.push(format!("{point}: {what}")),
            }
        }
        failures
    };
    let failures: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|worker| {
                let place = scratch.path().join(format!("worker-{worker}"));
                scope.spawn(move || work(&place))
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    if !failures.is_empty() {
        return Err(failures.join("\n").into());
    }
    // Some calls may fail without harm: those that ask for something nice to have, and in a program
    // of several threads those that another thread made more of this time.
    let struck = struck.into_inner();
    assert!(struck > chosen.len() / 2, "only {struck} of {} faults had an effect", chosen.len());
    if asked.is_some() {
        println!("{} of {} calls tried, {struck} with an effect", chosen.len(), points.len());
    }
    Ok(())
}

/// The system calls to disturb: for a kill all from the first that concerns the snapshot to the last,
/// for an error those that concern it.
fn points(publisher: &dyn Publisher, fault: Fault, always: &[String], scratch: &Path) -> Vec<Point> {
    let place = scratch.join("traced");
    let mut points = strace::list(scratch, always, |strace| publisher.traced(&place, strace));
    let concerns = |point: &Point| publisher.concerns(&place, &point.line);
    let begin = points.iter().position(concerns).expect("the snapshot is in the trace");
    let end = points.iter().rposition(concerns).expect("the snapshot is in the trace");
    points.truncate(end + 1);
    points.drain(..begin);
    // strace injects one fault per name of a call.
    points.retain(|point| always.is_empty() || point.call != "openat");
    if fault != Fault::Kill {
        // A file that cannot be closed or removed has been written all the same.
        points.retain(|point| concerns(point) && !matches!(point.call.as_str(), "close" | "unlinkat"));
    }
    points
}
