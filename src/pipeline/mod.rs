//! Moves a layer: reads it, compares it with its digest, decompresses it, hashes it again, and hands it on.
//!
//! A [`Pipeline`] moves one blob from a reader into a consumer, which parses a tar archive or writes an image, and
//! returns both digests. The steps are [`stage::Stage`]s, on as many threads as are free:
//!
//! ```text
//! compressed:  read + blob digest ──> processors* ──> detect, decode ──┬──> diffID
//!                                                                      └──> consumer
//! plain:       read ──┬──> blob digest = diffID
//!                     └──> detect ──> consumer
//! ```
//!
//! While processors are few, the digest of a compressed blob is computed in turns with that of its stream: [`hash`] says
//! why.
//!
//! The result does not depend on the threads. A small blob is done on the caller's thread alone. The other direction,
//! from a stream that is produced here to a blob, is [`encode`], or [`members`] for a blob of many.
//!
//! A consumer sees the end of the stream, but publishes nothing: the caller does, who has the digests by then. When a
//! consumer or decoder refuses the bytes, the rest of the blob is still read and hashed. Only if the bytes are the
//! ones that were asked for, the layer is to blame; otherwise the store is.

mod ahead;
mod blocks;
pub mod budget;
pub mod buffer;
mod builder;
pub mod decode;
mod detect;
pub mod each;
pub mod encode;
pub mod hash;
pub mod helpers;
pub mod image;
mod index;
pub mod members;
pub mod processor;
pub mod stage;
pub mod unpack;
pub mod zfile;

mod ordered;
mod resources;
mod source;
#[cfg(test)]
mod test_setup;

pub use ahead::{AheadFacts, AheadOptions, fuzz_ahead, fuzz_ahead_zstd};
pub use builder::{Facts, Pipeline, Ran, StageTimes};
pub use decode::StreamLimit;
pub use resources::{Plan, Resources};
pub use source::{BlobError, Source};
