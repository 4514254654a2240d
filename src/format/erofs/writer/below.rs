//! The file system that a device has already, below the one that is being written on it.
//!
//! New inodes and data go behind the blocks of the file system below. What stays the same is not touched: an unchanged
//! inode keeps its number, and so does a directory that changes, because the directories in it name it as `..`. Its
//! inode is rewritten in place, and its blocks too where the new ones are no more than the old. So a layer is as large
//! as the changes in it, whatever lies below, and only the names of directories that change are read.
//!
//! Source: `docs/formats/overlaybd.md`, "Upper layers".

use std::collections::{BTreeMap, btree_map::Entry};

use super::WriterError;
use crate::{
    error::Quoted,
    format::{
        ReadAt, Sink,
        erofs::{
            Nid,
            inode::{Data, Form},
            reader::{Directory, Image, Node, Place, ReadError},
        },
    },
    tree::{self, Body, Entry as LayerEntry, FileType, TreeError, path},
};

/// Unit in which changes are written, in bytes: that of a device.
const SECTOR: usize = 512;
/// Byte offset of i_nlink in an extended inode, where it has 32 bits, and in a compact one, where it has 16.
const NLINK_AT: u64 = 0x2C;
const COMPACT_NLINK_AT: u64 = 0x06;

/// Name in a directory that is merged with one below.
#[derive(Clone, Copy, Debug)]
pub(super) enum Name {
    /// `.` or `..`.
    Dot,
    /// Name that only the layer has.
    Layer(tree::Node),
    /// Name that only the directory below has.
    Below(Nid, FileType),
    /// Name that both have.
    Both(tree::Node, Nid, FileType),
}

/// Passes the names of two directories to `each`, sorted: those of the layer, with `None` for the dots, and those
/// below.
pub(super) fn merge<'a, R: ReadAt>(
    layer: impl Iterator<Item = (&'a [u8], Option<tree::Node>)>,
    below: Option<Directory<'_, R>>,
    mut each: impl FnMut(&[u8], Name) -> Result<(), WriterError>,
) -> Result<(), WriterError> {
    let own = |node: Option<tree::Node>| node.map_or(Name::Dot, Name::Layer);
    let mut layer = layer.peekable();
    if let Some(mut below) = below {
        while let Some(found) = below.next_child()? {
            while let Some((name, node)) = layer.next_if(|(name, _)| *name < found.name) {
                each(name, own(node))?;
            }
            match layer.next_if(|(name, _)| *name == found.name) {
                Some((name, Some(node))) => each(name, Name::Both(node, found.nid, found.file_type))?,
                _ => each(found.name, Name::Below(found.nid, found.file_type))?,
            }
        }
    }
    layer.try_for_each(|(name, node)| each(name, own(node)))
}

/// Hard links of the layer to files that only the file system below has. Their targets are looked up at the end: until
/// then, nothing of the file system below is read.
#[derive(Debug, Default)]
pub(super) struct Borrowed {
    links: Vec<Link>,
    path_bytes: usize,
}

/// A hard link to a file below.
#[derive(Debug)]
struct Link {
    path: Box<[u8]>,
    target: Box<[u8]>,
    /// Inode of the target and its type, once it was looked up.
    file: Option<(Nid, FileType)>,
}

impl Borrowed {
    /// Adds a hard link. Returns its number.
    pub fn add(&mut self, entry: &LayerEntry) -> Result<u32, WriterError> {
        let Body::HardLink { target } = &entry.body else {
            return Err(WriterError::Order("only hard links name files below"));
        };
        let number = u32::try_from(self.links.len()).map_err(WriterError::internal)?;
        self.links.push(Link {
            path: entry.path.as_slice().into(),
            target: target.as_slice().into(),
            file: None,
        });
        self.path_bytes += entry.path.len() + target.len();
        Ok(number)
    }

    /// Looks up the targets. All must be there, also those of links that a later entry has replaced: they were made
    /// before that.
    pub fn find<R: ReadAt>(&mut self, image: &Image<R>) -> Result<(), WriterError> {
        for Link { path, target, file } in &mut self.links {
            let refused = |source| WriterError::Tree { path: Quoted(path).to_string(), source };
            let named = || Quoted(target).to_string();
            let components = path::clean(target).map_err(|error| refused(error.into()))?;
            let found = image.find(&components.join(&b'/'))?;
            let node = found.ok_or_else(|| refused(TreeError::LinkMissing(named())))?;
            if node.inode.file_type == FileType::Directory {
                return Err(refused(TreeError::LinkType(named(), "directory")));
            }
            *file = Some((node.nid, node.inode.file_type));
        }
        Ok(())
    }

    /// Inode and type of the file of a link that was looked up.
    pub fn file(&self, link: usize) -> Result<(Nid, FileType), WriterError> {
        let found = self.links.get(link).and_then(|link| link.file);
        found.ok_or(WriterError::Order("a hard link has no file"))
    }

