//! Views of the layers of a stack, and the capabilities that reading them takes.

use super::{Control, DirectoryView, ErofsView, Ext4View, View, ViewError, Volume, mapped::Mapped};
use crate::{
    call::Cancel,
    error::{Error, Result},
    kind::sniff::Image,
    snapshot::{DeviceDir, DeviceState, LayerSource, Stack, StackLayer},
    sys::capabilities,
};

/// Opens the device of a snapshot.
pub(crate) type Devices<'a> = &'a dyn Fn(&DeviceDir) -> Result<Volume>;

/// Opens the layers of `stack`, in its order, without those that nothing was ever written to.
pub(crate) fn layers(stack: Stack, devices: Devices<'_>, cancel: &Cancel) -> Result<Vec<Box<dyn View>>> {
    stack.layers.into_iter().filter_map(|layer| open(layer, devices, cancel).transpose()).collect()
}

fn open(layer: StackLayer, devices: Devices<'_>, cancel: &Cancel) -> Result<Option<Box<dyn View>>> {
    let StackLayer { path, key, ids, source } = layer;
    let name = path.display().to_string();
    let control = |user_xattr| if user_xattr { Control::User } else { Control::Trusted };
    let opened: Box<dyn View> = match source {
        LayerSource::Directory { dir, user_xattr } => {
            Box::new(DirectoryView::new(dir, name, control(user_xattr), cancel)?)
        }
        LayerSource::Erofs { image, devices } => {
            let devices = devices.into_iter().map(Volume::from).collect();
            Box::new(ErofsView::open(Volume::from(image), devices, key, name, cancel)?)
        }
        LayerSource::Device { state: DeviceState::Mounted(root), .. } => {
            Box::new(DirectoryView::new(root, name, control(false), cancel)?)
        }
        LayerSource::Device { dir, .. } => {
            let device = devices(&dir)?;
            match Image::on(&device).map_err(Error::disk)? {
                Some(Image::Erofs) => Box::new(ErofsView::open(device, Vec::new(), key, name, cancel)?),
                Some(Image::Ext4) => {
                    match Ext4View::open(device, b"", key, name, Control::Trusted, cancel)? {
                        Some(view) => Box::new(view),
                        None => return Ok(None),
                    }
                }
                None => return Err(ViewError::FileSystem { view: name }.into()),
            }
        }
        LayerSource::Ext4 { image, root, user_xattr } => {
            let (image, root, control) = (Volume::from(image), root.as_bytes(), control(user_xattr));
            match Ext4View::open(image, root, key, name, control, cancel)? {
                Some(view) => Box::new(view),
                None => return Ok(None),
            }
        }
    };
    Ok(Some(Mapped::wrap(opened, ids)))
}

/// The views as a list of references.
pub(crate) fn references(views: &[Box<dyn View>]) -> Vec<&dyn View> {
    views.iter().map(|view| &**view).collect()
}

/// [`capabilities::reading`], where a kernel that refuses is a failing disk.
pub(crate) fn reading<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    capabilities::reading(work).map_err(Error::disk)?
}
