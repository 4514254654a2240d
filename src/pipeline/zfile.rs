//! Writes a ZFile on many threads: [`Ordered`] work, a batch of blocks an item.
//!
//! The file does not depend on the threads, because no block depends on another.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use super::{
    buffer::{Buffer, Chunk, Pool},
    helpers::Helpers,
    ordered::{Ordered, Worker},
};
use crate::{
    error::{Error, Result},
    format::{
        Sink,
        zfile::writer::{Encoder, Layout, Options},
    },
};

/// Contents of a batch in bytes, a multiple of every block size: long enough that handing it to another thread costs
/// nothing against the millisecond of work, and short enough that a few of them fit the processor's caches.
const BATCH_BYTES: usize = 256 << 10;

/// Sizes of a ZFile that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Size of the contents in bytes.
    pub contents_bytes: u64,
    /// Size of the file in bytes.
    pub file_bytes: u64,
}

/// Runs `produce`, and writes what it writes to `sink`, which is empty, compressed. The header is written last, so that
/// an incomplete file is none. Blocks are compressed on the caller's thread and on as many helpers as are free.
///
/// Errors: those of `produce` and of the sink; blocks that no reader would take.
pub fn write<S: Sink, T>(
    helpers: &Arc<Helpers>,
    options: Options,
    sink: &mut S,
    produce: impl FnOnce(&mut dyn io::Write) -> Result<T>,
) -> Result<(T, Summary)> {
    thread::scope(|scope| {
        let encoders =
            Encoders { options, idle: Arc::default(), stored: Pool::new(options.bound(BATCH_BYTES)) };
        let mut stream = Stream {
            batches: Ordered::new(scope, helpers, helpers.take(), "zfile", encoders),
            contents: Pool::new(BATCH_BYTES),
            buffer: None,
            filled: 0,
            layout: Layout::new(options),
            sink,
        };
        let output = produce(&mut stream)?;
        Ok((output, stream.finish()?))
    })
}

/// Gathers what is written into batches.
struct Stream<'scope, 'env, 'sink, S> {
    batches: Ordered<'scope, 'env, Encoders>,
    contents: Arc<Pool>,
    /// The batch being filled; its first `filled` bytes are.
    buffer: Option<Buffer>,
    filled: usize,
    layout: Layout,
    sink: &'sink mut S,
}

impl<S: Sink> Stream<'_, '_, '_, S> {
    fn ship(&mut self) -> Result<()> {
        let filled = std::mem::take(&mut self.filled);
        let Some(batch) = self.buffer.take() else { return Ok(()) };
        self.batches.submit(batch.freeze(filled))?;
        while let Some(encoded) = self.batches.due()? {
            self.place(&encoded)?;
        }
        Ok(())
    }

    fn place(&mut self, encoded: &Encoded) -> Result<()> {
        let offset = self.layout.add(&encoded.lengths, encoded.contents_bytes)?;
        self.sink.write_at(offset, &encoded.stored).map_err(Error::disk)
    }

    fn finish(mut self) -> Result<Summary> {
        self.ship()?;
        while let Some(encoded) = self.batches.rest()? {
            self.place(&encoded)?;
        }
        let contents_bytes = self.layout.contents_bytes();
        let ends = self.layout.finish();
        let file_bytes = ends.tail_offset + ends.tail.len() as u64;
        let sink = self.sink;
        let mut finish = || {
            sink.write_at(ends.tail_offset, &ends.tail)?;
            sink.set_len(file_bytes)?;
            sink.write_at(0, &ends.header)
        };
        finish().map_err(Error::disk)?;
        Ok(Summary { contents_bytes, file_bytes })
    }
}

