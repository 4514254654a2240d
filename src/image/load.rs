//! Loading: images of the inputs become images of the target.
//!
//! The order is that of containerd's own clients, with the record of the image last: layers, configurations, manifests
//! with the labels that keep their children, snapshots if they are asked for, names. A load that ends anywhere leaves either no image or a whole one.
//!
//! Source: docs/formats/archives.md, "Into containerd".

pub use super::target::Target;
pub use super::transfer::Moved;
use super::{
    document::{self, NAME, REF_NAME, media_type},
    error::ImageError,
    finds, name,
    options::Options,
    output,
    pool::Pool,
    progress::{Board, State},
    resolve::{self, Blob, From, Image, Manifest, Node, Plan, length},
    transfer::{self, object},
    unpack::{Layer, layers_of},
};
use crate::{
    descriptor::Descriptor,
    digest::Digest,
    error::{Error, Kind, Result},
    pipeline::Resources,
};
pub use output::{Directory, Store};

/// An image that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Name of the image.
    pub name: String,
    /// Document to which the name leads.
    pub target: Descriptor,
}

/// Result of a load.
#[derive(Debug, Default)]
pub struct Done {
    /// The images, each name once.
    pub loaded: Vec<Loaded>,
    /// Names that sets have besides.
    pub other_names: Vec<String>,
    /// Documents and layers that were moved.
    pub moved: Moved,
}

/// Looks for everything that the images of `pool` need. `target`: `None` if only the inputs count.
pub fn plan(pool: &Pool, target: Option<&dyn Target>, options: &Options) -> Result<Plan> {
    resolve::plan(pool, target, finds::images(pool, options)?, options)
}

/// Looks for everything that an image of the target needs.
pub fn plan_recorded(
    pool: &Pool,
    target: &dyn Target,
    (name, descriptor): (&str, Descriptor),
    options: &Options,
) -> Result<Plan> {
    resolve::plan(pool, Some(target), vec![finds::recorded(name, descriptor)], options)
}

/// A text that is the same for the same images, by which a later run finds what a killed one left.
pub fn key(pool: &Pool, options: &Options) -> Result<Digest> {
    let mut text = String::new();
    for find in finds::images(pool, options)? {
        let what = match &find.content {
            finds::Content::Packed(packed) => packed.config.clone(),
            finds::Content::Tree(root) => root.digest.to_string(),
        };
        text.push_str(&format!("{what} {}\n", find.names.join(" ")));
    }
    Ok(Digest::sha256(text.as_bytes()))
}

/// Loads all images of `pool` into `target`.
///
/// Errors: [`ImageError::Missing`] before anything is written when a layer is nowhere; those of the checks. The caller
/// then takes back what was written.
pub fn load(
    pool: &Pool,
    target: &dyn Target,
    resources: &Resources,
    options: &Options,
    board: &Board,
) -> Result<Done> {
    let mut resume = true;
    let (plan, moved) = loop {
        let mut plan = plan(pool, Some(target), options)?;
        for blob in &plan.blobs {
            if let From::Missing(what) = &blob.from {
                return Err(ImageError::Missing(what.trim_end_matches(" is missing").to_owned()).into());
            }
        }
        match transfer::run(&mut plan, pool, target, resources, board, resume) {
            // Another program has begun a blob of this name with other bytes.
            Err(error) if resume && transfer::is_stale(&error) => {
                tracing::debug!(%error, "written anew");
                resume = false;
            }
            outcome => break (plan, outcome?),
        }
    };
    let Plan { images, blobs, mut documents } = plan;
    let mut done = Done { moved, ..Done::default() };
    let mut records: Vec<(String, Descriptor)> = Vec::new();
    let mut chains: Vec<(Digest, Vec<Layer>)> = Vec::new();
    for image in images {
        for manifest in &image.manifests {
            let is_known = chains.iter().any(|(config, _)| *config == manifest.config.digest);
            if manifest.platform.as_ref() == Some(&options.platform) && !is_known {
                chains.push((manifest.config.digest.clone(), layers_of(manifest, &blobs)?));
            }
        }
        let root = match &image.root {
            Some(root) => root.clone(),
            None => written_manifest(&image, &blobs, &mut documents)?,
        };
        done.other_names.extend(image.other_names);
        for name in image.names {
            match records.iter().find(|(known, _)| *known == name) {
                Some((_, target)) if target.digest != root.digest => {
                    let message = format!("{name} is the name of two images of the inputs");
                    return Err(ImageError::Reference(message).into());
                }
                Some(_) => {}
                None => records.push((name.clone(), named(&root, &name))),
            }
        }
    }
    for Node { descriptor, bytes, labels } in &documents {
        pool.cancel.check()?;
        let kind = match descriptor.media_type.as_str() {
            media_type if document::is_config(media_type) => "config",
            media_type if document::is_index(media_type) => "index",
            _ => "manifest",
        };
        let row =
            board.add(object(kind, Some(&descriptor.digest)), State::Downloading, descriptor.size_bytes);
        write_document(target, kind, descriptor, bytes, labels)?;
        board.set(row, State::Complete).set_done(descriptor.size_bytes);
    }
    for (config, layers) in &chains {
        target.unpack(config, layers).map_err(|error| error.context(format!("image {config}")))?;
    }
    pool.cancel.check()?;
    target.record(&records)?;
    for (name, target) in records {
        board.add(name.clone(), State::Saved, 0);
        done.loaded.push(Loaded { name, target });
    }
    Ok(done)
}

/// Writes a document. One that an earlier attempt has begun is written anew: it is short.
fn write_document(
    target: &dyn Target,
    kind: &str,
    descriptor: &Descriptor,
    bytes: &[u8],
    labels: &std::collections::BTreeMap<String, String>,
) -> Result<()> {
    let mut ingest = target.begin(&format!("{kind}-{}", descriptor.digest), false)?;
    ingest.write(bytes)?;
    ingest.commit(&descriptor.digest, labels)?;
    Ok(())
}

/// Makes the manifest of an image of a docker-archive or a set, and adds it to the documents.
fn written_manifest(image: &Image, blobs: &[Blob], documents: &mut Vec<Node>) -> Result<Descriptor> {
    let unknown = || Error::new(Kind::Internal, "internal.layer", "a layer was not written");
    let Manifest { config, layers, .. } = image.manifests.first().ok_or_else(unknown)?;
    let layers = layers.iter().map(|number| blobs.get(*number)?.descriptor.clone());
    let layers = layers.collect::<Option<Vec<_>>>().ok_or_else(unknown)?;
    let bytes = document::docker_manifest(config, &layers)?;
    let descriptor = Descriptor::of(media_type::DOCKER_MANIFEST, Digest::sha256(&bytes), length(bytes.len()));
    let children: Vec<_> = [config].into_iter().chain(&layers).cloned().collect();
    if !documents.iter().any(|known| known.descriptor.digest == descriptor.digest) {
        documents.push(Node { descriptor: descriptor.clone(), bytes, labels: resolve::labels(&children) });
    }
    Ok(descriptor)
}

/// The descriptor under a name, with the annotations that containerd's import gives it.
fn named(root: &Descriptor, name: &str) -> Descriptor {
    let mut target = root.clone();
    target.annotations.insert(NAME.to_owned(), name.to_owned());
    if let (_, Some(tag)) = name::split(name) {
        target.annotations.insert(REF_NAME.to_owned(), tag.to_owned());
    }
    target
}
