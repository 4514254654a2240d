//! Snapshots into which layers are unpacked: prepared, committed under their chainIDs, removed.
//!
//! Source: docs/formats/unpack.md; containerd `api/services/snapshots/v1/snapshots.proto`, `core/metadata/snapshot.go`.

use std::collections::{BTreeMap, HashMap};

use containerd_client::{
    services::v1::{
        PluginsRequest,
        introspection_client::IntrospectionClient,
        snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest, snapshots_client::SnapshotsClient},
        version_client::VersionClient,
    },
    types,
};
use tonic::{Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

use super::{
    client::{from_status, request, text_of},
    content::Containerd,
};
use crate::{
    call::Call,
    digest::Digest,
    error::{Error, Kind, Result},
    snapshot::Mount,
};

/// Plugin type of snapshotters.
pub(super) const SNAPSHOTTER_PLUGIN: &str = "io.containerd.snapshotter.v1";
/// Capability of a snapshotter that takes a snapshot's parent at its commit.
const REBASE: &str = "rebase";
/// Oldest containerd that passes the parent on.
const REBASES: (u32, u32) = (2, 2);
/// Prefix of the types of a lease's resources that are snapshots.
pub(super) const SNAPSHOTS: &str = "snapshots/";
/// Prefix of the keys of snapshots into which layers are unpacked.
pub const EXTRACT: &str = "extract-";

/// Answer to [`Containerd::prepare_snapshot`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// A new active snapshot, and how it is mounted.
    Active(Vec<Mount>),
    /// The snapshot that it is to become is there, or the key is taken.
    Exists,
}

