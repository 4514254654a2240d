//! The devices of snapshots, as the snapshotter describes them.
//!
//! A description names files of this snapshot and of those below; [`DeviceDir`] opens them, below the snapshotter's root
//! and nowhere else.

use super::{
    blob::damaged,
    config::{ImageConfig, LowerFiles, Mode},
    device,
};
use crate::{
    error::Result,
    pipeline::{Plan, budget::Use},
    snapshot::{DeviceDir, MountError, Writable},
    view::LayeredDevice,
};

/// Opens the device of a snapshot: its layer, and all below.
///
/// Errors: the snapshot is no device; those of the description and of the layers. A layer that is not on this host is
/// `NotFound`. Also when the request gets no more memory.
pub fn open(dir: &DeviceDir, plan: Plan<'_>) -> Result<LayeredDevice> {
    stacked(dir, &described(dir)?, plan)
}

/// Opens the layer alone that a container has written. It has what it maps of the device, and zeros elsewhere.
///
/// Errors: the device is mounted; those of the layer, which is `DataLoss` if it breaks a rule.
pub fn written_layer(dir: &DeviceDir, plan: Plan<'_>) -> Result<LayeredDevice> {
    let layer = match dir.writable()? {
        Some(Writable::Pair { data, index }) => {
            let layer = device::writable(data, &index).map_err(|error| damaged(error, dir.path()))?;
            layer.map(|data| Box::new(data) as _)
        }
        Some(Writable::Sealed(layer)) => {
            device::lower(LowerFiles { name: dir.path().to_owned(), layer, target: None })?
        }
        // Its files are elsewhere, or there are none.
        None => {
            let config = described(dir)?;
            return stacked(dir, &ImageConfig { lowers: Vec::new(), ..config }, plan);
        }
    };
    plan.lease.add(Use::Device, device::layer_bytes(&layer), plan.work.cancel)?;
    Ok(LayeredDevice::new(vec![layer])?)
}

/// Opens the topmost layer alone of a committed snapshot. It has what it maps of the device, and zeros elsewhere.
///
/// Errors: as for [`open`].
pub fn top_layer(dir: &DeviceDir, plan: Plan<'_>) -> Result<LayeredDevice> {
    let mut config = described(dir)?;
    config.lowers = config.lowers.split_off(config.lowers.len().saturating_sub(1));
    stacked(dir, &config, plan)
}

/// Whether the layers of `newer` are those of `older` and one on top, which may be writable. Without an older one:
/// whether there is just one.
pub fn is_next(older: Option<&DeviceDir>, newer: &DeviceDir) -> Result<bool> {
    let lowers = older.map_or(Ok(Vec::new()), |older| described(older).map(|config| config.lowers))?;
    let newer = described(newer)?;
    let below = match newer.has_upper() {
        true => Some(newer.lowers.as_slice()),
        false => newer.lowers.split_last().map(|(_own, below)| below),
    };
    Ok(below == Some(&lowers))
}

fn described(dir: &DeviceDir) -> Result<ImageConfig> {
    let none = || MountError::NoDevice(dir.path().to_owned(), DeviceDir::CONFIG);
    ImageConfig::read(dir.config()?.ok_or_else(none)?).map_err(|error| error.context(dir.path()))
}

fn stacked(dir: &DeviceDir, config: &ImageConfig, plan: Plan<'_>) -> Result<LayeredDevice> {
    let files = config.open(&|path, _mode| Ok(dir.open(path)?), Mode::Read);
    let mut charge = |bytes| plan.lease.add(Use::Device, bytes, plan.work.cancel);
    files.and_then(|files| device::open_within(files, &mut charge)).map_err(|error| error.context(dir.path()))
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
