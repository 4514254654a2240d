//! The metadata image of one layer, made of its table of contents alone.
//!
//! | part | place |
//! |---|---|
//! | superblock of EROFS, extended superblock of RAFS | bytes 1024 and 1152 |
//! | slot of the data device, if there is data | byte 1408 |
//! | table of blobs | byte 4096 |
//! | inodes, breadth first, the root one block in: lower numbers stay unused | from byte 8192 on |
//! | blocks of directories and of long links | after them |
//! | table of chunks | after them, at a multiple of 4096 |
//!
//! Source: nydus `builder/src/core/v6.rs`, `rafs/src/metadata/layout/v6.rs`; `docs/formats/rafs.md`.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::{
    context,
    error::RafsError,
    plan::Plan,
    records::{BlobEntry, ChunkEntry, ExtendedSuperblock, flags},
};
use crate::{
    format::{
        erofs::{
            Block, BlockBits, Nid, SLOT_LEN,
            chunk::{ChunkFormat, ChunkIndex},
            device::DeviceSlot,
            inode::{Data, Inode},
            superblock::{Superblock, incompat},
            writer::{Blocks, Extent, encode_xattr, with_dots},
            xattr::{BodyHeader, icount},
        },
        stargz::{Body, Entry, Toc},
    },
    tree::{Attributes, FileType, xattr},
};

/// Unit of the image, in bytes.
const BITS: BlockBits = BlockBits::DEFAULT;
/// Compatible feature of an EROFS image that says that it is RAFS metadata.
const RAFS: u32 = 0x4000_0000;
/// Blocks that an image without a device declares: the one number that all readers of RAFS accept.
const NO_DEVICE: u64 = 4096;
/// Place of the table of blobs, and of the metadata, in bytes.
const BLOB_TABLE: u64 = 4096;
const METADATA: u64 = 8192;
/// Unit of the place of the data device on the unified line, in bytes.
const DEVICE_UNIT: u64 = 0x8_0000;
/// Attributes of directories without an entry of their own.
const IMPLIED: Attributes =
    Attributes { mode: 0o755, uid: 0, gid: 0, mtime: crate::tree::Timestamp { seconds: 0, nanoseconds: 0 } };

/// Metadata of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The image.
    pub image: Vec<u8>,
    /// Compression context of the blob; `None` for a layer without file data.
    pub context: Option<Vec<u8>>,
    /// Size of the data device in bytes.
    pub data_bytes: u64,
}

/// Makes the metadata of the layer with the table `toc`, whose blob has the digest `blob_id` in hexadecimal.
///
/// Names of whiteouts stay as they are: tools that merge such images know them. Errors: the layer cannot be told so.
pub fn write(toc: &Toc, blob_id: [u8; 64]) -> Result<Metadata, RafsError> {
    let plan = Plan::of(toc)?;
    let layout = Layout::new(toc, Tree::of(toc)?, &plan)?;
    let metadata = layout.encode()?;
    let chunk_table = (METADATA + metadata.len() as u64).next_multiple_of(BITS.size());
    let has_data = !plan.chunks.is_empty();
    let chunk_table_bytes = (plan.chunks.len() * ChunkEntry::LEN) as u64;
    let size = (chunk_table + chunk_table_bytes).next_multiple_of(BITS.size());
    let device_start = size.next_multiple_of(DEVICE_UNIT);
    let (device_blocks, narrow) = (BITS.block_of(plan.device_bytes), |number: u64| u32::try_from(number));
    narrow(BITS.block_of(device_start).saturating_add(device_blocks))
        .map_err(|_too_large| RafsError::Size)?;

    let mut superblock = Superblock::new(BITS);
    superblock.feature_compat = RAFS;
    superblock.feature_incompat = incompat::CHUNKED_FILE | incompat::DEVICE_TABLE;
    superblock.root = Nid(BITS.size() / SLOT_LEN);
    superblock.inos = layout.order.len() as u64;
    superblock.blocks = if has_data { device_blocks } else { NO_DEVICE };
    superblock.meta_block = narrow(BITS.block_of(METADATA)).unwrap_or(0);
    superblock.extra_devices = u16::from(has_data);
    let slots = Superblock::OFFSET + (Superblock::LEN + ExtendedSuperblock::LEN) as u64;
    superblock.device_slot_offset = u16::try_from(slots / DeviceSlot::LEN as u64).unwrap_or(0);
    let extended = ExtendedSuperblock {
        flags: flags::GZIP | flags::SHA256 | flags::EXPLICIT_OWNER | flags::XATTRS,
        blob_table: (BLOB_TABLE, if has_data { BLOB_BYTES } else { 0 }),
        chunk_size: narrow(plan.chunk_bytes).unwrap_or(0),
        chunk_table: (chunk_table, chunk_table_bytes),
        prefetch_table: (0, 0),
    };
    let mut image = Image(vec![0; usize::try_from(size).map_err(|_too_large| RafsError::Size)?]);
    image.put(Superblock::OFFSET, &superblock.encode());
    image.put(Superblock::OFFSET + Superblock::LEN as u64, &extended.encode());
    let count = narrow(plan.chunks.len() as u64).unwrap_or(0);
    if has_data {
        let unified_start = BITS.block_of(device_start);
        image.put(slots, &DeviceSlot { tag: blob_id, blocks: device_blocks, unified_start }.encode());
        let blob = BlobEntry {
            id: blob_id,
            index: 0,
            chunk_size: extended.chunk_size,
            chunk_count: count,
            compressed_bytes: plan.blob_end(),
            uncompressed_bytes: plan.device_bytes,
        };
        image.put(BLOB_TABLE, &blob.encode());
    }
    image.put(METADATA, &metadata);
    for (number, chunk) in (0_u64..).zip(&plan.chunks) {
        image.put(chunk_table + number * ChunkEntry::LEN as u64, &ChunkEntry::encode(chunk, 0));
    }
    let context = has_data.then(|| context::encode(&plan.chunks, count));
    Ok(Metadata { image: image.0, context, data_bytes: plan.device_bytes })
}

