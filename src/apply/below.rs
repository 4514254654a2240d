//! Which layer of a device a snapshot gets, and the device below it: from its mounts, and from the snapshotter's records where
//! the mounts do not show it.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    choose::{Asked, Strategy, choose},
    options::Overlaybd,
    request::{ApplyError, Request},
};
use crate::{
    call::Call,
    error::Result,
    kind::{Container, LayerType},
    snapshot::{DEVICE_LAYER, DeviceDir, MountError, Record, Records, Roots, SnapshotDir},
};

/// The snapshotter of devices, which knows what mounts do not show.
#[derive(Clone)]
pub struct Snapshotter {
    /// Name in containerd.
    pub name: String,
    /// Access to the records that it has of snapshots.
    pub records: Arc<dyn Records>,
}

/// A request with the snapshot that it means.
pub(super) struct Found<'a> {
    pub(super) request: &'a Request,
    pub(super) layer_type: &'static LayerType,
    pub(super) dir: &'a SnapshotDir,
}

/// The strategy for a layer, and what it builds on.
pub(super) struct Decision {
    pub(super) strategy: Strategy,
    /// The device of the layers below. `None` for a lowest layer, and for a strategy that has no use for it.
    pub(super) device: Option<DeviceDir>,
}

impl Found<'_> {
    /// Chooses the strategy. Reads no byte of the layer.
    pub(super) fn decide(
        &self,
        call: &Call,
        roots: &Roots,
        snapshotter: Option<&Snapshotter>,
        overlaybd: &Overlaybd,
    ) -> Result<Decision> {
        let Self { request, layer_type, dir } = self;
        let choose = |labels: &BTreeMap<String, String>| {
            let annotations = &request.diff.annotations;
            let accepted = dir.publishes();
            choose(&Asked { layer_type, annotations, labels, accepted, overlaybd })
                .ok_or_else(|| ApplyError::Snapshot(request.diff.media_type.clone()))
        };
        if layer_type.container != Container::Tar || !dir.publishes().contains(&&DEVICE_LAYER) {
            return Ok(Decision { strategy: choose(&BTreeMap::new())?, device: None });
        }
        if let Some(device) = roots.device_below(&request.mounts)? {
            // A snapshot whose label asks for a conversion shows no layers below.
            let strategy = choose(&BTreeMap::new())?;
            return Ok(Decision { strategy, device: Some(described(device)?) });
        }
        let record = match snapshotter {
            Some(snapshotter) => snapshotter.records.find(call, &request.mounts)?,
            None => None,
        };
        let labels = record.as_ref().map(|record| record.labels.clone()).unwrap_or_default();
        let strategy = choose(&labels)?;
        let device = match (record, snapshotter) {
            (Some(Record { parent: None, .. }), _) => None,
            (Some(Record { parent: Some(parent), .. }), Some(Snapshotter { records, .. })) => {
                Some(described(roots.device_of(&records.view(call, &parent)?)?)?)
            }
            (_, snapshotter) => {
                let snapshotter = snapshotter.map(|snapshotter| snapshotter.name.clone()).unwrap_or_default();
                return Err(ApplyError::Parent { snapshotter }.into());
            }
        };
        Ok(Decision { strategy, device })
    }
}

/// Checks that a snapshot below is a device: on top of layers that are directories no layer of a device can be made.
fn described(device: DeviceDir) -> Result<DeviceDir> {
    match device.config()? {
        Some(_) => Ok(device),
        None => Err(MountError::NoDevice(device.path().to_owned(), DeviceDir::CONFIG).into()),
    }
}
