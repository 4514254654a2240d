//! A mount namespace of the test program's own, so that no way to end leaves a mount behind.

use std::{
    env,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

/// Set for the program that runs inside.
const INSIDE: &str = "PLYWOOD_TEST_INSIDE";

/// Runs this very program again in a mount namespace of its own, and does not return, where that is possible.
///
/// Without the right to it the tests go on outside: those that ask for [`crate::Need::MountNamespace`] are skipped, and
/// the others undo their mounts one by one. To be called before there is another thread.
pub fn enter() {
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--"]);
        command
    };
    let works = || unshare().arg("true").stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if !is_own() && rustix::process::geteuid().is_root() && works() {
        let own = env::current_exe().expect("a process has a program");
        // Returns only when it could not start.
        let _ = unshare().arg(own).args(env::args_os().skip(1)).env(INSIDE, "1").exec();
    }
}

/// Whether the program runs inside.
pub fn is_own() -> bool {
    env::var_os(INSIDE).is_some()
}
