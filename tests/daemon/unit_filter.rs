//! The daemon under the shipped unit's filter of system calls and with its capabilities, as systemd sets them up.

use std::{env, fs, process::Command};

use testkit::{
    host,
    unit_filter::{Filter, SYSTEMD_252, SYSTEMD_257, SYSTEMD_262, UNIT},
};

use super::{
    diff::{lists::Release, shop::*},
    harness::*,
};

pub const TESTS: &[Test] = &[
    ("under_the_filter_of_systemd_252_the_daemon_confines_itself_and_works", systemd_252),
    ("under_the_filter_of_systemd_257_the_daemon_confines_itself_and_works", systemd_257),
    ("under_the_filter_of_systemd_262_the_daemon_confines_itself_and_works", systemd_262),
    ("a_filter_that_denies_landlock_is_a_warning", denied),
    ("the_test_of_the_sandbox_is_skipped_where_landlock_is_denied", skipped),
];

/// A unit whose process may not call Landlock, under the groups of systemd 252.
const WITHOUT_LANDLOCK: &str = "SystemCallFilter=@system-service\nCapabilityBoundingSet=\n";

fn systemd_252() {
    works(&Filter::of_unit(SYSTEMD_252, UNIT));
}

fn systemd_257() {
    works(&Filter::of_unit(SYSTEMD_257, UNIT));
}

fn systemd_262() {
    works(&Filter::of_unit(SYSTEMD_262, UNIT));
}

/// Start, Apply, Diff, and the same after a restart. Landlock enforces as much as it does without the filter.
fn works(filter: &Filter) {
    let node = Node::new();
    let free = node.start();
    let want = confined(&free);
    free.stop();
    let daemon = node.start_with(&mut filter.around(&node.command()));
    assert_eq!(confined(&daemon), want);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    assert!(status.contains("Seccomp:\t2\n"), "{status}");
    let mut shop = Shop::of(node, daemon);
    shop.image();
    diff(&shop, &[2, 1]);
    shop.daemon.signal(rustix::process::Signal::TERM);
    assert!(shop.daemon.ended().success());
    shop.daemon = shop.node.start_with(&mut filter.around(&shop.node.command()));
    shop.layer(4, |root| fs::write(root.join("after"), "the restart").unwrap());
    diff(&shop, &[4, 2, 1]);
    assert!(!shop.daemon.log().contains("landlock refuses"), "{}", shop.daemon.log());
    shop.daemon.stop();
}

/// The layer that makes the first snapshot's parents into it, checked.
fn diff(shop: &Shop, stack: &[u32]) {
    const VIEW: u32 = 900;
    let want = shop.show(stack, None, scan);
    let lists = shop.lists(Release::V22);
    let blob = shop.diff_both(&request(lists.view(VIEW, &stack[1..]), lists.view(VIEW, stack), ""));
    shop.assert_turns(&stack[1..], &blob, &want);
}

fn denied() {
    let node = Node::with("[diff]\nenabled = false");
    let daemon = node.start_with(&mut Filter::of_unit(SYSTEMD_252, WITHOUT_LANDLOCK).around(&node.command()));
    let log = daemon.log();
    assert!(confined(&daemon).contains("landlock=\"none\""), "{log}");
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("Landlock")), "{log}");
    daemon.stop();
}

/// It would pass without having seen anything.
fn skipped() {
    let mut tests = Command::new(env::current_exe().unwrap());
    tests.args(["--exact", "sandbox::a_confined_thread_reaches_its_directories_and_nothing_else"]);
    let filter = Filter::of_unit(SYSTEMD_252, WITHOUT_LANDLOCK);
    let said = host::run(&mut filter.around(&tests)).unwrap();
    assert!(said.contains("ignored (needs Landlock in the kernel)"), "{said}");
}

/// The last line about the confinement, from its capabilities on.
fn confined(daemon: &Daemon) -> String {
    let log = daemon.log();
    let line = log.lines().rev().find(|line| line.contains(" confined ")).unwrap_or_else(|| panic!("{log}"));
    line.split_once(" capabilities=").unwrap().1.to_owned()
}
