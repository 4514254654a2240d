//! Inodes of files, written as their entries come; decides what is stored beside the inode and what
//! in blocks.
//!
//! Every inode is extended. Compact inodes store no time, and the link count of a file may outgrow
//! theirs after it was written. They would save less than 0.5 % of a layer.
//!
//! Source: `docs/formats/erofs.md`, "How an image is written".

use super::{Open, OpenFile, Place, Source, Stored, Writer, WriterError, metadata::Slot, sparse::Chunks};
use crate::{
    format::{
        Sink,
        erofs::{
            Block,
            chunk::BlockMapEntry,
            inode::{Data, Inode},
        },
    },
    limits,
    tree::{Attributes, Body, Entry, Extent, FileId, FileType, Xattr},
};

impl<S: Sink> Writer<S> {
    /// Begins a record in `self.head` with the attributes of an inode. Returns its i_xattr_icount.
    pub(super) fn begin_record(&mut self, xattrs: &[Xattr]) -> Result<u16, WriterError> {
        self.head.clear();
        self.tail.clear();
        self.head.resize(Inode::EXTENDED_LEN, 0);
        if xattrs.is_empty() {
            return Ok(0);
        }
        let mut sorted: Vec<&Xattr> = xattrs.iter().collect();
        sorted.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        // The first inode with an attribute stores it inline; from the second on it is shared.
        self.shared.note_all(sorted.iter().copied(), false)?;
        self.shared.body(sorted, &mut self.head)
    }

    pub(super) fn set_inode(&mut self, inode: &Inode) {
        if let Some(place) = self.head.first_chunk_mut() {
            *place = inode.encode_extended();
        }
    }

    /// Adds `self.head` and `self.tail` to the metadata as one record.
    pub(super) fn add_record(&mut self) -> Result<Slot, WriterError> {
        let Self { metadata, stream, sink, head, tail, .. } = self;
        if (head.len() + tail.len()) as u64 > self.options.image.block_bits.size() {
            return metadata.add_long(stream, sink, head);
        }
        metadata.add(stream, sink, head, tail)
    }

    /// True when a tail of `len` bytes fits into one block with `self.head`.
    fn has_room_for(&self, len: u64) -> bool {
        self.head.len() as u64 + len <= self.bits().size()
    }

    /// Writes the inode of a file without data blocks, or begins a regular file.
    pub(super) fn file(&mut self, id: FileId, entry: &Entry, source: Source) -> Result<(), WriterError> {
        match &entry.body {
            Body::Regular { size_bytes, .. } if *size_bytes > limits::FILE_BYTES => {
                Err(WriterError::FileSize { size_bytes: *size_bytes })
            }
            Body::Regular { size_bytes, extents } => match source {
                // A sparse file would need one record for each sector.
                Source::Archive(start) if *size_bytes > 0 && extents.is_none() => {
                    self.in_archive(id, entry, *size_bytes, start)
                }
                _ => self.regular(id, entry, *size_bytes, extents.as_deref(), source),
            },
            Body::Symlink { target } => self.symlink(id, entry, target),
            Body::CharDevice(device) => {
                let data = Data::Device(*device);
                self.special(id, FileType::CharDevice, entry.attributes, &entry.xattrs, data)
            }
            Body::BlockDevice(device) => {
                let data = Data::Device(*device);
                self.special(id, FileType::BlockDevice, entry.attributes, &entry.xattrs, data)
            }
            Body::Fifo => self.special(id, FileType::Fifo, entry.attributes, &entry.xattrs, Data::None),
            Body::Directory | Body::HardLink { .. } => {
                Err(WriterError::Order("the tree takes it for a file"))
            }
        }
    }

    pub(super) fn special(
        &mut self,
        id: FileId,
        file_type: FileType,
        attributes: Attributes,
        xattrs: &[Xattr],
        data: Data,
    ) -> Result<(), WriterError> {
        let xattr_icount = self.begin_record(xattrs)?;
        let ino = self.take_ino();
        self.set_inode(&Inode {
            xattr_icount,
            file_type,
            attributes,
            nlink: 1,
            size_bytes: 0,
            ino,
            dot_omitted: false,
            data,
        });
        let record_len = u32::try_from(self.head.len()).map_err(WriterError::internal)?;
        let slot = self.add_record()?;
        self.tree.set_payload(id, Place { slot, record_len, ..Place::default() });
        Ok(())
    }

    fn symlink(&mut self, id: FileId, entry: &Entry, target: &[u8]) -> Result<(), WriterError> {
        let xattr_icount = self.begin_record(&entry.xattrs)?;
        let len = target.len() as u64;
        let ino = self.take_ino();
        let bits = self.bits();
        let mut place = Place::default();
        // Beside the inode whatever the inline limit is, as mkfs.erofs stores it.
        let data = if len < bits.size() && self.has_room_for(len) {
            self.tail.extend_from_slice(target);
            Data::Inline { start: Some(Block::UNUSED) }
        } else {
            place.data_start = self.stream.append(&mut self.sink, bits, target)?;
            place.data_blocks = u32::try_from(bits.blocks_for(len)).map_err(WriterError::internal)?;
            Data::Plain { start: Some(Block(u64::from(place.data_start))) }
        };
        self.set_inode(&Inode {
            xattr_icount,
            file_type: FileType::Symlink,
            attributes: entry.attributes.of_type(FileType::Symlink),
            nlink: 1,
            size_bytes: len,
            ino,
            dot_omitted: false,
            data,
        });
        place.record_len = u32::try_from(self.head.len() + self.tail.len()).map_err(WriterError::internal)?;
        place.slot = self.add_record()?;
        self.tree.set_payload(id, place);
        Ok(())
    }

