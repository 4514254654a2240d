//! Indexed layers: eStargz and zstd:chunked. A layer with a table of contents (TOC) behind its payload.
//!
//! A blob of either kind is also an ordinary gzip or zstd layer. [`Layout`] finds the table in a blob, [`Toc`] reads and
//! checks it, [`verify()`] compares the data of files with it, and [`verify_split()`] the archive. Nothing here is needed to apply a layer: whoever finds an
//! odd table takes the layer for an ordinary one.
//!
//! Source: stargz-snapshotter `docs/estargz.md` and `docs/stargz-estargz.md`; containers/storage `pkg/chunked`;
//! `docs/formats/stargz.md`.

pub mod chunked;
mod crc64;
mod cutter;
mod declared;
mod error;
mod footer;
mod fuzz;
mod layout;
#[cfg(test)]
mod tests;

mod split_check;
mod tar_split;
mod text;
mod toc;
mod verify;
pub mod writer;

pub use self::{
    declared::{Declared, TOC_DIGEST},
    error::{ChunkFault, EntryFault, SplitFault, StargzError},
    fuzz::fuzz,
    layout::{Form, Layout, toc_in_archive},
    split_check::verify_split,
    toc::{Body, Chunk, Entry, Toc, is_own_name},
    verify::{Verified, Wanted, extract, runs, verify, wanted},
};
