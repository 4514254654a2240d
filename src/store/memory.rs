//! Blobs in memory: for tests, and for blobs that the program makes itself.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{Cursor, Read},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Blob, BlobSink, ContentStore, Ingest, Stored, check_labels, labels::lacking, reason};
use crate::{
    call::{Call, Cancel},
    descriptor::Descriptor,
    digest::Digest,
    error::{Error, Kind, Result},
};

/// Blobs by digest, the same for every namespace. Clones share one store.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    blobs: BTreeMap<Digest, Held>,
    /// Bytes of uncommitted ingests under references that callers named.
    left: BTreeMap<String, Vec<u8>>,
    /// References that are being written at present.
    locked: BTreeSet<String>,
    unnamed: u64,
}

#[derive(Clone, Debug)]
struct Held {
    bytes: Arc<[u8]>,
    labels: HashMap<String, String>,
}

impl Memory {
    /// Longest wait for a locked reference.
    const LOCK_WAIT: Duration = Duration::from_secs(1);

    /// Creates a store without blobs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a blob under its SHA-256, which is returned.
    pub fn insert(&self, bytes: impl Into<Arc<[u8]>>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        self.insert_as(digest.clone(), bytes);
        digest
    }

    /// Adds bytes under a digest that need not be theirs, as a lying store would.
    pub(crate) fn insert_as(&self, digest: Digest, bytes: impl Into<Arc<[u8]>>) {
        self.lock().blobs.insert(digest, Held { bytes: bytes.into(), labels: HashMap::new() });
    }

    /// Bytes of a blob; `None` when the store lacks it.
    pub fn bytes(&self, digest: &Digest) -> Option<Arc<[u8]>> {
        self.lock().blobs.get(digest).map(|held| Arc::clone(&held.bytes))
    }

    /// Labels of a blob; `None` when the store lacks it.
    pub fn labels(&self, digest: &Digest) -> Option<BTreeMap<String, String>> {
        self.lock().blobs.get(digest).map(|held| held.labels.clone().into_iter().collect())
    }

