//! The two targets: containerd under a lease, and a directory in the OCI layout.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    archive,
    document::{self, INDEX_JSON, NAME, media_type},
    error::ImageError,
    source::unreadable,
    target::Target,
    unpack::{Layer, Unpacker, unpack_layers},
};
use crate::{
    call::{Call, Cancel},
    containerd::Containerd,
    descriptor::Descriptor,
    digest::Digest,
    error::{Error, Result},
    limits,
    store::{BlobSink as _, ContentStore as _, Ingest, Stored, layout::OciDirectory},
    sys::{dir::Dir, file},
};

/// Time after which containerd removes what a killed load has left.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Prefix of the names of leases.
const LEASE: &str = "plywood-load-";
/// Digits of the key in the name of a lease.
const KEY_DIGITS: usize = 16;

/// containerd, as one load or one look at it sees it.
pub struct Store {
    client: Arc<Containerd>,
    call: Call,
    unpacker: Option<Unpacker>,
    /// Held for as long as the load runs, so that others know that its lease is in use.
    _running: Option<Dir>,
}

impl Store {
    /// A store that is only looked at.
    pub fn look(client: Arc<Containerd>, call: Call) -> Self {
        Self { client, call, unpacker: None, _running: None }
    }

    /// A store to load into, under a new lease. Takes over what a killed load of the same `key` has left.
    ///
    /// `socket_directory`: the directory that all loads into this containerd lock together.
    pub fn load(
        client: Arc<Containerd>,
        mut call: Call,
        key: &Digest,
        socket_directory: Option<&Path>,
    ) -> Result<Self> {
        let short: String = key.hex().chars().take(KEY_DIGITS).collect();
        let prefix = format!("{LEASE}{short}-");
        let id = format!("{prefix}{}", file::random_hex().map_err(Error::disk)?);
        // Every load shares the lock. Whoever has it alone for a moment knows that leases of others are of loads that
        // were killed. Without the directory nothing is taken over, and what was left expires.
        let running = socket_directory.and_then(|directory| Dir::open(directory).ok());
        let alone = running.as_ref().is_some_and(|dir| file::lock_exclusive(dir).unwrap_or(false));
        let share = || running.as_ref().map_or(Ok(()), file::lock_shared).map_err(Error::disk);
        if !alone {
            share()?;
        }
        client.create_lease(&call, &id, LIFETIME)?;
        call.lease = Some(id);
        let mut store = Self { client, call, unpacker: None, _running: None };
        if alone && let Err(error) = store.adopt(&prefix).and_then(|()| share()) {
            store.end(true)?;
            return Err(error);
        }
        store._running = running;
        Ok(store)
    }

    fn adopt(&self, prefix: &str) -> Result<()> {
        for left in self.client.leases_of(&self.call, prefix)? {
            if self.call.lease.as_ref() != Some(&left) {
                tracing::debug!(lease = left, "taken over from a load that was killed");
                self.client.adopt_lease(&self.call, &left)?;
            }
        }
        Ok(())
    }

    /// Lets the load make snapshots of the layers before it records an image.
    #[must_use]
    pub fn unpacking(self, unpacker: Unpacker) -> Self {
        Self { unpacker: Some(unpacker), ..self }
    }

    /// Ends the load. After a failure everything that it wrote is gone when this returns.
    pub fn end(&self, failed: bool) -> Result<()> {
        let Some(id) = &self.call.lease else { return Ok(()) };
        // The call may be cancelled, which is no reason to leave the lease.
        let call = Call { cancel: Cancel::new(), lease: None, ..self.call.clone() };
        self.client.delete_lease(&call, id, failed)
    }

    /// The image called `name`.
    pub fn image(&self, name: &str) -> Result<Option<Descriptor>> {
        self.client.image(&self.call, name)
    }

    /// Which snapshotters have the snapshots `chain`: the name of each, and how many of the lowest ones it has.
    pub fn snapshots(&self, chain: &[Digest]) -> Result<Vec<(String, usize)>> {
        let mut found = Vec::new();
        for snapshotter in self.client.snapshotters(&self.call)? {
            let mut count = 0;
            for key in chain {
                if !self.client.has_snapshot(&self.call, &snapshotter, &key.to_string())? {
                    break;
                }
                count += 1;
            }
            if count > 0 {
                found.push((snapshotter, count));
            }
        }
        Ok(found)
    }
}

impl Target for Store {
    fn have(&self, digest: &Digest) -> Result<Option<u64>> {
        if self.client.blob_bytes(&self.call, digest)?.is_none() {
            return Ok(None);
        }
        if self.call.lease.is_none() {
            return self.client.blob_bytes(&self.call, digest);
        }
        // Asked once more: it may have been collected before the lease held it.
        self.client.hold(&self.call, digest)?;
        self.client.blob_bytes(&self.call, digest)
    }

    fn have_layer(&self, diff_id: &Digest) -> Result<Option<(Digest, u64)>> {
        for (digest, _) in self.client.blobs_of_layer(&self.call, diff_id)? {
            if let Some(size_bytes) = self.have(&digest)? {
                return Ok(Some((digest, size_bytes)));
            }
        }
        Ok(None)
    }

    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read>> {
        Ok(Box::new(self.client.open(&self.call, descriptor)?))
    }

    fn begin(&self, reference: &str, resume: bool) -> Result<Box<dyn Ingest>> {
        if resume {
            self.client.resume(&self.call, reference)
        } else {
            self.client.ingest(&self.call, reference)
        }
    }

