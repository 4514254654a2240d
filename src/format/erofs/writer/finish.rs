//! The end of an image: link counts, directories, shared attributes, and the first block.
//!
//! All directories are laid out by [`super::plan`] first, and written in the same order here.
//!
//! Source: `docs/formats/erofs.md`, "How an image is written"; `docs/formats/overlaybd.md`, "Upper
//! layers".

use super::{
    Summary, Writer, WriterError,
    below::{Lower, Name, merge},
    directory::{Blocks, with_dots},
    metadata::Slot,
    plan::{Directories, Planned},
    stream::Window,
};
use crate::{
    format::{
        ReadAt, Sink,
        erofs::{
            Block, Nid,
            device::DeviceSlot,
            inode::{Data, Inode},
            reader::{self, Image},
            superblock::{Superblock, compat, incompat, seal},
        },
    },
    tree::{DirectoryId, FileType, Node},
};

/// Byte offset of i_nlink in an extended inode.
const NLINK_AT: u64 = 0x2C;

impl<S: Sink> Writer<S> {
    /// Completes the image: metadata, directories, shared attributes, and the superblock last.
    pub fn finish(self) -> Result<(S, Summary), WriterError> {
        self.finish_above(None::<&Image<&[u8]>>)
    }

    /// Completes the file system of a device that has the file system `below`, whose superblock was passed to
    /// [`Writer::device`].
    pub fn finish_above<R: ReadAt>(mut self, below: Option<&Image<R>>) -> Result<(S, Summary), WriterError> {
        if matches!(self.open, super::Open::File(_)) {
            return Err(WriterError::Order("the image ended before the last file"));
        }
        if below.map(Image::superblock) != self.below.as_ref() {
            return Err(WriterError::Order("the file system below is another one"));
        }
        self.tree.drop_aufs(&mut self.freed);
        for place in std::mem::take(&mut self.freed) {
            self.discard(place)?;
        }
        self.patch_link_counts()?;
        let mut summary = Summary::default();
        let memory = self.options.max_metadata_bytes.saturating_sub(self.metadata_bytes());
        let mut lower = below.map(|image| Lower::new(image, self.options.max_nodes, memory));
        let borrowed = lower.as_mut().map_or(Ok(0), |lower| self.borrow(lower))?;
        let mut directories = self.walk(&mut lower, &mut summary)?;
        match &lower {
            Some(lower) => self.settle(lower, &mut directories)?,
            None => self.fit_root(&directories, self.head_len() - self.root_offset())?,
        }
        let (end, records_end) = self.lay_out(&lower, &mut directories)?;
        self.place_devices(end)?;
        let (bodies_start, area_blocks) = (end - u64::from(directories.bodies), self.area_blocks());
        let root = self.write_directories(&mut lower, &directories, bodies_start)?;
        let Self { metadata, stream, sink, .. } = &mut self;
        metadata.finish(stream, sink)?;
        if stream.next_block() != records_end {
            return Err(WriterError::Order("directories were written differently than planned"));
        }
        self.write_area(records_end)?;
        self.stream.flush(&mut self.sink)?;
        if let Some(lower) = &mut lower {
            lower.patch_link_counts()?;
        }

        let bits = self.bits();
        let new_directories = directories.order.iter().filter(|at| directories.get(**at).below.is_none());
        summary.nodes = self.tree.file_count() + new_directories.count() as u64 - borrowed;
        summary.directories = self.tree.directory_count();
        if !self.role.is_layer() {
            summary.nodes -= std::mem::take(&mut summary.whiteouts);
        }
        if let Some(lower) = &lower {
            summary.nodes = (summary.nodes + lower.image.superblock().inos).saturating_sub(lower.gone);
        }
        summary.size_bytes = end << bits.get();
        self.sink.set_len(summary.size_bytes)?;
        let mut superblock = self.superblock(area_blocks, records_end)?;
        superblock.inos = summary.nodes;
        superblock.blocks = end;
        match &mut lower {
            Some(lower) => self.write_first_block_above(lower, &superblock)?,
            None => self.write_first_block(&mut superblock, &root)?,
        }
        Ok((self.sink, summary))
    }

