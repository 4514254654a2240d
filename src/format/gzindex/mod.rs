//! gzip index of overlaybd: random access into a blob that is one gzip member.
//!
//! An [`Index`] lists points at which a decoder can start, with the 32 KiB before each. [`Reader`] reads through it,
//! [`Chooser`] chooses the points while a blob is decoded, and [`Writer`] writes them.
//!
//! The format covers one member. Readers that take it for a whole stream of several members return wrong data, so the
//! chooser refuses a second one, and so does the reader when it opens a blob.
//!
//! Source: `docs/formats/overlaybd.md`, "gzip index".

mod chooser;
mod error;
mod fuzz;
mod header;
mod index;
mod point;
mod reader;
mod writer;

pub use self::{
    chooser::{Chooser, Chosen},
    error::GzindexError,
    fuzz::fuzz,
    header::Header,
    index::Index,
    point::Point,
    reader::Reader,
    writer::{Packed, Writer},
};

/// Distance of points in uncompressed bytes that other tools choose.
pub const SPAN_BYTES: u32 = 1 << 20;

#[cfg(test)]
mod tests;
