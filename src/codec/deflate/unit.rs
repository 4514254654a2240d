//! Units of a decoder's output, and how far back matches reach.
//!
//! Source: RFC 1951, section 2.

/// How far back a match may reach.
pub const WINDOW_BYTES: usize = 1 << 15;

/// Output of a decoder: bytes, or numbers that hold either a byte or where it is copied from.
pub trait Unit: Copy + Default + From<u8> + Send + Sync + 'static {}

impl Unit for u8 {}
impl Unit for u16 {}
