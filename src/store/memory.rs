//! Blobs in memory: for tests, and for blobs made by the program itself.

use std::{
    collections::BTreeMap,
    io::{Cursor, Read},
    sync::Arc,
};

use super::{Blob, ContentStore, reason};
use crate::{
    call::{Call, Cancel},
    descriptor::Descriptor,
    digest::Digest,
    error::{Error, Kind, Result},
};

/// Blobs by digest, the same in every namespace.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    blobs: BTreeMap<Digest, Arc<[u8]>>,
}

impl Memory {
    /// No blobs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a blob under its SHA-256.
    pub fn insert(&mut self, bytes: impl Into<Arc<[u8]>>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        self.insert_as(digest.clone(), bytes);
        digest
    }

    /// Adds bytes under a digest that need not be theirs: a store that lies.
    pub fn insert_as(&mut self, digest: Digest, bytes: impl Into<Arc<[u8]>>) {
        self.blobs.insert(digest, bytes.into());
    }
}

impl ContentStore for Memory {
    fn open(&self, call: &Call, descriptor: &Descriptor) -> Result<Box<dyn Blob>> {
        call.cancel.check()?;
        let bytes = self.blobs.get(&descriptor.digest).ok_or_else(|| {
            Error::new(Kind::NotFound, reason::NOT_FOUND, format!("{} is not here", descriptor.digest))
        })?;
        check_size(descriptor, bytes.len() as u64)?;
        Ok(in_memory(Arc::clone(bytes), call.cancel.clone()))
    }
}

/// A blob of these bytes.
pub(super) fn in_memory(bytes: Arc<[u8]>, cancel: Cancel) -> Box<dyn Blob> {
    Box::new(InMemory { bytes: Cursor::new(bytes), cancel })
}

/// Compares a store's size of a blob with the descriptor's.
pub(super) fn check_size(descriptor: &Descriptor, found: u64) -> Result<()> {
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
        let mut store = Memory::new();
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
        let mut store = Memory::new();
        let digest = store.insert(*b"layer");
        let call = call();
        let mut blob = store.open(&call, &Descriptor::new("a/b", digest, 5).unwrap()).unwrap();
        call.cancel.cancel();
        let error = blob.read(&mut [0; 5]).unwrap_err();
        assert_eq!(Error::from_io(error, Kind::Internal, "").kind(), Kind::Cancelled);
    }
}
