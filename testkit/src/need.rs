//! Things that a test cannot do without, by name.

use std::{
    collections::HashMap,
    fs,
    process::{Command, Stdio},
    sync::{LazyLock, Mutex},
    thread,
};

use landlock::{AccessFs, Ruleset, RulesetAttr as _, RulesetStatus};
use rustix::fs::XattrFlags;

use crate::{host, namespace};

/// One thing that a machine may lack. A test that needs it is skipped there.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// The effective user is root.
    Root,
    /// A capability, by its name and its number in Linux's `capability.h`.
    Capability(&'static str, u32),
    /// A program of this name, in [`host::program_path`].
    Tool(&'static str),
    /// `tar` is GNU's.
    GnuTar,
    /// A file system that the kernel can mount, by its name in `/proc/filesystems`.
    FileSystem(&'static str),
    /// The program runs in a mount namespace of its own ([`namespace::enter`]).
    MountNamespace,
    /// Loop devices can be attached.
    LoopDevices,
    /// The kernel confines a thread that asks for it with Landlock.
    Landlock,
    /// Extended attributes of this name can be set on files in the directory for temporary files. The value is that of
    /// the probe.
    Xattr(&'static str, &'static [u8]),
    /// Something else: its name, and whether it is there.
    Other(&'static str, fn() -> bool),
}

impl Need {
    /// The reason to skip a test, or `None` when the machine has it. Looked for once in a process.
    pub fn missing(&self) -> Option<String> {
        static FOUND: LazyLock<Mutex<HashMap<String, bool>>> = LazyLock::new(Mutex::default);
        let reason = self.reason();
        let mut found = FOUND.lock().unwrap();
        let there = *found.entry(reason.clone()).or_insert_with(|| self.is_there());
        (!there).then_some(reason)
    }

    fn reason(&self) -> String {
        match self {
            Self::Root => "needs root".into(),
            Self::Tool(name) | Self::Capability(name, _) => format!("needs {name}"),
            Self::GnuTar => "needs GNU tar".into(),
            Self::FileSystem(name) => format!("needs {name} in the kernel"),
            Self::MountNamespace => "needs mount namespaces".into(),
            Self::LoopDevices => "needs loop devices".into(),
            Self::Landlock => "needs Landlock in the kernel".into(),
            Self::Xattr(name, _) => format!("needs {name} on files in the temporary directory"),
            Self::Other(what, _) => format!("needs {what}"),
        }
    }

    fn is_there(&self) -> bool {
        match self {
            Self::Root => rustix::process::geteuid().is_root(),
            Self::Capability(_, number) => effective_capabilities() & 1 << number != 0,
            Self::Tool(name) => host::program(name).is_some(),
            Self::GnuTar => {
                host::run(Command::new("tar").arg("--version")).is_ok_and(|said| said.contains("GNU tar"))
            }
            Self::FileSystem(name) => kernel_mounts(name),
            Self::MountNamespace => namespace::is_own(),
            Self::LoopDevices => has_loop_devices(),
            Self::Landlock => has_landlock(),
            Self::Xattr(name, value) => tempfile::tempdir().is_ok_and(|dir| {
                rustix::fs::lsetxattr(dir.path(), *name, value, XattrFlags::empty()).is_ok()
            }),
            Self::Other(_, is_there) => is_there(),
        }
    }
}

fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(set.trim(), 16).unwrap()
}

/// Loads the module where that is allowed.
fn kernel_mounts(name: &str) -> bool {
    let known = || {
        let text = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        text.split_whitespace().any(|word| word == name)
    };
    known() || (succeeds(Command::new("modprobe").args(["-q", name])) && known())
}

fn has_loop_devices() -> bool {
    let Ok(file) = tempfile::NamedTempFile::new() else { return false };
    if file.as_file().set_len(1 << 20).is_err() {
        return false;
    }
    let Ok(output) = Command::new("losetup").args(["--find", "--show"]).arg(file.path()).output() else {
        return false;
    };
    let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success() && succeeds(Command::new("losetup").args(["--detach", &device]))
}

/// Confines a thread that does nothing else.
fn has_landlock() -> bool {
    let confined = || -> Result<RulesetStatus, landlock::RulesetError> {
        let rules = Ruleset::default().handle_access(AccessFs::Execute)?.create()?;
        Ok(rules.restrict_self()?.ruleset)
    };
    let status = thread::spawn(confined).join().unwrap();
    status.is_ok_and(|status| status != RulesetStatus::NotEnforced)
}

fn succeeds(command: &mut Command) -> bool {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(Need::Tool("no-such-tool").missing().as_deref(), Some("needs no-such-tool"));
        assert_eq!(
            Need::FileSystem("no-such-fs").missing().as_deref(),
            Some("needs no-such-fs in the kernel")
        );
        assert_eq!(Need::Other("a reason", || false).missing().as_deref(), Some("needs a reason"));
        assert_eq!(Need::Other("nothing", || true).missing(), None);
        assert_eq!(Need::Tool("sh").missing(), None);
    }
}