    /// Finds the files below that hard links of the layer name, and counts these names. Returns the number of files in
    /// the tree that are none of the layer's.
    fn borrow<R: ReadAt>(&mut self, lower: &mut Lower<'_, R>) -> Result<u64, WriterError> {
        self.borrowed.find(lower.image)?;
        let mut files = 0;
        for (place, names) in self.tree.link_counts() {
            if let Some(link) = place.link() {
                lower.link(self.borrowed.file(link)?.0, names)?;
                files += 1;
            }
        }
        Ok(files)
    }

    /// Superblock of the image but for its sizes.
    fn superblock(&self, area_blocks: u64, records_end: u64) -> Result<Superblock, WriterError> {
        let mut superblock = match &self.below {
            Some(below) => *below,
            None => {
                let mut superblock = Superblock::new(self.bits());
                // Kernels that do not know these bits ignore them.
                superblock.feature_compat = compat::SB_CHKSUM | compat::MTIME | compat::XATTR_FILTER;
                superblock.root = self.root_nid()?;
                superblock.uuid = self.options.uuid;
                superblock
            }
        };
        // Kernels before 5.15 cannot read chunks, so the bit is set only when a file needs it.
        superblock.feature_incompat |= if self.chunked.is_empty() { 0 } else { incompat::CHUNKED_FILE };
        if area_blocks > 0 {
            superblock.xattr_block = u32::try_from(records_end).map_err(WriterError::internal)?;
        }
        if let Some(reserved) = self.reserved_area
            && self.below.is_none()
        {
            superblock.xattr_block = reserved;
        }
        Ok(superblock)
    }

    fn write_area(&mut self, records_end: u64) -> Result<(), WriterError> {
        let bits = self.bits();
        let Self { stream, sink, shared, reserved_area, .. } = self;
        match *reserved_area {
            _ if shared.area().is_empty() => {}
            Some(start) => sink.write_at(u64::from(start) << bits.get(), shared.area())?,
            None => {
                let start = stream.append(sink, bits, shared.area())?;
                debug_assert_eq!(u64::from(start), records_end, "nothing lies between");
            }
        }
        Ok(())
    }

    fn patch_link_counts(&mut self) -> Result<(), WriterError> {
        let Self { tree, metadata, stream, sink, .. } = self;
        let own = tree.link_counts().filter(|(place, nlink)| *nlink > 1 && place.link().is_none());
        let mut linked: Vec<(Slot, u32)> = own.map(|(place, nlink)| (place.slot, nlink)).collect();
        // In the order of the disk.
        linked.sort_unstable_by_key(|(slot, _)| slot.0);
        for (slot, nlink) in linked {
            metadata.patch(stream, sink, slot, NLINK_AT, &nlink.to_le_bytes())?;
        }
        Ok(())
    }

