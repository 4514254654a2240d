//! Stores of blobs: one trait, and its implementations.
//!
//! A store delivers bytes and is not trusted for them. Readers compare digests; this module checks
//! sizes and offsets, so that a lying store is detected early.
//!
//! Source: docs/formats/containerd.md, "The content store".

use std::{collections::BTreeMap, fs::File, io::Read};

use crate::{call::Call, descriptor::Descriptor, digest::Digest, error::Result};

pub(crate) mod file;
pub(crate) mod labels;
pub(crate) mod layout;
pub(crate) mod local;
pub(crate) mod memory;
pub(crate) mod stream;

pub use labels::check_labels;
pub use memory::Memory;

/// Source of blobs, such as containerd's content store.
pub trait ContentStore: Send + Sync {
    /// Opens the blob that `descriptor` names, as `call`'s namespace sees it.
    ///
    /// Errors: `NotFound` when that namespace has no such blob; `DataLoss` when its size is not the
    /// descriptor's; `Unavailable` when the store does not answer.
    fn open(&self, call: &Call, descriptor: &Descriptor) -> Result<Box<dyn Blob>>;

    /// Returns the size in bytes of a blob that nobody has to have. `None`: `call`'s namespace does not have it.
    ///
    /// Errors: `Unavailable` when the store does not answer.
    fn size_bytes(&self, call: &Call, digest: &Digest) -> Result<Option<u64>>;
}

/// Destination of blobs, such as containerd's content store.
pub trait BlobSink: Send + Sync {
    /// Begins a blob under `reference`, whose earlier data is discarded, or under a unique one when
    /// `reference` is empty. Waits while another writer holds the reference.
    ///
    /// Errors: `Unavailable` when the reference stays locked or the store does not answer.
    fn ingest(&self, call: &Call, reference: &str) -> Result<Box<dyn Ingest>>;
}

/// Blob being written. When it is dropped without [`Ingest::commit`], the store keeps nothing of
/// it.
pub trait Ingest: Send {
    /// Bytes that the store has from an earlier attempt. The caller writes them again all the same; they are passed
    /// over, and checked with the others at the commit.
    fn kept_bytes(&self) -> u64 {
        0
    }

    /// Appends `bytes`, any number of them. Returns at most 100 ms after a cancellation.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes the blob visible. A blob that the store has already is a success, and gets the missing
    /// labels.
    ///
    /// Errors: those of [`check_labels`], which a caller may call before it writes anything;
    /// `DataLoss` when the store has other bytes than were written.
    fn commit(self: Box<Self>, digest: &Digest, labels: &BTreeMap<String, String>) -> Result<Stored>;
}

/// Digest and size of a committed blob, as the store reports them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Digest that the store reports.
    pub digest: Digest,
    /// Size that the store reports, in bytes.
    pub size_bytes: u64,
}

/// Open blob, read from start to end.
///
/// Reads return exactly [`Blob::size_bytes`] bytes or an error. They return at most 100 ms after a
/// cancellation. Their errors carry a classified error, which
/// [`Error::from_io`](crate::error::Error::from_io) unpacks.
pub trait Blob: Read + Send {
    /// Size in bytes, equal to the descriptor's.
    fn size_bytes(&self) -> u64;

    /// File that holds exactly this blob, if there is one: for positional reads and for sharing its
    /// blocks. Its bytes are as little verified as those of `read`, and both share one position.
    fn file(&self) -> Option<&File> {
        None
    }
}

/// Reason ids that all stores use.
pub(crate) mod reason {
    /// The store has no such blob in this namespace.
    pub(crate) const NOT_FOUND: &str = "store.not-found";
    /// The store has the blob with another size than the descriptor's.
    pub(crate) const SIZE: &str = "store.size";
    /// The bytes ended before the blob's size was reached.
    pub(crate) const SHORT: &str = "store.short";
    /// More bytes arrived than the blob has.
    pub(crate) const LONG: &str = "store.long";
    /// A message repeated or skipped bytes.
    pub(crate) const OFFSET: &str = "store.offset";
    /// No bytes arrived for the time of the limit.
    pub(crate) const STALL: &str = "store.stall";
    /// The store cannot be reached, or went away.
    pub(crate) const UNAVAILABLE: &str = "store.unavailable";
    /// The store refused the call itself.
    pub(crate) const REFUSED: &str = "store.refused";
    /// Bytes could not be read.
    pub(crate) const READ: &str = "store.read";
    /// Another writer holds the reference and does not let go in time.
    pub(crate) const LOCKED: &str = "store.locked";
    /// The written bytes have another digest than their writer claims.
    pub(crate) const DIGEST: &str = "store.digest";
    /// The reference is not one that the store accepts.
    pub(crate) const REFERENCE: &str = "store.reference";
    /// The store's disk is full.
    pub(crate) const FULL: &str = "store.full";
    /// The store could not write.
    pub(crate) const WRITE: &str = "store.write";
    /// The lease that keeps the blob has expired or was deleted.
    pub(crate) const LEASE: &str = "store.lease";
    /// The store refuses a label.
    pub(crate) const LABEL: &str = "store.label";
}
