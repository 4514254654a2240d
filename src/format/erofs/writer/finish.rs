//! The end of an image: link counts, directories, shared attributes, and the first block.
//!
//! Directories name inodes that are written after them. So all directories are first laid out
//! without being written, and then written in the same order.
//!
//! Source: `docs/formats/erofs.md`, "How an image is written"; overlayfs, Linux
//! `Documentation/filesystems/overlayfs.rst`, for the attributes that make deletions work.

use super::{
    Place, Role, Summary, Writer, WriterError,
    directory::{Blocks, Extent, with_dots},
    head_len,
    metadata::Slot,
    stream::Window,
};
use crate::{
    format::{
        Sink,
        erofs::{
            Block, Nid,
            device::DeviceSlot,
            inode::{Data, Inode},
            superblock::{Superblock, compat, incompat, seal},
        },
    },
    tree::{DirectoryId, FileType, Node, Tree, Xattr},
};

/// Byte offset of i_nlink in an extended inode.
const NLINK_AT: u64 = 0x2C;

/// Place of a directory in the image.
#[derive(Clone, Copy, Debug, Default)]
struct Planned {
    /// Exact size of the directory in bytes.
    size_bytes: u64,
    slot: Slot,
    /// First block, counted from the first block of all directories.
    body: u32,
    nlink: u32,
    has_whiteouts: bool,
    inline: bool,
}

/// All directories, breadth first.
struct Directories {
    /// True for a layer, whose deletions overlayfs finds in attributes.
    is_layer: bool,
    order: Vec<DirectoryId>,
    /// Places, by number of the directory.
    planned: Vec<Planned>,
    opaque: Xattr,
    origin: Xattr,
}

impl Directories {
    fn get(&self, directory: DirectoryId) -> Planned {
        self.planned.get(directory.index()).copied().unwrap_or_default()
    }

    fn get_mut(&mut self, directory: DirectoryId) -> &mut Planned {
        self.planned.get_mut(directory.index()).expect("every directory was walked")
    }

    /// Attributes of a directory in the image, sorted by name.
    fn xattrs<'a>(&'a self, tree: &'a Tree<Place>, directory: DirectoryId) -> Vec<&'a Xattr> {
        let mut xattrs: Vec<&Xattr> = tree.xattrs(directory).collect();
        if !self.is_layer {
            return xattrs;
        }
        // Only this layer's deletions decide about these two attributes; an entry cannot set them.
        xattrs.retain(|xattr| xattr.name != self.opaque.name && xattr.name != self.origin.name);
        let before = xattrs.len();
        if tree.is_opaque(directory) {
            xattrs.push(&self.opaque);
        }
        // Overlayfs lists a directory that exists in one lower layer only without looking at its
        // entries: without this attribute the whiteouts in it would appear as broken names.
        if self.get(directory).has_whiteouts {
            xattrs.push(&self.origin);
        }
        if xattrs.len() > before {
            xattrs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        }
        xattrs
    }
}

