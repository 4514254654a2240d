//! zTOC: the index that SOCI makes of a gzip layer, as far as it says where a decoder can start.
//!
//! A [`Ztoc`] lists the start of a block every few MiB, with the 32 KiB before each, which stay in the file until they are
//! asked for. Names and attributes of the layer's files, which a zTOC has as well, are not read.
//!
//! Nothing of it is more than a hint. Whoever uses a checkpoint compares it with the stream.
//!
//! Source: `docs/formats/ztoc.md`.

mod checkpoint;
mod error;
mod flatbuffer;
mod fuzz;
mod index;

pub use self::{checkpoint::Checkpoint, error::ZtocError, fuzz::fuzz, index::Ztoc};

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
