//! Moves a layer: reads it, compares it with its digest, decompresses it, hashes it again, and hands it on.
//!
//! A [`Pipeline`] moves one blob from a reader into a consumer, which parses a tar archive or writes an image, and
//! returns both digests. The steps are [`stage::Stage`]s, on as many threads as are free:
//!
//! ```text
//! compressed:  read + blob digest ──> detect, decode ──┬──> diffID
//!                                                      └──> consumer
//! plain:       read ──┬──> blob digest = diffID
//!                     └──> detect ──> consumer
//! ```
//!
//! The result does not depend on the threads. A small blob is done on the caller's thread alone. The other direction,
//! from a stream that is produced here to a blob, is [`encode`].
//!
//! A consumer sees the end of the stream, but publishes nothing: the caller does, who has the digests by then. When a
//! consumer or decoder refuses the bytes, the rest of the blob is still read and hashed. Only if the bytes are the
//! ones that were asked for, the layer is to blame; otherwise the store is.

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

/// Everything that one run may use.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// Threads and limits, shared with other requests.
    pub resources: &'a Resources,
    /// Memory of this request.
    pub lease: &'a Lease,
    /// Cancellation, looked at once a buffer, and progress of this request.
    pub work: Work<'a>,
}

/// Time that each step of Apply was at work, without waiting for other steps. The times overlap when threads are free.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StageTimes {
    /// Reading the blob, including the wait for the store.
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
