//! The end of an image: link counts, directories, shared attributes, and the first block.
//!
//! Directories name inodes that are written after them. So all directories are first laid out
//! without being written, and then written in the same order. On a device that has a file system
//! already, directories are merged with those below: one that stays as it is costs nothing, one
//! that changes keeps its inode's place where it can.
//!
//! Source: `docs/formats/erofs.md`, "How an image is written"; `docs/formats/overlaybd.md`, "Upper
//! layers"; overlayfs, Linux `Documentation/filesystems/overlayfs.rst`, for the attributes that make
//! deletions work.

use super::{
    Place, Summary, Writer, WriterError,
    below::{Lower, Name, merge},
    directory::{Blocks, Extent, with_dots},
    metadata::{Metadata, Slot},
    stream::Window,
};
use crate::{
    format::{
        ReadAt, Sink,
        erofs::{
            Block, BlockBits, Nid,
            device::DeviceSlot,
            inode::{Data, Inode},
            reader::{self, Image},
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
    /// The directory below that this one is merged with.
    below: Option<Nid>,
    /// Differences from the directory below. A directory without one below has no need of them.
    change: Change,
}

/// Changes of a directory that exists below.
#[derive(Clone, Copy, Debug, Default)]
struct Change {
    /// Names, or the inodes that they name.
    names: bool,
    /// Owner, permissions, time.
    attributes: bool,
    xattrs: bool,
    /// The inode has no room where it is, and gets another number.
    moved: bool,
    /// The blocks go where those of the directory below are.
    same_blocks: bool,
}

impl Planned {
    /// Number of the inode below that stays this directory's.
    fn kept(&self) -> Option<Nid> {
        self.below.filter(|_| !self.change.moved)
    }

    /// Whether the directory below stays as it is.
    fn is_untouched(&self) -> bool {
        let Change { names, attributes, xattrs, moved, .. } = self.change;
        self.below.is_some() && !(names || attributes || xattrs || moved)
    }
}

/// All directories, breadth first.
struct Directories {
    /// True for a layer, whose deletions overlayfs finds in attributes.
    is_layer: bool,
    order: Vec<DirectoryId>,
    /// Blocks of all directories that get new ones.
    bodies: u32,
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

    /// Number of a directory's inode; not for a new root.
    fn nid(&self, metadata: &Metadata, directory: DirectoryId) -> Result<Nid, WriterError> {
        let planned = self.get(directory);
        let nid = planned.kept().or_else(|| metadata.nid(planned.slot));
        nid.ok_or(WriterError::Order("a directory has no place"))
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

    /// Blocks that the shared attributes take at the end of the image; none where room was set aside for them.
    fn area_blocks(&self) -> u64 {
        match self.reserved_area {
            Some(_) => 0,
            None => self.bits().blocks_for(self.shared.area().len() as u64),
        }
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

    /// Walks the tree, sorts and measures every directory, and counts inodes and names. Removes from the file system
    /// below what the layer replaces or deletes.
    fn walk<R: ReadAt>(
        &mut self,
        lower: &mut Option<Lower<'_, R>>,
        summary: &mut Summary,
    ) -> Result<Directories, WriterError> {
        let slots = self.tree.directory_slots();
        let limit = self.options.max_metadata_bytes;
        let more = slots * (size_of::<Planned>() + size_of::<DirectoryId>());
        if self.metadata_bytes().saturating_add(more as u64) > limit {
            return Err(WriterError::Memory { limit });
        }
        let overlay = |name: &[u8], value: &[u8]| Xattr { name: name.to_vec(), value: value.to_vec() };
        let mut directories = Directories {
            is_layer: self.role.is_layer(),
            order: vec![DirectoryId::ROOT],
            planned: vec![Planned::default(); slots],
            bodies: 0,
            opaque: overlay(b"trusted.overlay.opaque", b"y"),
            origin: overlay(b"trusted.overlay.origin", b""),
        };
        if let Some(below) = &self.below {
            directories.get_mut(DirectoryId::ROOT).below = Some(below.root);
        }
        let mut at = 0;
        while let Some(directory) = directories.order.get(at).copied() {
            at += 1;
            self.tree.sort(directory);
            self.measure(lower, &mut directories, directory, summary)?;
            let planned = directories.get(directory);
            summary.opaque_directories += u64::from(directories.is_layer && self.tree.is_opaque(directory));
            if planned.below.is_none() || planned.change.xattrs {
                self.shared.note_all(directories.xattrs(&self.tree, directory), false)?;
            }
        }
        for (place, file_type, is_whiteout) in self.tree.files() {
            match file_type {
                _ if place.link().is_some() => {}
                FileType::Regular => summary.regular_files += 1,
                FileType::Symlink => summary.symlinks += 1,
                _ if is_whiteout => summary.whiteouts += 1,
                _ => summary.special_files += 1,
            }
        }
        Ok(directories)
    }

    /// Measures one directory, and lists the directories in it as next ones.
    fn measure<R: ReadAt>(
        &self,
        lower: &mut Option<Lower<'_, R>>,
        directories: &mut Directories,
        directory: DirectoryId,
        summary: &mut Summary,
    ) -> Result<(), WriterError> {
        let tree = &self.tree;
        let mut planned = directories.get(directory);
        let below = planned.below.zip(lower.as_ref());
        let below =
            below.map(|(nid, lower)| Ok::<_, reader::ReadError>((lower.image, lower.image.node(nid)?)));
        let below = below.transpose()?;
        if let Some((image, node)) = &below {
            planned.change = self.compare(image, node, directory)?;
        }
        let mut walk = None;
        if let (Some((image, node)), Some(lower)) = (&below, lower.as_mut()) {
            let mut children = image.directory(node)?;
            if tree.is_opaque(directory) {
                while let Some(child) = children.next_child()? {
                    planned.change.names = true;
                    lower.remove(child.nid, child.file_type)?;
                }
            } else {
                walk = Some(children);
            }
        }
        let is_whiteout = |node: Node| matches!(node, Node::File(file) if tree.is_whiteout(file));
        let mut extent = Extent::new(self.bits());
        // Two links: the record in the parent and its own `.`; each subdirectory adds its `..`.
        planned.nlink = 2;
        let children = tree.children(directory).map(|(name, node)| (name, Some(node)));
        merge(with_dots(children, None, None), walk, |name, found| {
            let node = match found {
                Name::Dot => {
                    extent.add(name.len());
                    return Ok(());
                }
                Name::Below(_, file_type) => {
                    extent.add(name.len());
                    planned.nlink += u32::from(file_type == FileType::Directory);
                    return Ok(());
                }
                Name::Layer(node) if is_whiteout(node) && !directories.is_layer => return Ok(()),
                Name::Layer(node) => {
                    planned.change.names = true;
                    node
                }
                Name::Both(Node::Directory(child), nid, FileType::Directory) => {
                    directories.get_mut(child).below = Some(nid);
                    Node::Directory(child)
                }
                Name::Both(node, nid, file_type) => {
                    planned.change.names = true;
                    if let Some(lower) = lower.as_mut() {
                        lower.remove(nid, file_type)?;
                    }
                    if is_whiteout(node) {
                        return Ok(());
                    }
                    node
                }
            };
            extent.add(name.len());
            summary.names += 1;
            match node {
                Node::Directory(child) => {
                    planned.nlink += 1;
                    directories.order.push(child);
                }
                Node::File(_) => planned.has_whiteouts |= is_whiteout(node),
            }
            Ok(())
        })?;
        planned.size_bytes = extent.size_bytes();
        *directories.get_mut(directory) = planned;
        Ok(())
    }

    /// Compares owner, mode, time and attributes of a directory with those of the one below. What the layer only
    /// implies stays as it is below.
    fn compare<R: ReadAt>(
        &self,
        image: &Image<R>,
        node: &reader::Node,
        directory: DirectoryId,
    ) -> Result<Change, WriterError> {
        let mut change = Change::default();
        if self.tree.inherits(directory) {
            return Ok(change);
        }
        change.attributes = node.inode.attributes != self.tree.attributes(directory);
        let mut xattrs = image.xattrs(node)?;
        xattrs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        change.xattrs = !self.tree.xattrs(directory).eq(&xattrs);
        Ok(change)
    }

    /// Decides which directories keep their inodes' places: those whose inode and attributes still have room there.
    /// One that moves has another number, which the directory above it and those in it name.
    fn settle<R: ReadAt>(
        &mut self,
        lower: &Lower<'_, R>,
        directories: &mut Directories,
    ) -> Result<(), WriterError> {
        for at in 0..directories.order.len() {
            let Some(directory) = directories.order.get(at).copied() else { break };
            let planned = directories.get(directory);
            let Some(nid) = planned.below.filter(|_| !planned.is_untouched()) else { continue };
            let node = lower.image.node(nid)?;
            let (head, _) = self.directory_head(&Some(lower), directories, directory)?;
            let grown = head.len() as u64 != node.xattr_end() - node.position;
            if grown && matches!(node.inode.data, Data::Inline { .. }) {
                // The tail lies right behind the attributes.
                directories.get_mut(directory).change.names = true;
            }
            let room = lower.room(&node)?;
            if head.len() as u64 <= room {
                continue;
            }
            if directory == DirectoryId::ROOT {
                // Its number has 16 bits, so it cannot move.
                self.fit_root(directories, room)?;
                continue;
            }
            let change = &mut directories.get_mut(directory).change;
            (change.moved, change.names) = (true, true);
            directories.get_mut(self.tree.parent(directory)).change.names = true;
            for (_, node) in self.tree.children(directory) {
                if let Node::Directory(child) = node {
                    directories.get_mut(child).change.names = true;
                }
            }
        }
        Ok(())
    }

    /// Lays out records and blocks of all directories. Returns the block after all of them and the one after the
    /// records.
    fn lay_out<R: ReadAt>(
        &mut self,
        lower: &Option<Lower<'_, R>>,
        directories: &mut Directories,
    ) -> Result<(u64, u64), WriterError> {
        let bits = self.bits();
        let mut plan = self.metadata.plan(&self.stream);
        let mut bodies = 0_u64;
        for at in 0..directories.order.len() {
            let Some(directory) = directories.order.get(at).copied() else { break };
            let mut planned = directories.get(directory);
            if planned.below.is_some() && !planned.change.names {
                continue;
            }
            let size = planned.size_bytes;
            let tail = bits.within(size);
            let (head, _) = self.directory_head(&lower.as_ref(), directories, directory)?;
            let head_len = head.len() as u64;
            let node =
                planned.kept().zip(lower.as_ref()).map(|(nid, lower)| lower.image.node(nid)).transpose()?;
            // The last block goes beside the inode whatever the inline limit is, as in mkfs.erofs.
            planned.inline = tail > 0
                && match (&node, lower) {
                    (Some(node), Some(lower)) => {
                        head_len + tail <= lower.room(node)? && has_room(node.position + head_len, tail, bits)
                    }
                    _ if directory == DirectoryId::ROOT => {
                        has_room(self.root_offset() + head_len, tail, bits)
                    }
                    _ => head_len + tail <= bits.size(),
                };
            let blocks = if planned.inline { bits.block_of(size) } else { bits.blocks_for(size) };
            let own = node.as_ref().zip(lower.as_ref()).and_then(|(node, lower)| lower.own_blocks(node));
            planned.change.same_blocks = own.is_some_and(|(_, own)| blocks <= own);
            planned.body = u32::try_from(bodies).map_err(WriterError::internal)?;
            if !planned.change.same_blocks {
                bodies += blocks;
            }
            if node.is_none() && directory != DirectoryId::ROOT {
                planned.slot = plan.add(head_len + if planned.inline { tail } else { 0 })?;
            }
            *directories.get_mut(directory) = planned;
        }
        let records_end = plan.finish();
        self.metadata.follow(plan)?;
        // Directory blocks lie after the records and the shared attributes, but are written
        // together with the records.
        let end = records_end + self.area_blocks() + bodies;
        if end > u64::from(u32::MAX) {
            return Err(WriterError::ImageBlocks { blocks: end });
        }
        directories.bodies = u32::try_from(bodies).map_err(WriterError::internal)?;
        Ok((end, records_end))
    }

    /// Begins the record of a directory: room for its inode, and its attributes. Returns the i_xattr_icount too.
    fn directory_head<R: ReadAt>(
        &self,
        lower: &Option<&Lower<'_, R>>,
        directories: &Directories,
        directory: DirectoryId,
    ) -> Result<(Vec<u8>, u16), WriterError> {
        let planned = directories.get(directory);
        let mut head = vec![0; Inode::EXTENDED_LEN];
        if let (Some(nid), Some(lower)) = (planned.below, lower)
            && !planned.change.xattrs
        {
            let node = lower.image.node(nid)?;
            lower.xattr_body(&node, &mut head)?;
            return Ok((head, node.inode.xattr_icount));
        }
        let icount = self.shared.body(directories.xattrs(&self.tree, directory), &mut head)?;
        Ok((head, icount))
    }

    /// Shares all attributes of the root if they do not fit into `room` bytes with its inode otherwise. Errors: they
    /// do not fit even so.
    fn fit_root(&mut self, directories: &Directories, room: u64) -> Result<(), WriterError> {
        let Self { tree, shared, .. } = self;
        let xattrs = directories.xattrs(tree, DirectoryId::ROOT);
        for share_all in [false, true] {
            if share_all {
                shared.note_all(xattrs.iter().copied(), true)?;
            }
            let mut head = vec![0; Inode::EXTENDED_LEN];
            if shared.body(xattrs.iter().copied(), &mut head).is_ok() && head.len() as u64 <= room {
                return Ok(());
            }
        }
        Err(WriterError::RootXattrs { count: xattrs.len() })
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

/// True when a tail fits at byte `start`, behind an inode with its attributes: without crossing from one block to the
/// next, and in the block in which the bytes before it end.
fn has_room(start: u64, tail: u64, bits: BlockBits) -> bool {
    bits.block_of(start - 1) == bits.block_of(start + tail - 1)
}
