//! Image records, and which snapshots there are.
//!
//! Source: docs/formats/archives.md, "Into containerd"; containerd `api/services/images/v1/images.proto`,
//! `api/services/snapshots/v1/snapshots.proto`.

use containerd_client::{
    services::v1::{
        CreateImageRequest, GetImageRequest, Image, UpdateImageRequest,
        images_client::ImagesClient,
        snapshots::{StatSnapshotRequest, snapshots_client::SnapshotsClient},
    },
    types,
};
use prost_types::FieldMask;
use tonic::Code;

use super::{
    client::{from_status, request},
    content::Containerd,
};
use crate::{
    call::Call,
    descriptor::Descriptor,
    digest::Digest,
    error::{Error, Kind, Result},
    store::reason,
};

/// Most times that another client may make and remove an image while it is recorded.
const RACES: u32 = 3;

impl Containerd {
    /// Returns the descriptor to which the image `name` leads; `None` when the call's namespace has no such image.
    pub fn image(&self, call: &Call, name: &str) -> Result<Option<Descriptor>> {
        let found = self.client.retried(call, "image", |channel| {
            let message = request(call, GetImageRequest { name: name.to_owned() });
            async move {
                match ImagesClient::new(channel).get(message?).await {
                    Ok(response) => Ok(response.into_inner().image),
                    Err(status) if status.code() == Code::NotFound => Ok(None),
                    Err(status) => Err(from_status(status)),
                }
            }
        })?;
        let Some(target) = found.and_then(|image| image.target) else { return Ok(None) };
        let digest: Digest = target.digest.parse()?;
        let annotations = target.annotations.into_iter().collect();
        Ok(Some(Descriptor::new(&target.media_type, digest, target.size)?.annotated(annotations)?))
    }

    /// Lets the image `name` lead to `target`, whether there was one of this name or not.
    pub fn record_image(&self, call: &Call, name: &str, target: &Descriptor) -> Result<()> {
        let size = i64::try_from(target.size_bytes).map_err(|_wide| {
            Error::new(Kind::Malformed, reason::SIZE, format!("{} bytes are no size", target.size_bytes))
        })?;
        let image = Image {
            name: name.to_owned(),
            target: Some(types::Descriptor {
                media_type: target.media_type.clone(),
                digest: target.digest.to_string(),
                size,
                annotations: target.annotations.clone().into_iter().collect(),
            }),
            ..Image::default()
        };
        self.client.retried(call, "image record", |channel| {
            let create = CreateImageRequest { image: Some(image.clone()), ..CreateImageRequest::default() };
            let update = UpdateImageRequest {
                image: Some(image.clone()),
                update_mask: Some(FieldMask { paths: vec!["target".to_owned()] }),
                ..UpdateImageRequest::default()
            };
            let call = call.clone();
            async move {
                let mut images = ImagesClient::new(channel);
                // Between the two calls another client may make the image, or remove it.
                let mut created = images.create(request(&call, create.clone())?).await.map(drop);
                for _ in 0..RACES {
                    match created {
                        Err(status) if status.code() == Code::AlreadyExists => {}
                        outcome => return outcome.map_err(from_status),
                    }
                    match images.update(request(&call, update.clone())?).await.map(drop) {
                        Err(status) if status.code() == Code::NotFound => {}
                        outcome => return outcome.map_err(from_status),
                    }
                    created = images.create(request(&call, create.clone())?).await.map(drop);
                }
                created.map_err(from_status)
            }
        })
    }

    /// Lists the names of the snapshotters that containerd has loaded.
    pub fn snapshotters(&self, call: &Call) -> Result<Vec<String>> {
        Ok(self.snapshotter_roots(call)?.into_iter().map(|snapshotter| snapshotter.name).collect())
    }

    /// Whether `snapshotter` has the snapshot `key`.
    pub fn has_snapshot(&self, call: &Call, snapshotter: &str, key: &str) -> Result<bool> {
        self.client.retried(call, "snapshot", |channel| {
            let (snapshotter, key) = (snapshotter.to_owned(), key.to_owned());
            let message = request(call, StatSnapshotRequest { snapshotter, key });
            async move {
                match SnapshotsClient::new(channel).stat(message?).await {
                    Ok(_) => Ok(true),
                    Err(status) if status.code() == Code::NotFound => Ok(false),
                    Err(status) => Err(from_status(status)),
                }
            }
        })
    }
}
