//! Questions about blobs, and the leases that keep them for as long as a command is at work.
//!
//! Source: docs/formats/archives.md, "Into containerd"; containerd `api/services/content/v1/content.proto`,
//! `api/services/leases/v1/leases.proto`.

use std::time::Duration;

use containerd_client::services::v1::{
    AddResourceRequest, DeleteRequest, ListContentRequest, ListRequest, ListResourcesRequest,
    leases_client::LeasesClient,
};
use tonic::Code;

use super::{
    client::{MESSAGE_BYTES, from_status, request},
    content::Containerd,
    lease,
};
use crate::{
    call::Call,
    digest::Digest,
    error::{Kind, Result},
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
        let Some(id) = &call.lease else { return Ok(()) };
        self.client.retried(call, "lease of a blob", |_channel| {
            let (client, call) = (self.client.clone(), call.clone());
            let (id, digest) = (id.clone(), digest.clone());
            async move { lease::add(&client, &call, &id, &digest).await.map_err(from_status) }
        })
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
    /// deletes `from`.
    pub fn adopt_lease(&self, call: &Call, from: &str) -> Result<()> {
        let Some(id) = &call.lease else { return Ok(()) };
        let response = self.client.retried(call, "resources of a lease", |channel| {
            let message = request(call, ListResourcesRequest { id: from.to_owned() });
            let mut leases = LeasesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
            async move { leases.list_resources(message?).await.map_err(from_status) }
        })?;
        for resource in response.into_inner().resources {
            self.client.retried(call, "lease of a resource", |channel| {
                let message = AddResourceRequest { id: id.clone(), resource: Some(resource.clone()) };
                let message = request(call, message);
                async move { LeasesClient::new(channel).add_resource(message?).await.map_err(from_status) }
            })?;
        }
        self.delete_lease(call, from, false)
    }
}