    /// Writes records and blocks of all directories but those that stay as they are. Returns the record of a new root.
    fn write_directories<R: ReadAt>(
        &mut self,
        lower: &mut Option<Lower<'_, R>>,
        directories: &Directories,
        bodies_start: u64,
    ) -> Result<Vec<u8>, WriterError> {
        let bits = self.bits();
        let mut bodies = Window::new(self.role.gap(bits));
        let mut root = Vec::new();
        let mut tail = Vec::new();
        for directory in directories.order.iter().copied() {
            let planned = directories.get(directory);
            if planned.is_untouched() {
                continue;
            }
            let node =
                planned.below.zip(lower.as_ref()).map(|(nid, lower)| lower.image.node(nid)).transpose()?;
            let kept = node.filter(|_| !planned.change.moved);
            let (mut head, icount) = self.directory_head(&lower.as_ref(), directories, directory)?;
            let own = kept.as_ref().zip(lower.as_ref()).and_then(|(node, lower)| lower.own_blocks(node));
            let start = match own {
                Some((start, _)) if planned.change.same_blocks => start,
                _ => bodies_start + u64::from(planned.body),
            };
            tail.clear();
            if planned.below.is_none() || planned.change.names {
                self.write_names(lower, directories, directory, (&mut bodies, start), &mut tail)?;
            }
            let mut inode = self.directory_inode(directory, planned, icount, start);
            if let Some(node) = &node {
                if self.tree.inherits(directory) {
                    inode.attributes = node.inode.attributes;
                }
                if !planned.change.names {
                    (inode.data, inode.size_bytes) = (node.inode.data, node.inode.size_bytes);
                    (inode.nlink, inode.dot_omitted) = (node.inode.nlink, node.inode.dot_omitted);
                }
            }
            let is_new_root = kept.is_none() && directory == DirectoryId::ROOT;
            inode.ino = match &node {
                Some(node) => node.inode.ino,
                None if is_new_root => 0,
                None => self.take_ino(),
            };
            if let Some(place) = head.first_chunk_mut() {
                *place = inode.encode_extended();
            }
            if let (Some(node), Some(lower)) = (&kept, lower.as_mut()) {
                head.append(&mut tail);
                // Nothing is left of a longer record. Without new names the tail, if there is one, stays where it is.
                let end = if planned.change.names { lower.record_end(node) } else { node.xattr_end() };
                let before = usize::try_from(end - node.position).map_err(WriterError::internal)?;
                head.resize(head.len().max(before), 0);
                lower.patch(node.position, &head)?;
            } else if is_new_root {
                root = head;
                root.append(&mut tail);
            } else {
                self.head = head;
                std::mem::swap(&mut self.tail, &mut tail);
                let slot = self.add_record()?;
                if slot != planned.slot {
                    return Err(WriterError::Order("a directory was written elsewhere than planned"));
                }
            }
        }
        bodies.flush(&mut self.sink)?;
        Ok(root)
    }

