//! Layers of images: which blob the snapshot of a chainID was unpacked from.
//!
//! Source: OCI image specification, manifest.md, config.md; containerd `core/images`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
};

use crate::{
    call::Call,
    containerd::Containerd,
    descriptor::Descriptor,
    digest::{Digest, Hasher},
    error::{Error, Kind, Result},
    image::{
        chain::chain_ids,
        config::Config,
        document::{self, Document},
    },
    limits,
    store::{ContentStore as _, reason},
};

/// The layer on top of a snapshot.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    /// An image that has it.
    pub(super) image: String,
    /// Its blob.
    pub(super) blob: Descriptor,
    /// Digest of the uncompressed layer.
    pub(super) diff_id: Digest,
}

/// All layers of the images in containerd, by namespace and chainID.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    origins: BTreeMap<(String, String), Origin>,
    /// Images whose documents could not be read, with the reason.
    pub(super) unread: Vec<(String, Error)>,
}

impl Catalog {
    /// Reads the manifests and configurations of all images of the namespaces of `calls`. Errors: containerd does not
    /// answer; an image that is damaged is only noted.
    pub(super) fn read(client: &Containerd, calls: &[Call]) -> Result<Self> {
        let mut catalog = Self::default();
        for call in calls {
            let mut seen = BTreeSet::new();
            for (name, target) in client.images(call)? {
                let mut walk = Walk { client, call, name: &name, seen: &mut seen, catalog: &mut catalog };
                match walk.document(&target, 0) {
                    Err(error) if is_fatal(&error) => return Err(error),
                    Err(error) => catalog.unread.push((name, error)),
                    Ok(()) => {}
                }
            }
        }
        Ok(catalog)
    }

    /// Finds the layer of a snapshot.
    pub(super) fn origin(&self, namespace: &str, chain_id: &str) -> Option<&Origin> {
        self.origins.get(&(namespace.to_owned(), chain_id.to_owned()))
    }
}

/// Whether an error is about containerd, and not about an image.
fn is_fatal(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unavailable | Kind::Cancelled | Kind::DeadlineExceeded | Kind::Denied)
}

struct Walk<'a> {
    client: &'a Containerd,
    call: &'a Call,
    name: &'a str,
    /// Documents that were read.
    seen: &'a mut BTreeSet<Digest>,
    catalog: &'a mut Catalog,
}

impl Walk<'_> {
    /// Reads a manifest, or an index and all that containerd has of it: other platforms are mostly missing.
    fn document(&mut self, descriptor: &Descriptor, depth: usize) -> Result<()> {
        let is_known =
            document::is_index(&descriptor.media_type) || document::is_manifest(&descriptor.media_type);
        if !is_known || depth > limits::INDEX_DEPTH || !self.seen.insert(descriptor.digest.clone()) {
            return Ok(());
        }
        let Some(bytes) = self.read(descriptor)? else { return Ok(()) };
        match Document::decode(&descriptor.media_type, &bytes)? {
            Document::Index(entries) => {
                entries.iter().try_for_each(|entry| self.document(&entry.descriptor, depth + 1))
            }
            Document::Manifest(manifest) => self.manifest(&manifest),
        }
    }

    fn manifest(&mut self, manifest: &document::Manifest) -> Result<()> {
        let document::Manifest { config, layers } = manifest;
        if !document::is_config(&config.media_type) {
            return Ok(());
        }
        let Some(bytes) = self.read(config)? else { return Ok(()) };
        let diff_ids = Config::decode(&bytes)?.diff_ids;
        // Clients add attestations and signatures among the layers; these have no diffIDs, or all have.
        let all_have = layers.len() == diff_ids.len();
        let layers: Vec<_> =
            layers.iter().filter(|layer| all_have || document::is_layer(&layer.media_type)).collect();
        if layers.len() != diff_ids.len() {
            return Ok(());
        }
        let chain = chain_ids(&diff_ids);
        for ((blob, diff_id), chain_id) in layers.into_iter().zip(&diff_ids).zip(&chain) {
            let key = (self.call.namespace.as_str().to_owned(), chain_id.to_string());
            self.catalog.origins.entry(key).or_insert_with(|| Origin {
                image: self.name.to_owned(),
                blob: blob.clone(),
                diff_id: diff_id.clone(),
            });
        }
        if self.catalog.origins.len() > limits::SNAPSHOTS {
            let message = format!("images with more than {} layers", limits::SNAPSHOTS);
            return Err(Error::new(Kind::Exhausted, "limit.snapshots", message));
        }
        Ok(())
    }

    /// Reads a document, and compares its digest. `None` when containerd does not have it.
    fn read(&self, descriptor: &Descriptor) -> Result<Option<Vec<u8>>> {
        let Descriptor { digest, size_bytes, .. } = descriptor;
        let named = |error: Error| error.context(format!("document {digest}"));
        if usize::try_from(*size_bytes).map_or(true, |size| size > limits::DOCUMENT_BYTES) {
            let message = format!("{size_bytes} bytes are more than {}", limits::DOCUMENT_BYTES);
            return Err(named(Error::new(Kind::Exhausted, "image.limit", message)));
        }
        let blob = match self.client.open(self.call, descriptor) {
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            outcome => outcome.map_err(named)?,
        };
        let mut bytes = Vec::new();
        let read = blob.take(*size_bytes).read_to_end(&mut bytes);
        read.map_err(|error| named(Error::from_io(error, Kind::DataLoss, reason::READ)))?;
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        let found = hasher.finish();
        if found != *digest {
            let message = format!("its bytes have digest {found}");
            return Err(named(Error::new(Kind::DataLoss, "image.digest", message)));
        }
        Ok(Some(bytes))
    }
}
