//! `plywood stargz`, which publishes files for its user: what is found is whole, and nothing is left after an error.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use testkit::{host, strace::Fault};

use super::{Outcome, Publisher};

pub const SCENARIOS: [(&str, &[&str]); 2] = [
    ("metadata_and_its_data_device", &["--data", "-o", "."]),
    ("metadata_and_data_in_one_file", &["--whole", "layer.boot"]),
];

/// Names and bytes of the files in a directory.
type Files = Vec<(PathBuf, Vec<u8>)>;

/// The command with these arguments.
pub struct Stargz {
    arguments: &'static [&'static str],
    /// The files that it makes undisturbed.
    want: Files,
}

fn files(place: &Path) -> Files {
    let mut found: Vec<_> = fs::read_dir(place)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().into(), fs::read(&path).unwrap())
        })
        .collect();
    found.sort();
    found
}

impl Stargz {
    pub fn new(arguments: &'static [&'static str]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let place = scratch.path().join("undisturbed");
        let output = Self { arguments, want: Vec::new() }.command(&place, &mut host::plywood());
        assert!(output.status.success(), "{output:?}");
        Self { arguments, want: files(&place) }
    }

    fn command(&self, place: &Path, program: &mut Command) -> Output {
        let _none_before_the_first = fs::remove_dir_all(place);
        fs::create_dir_all(place).unwrap();
        let layer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stargz/estargz/l1.esgz");
        program.arg("stargz").arg(layer).args(self.arguments).current_dir(place).output().unwrap()
    }
}

fn behind(strace: &[String]) -> Command {
    let mut command = Command::new("strace");
    command.args(strace).arg(host::plywood_binary().unwrap());
    command
}

impl Publisher for Stargz {
    fn traced(&self, place: &Path, strace: &[String]) {
        let output = self.command(place, &mut behind(strace));
        assert!(output.status.success(), "{output:?}");
    }

    fn concerns(&self, place: &Path, line: &str) -> bool {
        line.contains(place.to_str().unwrap())
    }

    fn attempt(&self, place: &Path, strace: &[String], fault: Fault) -> Result<Outcome, String> {
        let output = self.command(place, &mut behind(strace));
        let found = files(place);
        let names = || found.iter().map(|(name, _)| name).collect::<Vec<_>>();
        if !found.iter().all(|file| self.want.contains(file)) {
            return Err(format!("a file is left that is not whole: {:?}", names()));
        }
        if output.status.success() {
            return if found == self.want {
                Ok(Outcome::Unharmed)
            } else {
                Err(format!("success was reported with {:?}", names()))
            };
        }
        let killed = fault == Fault::Kill && output.status.signal() == Some(9);
        if !killed && !found.is_empty() {
            let message = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{:?} are left after {}: {message}", names(), output.status));
        }
        Ok(Outcome::Struck)
    }
}