/// Length of a table of one blob, in bytes.
const BLOB_BYTES: u32 = 256;
const _: () = assert!(BlobEntry::LEN == 256);

/// An image in memory.
struct Image(Vec<u8>);

impl Image {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let place = usize::try_from(offset).ok().and_then(|at| self.0.get_mut(at..)?.get_mut(..bytes.len()));
        place.expect("the image is as large as its parts").copy_from_slice(bytes);
    }
}

/// A file or directory of the layer.
struct Node<'t> {
    /// `None` for a directory that only names imply.
    entry: Option<&'t Entry>,
    file_type: FileType,
    parent: usize,
    children: BTreeMap<&'t [u8], usize>,
    links: u32,
}

/// The tree of a table of contents.
struct Tree<'t> {
    nodes: Vec<Node<'t>>,
    directories: HashMap<&'t [u8], usize>,
}

/// Splits a path into that of its parent and its name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (&[], path),
    }
}

impl<'t> Tree<'t> {
    fn of(toc: &'t Toc) -> Result<Self, RafsError> {
        let root = Node {
            entry: None,
            file_type: FileType::Directory,
            parent: 0,
            children: BTreeMap::new(),
            links: 2,
        };
        let mut tree = Self { nodes: vec![root], directories: HashMap::from([(&b""[..], 0)]) };
        let mut found: HashMap<usize, usize> = HashMap::new();
        let mut links = Vec::new();
        for (number, entry) in toc.entries().iter().enumerate().filter(|(_, entry)| !entry.is_of_the_format())
        {
            match entry.body {
                Body::Directory => {
                    let node = tree.directory(&entry.path);
                    tree.node(node).entry = Some(entry);
                }
                Body::HardLink { target } => links.push((entry, target)),
                _ => {
                    let (parent, name) = split(&entry.path);
                    let parent = tree.directory(parent);
                    let node = tree.add(parent, name, Some(entry), file_type(entry));
                    found.insert(number, node);
                }
            }
        }
        for (entry, target) in links {
            let target = found.get(&target).ok_or_else(|| RafsError::Link { path: entry.path.clone() })?;
            let (parent, name) = split(&entry.path);
            let parent = tree.directory(parent);
            tree.node(parent).children.insert(name, *target);
            tree.node(*target).links += 1;
        }
        Ok(tree)
    }

