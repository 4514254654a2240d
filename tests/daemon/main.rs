//! The real binary, from its command line to its exit code: a child process on a socket, with a content
//! store in this process that answers like containerd's.
//!
//! It needs root, because the daemon obeys only a configuration that root alone can change.
//!
//! `PLYWOOD_TEST_APPLIES` sets how many layers the leak test applies (default 300),
//! `PLYWOOD_TEST_RESTART_CALLS` how many requests the restart test makes (default 150).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "the figures of some tests are their result")]

#[path = "../support/containerd.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod containerd;
mod diff;
mod faults;
mod harness;
#[path = "../tree_oracle/images.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod images;
mod lifecycle;
mod load;
#[path = "../support/mounts.rs"]
mod mounts;
mod requests;
mod restart;
mod surroundings;
#[path = "../tree_oracle/tree.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod tree;
#[path = "../support/unit_filter.rs"]
mod unit;
mod unit_filter;

use std::{env, os::unix::process::CommandExt as _, process::Command};

use libtest_mimic::{Arguments, Completion, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let is_root = rustix::process::geteuid().is_root();
    let mounts = if is_root { enter_own_mounts() } else { Err("needs root") };
    let plain =
        [requests::TESTS, faults::TESTS, lifecycle::TESTS, surroundings::TESTS, load::TESTS, restart::TESTS]
            .concat();
    let trial = |(name, test): harness::Test, missing: Option<&'static str>| {
        Trial::ignorable_test(name, move || match missing {
            Some(what) => Ok(Completion::ignored_with(what)),
            None => {
                test();
                Ok(Completion::Completed)
            }
        })
    };
    let needs_root = (!is_root).then_some("needs root");
    let plain = plain.into_iter().map(|test| trial(test, needs_root));
    let diff = diff::tests().into_iter().map(|test| trial(test, mounts.err()));
    let without_filter = mounts.err().or_else(unit::missing);
    let filter = unit_filter::TESTS.iter().map(|test| trial(*test, without_filter));
    libtest_mimic::run(&arguments, plain.chain(diff).chain(filter).collect()).exit();
}

/// Goes on in a mount namespace of its own, so that no way to end leaves a mount behind. Errors: what is
/// missing for mounts of images and overlays.
fn enter_own_mounts() -> Result<(), &'static str> {
    const INSIDE: &str = "PLYWOOD_DAEMON_TEST_INSIDE";
    if !images::kernel_has_erofs() {
        return Err("needs EROFS in the kernel");
    }
    if images::program("mkfs.ext4").is_none() {
        return Err("needs mkfs.ext4");
    }
    if env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--"]);
        command
    };
    if images::run(unshare().arg("true")).is_err() {
        return Err("needs mount namespaces");
    }
    let error = unshare().args(env::current_exe()).args(env::args_os().skip(1)).env(INSIDE, "1").exec();
    panic!("unshare: {error}");
}
