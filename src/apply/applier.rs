//! One Apply: from a request to a published layer.

use std::{collections::BTreeMap, fs::File, sync::Arc};

use super::{
    below::{Decision, Found, Snapshotter},
    choose::Strategy,
    converter::Converter,
    flight::Flights,
    job::Layer,
    parents::Parents,
    processors::Processors,
    request::{Applied, Apply, ApplyError, Request},
};
use crate::{
    call::Call,
    descriptor::Descriptor,
    digest::Digest,
    error::{Error, Result},
    kind::{LayerType, overlaybd::TURBO_TARGETS},
    pipeline::{BlobError, processor::Chain},
    snapshot::{MountError, Roots, SnapshotDir},
    store::ContentStore,
    sys::thread::catch,
};

/// Applies layers from a content store to the snapshots below the configured roots.
pub struct Applier {
    store: Arc<dyn ContentStore>,
    roots: Arc<Roots>,
    converter: Converter,
    processors: Processors,
    snapshotter: Option<Snapshotter>,
    flights: Flights,
}

impl Applier {
    /// An applier of blobs in `store` to snapshots below `roots`.
    pub fn new(store: Arc<dyn ContentStore>, roots: Arc<Roots>, converter: Converter) -> Self {
        let (processors, snapshotter, flights) = (Processors::default(), None, Flights::default());
        Self { store, roots, converter, processors, snapshotter, flights }
    }

    /// Lets layers go through `processors`.
    #[must_use]
    pub fn with_processors(self, processors: Processors) -> Self {
        Self { processors, ..self }
    }

    /// Asks `snapshotter` about snapshots of devices whose mounts do not show the layers below.
    #[must_use]
    pub fn with_snapshotter(self, snapshotter: Snapshotter) -> Self {
        Self { snapshotter: Some(snapshotter), ..self }
    }

    /// Size of the original layer of a turboOCI layer, if the store happens to have it.
    fn target_bytes(&self, call: &Call, annotations: &BTreeMap<String, String>) -> Result<Option<u64>> {
        let digest = TURBO_TARGETS.iter().find_map(|name| annotations.get(*name)?.parse().ok());
        digest.map_or(Ok(None), |digest: Digest| self.store.size_bytes(call, &digest))
    }

    fn apply_to(
        &self,
        call: &Call,
        request: &Request,
        layer_type: &'static LayerType,
        chain: Option<&Chain>,
        dir: &SnapshotDir,
        Decision { strategy, device }: Decision,
    ) -> Result<Applied> {
        let limits = self.converter.limits();
        let (size_bytes, limit) = (request.diff.size_bytes, limits.blob_bytes);
        if size_bytes > limit {
            return Err(BlobError::Limit { size_bytes, limit }.into());
        }
        let target_bytes = match strategy {
            Strategy::Turbo => self.target_bytes(call, &request.diff.annotations)?,
            _ => None,
        };
        let mut blob = self.store.open(call, &request.diff)?;
        let copies = strategy.copies_the_blob() && chain.is_none();
        let file = blob.file().filter(|_| copies).map(File::try_clone).transpose();
        let file = file.map_err(Error::disk)?;
        let publication = dir.publish(strategy.files(), limits)?;
        let open = || Ok(self.roots.parents(&request.mounts)?);
        let layer = Layer {
            layer_type,
            annotations: &request.diff.annotations,
            size_bytes: Some(size_bytes),
            digest: Some(request.diff.digest.clone()),
            file: file.as_ref(),
            reader: &mut blob,
            chain,
            ztoc: None,
            parents: Some(Parents { open: &open, required: false }),
            device,
            target_bytes,
        };
        let sync_fs = request.sync_fs;
        self.converter.convert(call.work(), strategy, layer, publication, sync_fs)
    }
}

impl Apply for Applier {
    fn apply(&self, call: &Call, request: &Request) -> Result<Applied> {
        let Descriptor { digest, media_type, annotations, .. } = &request.diff;
        let layer = |error: Error| error.context(format!("apply {digest} ({media_type})"));
        // Until the strategy is chosen nothing is read or created, so that a refusal can send the caller to the next
        // differ. Without mounts no other differ may be asked, whatever the type: containerd's EROFS differ takes the
        // first mount of none, and crashes.
        if request.mounts.is_empty() {
            return Err(layer(MountError::Empty.into()));
        }
        let way = self.processors.way(media_type, &request.payloads);
        let way = way.ok_or_else(|| ApplyError::MediaType(media_type.clone()));
        let (layer_type, chain) = way.map_err(|error| layer(error.into()))?;
        let layer_type = layer_type.marked(annotations);
        let dir = self.roots.resolve(&request.mounts).map_err(|error| layer(error.into()))?;
        let found = Found { request, layer_type, dir: &dir };
        let overlaybd = &self.converter.options().overlaybd;
        let decision =
            found.decide(call, &self.roots, self.snapshotter.as_ref(), overlaybd).map_err(layer)?;
        self.flights
            .fly(dir.key(), call, request, || {
                catch(|| self.apply_to(call, request, layer_type, chain.as_ref(), &dir, decision))
            })
            .map_err(|error| {
                error.context(format!("apply {digest} ({media_type}) to {}", dir.path().display()))
            })
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod device_tests;
#[cfg(test)]
#[path = "applier_tests.rs"]
mod tests;