    /// Memory that the links hold, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        (self.links.capacity() * size_of::<Link>() + self.path_bytes) as u64
    }
}

/// Names that an inode of the file system below loses, and gains.
#[derive(Clone, Copy, Debug, Default)]
struct Names {
    removed: u32,
    added: u32,
}

/// The file system below, and what changes in it.
#[derive(Debug)]
pub(super) struct Lower<'i, R> {
    pub image: &'i Image<R>,
    /// Changed sectors, by number.
    patches: BTreeMap<u64, Box<[u8; SECTOR]>>,
    /// Changes of link counts: of inodes that have several names, or get some.
    names: BTreeMap<Nid, Names>,
    /// Inodes without a name now.
    pub gone: u64,
    /// Names that may still be removed, so that directories in a circle end.
    names_left: u64,
    max_names: u64,
    max_memory_bytes: u64,
}

impl<'i, R: ReadAt> Lower<'i, R> {
    pub fn new(image: &'i Image<R>, max_names: u64, max_memory_bytes: u64) -> Self {
        Self {
            image,
            patches: BTreeMap::new(),
            names: BTreeMap::new(),
            gone: 0,
            names_left: max_names,
            max_names,
            max_memory_bytes,
        }
    }

    /// Errors: changes take more memory than allowed; `open` is what else is held, in bytes.
    fn check_memory(&self, open: usize) -> Result<(), WriterError> {
        // A map's node is about half empty.
        let patches = self.patches.len() * (SECTOR + 48);
        let names = self.names.len() * 2 * size_of::<(Nid, Names)>();
        let limit = self.max_memory_bytes;
        if (patches + names + open) as u64 > limit { Err(WriterError::Memory { limit }) } else { Ok(()) }
    }

    /// Removes the name of an inode, and of a directory all that is in it.
    pub fn remove(&mut self, nid: Nid, file_type: FileType) -> Result<(), WriterError> {
        let mut open = Vec::new();
        let mut next = Some((nid, file_type));
        while let Some((nid, file_type)) = next {
            if file_type == FileType::Directory {
                let node = self.image.node(nid)?;
                let mut walk = self.image.directory(&node)?;
                self.gone += 1;
                while let Some(child) = walk.next_child()? {
                    if child.file_type == FileType::Directory {
                        open.push(child.nid);
                    } else {
                        self.unlink(child.nid)?;
                    }
                }
            } else {
                self.unlink(nid)?;
            }
            self.count_name()?;
            self.check_memory(open.len() * size_of::<Nid>())?;
            next = open.pop().map(|nid| (nid, FileType::Directory));
        }
        Ok(())
    }

    fn count_name(&mut self) -> Result<(), WriterError> {
        let refused = || WriterError::Tree {
            path: "below".to_owned(),
            source: TreeError::Nodes { limit: self.max_names },
        };
        self.names_left = self.names_left.checked_sub(1).ok_or_else(refused)?;
        Ok(())
    }

    /// Counts further names of a file. Before any is removed.
    pub fn link(&mut self, nid: Nid, names: u32) -> Result<(), WriterError> {
        let added = &mut self.names.entry(nid).or_default().added;
        *added = added.saturating_add(names);
        self.check_memory(0)
    }

    fn unlink(&mut self, nid: Nid) -> Result<(), WriterError> {
        self.count_name()?;
        let nlink = self.image.node(nid)?.inode.nlink.max(1);
        if nlink == 1 && !self.names.contains_key(&nid) {
            self.gone += 1;
            return Ok(());
        }
        let names = self.names.entry(nid).or_default();
        names.removed = names.removed.saturating_add(1);
        self.gone += u64::from(names.removed == nlink && names.added == 0);
        Ok(())
    }

    /// Changes the link counts of inodes that lost some of their names, or got others.
    pub fn patch_link_counts(&mut self) -> Result<(), WriterError> {
        for (nid, Names { removed, added }) in std::mem::take(&mut self.names) {
            let node = self.image.node(nid)?;
            let nlink = node.inode.nlink.saturating_sub(removed).saturating_add(added);
            if nlink == 0 || nlink == node.inode.nlink {
                continue;
            }
            match node.form {
                Form::Extended => self.patch(node.position + NLINK_AT, &nlink.to_le_bytes())?,
                Form::Compact => {
                    let what = "an inode that counts no more names";
                    let nlink = u16::try_from(nlink).map_err(|_too_many| WriterError::Below { what })?;
                    self.patch(node.position + COMPACT_NLINK_AT, &nlink.to_le_bytes())?;
                }
            }
        }
        Ok(())
    }

