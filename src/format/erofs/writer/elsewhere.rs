//! Files whose data is elsewhere: in the archive that an image is an index of, or in another file that parts of a
//! device are mapped to.
//!
//! Both rest on one property of tar: every file's data starts on a sector of 512 bytes.
//!
//! Source: `docs/formats/erofs.md`, "Data that is elsewhere"; Linux `fs/erofs/erofs_fs.h`, `struct erofs_deviceslot`.

use super::{
    Open, Options, Place, Role, Source, Stored, Writer, WriterError, attributes::Shared, stream::Stream,
};
use crate::{
    format::{
        Remote, Sink,
        erofs::{
            Block, BlockBits, SLOT_LEN,
            chunk::{ChunkFormat, ChunkIndex},
            device::DeviceSlot,
            inode::{Data, Inode},
            superblock::{Superblock, incompat},
            xattr::UNIT,
        },
    },
    tree::{Body, Entry, FileId, FileType},
};

/// Chunks of a file, one after the other.
pub type Records<'a> = &'a mut dyn Iterator<Item = Result<ChunkIndex, WriterError>>;

/// Unit in which archives are laid out and devices are mapped, in bytes.
const SECTOR: u64 = 512;
/// Room on a device for the shared attributes of one layer, in bytes. What is not used is never written.
const SHARED_AREA: u64 = 1 << 20;
/// Byte offset of the first block in an extended inode.
const START_AT: u64 = 0x10;
/// Number of the archive among the devices of an index.
const ARCHIVE: u16 = 1;

impl<S: Sink> Writer<S> {
    /// Starts an index of an archive: a layer for overlayfs in blocks of 512 bytes whose file data is in the archive,
    /// the image's only extra device.
    pub fn index(sink: S, options: Options) -> Self {
        let image = super::WriteOptions { block_bits: BlockBits::SECTOR, ..options.image };
        let archive = DeviceSlot { tag: [0; 64], blocks: 0, unified_start: 0 };
        Self::for_role(sink, Options { image, ..options }, Role::Index, vec![archive])
    }

    /// Starts the file system of a device: of an empty one, or of one that has the file system `below` already, whose
    /// tree and the layer's make the new tree. Whiteouts and opaque markers leave no trace in it.
    ///
    /// Errors: [`WriterError::Below`] when the file system below has another block size, extra devices, or wide
    /// addresses.
    pub fn device(sink: S, options: Options, below: Option<&Superblock>) -> Result<Self, WriterError> {
        let bits = options.image.block_bits;
        let mut writer = Self::for_role(sink, options, Role::Device, Vec::new());
        if let Some(below) = below {
            let refused = |what| Err(WriterError::Below { what });
            if below.block_bits != bits {
                return refused("blocks of another size");
            }
            if below.feature_incompat & (incompat::DEVICE_TABLE | incompat::WIDE | incompat::METABOX) != 0 {
                return refused("extra devices, 48-bit addresses or a metabox");
            }
            writer.stream = Stream::new(below.blocks, Role::Device.gap(bits));
            // Inodes are less than this many in a block, so no number is used twice.
            let inos = below.blocks.wrapping_mul(bits.size() / SLOT_LEN);
            writer.next_ino = u32::try_from(inos & u64::from(u32::MAX)).map_err(WriterError::internal)?;
            writer.below = Some(*below);
            writer.tree.allow_links_below();
        }
        // Ids of shared attributes count from one block, which is that of the first layer.
        let area = writer.stream.allocate(bits.blocks_for(SHARED_AREA))?;
        let base = below.map_or(area, |below| below.xattr_block);
        let first_id = area.checked_sub(base).and_then(|blocks| {
            let first = (u64::from(blocks) << bits.get()) / UNIT;
            u32::try_from(first).ok().filter(|first| u64::from(u32::MAX - first) > SHARED_AREA / UNIT)
        });
        let room = if first_id.is_some() { SHARED_AREA } else { 0 };
        writer.shared =
            Shared::reserved(first_id.unwrap_or(0), usize::try_from(room).map_err(WriterError::internal)?);
        writer.reserved_area = Some(area);
        Ok(writer)
    }

