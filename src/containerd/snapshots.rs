//! The records of a snapshotter, over containerd's snapshots service.
//!
//! A request to apply a layer brings the mounts of a snapshot and not its name. Those of a snapshot without parents can be
//! compared with what the snapshotter returns for each name. With parents they cannot: the snapshotter then attaches the
//! parent's device and returns the mounts of a container. So it is asked only where several snapshots are possible.
//!
//! Source: containerd `api/services/snapshots/v1/snapshots.proto`, `core/metadata/snapshot.go`; accelerated-container-image
//! `pkg/snapshot/overlay.go`, `Mounts` and `createMountPoint`; docs/formats/containerd.md, "Snapshots of devices".

use std::error::Error as _;

use containerd_client::{
    services::v1::snapshots::{
        Info, MountsRequest, RemoveSnapshotRequest, ViewSnapshotRequest, snapshots_client::SnapshotsClient,
    },
    types,
};
use tonic::{Code, Status, transport::Channel};

use super::{
    client::{Client, MESSAGE_BYTES, from_status, request, text_of},
    content::Containerd,
    name::random,
};
use crate::{
    call::Call,
    error::{Error, Kind, Result},
    kind::overlaybd::CONVERT,
    snapshot::{Mount, Record, Records},
    store::reason,
};

/// Label of a snapshot, and its value, for which the snapshotter attaches no device.
const FOR_IMAGE: (&str, &str) = ("containerd.io/snapshot/type", "image");
/// Most active snapshots whose mounts are asked for.
const CANDIDATES: usize = 4096;

/// The records of the snapshotter that containerd has under `name`.
pub struct Snapshots {
    pub(super) client: Client,
    pub(super) name: String,
}

impl Containerd {
    /// The records of the snapshotter `name`.
    pub fn snapshots(&self, name: &str) -> Snapshots {
        Snapshots { client: self.client.clone(), name: name.to_owned() }
    }
}

impl Snapshots {
    pub(super) fn service(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.client.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    /// Lists the active snapshots of the call's namespace.
    fn active(&self, call: &Call) -> Result<Vec<Info>> {
        self.list(call, vec!["kind==active".to_owned()])
    }

    /// Whether `mounts` are of the active snapshot `key`: they bind the directory that is the source of its bind, or its
    /// upper directory.
    fn is_of(&self, call: &Call, key: &str, mounts: &[Mount]) -> Result<bool> {
        let [Mount { source, .. }] = mounts else { return Ok(false) };
        let found = self.mounts(call, key)?.unwrap_or_default();
        let upper = |option: &String| option.strip_prefix("upperdir=") == Some(source);
        Ok(found.iter().any(|found| found.source == *source || found.options.iter().any(upper)))
    }

    /// Returns the mounts of the active snapshot `key`. `None` when there is none.
    fn mounts(&self, call: &Call, key: &str) -> Result<Option<Vec<Mount>>> {
        let outcome = self.client.retried(call, "mounts of a snapshot", |_channel| {
            let message = MountsRequest { snapshotter: self.name.clone(), key: key.to_owned() };
            let (request, mut service) = (request(call, message), self.service());
            async move { service.mounts(request?).await.map_err(failed) }
        });
        match outcome {
            Ok(found) => Ok(Some(found.into_inner().mounts.into_iter().map(mount).collect())),
            // Committed or removed since it was listed.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Conflict) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The error of a call. A snapshotter that fails, for one because it cannot attach a device, says so without a code.
pub(super) fn failed(status: Status) -> Error {
    let is_answer = status.source().is_none();
    match status.code() {
        Code::Unknown | Code::Internal if is_answer => {
            Error::new(Kind::Unavailable, reason::REFUSED, text_of(&status))
        }
        _ => from_status(status),
    }
}

pub(super) fn mount(mount: types::Mount) -> Mount {
    let types::Mount { r#type, source, target, options } = mount;
    Mount { kind: r#type, source, target, options }
}

fn record(Info { parent, labels, .. }: Info) -> Record {
    Record { parent: (!parent.is_empty()).then_some(parent), labels: labels.into_iter().collect() }
}

impl Records for Snapshots {
    fn find(&self, call: &Call, mounts: &[Mount]) -> Result<Option<Record>> {
        let (mut lowest, mut hidden) = (Vec::new(), Vec::new());
        for info in self.active(call)? {
            if info.parent.is_empty() {
                lowest.push(info);
            } else if info.labels.contains_key(CONVERT) {
                hidden.push(info);
            }
        }
        for info in lowest.into_iter().take(CANDIDATES) {
            if self.is_of(call, &info.name, mounts)? {
                return Ok(Some(record(info)));
            }
        }
        if hidden.len() == 1 {
            return Ok(hidden.pop().map(record));
        }
        for info in hidden.into_iter().take(CANDIDATES) {
            match self.is_of(call, &info.name, mounts) {
                Ok(true) => return Ok(Some(record(info))),
                Ok(false) => {}
                Err(error) if matches!(error.kind(), Kind::Cancelled | Kind::DeadlineExceeded) => {
                    return Err(error);
                }
                // The device of its parent cannot be attached.
                Err(error) => {
                    tracing::debug!(key = info.name, %error, "the mounts of a snapshot are not known")
                }
            }
        }
        Ok(None)
    }

    fn view(&self, call: &Call, name: &str) -> Result<Vec<Mount>> {
        let key = format!("plywood-view-{}", random()?);
        // Without a label that keeps it: containerd collects a view that a crash leaves.
        let viewed = self.client.retried(call, "view of a snapshot", |_channel| {
            let message = ViewSnapshotRequest {
                snapshotter: self.name.clone(),
                key: key.clone(),
                parent: name.to_owned(),
                labels: [FOR_IMAGE].map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            };
            let (request, mut service) = (request(call, message), self.service());
            async move { service.view(request?).await.map_err(failed) }
        })?;
        let removed = self.client.retried(call, "removal of a view", |_channel| {
            let message = RemoveSnapshotRequest { snapshotter: self.name.clone(), key: key.clone() };
            let (request, mut service) = (request(call, message), self.service());
            async move { service.remove(request?).await.map_err(failed) }
        });
        if let Err(error) = removed {
            tracing::warn!(key, %error, "a view of ours stays until containerd collects it");
        }
        Ok(viewed.into_inner().mounts.into_iter().map(mount).collect())
    }
}