impl<S: Sink> Writer<S> {
    /// Completes the image: metadata, directories, shared attributes, and the superblock last.
    pub fn finish(mut self) -> Result<(S, Summary), WriterError> {
        if matches!(self.open, super::Open::File(_)) {
            return Err(WriterError::Order("the image ended before the last file"));
        }
        self.tree.drop_aufs(&mut self.freed);
        for place in std::mem::take(&mut self.freed) {
            self.discard(place)?;
        }
        self.patch_link_counts()?;
        let mut summary = Summary::default();
        let mut directories = self.walk(&mut summary)?;
        let (mut root_head, root_icount) = self.root_head(&directories)?;

        let bits = self.bits();
        let root_start = self.role.root_offset();
        let mut plan = self.metadata.plan(&self.stream);
        let mut bodies = 0_u64;
        let mut head = Vec::new();
        for at in 0..directories.order.len() {
            let Some(directory) = directories.order.get(at).copied() else { break };
            let size = directories.get(directory).size_bytes;
            let tail = bits.within(size);
            let is_root = directory == DirectoryId::ROOT;
            // The last block goes beside the inode whatever the inline limit is, as in mkfs.erofs.
            let inline = if is_root {
                tail > 0 && root_has_room(root_start + root_head.len() as u64, tail, bits.size())
            } else {
                head.clear();
                head.resize(Inode::EXTENDED_LEN, 0);
                self.shared.body(directories.xattrs(&self.tree, directory), &mut head)?;
                tail > 0 && head.len() as u64 + tail <= bits.size()
            };
            let body = u32::try_from(bodies).map_err(WriterError::internal)?;
            bodies += if inline { bits.block_of(size) } else { bits.blocks_for(size) };
            let slot = if is_root {
                Slot::default()
            } else {
                plan.add(head.len() as u64 + if inline { tail } else { 0 })?
            };
            let planned = directories.get_mut(directory);
            (planned.slot, planned.body, planned.inline) = (slot, body, inline);
        }
        let records_end = plan.finish();
        self.metadata.follow(plan)?;

        // Directory blocks lie after the records and the shared attributes, but are written
        // together with the records.
        let area_blocks = bits.blocks_for(self.shared.area().len() as u64);
        let bodies_start = records_end + area_blocks;
        let end = bodies_start + bodies;
        if end > u64::from(u32::MAX) {
            return Err(WriterError::ImageBlocks { blocks: end });
        }
        let root_tail = self.write_directories(&directories, bodies_start)?;
        let root = directories.get(DirectoryId::ROOT);
        let root_start = bodies_start + u64::from(root.body);
        let root_inode = self.directory_inode(DirectoryId::ROOT, root, root_icount, 0, root_start);
        if let Some(place) = root_head.first_chunk_mut() {
            *place = root_inode.encode_extended();
        }
        let Self { metadata, stream, sink, shared, .. } = &mut self;
        metadata.finish(stream, sink)?;
        if stream.next_block() != records_end {
            return Err(WriterError::Order("directories were written differently than planned"));
        }
        if area_blocks > 0 {
            stream.append(sink, bits, shared.area())?;
        }
        stream.flush(sink)?;

        summary.nodes = self.tree.file_count() + self.tree.directory_count();
        if self.role == Role::Device {
            summary.nodes -= std::mem::take(&mut summary.whiteouts);
        }
        summary.directories = self.tree.directory_count();
        summary.size_bytes = end << bits.get();
        self.sink.set_len(summary.size_bytes)?;
        let mut superblock = Superblock::new(bits);
        // Kernels that do not know these bits ignore them.
        superblock.feature_compat = compat::SB_CHKSUM | compat::MTIME | compat::XATTR_FILTER;
        // Kernels before 5.15 cannot read chunks, so the bit is set only when a file needs it.
        superblock.feature_incompat = if self.chunked.is_empty() { 0 } else { incompat::CHUNKED_FILE };
        superblock.root = self.role.root_nid()?;
        superblock.inos = summary.nodes;
        superblock.blocks = end;
        superblock.uuid = self.options.uuid;
        if area_blocks > 0 {
            superblock.xattr_block = u32::try_from(records_end).map_err(WriterError::internal)?;
        }
        let mut slot = Vec::new();
        if let Some(archive) = self.archive_slot(end)? {
            superblock.feature_incompat |= incompat::DEVICE_TABLE;
            superblock.extra_devices = 1;
            // Right after the superblock, in units of slots.
            let at = (Superblock::OFFSET + Superblock::LEN as u64) / DeviceSlot::LEN as u64;
            superblock.device_slot_offset = u16::try_from(at).map_err(WriterError::internal)?;
            slot.extend_from_slice(&archive.encode());
        }
        let head = [&superblock.encode()[..], &slot, &root_head, &root_tail].concat();
        self.write_first_block(&head)?;
        Ok((self.sink, summary))
    }

    fn patch_link_counts(&mut self) -> Result<(), WriterError> {
        let Self { tree, metadata, stream, sink, .. } = self;
        let mut linked: Vec<(Slot, u32)> =
            tree.hard_linked().map(|(place, nlink)| (place.slot, nlink)).collect();
        // In the order of the disk.
        linked.sort_unstable_by_key(|(slot, _)| slot.0);
        for (slot, nlink) in linked {
            metadata.patch(stream, sink, slot, NLINK_AT, &nlink.to_le_bytes())?;
        }
        Ok(())
    }