    /// Makes the directory `nid` name `parent` as `..`.
    pub fn patch_parent(&mut self, nid: Nid, parent: Nid) -> Result<(), WriterError> {
        let image = self.image;
        let node = image.node(nid)?;
        let mut walk = image.directory(&node)?;
        let mut at = None;
        while let Some(entry) = walk.next_entry()? {
            if entry.name == b".." {
                at = Some(walk.last_record());
                break;
            }
        }
        let Some(extent) = at.map(|at| image.extent_at(&node, at)).transpose()?.flatten() else {
            return Ok(());
        };
        match extent.place {
            Place::Blocks { device: 0, offset } | Place::Inline { offset } => {
                self.patch(offset, &parent.0.to_le_bytes())
            }
            Place::Blocks { .. } | Place::Hole => Ok(()),
        }
    }

    /// Byte after the record of `node`: its inode, attributes and inline tail.
    pub fn record_end(&self, node: &Node) -> u64 {
        let tail = match node.inode.data {
            Data::Inline { .. } => self.image.superblock().block_bits.within(node.inode.size_bytes),
            _ => 0,
        };
        node.xattr_end() + tail
    }

    /// Room for the record of `node`, in bytes: its own, and zeros behind it up to the end of the block.
    pub fn room(&self, node: &Node) -> Result<u64, WriterError> {
        let bits = self.image.superblock().block_bits;
        let end = self.record_end(node);
        let mut rest = vec![
            0;
            usize::try_from((bits.size() - bits.within(end)) & (bits.size() - 1))
                .map_err(WriterError::internal)?
        ];
        self.image.read_at(end, &mut rest, "rest of a block")?;
        let free = if rest.iter().all(|byte| *byte == 0) { rest.len() as u64 } else { 0 };
        Ok(end + free - node.position)
    }

    /// Bytes of the attributes of `node`.
    pub fn xattr_body(&self, node: &Node, out: &mut Vec<u8>) -> Result<(), WriterError> {
        let start = out.len();
        let len = usize::try_from(node.xattr_end() - node.xattr_start()).map_err(WriterError::internal)?;
        out.resize(start + len, 0);
        Ok(self.image.read_at(node.xattr_start(), out.get_mut(start..).unwrap_or_default(), "attributes")?)
    }

    /// First block and number of the whole blocks of a directory, if they are its own and consecutive.
    pub fn own_blocks(&self, node: &Node) -> Option<(u64, u64)> {
        let bits = self.image.superblock().block_bits;
        match node.inode.data {
            Data::Plain { start } => Some((start?.0, bits.blocks_for(node.inode.size_bytes))),
            Data::Inline { start } => Some((start?.0, bits.block_of(node.inode.size_bytes))),
            _ => None,
        }
    }

    /// Changes bytes of the file system below.
    pub fn patch(&mut self, offset: u64, bytes: &[u8]) -> Result<(), WriterError> {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let sector = at / SECTOR as u64;
            let within = usize::try_from(at % SECTOR as u64).map_err(WriterError::internal)?;
            let (now, later) = rest.split_at((SECTOR - within).min(rest.len()));
            let patched = match self.patches.entry(sector) {
                Entry::Occupied(found) => found.into_mut(),
                Entry::Vacant(place) => place.insert(Box::new(sector_of(self.image, sector)?)),
            };
            if let Some(place) = patched.get_mut(within..within + now.len()) {
                place.copy_from_slice(now);
            }
            (at, rest) = (at + now.len() as u64, later);
        }
        self.check_memory(0)
    }

    /// Writes all changes but those of the first block, which is returned: whole, and to be written last.
    pub fn write_patches(&mut self, sink: &mut impl Sink) -> Result<Vec<u8>, WriterError> {
        let bits = self.image.superblock().block_bits;
        let mut first = vec![0; bits.buffer_len()];
        self.image.read_at(0, &mut first, "first block")?;
        for (sector, bytes) in std::mem::take(&mut self.patches) {
            let offset = sector * SECTOR as u64;
            let in_first =
                usize::try_from(offset).ok().and_then(|offset| first.get_mut(offset..)?.get_mut(..SECTOR));
            match in_first {
                Some(place) => place.copy_from_slice(&*bytes),
                None if *bytes == sector_of(self.image, sector)? => {}
                None => sink.write_at(offset, &*bytes)?,
            }
        }
        Ok(first)
    }

    /// Writes whole sectors from byte `offset` on, those that differ from what is below.
    pub fn write_changed(&self, sink: &mut impl Sink, offset: u64, bytes: &[u8]) -> Result<(), WriterError> {
        let first = offset / SECTOR as u64;
        for (sector, bytes) in (first..).zip(bytes.chunks(SECTOR)) {
            if *bytes != sector_of(self.image, sector)? {
                sink.write_at(sector * SECTOR as u64, bytes)?;
            }
        }
        Ok(())
    }
}

fn sector_of<R: ReadAt>(image: &Image<R>, sector: u64) -> Result<[u8; SECTOR], ReadError> {
    let mut bytes = [0; SECTOR];
    image.read_at(sector * SECTOR as u64, &mut bytes, "sector")?;
    Ok(bytes)
}
