//! A metadata image: a tree of files and directories, and tables of its blobs and of their chunks.
//!
//! | part | place |
//! |---|---|
//! | superblock of EROFS, extended superblock of RAFS | bytes 1024 and 1152 |
//! | slots of the data devices, one for each blob | from byte 1408 on |
//! | table of blobs | after them, at a multiple of 4096 |
//! | inodes, breadth first, the root one block in: lower numbers stay unused | the next multiple of 4096 |
//! | blocks of directories and of long links | after them |
//! | table of chunks | after them, at a multiple of 4096 |
//!
//! Source: nydus `builder/src/core/v6.rs`, `rafs/src/metadata/layout/v6.rs`; `docs/formats/rafs.md`.

use std::collections::VecDeque;

use super::{
    error::RafsError,
    records::{BlobEntry, ChunkEntry, ChunkRef, ExtendedSuperblock},
    tree::{Body, Node, Tree},
};
use crate::{
    format::{
        Sink,
        erofs::{
            Block, BlockBits, Nid, SLOT_LEN,
            chunk::{ChunkFormat, ChunkIndex},
            device::DeviceSlot,
            inode::{Data, Inode},
            superblock::{Superblock, compat, incompat},
            writer::{Blocks, Extent, GAP, Window, WriterError, encode_xattr, with_dots},
            xattr::{BodyHeader, icount},
        },
    },
    tree::xattr,
};

/// Unit of the image, in bytes.
const BITS: BlockBits = BlockBits::DEFAULT;
/// Blocks that an image without a device declares: the one number that all readers of RAFS accept.
const NO_DEVICE: u64 = 4096;
/// Byte of the first device slot.
const SLOTS: u64 = Superblock::OFFSET + (Superblock::LEN + ExtendedSuperblock::LEN) as u64;
/// Unit of the places of data devices on the unified line, in bytes.
const DEVICE_UNIT: u64 = 0x8_0000;
/// Most blobs: the number of a device has 8 bits, and 0 means none.
pub const MOST_BLOBS: u8 = 254;

/// Contents of an image.
#[derive(Debug)]
pub struct Contents<'t> {
    /// Bits of [`super::records::flags`].
    pub flags: u64,
    /// Size of all chunks but the last of a file, in bytes: a power of two, 4096 or more.
    pub chunk_size: u32,
    /// The blobs, and the sizes of their devices in blocks.
    pub blobs: Vec<(BlobEntry, u64)>,
    /// The chunks that the files refer to, each once.
    pub chunks: Vec<ChunkEntry>,
    /// The files.
    pub tree: Tree<'t>,
}

impl Contents<'_> {
    /// Writes the image to `sink`. Errors: an attribute that cannot be stored; too many blobs or blocks; those of the sink.
    pub fn write(&self, sink: &mut impl Sink) -> Result<(), RafsError> {
        if self.blobs.len() > MOST_BLOBS.into() {
            return Err(RafsError::Blobs { count: self.blobs.len(), limit: MOST_BLOBS.into() });
        }
        let blobs = self.blobs.len() as u64;
        let blob_table = (SLOTS + blobs * DeviceSlot::LEN as u64).next_multiple_of(BITS.size());
        let blob_table_bytes = blobs * BlobEntry::LEN as u64;
        let metadata_start = (blob_table + blob_table_bytes.max(1)).next_multiple_of(BITS.size());
        let layout = Layout::new(&self.tree, metadata_start, self.chunk_size)?;
        let chunk_table = (metadata_start + layout.len()).next_multiple_of(BITS.size());
        let chunk_table_bytes = (self.chunks.len() * ChunkEntry::LEN) as u64;
        let size = (chunk_table + chunk_table_bytes).next_multiple_of(BITS.size());

        let narrow = |number: u64| u32::try_from(number).map_err(|_too_large| RafsError::Size);
        let (mut slots, mut entries) = (Vec::new(), Vec::new());
        let (mut line, mut device_blocks) = (size, 0_u64);
        for (blob, blocks) in &self.blobs {
            line = line.next_multiple_of(DEVICE_UNIT);
            let unified_start = BITS.block_of(line);
            slots.extend(DeviceSlot { tag: blob.id, blocks: *blocks, unified_start }.encode());
            entries.extend(blob.encode());
            narrow(unified_start.saturating_add(*blocks))?;
            line = line.saturating_add(*blocks << BITS.get());
            device_blocks += *blocks;
        }
        let mut superblock = Superblock::new(BITS);
        superblock.feature_compat = compat::RAFS;
        superblock.feature_incompat = incompat::CHUNKED_FILE | incompat::DEVICE_TABLE;
        superblock.root = Nid(BITS.size() / SLOT_LEN);
        superblock.inos = layout.order.len() as u64;
        superblock.blocks = if blobs > 0 { narrow(device_blocks)?.into() } else { NO_DEVICE };
        superblock.meta_block = narrow(BITS.block_of(metadata_start))?;
        superblock.extra_devices = u16::try_from(blobs).unwrap_or(u16::MAX);
        superblock.device_slot_offset = u16::try_from(SLOTS / DeviceSlot::LEN as u64).unwrap_or(0);
        let extended = ExtendedSuperblock {
            flags: self.flags,
            blob_table: (blob_table, narrow(blob_table_bytes)?),
            chunk_size: self.chunk_size,
            chunk_table: (chunk_table, chunk_table_bytes),
            prefetch_table: (0, 0),
        };
        let mut head = Window::new(GAP);
        head.write(sink, Superblock::OFFSET, &superblock.encode())?;
        head.write(sink, Superblock::OFFSET + Superblock::LEN as u64, &extended.encode())?;
        head.write(sink, SLOTS, &slots)?;
        head.write(sink, blob_table, &entries)?;
        head.flush(sink)?;
        layout.write(sink)?;
        let mut chunks = Window::new(GAP);
        for (number, chunk) in (0_u64..).zip(&self.chunks) {
            chunks.write(sink, chunk_table + number * ChunkEntry::LEN as u64, &chunk.encode())?;
        }
        chunks.flush(sink)?;
        sink.set_len(size)?;
        Ok(())
    }
}