    fn node(&mut self, number: usize) -> &mut Node<'t> {
        self.nodes.get_mut(number).expect("numbers are those of nodes")
    }

    fn add(&mut self, parent: usize, name: &'t [u8], entry: Option<&'t Entry>, file_type: FileType) -> usize {
        let (number, is_directory) = (self.nodes.len(), file_type == FileType::Directory);
        let links = if is_directory { 2 } else { 1 };
        self.nodes.push(Node { entry, file_type, parent, children: BTreeMap::new(), links });
        let above = self.node(parent);
        above.children.insert(name, number);
        above.links += u32::from(is_directory);
        number
    }

    /// The directory at `path`, made if need be with all above it.
    fn directory(&mut self, path: &'t [u8]) -> usize {
        let (mut missing, mut at) = (Vec::new(), path);
        let mut number = loop {
            if let Some(number) = self.directories.get(at) {
                break *number;
            }
            missing.push(at);
            at = split(at).0;
        };
        for path in missing.into_iter().rev() {
            number = self.add(number, split(path).1, None, FileType::Directory);
            self.directories.insert(path, number);
        }
        number
    }
}

fn file_type(entry: &Entry) -> FileType {
    match entry.body {
        Body::Regular { .. } | Body::HardLink { .. } => FileType::Regular,
        Body::Directory => FileType::Directory,
        Body::Symlink { .. } => FileType::Symlink,
        Body::CharDevice(_) => FileType::CharDevice,
        Body::BlockDevice(_) => FileType::BlockDevice,
        Body::Fifo => FileType::Fifo,
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
struct Layout<'t, 'p> {
    toc: &'t Toc,
    tree: Tree<'t>,
    plan: &'p Plan,
    /// Nodes in the order of their inodes.
    order: Vec<usize>,
    /// By node.
    places: Vec<Place>,
    /// Bytes of all inodes, a multiple of the block size.
    inode_bytes: u64,
    blocks: u64,
}

impl<'t, 'p> Layout<'t, 'p> {
    fn new(toc: &'t Toc, tree: Tree<'t>, plan: &'p Plan) -> Result<Self, RafsError> {
        let mut order = Vec::with_capacity(tree.nodes.len());
        let mut is_listed = vec![false; tree.nodes.len()];
        let mut queue = VecDeque::from([0]);
        while let Some(number) = queue.pop_front() {
            match is_listed.get_mut(number) {
                Some(listed) if !*listed => *listed = true,
                _ => continue,
            }
            order.push(number);
            queue.extend(tree.nodes.get(number).into_iter().flat_map(|node| node.children.values()));
        }
        let places = vec![Place::default(); tree.nodes.len()];
        let mut layout = Self { toc, tree, plan, order, places, inode_bytes: 0, blocks: 0 };
        layout.place()?;
        Ok(layout)
    }

    /// Gives every inode its place.
    fn place(&mut self) -> Result<(), RafsError> {
        // The root's number has to be small, and those before it are no inodes'.
        let mut next = BITS.size();
        for number in self.order.clone() {
            let Some(node) = self.tree.nodes.get(number) else { continue };
            let xattrs = xattrs(node)?;
            let head = (Inode::EXTENDED_LEN + xattrs.0.len()) as u64;
            let (size_bytes, has_tail) = match node.entry.map(|entry| &entry.body) {
                _ if node.file_type == FileType::Directory => (directory_bytes(node), true),
                Some(Body::Symlink { target }) => (target.len() as u64, true),
                Some(Body::Regular { size_bytes, .. }) => (*size_bytes, false),
                _ => (0, false),
            };
            let tail = BITS.within(size_bytes);
            let inline = has_tail && tail > 0 && head + tail <= BITS.size();
            let chunks = node.entry.map_or(0, |entry| self.toc.chunks_of(entry).len());
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
                end = end.next_multiple_of(ChunkIndex::LEN as u64) + (chunks * ChunkIndex::LEN) as u64;
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

    fn nid(&self, number: usize) -> Nid {
        Nid(self.places.get(number).map_or(0, |place| place.position / SLOT_LEN))
    }

    /// The inodes and the blocks behind them.
    fn encode(&self) -> Result<Vec<u8>, RafsError> {
        let size = usize::try_from(self.inode_bytes + (self.blocks << BITS.get()));
        let mut out = Image(vec![0; size.map_err(|_too_large| RafsError::Size)?]);
        for (ino, number) in (1_u32..).zip(self.order.iter().copied()) {
            let (Some(node), Some(place)) = (self.tree.nodes.get(number), self.places.get(number)) else {
                continue;
            };
            let mut record = self.inode(node, place, ino)?.encode_extended().to_vec();
            record.extend_from_slice(&place.xattrs.0);
            let data = match node.entry.map(|entry| &entry.body) {
                _ if node.file_type == FileType::Directory => self.names(number, node),
                Some(Body::Symlink { target }) => target.clone(),
                _ => Vec::new(),
            };
            let whole = usize::try_from(place.blocks.1 << BITS.get()).unwrap_or(usize::MAX).min(data.len());
            let (body, tail) = data.split_at(whole);
            out.put(self.inode_bytes + (place.blocks.0 << BITS.get()), body);
            record.extend_from_slice(tail);
            if let Some(entry) = node.entry.filter(|_| node.file_type == FileType::Regular) {
                self.chunks(entry, &mut record);
            }
            out.put(place.position, &record);
        }
        Ok(out.0)
    }

    fn inode(&self, node: &Node<'t>, place: &Place, ino: u32) -> Result<Inode, RafsError> {
        let first = match place.blocks {
            (_, 0) => 0,
            (first, _) => BITS.block_of(METADATA + self.inode_bytes) + first,
        };
        let start = Some(Block(first));
        let data = match (node.file_type, node.entry.map(|entry| &entry.body)) {
            (FileType::Directory | FileType::Symlink, _) if place.inline => Data::Inline { start },
            (FileType::Directory | FileType::Symlink, _) => Data::Plain { start },
            (FileType::Regular, _) if place.size_bytes == 0 => Data::Plain { start: Some(Block::UNUSED) },
            (FileType::Regular, _) => {
                let blocks = self.plan.chunk_bytes >> BITS.get();
                let bits = (0..32).find(|log| 1 << log == blocks).unwrap_or(0);
                Data::Chunks(ChunkFormat::new(bits, true).ok_or(RafsError::Size)?)
            }
            (_, Some(Body::CharDevice(device) | Body::BlockDevice(device))) => Data::Device(*device),
            _ => Data::None,
        };
        let attributes = node.entry.map_or(IMPLIED, |entry| entry.attributes);
        Ok(Inode {
            xattr_icount: place.xattrs.1,
            file_type: node.file_type,
            attributes: attributes.of_type(node.file_type),
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
        let children = node.children.iter().map(|(name, child)| (*name, *child));
        for (name, child) in with_dots(children, number, node.parent) {
            let file_type = self.tree.nodes.get(child).map_or(FileType::Directory, |node| node.file_type);
            blocks.add(name, self.nid(child), file_type, &mut out);
        }
        blocks.finish(&mut out);
        out
    }

    /// Appends the indexes of a file's chunks: as those of EROFS, with the number of the chunk in fields that kernels
    /// mask or ignore.
    fn chunks(&self, entry: &Entry, record: &mut Vec<u8>) {
        let chunks = self.toc.chunks_of(entry);
        if chunks.is_empty() {
            return;
        }
        record.resize(record.len().next_multiple_of(ChunkIndex::LEN), 0);
        for chunk in chunks.iter().filter_map(|chunk| self.plan.find(chunk)) {
            let [low, middle, high, _] = chunk.index.to_le_bytes();
            let start = Some(Block(BITS.block_of(chunk.device_offset)));
            let device_id = u16::from_le_bytes([1, high]);
            let mut index = ChunkIndex { device_id, start }.encode(false);
            if let Some(field) = index.first_chunk_mut() {
                *field = [low, middle];
            }
            record.extend_from_slice(&index);
        }
    }
}

fn directory_bytes(node: &Node<'_>) -> u64 {
    let mut extent = Extent::new(BITS);
    for (name, ()) in with_dots(node.children.keys().map(|name| (*name, ())), (), ()) {
        extent.add(name.len());
    }
    extent.size_bytes()
}

/// The attribute body of a node, without a name filter, which readers of RAFS do not know.
fn xattrs(node: &Node<'_>) -> Result<(Vec<u8>, u16), RafsError> {
    let Some(entry) = node.entry else { return Ok((Vec::new(), 0)) };
    let mut body = BodyHeader { name_filter: 0, shared_count: 0 }.encode().to_vec();
    let refused = |source| RafsError::Xattr { path: entry.path.clone(), source };
    let mut any = false;
    for found in entry.xattrs.iter().filter(|found| xattr::is_kept(&found.name)) {
        encode_xattr(found, &mut body).map_err(refused)?;
        any = true;
    }
    if !any {
        return Ok((Vec::new(), 0));
    }
    let count = icount(body.len() as u64);
    Ok((body, count.ok_or(RafsError::Size)?))
}
