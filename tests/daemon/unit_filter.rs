//! The daemon under the shipped unit's filter of system calls and with its capabilities, as systemd sets them up.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
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
];

const UNIT: &str = include_str!("../../integration/deploy/plywood.service");

/// Names and numbers of the system calls of this machine.
const NUMBERS: &str = match cfg!(target_arch = "x86_64") {
    true => "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    false => "/usr/include/asm-generic/unistd.h",
};

/// What is missing for these tests.
pub fn missing() -> Option<&'static str> {
    if !fs::exists(NUMBERS).unwrap() {
        return Some("needs the kernel's headers (linux-libc-dev)");
    }
    let runs = |program: &str| Command::new(program).arg("--version").output().is_ok();
    (!runs("python3") || !runs("setpriv")).then_some("needs python3 and setpriv")
}

fn systemd_252() {
    works(&Filter::of_unit(include_str!("../fixtures/systemd/syscall-filter-252.txt"), UNIT));
}

fn systemd_257() {
    works(&Filter::of_unit(include_str!("../fixtures/systemd/syscall-filter-257.txt"), UNIT));
}

fn systemd_262() {
    works(&Filter::of_unit(include_str!("../fixtures/systemd/syscall-filter-262.txt"), UNIT));
}

/// Start, Apply, Diff, and the same after a restart. Landlock enforces as much as it does without the filter.
fn works(filter: &Filter) {
    let node = Node::new();
    let free = node.start();
    let want = confined(&free);
    free.stop();
    let daemon = node.start_with(&mut filter.around(&node.command()));
    assert_eq!(confined(&daemon), want);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
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
    let groups = include_str!("../fixtures/systemd/syscall-filter-252.txt");
    let unit = "SystemCallFilter=@system-service\nCapabilityBoundingSet=\n";
    let node = Node::with("[diff]\nenabled = false");
    let daemon = node.start_with(&mut Filter::of_unit(groups, unit).around(&node.command()));
    let log = daemon.log();
    assert!(confined(&daemon).contains("landlock=\"none\""), "{log}");
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("Landlock")), "{log}");
    daemon.stop();
}

/// The last line about the confinement, from its capabilities on.
fn confined(daemon: &Daemon) -> String {
    let log = daemon.log();
    let line = log.lines().rev().find(|line| line.contains(" confined ")).unwrap_or_else(|| panic!("{log}"));
    line.split_once(" capabilities=").unwrap().1.to_owned()
}

/// What a unit lets its process do.
struct Filter {
    /// Numbers of the system calls that are allowed.
    allowed: String,
    /// For `setpriv --bounding-set`.
    capabilities: String,
}

impl Filter {
    /// `groups` as systemd defines them, one on a line. A name that the groups do not have is ignored, as
    /// systemd does it.
    fn of_unit(groups: &str, unit: &str) -> Self {
        let groups: BTreeMap<_, Vec<_>> = groups
            .lines()
            .map(|line| line.split_once(' ').unwrap())
            .map(|(name, members)| (name, members.split(' ').collect()))
            .collect();
        // Every list of allowed calls includes these.
        let mut names = members(&groups, "@default");
        let values = |key: &'static str| unit.lines().filter_map(move |line| line.strip_prefix(key));
        for list in values("SystemCallFilter=") {
            let (denies, list) = list.strip_prefix('~').map_or((false, list), |list| (true, list));
            for name in list.split(' ').flat_map(|name| members(&groups, name)) {
                if denies {
                    names.remove(name);
                } else {
                    names.insert(name);
                }
            }
        }
        let header = fs::read_to_string(NUMBERS).unwrap();
        let numbers: Vec<_> = header
            .lines()
            .filter_map(|line| line.strip_prefix("#define __NR_")?.split_once(' '))
            .filter(|(name, _)| names.contains(name))
            .map(|(_, number)| number.trim())
            .collect();
        assert!(numbers.len() > 200, "{numbers:?}");
        let kept: String = values("CapabilityBoundingSet=")
            .flat_map(|names| names.split_whitespace())
            .map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()))
            .collect();
        Self { allowed: numbers.join(","), capabilities: format!("-all{kept}") }
    }

    /// The same command as the unit would run it.
    fn around(&self, command: &Command) -> Command {
        let mut around = Command::new("setpriv");
        around
            .args(["--bounding-set", &self.capabilities, "python3"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/under_filter.py"))
            .arg(&self.allowed)
            .arg(command.get_program())
            .args(command.get_args())
            .env_remove("RUST_LOG");
        around
    }
}

/// The calls that `name` stands for: a group's, with those of the groups in it, or itself.
fn members<'g>(groups: &BTreeMap<&'g str, Vec<&'g str>>, name: &'g str) -> BTreeSet<&'g str> {
    match groups.get(name) {
        Some(found) => found.iter().flat_map(|name| members(groups, name)).collect(),
        None => BTreeSet::from([name]),
    }
}
