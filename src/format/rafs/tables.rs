//! The tables of a metadata image, read and checked.
//!
//! Source: nydus `rafs/src/metadata/layout/v6.rs`, `RafsV6SuperBlock::validate`, `RafsV6SuperBlockExt::validate`,
//! `RafsV6Blob::validate`; `docs/formats/rafs.md`, "Checking".

use super::{
    context::{self, ALIGNED, Context},
    error::TableError,
    records::{BlobEntry, ChunkEntry, ChunkRef, ExtendedSuperblock, flags},
};
use crate::format::{
    ReadAt,
    erofs::{
        BlockBits,
        device::DeviceSlot,
        inode::Data,
        reader::{Image, Node},
        superblock::{Superblock, compat, incompat},
    },
};

/// Unit of the image, in bytes.
const BITS: BlockBits = BlockBits::DEFAULT;
/// Byte of the extended superblock.
const EXTENDED: u64 = Superblock::OFFSET + Superblock::LEN as u64;
/// Byte of the first device slot.
const SLOTS: u64 = EXTENDED + ExtendedSuperblock::LEN as u64;
/// First number that the place of a chunk cannot be.
const CHUNKS: u32 = 1 << 24;

/// The tables of an image.
#[derive(Debug)]
pub struct Tables {
    /// Extended superblock.
    pub extended: ExtendedSuperblock,
    /// The blobs, and the sizes of their devices in blocks.
    pub blobs: Vec<(BlobEntry, u64)>,
    /// Sorted by blob and place.
    chunks: Vec<ChunkEntry>,
}

/// Whether an image says that it is RAFS metadata.
pub fn is_rafs<R: ReadAt>(image: &Image<R>) -> bool {
    image.superblock().has_compat(compat::RAFS)
}

impl Tables {
    /// Reads and checks the tables of `image`, in at most `max_bytes` of memory.
    ///
    /// Errors: the first rule that they break.
    pub fn read<R: ReadAt>(image: &Image<R>, max_bytes: u64) -> Result<Self, TableError> {
        check_superblock(image)?;
        let mut record = [0; ExtendedSuperblock::LEN];
        image.read_at(EXTENDED, &mut record, "extended superblock")?;
        let extended = ExtendedSuperblock::decode(&record);
        check_extended(image, &extended)?;
        let (table, len) = extended.blob_table;
        let mut blobs = Vec::new();
        for (index, slot) in (0_u32..).zip(image.slots()) {
            let offset = table + u64::from(index) * BlobEntry::LEN as u64;
            let mut record = [0; BlobEntry::LEN];
            image.read_at(offset, &mut record, "table of blobs")?;
            let blob = BlobEntry::decode(&record);
            check_blob(&blob, index, slot, &extended)?;
            blobs.push((blob, slot.blocks));
        }
        if u64::from(len) != (blobs.len() * BlobEntry::LEN) as u64 {
            let fault = "it has not one entry of 256 bytes for each device";
            return Err(TableError::Table { what: "table of blobs", offset: table, len: len.into(), fault });
        }
        let mut tables = Self { extended, blobs, chunks: Vec::new() };
        tables.read_chunks(image, max_bytes)?;
        Ok(tables)
    }

    fn read_chunks<R: ReadAt>(&mut self, image: &Image<R>, limit: u64) -> Result<(), TableError> {
        const ENTRY: u64 = ChunkEntry::LEN as u64;
        let (offset, len) = self.extended.chunk_table;
        if len % ENTRY != 0 {
            let fault = "its entries have 80 bytes";
            return Err(TableError::Table { what: "table of chunks", offset, len, fault });
        }
        if (len / ENTRY).saturating_mul(size_of::<ChunkEntry>() as u64) > limit {
            return Err(TableError::Memory { limit });
        }
        // The table is in the image, so it is as long as that at most.
        self.chunks.reserve_exact(usize::try_from(len / ENTRY).unwrap_or(0));
        for at in (offset..offset + len).step_by(ChunkEntry::LEN) {
            let mut record = [0; ChunkEntry::LEN];
            image.read_at(at, &mut record, "table of chunks")?;
            let entry = ChunkEntry::decode(&record);
            self.check_chunk(&entry)?;
            self.chunks.push(entry);
        }
        let key = |entry: &ChunkEntry| (entry.blob, entry.chunk.index);
        self.chunks.sort_by_key(key);
        for pair in self.chunks.windows(2) {
            if let [a, b] = pair
                && key(a) == key(b)
            {
                let (blob, index) = key(a);
                return Err(TableError::Chunk { blob, index, fault: "it comes twice" });
            }
        }
        Ok(())
    }

