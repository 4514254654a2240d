//! The real binary, from its command line to its exit code: a child process on a socket, with a content
//! store in this process that answers like containerd's.
//!
//! It needs root, because the daemon obeys only a configuration that root alone can change.
//!
//! `PLYWOOD_TEST_APPLIES` sets how many layers the leak test applies (default 300).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "the figures of the leak test are its result")]

#[path = "../support/containerd.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod containerd;
mod faults;
mod harness;
mod lifecycle;
mod load;
mod requests;

use libtest_mimic::{Arguments, Trial};

fn main() {
    let is_root = rustix::process::geteuid().is_root();
    let tests = [requests::TESTS, faults::TESTS, lifecycle::TESTS, load::TESTS].concat();
    let trial = |(name, test): (&'static str, fn())| {
        let run = move || {
            test();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(!is_root)
    };
    libtest_mimic::run(&Arguments::from_args(), tests.into_iter().map(trial).collect()).exit();
}
