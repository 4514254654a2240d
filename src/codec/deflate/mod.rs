//! DEFLATE: a decoder that takes its input and gives its output in pieces of any size.
//!
//! [`Inflate`] reads blocks, one after the other. The headers, and symbols near the end of a piece of
//! input or output, go through a careful loop that can stop between any two bits; all other symbols
//! go through [`fast`], which looks at edges once a turn. Matches copy from the output itself; what
//! was given out before is kept in a [`History`] for the few that start before it.
//!
//! Bytes out are `u8`. With `u16` the same decoder starts in the middle of a stream: the bytes before
//! are unknown, and what is copied from them comes out as a number above 255 that says from where.
//!
//! Source: RFC 1951.

mod bits;
mod copy;
mod cpu;
mod error;
mod fast;
mod fuzz;
mod history;
mod inflate;
mod piece;
mod table;
mod unit;

pub(crate) use self::history::History;
pub use self::{
    error::{DeflateError, Fault},
    fuzz::{Fuzzer, fuzz},
    inflate::{Inflate, Pause},
    piece::{Finder, HEADER_BYTES, Window, known_at_end},
    unit::{Unit, WINDOW_BYTES},
};

#[cfg(test)]
mod tests;
