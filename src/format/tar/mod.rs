//! tar archives as layers use them: bytes in, entries and their data out, and back.
//!
//! [`Parser`] is pushed the archive in pieces of any size and never holds file data. It reads what Go's
//! `archive/tar` reads (that is what containerd unpacks with), except where widely deployed readers
//! would disagree about where an entry ends or what it is called: such an archive is refused, because
//! whoever scanned the layer may have seen other files than whoever runs it. Names are handed out as
//! they are spelled; cleaning them, whiteouts and placing entries in a tree are not done here.
//!
//! [`writer`] is the way back, in one spelling for each entry.
//!
//! Source: `docs/formats/tar.md`, which lists every rule with its source and its reason id.

mod error;
mod header;
mod member;
mod number;
mod parser;
mod pax;
mod sparse;
mod trace;
pub mod writer;

pub use error::{Problem, TarError};
pub use parser::{Event, Parser};

/// Fuzz entry: reads `data` as an archive, whole and in pieces, and compares what comes out; then the
/// same with every header's checksum put right, so that a fuzzer gets behind it.
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
        // The sizes straddle headers and bodies in different ways.
        for piece in [1 + archive.len() % 700, 512] {
            assert_eq!(trace::trace(archive, piece), whole, "in pieces of {piece} bytes");
        }
    }
}