    fn check_chunk(&self, entry: &ChunkEntry) -> Result<(), TableError> {
        let (ChunkEntry { chunk, blob, flags }, extended) = (entry, &self.extended);
        let refuse = |fault| Err(TableError::Chunk { blob: *blob, index: chunk.index, fault });
        let found = usize::try_from(*blob).ok().and_then(|at| self.blobs.get(at));
        let Some((of, blocks)) = found else { return refuse("there is no such blob") };
        let end = BITS.block_of(chunk.device_offset).saturating_add(BITS.blocks_for(chunk.size_bytes.into()));
        if chunk.index >= of.chunk_count {
            return refuse("the blob has fewer chunks");
        }
        if chunk.size_bytes == 0 || chunk.size_bytes > extended.chunk_size {
            return refuse("it is empty, or larger than chunks are");
        }
        if of.features & ALIGNED != 0 && BITS.within(chunk.device_offset) != 0 {
            return refuse("it does not begin at a block of the device");
        }
        if end > *blocks {
            return refuse("it ends behind the device");
        }
        if flags & ChunkEntry::COMPRESSED != 0 && chunk.compressed_bytes == chunk.size_bytes {
            return refuse("it is compressed, but has the size of its data: readers take it as it is");
        }
        Ok(())
    }

    /// All chunks, sorted by blob and place.
    pub fn chunks(&self) -> &[ChunkEntry] {
        &self.chunks
    }

    /// The chunk that a file refers to.
    pub fn chunk(&self, reference: ChunkRef) -> Option<&ChunkEntry> {
        let key = (u32::from(reference.blob), reference.index);
        let at = self.chunks.binary_search_by_key(&key, |entry| (entry.blob, entry.chunk.index)).ok()?;
        self.chunks.get(at)
    }

    /// The chunks of the regular file `node`, which are in the table and cover it; none of an empty file.
    pub fn chunks_of<R: ReadAt>(&self, image: &Image<R>, node: &Node) -> Result<Vec<ChunkRef>, TableError> {
        let refuse = |fault| TableError::File { nid: node.nid.0, fault };
        let size_bytes = node.inode.size_bytes;
        if size_bytes == 0 {
            return Ok(Vec::new());
        }
        let chunk_size = u64::from(self.extended.chunk_size);
        let format = match node.inode.data {
            Data::Chunks(format) if format.indexes && !format.wide => format,
            _ => return Err(refuse("its data is not in chunks of a blob")),
        };
        let together = BITS.size() << format.bits();
        if together < chunk_size {
            return Err(refuse("its chunks are smaller than those of the image"));
        }
        let (start, _) = image.chunk_array(node, format)?;
        let count = size_bytes.div_ceil(chunk_size);
        let end = start.saturating_add(count.saturating_mul(ChunkRef::LEN as u64));
        if end > image.size_bytes() {
            return Err(refuse("its chunks are behind the image"));
        }
        let mut chunks: Vec<ChunkRef> = Vec::new();
        for (number, at) in (0_u64..).zip((start..end).step_by(ChunkRef::LEN)) {
            let mut record = [0; ChunkRef::LEN];
            image.read_at(at, &mut record, "chunk index")?;
            let found = ChunkRef::decode(&record).and_then(|found| Some((found, self.chunk(found)?)));
            let (reference, entry) =
                found.ok_or_else(|| refuse("it has a chunk that is not in the table"))?;
            if BITS.block_of(entry.chunk.device_offset) != u64::from(reference.block) {
                return Err(refuse("a chunk is at another block than in the table"));
            }
            if u64::from(entry.chunk.size_bytes) != (size_bytes - number * chunk_size).min(chunk_size) {
                return Err(refuse("a chunk has another size than its piece of the file"));
            }
            // Of chunks that follow each other on the device, other builders make one for the kernel. It reads only the
            // first of them then.
            let follows = chunks.last().is_none_or(|last| {
                last.blob == reference.blob
                    && u64::from(last.block) + BITS.block_of(chunk_size) == u64::from(reference.block)
            });
            if !follows && number * chunk_size % together != 0 {
                return Err(refuse("a chunk does not follow the one before it, as the inode says"));
            }
            chunks.push(reference);
        }
        Ok(chunks)
    }

    /// Compares the compression context `file` with the chunks of the blob at place `blob`.
    pub fn compare_context(&self, blob: u32, file: &impl ReadAt) -> Result<(), TableError> {
        let found = usize::try_from(blob).ok().and_then(|at| self.blobs.get(at));
        let Some((entry, _)) = found else { return Err(TableError::Context("there is no such blob")) };
        let context = Context::read(file)?;
        if context.count != entry.chunk_count {
            return Err(TableError::Context("the number of its entries is not that of the blob's chunks"));
        }
        if context.features != entry.features {
            return Err(TableError::Context("its features are not those of the blob"));
        }
        if context.compressor != 0 || entry.features & BlobEntry::LONG_ENTRIES != 0 {
            // The entries are in a form that is not read here.
            return Ok(());
        }
        for known in self.chunks.iter().filter(|known| known.blob == blob) {
            if context::entry(file, known.chunk.index)? != context::ContextEntry::encode(&known.chunk) {
                let (blob, index) = (known.blob, known.chunk.index);
                return Err(TableError::Chunk {
                    blob,
                    index,
                    fault: "the compression context has another one",
                });
            }
        }
        Ok(())
    }
}

