//! Compares the data of files with the digests in the table.
//!
//! Source: `docs/formats/stargz.md`, "Verification".

use super::{
    error::{ChunkFault, StargzError},
    layout::{Layout, WINDOW_BYTES},
    toc::{Chunk, Entry, Toc},
};
use crate::{
    codec::{CodecError, Decoder, Gzip, Zstd},
    digest::{Algorithm, Digest, Hasher},
    error::Error,
    format::ReadAt,
};

/// Bytes read, and bytes decoded, at a time.
const PIECE: usize = 64 << 10;

/// Data that is what the table says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Number of chunks.
    pub chunks: u64,
    /// Sum of their sizes in bytes.
    pub bytes: u64,
}

/// Takes the data of chunks: those that have it, the byte of the chunk, and the bytes there. The digest is compared when
/// all bytes of a chunk were handed over.
pub type Take<'a> = &'a mut dyn FnMut(&[Wanted<'_>], u64, &[u8]) -> Result<(), Error>;

/// A chunk, and the file that it belongs to.
pub type Wanted<'t> = (&'t Entry, &'t Chunk);

/// Decodes every chunk of `toc` and compares its digest. `progress` gets the bytes of each step, and may end the work.
///
/// Errors: the first chunk, in the order of the blob, that is another one, with its path; those of `progress`.
pub fn verify(
    blob: &impl ReadAt,
    layout: &Layout,
    toc: &Toc,
    progress: &mut dyn FnMut(u64) -> Result<(), Error>,
) -> Result<Verified, Error> {
    extract(blob, layout, &wanted(toc), &mut |_, _, _| Ok(()), progress)
}

/// All chunks of `toc`, in the order in which [`extract`] takes them.
pub fn wanted(toc: &Toc) -> Vec<Wanted<'_>> {
    let entries = toc.entries().iter();
    let mut wanted: Vec<_> =
        entries.flat_map(|entry| toc.chunks_of(entry).iter().map(move |chunk| (entry, chunk))).collect();
    wanted.sort_by_key(|(_, chunk)| (chunk.blob_offset, chunk.inner_offset, chunk.size_bytes));
    wanted
}

/// Cuts [`wanted`] chunks into runs that may be extracted apart from each other: none ends within a member or frame. All
/// but the last have `run_bytes` of data or more.
pub fn runs<'w, 't>(wanted: &'w [Wanted<'t>], run_bytes: u64) -> impl Iterator<Item = &'w [Wanted<'t>]> {
    let mut rest = wanted;
    std::iter::from_fn(move || {
        let (mut bytes, mut last) = (0_u64, None);
        let end = rest.iter().position(|(_, chunk)| {
            let is_full = bytes >= run_bytes && last != Some(chunk.blob_offset);
            last = Some(chunk.blob_offset);
            bytes = bytes.saturating_add(chunk.size_bytes);
            is_full
        });
        let (run, more) = rest.split_at(end.unwrap_or(rest.len()));
        rest = more;
        (!run.is_empty()).then_some(run)
    })
}

/// Like [`verify`] for some of the [`wanted`] chunks, whose data is handed to `take`, in the order of the blob. What of it
/// was handed over before an error may be wrong.
pub fn extract(
    blob: &impl ReadAt,
    layout: &Layout,
    wanted: &[Wanted<'_>],
    take: Take<'_>,
    progress: &mut dyn FnMut(u64) -> Result<(), Error>,
) -> Result<Verified, Error> {
    let mut verified = Verified::default();
    // Each member or frame is decoded once, whatever the number of chunks in it.
    for group in wanted.chunk_by(|(_, a), (_, b)| a.blob_offset == b.blob_offset) {
        let Some((_, Chunk { blob_offset, .. })) = group.first() else { continue };
        let blob_end = group.iter().map(|(_, chunk)| chunk.blob_end).max().unwrap_or(*blob_offset);
        let mut data = Data::new(blob, layout, *blob_offset, blob_end)?;
        for same in group.chunk_by(|(_, a), (_, b)| is_same(a, b)) {
            let found = data.digest(same, take, progress)?;
            for (entry, chunk) in same {
                let expected = digest_of(chunk);
                if found != expected {
                    let found = found.clone();
                    return Err(refuse(entry, chunk, ChunkFault::Digest { expected, found }).into());
                }
                verified.chunks += 1;
                verified.bytes = verified.bytes.saturating_add(chunk.size_bytes);
            }
        }
    }
    Ok(verified)
}

/// Whether two files share one piece of data.
fn is_same(a: &Chunk, b: &Chunk) -> bool {
    (a.inner_offset, a.size_bytes) == (b.inner_offset, b.size_bytes)
}

fn digest_of(chunk: &Chunk) -> Digest {
    Digest::of_sha256(chunk.digest)
}

fn refuse(entry: &Entry, chunk: &Chunk, fault: ChunkFault) -> StargzError {
    let Chunk { offset, size_bytes, blob_offset, .. } = *chunk;
    StargzError::Chunk { path: entry.path.clone(), offset, size_bytes, blob_offset, fault }
}

/// Uncompressed data of a range of members or frames.
struct Data<'a, R> {
    blob: &'a R,
    at: u64,
    end: u64,
    decoder: Box<dyn Decoder>,
    input: Vec<u8>,
    taken: usize,
    output: Vec<u8>,
    /// Decoded bytes that were not used yet: a range of `output`, and how many came before them.
    from: usize,
    to: usize,
    position: u64,
}

