//! Confining the process to the few directories it works in, with Landlock where the kernel has it.
//!
//! Best effort: an older kernel enforces less, one without Landlock nothing; [`Enforced`] says which.
//! The rules bind the calling thread and those it starts later. Open files stay open.
//!
//! The test is in `tests/daemon/sandbox.rs`, which is skipped by name on a kernel without Landlock.
//!
//! Source: Linux `Documentation/userspace-api/landlock.rst`.

use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};

/// Newest rules in use. Later ones forbid connecting to unix sockets by path, and containerd's is connected to again
/// when it restarts.
const NEWEST: ABI = ABI::V6;

/// Paths that stay within reach.
#[derive(Clone, Copy, Debug, Default)]
pub struct Paths<'p> {
    /// Directories to read, write and create files in.
    pub read_write: &'p [&'p Path],
    /// Directories whose files may be read.
    pub read: &'p [&'p Path],
    /// Directories where sockets and files may be removed.
    pub remove: &'p [&'p Path],
    /// Whether sockets without a path may be connected to (an abstract notify socket needs it).
    pub abstract_sockets: bool,
}

/// Confinement that the kernel enforces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enforced {
    /// Name of the level for the log: `full`, `partial` or `none`.
    pub level: &'static str,
    /// The kernel's Landlock version, 0 without.
    pub abi: i32,
    /// Directories that do not exist, and so stay out of reach until the next start.
    pub missing: Vec<String>,
}

/// Confines the calling thread: file access to `paths`, `/proc/self` and `/dev/urandom`, no programs, no TCP, no signals to
/// others. Errors: a kernel that has Landlock refuses these rules.
pub fn confine(paths: Paths<'_>) -> Result<Enforced, RulesetError> {
    let scopes = match paths.abstract_sockets {
        true => BitFlags::from(Scope::Signal),
        false => Scope::from_all(NEWEST),
    };
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(scopes)?
        .create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let everything = AccessFs::from_all(NEWEST) & !(AccessFs::Execute | AccessFs::IoctlDev);
    let own = [Path::new("/proc/self")];
    // The standard library reads it for good after getrandom(2) has failed once, and panics when it cannot.
    let random = [Path::new("/dev/urandom")];
    let mut missing = Vec::new();
    for (directories, access) in [
        (paths.read_write, everything),
        (paths.read, read),
        (paths.remove, AccessFs::RemoveFile.into()),
        (&own[..], read),
        (&random[..], AccessFs::ReadFile.into()),
    ] {
        for directory in directories {
            rules = allow(rules, directory, access, &mut missing)?;
        }
    }
    enforced(rules, missing)
}

/// Confines the calling thread and the programs that it starts: any file may be read and executed, and written below
/// `writable` alone; no signals to processes outside. Errors: a kernel that has Landlock refuses these rules.
pub fn confine_programs(writable: &[&Path]) -> Result<Enforced, RulesetError> {
    let reading = AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir;
    let writing = AccessFs::from_all(NEWEST) & !reading;
    let mut rules = Ruleset::default().handle_access(writing)?.scope(Scope::Signal)?.create()?;
    let mut missing = Vec::new();
    for directory in writable {
        rules = allow(rules, directory, writing, &mut missing)?;
    }
    enforced(rules, missing)
}

fn enforced(rules: RulesetCreated, missing: Vec<String>) -> Result<Enforced, RulesetError> {
    let status = rules.restrict_self()?;
    let level = match status.ruleset {
        RulesetStatus::FullyEnforced => "full",
        RulesetStatus::PartiallyEnforced => "partial",
        RulesetStatus::NotEnforced => "none",
    };
    let abi = match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => effective_abi as i32,
        _ => 0,
    };
    Ok(Enforced { level, abi, missing })
}

fn allow(
    rules: RulesetCreated,
    directory: &Path,
    access: BitFlags<AccessFs>,
    missing: &mut Vec<String>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(directory) {
        Ok(opened) => rules.add_rule(PathBeneath::new(opened, access)),
        Err(_absent) => {
            missing.push(directory.display().to_string());
            Ok(rules)
        }
    }
}
