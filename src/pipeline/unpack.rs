//! The step of the pipeline that parses an archive and passes its entries on.

use std::time::{Duration, Instant};

use super::{buffer::Chunk, decode::StreamLimit, image::ImageWriter, stage::Stage};
use crate::{
    error::Result,
    format::{
        Sink,
        tar::{Event, Parser},
    },
    tree::{Body, Entry},
};

/// Destination of the entries of an archive.
pub trait Entries: Send {
    /// Takes the next entry, whose data the archive has from byte `data_start` on.
    fn entry(&mut self, entry: &Entry, data_start: u64) -> Result<()>;

    /// Takes data of a regular file from byte `offset` of it on.
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Ends the data of a regular file.
    fn end_entry(&mut self) -> Result<()>;
}

/// Parses an archive.
#[derive(Debug)]
pub struct Unpack<W> {
    parser: Parser,
    writer: W,
    stream_bytes: u64,
    hole_bytes: u64,
    /// Largest sum of `stream_bytes` and `hole_bytes`.
    limit: u64,
    busy: Duration,
}

/// An archive whose end was reached.
#[derive(Debug)]
pub struct Unpacked<W> {
    /// Where its entries went.
    pub writer: W,
    /// Extended attributes that were left out.
    pub dropped_xattrs: u64,
    /// Time spent on parsing and on the writer.
    pub busy: Duration,
}

impl<W: Entries> Unpack<W> {
    /// Passes the entries to `writer`. At most `limit` bytes of archive and holes are taken.
    pub fn new(writer: W, limit: u64) -> Self {
        Self { parser: Parser::new(), writer, stream_bytes: 0, hole_bytes: 0, limit, busy: Duration::ZERO }
    }

    /// Like [`Unpack::new`] for the metadata of an archive: there is no data.
    pub fn of_metadata(writer: W, limit: u64) -> Self {
        Self { parser: Parser::of_metadata(), ..Self::new(writer, limit) }
    }

    fn take(&mut self, mut input: &[u8]) -> Result<()> {
        while let Some(event) = self.parser.next(&mut input)? {
            match event {
                Event::Entry { entry, data_start } => {
                    self.count_holes(&entry.body)?;
                    self.writer.entry(&entry, data_start)
                }
                Event::Data { offset, bytes } => self.writer.data(offset, bytes),
                Event::EndOfEntry => self.writer.end_entry(),
            }?;
        }
        Ok(())
    }

    /// Adds the holes of a file to the bytes that are limited, because a header can name holes of any length. Diff
    /// would write them as zeros.
    fn count_holes(&mut self, body: &Body) -> Result<()> {
        if let Body::Regular { size_bytes, extents: Some(extents) } = body {
            let data: u64 = extents.iter().map(|extent| extent.len).sum();
            self.hole_bytes = self.hole_bytes.saturating_add(size_bytes.saturating_sub(data));
        }
        self.check_limit()
    }

    fn check_limit(&self) -> Result<()> {
        if self.stream_bytes.saturating_add(self.hole_bytes) > self.limit {
            return Err(StreamLimit::Length { limit: self.limit }.into());
        }
        Ok(())
    }
}

impl<W: Entries> Stage for Unpack<W> {
    type Output = Unpacked<W>;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        let started = Instant::now();
        self.stream_bytes = self.stream_bytes.saturating_add(chunk.len() as u64);
        let outcome = self.check_limit().and_then(|()| self.take(&chunk));
        self.busy += started.elapsed();
        outcome
    }

    fn finish(mut self) -> Result<Unpacked<W>> {
        self.parser.finish()?;
        let dropped_xattrs = self.parser.dropped_xattrs();
        Ok(Unpacked { writer: self.writer, dropped_xattrs, busy: self.busy })
    }
}

impl<S: Sink + Send> Entries for ImageWriter<'_, S> {
    fn entry(&mut self, entry: &Entry, _data_start: u64) -> Result<()> {
        self.entry(entry)
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.data(offset, bytes)
    }

    fn end_entry(&mut self) -> Result<()> {
        self.end_entry()
    }
}
