//! The devices of snapshots, as the snapshotter describes them.
//!
//! A description names files of this snapshot and of those below; [`DeviceDir`] opens them, below the snapshotter's root
//! and nowhere else.

use super::{
    config::{ImageConfig, Mode},
    device,
};
use crate::{
    error::{Error, Result},
    snapshot::{DeviceDir, MountError, Writable},
    view::LayeredDevice,
};

/// Opens the device of a snapshot: its layer, and all below.
///
/// Errors: the snapshot is no device; those of the description and of the layers. A layer that is not on this host is
/// `NotFound`.
pub fn open(dir: &DeviceDir) -> Result<LayeredDevice> {
    stacked(dir, &described(dir)?)
}

/// Opens the layer of the snapshot alone: the one that a container has written, or the topmost one of a committed
/// snapshot. It has what it maps of the device, and zeros elsewhere.
pub fn own_layer(dir: &DeviceDir) -> Result<LayeredDevice> {
    let named = |error: Error| error.context(dir.path());
    let layer = match dir.writable()? {
        Some(Writable::Pair { data, index }) => {
            let layer = device::writable(data, &index).map_err(named)?;
            layer.map(|data| Box::new(data) as _)
        }
        Some(Writable::Sealed(layer)) => {
            device::lower(super::config::LowerFiles { name: dir.path().to_owned(), layer, target: None })?
        }
        None => {
            let mut config = described(dir)?;
            config.lowers = config.lowers.split_off(config.lowers.len().saturating_sub(1));
            return stacked(dir, &config);
        }
    };
    Ok(LayeredDevice::new(vec![layer])?)
}

/// Whether the layers of `newer` are those of `older` and one on top. Without an older one: whether there is just one.
pub fn is_next(older: Option<&DeviceDir>, newer: &DeviceDir) -> Result<bool> {
    let lowers = older.map_or(Ok(Vec::new()), |older| described(older).map(|config| config.lowers))?;
    let newer = described(newer)?.lowers;
    Ok(newer.split_last().is_some_and(|(_, below)| below == lowers))
}

fn described(dir: &DeviceDir) -> Result<ImageConfig> {
    let none = || MountError::NoDevice(dir.path().to_owned(), DeviceDir::CONFIG);
    ImageConfig::read(dir.config()?.ok_or_else(none)?).map_err(|error| error.context(dir.path()))
}

fn stacked(dir: &DeviceDir, config: &ImageConfig) -> Result<LayeredDevice> {
    let files = config.open(&|path, _mode| Ok(dir.open(path)?), Mode::Read);
    files.and_then(device::open).map_err(|error| error.context(dir.path()))
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
