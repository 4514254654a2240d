//! Compression context of a blob: where each chunk is in the blob and on the data device.
//!
//! The file is a table of entries, zeros up to a multiple of 4096 bytes, and a header of 4096 bytes at the end.
//!
//! Source: nydus `storage/src/meta/mod.rs`, `BlobCompressionContextHeader`; `storage/src/meta/chunk_info_v1.rs`.

use super::error::TableError;
use crate::format::{
    ReadAt,
    record::{get, put},
};

/// Unit of the table, and length of the header, in bytes.
const BLOCK: usize = 4096;

/// Feature of a blob: chunks begin at multiples of 4096 bytes of the data device.
pub const ALIGNED: u32 = 1;

/// Chunk of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// SHA-256 of its data.
    pub digest: [u8; 32],
    /// Bytes of the blob that suffice to decompress it.
    pub compressed_bytes: u32,
    /// Size in bytes.
    pub size_bytes: u32,
    /// First byte in the blob.
    pub blob_offset: u64,
    /// First byte on the data device, a multiple of 4096.
    pub device_offset: u64,
    /// First byte in the file that has it first.
    pub file_offset: u64,
    /// Place among the chunks of the blob.
    pub index: u32,
}

/// Entry of a chunk, two little-endian numbers, 16 bytes. Sizes are stored less one.
///
/// | number | bits   | field                                          |
/// |-------:|-------:|------------------------------------------------|
/// |      0 | 44–63  | size, low 20 bits                              |
/// |      0 | 12–43  | byte of the data device, in place              |
/// |      0 | 8–11   | size, high 4 bits                              |
/// |      1 | 44–63  | compressed size, low 20 bits                   |
/// |      1 | 40–43  | compressed size, high 4 bits                   |
/// |      1 | 0–39   | byte of the blob                               |
pub struct ContextEntry;

impl ContextEntry {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 16;
    /// Largest size of a chunk, compressed or not, in bytes.
    pub const MOST_BYTES: u64 = 1 << 24;
    /// First byte of the blob that no chunk can begin at.
    pub const BLOB_END: u64 = 1 << 40;
    /// First byte of the data device that no chunk can begin at.
    pub const DEVICE_END: u64 = 1 << 44;

    /// Spells the record. Sizes and offsets are below the limits here.
    pub fn encode(chunk: &Chunk) -> [u8; Self::LEN] {
        let [size, compressed] = [chunk.size_bytes, chunk.compressed_bytes]
            .map(|bytes| u64::from(bytes.wrapping_sub(1)) & 0xff_ffff);
        let first = (size & 0xf_ffff) << 44 | chunk.device_offset & 0xfff_ffff_f000 | (size >> 20) << 8;
        let second = (compressed & 0xf_ffff) << 44
            | (compressed >> 20) << 40
            | chunk.blob_offset & (Self::BLOB_END - 1);
        let mut record = [0; Self::LEN];
        put::<0, _, _>(&mut record, first.to_le_bytes());
        put::<8, _, _>(&mut record, second.to_le_bytes());
        record
    }
}

/// The header, little-endian, 4096 bytes.
///
/// | offset | size | field             | unit and meaning                     |
/// |-------:|-----:|-------------------|--------------------------------------|
/// |      0 |    4 | magic             | 0xb10bb10b                           |
/// |      4 |    4 | features          | as in the table of blobs: 1, aligned |
/// |      8 |    4 | compressor        | of the table: 0, none                |
/// |     12 |    4 | count             | entries                              |
/// |     16 |    8 | offset            | of the table: 0                      |
/// |     24 |    8 | compressed_size   | of the table, in bytes               |
/// |     32 |    8 | uncompressed_size | the same                             |
/// |     40 | 4052 | reserved          | 0                                    |
/// |   4092 |    4 | magic             | the same                             |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Features, as in the table of blobs.
    pub features: u32,
    /// Compression of the table; 0 for none.
    pub compressor: u32,
    /// Number of entries.
    pub count: u32,
}

impl Context {
    const MAGIC: u32 = 0xb10b_b10b;

    /// Reads the header of the context `file`. Errors: there is none, or the file has not the size that it needs.
    pub fn read(file: &impl ReadAt) -> Result<Self, TableError> {
        let Some(start) = file.size_bytes().checked_sub(BLOCK as u64) else {
            return Err(TableError::Context("it is shorter than its header"));
        };
        let mut record = [0; BLOCK];
        read(file, start, &mut record)?;
        let number = u32::from_le_bytes;
        if [number(get::<0, _, _>(&record)), number(get::<4092, _, _>(&record))] != [Self::MAGIC; 2] {
            return Err(TableError::Context("it does not end with a header"));
        }
        let header = Self {
            features: number(get::<4, _, _>(&record)),
            compressor: number(get::<8, _, _>(&record)),
            count: number(get::<12, _, _>(&record)),
        };
        let table = (u64::from(header.count) * ContextEntry::LEN as u64).next_multiple_of(BLOCK as u64);
        if header.compressor == 0 && table > start {
            return Err(TableError::Context("it is shorter than its table"));
        }
        Ok(header)
    }

    fn encode(self) -> [u8; BLOCK] {
        let table_bytes = u64::from(self.count) * ContextEntry::LEN as u64;
        let mut record = [0; BLOCK];
        put::<0, _, _>(&mut record, Self::MAGIC.to_le_bytes());
        put::<4, _, _>(&mut record, self.features.to_le_bytes());
        put::<8, _, _>(&mut record, self.compressor.to_le_bytes());
        put::<12, _, _>(&mut record, self.count.to_le_bytes());
        put::<24, _, _>(&mut record, table_bytes.to_le_bytes());
        put::<32, _, _>(&mut record, table_bytes.to_le_bytes());
        put::<4092, _, _>(&mut record, Self::MAGIC.to_le_bytes());
        record
    }
}

fn read(file: &impl ReadAt, offset: u64, into: &mut [u8]) -> Result<(), TableError> {
    let len = into.len() as u64;
    file.read_exact_at(offset, into).map_err(|source| TableError::Io { offset, len, source })
}

/// The entry of the chunk at place `index`, as it is stored.
pub fn entry(file: &impl ReadAt, index: u32) -> Result<[u8; ContextEntry::LEN], TableError> {
    let mut record = [0; ContextEntry::LEN];
    read(file, u64::from(index) * ContextEntry::LEN as u64, &mut record)?;
    Ok(record)
}

/// The context of `chunks`, which are `count`.
pub fn encode(chunks: &[Chunk], count: u32) -> Vec<u8> {
    let mut bytes: Vec<u8> = chunks.iter().flat_map(ContextEntry::encode).collect();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes.extend_from_slice(&Context { features: ALIGNED, compressor: 0, count }.encode());
    bytes
}
