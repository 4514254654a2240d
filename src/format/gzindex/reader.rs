//! Reads uncompressed bytes at any offset of a gzip blob, through an index.
//!
//! Decoded bytes are kept in pieces, and decoders where they stopped: random reads near each other decode once, and
//! sequential reads go on where the last one ended. Nothing is locked while a blob is read or decoded.
//!
//! Source: `docs/formats/overlaybd.md`, "gzip index".

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{error::GzindexError, index::Index};
use crate::{
    codec::deflate::{DeflateError, Inflate, Pause},
    error::Error,
    format::ReadAt,
};

/// Uncompressed bytes kept together. Decoding up to the end of a piece costs a 4 KiB read half of it on the average,
/// a sixteenth of what it costs to get there from a point.
const PIECE_BYTES: u64 = 64 << 10;
/// Pieces kept: 16 MiB.
const PIECES: usize = 256;
/// Decoders kept, 128 KiB each.
const CURSORS: usize = 8;
/// Compressed bytes read at a time.
const INPUT_BYTES: usize = 64 << 10;
/// Length of what follows the deflate stream: CRC-32 and length.
const TRAILER_BYTES: u64 = 8;
/// Bytes after the member that have to be zero. Padding ends a tape's block of 10 KiB at most.
const PADDING_BYTES: u64 = 10 << 10;

/// Uncompressed bytes of a blob, as its index has them.
///
/// What is read is not compared with the blob's checksum, which covers the whole stream: the digest of the blob is
/// what vouches for it.
pub struct Reader<B, I> {
    blob: B,
    file: I,
    index: Index,
    cache: Mutex<Cache>,
}

impl<B, I> std::fmt::Debug for Reader<B, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("index", self.index.header()).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Cache {
    /// Pieces by number, that used last at the end.
    pieces: VecDeque<(u64, Arc<[u8]>)>,
    /// Decoders that stopped somewhere, that used last at the end.
    cursors: VecDeque<Cursor>,
}

/// A decoder on its way.
struct Cursor {
    inflate: Inflate,
    /// Uncompressed offset of the point that it started from.
    from: u64,
    /// Uncompressed bytes before the next one.
    plain: u64,
    /// Byte of the blob up to which it has been read.
    read: u64,
    input: Vec<u8>,
    /// Bytes of `input` that were taken.
    taken: usize,
}

impl<B: ReadAt, I: ReadAt> Reader<B, I> {
    /// Reads `blob` through the index in `file`. The last bytes of the blob are decoded, from the last point on: an
    /// index that some tools make of a blob with several members covers the first one only, and is refused here.
    ///
    /// Errors: those of the index; [`GzindexError::BlobSize`], [`GzindexError::End`] and [`GzindexError::Members`] when
    /// it is not that of the blob.
    pub fn open(blob: B, file: I) -> Result<Self, GzindexError> {
        let index = Index::read(&file)?;
        let (stored, found) = (index.header().blob_bytes, blob.size_bytes());
        if stored != found {
            return Err(GzindexError::BlobSize { stored, found });
        }
        let reader = Self { blob, file, index, cache: Mutex::default() };
        reader.check_end()?;
        Ok(reader)
    }

