//! File systems in files, and mounts of them that end with the test.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;
use testkit::{Failed, host::run};

/// A file with a file system in it.
pub struct Disk {
    dir: TempDir,
    pub path: PathBuf,
}

impl Disk {
    /// Makes one with mkfs.ext4, whose last option of each kind counts. It would not choose blocks of 4 KiB for a disk
    /// as small.
    pub fn new(size_mib: u64, options: &[&str]) -> Result<Self, Failed> {
        let dir = TempDir::with_prefix_in("ext4-oracle-", env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(size_mib << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096"]).args(options).arg(&path))?;
        Ok(Self { dir, path })
    }

    /// A copy of the file as it is now.
    pub fn copy(&self, name: &str) -> Result<PathBuf, Failed> {
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
    pub fn new(disk: &Path, options: &str) -> Result<Self, Failed> {
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
