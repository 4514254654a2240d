//! Bytes of an input file on their way to a parser: cancellable, hashed, decompressed within limits.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt as _,
};

use crate::{
    call::Cancel,
    codec::{Coding, Decoder},
    digest::{Algorithm, Digest, Hasher},
    error::{Error, Kind, Result},
    limits::Limits,
    pipeline::decode::Meter,
};

/// Bytes read or decoded at a time.
const STEP_BYTES: usize = 128 << 10;
/// Reason id of an input that cannot be read.
pub(super) const UNREADABLE: &str = "image.read";

/// A stretch of a file, read at its own position.
pub(super) struct Stretch<'f> {
    file: &'f File,
    position: u64,
    end: u64,
    cancel: &'f Cancel,
}

impl<'f> Stretch<'f> {
    pub(super) fn new(file: &'f File, start: u64, len: u64, cancel: &'f Cancel) -> Self {
        Self { file, position: start, end: start.saturating_add(len), cancel }
    }

    /// Moves on without reading.
    pub(super) fn pass(&mut self, len: u64) {
        self.position = self.position.saturating_add(len).min(self.end);
    }

    pub(super) fn left(&self) -> u64 {
        self.end - self.position
    }
}

impl Read for Stretch<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.cancel.check().map_err(|stop| Error::from(stop).into_io())?;
        let want = usize::try_from(self.left()).unwrap_or(usize::MAX).min(buf.len());
        let Some(buf) = buf.get_mut(..want).filter(|buf| !buf.is_empty()) else { return Ok(0) };
        let read = self.file.read_at(buf, self.position)?;
        if read == 0 {
            let message = format!("the file ended at byte {} instead of {}", self.position, self.end);
            return Err(Error::new(Kind::DataLoss, UNREADABLE, message).into_io());
        }
        self.position += u64::try_from(read).unwrap_or(u64::MAX);
        Ok(read)
    }
}

/// Reads through, and hashes all that was read.
pub(super) struct Hashing<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Hashing<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, hasher: Hasher::new(Algorithm::Sha256) }
    }

    pub(super) fn finish(self) -> Digest {
        self.hasher.finish()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.hasher.update(buf.get(..read).unwrap_or_default());
        Ok(read)
    }
}

/// Decompresses, within the limits on length and ratio.
pub(super) struct Decoding<R> {
    inner: R,
    decoder: Box<dyn Decoder>,
    input: Box<[u8]>,
    start: usize,
    end: usize,
    ended: bool,
    finished: bool,
    meter: Meter,
}

impl<R: Read> Decoding<R> {
    pub(super) fn new(inner: R, coding: Coding, limits: &Limits) -> Result<Self> {
        Ok(Self {
            inner,
            decoder: coding.decoder(limits.zstd_window_bytes)?,
            input: vec![0; STEP_BYTES].into(),
            start: 0,
            end: 0,
            ended: false,
            finished: false,
            meter: Meter::new(limits),
        })
    }

    pub(super) fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for Decoding<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while !self.finished && !buf.is_empty() {
            let mut piece = self.input.get(self.start..self.end).unwrap_or_default();
            let had = piece.len();
            let filled =
                self.decoder.decode(&mut piece, buf).map_err(|error| Error::from(error).into_io())?;
            let taken = had - piece.len();
            self.start += taken;
            self.meter.count(taken, filled).map_err(|error| Error::from(error).into_io())?;
            if filled > 0 {
                return Ok(filled);
            }
            if self.start < self.end {
                // The decoder has stopped before it takes more memory, which its window limit bounds.
                continue;
            }
            if self.ended {
                self.decoder.finish().map_err(|error| Error::from(error).into_io())?;
                self.finished = true;
                break;
            }
            (self.start, self.end) = (0, self.inner.read(&mut self.input)?);
            self.ended = self.end == 0;
        }
        Ok(0)
    }
}

/// Error for an input that cannot be read.
pub(super) fn unreadable(error: io::Error) -> Error {
    Error::from_io(error, Kind::Unavailable, UNREADABLE)
}