    /// Writes the whole blocks of a directory from block `start` on. An inline tail is left in `tail`.
    fn write_names<R: ReadAt>(
        &mut self,
        lower: &mut Option<Lower<'_, R>>,
        directories: &Directories,
        directory: DirectoryId,
        (bodies, start): (&mut Window, u64),
        tail: &mut Vec<u8>,
    ) -> Result<(), WriterError> {
        let bits = self.bits();
        let planned = directories.get(directory);
        let own = self.nid(directories, directory)?;
        let mut dots = [own, self.nid(directories, self.tree.parent(directory))?].into_iter();
        let image = lower.as_ref().map(|lower| lower.image);
        let node = planned.below.filter(|_| !self.tree.is_opaque(directory)).zip(image);
        let node =
            node.map(|(nid, image)| Ok::<_, reader::ReadError>((image, image.node(nid)?))).transpose()?;
        let walk = node.as_ref().map(|(image, node)| image.directory(node)).transpose()?;
        let mut blocks = Blocks::new(bits);
        let mut offset = start << bits.get();
        let Self { tree, borrowed, metadata, sink, .. } = self;
        let mut write = |lower: &Option<Lower<'_, R>>, data: &mut Vec<u8>| {
            match lower {
                Some(lower) if planned.change.same_blocks => lower.write_changed(sink, offset, data)?,
                _ => bodies.write(sink, offset, data)?,
            }
            offset += data.len() as u64;
            data.clear();
            Ok::<_, WriterError>(())
        };
        let children = tree.children(directory).map(|(name, node)| (name, Some(node)));
        let moved = planned.change.moved;
        merge(with_dots(children, None, None), walk, |name, found| {
            let (nid, file_type) = match found {
                Name::Dot => {
                    let nid = dots.next().ok_or(WriterError::Order("there are two dots"))?;
                    (nid, FileType::Directory)
                }
                Name::Below(nid, file_type) => {
                    if let Some(lower) = lower.as_mut()
                        && moved
                        && file_type == FileType::Directory
                    {
                        lower.patch_parent(nid, own)?;
                    }
                    (nid, file_type)
                }
                Name::Layer(Node::Directory(child)) | Name::Both(Node::Directory(child), ..) => {
                    (directories.nid(metadata, child)?, FileType::Directory)
                }
                Name::Layer(Node::File(file)) | Name::Both(Node::File(file), ..) => {
                    // A whiteout on a device.
                    if tree.is_whiteout(file) && !directories.is_layer {
                        return Ok(());
                    }
                    let place = tree.payload(file);
                    if let Some(link) = place.link() {
                        borrowed.file(link)?
                    } else {
                        let nid = metadata.nid(place.slot);
                        (nid.ok_or(WriterError::Order("a file has no place"))?, tree.file_type(file))
                    }
                }
            };
            blocks.add(name, nid, file_type, tail);
            if tail.is_empty() { Ok(()) } else { write(lower, tail) }
        })?;
        blocks.finish(tail);
        if !planned.inline {
            tail.resize(tail.len().next_multiple_of(bits.buffer_len()), 0);
            write(lower, tail)?;
        }
        Ok(())
    }

    fn directory_inode(
        &self,
        directory: DirectoryId,
        planned: Planned,
        xattr_icount: u16,
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
            ino: 0,
            dot_omitted: false,
            data: if planned.inline { Data::Inline { start } } else { Data::Plain { start } },
        }
    }

    fn nid(&self, directories: &Directories, directory: DirectoryId) -> Result<Nid, WriterError> {
        match directory {
            DirectoryId::ROOT if self.below.is_none() => self.root_nid(),
            _ => directories.nid(&self.metadata, directory),
        }
    }

    /// Writes superblock and root directory. Without them the file is no image.
    fn write_first_block(&mut self, superblock: &mut Superblock, root: &[u8]) -> Result<(), WriterError> {
        let bits = self.bits();
        if !self.devices.is_empty() {
            superblock.feature_incompat |= incompat::DEVICE_TABLE;
            superblock.extra_devices = u16::try_from(self.devices.len()).map_err(WriterError::internal)?;
            // Right after the superblock, in units of slots.
            let at = (Superblock::OFFSET + Superblock::LEN as u64) / DeviceSlot::LEN as u64;
            superblock.device_slot_offset = u16::try_from(at).map_err(WriterError::internal)?;
        }
        let slots = self.devices.iter().flat_map(DeviceSlot::encode);
        let start = usize::try_from(Superblock::OFFSET).map_err(WriterError::internal)?;
        let mut first = vec![0; start];
        first.extend_from_slice(&superblock.encode());
        first.extend(slots);
        first.extend_from_slice(root);
        first.resize(usize::try_from(self.head_len()).map_err(WriterError::internal)?, 0);
        let covered =
            first.get_mut(start..).and_then(|rest| rest.get_mut(..Superblock::checksummed_len(bits)));
        seal(covered.ok_or(WriterError::Order("the first block is too short"))?);
        Ok(self.sink.write_at(0, &first)?)
    }

    /// Writes what changes below, and the superblock last.
    fn write_first_block_above<R: ReadAt>(
        &mut self,
        lower: &mut Lower<'_, R>,
        superblock: &Superblock,
    ) -> Result<(), WriterError> {
        let mut first = lower.write_patches(&mut self.sink)?;
        let start = usize::try_from(Superblock::OFFSET).map_err(WriterError::internal)?;
        let covered = first.get_mut(start..).ok_or(WriterError::Order("the first block is too short"))?;
        if let Some(place) = covered.first_chunk_mut() {
            *place = superblock.encode();
        }
        if superblock.has_compat(compat::SB_CHKSUM) {
            seal(covered);
        }
        lower.write_changed(&mut self.sink, 0, &first)
    }
}
