//! Records of RAFS v6 metadata: an EROFS image with tables of its blobs and of their chunks.
//!
//! Source: nydus `rafs/src/metadata/layout/v6.rs`, `RafsV6SuperBlockExt`, `RafsV6Blob`; `rafs/src/metadata/layout/v5.rs`,
//! `RafsV5ChunkInfo`, which v6 has kept.

use super::context::{Chunk, ContextEntry};
use crate::format::record::put;

/// Extended superblock, right after the superblock of EROFS, little-endian, 256 bytes.
///
/// | offset | size | field              | unit and meaning                     |
/// |-------:|-----:|--------------------|--------------------------------------|
/// |   0x00 |    8 | flags              | see [`flags`]                        |
/// |   0x08 |    8 | blob_table_offset  | byte of the image                    |
/// |   0x10 |    4 | blob_table_size    | bytes                                |
/// |   0x14 |    4 | chunk_size         | bytes, a power of two                |
/// |   0x18 |    8 | chunk_table_offset | byte of the image                    |
/// |   0x20 |    8 | chunk_table_size   | bytes                                |
/// |   0x28 |    8 | prefetch_offset    | byte of the image; 0 without a table |
/// |   0x30 |    4 | prefetch_size      | bytes                                |
/// |   0x34 |  204 | reserved           | 0                                    |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedSuperblock {
    /// Bits of [`flags`].
    pub flags: u64,
    /// First byte and length of the table of blobs.
    pub blob_table: (u64, u32),
    /// Size of all chunks but the last of a file, in bytes.
    pub chunk_size: u32,
    /// First byte and length of the table of chunks.
    pub chunk_table: (u64, u64),
    /// First byte and length of the table of files to fetch early; zeros without one.
    pub prefetch_table: (u64, u32),
}

/// Flags of the extended superblock.
pub mod flags {
    /// Chunks are compressed with gzip.
    pub const GZIP: u64 = 0x40;
    /// Chunks have SHA-256 digests.
    pub const SHA256: u64 = 0x8;
    /// Owners are those in the inodes.
    pub const EXPLICIT_OWNER: u64 = 0x10;
    /// Inodes may have extended attributes. The images that readers were tried with all have it.
    pub const XATTRS: u64 = 0x20;
}

impl ExtendedSuperblock {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 256;

    /// Spells the record.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut record = [0; Self::LEN];
        put::<0x00, _, _>(&mut record, self.flags.to_le_bytes());
        put::<0x08, _, _>(&mut record, self.blob_table.0.to_le_bytes());
        put::<0x10, _, _>(&mut record, self.blob_table.1.to_le_bytes());
        put::<0x14, _, _>(&mut record, self.chunk_size.to_le_bytes());
        put::<0x18, _, _>(&mut record, self.chunk_table.0.to_le_bytes());
        put::<0x20, _, _>(&mut record, self.chunk_table.1.to_le_bytes());
        put::<0x28, _, _>(&mut record, self.prefetch_table.0.to_le_bytes());
        put::<0x30, _, _>(&mut record, self.prefetch_table.1.to_le_bytes());
        record
    }
}

/// Entry of the table of blobs, little-endian, 256 bytes.
///
/// | offset | size | field             | unit and meaning                                  |
/// |-------:|-----:|-------------------|---------------------------------------------------|
/// |   0x00 |   64 | blob_id           | digest of the blob in hexadecimal                 |
/// |   0x40 |    4 | blob_index        | place in the table                                |
/// |   0x44 |    4 | chunk_size        | that of the extended superblock                   |
/// |   0x48 |    4 | chunk_count       | entries of the blob's compression context         |
/// |   0x4C |    4 | compressor        | 2: gzip                                           |
/// |   0x50 |    4 | digester          | 1: SHA-256                                        |
/// |   0x54 |    4 | features          | 1: chunks are aligned                             |
/// |   0x58 |    8 | compressed_size   | end of the last chunk in the blob, in bytes       |
/// |   0x60 |    8 | uncompressed_size | size of the data device, in bytes                 |
/// |   0x68 |    8 |                   | 0                                                 |
/// |   0x70 |    8 | ci_offset         | 0: the context is a file of its own               |
/// |   0x78 |    8 | ci_compressed     | size of the table in the context, in bytes        |
/// |   0x80 |    8 | ci_uncompressed   | the same                                          |
/// |   0x88 |  120 | reserved          | 0                                                 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobEntry {
    /// Digest of the blob, 64 hexadecimal digits.
    pub id: [u8; 64],
    /// Place in the table.
    pub index: u32,
    /// Size of all chunks but the last of a file, in bytes.
    pub chunk_size: u32,
    /// Chunks of the blob.
    pub chunk_count: u32,
    /// End of the last chunk in the blob, in bytes.
    pub compressed_bytes: u64,
    /// Size of the data device, in bytes.
    pub uncompressed_bytes: u64,
}

