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

/// A mount, until dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    /// Mounts `source` on the directory `at`. Images are mounted to be read.
    pub fn new(source: &Path, at: &Path, kind: &str, options: &str) -> Result<Self, Failed> {
        let options = CString::new(options)?;
        let flags = if kind == "erofs" { MountFlags::RDONLY } else { MountFlags::empty() };
        mount(source, at, kind, flags, Some(options.as_c_str()))
            .map_err(|error| format!("mount {kind} {}: {error}", options.to_string_lossy()))?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// An overlay mount on a directory of its own, until dropped.
pub struct Overlay {
    at: PathBuf,
    mounted: Option<Mounted>,
}

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
        let mounted = Some(Mounted::new(Path::new("overlay"), &at, "overlay", &options)?);
        Ok(Self { at, mounted })
    }

    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        drop(self.mounted.take());
        let _ = fs::remove_dir(&self.at);
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
