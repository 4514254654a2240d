//! Writes an index: windows as they come, then the table and the header.
//!
//! Source: `docs/formats/overlaybd.md`, "gzip index".

use super::{error::GzindexError, header::Header, point::Point};
use crate::{codec::zlib, format::Sink};

/// Level of windows and table in the header, the one that other tools write. No reader needs it.
const LEVEL: u8 = 6;
/// Level that they are compressed at. At 6 the index is 4 % smaller, and compressing takes twice as long: a quarter of the
/// time of decoding instead of an eighth.
pub(super) const ENCODER_LEVEL: u8 = 2;

/// Start of a block: uncompressed bytes and compressed bits before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) plain: u64,
    pub(super) bit: u64,
}

/// A point whose window is compressed.
pub struct Packed {
    pub(super) place: Place,
    pub(super) window: Vec<u8>,
}

/// Writes an index into a [`Sink`]. Memory: 29 bytes for each point.
pub struct Writer<S> {
    sink: S,
    span_bytes: u32,
    /// End of what was written.
    end: u64,
    /// Table of points, as it will be packed.
    table: Vec<u8>,
}

impl<S: Sink> Writer<S> {
    /// Index without points, into an empty sink.
    pub fn new(sink: S, span_bytes: u32) -> Self {
        Self { sink, span_bytes, end: Header::LEN as u64, table: Vec::new() }
    }

    /// Adds the next point. Points are added in the order in which they were chosen.
    pub fn add(&mut self, packed: Packed) -> Result<(), GzindexError> {
        let Packed { place: Place { plain, bit }, window } = packed;
        let [bits, ..] = bit.wrapping_neg().to_le_bytes();
        let point = Point {
            plain,
            byte: bit.div_ceil(8),
            bits: bits & 7,
            window_offset: self.end,
            window_bytes: u32::try_from(window.len()).unwrap_or(u32::MAX),
        };
        self.table.extend_from_slice(&point.encode());
        self.put(self.end, &window)?;
        self.end = self.end.saturating_add(window.len() as u64);
        Ok(())
    }

    /// Writes table and header of a blob of `blob_bytes` bytes that holds `plain_bytes` uncompressed ones.
    pub fn finish(mut self, blob_bytes: u64, plain_bytes: u64) -> Result<Header, GzindexError> {
        let table = zlib::pack(ENCODER_LEVEL, &self.table)?;
        let table_bytes = table.len() as u64;
        let header = Header {
            is_packed: true,
            level: LEVEL,
            span_bytes: self.span_bytes,
            points: (self.table.len() / Point::LEN) as u64,
            blob_bytes,
            file_bytes: self.end.saturating_add(table_bytes),
            plain_bytes,
            table_offset: self.end,
            table_bytes,
        };
        self.put(self.end, &table)?;
        self.put(0, &header.encode())?;
        Ok(header)
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), GzindexError> {
        let what = "writing the gzip index";
        self.sink.write_at(offset, bytes).map_err(|source| GzindexError::Io { what, offset, source })
    }
}