impl BlobEntry {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 256;
    /// gzip as compressor, SHA-256 as digest, aligned chunks.
    const GZIP: u32 = 2;
    const SHA256: u32 = 1;

    /// Spells the record.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut record = [0; Self::LEN];
        let table_bytes = u64::from(self.chunk_count) * ContextEntry::LEN as u64;
        put::<0x00, _, _>(&mut record, self.id);
        put::<0x40, _, _>(&mut record, self.index.to_le_bytes());
        put::<0x44, _, _>(&mut record, self.chunk_size.to_le_bytes());
        put::<0x48, _, _>(&mut record, self.chunk_count.to_le_bytes());
        put::<0x4C, _, _>(&mut record, Self::GZIP.to_le_bytes());
        put::<0x50, _, _>(&mut record, Self::SHA256.to_le_bytes());
        put::<0x54, _, _>(&mut record, ALIGNED.to_le_bytes());
        put::<0x58, _, _>(&mut record, self.compressed_bytes.to_le_bytes());
        put::<0x60, _, _>(&mut record, self.uncompressed_bytes.to_le_bytes());
        put::<0x78, _, _>(&mut record, table_bytes.to_le_bytes());
        put::<0x80, _, _>(&mut record, table_bytes.to_le_bytes());
        record
    }
}

/// Feature of a blob: chunks begin at multiples of 4096 bytes of the data device.
const ALIGNED: u32 = 1;

/// Entry of the table of chunks, little-endian, 80 bytes.
///
/// | offset | size | field               | unit and meaning   |
/// |-------:|-----:|---------------------|--------------------|
/// |   0x00 |   32 | digest              | SHA-256            |
/// |   0x20 |    4 | blob_index          | place of the blob  |
/// |   0x24 |    4 | flags               | 1: compressed      |
/// |   0x28 |    4 | compressed_size     | bytes              |
/// |   0x2C |    4 | uncompressed_size   | bytes              |
/// |   0x30 |    8 | compressed_offset   | byte of the blob   |
/// |   0x38 |    8 | uncompressed_offset | byte of the device |
/// |   0x40 |    8 | file_offset         | byte of the file   |
/// |   0x48 |    4 | index               | place in the blob  |
/// |   0x4C |    4 | reserved            | 0                  |
pub struct ChunkEntry;

impl ChunkEntry {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 80;
    const COMPRESSED: u32 = 1;

    /// Spells the record of a chunk of the blob at place `blob`.
    pub fn encode(chunk: &Chunk, blob: u32) -> [u8; Self::LEN] {
        let mut record = [0; Self::LEN];
        put::<0x00, _, _>(&mut record, chunk.digest);
        put::<0x20, _, _>(&mut record, blob.to_le_bytes());
        put::<0x24, _, _>(&mut record, Self::COMPRESSED.to_le_bytes());
        put::<0x28, _, _>(&mut record, chunk.compressed_bytes.to_le_bytes());
        put::<0x2C, _, _>(&mut record, chunk.size_bytes.to_le_bytes());
        put::<0x30, _, _>(&mut record, chunk.blob_offset.to_le_bytes());
        put::<0x38, _, _>(&mut record, chunk.device_offset.to_le_bytes());
        put::<0x40, _, _>(&mut record, chunk.file_offset.to_le_bytes());
        put::<0x48, _, _>(&mut record, chunk.index.to_le_bytes());
        record
    }
}
