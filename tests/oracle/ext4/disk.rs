//! File systems in files, and mounts of them that end with the test.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// Runs a program; what it said, if it failed, is the error.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() { Ok(said) } else { Err(format!("{command:?}: {said}")) }
}

/// A file with a file system in it.
pub struct Disk {
    dir: TempDir,
    pub path: PathBuf,
}

impl Disk {
    /// Makes one with mkfs.ext4, which is told the last of each kind of option: blocks of 4 KiB are not
    /// its own choice for one as small.
    pub fn new(size_mib: u64, options: &[&str]) -> Result<Self, String> {
        let dir = TempDir::with_prefix_in("ext4-oracle-", env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(size_mib << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096"]).args(options).arg(&path))?;
        Ok(Self { dir, path })
    }

    /// A copy of the file as it is now.
    pub fn copy(&self, name: &str) -> Result<PathBuf, String> {
        let copy = self.dir.path().join(name);
        run(Command::new("cp").arg("--sparse=always").arg(&self.path).arg(&copy))?;
        Ok(copy)
    }
}

/// A mount through a loop device; both end with it.
pub struct Mounted {
    dir: TempDir,
}

impl Mounted {
    pub fn new(disk: &Path, options: &str) -> Result<Self, String> {
        let dir = TempDir::with_prefix("ext4-oracle-").unwrap();
        let options = if options.is_empty() { "loop".to_owned() } else { format!("loop,{options}") };
        run(Command::new("mount").args(["-t", "ext4", "-o", &options]).arg(disk).arg(dir.path()))?;
        Ok(Self { dir })
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // At once, so that everything is written when the next one reads.
        if run(Command::new("umount").arg(self.dir.path())).is_err() {
            let _ = rustix::mount::unmount(self.dir.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}