/// An error carries a classified one, which [`Error::from_io`] unpacks. After one, write no more.
impl<S: Sink> io::Write for Stream<'_, '_, '_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let contents = &self.contents;
        let buffer = self.buffer.get_or_insert_with(|| contents.take());
        let space = buffer.space().get_mut(self.filled..).unwrap_or_default();
        let len = space.len().min(bytes.len());
        if let (Some(space), Some(bytes)) = (space.get_mut(..len), bytes.get(..len)) {
            space.copy_from_slice(bytes);
        }
        self.filled += len;
        if self.filled == BATCH_BYTES {
            self.ship().map_err(Error::into_io)?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A batch of compressed blocks.
struct Encoded {
    stored: Chunk,
    lengths: Vec<u32>,
    contents_bytes: u64,
}

/// Compresses batches on any thread.
#[derive(Clone)]
struct Encoders {
    options: Options,
    /// Those that no thread uses.
    idle: Arc<Mutex<Vec<Encoder>>>,
    /// For compressed blocks.
    stored: Arc<Pool>,
}

impl Worker for Encoders {
    type Item = Chunk;
    type Done = Encoded;

    fn work(&self, batch: Chunk) -> Result<Encoded> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let mut encoder = match kept {
            Some(encoder) => encoder,
            None => Encoder::new(self.options)?,
        };
        let (mut buffer, mut lengths) = (self.stored.take(), Vec::new());
        let stored_bytes = encoder.encode(&batch, buffer.space(), &mut lengths)?;
        idle().push(encoder);
        Ok(Encoded { stored: buffer.freeze(stored_bytes), lengths, contents_bytes: batch.len() as u64 })
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::{
        error::Kind,
        format::{
            ReadAt,
            zfile::{
                block::{Algorithm, BlockSize},
                reader::Reader,
            },
        },
    };

    fn contents(len: usize) -> Vec<u8> {
        (0..len).map(|at| u8::try_from((at / 5 * (at >> 9)) % 253).unwrap()).collect()
    }

    fn written(threads: usize, options: Options, contents: &[u8], piece: usize) -> Result<Vec<u8>> {
        let mut file = Vec::new();
        let helpers = Helpers::new(threads);
        let ((), summary) = write(&helpers, options, &mut file, |out| {
            contents.chunks(piece).try_for_each(|piece| out.write_all(piece)).map_err(Error::disk)
        })?;
        assert_eq!(helpers.free(), threads, "permits come back");
        let sizes = Summary { contents_bytes: contents.len() as u64, file_bytes: file.len() as u64 };
        assert_eq!(summary, sizes);
        Ok(file)
    }

    #[test]
    fn the_file_is_the_same_on_any_number_of_threads() {
        for algorithm in [Algorithm::Lz4, Algorithm::Zstd] {
            let options = Options { algorithm, ..Options::default() };
            for len in [0, 1, 4096, BATCH_BYTES, BATCH_BYTES + 1, 3_000_000] {
                let contents = contents(len);
                let alone = written(0, options, &contents, len.max(1)).unwrap();
                let mut found = vec![0; len];
                Reader::open(&alone[..]).unwrap().read_exact_at(0, &mut found).unwrap();
                assert!(found == contents, "{len}");
                for (threads, piece) in [(1, 1000), (2, 4096), (8, 70_001)] {
                    assert!(
                        written(threads, options, &contents, piece).unwrap() == alone,
                        "{threads}, {len}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_failure_leaves_no_header() {
        let mut file = Vec::new();
        let options = Options::default();
        let failed = write(&Helpers::new(2), options, &mut file, |out| {
            out.write_all(&contents(2 * BATCH_BYTES)).map_err(Error::disk)?;
            Err::<(), _>(Error::new(Kind::Malformed, "test.refused", "refused"))
        });
        assert_eq!(failed.unwrap_err().reason(), "test.refused");
        assert!(!file.starts_with(b"ZFile"));
    }

    #[test]
    fn a_block_that_no_reader_takes_is_named_as_such() {
        let mut state = 1_u32;
        let noise = (0..200_000).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_le_bytes()[3]
        });
        let noise: Vec<u8> = noise.collect();
        let options = Options { block_size: BlockSize::MAX, ..Options::default() };
        let error = written(2, options, &noise, 1 << 16).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "zfile.incompressible"));
    }
}
