//! Planning the directories of an image: their sizes, blocks and inodes, before any is written.
//!
//! Directories name inodes that are written after them, so their places must be known first. On a
//! device that has a file system already, directories are merged with those below: one that stays as
//! it is costs nothing, one that changes keeps its inode's place where it can.
//!
//! Source: `docs/formats/erofs.md`, "How an image is written"; `docs/formats/overlaybd.md`, "Upper
//! layers"; overlayfs, Linux `Documentation/filesystems/overlayfs.rst`, for the attributes that make
//! deletions work.

use super::{
    Place, Summary, Writer, WriterError,
    below::{Lower, Name, merge},
    directory::{Extent, with_dots},
    metadata::{Metadata, Slot},
};
use crate::{
    format::{
        ReadAt, Sink,
        erofs::{
            BlockBits, Nid,
            inode::{Data, Inode},
            reader::{self, Image},
        },
    },
    tree::{DirectoryId, FileType, Node, Tree, Xattr},
};

/// Place of a directory in the image.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Planned {
    /// Exact size of the directory in bytes.
    pub(super) size_bytes: u64,
    pub(super) slot: Slot,
    /// First block, counted from the first block of all directories.
    pub(super) body: u32,
    pub(super) nlink: u32,
    has_whiteouts: bool,
    pub(super) inline: bool,
    /// The directory below that this one is merged with.
    pub(super) below: Option<Nid>,
    /// Differences from the directory below. A directory without one below has no need of them.
    pub(super) change: Change,
}

/// Changes of a directory that exists below.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Change {
    /// Names, or the inodes that they name.
    pub(super) names: bool,
    /// Owner, permissions, time.
    attributes: bool,
    xattrs: bool,
    /// The inode has no room where it is, and gets another number.
    pub(super) moved: bool,
    /// The blocks go where those of the directory below are.
    pub(super) same_blocks: bool,
}

impl Planned {
    /// Number of the inode below that stays this directory's.
    fn kept(&self) -> Option<Nid> {
        self.below.filter(|_| !self.change.moved)
    }

    /// Whether the directory below stays as it is.
    pub(super) fn is_untouched(&self) -> bool {
        let Change { names, attributes, xattrs, moved, .. } = self.change;
        self.below.is_some() && !(names || attributes || xattrs || moved)
    }
}

/// All directories, breadth first.
pub(super) struct Directories {
    /// True for a layer, whose deletions overlayfs finds in attributes.
    pub(super) is_layer: bool,
    pub(super) order: Vec<DirectoryId>,
    /// Blocks of all directories that get new ones.
    pub(super) bodies: u32,
    /// Places, by number of the directory.
    planned: Vec<Planned>,
    opaque: Xattr,
    origin: Xattr,
}

impl Directories {
    pub(super) fn get(&self, directory: DirectoryId) -> Planned {
        self.planned.get(directory.index()).copied().unwrap_or_default()
    }

    fn get_mut(&mut self, directory: DirectoryId) -> &mut Planned {
        self.planned.get_mut(directory.index()).expect("every directory was walked")
    }

    /// Number of a directory's inode; not for a new root.
    pub(super) fn nid(&self, metadata: &Metadata, directory: DirectoryId) -> Result<Nid, WriterError> {
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
    /// Walks the tree, sorts and measures every directory, and counts inodes and names. Removes from the file system
    /// below what the layer replaces or deletes.
    pub(super) fn walk<R: ReadAt>(
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
    pub(super) fn settle<R: ReadAt>(
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
    pub(super) fn lay_out<R: ReadAt>(
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

    /// Blocks that the shared attributes take at the end of the image; none where room was set aside for them.
    pub(super) fn area_blocks(&self) -> u64 {
        match self.reserved_area {
            Some(_) => 0,
            None => self.bits().blocks_for(self.shared.area().len() as u64),
        }
    }

    /// Begins the record of a directory: room for its inode, and its attributes. Returns the i_xattr_icount too.
    pub(super) fn directory_head<R: ReadAt>(
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
    pub(super) fn fit_root(&mut self, directories: &Directories, room: u64) -> Result<(), WriterError> {
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
}

/// True when a tail fits at byte `start`, behind an inode with its attributes: without crossing from one block to the
/// next, and in the block in which the bytes before it end.
fn has_room(start: u64, tail: u64, bits: BlockBits) -> bool {
    bits.block_of(start - 1) == bits.block_of(start + tail - 1)
}