/// An active snapshot: its snapshotter, its key and the labels that it has as long as it is active, and when it is
/// committed.
#[derive(Clone, Debug)]
pub struct Place {
    /// Name of the snapshotter.
    pub snapshotter: String,
    /// Key of the snapshot.
    pub key: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A request to commit a snapshot, with the field that containerd has since 2.2.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct CommitRequest {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    key: String,
    #[prost(map = "string, string", tag = "4")]
    labels: HashMap<String, String>,
    /// Snapshot that becomes the parent of one that has none.
    #[prost(string, tag = "5")]
    parent: String,
}

impl Containerd {
    /// Whether the parents of snapshots can be given at their commit. Errors: `unpack.snapshotter` when containerd has no
    /// such snapshotter.
    pub fn can_rebase(&self, call: &Call, snapshotter: &str) -> Result<bool> {
        let response = self.client.retried(call, "introspection", |channel| {
            let filters = vec![format!("type=={SNAPSHOTTER_PLUGIN}")];
            let message = request(call, PluginsRequest { filters });
            async move { IntrospectionClient::new(channel).plugins(message?).await.map_err(from_status) }
        })?;
        let plugins = response.into_inner().plugins;
        let loaded = || {
            plugins.iter().filter(|plugin| plugin.r#type == SNAPSHOTTER_PLUGIN && plugin.init_err.is_none())
        };
        let Some(found) = loaded().find(|plugin| plugin.id == snapshotter) else {
            let names = loaded().map(|plugin| plugin.id.as_str()).collect::<Vec<_>>().join(", ");
            let message = format!("containerd has no snapshotter {snapshotter:?}; it has {names}");
            return Err(Error::new(Kind::NotFound, "unpack.snapshotter", message));
        };
        // A proxy may announce it under a containerd that does not know it.
        Ok(found.capabilities.iter().any(|capability| capability == REBASE) && rebases(&self.version(call)?))
    }

    fn version(&self, call: &Call) -> Result<String> {
        let response = self.client.retried(call, "version", |channel| {
            let message = request(call, ());
            async move { VersionClient::new(channel).version(message?).await.map_err(from_status) }
        })?;
        Ok(response.into_inner().version)
    }

    /// Makes an active snapshot on top of `parent`.
    ///
    /// Not repeated when no answer comes: a key that was taken by the first attempt could not be told from another's.
    /// Errors: `unpack.parent` when there is no such parent.
    pub fn prepare_snapshot(&self, call: &Call, place: &Place, parent: Option<&Digest>) -> Result<Prepared> {
        let message = PrepareSnapshotRequest {
            snapshotter: place.snapshotter.clone(),
            key: place.key.clone(),
            parent: parent.map(ToString::to_string).unwrap_or_default(),
            labels: place.labels.clone().into_iter().collect(),
        };
        let missing = parent.map(ToString::to_string).unwrap_or_default();
        let request = request(call, message);
        self.client.once(call, "a new snapshot", |channel| async move {
            match SnapshotsClient::new(channel).prepare(request?).await {
                Ok(response) => Ok(Prepared::Active(
                    response.into_inner().mounts.into_iter().map(super::snapshots::mount).collect(),
                )),
                Err(status) if status.code() == Code::AlreadyExists => Ok(Prepared::Exists),
                Err(status) if status.code() == Code::NotFound && !missing.is_empty() => {
                    Err(gone(&missing, &status))
                }
                Err(status) => Err(from_status(status)),
            }
        })
    }

    /// Commits an active snapshot as `name`. Returns `false` if there is one of this name already; the active one stays
    /// then. `parent`: for a snapshot that was made without one.
    ///
    /// Errors: `unpack.parent` when there is no such parent, or the snapshot is gone.
    pub fn commit_snapshot(
        &self,
        call: &Call,
        place: &Place,
        name: &Digest,
        parent: Option<&Digest>,
    ) -> Result<bool> {
        let message = CommitRequest {
            snapshotter: place.snapshotter.clone(),
            name: name.to_string(),
            key: place.key.clone(),
            labels: place.labels.clone().into_iter().collect(),
            parent: parent.map(ToString::to_string).unwrap_or_default(),
        };
        self.client.retried(call, "commit of a snapshot", |channel| {
            let (request, parent) = (request(call, message.clone()), message.parent.clone());
            async move {
                match commit(channel, request?).await {
                    Ok(()) => Ok(true),
                    Err(status) if status.code() == Code::AlreadyExists => Ok(false),
                    Err(status) if status.code() == Code::NotFound => Err(gone(&parent, &status)),
                    Err(status) => Err(from_status(status)),
                }
            }
        })
    }

    /// Removes a snapshot. One that is not there is no error.
    pub fn remove_snapshot(&self, call: &Call, snapshotter: &str, key: &str) -> Result<()> {
        self.client.retried(call, "removal of a snapshot", |channel| {
            let message = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
            let message = request(call, message);
            async move {
                match SnapshotsClient::new(channel).remove(message?).await {
                    Err(status) if status.code() == Code::NotFound => Ok(()),
                    outcome => outcome.map(drop).map_err(from_status),
                }
            }
        })
    }

    /// Puts a snapshot under the lease of the call. Returns `false` if there is no such snapshot.
    pub fn hold_snapshot(&self, call: &Call, snapshotter: &str, name: &Digest) -> Result<bool> {
        let name = name.to_string();
        if !self.has_snapshot(call, snapshotter, &name)? {
            return Ok(false);
        }
        self.add_to_lease(call, &format!("{SNAPSHOTS}{snapshotter}"), &name)?;
        // Asked once more: it may have been collected before the lease held it.
        self.has_snapshot(call, snapshotter, &name)
    }

    /// Removes the active snapshots that the lease `id` holds: those that a killed run of its owner has left.
    pub fn remove_extractions(&self, call: &Call, id: &str) -> Result<()> {
        for (kind, key) in self.resources(call, id)? {
            if let Some(snapshotter) = kind.strip_prefix(SNAPSHOTS)
                && key.starts_with(EXTRACT)
            {
                tracing::debug!(snapshotter, key, "left by a run that was killed");
                self.remove_snapshot(call, snapshotter, &key)?;
            }
        }
        Ok(())
    }
}

/// Sends the request. containerd-client's own message lacks the parent.
async fn commit(channel: Channel, request: Request<CommitRequest>) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
    let path = PathAndQuery::from_static("/containerd.services.snapshots.v1.Snapshots/Commit");
    grpc.unary::<_, (), _>(request, path, ProstCodec::default()).await?;
    Ok(())
}

fn gone(parent: &str, status: &Status) -> Error {
    let what = if parent.is_empty() { String::new() } else { format!("on top of {parent}: ") };
    Error::new(Kind::NotFound, "unpack.parent", format!("{what}{}", text_of(status)))
}

/// Whether a containerd of this version takes a parent at the commit. `v2.3.4`, `2.1.9~ds1`; anything else does not.
fn rebases(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= REBASES,
        _ => false,
    }
}

pub(super) fn to_wire(mount: &Mount) -> types::Mount {
    let Mount { kind, source, target, options } = mount.clone();
    types::Mount { r#type: kind, source, target, options }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_containerd_from_2_2_on_is_known_to_take_a_parent_at_the_commit() {
        for version in ["v2.2.0", "2.2.0-beta.1", "v2.4.0", "3.0", "2.10.1~ds1"] {
            assert!(rebases(version), "{version}");
        }
        for version in ["2.1.9~ds1-1", "v1.7.27", "2", "", "unknown", "v2.x"] {
            assert!(!rebases(version), "{version}");
        }
    }
}
