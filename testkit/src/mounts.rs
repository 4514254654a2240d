//! Mounts of the kernel, undone when they are dropped.

use std::{
    ffi::CString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use libtest_mimic::Failed;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// An overlay mount, until dropped.
pub struct Overlay(PathBuf);

impl Overlay {
    /// `lowers`, the newest first, below `upper` (its upper and its work directory), if there is one.
    pub fn new(at: PathBuf, lowers: &[&Path], upper: Option<[&Path; 2]>) -> Result<Self, Failed> {
        fs::create_dir(&at)?;
        let lowers: Vec<_> = lowers.iter().map(|path| path.display().to_string()).collect();
        let mut options = format!("lowerdir={}", lowers.join(":"));
        if let Some([upper, work]) = upper {
            options += &format!(",upperdir={},workdir={}", upper.display(), work.display());
            options += ",redirect_dir=off,metacopy=off,index=off,xino=off";
        }
        let options = CString::new(options)?;
        mount("overlay", &at, "overlay", MountFlags::empty(), Some(options.as_c_str()))?;
        Ok(Self(at))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}

/// An image mounted through a loop device for writing, until dropped.
pub struct Looped {
    image: PathBuf,
    at: PathBuf,
}

impl Looped {
    /// Mounts `image` on the new directory `at`.
    pub fn new(image: &Path, at: PathBuf) -> Result<Self, Failed> {
        fs::create_dir(&at)?;
        let output = Command::new("mount").args(["-o", "loop"]).arg(image).arg(&at).output()?;
        if !output.status.success() {
            return Err(format!("mount: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(Self { image: image.canonicalize()?, at })
    }

    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Whether a loop device has the image.
    fn is_attached(&self) -> bool {
        let Ok(devices) = fs::read_dir("/sys/block") else { return false };
        devices.flatten().any(|device| {
            let backing = fs::read_to_string(device.path().join("loop/backing_file"));
            backing.is_ok_and(|backing| Path::new(backing.trim_end()) == self.image)
        })
    }
}

impl Drop for Looped {
    fn drop(&mut self) {
        // Not detached: the image is to be read as it is once it is unmounted.
        if unmount(&self.at, UnmountFlags::empty()).is_err() {
            let _ = unmount(&self.at, UnmountFlags::DETACH);
        }
        // A mount namespace that somebody made meanwhile has the mount as well, until it goes.
        let end = Instant::now() + Duration::from_secs(10);
        while self.is_attached() && Instant::now() < end {
            sleep(Duration::from_millis(10));
        }
        let _ = fs::remove_dir(&self.at);
    }
}