    /// Walks the tree, sorts and measures every directory, and counts inodes and names.
    fn walk(&mut self, summary: &mut Summary) -> Result<Directories, WriterError> {
        let slots = self.tree.directory_slots();
        let limit = self.options.max_metadata_bytes;
        let more = slots * (size_of::<Planned>() + size_of::<DirectoryId>());
        if self.metadata_bytes().saturating_add(more as u64) > limit {
            return Err(WriterError::Memory { limit });
        }
        let overlay = |name: &[u8], value: &[u8]| Xattr { name: name.to_vec(), value: value.to_vec() };
        let mut directories = Directories {
            is_layer: self.role != Role::Device,
            order: vec![DirectoryId::ROOT],
            planned: vec![Planned::default(); slots],
            opaque: overlay(b"trusted.overlay.opaque", b"y"),
            origin: overlay(b"trusted.overlay.origin", b""),
        };
        let mut at = 0;
        while let Some(directory) = directories.order.get(at).copied() {
            at += 1;
            self.tree.sort(directory);
            let mut extent = Extent::new(self.bits());
            // Two links: the record in the parent and its own `.`; each subdirectory adds its `..`.
            let mut planned = Planned { nlink: 2, ..Planned::default() };
            let children = listed(&self.tree, directories.is_layer, directory);
            for (name, node) in with_dots(children, None, None) {
                extent.add(name.len());
                let Some(node) = node else { continue };
                summary.names += 1;
                match node {
                    Node::Directory(child) => {
                        planned.nlink += 1;
                        directories.order.push(child);
                    }
                    Node::File(file) if self.tree.is_whiteout(file) => planned.has_whiteouts = true,
                    Node::File(_) => {}
                }
            }
            planned.size_bytes = extent.size_bytes();
            *directories.get_mut(directory) = planned;
            summary.opaque_directories += u64::from(directories.is_layer && self.tree.is_opaque(directory));
            self.shared.note_all(directories.xattrs(&self.tree, directory), false)?;
        }
        for (file_type, is_whiteout) in self.tree.files() {
            match file_type {
                FileType::Regular => summary.regular_files += 1,
                FileType::Symlink => summary.symlinks += 1,
                _ if is_whiteout => summary.whiteouts += 1,
                _ => summary.special_files += 1,
            }
        }
        Ok(directories)
    }

    /// Encodes inode and attributes of the root, which have to fit behind the superblock.
    fn root_head(&mut self, directories: &Directories) -> Result<(Vec<u8>, u16), WriterError> {
        let room = head_len(self.bits()) - self.role.root_offset();
        let xattrs = directories.xattrs(&self.tree, DirectoryId::ROOT);
        for share_all in [false, true] {
            if share_all {
                self.shared.note_all(xattrs.iter().copied(), true)?;
            }
            let mut head = vec![0; Inode::EXTENDED_LEN];
            let body = self.shared.body(xattrs.iter().copied(), &mut head);
            if let Ok(icount) = body
                && head.len() as u64 <= room
            {
                return Ok((head, icount));
            }
        }
        Err(WriterError::RootXattrs { count: xattrs.len() })
    }

