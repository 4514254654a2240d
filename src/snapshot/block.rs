//! Block mode: an upper directory inside an ext4 image, which a running container has mounted.
//!
//! A mounted image is never read as a file: what the kernel has not written back yet would be missing, or
//! half there. It is read where it is mounted, or refused when that cannot be seen.
//!
//! Source: docs/formats/containerd.md, "Block mode".

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{
    error::MountError,
    roots::refusal,
    stack::{LayerSource, Stack},
};
use crate::sys::{
    dir::{Dir, status},
    loop_device::attached,
};

/// Where the upper directory of an image is to be read.
pub(super) enum Upper {
    /// Nobody uses the image.
    Idle,
    /// It is mounted: this is the directory `upper` in it, and its path.
    Live(Dir, String),
    /// It is mounted, and has no such directory.
    None,
}

/// Looks for a mount of `image`, which is the file `path`.
pub(super) fn upper(path: &str, image: &File) -> Result<Upper, MountError> {
    let refuse = |source: io::Error| refusal(path, source);
    let found = status(image).map_err(refuse)?;
    let key = (found.device, found.inode);
    let devices = attached(Path::new(path), key).map_err(refuse)?;
    let Some(first) = devices.first() else { return Ok(Upper::Idle) };
    for device in devices.iter().filter(|device| device.is_certain) {
        let Some((point, mount)) = device.mounted_ext4().map_err(refuse)? else { continue };
        let directory = format!("{}/upper", point.display());
        let upper = match mount.open_beneath(c"upper") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            outcome => Some(outcome.map_err(|source| refusal(&directory, source))?),
        };
        // Had the device been given another image before the directory was opened, it would still have it:
        // an open directory keeps its file system, and that its device.
        if !attached(Path::new(path), key).map_err(refuse)?.contains(device) {
            continue;
        }
        return Ok(upper.map_or(Upper::None, |upper| Upper::Live(upper, directory)));
    }
    Err(MountError::Unseen { path: path.to_owned(), device: first.name.clone() })
}

/// What the idle images of a stack were when they were opened: read first, look again, then believe.
#[derive(Debug, Default)]
pub struct Watch(Vec<Idle>);

#[derive(Debug)]
struct Idle {
    path: PathBuf,
    image: File,
    stamp: Stamp,
}

/// Size and times of the last change, which the kernel sets and nobody can set back.
type Stamp = (u64, i64, i64);

fn stamp(image: &File) -> io::Result<Stamp> {
    let metadata = image.metadata()?;
    Ok((metadata.len(), metadata.ctime(), metadata.ctime_nsec()))
}

impl Stack {
    /// Remembers the ext4 images that are read as files.
    pub fn watch(&self) -> Result<Watch, MountError> {
        let mut idle = Vec::new();
        for layer in &self.layers {
            if let LayerSource::Ext4 { image, .. } = &layer.source {
                let refuse = |source| refusal(&layer.path.to_string_lossy(), source);
                let image = image.try_clone().map_err(refuse)?;
                let stamp = stamp(&image).map_err(refuse)?;
                idle.push(Idle { path: layer.path.clone(), image, stamp });
            }
        }
        Ok(Watch(idle))
    }
}

impl Watch {
    /// Errors: [`MountError::InUse`] when an image has been mounted or written to since, so that what was read
    /// from it may be a mixture.
    pub fn check(&self) -> Result<(), MountError> {
        for Idle { path, image, stamp: before } in &self.0 {
            let text = path.to_string_lossy();
            let refuse = |source| refusal(&text, source);
            let found = status(image).map_err(refuse)?;
            let is_attached = match attached(path, (found.device, found.inode)) {
                // The command line reads images where there may be no sysfs; the times tell enough.
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                devices => !devices.map_err(refuse)?.is_empty(),
            };
            if is_attached || stamp(image).map_err(refuse)? != *before {
                return Err(MountError::InUse(text.into_owned()));
            }
        }
        Ok(())
    }
}
