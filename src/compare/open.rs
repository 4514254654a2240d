//! The layers of a stack, opened for reading.

use super::{
    layer::{Control, DirectoryLayer, ErofsLayer, Ext4Layer, Layer},
    mapped::Mapped,
};
use crate::{
    call::Cancel,
    error::Result,
    snapshot::{LayerSource, Stack, StackLayer},
};

/// Opens the layers of `stack`, in its order, without those that nothing was ever written to.
pub(super) fn layers(stack: Stack, cancel: &Cancel) -> Result<Vec<Box<dyn Layer>>> {
    stack.layers.into_iter().filter_map(|layer| open(layer, cancel).transpose()).collect()
}

fn open(layer: StackLayer, cancel: &Cancel) -> Result<Option<Box<dyn Layer>>> {
    let StackLayer { path, key, ids, source } = layer;
    let name = path.display().to_string();
    let control = |user_xattr| if user_xattr { Control::User } else { Control::Trusted };
    let opened: Box<dyn Layer> = match source {
        LayerSource::Directory { dir, user_xattr } => {
            Box::new(DirectoryLayer::new(dir, name, control(user_xattr), cancel)?)
        }
        LayerSource::Erofs { image, devices } => {
            Box::new(ErofsLayer::open(image, devices, key, name, cancel)?)
        }
        LayerSource::Ext4 { image, user_xattr } => {
            match Ext4Layer::open(image, key, name, control(user_xattr), cancel)? {
                Some(layer) => Box::new(layer),
                None => return Ok(None),
            }
        }
    };
    Ok(Some(Mapped::wrap(opened, ids)))
}
