//! Merged images: one tree over several layers, whose files stay the extra devices that have the data.
//!
//! Data in whole blocks becomes a chunk on the device of its layer. A tail beside an inode cannot be referred to by
//! blocks, so it is copied, and the whole blocks before it are referred to by their place on the unified line. That
//! place is known when the image is complete: the line begins with the image itself.
//!
//! Source: `docs/formats/merged.md`; Linux `fs/erofs/data.c`, `erofs_map_dev`.

use super::{
    Open, Options, Place, Role, Writer, WriterError,
    elsewhere::{Records, chunk_bits_for},
};
use crate::{
    error::Quoted,
    format::{
        Sink,
        erofs::{
            Block,
            chunk::ChunkIndex,
            device::DeviceSlot,
            inode::{Data, Inode},
        },
    },
    limits,
    tree::{Body, Entry, FileId, FileType, Inserted},
};

/// A layer as an extra device of a merged image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerDevice {
    /// Identifier of the layer's image.
    pub uuid: [u8; 16],
    /// Size of the layer's file, in blocks.
    pub blocks: u64,
}

impl LayerDevice {
    /// The slot, whose tag is the identifier in lower-case hexadecimal, as mkfs.erofs writes it.
    fn slot(self) -> DeviceSlot {
        let mut tag = [0; 64];
        let hex = |nibble: u8| if nibble < 10 { b'0' + nibble } else { b'a' + (nibble - 10) };
        let digits = self.uuid.iter().flat_map(|byte| [hex(byte >> 4), hex(byte & 15)]);
        tag.iter_mut().zip(digits).for_each(|(place, digit)| *place = digit);
        DeviceSlot { tag, blocks: self.blocks, unified_start: 0 }
    }
}

/// Where the devices have the data of a regular file that is not empty.
pub enum Referred<'a> {
    /// All of it is in consecutive blocks.
    Run {
        /// Number of the device, counted from 1.
        device: u16,
        /// First block on that device.
        block: u64,
    },
    /// The last bytes, less than a block, are here. What is before them is in consecutive blocks of a device.
    Tail {
        /// Device and first block of the whole blocks, if there are any.
        body: Option<(u16, u64)>,
        /// The last bytes.
        tail: &'a [u8],
    },
    /// It is in chunks of one size.
    Chunks {
        /// log2 of the blocks in a chunk, at most 31.
        bits: u8,
        /// All chunks of the file.
        records: Records<'a>,
    },
}

impl<S: Sink> Writer<S> {
    /// Starts the merged image of layers, the bottom one first. Whiteouts and opaque markers leave no trace in it: the
    /// caller has followed them.
    ///
    /// Errors: [`WriterError::Devices`].
    pub fn merged(sink: S, options: Options, layers: &[LayerDevice]) -> Result<Self, WriterError> {
        let slots = layers.iter().map(|layer| layer.slot()).collect();
        let writer = Self::for_role(sink, options, Role::Merged, slots);
        // Its inode number has 16 bits.
        if layers.len() > usize::from(u16::MAX) || writer.root_nid()?.0 > u64::from(u16::MAX) {
            return Err(WriterError::Devices { count: layers.len() });
        }
        Ok(writer)
    }

    /// Takes a regular file with data, which the devices have.
    pub fn entry_referred(&mut self, entry: &Entry, data: Referred<'_>) -> Result<(), WriterError> {
        let Body::Regular { size_bytes, .. } = entry.body else {
            return Err(WriterError::Order("only regular files have data"));
        };
        if size_bytes > limits::FILE_BYTES {
            return Err(WriterError::FileSize { size_bytes });
        }
        let refused = |source| WriterError::Tree { path: Quoted(&entry.path).to_string(), source };
        let Inserted::File(id) = self.tree.insert(entry, &mut self.freed).map_err(refused)? else {
            return Err(WriterError::Order("a merged tree has no whiteouts"));
        };
        for place in std::mem::take(&mut self.freed) {
            self.discard(place)?;
        }
        match data {
            Referred::Run { device, block } => {
                let blocks = self.bits().blocks_for(size_bytes);
                let bits = chunk_bits_for(blocks);
                let starts = (block..block.saturating_add(blocks)).step_by(1 << bits);
                let mut records = starts.map(|start| Ok(on(device, start)));
                self.indexed(id, entry, size_bytes, bits, &mut records)?;
            }
            Referred::Chunks { bits, records } => self.indexed(id, entry, size_bytes, bits, records)?,
            Referred::Tail { body, tail } => self.tailed(id, entry, size_bytes, body, tail)?,
        }
        self.open = Open::Elsewhere;
        let limit = self.options.max_metadata_bytes;
        if self.metadata_bytes() > limit { Err(WriterError::Memory { limit }) } else { Ok(()) }
    }

    /// Writes the inode of a file with a tail.
    fn tailed(
        &mut self,
        id: FileId,
        entry: &Entry,
        size_bytes: u64,
        body: Option<(u16, u64)>,
        tail: &[u8],
    ) -> Result<(), WriterError> {
        let bits = self.bits();
        let xattr_icount = self.begin_record(&entry.xattrs)?;
        if (self.head.len() + tail.len()) as u64 > bits.size() {
            // The attributes have become longer: others in the layer shared them. The tail gets a block of its own.
            let block = self.stream.append(&mut self.sink, bits, tail)?;
            let whole = bits.blocks_for(size_bytes) - 1;
            let body = body.into_iter().flat_map(|(device, start)| {
                (start..start.saturating_add(whole)).map(move |block| on(device, block))
            });
            // In the image itself.
            let last = on(0, u64::from(block));
            return self.indexed(id, entry, size_bytes, 0, &mut body.chain([last]).map(Ok));
        }
        let ino = self.take_ino();
        self.set_inode(&Inode {
            xattr_icount,
            file_type: FileType::Regular,
            attributes: entry.attributes,
            nlink: 1,
            size_bytes,
            ino,
            dot_omitted: false,
            data: Data::Inline { start: Some(Block::UNUSED) },
        });
        self.tail.extend_from_slice(tail);
        let record_len = u32::try_from(self.head.len() + tail.len()).map_err(WriterError::internal)?;
        let slot = self.add_record()?;
        if let Some((device, block)) = body {
            let below = self.devices.iter().take(usize::from(device).saturating_sub(1));
            let before = below.fold(0, |sum: u64, device| sum.saturating_add(device.blocks));
            let place = before.saturating_add(block);
            let place =
                u32::try_from(place).map_err(|_too_wide| WriterError::ImageBlocks { blocks: place })?;
            self.on_line.insert(slot, place);
        }
        self.tree.set_payload(id, Place { slot, record_len, ..Place::default() });
        Ok(())
    }
}

fn on(device_id: u16, block: u64) -> ChunkIndex {
    ChunkIndex { device_id, start: Some(Block(block)) }
}
