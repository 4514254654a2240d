//! Questions about blobs, and the leases that keep them for as long as a command is at work.
//!
//! Source: docs/formats/archives.md, "Into containerd"; containerd `api/services/content/v1/content.proto`,
//! `api/services/leases/v1/leases.proto`.

use std::time::Duration;

use containerd_client::services::v1::{
    AddResourceRequest, DeleteRequest, Info, ListContentRequest, ListRequest, ListResourcesRequest, Resource,
    UpdateRequest, leases_client::LeasesClient,
};
use prost_types::FieldMask;
use tonic::Code;

use super::{
    client::{MESSAGE_BYTES, from_status, request},
    content::Containerd,
    lease,
};
use crate::{
    call::Call,
    digest::Digest,
    error::{Error, Kind, Quoted, Result},
    store::reason,
};

/// Label with the diffID of a layer.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// Most blobs of one layer that are looked at; each compression of it is one.
const SAME_LAYER: usize = 64;

impl Containerd {
    /// Returns the size of a blob in bytes; `None` when the call's namespace does not have it.
    pub fn blob_bytes(&self, call: &Call, digest: &Digest) -> Result<Option<u64>> {
        match self.client.info(call, digest) {
            Ok((_, size_bytes)) => Ok(Some(size_bytes)),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lists the blobs that are known to hold the layer `diff_id` in a compressed form, with their sizes in bytes.
    pub fn blobs_of_layer(&self, call: &Call, diff_id: &Digest) -> Result<Vec<(Digest, u64)>> {
        let filter = format!("labels.\"{UNCOMPRESSED}\"=={diff_id}");
        let infos = self.client.retried(call, "content list", |_channel| {
            let message = request(call, ListContentRequest { filters: vec![filter.clone()] });
            let mut content = self.client.content();
            async move {
                let mut list = content.list(message?).await.map_err(from_status)?.into_inner();
                let mut infos = Vec::new();
                while let Some(part) = list.message().await.map_err(from_status)? {
                    let room = SAME_LAYER.saturating_sub(infos.len());
                    infos.extend(part.info.into_iter().take(room));
                }
                Ok(infos)
            }
        })?;
        let wanted = diff_id.to_string();
        let mut found: Vec<(Digest, u64)> = infos
            .into_iter()
            .filter(|info| info.labels.get(UNCOMPRESSED) == Some(&wanted))
            .filter_map(|info| Some((info.digest.parse().ok()?, u64::try_from(info.size).ok()?)))
            .collect();
        found.sort();
        Ok(found)
    }

    /// Creates the lease `id`, which expires after `lifetime`.
    pub fn create_lease(&self, call: &Call, id: &str, lifetime: Duration) -> Result<()> {
        self.client.retried(call, "lease", |_channel| {
            let (client, call, id) = (self.client.clone(), call.clone(), id.to_owned());
            async move {
                match lease::create(&client, &call, &id, lifetime).await {
                    // The answer to an earlier attempt was lost: the name is unique.
                    Err(status) if status.code() == Code::AlreadyExists => Ok(()),
                    outcome => outcome.map(drop).map_err(from_status),
                }
            }
        })
    }

    /// Deletes the lease `id`. With `collect`, returns once containerd has removed what nothing else holds.
    pub fn delete_lease(&self, call: &Call, id: &str, collect: bool) -> Result<()> {
        self.client.retried(call, "end of a lease", |channel| {
            let message = request(call, DeleteRequest { id: id.to_owned(), sync: collect });
            async move {
                match LeasesClient::new(channel).delete(message?).await {
                    Err(status) if status.code() == Code::NotFound => Ok(()),
                    outcome => outcome.map(drop).map_err(from_status),
                }
            }
        })
    }

    /// Adds a blob to the lease of the call, whether it is there or not.
    pub fn hold(&self, call: &Call, digest: &Digest) -> Result<()> {
        self.add_to_lease(call, lease::CONTENT, &digest.to_string())
    }

    /// Adds something to the lease of the call, whether it is there or not.
    pub(super) fn add_to_lease(&self, call: &Call, kind: &str, name: &str) -> Result<()> {
        let Some(id) = &call.lease else { return Ok(()) };
        self.client.retried(call, "lease of a resource", |channel| {
            let resource = Resource { id: name.to_owned(), r#type: kind.to_owned() };
            let message = AddResourceRequest { id: id.clone(), resource: Some(resource) };
            let message = request(call, message);
            async move { LeasesClient::new(channel).add_resource(message?).await.map(drop).map_err(from_status) }
        })
    }

    /// Lists what the lease `id` holds: type and name of each.
    pub(super) fn resources(&self, call: &Call, id: &str) -> Result<Vec<(String, String)>> {
        let response = self.client.retried(call, "resources of a lease", |channel| {
            let message = request(call, ListResourcesRequest { id: id.to_owned() });
            let mut leases = LeasesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
            async move { leases.list_resources(message?).await.map_err(from_status) }
        })?;
        let resources = response.into_inner().resources.into_iter();
        Ok(resources.map(|resource| (resource.r#type, resource.id)).collect())
    }

    /// Sets a label of a blob.
    pub fn set_label(&self, call: &Call, digest: &Digest, key: &str, value: &str) -> Result<()> {
        let response = self.client.retried(call, "content update", |_channel| {
            let labels = [(key.to_owned(), value.to_owned())].into();
            let info = Info { digest: digest.to_string(), labels, ..Info::default() };
            let paths = vec![format!("labels.{key}")];
            let update = UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
            let update = request(call, update);
            let mut content = self.client.content();
            async move { content.update(update?).await.map_err(from_status) }
        })?;
        let after = response.into_inner().info.unwrap_or_default();
        match after.labels.get(key) {
            Some(found) if found == value => Ok(()),
            _ => {
                let message = format!("the store did not take label {}", Quoted(key.as_bytes()));
                Err(Error::new(Kind::DataLoss, reason::LABEL, message))
            }
        }
    }

    /// Lists the leases whose names begin with `prefix`.
    pub fn leases_of(&self, call: &Call, prefix: &str) -> Result<Vec<String>> {
        let response = self.client.retried(call, "leases", |channel| {
            let message = request(call, ListRequest::default());
            let mut leases = LeasesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
            async move { leases.list(message?).await.map_err(from_status) }
        })?;
        let ids = response.into_inner().leases.into_iter().map(|lease| lease.id);
        Ok(ids.filter(|id| id.starts_with(prefix)).collect())
    }

    /// Adds everything that the lease `from` holds to the lease of the call, half-written blobs included, and then
    /// deletes `from`. Snapshots into which layers were being unpacked are removed before.
    pub fn adopt_lease(&self, call: &Call, from: &str) -> Result<()> {
        if call.lease.is_none() {
            return Ok(());
        }
        self.remove_extractions(call, from)?;
        for (kind, name) in self.resources(call, from)? {
            self.add_to_lease(call, &kind, &name)?;
        }
        self.delete_lease(call, from, false)
    }
}
