//! Leases: what keeps a blob that nothing refers to yet from being collected.
//!
//! A lease of ours has an end of its own, so that a crash of ours costs disk space for so long and no longer.
//!
//! Source: docs/formats/containerd.md, "Writing a blob"; containerd `api/services/leases/v1/leases.proto`,
//! `docs/garbage-collection.md`.

use std::time::{Duration, SystemTime};

use containerd_client::services::v1::{
    AddResourceRequest, CreateRequest, DeleteRequest, Resource, leases_client::LeasesClient,
};
use tonic::{Code, Status};

use super::{Client, request};
use crate::{call::Call, digest::Digest};

/// The label by which containerd knows when a lease ends.
const EXPIRE: &str = "containerd.io/gc.expire";

/// Creates the lease `id`, which ends after `lifetime`.
pub(super) async fn create(client: &Client, call: &Call, id: &str, lifetime: Duration) -> Result<(), Status> {
    let labels = [(EXPIRE.to_owned(), rfc3339(SystemTime::now() + lifetime))].into();
    let message = request(call, CreateRequest { id: id.to_owned(), labels }).map_err(refused)?;
    LeasesClient::new(client.channel.clone()).create(message).await?;
    Ok(())
}

/// Deletes the lease `id`. That there is none is a success, and `false`.
pub(super) async fn delete(client: &Client, call: &Call, id: &str) -> Result<bool, Status> {
    let message = request(call, DeleteRequest { id: id.to_owned(), sync: false }).map_err(refused)?;
    match LeasesClient::new(client.channel.clone()).delete(message).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Code::NotFound => Ok(false),
        Err(status) => Err(status),
    }
}

/// Puts a blob under the lease `id`.
pub(super) async fn add(client: &Client, call: &Call, id: &str, digest: &Digest) -> Result<(), Status> {
    let resource = Resource { id: digest.to_string(), r#type: "content".to_owned() };
    let message = AddResourceRequest { id: id.to_owned(), resource: Some(resource) };
    let message = request(call, message).map_err(refused)?;
    LeasesClient::new(client.channel.clone()).add_resource(message).await?;
    Ok(())
}

/// A request that could not be made was refused before it was sent.
fn refused(error: crate::error::Error) -> Status {
    Status::invalid_argument(error.to_string())
}

/// A time as containerd parses it.
fn rfc3339(time: SystemTime) -> String {
    prost_types::Timestamp::from(time).to_string()
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
