//! The systemd units that are shipped: in step with the defaults, and such that systemd takes them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, process::Command};

use libtest_mimic::Failed;
use plywood::{
    config::{Config, DEFAULT_PATH},
    sys::capabilities,
};
use testkit::{Need, Suite};

const SERVICE: &str = include_str!("../integration/deploy/plywood.service");
const SOCKET: &str = include_str!("../integration/deploy/plywood.socket");
const SCRUB: &str = include_str!("../integration/deploy/plywood-scrub.service");
const TIMER: &str = include_str!("../integration/deploy/plywood-scrub.timer");

fn main() {
    let mut suite = Suite::new();
    suite.test("the_units_and_the_defaults_name_the_same_paths", &[], same_paths);
    suite.test("systemd_waits_longer_than_the_daemon_drains", &[], stop_timeout);
    suite.test("the_unit_leaves_what_diff_needs", &[], diff_privileges);
    suite.test("the_scrub_reaches_what_the_daemon_reaches_and_repairs_nothing", &[], scrub);
    suite.test("systemd_takes_the_units", &[Need::Tool("systemd-analyze")], verify);
    suite.run()
}

/// The value of the first `key=` line.
fn value<'u>(unit: &'u str, key: &str) -> &'u str {
    let prefix = format!("{key}=");
    unit.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_else(|| panic!("no {key}"))
}

fn same_paths() -> Result<(), Failed> {
    let config = Config::default();
    assert_eq!(value(SOCKET, "ListenStream"), config.server.socket.to_str().unwrap());
    let runtime = format!("/run/{}", value(SERVICE, "RuntimeDirectory"));
    assert!(config.server.metrics_socket.starts_with(&runtime));
    assert!(value(SERVICE, "ExecStart").ends_with(&format!("serve --config {DEFAULT_PATH}")));
    let roots = config.snapshots.roots.iter().chain(&config.snapshots.overlaybd_roots);
    let roots: Vec<_> = roots.map(|root| format!("ReadWritePaths=-{}", root.display())).collect();
    let found: Vec<_> = SERVICE.lines().filter(|line| line.starts_with("ReadWritePaths=")).collect();
    assert_eq!(found, roots);
    let content: Vec<_> = config.content_roots().iter().map(|root| format!("-{}", root.display())).collect();
    assert_eq!([value(SERVICE, "ReadOnlyPaths")], content.as_slice());
    Ok(())
}

fn stop_timeout() -> Result<(), Failed> {
    // Two seconds for what is cancelled, one for the replies.
    let drain = Config::default().server.drain_seconds + 3;
    assert!(value(SERVICE, "TimeoutStopSec").parse::<u64>().unwrap() > drain);
    Ok(())
}

fn diff_privileges() -> Result<(), Failed> {
    assert!(Config::default().diff.enabled);
    let kept =
        value(SERVICE, "CapabilityBoundingSet").split(' ').map(|name| name.strip_prefix("CAP_").unwrap());
    let mut kept: Vec<_> = kept.collect();
    kept.sort_unstable();
    assert_eq!(kept.join("+"), capabilities::names(capabilities::READING));
    // Nothing is inherited by what is not run anyway.
    assert_eq!(value(SERVICE, "AmbientCapabilities"), "");
    // The daemon gives them up and raises them itself; mounting stays forbidden.
    assert!(value(SERVICE, "SystemCallFilter").starts_with("@system-service landlock_"));
    assert!(SERVICE.contains("\nSystemCallFilter=~@mount\n"));
    // These would hide what containerd mounts, sysfs's loop devices, or the mount table.
    for key in
        ["MountFlags", "PrivateMounts", "PrivatePIDs", "ProcSubset", "RootDirectory", "InaccessiblePaths"]
    {
        assert!(!SERVICE.contains(&format!("\n{key}=")), "{key}");
    }
    Ok(())
}

fn scrub() -> Result<(), Failed> {
    let paths = |unit: &str| -> Vec<String> {
        let lines = unit.lines().map(str::to_owned);
        lines
            .filter(|line| line.starts_with("ReadWritePaths=") || line.starts_with("ReadOnlyPaths="))
            .collect()
    };
    assert_eq!(paths(SCRUB), paths(SERVICE));
    let start = value(SCRUB, "ExecStart");
    let metrics = format!("/var/lib/{}/", value(SCRUB, "StateDirectory"));
    assert!(
        start.starts_with(&format!("/usr/bin/plywood scrub --config {DEFAULT_PATH} --metrics {metrics}"))
    );
    // A timer repairs nothing that nobody has looked at.
    assert!(!start.contains("--repair"), "{start}");
    // These would hide mounts of containers, whose users a report names.
    for key in ["ProtectProc", "PrivatePIDs", "ProcSubset"] {
        assert!(!SCRUB.contains(&format!("\n{key}=")), "{key}");
    }
    assert_eq!(value(TIMER, "OnCalendar"), "weekly");
    Ok(())
}

fn verify() -> Result<(), Failed> {
    let scratch = tempfile::tempdir()?;
    let mut files = Vec::new();
    for (name, text) in [
        ("plywood.service", SERVICE),
        ("plywood.socket", SOCKET),
        ("plywood-scrub.service", SCRUB),
        ("plywood-scrub.timer", TIMER),
    ] {
        let installed = text.replace("/usr/bin/plywood", "/bin/true");
        // Neither the manual pages nor containerd are installed here.
        let is_missing = |line: &&str| line.starts_with("Documentation=") || line.starts_with("Requisite=");
        let installed: String =
            installed.lines().filter(|line| !is_missing(line)).map(|line| format!("{line}\n")).collect();
        files.push(scratch.path().join(name));
        fs::write(scratch.path().join(name), installed)?;
    }
    let output = Command::new("systemd-analyze").arg("verify").args(&files).output()?;
    let complaints: Vec<_> = String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter(|line| line.contains("plywood"))
        .map(str::to_owned)
        .collect();
    assert!(complaints.is_empty() && output.status.success(), "{complaints:#?}");
    Ok(())
}
