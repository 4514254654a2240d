//! The machine: its programs, and a corner of it where nothing stays behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use testkit::host::{plywood_binary, program, program_path};
use testkit::{Need, namespace};

/// A command that finds its program, and the programs that one starts, in [`program_path`].
pub fn command(name: &str) -> Command {
    let mut command = Command::new(program(name).unwrap_or_else(|| name.into()));
    command.env("PATH", program_path()).stdin(Stdio::null());
    command
}

/// The needs of a set-up that starts these programs.
pub fn needs(programs: &[&'static str]) -> Vec<Need> {
    let mut needs = vec![Need::Root];
    needs.extend(programs.iter().copied().map(Need::Tool));
    needs.extend([
        Need::Other("a plywood binary: cargo build", || plywood_binary().is_some()),
        Need::FileSystem("erofs"),
        Need::FileSystem("overlay"),
        Need::Other("mount and process namespaces", namespace::can_isolate),
    ]);
    needs
}

/// The first of [`needs`] that is missing here.
pub fn missing(programs: &[&'static str]) -> Option<String> {
    needs(programs).iter().find_map(Need::missing)
}

/// Goes on in mount and process namespaces of its own ([`namespace::isolate`]), with an empty `/run`. Returns only inside.
pub fn isolate() -> anyhow::Result<()> {
    namespace::isolate()?;
    // containerd's shims and ctr keep sockets and fifos at fixed places below /run/containerd.
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "mode=755", "run", "/run"]))?;
    Ok(())
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
