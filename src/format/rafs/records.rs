//! Records of RAFS v6 metadata: an EROFS image with tables of its blobs and of their chunks.
//!
//! Source: nydus `rafs/src/metadata/layout/v6.rs`, `RafsV6SuperBlockExt`, `RafsV6Blob`; `rafs/src/metadata/layout/v5.rs`,
//! `RafsV5ChunkInfo`, which v6 has kept.

use super::context::{ALIGNED, Chunk, ContextEntry};
use crate::format::record::{get, put};

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
    /// Chunks are not compressed.
    pub const PLAIN: u64 = 0x1;
    /// Chunks are compressed with LZ4.
    pub const LZ4: u64 = 0x2;
    /// Chunks have BLAKE3 digests.
    pub const BLAKE3: u64 = 0x4;
    /// Chunks are compressed with zstd.
    pub const ZSTD: u64 = 0x80;
    /// One of these says how chunks are compressed.
    pub const COMPRESSORS: u64 = PLAIN | LZ4 | GZIP | ZSTD;
    /// One of these says which digests chunks have.
    pub const DIGESTERS: u64 = BLAKE3 | SHA256;
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
    /// Flags that say how chunks are compressed and which digests they have.
    pub fn kind(&self) -> u64 {
        self.flags & (flags::COMPRESSORS | flags::DIGESTERS)
    }

    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 256;

    /// Reads the record.
    pub fn decode(record: &[u8; Self::LEN]) -> Self {
        Self {
            flags: u64::from_le_bytes(get::<0x00, _, _>(record)),
            blob_table: (
                u64::from_le_bytes(get::<0x08, _, _>(record)),
                u32::from_le_bytes(get::<0x10, _, _>(record)),
            ),
            chunk_size: u32::from_le_bytes(get::<0x14, _, _>(record)),
            chunk_table: (
                u64::from_le_bytes(get::<0x18, _, _>(record)),
                u64::from_le_bytes(get::<0x20, _, _>(record)),
            ),
            prefetch_table: (
                u64::from_le_bytes(get::<0x28, _, _>(record)),
                u32::from_le_bytes(get::<0x30, _, _>(record)),
            ),
        }
    }

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
/// |   0x4C |    4 | compressor        | 0 none, 1 LZ4, 2 gzip, 3 zstd                     |
/// |   0x50 |    4 | digester          | 0 BLAKE3, 1 SHA-256                               |
/// |   0x54 |    4 | features          | 1: chunks are aligned; 4: long context entries    |
/// |   0x58 |    8 | compressed_size   | end of the last chunk in the blob, in bytes       |
/// |   0x60 |    8 | uncompressed_size | size of the data device, in bytes                 |
/// |   0x68 |    4 | toc_size          | of a table in the blob, in bytes                  |
/// |   0x6C |    4 | ci_compressor     | of the context: 0, none                           |
/// |   0x70 |    8 | ci_offset         | 0: the context is a file of its own               |
/// |   0x78 |    8 | ci_compressed     | size of the table in the context, in bytes        |
/// |   0x80 |    8 | ci_uncompressed   | the same, decompressed                            |
/// |   0x88 |  120 | rest              | digests and ciphers of other kinds of blobs, or 0 |
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
    /// Compression of the chunks.
    pub compressor: u32,
    /// Digests of the chunks.
    pub digester: u32,
    /// Bits of the features.
    pub features: u32,
    /// End of the last chunk in the blob, in bytes.
    pub compressed_bytes: u64,
    /// Size of the data device, in bytes.
    pub uncompressed_bytes: u64,
    /// Size of a table of contents in the blob, and compression of the context.
    pub toc: [u32; 2],
    /// Offset, size and decompressed size of the context, in bytes.
    pub context: [u64; 3],
    /// Fields that only other kinds of blobs have.
    pub rest: [u8; 120],
}

impl BlobEntry {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 256;
    /// gzip as compressor, SHA-256 as digest.
    const GZIP: u32 = 2;
    const SHA256: u32 = 1;
    /// Feature of a blob: entries of its context have 24 bytes.
    pub const LONG_ENTRIES: u32 = 4;

    /// The only blob of a layer, with gzip members as chunks.
    pub fn of_gzip(id: [u8; 64], chunk_size: u32, chunk_count: u32) -> Self {
        let table_bytes = u64::from(chunk_count) * ContextEntry::LEN as u64;
        Self {
            id,
            index: 0,
            chunk_size,
            chunk_count,
            compressor: Self::GZIP,
            digester: Self::SHA256,
            features: ALIGNED,
            compressed_bytes: 0,
            uncompressed_bytes: 0,
            toc: [0; 2],
            context: [0, table_bytes, table_bytes],
            rest: [0; 120],
        }
    }

    /// Reads the record.
    pub fn decode(record: &[u8; Self::LEN]) -> Self {
        Self {
            id: get::<0x00, _, _>(record),
            index: u32::from_le_bytes(get::<0x40, _, _>(record)),
            chunk_size: u32::from_le_bytes(get::<0x44, _, _>(record)),
            chunk_count: u32::from_le_bytes(get::<0x48, _, _>(record)),
            compressor: u32::from_le_bytes(get::<0x4C, _, _>(record)),
            digester: u32::from_le_bytes(get::<0x50, _, _>(record)),
            features: u32::from_le_bytes(get::<0x54, _, _>(record)),
            compressed_bytes: u64::from_le_bytes(get::<0x58, _, _>(record)),
            uncompressed_bytes: u64::from_le_bytes(get::<0x60, _, _>(record)),
            toc: [
                u32::from_le_bytes(get::<0x68, _, _>(record)),
                u32::from_le_bytes(get::<0x6C, _, _>(record)),
            ],
            context: [
                u64::from_le_bytes(get::<0x70, _, _>(record)),
                u64::from_le_bytes(get::<0x78, _, _>(record)),
                u64::from_le_bytes(get::<0x80, _, _>(record)),
            ],
            rest: get::<0x88, _, _>(record),
        }
    }

