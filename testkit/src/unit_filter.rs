//! The system calls and capabilities that a unit of systemd leaves its process, and a command run under them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use crate::Need;

/// The shipped unit.
pub const UNIT: &str = include_str!("../../integration/deploy/plywood.service");

/// The groups of system calls of three versions of systemd.
pub const SYSTEMD_252: &str = include_str!("../../tests/fixtures/systemd/syscall-filter-252.txt");
pub const SYSTEMD_257: &str = include_str!("../../tests/fixtures/systemd/syscall-filter-257.txt");
pub const SYSTEMD_262: &str = include_str!("../../tests/fixtures/systemd/syscall-filter-262.txt");
/// Starts a program under a filter.
const LAUNCHER: &str = include_str!("under_filter.py");

/// Names and numbers of the system calls of this machine.
const NUMBERS: &str = match cfg!(target_arch = "x86_64") {
    true => "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    false => "/usr/include/asm-generic/unistd.h",
};

/// The machine must have these for a [`Filter`].
pub const NEEDS: [Need; 3] = [
    Need::Other("the kernel's headers (linux-libc-dev)", || Path::new(NUMBERS).exists()),
    Need::Tool("python3"),
    Need::Tool("setpriv"),
];

/// The system calls and capabilities that a unit leaves its process.
pub struct Filter {
    /// Numbers of the system calls that are allowed.
    allowed: String,
    /// For `setpriv --bounding-set`.
    capabilities: String,
}

impl Filter {
    /// `groups` as systemd defines them, one on a line. A name that the groups do not have is ignored, as
    /// systemd does it.
    pub fn of_unit(groups: &str, unit: &str) -> Self {
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

    /// This command, run as by the unit.
    pub fn around(&self, command: &Command) -> Command {
        let mut around = Command::new("setpriv");
        around
            .args(["--bounding-set", &self.capabilities, "python3", "-c", LAUNCHER])
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
