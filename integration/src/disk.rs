//! A small disk that can be filled.

use std::path::PathBuf;
use std::process::Command;

use testkit::Need;

use crate::host;

/// An ext4 file system in a file. Dropping it unmounts.
#[derive(Debug)]
pub struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// The machine must have these to make one.
    pub const NEEDS: [Need; 2] = [Need::Tool("mkfs.ext4"), Need::LoopDevices];

    /// Makes and mounts one of this size.
    pub fn mount(size_bytes: u64) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("plywood-disk-").tempdir_in("/tmp")?;
        let image = dir.path().join("image");
        std::fs::File::create(&image)?.set_len(size_bytes)?;
        host::run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image))?;
        let disk = Self { dir };
        std::fs::create_dir(disk.path())?;
        host::run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path()))?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = host::run(Command::new("umount").arg(self.path()));
    }
}