    fn unpack(&self, config: &Digest, layers: &[Layer]) -> Result<()> {
        match &self.unpacker {
            Some(unpacker) => unpack_layers(unpacker, &self.call, config, layers).map(drop),
            None => Ok(()),
        }
    }

    fn record(&self, images: &[(String, Descriptor)]) -> Result<()> {
        images.iter().try_for_each(|(name, target)| self.client.record_image(&self.call, name, target))
    }
}

/// A directory in the OCI layout.
pub struct Directory {
    layout: Arc<OciDirectory>,
    cancel: Cancel,
    /// Blobs that were not there before.
    written: Arc<Mutex<Vec<Digest>>>,
    index: RefCell<Vec<Value>>,
}

impl Directory {
    /// Opens the layout at `path`, and makes one where nothing is.
    pub fn create(path: &Path, cancel: Cancel) -> Result<Self> {
        let layout = Arc::new(OciDirectory::create(path)?);
        let index =
            RefCell::new(read_index(&layout).map_err(|error| error.context(path.display().to_string()))?);
        Ok(Self { layout, cancel, written: Arc::default(), index })
    }

    /// Ends the load. After a failure the blobs that it wrote are removed.
    pub fn end(&self, failed: bool) -> Result<()> {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if failed {
            for digest in written.iter() {
                self.layout.remove(digest).map_err(Error::disk)?;
            }
        }
        Ok(())
    }

    fn file(&self, digest: &Digest) -> Result<Option<(File, u64)>> {
        let Some(file) = self.layout.blob(digest).map_err(unreadable)? else { return Ok(None) };
        let size_bytes = archive::check_regular(&file, Path::new(digest.hex()))?;
        Ok(Some((file, size_bytes)))
    }
}

/// Entries of the index of a layout; none where there is no index.
fn read_index(layout: &OciDirectory) -> Result<Vec<Value>> {
    let file = match layout.file(INDEX_JSON) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        outcome => outcome.map_err(unreadable)?,
    };
    let mut bytes = Vec::new();
    let limit = u64::try_from(limits::DOCUMENT_BYTES).unwrap_or(u64::MAX);
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(unreadable)?;
    let index: Value = document::parse(INDEX_JSON, &bytes)?;
    match index.get("manifests") {
        Some(Value::Array(entries)) => Ok(entries.clone()),
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(_) => {
            let problem = "has manifests that are no list".to_owned();
            Err(ImageError::Format { what: INDEX_JSON.to_owned(), problem }.into())
        }
    }
}

impl Target for Directory {
    fn have(&self, digest: &Digest) -> Result<Option<u64>> {
        Ok(self.file(digest)?.map(|(_, size_bytes)| size_bytes))
    }

    /// A layout does not say which layer a blob holds.
    fn have_layer(&self, _: &Digest) -> Result<Option<(Digest, u64)>> {
        Ok(None)
    }

    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read>> {
        match self.file(&descriptor.digest)? {
            Some((file, _)) => Ok(Box::new(file)),
            None => Err(ImageError::Missing(format!("blob {}", descriptor.digest)).into()),
        }
    }

    /// Nothing of a blob is kept between attempts.
    fn begin(&self, _: &str, _: bool) -> Result<Box<dyn Ingest>> {
        let ingest = self.layout.ingest(&self.cancel)?;
        let (layout, written) = (Arc::clone(&self.layout), Arc::clone(&self.written));
        Ok(Box::new(Noted { ingest, layout, written }))
    }

    /// A layout has no snapshots.
    fn unpack(&self, _: &Digest, _: &[Layer]) -> Result<()> {
        Ok(())
    }

    fn record(&self, images: &[(String, Descriptor)]) -> Result<()> {
        let mut entries = self.index.borrow_mut();
        for (name, target) in images {
            let is_of_name = |entry: &Value| {
                entry.get("annotations").and_then(|annotations| annotations.get(NAME)?.as_str()) == Some(name)
            };
            entries.retain(|entry| !is_of_name(entry));
            entries.push(document::descriptor_json(target)?);
        }
        let index = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_INDEX,
            "manifests": *entries,
        });
        self.layout.set_index(index.to_string().as_bytes())
    }
}

/// A blob of a layout, which is noted when it is there and was not before.
struct Noted {
    ingest: Box<dyn Ingest>,
    layout: Arc<OciDirectory>,
    written: Arc<Mutex<Vec<Digest>>>,
}

impl Ingest for Noted {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.ingest.write(bytes)
    }

    fn commit(self: Box<Self>, digest: &Digest, labels: &BTreeMap<String, String>) -> Result<Stored> {
        let is_new = self.layout.blob(digest).map_err(unreadable)?.is_none();
        let stored = self.ingest.commit(digest, labels)?;
        if !is_new {
            return Ok(stored);
        }
        self.written.lock().unwrap_or_else(PoisonError::into_inner).push(digest.clone());
        Ok(stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Directory, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        let mut ingest = directory.begin("", false).unwrap();
        ingest.write(bytes).unwrap();
        ingest.commit(&digest, &BTreeMap::new()).unwrap();
        digest
    }

    #[test]
    fn a_load_that_fails_takes_back_its_own_blobs_only() {
        let scratch = tempfile::tempdir().unwrap();
        let open = || Directory::create(scratch.path(), Cancel::new()).unwrap();
        let first = open();
        let kept = write(&first, b"of both");
        first.end(false).unwrap();
        drop(first);
        let second = open();
        let own = write(&second, b"of the second");
        assert_eq!(write(&second, b"of both"), kept);
        second.end(true).unwrap();
        assert_eq!(second.have(&kept).unwrap(), Some(7));
        assert_eq!(second.have(&own).unwrap(), None);
    }
}
