//! RAFS v6 metadata of indexed layers: an EROFS image without data, whose files refer to a data device that is filled
//! chunk by chunk from the blob.
//!
//! The kernel mounts the image with the data device as its `device=`; readers of RAFS find the chunks in the blob by the
//! tables in it and by the compression context beside it.
//!
//! Source: nydus `docs/nydus-design.md`, `rafs/src/metadata/layout/v6.rs`, `storage/src/meta`; Linux
//! `fs/erofs/erofs_fs.h`; `docs/formats/rafs.md`.

mod check;
mod context;
mod error;
mod fuzz;
mod image;
mod layer;
mod plan;
mod records;
mod tables;
#[cfg(test)]
mod tests;
mod tree;

pub use self::{
    check::verify,
    error::{RafsError, TableError},
    fuzz::fuzz,
    image::{Contents, MOST_BLOBS},
    layer::{Metadata, write},
    plan::Plan,
    records::{BlobEntry, ChunkEntry, ChunkRef},
    tables::{Tables, id_text, is_digest, is_rafs},
    tree::{Body, IMPLIED, Node, Tree},
};
