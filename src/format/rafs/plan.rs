//! The chunks of a layer: which there are, and where each is on the data device.
//!
//! Equal chunks are stored once: readers of RAFS key their table by digest and blob, and fail when equal chunks have
//! different numbers.
//!
//! Source: `docs/formats/rafs.md`, "Chunks"; nydus `builder/src/stargz.rs`.

use std::collections::HashMap;

use super::{
    context::{Chunk, ContextEntry},
    error::RafsError,
};
use crate::format::stargz::{self, Toc};

/// Size of chunks where no file has several, in bytes: that of the writers of eStargz.
const USUAL_CHUNK: u64 = 4 << 20;
/// Smallest and largest size of chunks, in bytes.
const CHUNK_BYTES: std::ops::RangeInclusive<u64> = 4096..=16 << 20;
/// Unit of places on the data device, in bytes.
const BLOCK: u64 = 4096;
/// Most bytes of a gzip member besides the deflated data, and of a deflated block besides what it stores: head with a
/// time, trailer, and room for the end of the stream.
const MEMBER_BYTES: u64 = 10 + 8 + 5 + 128;
/// Bytes of data in a stored block of deflate, at least, and the bytes of its head.
const STORED: (u64, u64) = (16_384, 5);

/// All distinct chunks of a layer.
#[derive(Debug, Default)]
pub struct Plan {
    /// Size of all chunks but the last of a file, in bytes.
    pub chunk_bytes: u64,
    /// The chunks in the order of their numbers.
    pub chunks: Vec<Chunk>,
    numbers: HashMap<([u8; 32], u64), usize>,
    /// Size of the data device in bytes.
    pub device_bytes: u64,
}

impl Plan {
    /// Numbers the chunks of all files in the order of the table.
    pub fn of(toc: &Toc) -> Result<Self, RafsError> {
        let mut plan = Self { chunk_bytes: chunk_bytes(toc), ..Self::default() };
        for entry in toc.entries().iter().filter(|entry| !toc.is_of_the_format(entry)) {
            for (number, chunk) in (0_u64..).zip(toc.chunks_of(entry)) {
                plan.add(&entry.path, number, chunk, toc.chunks_of(entry).len())?;
            }
        }
        match plan.chunks.len() {
            count if count >= 1 << 24 => Err(RafsError::Chunks { count }),
            _ => Ok(plan),
        }
    }

    fn add(
        &mut self,
        path: &[u8],
        number: u64,
        chunk: &stargz::Chunk,
        count: usize,
    ) -> Result<(), RafsError> {
        let want = self.chunk_bytes;
        let is_last = number + 1 == count as u64;
        let fits = chunk.offset == number.saturating_mul(want)
            && (chunk.size_bytes == want || is_last && chunk.size_bytes < want)
            && want.is_power_of_two()
            && CHUNK_BYTES.contains(&want);
        if !fits {
            let (offset, found) = (chunk.offset, chunk.size_bytes);
            return Err(RafsError::ChunkSize { path: path.to_vec(), offset, found, want });
        }
        if chunk.inner_offset > 0 {
            return Err(RafsError::Inner { path: path.to_vec(), inner_offset: chunk.inner_offset });
        }
        if self.find(chunk).is_some() {
            return Ok(());
        }
        let below = |what, found: u64, limit| match found < limit {
            true => Ok(found),
            false => Err(RafsError::Range { path: path.to_vec(), what, found, limit }),
        };
        // The next member begins there at the latest. What follows the data in its own member is not wanted.
        let extent = chunk.blob_end.saturating_sub(chunk.blob_offset);
        let bound = chunk.size_bytes + MEMBER_BYTES + chunk.size_bytes / STORED.0 * STORED.1;
        let mut compressed = extent.min(bound);
        // A chunk of equal sizes would be taken for one that is not compressed.
        compressed += u64::from(compressed == chunk.size_bytes);
        let narrow = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        let compressed = below("compressed size", compressed, ContextEntry::MOST_BYTES)?;
        let index = self.chunks.len();
        self.chunks.push(Chunk {
            digest: chunk.digest,
            compressed_bytes: narrow(compressed),
            size_bytes: narrow(chunk.size_bytes),
            blob_offset: below("byte of the blob", chunk.blob_offset, ContextEntry::BLOB_END)?,
            device_offset: below("byte of the data device", self.device_bytes, ContextEntry::DEVICE_END)?,
            file_offset: chunk.offset,
            index: narrow(index as u64),
        });
        self.numbers.insert((chunk.digest, chunk.size_bytes), index);
        self.device_bytes += chunk.size_bytes.next_multiple_of(BLOCK);
        Ok(())
    }

    /// The chunk with the data of `chunk`.
    pub fn find(&self, chunk: &stargz::Chunk) -> Option<&Chunk> {
        self.chunks.get(*self.numbers.get(&(chunk.digest, chunk.size_bytes))?)
    }

    /// End of the last chunk in the blob, in bytes.
    pub fn blob_end(&self) -> u64 {
        let ends = self.chunks.iter().map(|chunk| chunk.blob_offset + u64::from(chunk.compressed_bytes));
        ends.max().unwrap_or(0)
    }
}

/// Size of the chunks of a layer: that of the first chunk of any file that has several.
fn chunk_bytes(toc: &Toc) -> u64 {
    let several = toc.entries().iter().map(|entry| toc.chunks_of(entry)).find(|chunks| chunks.len() > 1);
    several.and_then(|chunks| chunks.first()).map_or(USUAL_CHUNK, |chunk| chunk.size_bytes)
}