    /// Writes records and blocks of all directories. Returns the inline tail of the root.
    fn write_directories(
        &mut self,
        directories: &Directories,
        bodies_start: u64,
    ) -> Result<Vec<u8>, WriterError> {
        let bits = self.bits();
        let mut bodies = Window::new(self.role.gap(bits));
        let mut blocks = Blocks::new(bits);
        let mut data = Vec::new();
        let mut root_tail = Vec::new();
        for directory in directories.order.iter().copied() {
            let planned = directories.get(directory);
            let is_root = directory == DirectoryId::ROOT;
            let start = bodies_start + u64::from(planned.body);
            let mut offset = start << bits.get();
            let own = (self.nid(directories, directory)?, FileType::Directory);
            let parent = (self.nid(directories, self.tree.parent(directory))?, FileType::Directory);
            data.clear();
            let children = listed(&self.tree, directories.is_layer, directory);
            let mut dots = [own, parent].into_iter();
            for (name, node) in with_dots(children, None, None) {
                let (nid, file_type) = match node {
                    None => dots.next().ok_or(WriterError::Order("there are two dots"))?,
                    Some(Node::Directory(child)) => (self.nid(directories, child)?, FileType::Directory),
                    Some(Node::File(file)) => {
                        let nid = self.metadata.nid(self.tree.payload(file).slot);
                        (nid.ok_or(WriterError::Order("a file has no place"))?, self.tree.file_type(file))
                    }
                };
                blocks.add(name, nid, file_type, &mut data);
                if !data.is_empty() {
                    bodies.write(&mut self.sink, offset, &data)?;
                    offset += data.len() as u64;
                    data.clear();
                }
            }
            blocks.finish(&mut data);
            if !planned.inline {
                data.resize(data.len().next_multiple_of(bits.buffer_len()), 0);
                bodies.write(&mut self.sink, offset, &data)?;
                data.clear();
            }
            if is_root {
                root_tail = std::mem::take(&mut data);
                continue;
            }
            self.head.clear();
            self.head.resize(Inode::EXTENDED_LEN, 0);
            let icount = self.shared.body(directories.xattrs(&self.tree, directory), &mut self.head)?;
            let ino = self.take_ino();
            let inode = self.directory_inode(directory, planned, icount, ino, start);
            self.set_inode(&inode);
            std::mem::swap(&mut self.tail, &mut data);
            let slot = self.add_record()?;
            if slot != planned.slot {
                return Err(WriterError::Order("a directory was written elsewhere than planned"));
            }
        }
        bodies.flush(&mut self.sink)?;
        Ok(root_tail)
    }

    fn directory_inode(
        &self,
        directory: DirectoryId,
        planned: Planned,
        xattr_icount: u16,
        ino: u32,
        start: u64,
    ) -> Inode {
        let bits = self.bits();
        let has_body = !planned.inline || planned.size_bytes >= bits.size();
        let start = Some(if has_body { Block(start) } else { Block::UNUSED });
        Inode {
            xattr_icount,
            file_type: FileType::Directory,
            attributes: self.tree.attributes(directory),
            nlink: planned.nlink,
            size_bytes: planned.size_bytes,
            ino,
            dot_omitted: false,
            data: if planned.inline { Data::Inline { start } } else { Data::Plain { start } },
        }
    }

    fn nid(&self, directories: &Directories, directory: DirectoryId) -> Result<Nid, WriterError> {
        let nid = match directory {
            DirectoryId::ROOT => return self.role.root_nid(),
            _ => self.metadata.nid(directories.get(directory).slot),
        };
        nid.ok_or(WriterError::Order("a directory has no place"))
    }

    /// Writes superblock and root directory. Without them the file is no image.
    fn write_first_block(&mut self, from_superblock: &[u8]) -> Result<(), WriterError> {
        let bits = self.bits();
        let start = usize::try_from(Superblock::OFFSET).map_err(WriterError::internal)?;
        let mut first = vec![0; start];
        first.extend_from_slice(from_superblock);
        first.resize(usize::try_from(head_len(bits)).map_err(WriterError::internal)?, 0);
        let covered =
            first.get_mut(start..).and_then(|rest| rest.get_mut(..Superblock::checksummed_len(bits)));
        seal(covered.ok_or(WriterError::Order("the first block is too short"))?);
        Ok(self.sink.write_at(0, &first)?)
    }
}

/// Names of a directory that the image lists: on a device there are no whiteouts.
fn listed(
    tree: &Tree<Place>,
    is_layer: bool,
    directory: DirectoryId,
) -> impl Iterator<Item = (&[u8], Option<Node>)> {
    let is_whiteout = |node: Node| matches!(node, Node::File(file) if tree.is_whiteout(file));
    let all = tree.children(directory).filter(move |(_, node)| is_layer || !is_whiteout(*node));
    all.map(|(name, node)| (name, Some(node)))
}

/// True when a tail fits at byte `start`, behind the root's inode and attributes: inside the first block or blocks,
/// and without crossing from one to the next.
fn root_has_room(start: u64, tail: u64, block_size: u64) -> bool {
    // An inline tail starts and ends in one block, that in which the bytes before it end.
    (start - 1) / block_size == (start + tail - 1) / block_size
}