    /// Like [`Writer::entry`] for a file whose data the archive of an index has from byte `data_start` on. The data
    /// may be passed all the same; that of sparse files must be, because the image stores it.
    pub fn entry_in_archive(&mut self, entry: &Entry, data_start: u64) -> Result<(), WriterError> {
        self.place(entry, Source::Archive(data_start))
    }

    /// Length of the archive of an index, which has to be known before [`Writer::finish`].
    pub fn set_archive_bytes(&mut self, bytes: u64) {
        let blocks = self.bits().blocks_for(bytes);
        if let (Role::Index, [archive]) = (self.role, self.devices.as_mut_slice()) {
            archive.blocks = blocks;
        }
    }

    /// Writes the inode of a file in the archive: one chunk as large as the file, or a few of 1 TiB.
    pub(super) fn in_archive(
        &mut self,
        id: FileId,
        entry: &Entry,
        size_bytes: u64,
        data_start: u64,
    ) -> Result<(), WriterError> {
        let bits = self.bits();
        let (first, blocks) = (bits.block_of(data_start), bits.blocks_for(size_bytes));
        if first.saturating_add(blocks) >= u64::from(u32::MAX) {
            return Err(WriterError::ImageBlocks { blocks: first.saturating_add(blocks) });
        }
        let chunk_bits = chunk_bits_for(blocks);
        let starts = (first..first + blocks).step_by(1 << chunk_bits);
        let mut records =
            starts.map(|start| Ok(ChunkIndex { device_id: ARCHIVE, start: Some(Block(start)) }));
        self.indexed(id, entry, size_bytes, chunk_bits, &mut records)
    }

    /// Writes the inode of a file whose chunks are at `records`.
    pub(super) fn indexed(
        &mut self,
        id: FileId,
        entry: &Entry,
        size_bytes: u64,
        chunk_bits: u8,
        records: Records<'_>,
    ) -> Result<(), WriterError> {
        // Indexes that are written at a time: 64 KiB.
        const PIECE: usize = (64 << 10) / ChunkIndex::LEN;
        let bits = self.bits();
        let format = ChunkFormat::new(chunk_bits, true).ok_or(WriterError::Order("a chunk is too large"))?;
        let xattr_icount = self.begin_record(&entry.xattrs)?;
        let ino = self.take_ino();
        self.set_inode(&Inode {
            xattr_icount,
            file_type: FileType::Regular,
            attributes: entry.attributes,
            nlink: 1,
            size_bytes,
            ino,
            dot_omitted: false,
            data: Data::Chunks(format),
        });
        self.head.resize(self.head.len().next_multiple_of(ChunkIndex::LEN), 0);
        let chunks = bits.blocks_for(size_bytes).div_ceil(1 << chunk_bits);
        let record_len = chunks.checked_mul(ChunkIndex::LEN as u64);
        let record_len = record_len.and_then(|len| len.checked_add(self.head.len() as u64));
        let record_len = record_len.ok_or(WriterError::Order("a file has too many chunks"))?;
        let mut left = usize::try_from(chunks).map_err(WriterError::internal)?;
        let mut add = |head: &mut Vec<u8>, count: usize| {
            for _ in 0..count.min(left) {
                let record = records.next().ok_or(WriterError::Order("a file has too few chunks"))?;
                head.extend_from_slice(&record?.encode(false));
                left -= 1;
            }
            Ok::<_, WriterError>(())
        };
        let slot = if record_len <= bits.size() {
            add(&mut self.head, usize::MAX)?;
            self.add_record()?
        } else {
            let block = self.stream.allocate(bits.blocks_for(record_len))?;
            let mut offset = u64::from(block) << bits.get();
            while !self.head.is_empty() {
                self.stream.write(&mut self.sink, offset, &self.head)?;
                offset += self.head.len() as u64;
                self.head.clear();
                add(&mut self.head, PIECE)?;
            }
            self.metadata.add_placed(block)?
        };
        self.chunked.insert(slot);
        let record_len = u32::try_from(record_len).map_err(WriterError::internal)?;
        self.tree.set_payload(id, Place { slot, record_len, ..Place::default() });
        self.open = Open::Elsewhere;
        Ok(())
    }

