//! A second look at ext4 images that are read as files: a container may have mounted or changed them meanwhile.
//!
//! Source: docs/formats/containerd.md, "Block mode".

use std::{fs::File, io, os::unix::fs::MetadataExt as _, path::PathBuf};

use super::{
    error::MountError,
    roots::refusal,
    stack::{LayerSource, Stack},
};
use crate::sys::{dir::status, loop_device::attached};

/// The size and times of the idle images of a stack when they were opened. Read the images, then check: only if
/// nothing has changed is what was read the state of one moment.
#[derive(Debug, Default)]
pub struct Watch(Vec<Idle>);

#[derive(Debug)]
struct Idle {
    path: PathBuf,
    image: File,
    stamp: Stamp,
}

/// Size, and time of the last change in seconds and nanoseconds, which the kernel sets and nobody can set back.
type Stamp = (u64, i64, i64);

fn stamp(image: &File) -> io::Result<Stamp> {
    let metadata = image.metadata()?;
    Ok((metadata.len(), metadata.ctime(), metadata.ctime_nsec()))
}

impl Stack {
    /// Remembers size and times of the ext4 images that are read as files.
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
                // The command line reads images where there may be no sysfs; the times are enough.
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