/// Place of an inode.
#[derive(Clone, Default)]
struct Place {
    /// Byte of the metadata at which it begins.
    position: u64,
    /// Attribute body, and its count.
    xattrs: (Vec<u8>, u16),
    size_bytes: u64,
    inline: bool,
    /// First whole block, counted from the first one behind the inodes, and their number.
    blocks: (u64, u64),
}

/// The inodes and where each is.
struct Layout<'a, 't> {
    tree: &'a Tree<'t>,
    metadata_start: u64,
    chunk_size: u32,
    /// Nodes in the order of their inodes.
    order: Vec<usize>,
    /// By node.
    places: Vec<Place>,
    /// Bytes of all inodes, a multiple of the block size.
    inode_bytes: u64,
    blocks: u64,
}

impl<'a, 't> Layout<'a, 't> {
    fn new(tree: &'a Tree<'t>, metadata_start: u64, chunk_size: u32) -> Result<Self, RafsError> {
        let nodes = tree.nodes();
        let mut order = Vec::with_capacity(nodes.len());
        let mut is_listed = vec![false; nodes.len()];
        let mut queue = VecDeque::from([0]);
        while let Some(number) = queue.pop_front() {
            match is_listed.get_mut(number) {
                Some(listed) if !*listed => *listed = true,
                _ => continue,
            }
            order.push(number);
            queue.extend(nodes.get(number).into_iter().flat_map(|node| node.children.values()));
        }
        let places = vec![Place::default(); nodes.len()];
        let mut layout = Self { tree, metadata_start, chunk_size, order, places, inode_bytes: 0, blocks: 0 };
        layout.place()?;
        Ok(layout)
    }

    /// Gives every inode its place.
    fn place(&mut self) -> Result<(), RafsError> {
        // The root's number has to be small, and those before it are no inodes'.
        let mut next = BITS.size();
        for number in self.order.clone() {
            let Some(node) = self.tree.nodes().get(number) else { continue };
            let xattrs =
                xattrs(node).map_err(|source| RafsError::Xattr { path: self.path(number), source })?;
            let head = (Inode::EXTENDED_LEN + xattrs.0.len()) as u64;
            let (size_bytes, has_tail, chunks) = match &node.body {
                Body::Directory => (directory_bytes(node), true, 0),
                Body::Symlink(target) => (target.len() as u64, true, 0),
                Body::Regular { size_bytes, chunks } => (*size_bytes, false, chunks.len()),
                _ => (0, false, 0),
            };
            let tail = BITS.within(size_bytes);
            let inline = has_tail && tail > 0 && head + tail <= BITS.size();
            let mut position = next.next_multiple_of(SLOT_LEN);
            // Neither an inode with its attributes nor a tail crosses a block; the indexes of chunks may.
            let together = head + if inline { tail } else { 0 };
            if together <= BITS.size() && BITS.within(position) + together > BITS.size() {
                position = position.next_multiple_of(BITS.size());
            }
            let mut end = position + head;
            if inline {
                end += tail;
            }
            if chunks > 0 {
                end = end.next_multiple_of(ChunkRef::LEN as u64) + (chunks * ChunkRef::LEN) as u64;
            }
            next = end;
            let blocks = match has_tail {
                true if inline => BITS.block_of(size_bytes),
                true => BITS.blocks_for(size_bytes),
                false => 0,
            };
            let place = Place { position, xattrs, size_bytes, inline, blocks: (self.blocks, blocks) };
            self.blocks += blocks;
            if let Some(slot) = self.places.get_mut(number) {
                *slot = place;
            }
        }
        self.inode_bytes = next.next_multiple_of(BITS.size());
        Ok(())
    }

