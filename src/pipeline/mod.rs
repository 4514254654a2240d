//! The way of a layer: read, compare with its digest, decompress, hash again, consume.
//!
//! [`run`] moves one blob from a reader into a consumer (which parses a tar archive, or writes an
//! image) and tells both digests. The steps are [`stage::Stage`]s, on as many threads as are free:
//!
//! ```text
//! compressed:  read + blob digest ──> decode ──┬──> diffID
//!                                              └──> consumer
//! plain:       read ──┬──> blob digest = diffID
//!                     └──> consumer
//! ```
//!
//! The result does not depend on the threads. Small blobs use the caller's alone.
//!
//! A consumer sees the end of the stream, but publishes nothing: that is for the caller, who has the
//! digests by then. When a consumer or decoder refuses the bytes, the rest of the blob is still read and
//! hashed: only if the bytes are the ones that were asked for is the layer to blame, else the store.

mod blocks;
pub mod budget;
pub mod buffer;
mod builder;
pub mod decode;
mod detect;
pub mod encode;
pub mod hash;
pub mod helpers;
pub mod image;
pub mod stage;

mod ordered;
mod resources;
mod source;

pub use builder::{Facts, Pipeline, Ran};
pub use decode::StreamLimit;
pub use resources::Resources;
pub use source::{BlobError, Source};

use std::time::Duration;

use self::budget::Lease;
use crate::call::Work;

/// What a run may use.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// Threads and limits, shared with other requests.
    pub resources: &'a Resources,
    /// Memory of this request.
    pub lease: &'a Lease,
    /// Its cancellation, looked at once a buffer, and its progress.
    pub work: Work<'a>,
}

/// Seconds that each step was at work, waiting not counted. They overlap when threads are free.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StageTimes {
    /// Reading the blob, waiting for the store included.
    pub read: Duration,
    /// Digest of the blob.
    pub blob_digest: Duration,
    /// Decompression.
    pub decode: Duration,
    /// Digest of the uncompressed stream; zero when the blob is uncompressed.
    pub diff_id: Duration,
    /// Parsing the stream and writing the image.
    pub build: Duration,
    /// Laying out the rest of the image.
    pub finish: Duration,
    /// Checking the image, read back from the file.
    pub verify: Duration,
    /// Syncing and renaming.
    pub commit: Duration,
}

impl StageTimes {
    /// Every step by its name, in the order of the work.
    pub fn steps(&self) -> [(&'static str, Duration); 8] {
        [
            ("read", self.read),
            ("blob_digest", self.blob_digest),
            ("decode", self.decode),
            ("diff_id", self.diff_id),
            ("build", self.build),
            ("finish", self.finish),
            ("verify", self.verify),
            ("commit", self.commit),
        ]
    }
}
