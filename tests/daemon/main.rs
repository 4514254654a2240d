//! The daemon: both wires and the content client in this process, and the real binary as a child, from its command
//! line to its exit code, on a socket, with a content store in this process that answers like containerd's.
//!
//! The real binary needs root, because the daemon obeys only a configuration that root alone can change.
//!
//! `PLYWOOD_TEST_APPLIES` sets how many layers the leak test applies (default 300),
//! `PLYWOOD_TEST_RESTART_CALLS` how many requests the restart test makes (default 150).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "the figures of some tests are their result")]

mod broker;
mod diff;
mod faults;
mod harness;
mod lifecycle;
mod load;
mod overlaybd;
mod processors;
mod requests;
mod restart;
mod sandbox;
mod server;
mod store;
mod surroundings;
mod unit_filter;
mod unpack;

use testkit::{Need, Suite, namespace, unit_filter::NEEDS};

fn main() {
    namespace::enter();
    let mut suite = Suite::new();
    let root = &[Need::Root][..];
    suite.room("requests", |suite| suite.table(root, requests::TESTS));
    suite.room("faults", |suite| suite.table(root, faults::TESTS));
    suite.room("lifecycle", |suite| suite.table(root, lifecycle::TESTS));
    suite.room("surroundings", |suite| suite.table(root, surroundings::TESTS));
    suite.room("load", |suite| suite.table(root, load::TESTS));
    suite.room("restart", |suite| suite.table(root, restart::TESTS));
    suite.room("unpack", |suite| suite.table(root, unpack::TESTS));
    let mounts = &[Need::Root, Need::FileSystem("erofs"), Need::Tool("mkfs.ext4"), Need::MountNamespace][..];
    suite.room("diff", |suite| suite.table(mounts, &diff::tests()));
    suite.room("overlaybd", |suite| {
        suite.table(root, overlaybd::TESTS);
        suite.table(mounts, overlaybd::MOUNTED);
    });
    let filter = [mounts, &NEEDS].concat();
    suite.room("unit_filter", |suite| suite.table(&filter, unit_filter::TESTS));
    suite.room("broker", broker::add);
    let with_xz = [root, &[processors::XZ]].concat();
    suite.room("processors", |suite| {
        suite.table(&with_xz, processors::TESTS);
        suite.table(&[&filter[..], &[processors::XZ]].concat(), processors::FILTERED);
    });
    suite.room("sandbox", sandbox::add);
    suite.room("server", server::add);
    suite.room("store", store::add);
    suite.run()
}