    /// The path of a node, for messages.
    fn path(&self, mut number: usize) -> Vec<u8> {
        let (nodes, mut names) = (self.tree.nodes(), Vec::new());
        while let Some(node) = nodes.get(number).filter(|_| number != 0) {
            let above = nodes.get(node.parent);
            let name = above.and_then(|above| above.children.iter().find(|(_, child)| **child == number));
            names.push(name.map_or(&b""[..], |(name, _)| name.as_ref()));
            number = node.parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    fn nid(&self, number: usize) -> Nid {
        Nid(self.places.get(number).map_or(0, |place| place.position / SLOT_LEN))
    }

    /// Bytes of the inodes and the blocks behind them.
    fn len(&self) -> u64 {
        self.inode_bytes + (self.blocks << BITS.get())
    }

    /// Writes the inodes and the blocks behind them.
    fn write(&self, sink: &mut impl Sink) -> Result<(), RafsError> {
        let (mut inodes, mut blocks) = (Window::new(GAP), Window::new(GAP));
        for (ino, number) in (1_u32..).zip(self.order.iter().copied()) {
            let (Some(node), Some(place)) = (self.tree.nodes().get(number), self.places.get(number)) else {
                continue;
            };
            let mut record = self.inode(node, place, ino)?.encode_extended().to_vec();
            record.extend_from_slice(&place.xattrs.0);
            let data = match &node.body {
                Body::Directory => self.names(number, node),
                Body::Symlink(target) => target.to_vec(),
                _ => Vec::new(),
            };
            let whole = usize::try_from(place.blocks.1 << BITS.get()).unwrap_or(usize::MAX).min(data.len());
            let (body, tail) = data.split_at(whole);
            let start = self.metadata_start + self.inode_bytes + (place.blocks.0 << BITS.get());
            blocks.write(sink, start, body)?;
            record.extend_from_slice(tail);
            if let Body::Regular { chunks, .. } = &node.body
                && !chunks.is_empty()
            {
                record.resize(record.len().next_multiple_of(ChunkIndex::LEN), 0);
                chunks.iter().for_each(|chunk| record.extend_from_slice(&chunk.encode()));
            }
            inodes.write(sink, self.metadata_start + place.position, &record)?;
        }
        inodes.flush(sink)?;
        blocks.flush(sink)?;
        Ok(())
    }

    fn inode(&self, node: &Node<'t>, place: &Place, ino: u32) -> Result<Inode, RafsError> {
        let first = match place.blocks {
            (_, 0) => 0,
            (first, _) => BITS.block_of(self.metadata_start + self.inode_bytes) + first,
        };
        let start = Some(Block(first));
        let data = match &node.body {
            Body::Directory | Body::Symlink(_) if place.inline => Data::Inline { start },
            Body::Directory | Body::Symlink(_) => Data::Plain { start },
            Body::Regular { size_bytes: 0, .. } => Data::Plain { start: Some(Block::UNUSED) },
            Body::Regular { .. } => {
                let blocks = u64::from(self.chunk_size) >> BITS.get();
                let bits = (0..32).find(|log| 1 << log == blocks).unwrap_or(0);
                Data::Chunks(ChunkFormat::new(bits, true).ok_or(RafsError::Size)?)
            }
            Body::CharDevice(device) | Body::BlockDevice(device) => Data::Device(*device),
            Body::Fifo => Data::None,
        };
        let file_type = node.body.file_type();
        Ok(Inode {
            xattr_icount: place.xattrs.1,
            file_type,
            attributes: node.attributes.of_type(file_type),
            nlink: node.links,
            size_bytes: place.size_bytes,
            ino,
            dot_omitted: false,
            data,
        })
    }

    /// Blocks of a directory.
    fn names(&self, number: usize, node: &Node<'t>) -> Vec<u8> {
        let (mut blocks, mut out) = (Blocks::new(BITS), Vec::new());
        let children = node.children.iter().map(|(name, child)| (name.as_ref(), *child));
        for (name, child) in with_dots(children, number, node.parent) {
            let child_node = self.tree.nodes().get(child);
            let file_type = child_node.map_or(crate::tree::FileType::Directory, |node| node.body.file_type());
            blocks.add(name, self.nid(child), file_type, &mut out);
        }
        blocks.finish(&mut out);
        out
    }
}

fn directory_bytes(node: &Node<'_>) -> u64 {
    let mut extent = Extent::new(BITS);
    for (name, ()) in with_dots(node.children.keys().map(|name| (name.as_ref(), ())), (), ()) {
        extent.add(name.len());
    }
    extent.size_bytes()
}

/// The attribute body of a node, without a name filter, which readers of RAFS do not know.
fn xattrs(node: &Node<'_>) -> Result<(Vec<u8>, u16), WriterError> {
    let kept = || node.xattrs.iter().filter(|found| xattr::is_kept(&found.name));
    if kept().next().is_none() {
        return Ok((Vec::new(), 0));
    }
    let mut body = BodyHeader { name_filter: 0, shared_count: 0 }.encode().to_vec();
    for found in kept() {
        encode_xattr(found, &mut body)?;
    }
    match icount(body.len() as u64) {
        Some(count) => Ok((body, count)),
        None => Err(WriterError::XattrSum { len: body.len() }),
    }
}