    /// Allocates the blocks of a regular file. Writes its record too, unless a tail follows with
    /// the data.
    fn regular(
        &mut self,
        id: FileId,
        entry: &Entry,
        size_bytes: u64,
        extents: Option<&[Extent]>,
        source: Source,
    ) -> Result<(), WriterError> {
        let bits = self.bits();
        let xattr_icount = self.begin_record(&entry.xattrs)?;
        let ino = self.take_ino();
        let mut place = Place::default();
        let chunks = match extents {
            Some(extents) if size_bytes > 0 => Chunks::plan(bits, size_bytes, extents),
            _ => None,
        };
        let data_bytes = match extents {
            Some(extents) => extents.iter().map(|extent| extent.len).sum(),
            None => size_bytes,
        };
        if extents.is_some() {
            let stored = chunks.as_ref().map_or(size_bytes, Chunks::stored_bytes);
            self.charge_holes(stored.saturating_sub(data_bytes))?;
        }
        let inode = |data| Inode {
            xattr_icount,
            file_type: FileType::Regular,
            attributes: entry.attributes,
            nlink: 1,
            size_bytes,
            ino,
            dot_omitted: false,
            data,
        };
        let stored = if let Some(chunks) = chunks {
            let format = chunks.format().ok_or(WriterError::Order("a chunk is too large"))?;
            self.set_inode(&inode(Data::Chunks(format)));
            self.chunked(&mut place, &chunks)?;
            Stored::Chunks(chunks)
        } else {
            let tail_len = bits.within(size_bytes);
            // A file of whole blocks has no tail: the kernel would take its last block for one,
            // other readers would not.
            let inline = tail_len > 0
                && matches!(source, Source::Follows | Source::Archive(_))
                && tail_len <= u64::from(self.options.image.inline_limit)
                && self.has_room_for(tail_len);
            let body_len = if inline { size_bytes - tail_len } else { size_bytes };
            let blocks = bits.blocks_for(body_len);
            place.data_start = self.stream.allocate(blocks)?;
            place.data_blocks = u32::try_from(blocks).map_err(WriterError::internal)?;
            let start = if blocks > 0 { Block(u64::from(place.data_start)) } else { Block::UNUSED };
            let start = Some(start);
            self.set_inode(&inode(if inline { Data::Inline { start } } else { Data::Plain { start } }));
            if inline {
                self.tail.resize(usize::try_from(tail_len).map_err(WriterError::internal)?, 0);
            }
            place.record_len =
                u32::try_from(self.head.len() + self.tail.len()).map_err(WriterError::internal)?;
            Stored::Flat { body_len }
        };
        self.open =
            Open::File(OpenFile { id, place, missing: data_bytes, next_offset: 0, size_bytes, stored });
        Ok(())
    }

    /// Charges the cost of holes to the limit of the image: zeros inside chunks, and chunk arrays.
    fn charge_holes(&mut self, more: u64) -> Result<(), WriterError> {
        self.hole_bytes = self.hole_bytes.saturating_add(more);
        let bytes = self.hole_bytes;
        if bytes > limits::SPARSE_OVERHEAD_BYTES {
            Err(WriterError::SparseOverhead { bytes })
        } else {
            Ok(())
        }
    }

    /// Allocates the blocks of a chunk-based file, and writes its record if that is longer than a
    /// block.
    fn chunked(&mut self, place: &mut Place, chunks: &Chunks) -> Result<(), WriterError> {
        // Records of the chunk array that are written at a time: 64 KiB.
        const PIECE: usize = (64 << 10) / BlockMapEntry::LEN;
        let bits = self.bits();
        let record_len = self.head.len() as u64 + chunks.array_len();
        place.record_len = u32::try_from(record_len).map_err(WriterError::internal)?;
        place.data_blocks = u32::try_from(chunks.blocks()).map_err(WriterError::internal)?;
        if record_len <= bits.size() {
            place.data_start = self.stream.allocate(chunks.blocks())?;
            // Inodes and attributes are multiples of 4 bytes, the alignment of the array.
            self.head.extend(chunks.array(place.data_start).flatten());
            return Ok(());
        }
        // Arrays may take megabytes, so they are not held but written before the data.
        let block = self.stream.allocate(bits.blocks_for(record_len))?;
        place.data_start = self.stream.allocate(chunks.blocks())?;
        place.slot = self.metadata.add_placed(block)?;
        let mut offset = u64::from(block) << bits.get();
        let mut records = chunks.array(place.data_start);
        while !self.head.is_empty() {
            self.stream.write(&mut self.sink, offset, &self.head)?;
            offset += self.head.len() as u64;
            self.head.clear();
            self.head.extend(records.by_ref().take(PIECE).flatten());
        }
        Ok(())
    }
}
