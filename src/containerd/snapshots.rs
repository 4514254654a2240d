//! The records of a snapshotter, over containerd's snapshots service.
//!
//! A request to apply a layer brings the mounts of a snapshot and not its name. The name is found by comparing the mounts
//! with those of the active snapshots; layers that are being unpacked come first, and there are few of them.
//!
//! Source: containerd `api/services/snapshots/v1/snapshots.proto`, `core/metadata/snapshot.go`; docs/formats/containerd.md,
//! "Snapshots of devices".

use containerd_client::{
    services::v1::snapshots::{
        Info, ListSnapshotsRequest, MountsRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
        snapshots_client::SnapshotsClient,
    },
    types,
};
use tonic::transport::Channel;

use super::{
    client::{Client, MESSAGE_BYTES, from_status, request},
    content::Containerd,
    name::random,
};
use crate::{
    call::Call,
    error::{Error, Kind, Result},
    snapshot::{Mount, Record, Records},
    store::reason,
};

/// Label of a snapshot into which a layer is being unpacked.
const UNPACKED: &str = "containerd.io/snapshot.ref";
/// Most active snapshots whose mounts are asked for.
const CANDIDATES: usize = 4096;
/// Most snapshots in a list.
const LISTED: usize = 1 << 20;

/// The records of the snapshotter that containerd has under `name`.
pub struct Snapshots {
    client: Client,
    name: String,
}

impl Containerd {
    /// The records of the snapshotter `name`.
    pub fn snapshots(&self, name: &str) -> Snapshots {
        Snapshots { client: self.client.clone(), name: name.to_owned() }
    }
}

impl Snapshots {
    fn service(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.client.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    /// Lists the active snapshots of the call's namespace, those with a layer that is being unpacked first.
    fn active(&self, call: &Call) -> Result<Vec<Info>> {
        let mut found = self.client.retried(call, "list of active snapshots", |_channel| {
            let message = ListSnapshotsRequest {
                snapshotter: self.name.clone(),
                filters: vec!["kind==active".to_owned()],
            };
            let (request, mut service) = (request(call, message), self.service());
            async move {
                let mut stream = service.list(request?).await.map_err(from_status)?.into_inner();
                let mut found = Vec::new();
                while let Some(message) = stream.message().await.map_err(from_status)? {
                    found.extend(message.info);
                    if found.len() > LISTED {
                        let message = format!("more than {LISTED} active snapshots");
                        return Err(Error::new(Kind::Exhausted, reason::REFUSED, message));
                    }
                }
                Ok(found)
            }
        })?;
        found.sort_by_key(|info| !info.labels.contains_key(UNPACKED));
        Ok(found)
    }

    /// Returns the mounts of the active snapshot `key`. `None` when there is none.
    fn mounts(&self, call: &Call, key: &str) -> Result<Option<Vec<Mount>>> {
        let outcome = self.client.retried(call, "mounts of a snapshot", |_channel| {
            let message = MountsRequest { snapshotter: self.name.clone(), key: key.to_owned() };
            let (request, mut service) = (request(call, message), self.service());
            async move { service.mounts(request?).await.map_err(from_status) }
        });
        match outcome {
            Ok(found) => Ok(Some(found.into_inner().mounts.into_iter().map(mount).collect())),
            // Committed or removed since it was listed.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Conflict) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn mount(mount: types::Mount) -> Mount {
    let types::Mount { r#type, source, target, options } = mount;
    Mount { kind: r#type, source, target, options }
}

impl Records for Snapshots {
    fn find(&self, call: &Call, mounts: &[Mount]) -> Result<Option<Record>> {
        for Info { name, parent, labels, .. } in self.active(call)?.into_iter().take(CANDIDATES) {
            if self.mounts(call, &name)?.is_some_and(|found| found == mounts) {
                let parent = (!parent.is_empty()).then_some(parent);
                return Ok(Some(Record { parent, labels: labels.into_iter().collect() }));
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
                ..ViewSnapshotRequest::default()
            };
            let (request, mut service) = (request(call, message), self.service());
            async move { service.view(request?).await.map_err(from_status) }
        })?;
        let removed = self.client.retried(call, "removal of a view", |_channel| {
            let message = RemoveSnapshotRequest { snapshotter: self.name.clone(), key: key.clone() };
            let (request, mut service) = (request(call, message), self.service());
            async move { service.remove(request?).await.map_err(from_status) }
        });
        if let Err(error) = removed {
            tracing::warn!(key, %error, "a view of ours stays until containerd collects it");
        }
        Ok(viewed.into_inner().mounts.into_iter().map(mount).collect())
    }
}