    /// References with uncommitted bytes, whether being written or left behind, with these bytes.
    pub fn ingests(&self) -> BTreeMap<String, Vec<u8>> {
        self.lock().left.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ContentStore for Memory {
    fn open(&self, call: &Call, descriptor: &Descriptor) -> Result<Box<dyn Blob>> {
        call.cancel.check()?;
        let bytes = self.bytes(&descriptor.digest).ok_or_else(|| {
            Error::new(Kind::NotFound, reason::NOT_FOUND, format!("{} is not here", descriptor.digest))
        })?;
        check_size(descriptor, bytes.len() as u64)?;
        Ok(in_memory(bytes, call.cancel.clone()))
    }

    fn size_bytes(&self, call: &Call, digest: &Digest) -> Result<Option<u64>> {
        call.cancel.check()?;
        Ok(self.bytes(digest).map(|bytes| bytes.len() as u64))
    }
}

impl BlobSink for Memory {
    fn ingest(&self, call: &Call, reference: &str) -> Result<Box<dyn Ingest>> {
        let begun = Instant::now();
        loop {
            call.cancel.check()?;
            let mut shared = self.lock();
            let ours = reference.is_empty();
            shared.unnamed += u64::from(ours);
            let reference = if ours { format!("ours-{}", shared.unnamed) } else { reference.to_owned() };
            if shared.locked.insert(reference.clone()) {
                shared.left.insert(reference.clone(), Vec::new());
                let store = self.clone();
                return Ok(Box::new(MemoryIngest { store, reference, ours, cancel: call.cancel.clone() }));
            }
            drop(shared);
            if begun.elapsed() >= Self::LOCK_WAIT {
                let message = format!("reference {reference:?} is being written by another");
                return Err(Error::new(Kind::Unavailable, reason::LOCKED, message));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

struct MemoryIngest {
    store: Memory,
    reference: String,
    /// True when the reference was made up here, not named by the caller.
    ours: bool,
    cancel: Cancel,
}

impl Ingest for MemoryIngest {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.cancel.check()?;
        self.store.lock().left.entry(self.reference.clone()).or_default().extend_from_slice(bytes);
        Ok(())
    }

    fn commit(self: Box<Self>, digest: &Digest, labels: &BTreeMap<String, String>) -> Result<Stored> {
        self.cancel.check()?;
        check_labels(labels)?;
        let mut shared = self.store.lock();
        let bytes = shared.left.get(&self.reference).cloned().unwrap_or_default();
        let mut hasher = crate::digest::Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        let found = hasher.finish();
        if found != *digest {
            let message = format!("{} bytes of {found} were written, not of {digest}", bytes.len());
            return Err(Error::new(Kind::DataLoss, reason::DIGEST, message));
        }
        let size_bytes = bytes.len() as u64;
        let held = shared
            .blobs
            .entry(found.clone())
            .or_insert_with(|| Held { bytes: bytes.into(), labels: HashMap::new() });
        let lacking = lacking(labels, &held.labels);
        held.labels.extend(lacking.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())));
        shared.left.remove(&self.reference);
        Ok(Stored { digest: found, size_bytes })
    }
}

impl Drop for MemoryIngest {
    fn drop(&mut self) {
        let mut shared = self.store.lock();
        if self.ours {
            shared.left.remove(&self.reference);
        }
        shared.locked.remove(&self.reference);
    }
}

/// Wraps bytes in memory as a blob.
pub(crate) fn in_memory(bytes: Arc<[u8]>, cancel: Cancel) -> Box<dyn Blob> {
    Box::new(InMemory { bytes: Cursor::new(bytes), cancel })
}

/// Compares the size of a blob in a store with the descriptor's. Errors: `DataLoss`.
pub(crate) fn check_size(descriptor: &Descriptor, found: u64) -> Result<()> {
    if found == descriptor.size_bytes {
        return Ok(());
    }
    let message =
        format!("the store's blob has {found} bytes, the descriptor says {}", descriptor.size_bytes);
    Err(Error::new(Kind::DataLoss, reason::SIZE, message))
}

struct InMemory {
    bytes: Cursor<Arc<[u8]>>,
    cancel: Cancel,
}

impl Read for InMemory {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.cancel.check().map_err(|stop| Error::from(stop).into_io())?;
        self.bytes.read(buf)
    }
}

impl Blob for InMemory {
    fn size_bytes(&self) -> u64 {
        self.bytes.get_ref().len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Call {
        Call::new("default".parse().unwrap())
    }

    #[test]
    fn a_blob_is_delivered_under_its_digest_and_size_only() {
        let store = Memory::new();
        let digest = store.insert(*b"layer");
        let descriptor = |digest: &Digest, size| Descriptor::new("a/b", digest.clone(), size).unwrap();
        let mut read = Vec::new();
        let mut blob = store.open(&call(), &descriptor(&digest, 5)).unwrap();
        assert_eq!(blob.size_bytes(), 5);
        blob.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"layer");
        let kind = |descriptor: &Descriptor| store.open(&call(), descriptor).err().unwrap().kind();
        assert_eq!(kind(&descriptor(&digest, 4)), Kind::DataLoss);
        assert_eq!(kind(&descriptor(&Digest::sha256(b"other"), 5)), Kind::NotFound);
    }

    #[test]
    fn a_cancelled_call_reads_nothing() {
        let store = Memory::new();
        let digest = store.insert(*b"layer");
        let call = call();
        let mut blob = store.open(&call, &Descriptor::new("a/b", digest, 5).unwrap()).unwrap();
        call.cancel.cancel();
        let error = blob.read(&mut [0; 5]).unwrap_err();
        assert_eq!(Error::from_io(error, Kind::Internal, "").kind(), Kind::Cancelled);
    }

    #[test]
    fn a_committed_blob_is_there_with_its_labels_and_an_uncommitted_one_is_not() {
        let store = Memory::new();
        let label = |value: &str| BTreeMap::from([("key".to_owned(), value.to_owned())]);
        let digest = Digest::sha256(b"layer");
        for value in ["1", "1", "2"] {
            let mut ingest = store.ingest(&call(), "").unwrap();
            ingest.write(b"lay").unwrap();
            ingest.write(b"er").unwrap();
            let stored = ingest.commit(&digest, &label(value)).unwrap();
            assert_eq!(stored, Stored { digest: digest.clone(), size_bytes: 5 });
            assert_eq!(store.labels(&digest), Some(label(value)));
        }
        let mut dropped = store.ingest(&call(), "").unwrap();
        dropped.write(b"other").unwrap();
        drop(dropped);
        let mut wrong = store.ingest(&call(), "").unwrap();
        wrong.write(b"other").unwrap();
        assert_eq!(wrong.commit(&digest, &label("1")).unwrap_err().reason(), "store.digest");
        assert_eq!(store.bytes(&Digest::sha256(b"other")), None);
        assert!(store.ingests().is_empty());
    }

    #[test]
    fn a_given_reference_is_left_to_its_owner_and_begun_anew() {
        let store = Memory::new();
        let mut first = store.ingest(&call(), "theirs").unwrap();
        first.write(b"half").unwrap();
        assert_eq!(store.ingest(&call(), "theirs").err().unwrap().reason(), "store.locked");
        drop(first);
        assert_eq!(store.ingests(), [("theirs".to_owned(), b"half".to_vec())].into());
        let mut second = store.ingest(&call(), "theirs").unwrap();
        second.write(b"whole").unwrap();
        second.commit(&Digest::sha256(b"whole"), &BTreeMap::new()).unwrap();
        assert!(store.ingests().is_empty());
    }
}
