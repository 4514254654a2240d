//! What snapshotters keep of indexed layers: metadata made of the table of contents, and the merged metadata of an image.
//!
//! ```text
//! is_stargz_data_layer ──> prepare_stargz_meta_layer ──> <blob id>, <blob id>.blob.meta, stargz.index.json
//!                      several such directories ──> merge_stargz_meta_layer ──> image.boot, *.blob.meta
//! ```
//!
//! The three calls have the names of the snapshotter's that they stand in for, and leave the files that those leave, with
//! the same names and modes. An error of the first two means that the layer is an ordinary one; nothing is left of it.
//!
//! Described in `docs/formats/rafs.md` and `docs/formats/merged.md`. Source: nydus-snapshotter
//! `pkg/filesystem/stargz_adaptor.go`.

mod check;
mod data;
mod files;
mod layer;
mod merge;
mod prepare;

pub use self::{
    data::{prepare_with_device, write_whole},
    layer::{BlobId, StargzLayer, is_stargz_data_layer},
    merge::{LayerFile, is_rafs_file, merge_layers, merge_stargz_meta_layer},
    prepare::{Prepared, prepare_stargz_meta_layer},
};
