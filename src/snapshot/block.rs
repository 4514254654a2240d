//! Block mode: an upper directory inside an ext4 image, which a running container has mounted.
//!
//! A mounted image is never read as a file: data that the kernel has not written back yet would be missing, or
//! half there. The image is read where it is mounted, or refused when no mount of it can be seen.
//!
//! Source: docs/formats/containerd.md, "Block mode".

use std::{fs::File, io, path::Path};

use super::{error::MountError, layout::UPPER_IN_BLOCK, roots::refusal};
use crate::sys::{
    dir::{Dir, status},
    loop_device::attached,
};

/// The place where the upper directory of an image is to be read.
pub(super) enum Upper {
    /// In the file: the image is not in use.
    Idle,
    /// In this directory, at this path: the image is mounted.
    Live(Dir, String),
    /// Nowhere: the image is mounted, and has no upper directory.
    None,
}

/// Finds the place where the upper directory in `image`, the file `path`, is to be read. Errors:
/// [`MountError::Unseen`] when the image is in use and no mount of it can be seen.
pub(super) fn upper(path: &str, image: &File) -> Result<Upper, MountError> {
    let refuse = |source: io::Error| refusal(path, source);
    let found = status(image).map_err(refuse)?;
    let key = (found.device, found.inode);
    let devices = attached(Path::new(path), key).map_err(refuse)?;
    let Some(first) = devices.first() else { return Ok(Upper::Idle) };
    for device in devices.iter().filter(|device| device.is_certain) {
        let Some((point, mount)) = device.mounted_ext4().map_err(refuse)? else { continue };
        let directory = format!("{}/{UPPER_IN_BLOCK}", point.display());
        let upper = match mount.open_beneath(UPPER_IN_BLOCK) {
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