/// Why there is no more data.
enum End {
    Io(StargzError),
    Data(CodecError),
    Over,
}

impl<'a, R: ReadAt> Data<'a, R> {
    fn new(blob: &'a R, layout: &Layout, at: u64, end: u64) -> Result<Self, Error> {
        let decoder: Box<dyn Decoder> = match layout.form.is_zstd() {
            true => Box::new(Zstd::new(WINDOW_BYTES)?),
            false => Box::new(Gzip::new()),
        };
        let (input, output) = (Vec::new(), vec![0; PIECE]);
        Ok(Self { blob, at, end, decoder, input, taken: 0, output, from: 0, to: 0, position: 0 })
    }

    /// Hands over the data of chunks, which all have the same and do not begin before the last one's end. Returns its
    /// digest.
    fn digest(
        &mut self,
        same: &[Wanted<'_>],
        take: Take<'_>,
        progress: &mut dyn FnMut(u64) -> Result<(), Error>,
    ) -> Result<Digest, Error> {
        let (entry, chunk) = same.first().expect("a group has a chunk");
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let Some(mut skip) = chunk.inner_offset.checked_sub(self.position) else {
            return Err(refuse(entry, chunk, ChunkFault::Overlap).into());
        };
        let mut left = chunk.size_bytes;
        while left > 0 {
            if self.from == self.to {
                progress(PIECE as u64)?;
                self.fill().map_err(|end| match end {
                    End::Io(error) => error,
                    End::Data(error) => refuse(entry, chunk, ChunkFault::Data(error)),
                    End::Over => refuse(entry, chunk, ChunkFault::Short { found: self.position }),
                })?;
            }
            let there = self.to - self.from;
            let step = usize::try_from(if skip > 0 { skip } else { left }).unwrap_or(usize::MAX).min(there);
            if skip > 0 {
                skip -= step as u64;
            } else {
                let bytes = self.output.get(self.from..self.from + step).unwrap_or_default();
                hasher.update(bytes);
                take(same, chunk.size_bytes - left, bytes)?;
                left -= step as u64;
            }
            self.from += step;
            self.position = self.position.saturating_add(step as u64);
        }
        Ok(hasher.finish())
    }

    /// Decodes at least one byte.
    fn fill(&mut self) -> Result<(), End> {
        (self.from, self.to) = (0, 0);
        while self.to == 0 {
            if self.taken == self.input.len() {
                let len = self.end.saturating_sub(self.at).min(PIECE as u64);
                if len == 0 {
                    return Err(End::Over);
                }
                self.input.resize(usize::try_from(len).unwrap_or(PIECE), 0);
                let offset = self.at;
                let read = self.blob.read_exact_at(offset, &mut self.input);
                read.map_err(|source| End::Io(StargzError::Io { offset, len, source }))?;
                self.at = self.at.saturating_add(len);
                self.taken = 0;
            }
            let mut rest = self.input.get(self.taken..).unwrap_or_default();
            let outcome = self.decoder.decode(&mut rest, &mut self.output);
            self.taken = self.input.len() - rest.len();
            self.to = outcome.map_err(End::Data)?;
        }
        Ok(())
    }
}