    /// Spells the record.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let ([toc, compressor], [offset, size, plain]) = (self.toc, self.context);
        let mut record = [0; Self::LEN];
        put::<0x00, _, _>(&mut record, self.id);
        put::<0x40, _, _>(&mut record, self.index.to_le_bytes());
        put::<0x44, _, _>(&mut record, self.chunk_size.to_le_bytes());
        put::<0x48, _, _>(&mut record, self.chunk_count.to_le_bytes());
        put::<0x4C, _, _>(&mut record, self.compressor.to_le_bytes());
        put::<0x50, _, _>(&mut record, self.digester.to_le_bytes());
        put::<0x54, _, _>(&mut record, self.features.to_le_bytes());
        put::<0x58, _, _>(&mut record, self.compressed_bytes.to_le_bytes());
        put::<0x60, _, _>(&mut record, self.uncompressed_bytes.to_le_bytes());
        put::<0x68, _, _>(&mut record, toc.to_le_bytes());
        put::<0x6C, _, _>(&mut record, compressor.to_le_bytes());
        put::<0x70, _, _>(&mut record, offset.to_le_bytes());
        put::<0x78, _, _>(&mut record, size.to_le_bytes());
        put::<0x80, _, _>(&mut record, plain.to_le_bytes());
        put::<0x88, _, _>(&mut record, self.rest);
        record
    }
}

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkEntry {
    /// Chunk of a blob.
    pub chunk: Chunk,
    /// Place of the blob.
    pub blob: u32,
    /// Bits, of which 1 says that the chunk is compressed.
    pub flags: u32,
}

impl ChunkEntry {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 80;
    /// Flag of a compressed chunk.
    pub const COMPRESSED: u32 = 1;

    /// Reads the record.
    pub fn decode(record: &[u8; Self::LEN]) -> Self {
        let chunk = Chunk {
            digest: get::<0x00, _, _>(record),
            compressed_bytes: u32::from_le_bytes(get::<0x28, _, _>(record)),
            size_bytes: u32::from_le_bytes(get::<0x2C, _, _>(record)),
            blob_offset: u64::from_le_bytes(get::<0x30, _, _>(record)),
            device_offset: u64::from_le_bytes(get::<0x38, _, _>(record)),
            file_offset: u64::from_le_bytes(get::<0x40, _, _>(record)),
            index: u32::from_le_bytes(get::<0x48, _, _>(record)),
        };
        let blob = u32::from_le_bytes(get::<0x20, _, _>(record));
        Self { chunk, blob, flags: u32::from_le_bytes(get::<0x24, _, _>(record)) }
    }

    /// Spells the record.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let Self { chunk, blob, flags } = self;
        let mut record = [0; Self::LEN];
        put::<0x00, _, _>(&mut record, chunk.digest);
        put::<0x20, _, _>(&mut record, blob.to_le_bytes());
        put::<0x24, _, _>(&mut record, flags.to_le_bytes());
        put::<0x28, _, _>(&mut record, chunk.compressed_bytes.to_le_bytes());
        put::<0x2C, _, _>(&mut record, chunk.size_bytes.to_le_bytes());
        put::<0x30, _, _>(&mut record, chunk.blob_offset.to_le_bytes());
        put::<0x38, _, _>(&mut record, chunk.device_offset.to_le_bytes());
        put::<0x40, _, _>(&mut record, chunk.file_offset.to_le_bytes());
        put::<0x48, _, _>(&mut record, chunk.index.to_le_bytes());
        record
    }
}

/// Reference of an inode to a chunk, in the form of EROFS's index, little-endian, 8 bytes.
///
/// | offset | size | field      | unit and meaning                             |
/// |-------:|-----:|------------|----------------------------------------------|
/// |      0 |    2 | index_low  | bits 0 to 15 of the chunk's place            |
/// |      2 |    1 | device     | place of the blob, plus 1                    |
/// |      3 |    1 | index_high | bits 16 to 23 of the chunk's place           |
/// |      4 |    4 | block      | of the data device                           |
///
/// Kernels ignore the first field, and mask the device with the next power of two above the number of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRef {
    /// Place of the blob.
    pub blob: u8,
    /// Place of the chunk in it, below 2^24.
    pub index: u32,
    /// Block of the data device.
    pub block: u32,
}

impl ChunkRef {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 8;

    /// Reads the record. `None`: it names no device, so the chunk is not one of a blob.
    pub fn decode(record: &[u8; Self::LEN]) -> Option<Self> {
        let [low, middle, device, high, ..] = *record;
        let block = u32::from_le_bytes(get::<4, _, _>(record));
        let index = u32::from_le_bytes([low, middle, high, 0]);
        device.checked_sub(1).map(|blob| Self { blob, index, block })
    }

    /// Spells the record.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let [low, middle, high, _] = self.index.to_le_bytes();
        let mut record = [low, middle, self.blob.saturating_add(1), high, 0, 0, 0, 0];
        put::<4, _, _>(&mut record, self.block.to_le_bytes());
        record
    }
}
