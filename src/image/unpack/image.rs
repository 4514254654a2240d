//! An image of containerd, and its unpacking under a lease.

use std::{path::Path, sync::Arc};

use super::{
    kept::{layers_of, unpack_layers},
    lease::Lease,
    unpacker::{Applied, Layer, Unpacker},
};
use crate::{
    call::Call,
    containerd::Containerd,
    digest::Digest,
    error::Result,
    image::{
        chain::chain_ids,
        error::ImageError,
        load::{self, Store},
        name,
        options::Options,
        platform::Platform,
        pool::Pool,
        resolve::Manifest,
    },
    limits::Limits,
};

/// An image that containerd has, for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Name of the record.
    pub name: String,
    /// Platform, by the configuration.
    pub platform: Platform,
    /// Digest of the configuration.
    pub config: Digest,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
}

/// Fate of the layers that are done when a later one fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// They are removed.
    TakeBack,
    /// They stay for a day, so that the next run goes on from there.
    Keep,
}

/// Finds the image `text`, a name as it is recorded or a short form of it.
///
/// Errors: `image.nothing` when containerd has no such image, or not for this platform; `image.missing` when its documents
/// are not there; `image.count`, `image.format`.
pub fn find(containerd: &Arc<Containerd>, call: &Call, text: &str, options: &Options) -> Result<Image> {
    // Records may have names that are no references.
    let (name, target) = match containerd.image(call, text)? {
        Some(target) => (text.to_owned(), target),
        None => {
            let name = name::full(text)?;
            match containerd.image(call, &name)? {
                Some(target) => (name, target),
                None => return Err(ImageError::Nothing(format!("containerd has no image {name}")).into()),
            }
        }
    };
    let store = Store::look(Arc::clone(containerd), call.clone());
    let pool = Pool::new(Limits::default(), call.cancel.clone());
    let plan = load::plan_recorded(&pool, &store, (&name, target), options)?;
    let manifests = plan.images.iter().flat_map(|image| &image.manifests);
    let (manifest, platform) = chosen(manifests, &options.platform).map_err(|error| error.context(&name))?;
    let layers = layers_of(manifest, &plan.blobs)?;
    Ok(Image { name, platform, config: manifest.config.digest.clone(), layers })
}

/// The first manifest for `platform`.
fn chosen<'m>(
    manifests: impl Iterator<Item = &'m Manifest>,
    platform: &Platform,
) -> Result<(&'m Manifest, Platform)> {
    let mut others = Vec::new();
    for manifest in manifests {
        match &manifest.platform {
            Some(found) if found == platform => return Ok((manifest, found.clone())),
            Some(found) => others.push(format!("for {found}")),
            None => others.push(format!("of the type {:?}", manifest.config.media_type)),
        }
    }
    let message = format!("the image is {}, not for {platform}", others.join(", "));
    Err(ImageError::Nothing(message).into())
}

/// Makes snapshots of the layers of an image that are none yet. The record of the image stays as it is.
///
/// `directory`: see [`Lease::take`]. Errors: those of [`super::prepare`].
pub fn unpack(
    unpacker: &Unpacker,
    call: &Call,
    image: &Image,
    on_failure: Failure,
    directory: Option<&Path>,
) -> Result<Vec<Applied>> {
    let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let Some(top) = chain_ids(&diff_ids).pop() else { return Ok(Vec::new()) };
    let lease = Lease::take(&unpacker.containerd, call, (&unpacker.snapshotter, &top), directory)?;
    let held = unpacker.containerd.hold(lease.call(), &image.config);
    let applied = held.and_then(|()| unpack_layers(unpacker, lease.call(), &image.config, &image.layers));
    match (applied, on_failure) {
        (Ok(applied), _) => {
            lease.end(false)?;
            Ok(applied)
        }
        (Err(error), Failure::Keep) => Err(error),
        (Err(error), Failure::TakeBack) => {
            if let Err(end) = lease.end(true) {
                tracing::warn!(error = %end, "what was done stays until its lease expires");
            }
            Err(error)
        }
    }
}
