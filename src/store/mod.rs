//! Where blobs come from: one trait, and the places behind it.
//!
//! A store delivers bytes; it is not trusted for them. Readers compare digests themselves, here only
//! sizes and offsets are checked, so that a store that lies is found out early.
//!
//! Source: docs/formats/containerd.md, "The content store".

use std::{collections::BTreeMap, fs::File, io::Read};

use crate::{call::Call, descriptor::Descriptor, digest::Digest, error::Result};

pub(crate) mod file;
pub(crate) mod labels;
pub(crate) mod local;
pub(crate) mod memory;
pub(crate) mod stream;

pub use file::{FileStore, open as open_file};
pub use labels::check_labels;
pub use memory::Memory;

/// A source of blobs.
pub trait ContentStore: Send + Sync {
    /// Opens the blob that `descriptor` names, as `call`'s namespace sees it.
    ///
    /// Errors: `NotFound` when that namespace has no such blob; `DataLoss` when its size is not the
    /// descriptor's; `Unavailable` when the store does not answer.
    fn open(&self, call: &Call, descriptor: &Descriptor) -> Result<Box<dyn Blob>>;
}

/// A place for blobs.
pub trait BlobSink: Send + Sync {
    /// Begins a blob: under `reference`, whose earlier data is thrown away, or under a unique one when it
    /// is empty. Waits for a reference that another writer holds.
    ///
    /// Errors: `Unavailable` when the reference stays locked or the store does not answer.
    fn ingest(&self, call: &Call, reference: &str) -> Result<Box<dyn Ingest>>;
}

/// A blob being written. Dropped without [`Ingest::commit`], nothing of ours is left in the store.
pub trait Ingest: Send {
    /// Appends `bytes`, any number of them. Waits for the store at most 100 ms after a cancellation.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes the blob visible. A blob that the store has already is a success; its labels are completed.
    ///
    /// Errors: as [`check_labels`], which a caller may ask before anything is written; `DataLoss` when the
    /// store has other bytes than were written.
    fn commit(self: Box<Self>, digest: &Digest, labels: &BTreeMap<String, String>) -> Result<Stored>;
}

/// What the store says of a blob that was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// An open blob, read from its start to its end.
///
/// Reads deliver exactly [`Blob::size_bytes`] bytes or an error. They wait for the store at most 100 ms
/// after a cancellation. Their errors carry a classified error, which
/// [`Error::from_io`](crate::error::Error::from_io) unpacks.
pub trait Blob: Read + Send {
    /// Size in bytes, the same as the descriptor's.
    fn size_bytes(&self) -> u64;

    /// The file that holds exactly this blob, if it is at hand: for positional reads and for sharing
    /// its blocks. Its bytes are as little verified as those of `read`; its position is `read`'s.
    fn file(&self) -> Option<&File> {
        None
    }
}

/// Reason ids of every store.
pub(crate) mod reason {
    /// The blob is not there.
    pub(crate) const NOT_FOUND: &str = "store.not-found";
    /// The store has the blob with another size than the descriptor's.
    pub(crate) const SIZE: &str = "store.size";
    /// The bytes ended before the blob's size was reached.
    pub(crate) const SHORT: &str = "store.short";
    /// More bytes came than the blob has.
    pub(crate) const LONG: &str = "store.long";
    /// A message repeated or skipped bytes.
    pub(crate) const OFFSET: &str = "store.offset";
    /// Nothing came for too long.
    pub(crate) const STALL: &str = "store.stall";
    /// The store cannot be reached, or went away.
    pub(crate) const UNAVAILABLE: &str = "store.unavailable";
    /// The store refused the call itself.
    pub(crate) const REFUSED: &str = "store.refused";
    /// Bytes could not be read.
    pub(crate) const READ: &str = "store.read";
    /// Another writer holds the reference.
    pub(crate) const LOCKED: &str = "store.locked";
    /// What was written has another digest than its writer says.
    pub(crate) const DIGEST: &str = "store.digest";
    /// What is not a reference.
    pub(crate) const REFERENCE: &str = "store.reference";
    /// The store's disk is full.
    pub(crate) const FULL: &str = "store.full";
    /// The store could not write.
    pub(crate) const WRITE: &str = "store.write";
    /// The lease that keeps the blob is gone.
    pub(crate) const LEASE: &str = "store.lease";
    /// A label that the store does not take.
    pub(crate) const LABEL: &str = "store.label";
}