    /// Places the devices on the unified line, one behind the other after the `blocks` of the image, and with them the
    /// files that begin there.
    pub(super) fn place_devices(&mut self, blocks: u64) -> Result<(), WriterError> {
        let mut next = blocks;
        for device in &mut self.devices {
            device.unified_start = next;
            next = next.saturating_add(device.blocks);
        }
        if next > u64::from(u32::MAX) {
            return Err(WriterError::ImageBlocks { blocks: next });
        }
        let line = u32::try_from(blocks).map_err(WriterError::internal)?;
        let Self { metadata, stream, sink, on_line, .. } = self;
        let mut files: Vec<_> = std::mem::take(on_line).into_iter().collect();
        // In the order of the disk.
        files.sort_unstable_by_key(|(slot, _)| slot.0);
        for (slot, block) in files {
            let start = line.checked_add(block).ok_or(WriterError::ImageBlocks { blocks: next })?;
            metadata.patch(stream, sink, slot, START_AT, &start.to_le_bytes())?;
        }
        Ok(())
    }
}

/// log2 of the blocks in a chunk that holds `blocks` blocks, or in the largest there is.
pub(super) fn chunk_bits_for(blocks: u64) -> u8 {
    (0..31).find(|log| 1 << log >= blocks).unwrap_or(31)
}

impl<S: Remote> Writer<S> {
    /// Like [`Writer::entry`] for a file whose data the target of the device has from byte `data_start` on: its blocks
    /// are mapped there, and nothing is stored. The data may be passed all the same; it must be for a sparse file with a
    /// stretch that ends within a sector, because the image stores such a file.
    pub fn entry_mapped(&mut self, entry: &Entry, data_start: u64) -> Result<(), WriterError> {
        if !is_mappable(&entry.body, data_start) {
            return self.place(entry, Source::Follows);
        }
        self.place(entry, Source::Reserved)?;
        let file = match std::mem::replace(&mut self.open, Open::Elsewhere) {
            Open::File(file) => file,
            open => {
                self.open = open;
                return Ok(());
            }
        };
        let blocks = u64::from(file.place.data_start) << self.bits().get();
        for (extent, target) in entry.body.stored(data_start) {
            let mut done = 0;
            while done < extent.len {
                let offset = extent.offset + done;
                let (place, together) = match &file.stored {
                    Stored::Flat { .. } => (offset, u64::MAX),
                    Stored::Chunks(chunks) => {
                        chunks.locate(offset).ok_or(WriterError::Order("data lies in a hole"))?
                    }
                };
                let len = (extent.len - done).min(together);
                // The last sector ends with the padding of the archive, which is behind the end of the file.
                self.sink.map(blocks + place, len.next_multiple_of(SECTOR), target + done)?;
                done += len;
            }
        }
        self.end_file(file)
    }
}

/// Whether a file can be mapped sector by sector to an archive that has its data from byte `data_start` on. Sparse files
/// cannot where a stretch of data ends within a sector: the archive goes on with the next stretch there.
pub fn is_mappable(body: &Body, data_start: u64) -> bool {
    let Body::Regular { size_bytes, .. } = body else { return false };
    body.stored(data_start).all(|(extent, target)| {
        let ends = extent.len.is_multiple_of(SECTOR) || extent.offset + extent.len == *size_bytes;
        ends && extent.offset.is_multiple_of(SECTOR) && target.is_multiple_of(SECTOR)
    })
}
