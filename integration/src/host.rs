//! What this machine offers: programs, file systems, rights; and a corner of it where nothing stays behind.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Tells the second incarnation of the process, which runs in namespaces of its own, from the first.
const ISOLATED: &str = "PLYWOOD_TEST_ISOLATED";

/// Where `setup/tools.sh` unpacks to when it is not told otherwise.
const DEFAULT_TOOLS: &str = "/var/cache/plywood-tools";

/// The directories in which programs are looked for: those of `$PLYWOOD_TOOLS` first, then `PATH`.
pub fn program_path() -> OsString {
    let tools = std::env::var_os("PLYWOOD_TOOLS").map_or_else(|| PathBuf::from(DEFAULT_TOOLS), PathBuf::from);
    let mut path = tools.join("bin").into_os_string();
    path.push(":");
    path.push(tools.join("docker/bin"));
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    path
}

/// The full name of a program, if it is installed.
pub fn program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&program_path()).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// A command that finds its program, and the programs that one starts, in [`program_path`].
pub fn command(name: &str) -> Command {
    let mut command = Command::new(program(name).unwrap_or_else(|| name.into()));
    command.env("PATH", program_path()).stdin(Stdio::null());
    command
}

/// The `plywood` binary under test: `$PLYWOOD_BIN`, else the one cargo built beside the tests.
pub fn plywood_binary() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("PLYWOOD_BIN") {
        return Some(named.into());
    }
    let test = std::env::current_exe().ok()?;
    let built = test.parent()?.parent()?.join("plywood");
    built.is_file().then_some(built)
}

/// Why the tests cannot run here, or `None` when they can. `programs` are looked for by name.
pub fn missing(programs: &[&str]) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".into());
    }
    if let Some(absent) = programs.iter().find(|name| program(name).is_none()) {
        return Some(format!("needs {absent}"));
    }
    if plywood_binary().is_none() {
        return Some("needs a plywood binary: cargo build".into());
    }
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for filesystem in ["erofs", "overlay"] {
        let loaded = known.split_whitespace().any(|word| word == filesystem);
        if !loaded && !succeeds(Command::new("modprobe").arg(filesystem)) {
            return Some(format!("needs {filesystem} in the kernel"));
        }
    }
    if !succeeds(Command::new("unshare").args(NAMESPACES).arg("true")) {
        return Some("needs mount and process namespaces".into());
    }
    None
}

const NAMESPACES: [&str; 5] = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// Goes on in mount and process namespaces of its own, by running this very program again inside them.
///
/// Mounts that a failed test leaves go with the namespace, and so do processes when its first one ends.
/// Returns only inside.
pub fn isolate() -> anyhow::Result<()> {
    if std::env::var_os(ISOLATED).is_some() {
        // containerd's shims and ctr keep sockets and fifos at fixed places below /run/containerd.
        let mounted = succeeds(Command::new("mount").args(["-t", "tmpfs", "-o", "mode=755", "run", "/run"]));
        anyhow::ensure!(mounted, "no tmpfs could be mounted on /run of the own namespace");
        return Ok(());
    }
    let error = Command::new("unshare")
        .args(NAMESPACES)
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(ISOLATED, "1")
        .exec();
    Err(error.into())
}

/// Runs a command to its end; its standard output, or an error with both outputs.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let program = Path::new(command.get_program()).display();
    let arguments: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
    anyhow::bail!(
        "{program} {}: {}\n{text}{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Mount points below a directory, the deepest first.
pub fn mounts_below(top: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|target| target.starts_with(top) && target != top)
        .collect();
    found.reverse();
    found
}
