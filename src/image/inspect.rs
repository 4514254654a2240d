//! Describes the inputs for people and programs: images, their layers and names.

use serde::Serialize;

use super::{
    chain::chain_ids,
    document,
    load::Store,
    pool::Pool,
    resolve::{Blob, From, Image, Manifest, Plan},
};
use crate::{descriptor::Descriptor, digest::Digest, error::Result};

/// One image.
#[derive(Debug, Serialize)]
pub struct Described {
    /// Names, in full form.
    pub names: Vec<String>,
    /// Names that a set has for it besides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_names: Vec<String>,
    /// Path of the input; `None` for an image of containerd.
    pub file: Option<String>,
    /// Digest of the index or manifest to which the names lead. `None` for a docker-archive with compressed layers,
    /// whose manifest is made when it is loaded.
    pub digest: Option<String>,
    /// Media type of that index or manifest.
    pub media_type: Option<String>,
    /// The image for each platform.
    pub platforms: Vec<OfPlatform>,
}

/// An image for one platform.
#[derive(Debug, Serialize)]
pub struct OfPlatform {
    /// Platform, by the configuration.
    pub platform: Option<String>,
    /// Digest of the configuration.
    pub config: String,
    /// Media type of the configuration.
    pub config_media_type: String,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
    /// Snapshotters that have some of the layers unpacked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<Snapshots>,
}

/// One layer.
#[derive(Debug, Serialize)]
pub struct Layer {
    /// Digest of the blob, where it is known without reading the layer.
    pub digest: Option<String>,
    /// Digest of the uncompressed layer.
    pub diff_id: Option<String>,
    /// Name of the snapshot that holds the layers up to this one.
    pub chain_id: Option<String>,
    /// Media type of the blob.
    pub media_type: Option<String>,
    /// Size of the blob in bytes.
    pub size_bytes: Option<u64>,
    /// `store`, the path of a file, or `None` if it is missing.
    pub found: Option<String>,
}

/// Snapshots of one snapshotter.
#[derive(Debug, Serialize)]
pub struct Snapshots {
    /// Name of the snapshotter.
    pub snapshotter: String,
    /// Number of layers that it has, from the lowest up.
    pub layers: usize,
}

/// Describes the images of a plan. `store`: containerd, if its snapshots count.
pub fn describe(plan: &Plan, pool: &Pool, store: Option<&Store>) -> Result<Vec<Described>> {
    plan.images.iter().map(|image| image_of(image, plan, pool, store)).collect()
}

fn image_of(image: &Image, plan: &Plan, pool: &Pool, store: Option<&Store>) -> Result<Described> {
    let platforms = image.manifests.iter().map(|manifest| of_platform(manifest, plan, pool, store));
    let root = image.root.clone().or_else(|| foreseen(image, &plan.blobs));
    let input = image.input.and_then(|input| pool.inputs.get(input));
    Ok(Described {
        names: image.names.clone(),
        other_names: image.other_names.clone(),
        file: input.map(|input| input.path.display().to_string()),
        digest: root.as_ref().map(|root| root.digest.to_string()),
        media_type: root.map(|root| root.media_type),
        platforms: platforms.collect::<Result<_>>()?,
    })
}

fn of_platform(manifest: &Manifest, plan: &Plan, pool: &Pool, store: Option<&Store>) -> Result<OfPlatform> {
    let chain = chain_ids(&manifest.diff_ids);
    let mut chain_of = chain.iter();
    let blobs = manifest.layers.iter().filter_map(|number| plan.blobs.get(*number));
    let layers = blobs.map(|blob| {
        let chain_id = blob.diff_id.as_ref().and_then(|_| chain_of.next());
        layer(blob, chain_id, pool)
    });
    let layers = layers.collect();
    let snapshots = match store {
        Some(store) if !chain.is_empty() => store.snapshots(&chain)?,
        _ => Vec::new(),
    };
    let snapshots = snapshots.into_iter().map(|(snapshotter, layers)| Snapshots { snapshotter, layers });
    Ok(OfPlatform {
        platform: manifest.platform.as_ref().map(ToString::to_string),
        config: manifest.config.digest.to_string(),
        config_media_type: manifest.config.media_type.clone(),
        layers,
        snapshots: snapshots.collect(),
    })
}

fn layer(blob: &Blob, chain_id: Option<&Digest>, pool: &Pool) -> Layer {
    let (found, size) = match &blob.from {
        From::Store => (Some("store".to_owned()), None),
        From::Input(source) => {
            (Some(pool.path(&source.located.place).display().to_string()), Some(source.size_bytes()))
        }
        From::Missing(_) => (None, None),
    };
    let media_type = match (&blob.descriptor, &blob.from) {
        (Some(descriptor), _) => Some(descriptor.media_type.clone()),
        (None, From::Input(source)) => Some(document::docker_layer(source.located.coding).to_owned()),
        (None, _) => None,
    };
    Layer {
        digest: blob.descriptor.as_ref().map(|descriptor| descriptor.digest.to_string()),
        diff_id: blob.diff_id.as_ref().map(ToString::to_string),
        chain_id: chain_id.map(ToString::to_string),
        media_type,
        size_bytes: size.or(blob.descriptor.as_ref().map(|descriptor| descriptor.size_bytes)),
        found,
    }
}

/// The manifest that an image of a docker-archive will have, if it is what it says.
fn foreseen(image: &Image, blobs: &[Blob]) -> Option<Descriptor> {
    let Manifest { config, layers, .. } = image.manifests.first()?;
    let layers = layers.iter().map(|number| blobs.get(*number)?.descriptor.clone());
    let bytes = document::docker_manifest(config, &layers.collect::<Option<Vec<_>>>()?).ok()?;
    let size_bytes = u64::try_from(bytes.len()).ok()?;
    Some(Descriptor::of(document::media_type::DOCKER_MANIFEST, Digest::sha256(&bytes), size_bytes))
}
