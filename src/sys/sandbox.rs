//! Confining the process to the few directories it works in, with Landlock where the kernel has it.
//!
//! Best effort: an older kernel enforces less, one without Landlock nothing, and the caller is told which.
//! Binds the calling thread and those it starts later. What is open already stays open.
//!
//! Source: Linux `Documentation/userspace-api/landlock.rst`.

use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};

/// The newest rules that are asked for. Later ones cut off unix sockets by path, which would cut off
/// containerd when it restarts.
const NEWEST: ABI = ABI::V6;

/// What the process may still reach.
#[derive(Clone, Copy, Debug, Default)]
pub struct Paths<'p> {
    /// Directories where anything may be done.
    pub read_write: &'p [&'p Path],
    /// Directories whose files may be read.
    pub read: &'p [&'p Path],
    /// Directories where sockets and files may be removed.
    pub remove: &'p [&'p Path],
    /// Whether sockets without a path may be connected to (an abstract notify socket needs it).
    pub abstract_sockets: bool,
}

/// How much of it the kernel enforces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enforced {
    /// In words, for the log.
    pub level: &'static str,
    /// The kernel's Landlock version, 0 without.
    pub abi: i32,
    /// Directories that do not exist and are therefore out of reach until the next start.
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_confined_thread_reaches_its_directories_and_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let base = scratch.path().to_owned();
        let at = move |name: &str| base.join(name);
        for name in ["write", "read", "other"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("file"), name).unwrap();
        }
        // Other tests run on other threads and stay free.
        std::thread::spawn(move || {
            let paths = Paths {
                read_write: &[&at("write")],
                read: &[&at("read"), &at("absent")],
                remove: &[],
                abstract_sockets: false,
            };
            let enforced = confine(paths).unwrap();
            assert_eq!(enforced.missing, [at("absent").display().to_string()]);
            if enforced.level == "none" {
                return; // no Landlock here: there is nothing to see
            }
            fs::write(at("write").join("new"), "x").unwrap();
            fs::rename(at("write").join("new"), at("write").join("file")).unwrap();
            fs::set_permissions(at("write").join("file"), fs::metadata(at("read")).unwrap().permissions())
                .unwrap();
            assert_eq!(fs::read(at("read").join("file")).unwrap(), b"read");
            assert!(fs::write(at("read").join("file"), "x").is_err());
            assert!(fs::read(at("other").join("file")).is_err());
            assert!(fs::read("/etc/passwd").is_err());
            assert!(fs::read("/proc/self/statm").is_ok());
            assert!(std::process::Command::new("/bin/true").status().is_err());
            assert!(std::net::TcpStream::connect("127.0.0.1:9").is_err());
        })
        .join()
        .unwrap();
    }
}
