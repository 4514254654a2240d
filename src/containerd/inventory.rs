//! Lists: what containerd has of namespaces, images, snapshotters and snapshots.
//!
//! Source: containerd `api/services/{namespaces,images,introspection,snapshots}/v1`.

use std::{collections::BTreeMap, path::PathBuf};

use containerd_client::services::v1::{
    ListImagesRequest, PluginsRequest,
    images_client::ImagesClient,
    introspection_client::IntrospectionClient,
    snapshots::{CleanupRequest, Info, ListSnapshotsRequest},
};
use tonic::Code;

use super::{
    client::{MESSAGE_BYTES, from_status, request},
    content::Containerd,
    layers::SNAPSHOTTER_PLUGIN,
    snapshots::{Snapshots, failed},
    sweep,
};
use crate::{
    call::{Call, Namespace},
    descriptor::Descriptor,
    error::{Error, Kind, Result},
    limits,
    store::reason,
};

/// A snapshotter that containerd has loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshotter {
    /// Name in containerd's configuration.
    pub name: String,
    /// Root directory, if it exports one.
    pub root: Option<PathBuf>,
}

impl Containerd {
    /// Lists the namespaces.
    pub fn namespaces(&self, call: &Call) -> Result<Vec<Namespace>> {
        let calls = self.client.retried(call, "namespaces", |_channel| {
            let client = self.client.clone();
            async move { sweep::namespaces(&client).await }
        })?;
        Ok(calls.into_iter().map(|call| call.namespace).collect())
    }

    /// Lists the images of the call's namespace, with the documents that they lead to. Those whose records are odd are
    /// left out.
    pub fn images(&self, call: &Call) -> Result<Vec<(String, Descriptor)>> {
        let response = self.client.retried(call, "images", |channel| {
            let message = request(call, ListImagesRequest::default());
            let mut images = ImagesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
            async move { images.list(message?).await.map_err(from_status) }
        })?;
        let images = response.into_inner().images.into_iter().filter_map(|image| {
            let target = image.target?;
            let digest = target.digest.parse().ok()?;
            Some((image.name, Descriptor::new(&target.media_type, digest, target.size).ok()?))
        });
        Ok(images.collect())
    }

    /// Lists the snapshotters that containerd has loaded, with their roots.
    pub fn snapshotter_roots(&self, call: &Call) -> Result<Vec<Snapshotter>> {
        let response = self.client.retried(call, "introspection", |channel| {
            let filters = vec![format!("type=={SNAPSHOTTER_PLUGIN}")];
            let message = request(call, PluginsRequest { filters });
            async move { IntrospectionClient::new(channel).plugins(message?).await.map_err(from_status) }
        })?;
        let plugins = response.into_inner().plugins.into_iter();
        let loaded =
            plugins.filter(|plugin| plugin.r#type == SNAPSHOTTER_PLUGIN && plugin.init_err.is_none());
        let snapshotters = loaded.map(|mut plugin| Snapshotter {
            name: plugin.id,
            root: plugin.exports.remove("root").map(PathBuf::from),
        });
        Ok(snapshotters.collect())
    }
}

impl Snapshots {
    /// Lists the committed snapshots of the call's namespace: their names, and those of the snapshots below.
    pub fn committed(&self, call: &Call) -> Result<BTreeMap<String, Option<String>>> {
        let filters = vec!["kind==committed".to_owned()];
        let infos = self.list(call, filters)?.into_iter();
        Ok(infos.map(|Info { name, parent, .. }| (name, (!parent.is_empty()).then_some(parent))).collect())
    }

    /// Lists the snapshots that any of `filters` fits. Errors: more than [`limits::SNAPSHOTS`].
    pub(super) fn list(&self, call: &Call, filters: Vec<String>) -> Result<Vec<Info>> {
        self.client.retried(call, "list of snapshots", |_channel| {
            let message = ListSnapshotsRequest { snapshotter: self.name.clone(), filters: filters.clone() };
            let (request, mut service) = (request(call, message), self.service());
            async move {
                let mut stream = service.list(request?).await.map_err(failed)?.into_inner();
                let mut found = Vec::new();
                while let Some(message) = stream.message().await.map_err(failed)? {
                    found.extend(message.info);
                    if found.len() > limits::SNAPSHOTS {
                        let message = format!("more than {} snapshots", limits::SNAPSHOTS);
                        return Err(Error::new(Kind::Exhausted, reason::REFUSED, message));
                    }
                }
                Ok(found)
            }
        })
    }

    /// Lets the snapshotter remove the directories that it has no record of. Returns whether it can be asked to.
    pub fn clean_up(&self, call: &Call) -> Result<bool> {
        self.client.retried(call, "cleanup of a snapshotter", |_channel| {
            let message = request(call, CleanupRequest { snapshotter: self.name.clone() });
            let mut service = self.service();
            async move {
                match service.cleanup(message?).await {
                    Ok(_) => Ok(true),
                    Err(status) if status.code() == Code::Unimplemented => Ok(false),
                    Err(status) => Err(from_status(status)),
                }
            }
        })
    }
}
