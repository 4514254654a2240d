//! Compression context of a blob: where each chunk is in the blob and on the data device.
//!
//! The file is a table of entries, zeros up to a multiple of 4096 bytes, and a header of 4096 bytes at the end.
//!
//! Source: nydus `storage/src/meta/mod.rs`, `BlobCompressionContextHeader`; `storage/src/meta/chunk_info_v1.rs`.

use crate::format::record::put;

/// Unit of the table, and length of the header, in bytes.
const BLOCK: usize = 4096;

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
        let [size, compressed] = [chunk.size_bytes, chunk.compressed_bytes].map(|bytes| u64::from(bytes) - 1);
        let first = (size & 0xf_ffff) << 44 | chunk.device_offset | (size >> 20) << 8;
        let second = (compressed & 0xf_ffff) << 44 | (compressed >> 20) << 40 | chunk.blob_offset;
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
fn header(count: u32) -> [u8; BLOCK] {
    const MAGIC: [u8; 4] = 0xb10b_b10b_u32.to_le_bytes();
    let table_bytes = u64::from(count) * ContextEntry::LEN as u64;
    let mut record = [0; BLOCK];
    put::<0, _, _>(&mut record, MAGIC);
    put::<4, _, _>(&mut record, 1_u32.to_le_bytes());
    put::<12, _, _>(&mut record, count.to_le_bytes());
    put::<24, _, _>(&mut record, table_bytes.to_le_bytes());
    put::<32, _, _>(&mut record, table_bytes.to_le_bytes());
    put::<4092, _, _>(&mut record, MAGIC);
    record
}

/// The context of `chunks`, which are `count`.
pub fn encode(chunks: &[Chunk], count: u32) -> Vec<u8> {
    let mut bytes: Vec<u8> = chunks.iter().flat_map(ContextEntry::encode).collect();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes.extend_from_slice(&header(count));
    bytes
}
