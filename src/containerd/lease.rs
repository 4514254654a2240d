//! Leases: they keep containerd from collecting a blob to which nothing refers yet.
//!
//! A lease of ours expires by its label, so that after a crash it costs disk space for a limited time only. Without a
//! crash [`super::watch`] decides how long it stays.
//!
//! Source: docs/formats/containerd.md, "Writing a blob"; containerd `api/services/leases/v1/leases.proto`,
//! `docs/garbage-collection.md`.

use std::time::{Duration, SystemTime};

use containerd_client::services::v1::{
    AddResourceRequest, CreateRequest, DeleteRequest, Lease, ListRequest, ListResourcesRequest, Resource,
    leases_client::LeasesClient,
};
use prost_types::Timestamp;
use tonic::{Code, Status};

use super::client::{Client, MESSAGE_BYTES, request};
use crate::{call::Call, digest::Digest};

/// Label with the time at which a lease expires.
const EXPIRE: &str = "containerd.io/gc.expire";

/// Type of the resources of a lease that are blobs.
pub(super) const CONTENT: &str = "content";

/// Creates the lease `id`, which expires after `lifetime`. Returns containerd's time of its creation.
pub(super) async fn create(
    client: &Client,
    call: &Call,
    id: &str,
    lifetime: Duration,
) -> Result<Option<Timestamp>, Status> {
    let labels = [(EXPIRE.to_owned(), rfc3339(SystemTime::now() + lifetime))].into();
    let message = request(call, CreateRequest { id: id.to_owned(), labels }).map_err(refused)?;
    let created = LeasesClient::new(client.channel.clone()).create(message).await?.into_inner();
    Ok(created.lease.and_then(|lease| lease.created_at))
}

/// Lists all leases of the call's namespace.
pub(super) async fn list(client: &Client, call: &Call) -> Result<Vec<Lease>, Status> {
    let message = request(call, ListRequest::default()).map_err(refused)?;
    let mut leases = LeasesClient::new(client.channel.clone()).max_decoding_message_size(MESSAGE_BYTES);
    Ok(leases.list(message).await?.into_inner().leases)
}

/// Lists the digests of the blobs that the lease `id` holds.
pub(super) async fn contents(client: &Client, call: &Call, id: &str) -> Result<Vec<String>, Status> {
    let message = request(call, ListResourcesRequest { id: id.to_owned() }).map_err(refused)?;
    let mut leases = LeasesClient::new(client.channel.clone()).max_decoding_message_size(MESSAGE_BYTES);
    let found = leases.list_resources(message).await?.into_inner().resources;
    Ok(found.into_iter().filter(|found| found.r#type == CONTENT).map(|found| found.id).collect())
}

/// Deletes the lease `id`. Returns `false` if there is none.
pub(super) async fn delete(client: &Client, call: &Call, id: &str) -> Result<bool, Status> {
    let message = request(call, DeleteRequest { id: id.to_owned(), sync: false }).map_err(refused)?;
    match LeasesClient::new(client.channel.clone()).delete(message).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Code::NotFound => Ok(false),
        Err(status) => Err(status),
    }
}

/// Adds a blob to the lease `id`.
pub(super) async fn add(client: &Client, call: &Call, id: &str, digest: &Digest) -> Result<(), Status> {
    let resource = Resource { id: digest.to_string(), r#type: CONTENT.to_owned() };
    let message = AddResourceRequest { id: id.to_owned(), resource: Some(resource) };
    let message = request(call, message).map_err(refused)?;
    LeasesClient::new(client.channel.clone()).add_resource(message).await?;
    Ok(())
}

/// Status for a request that was refused here, before it was sent.
pub(super) fn refused(error: crate::error::Error) -> Status {
    Status::invalid_argument(error.to_string())
}

/// A time in RFC 3339, as containerd parses it.
fn rfc3339(time: SystemTime) -> String {
    Timestamp::from(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_lease_is_written_as_rfc_3339_in_utc() {
        let at = |seconds| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(at(4_102_444_800), "2100-01-01T00:00:00Z");
        let fraction = rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(1_500));
        assert_eq!(fraction, "1970-01-01T00:00:01.500Z");
    }
}