fn require(what: &'static str, found: u64, want: u64) -> Result<(), TableError> {
    match found == want {
        true => Ok(()),
        false => Err(TableError::Field { what, found, want: want.to_string() }),
    }
}

/// The rules of readers of RAFS for the superblock of EROFS.
fn check_superblock<R: ReadAt>(image: &Image<R>) -> Result<(), TableError> {
    if !is_rafs(image) {
        return Err(TableError::Form);
    }
    let superblock = image.superblock();
    require("size of a block", superblock.block_bits.size(), BITS.size())?;
    require("checksum", superblock.checksum.into(), 0)?;
    require("sb_extslots", superblock.extension_slots.into(), 0)?;
    require("xattr_blkaddr", superblock.xattr_block.into(), 0)?;
    let want = incompat::CHUNKED_FILE | incompat::DEVICE_TABLE;
    require("feature_incompat", superblock.feature_incompat.into(), want.into())?;
    require("devt_slotoff", superblock.device_slot_offset.into(), SLOTS / DeviceSlot::LEN as u64)?;
    require("size of the image modulo 4096", image.size_bytes() % BITS.size(), 0)
}

fn check_extended<R: ReadAt>(image: &Image<R>, extended: &ExtendedSuperblock) -> Result<(), TableError> {
    let one_of = |what, mask: u64| match (extended.flags & mask).count_ones() {
        1 => Ok(()),
        _ => {
            let want = format!("one of the bits {mask:#x}");
            Err(TableError::Field { what, found: extended.flags & mask, want })
        }
    };
    one_of("flags of compression", flags::COMPRESSORS)?;
    one_of("flags of digests", flags::DIGESTERS)?;
    let chunk_size = extended.chunk_size;
    if !chunk_size.is_power_of_two() || !(4096..=16 << 20).contains(&chunk_size) {
        let want = "a power of two from 4096 to 16777216".to_owned();
        return Err(TableError::Field { what: "chunk_size", found: chunk_size.into(), want });
    }
    let head = SLOTS + (image.slots().len() * DeviceSlot::LEN) as u64;
    let tables = [
        ("table of blobs", extended.blob_table.0, u64::from(extended.blob_table.1), BITS.size()),
        ("table of chunks", extended.chunk_table.0, extended.chunk_table.1, BITS.size()),
        ("table to prefetch", extended.prefetch_table.0, extended.prefetch_table.1.into(), 4),
    ];
    let mut taken = vec![(0, head)];
    for (what, offset, len, unit) in tables.into_iter().filter(|(_, _, len, _)| *len > 0) {
        let refuse = |fault| Err(TableError::Table { what, offset, len, fault });
        let Some(end) = offset.checked_add(len).filter(|end| *end <= image.size_bytes()) else {
            return refuse("it ends behind the image");
        };
        if offset % unit != 0 {
            return refuse("it does not begin where such tables do");
        }
        if taken.iter().any(|(start, to)| offset < *to && *start < end) {
            return refuse("it lies over another part");
        }
        taken.push((offset, end));
    }
    Ok(())
}

fn check_blob(
    blob: &BlobEntry,
    index: u32,
    slot: &DeviceSlot,
    extended: &ExtendedSuperblock,
) -> Result<(), TableError> {
    let refuse = |fault| Err(TableError::Blob { index, fault });
    if blob.index != index {
        return refuse("it has the number of another one");
    }
    if blob.id != slot.tag {
        return refuse("its device has another id");
    }
    if !is_digest(&blob.id) {
        return refuse("its id is not 64 hexadecimal digits in lower case");
    }
    if blob.chunk_size != extended.chunk_size {
        return refuse("its chunks have another size than those of the image");
    }
    if blob.chunk_count > CHUNKS {
        return refuse("it has more than 2^24 chunks");
    }
    if slot.blocks == 0 || BITS.blocks_for(blob.uncompressed_bytes) > slot.blocks {
        return refuse("its device is smaller than its data, or has no blocks");
    }
    Ok(())
}

/// Whether an id is a digest in hexadecimal.
pub fn is_digest(id: &[u8]) -> bool {
    id.len() == 64 && id.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The hexadecimal text of an id that was checked.
pub fn id_text(id: &[u8; 64]) -> String {
    String::from_utf8_lossy(id).into_owned()
}