    /// Index of the blob.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Checks that the stream ends where the index says, and that nothing but padding follows its member.
    fn check_end(&self) -> Result<(), GzindexError> {
        let expected = self.size_bytes();
        let mut cursor = self.cursor(self.index.points().len().saturating_sub(1))?;
        let mut output = vec![0; usize::try_from(PIECE_BYTES).unwrap_or_default()];
        let end = loop {
            let (_, pause) = self.step(&mut cursor, &mut output)?;
            if cursor.plain > expected {
                return Err(GzindexError::End { found: cursor.plain, expected });
            }
            if pause == Pause::Ended {
                break cursor.read.saturating_sub(cursor.input.len().saturating_sub(cursor.taken) as u64);
            }
        };
        if cursor.plain != expected {
            return Err(GzindexError::End { found: cursor.plain, expected });
        }
        let size_bytes = self.blob.size_bytes();
        let Some(behind) = end.checked_add(TRAILER_BYTES).filter(|behind| *behind <= size_bytes) else {
            return Err(GzindexError::Cut { found: size_bytes });
        };
        let len = size_bytes.saturating_sub(behind).min(PADDING_BYTES);
        let mut padding = vec![0; usize::try_from(len).unwrap_or_default()];
        self.read_blob(behind, &mut padding)?;
        match (behind..).zip(&padding).find(|(_, byte)| **byte != 0) {
            Some((offset, _)) => Err(GzindexError::Members { offset }),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_blob(&self, offset: u64, buf: &mut [u8]) -> Result<(), GzindexError> {
        let what = "reading the gzip blob";
        self.blob.read_exact_at(offset, buf).map_err(|source| GzindexError::Io { what, offset, source })
    }

    /// A decoder at a point.
    fn cursor(&self, number: usize) -> Result<Cursor, GzindexError> {
        let window = self.index.window(&self.file, number)?;
        let mut inflate = Inflate::new();
        let (from, read) = self.index.points().get(number).map_or((0, 0), |point| {
            let (read, bit) = point.start();
            // Zeros stand in the window for bytes that do not exist; a match that reaches them is refused.
            let known = usize::try_from(point.plain).unwrap_or(usize::MAX).min(window.len());
            inflate.start_at(bit, window.get(window.len().saturating_sub(known)..).unwrap_or_default());
            (point.plain, read)
        });
        Ok(Cursor { inflate, from, plain: from, read, input: Vec::new(), taken: 0 })
    }

    /// Decodes into `output` until it is full or the stream ends; how many bytes of it are filled.
    fn step(&self, cursor: &mut Cursor, output: &mut [u8]) -> Result<(usize, Pause), GzindexError> {
        let mut filled = 0;
        loop {
            let mut input = cursor.input.get(cursor.taken..).unwrap_or_default();
            let room = output.get_mut(filled..).unwrap_or_default();
            let outcome = cursor.inflate.decode(&mut input, room);
            cursor.taken = cursor.input.len().saturating_sub(input.len());
            let (now, pause) = outcome.map_err(|DeflateError { what, .. }| GzindexError::Data {
                offset: cursor.read,
                from: cursor.from,
                fault: what,
            })?;
            filled = filled.saturating_add(now);
            cursor.plain = cursor.plain.saturating_add(now as u64);
            if pause != Pause::Input {
                return Ok((filled, pause));
            }
            let left = self.blob.size_bytes().saturating_sub(cursor.read);
            if left == 0 {
                return Err(GzindexError::Cut { found: self.blob.size_bytes() });
            }
            let len = usize::try_from(left).unwrap_or(INPUT_BYTES).min(INPUT_BYTES);
            cursor.input.resize(len, 0);
            cursor.taken = 0;
            self.read_blob(cursor.read, &mut cursor.input)?;
            cursor.read = cursor.read.saturating_add(len as u64);
        }
    }

    /// Piece `number`, from the cache or decoded. The pieces on the way to it are kept too.
    fn piece(&self, number: u64) -> Result<Arc<[u8]>, GzindexError> {
        let start = number.saturating_mul(PIECE_BYTES);
        let point = self.index.point_before(start);
        let from = self.index.points().get(point).map_or(0, |point| point.plain);
        let cursor = {
            let mut cache = self.lock();
            if let Some(piece) = cache.piece(number) {
                return Ok(piece);
            }
            cache.cursor(from, start)
        };
        let mut cursor = match cursor {
            Some(cursor) => cursor,
            None => self.cursor(point)?,
        };
        let size_bytes = self.size_bytes();
        loop {
            let at = cursor.plain / PIECE_BYTES;
            let is_whole = cursor.plain.is_multiple_of(PIECE_BYTES);
            let end = at.saturating_add(1).saturating_mul(PIECE_BYTES).min(size_bytes);
            let mut piece = vec![0; usize::try_from(end.saturating_sub(cursor.plain)).unwrap_or_default()];
            let (filled, _) = self.step(&mut cursor, &mut piece)?;
            if filled < piece.len() {
                return Err(GzindexError::End { found: cursor.plain, expected: size_bytes });
            }
            if is_whole {
                let piece: Arc<[u8]> = piece.into();
                let mut cache = self.lock();
                cache.keep_piece(at, Arc::clone(&piece));
                if at == number {
                    cache.keep_cursor(cursor);
                    return Ok(piece);
                }
            }
        }
    }
}

impl<B: ReadAt, I: ReadAt> ReadAt for Reader<B, I> {
    /// Errors: `UnexpectedEof` behind the end of the stream; a packed [`GzindexError`], see [`Error::from_io`].
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.size_bytes());
        if end.is_none() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let piece = self.piece(at / PIECE_BYTES).map_err(|error| Error::from(error).into_io())?;
            let within = usize::try_from(at % PIECE_BYTES).unwrap_or_default();
            let bytes = piece.get(within..).unwrap_or_default();
            let len = bytes.len().min(rest.len());
            let (now, later) = rest.split_at_mut_checked(len).ok_or(io::ErrorKind::UnexpectedEof)?;
            now.copy_from_slice(bytes.get(..len).unwrap_or_default());
            (at, rest) = (at.saturating_add(len as u64), later);
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.index.header().plain_bytes
    }
}

impl Cache {
    fn piece(&mut self, number: u64) -> Option<Arc<[u8]>> {
        let at = self.pieces.iter().rposition(|(known, _)| *known == number)?;
        let found = self.pieces.remove(at)?;
        let piece = Arc::clone(&found.1);
        self.pieces.push_back(found);
        Some(piece)
    }

    fn keep_piece(&mut self, number: u64, piece: Arc<[u8]>) {
        // Two threads may have decoded the same.
        if self.piece(number).is_none() {
            self.pieces.push_back((number, piece));
        }
        while self.pieces.len() > PIECES {
            self.pieces.pop_front();
        }
    }

    /// Takes out the decoder that is nearest before byte `start` of the stream, if it saves something over one that
    /// starts at byte `from`.
    fn cursor(&mut self, from: u64, start: u64) -> Option<Cursor> {
        let fits = |cursor: &Cursor| cursor.plain >= from && cursor.plain <= start;
        let (at, _) = self
            .cursors
            .iter()
            .enumerate()
            .filter(|(_, cursor)| fits(cursor))
            .max_by_key(|(_, c)| c.plain)?;
        self.cursors.remove(at)
    }

    fn keep_cursor(&mut self, cursor: Cursor) {
        self.cursors.push_back(cursor);
        while self.cursors.len() > CURSORS {
            self.cursors.pop_front();
        }
    }
}
