//! Programs of this machine, the one under test among them.

use std::{
    env,
    ffi::OsString,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use libtest_mimic::Failed;

/// Where `integration/setup/tools.sh` unpacks to without another wish.
const DEFAULT_TOOLS: &str = "/var/cache/plywood-tools";

/// The directory of the unpacked tools: `$PLYWOOD_TOOLS`, or the default.
pub fn tools() -> PathBuf {
    env::var_os("PLYWOOD_TOOLS").map_or_else(|| DEFAULT_TOOLS.into(), PathBuf::from)
}

/// The directories in which programs are looked for: those of the tools first, then `PATH`, then those of the system's
/// administrator, which a user's `PATH` may lack.
pub fn program_path() -> OsString {
    let mut dirs = ["bin", "docker/bin", "archives/bin", "nydus/bin"].map(|dir| tools().join(dir)).to_vec();
    dirs.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    dirs.extend(["/usr/sbin".into(), "/sbin".into()]);
    env::join_paths(dirs).unwrap()
}

/// The full name of a program, if it is installed.
pub fn program(name: &str) -> Option<PathBuf> {
    env::split_paths(&program_path()).map(|dir| dir.join(name)).find(|file| {
        file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

/// Runs a command to its end; returns what it said, standard output and error together.
pub fn run(command: &mut Command) -> Result<String, Failed> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{shown}: {error}"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if output.status.success() { Ok(said) } else { Err(format!("{shown}: {}\n{said}", output.status).into()) }
}

/// The program under test, if it was built: `$PLYWOOD_BIN`, else the one that cargo puts beside the tests.
pub fn plywood_binary() -> Option<PathBuf> {
    if let Some(named) = env::var_os("PLYWOOD_BIN") {
        return Some(named.into());
    }
    let test = env::current_exe().ok()?;
    let built = test.parent()?.parent()?.join("plywood");
    built.is_file().then_some(built)
}

/// A command that runs the program under test.
pub fn plywood() -> Command {
    Command::new(plywood_binary().expect("cargo builds the program with its tests"))
}
