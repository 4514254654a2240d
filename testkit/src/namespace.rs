//! Namespaces of the test program's own, so that no way to end leaves a mount or a process behind.

use std::{
    env,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

/// Set for the program that runs inside.
const INSIDE: &str = "PLYWOOD_TEST_INSIDE";

/// Options of `unshare` for mounts alone.
const MOUNTS: &[&str] = &["--mount", "--propagation", "private"];
/// For mounts and processes: those that are left are killed when the first of them ends.
const PROCESSES: &[&str] = &["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Runs this very program again in a mount namespace of its own, and does not return, where that is possible.
///
/// Without the right to it the tests go on outside: those that ask for [`crate::Need::MountNamespace`] are skipped, and
/// the others undo their mounts one by one. To be called before there is another thread.
pub fn enter() {
    if !is_own() && rustix::process::geteuid().is_root() && works(MOUNTS) {
        // Returns only when it could not start.
        let _ = again(MOUNTS);
    }
}

/// Whether the program runs inside.
pub fn is_own() -> bool {
    env::var_os(INSIDE).is_some()
}

/// Runs this very program again in mount and process namespaces of its own. Returns only inside.
pub fn isolate() -> anyhow::Result<()> {
    if is_own() { Ok(()) } else { Err(again(PROCESSES).into()) }
}

/// Whether [`isolate`] is possible.
pub fn can_isolate() -> bool {
    works(PROCESSES)
}

fn unshare(options: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(options).arg("--");
    command
}

fn works(options: &[&str]) -> bool {
    let mut command = unshare(options);
    let command = command.arg("true").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn again(options: &[&str]) -> std::io::Error {
    let own = env::current_exe().expect("a process has a program");
    unshare(options).arg(own).args(env::args_os().skip(1)).env(INSIDE, "1").exec()
}
