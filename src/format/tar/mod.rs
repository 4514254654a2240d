//! tar archives as layers use them: bytes in, entries and their data out, and back.
//!
//! [`Parser`] takes the archive in pieces of any size and never holds file data. It reads what Go's
//! `archive/tar` reads, because containerd unpacks with it. Where widely deployed readers disagree
//! about where an entry ends or what it is called, the archive is refused: a scanner may have seen
//! other files than the runtime. Names are returned as they are spelled. Cleaning them, whiteouts
//! and placing entries in a tree are left to the caller.
//!
//! [`writer`] writes archives, in one spelling for each entry.
//!
//! Source: `docs/formats/tar.md`, which lists every rule with its source and its reason id.

mod error;
mod header;
mod member;
pub mod metadata;
mod number;
mod parser;
mod pax;
mod sparse;
mod trace;
pub mod wrapper;
pub mod writer;

pub use error::{Problem, TarError};
pub use parser::{Event, Parser};

/// Fuzz entry: reads `data` as an archive, whole and in pieces, and compares the results. Then does
/// so again with the checksum of every header corrected, so that a fuzzer gets past it.
///
/// # Panics
///
/// When two readings differ or break a promise of [`Parser`].
pub fn fuzz(data: &[u8]) {
    let mut mended = data.to_vec();
    for block in mended.as_chunks_mut().0 {
        header::mend_checksum(block);
    }
    for archive in [data, &mended] {
        let whole = trace::trace(archive, usize::MAX);
        // These sizes split headers and bodies in different ways.
        for piece in [1 + archive.len() % 700, 512] {
            assert_eq!(trace::trace(archive, piece), whole, "in pieces of {piece} bytes");
        }
    }
}
