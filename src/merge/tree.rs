//! The merged tree of layers that are images, directory by directory.
//!
//! Of each name the topmost layer that has it decides: a whiteout ends the name, a directory goes on in the layers
//! below until one is opaque or has something else there, and anything else stands alone. The root is the merge of all
//! roots. That is what overlayfs does, see [`crate::view::stack`], whose way of looking up each name in each layer
//! would take many times as long here: all names of all layers are wanted, so directories are read from end to end.
//!
//! Directories come breadth first. Memory: the names of one merged directory, the directories that still wait, and the
//! names of inodes that have several.
//!
//! Source: Linux `fs/overlayfs/namei.c`, `ovl_lookup`; `Documentation/filesystems/overlayfs.rst`.

use std::collections::{HashMap, VecDeque};

use super::error::MergeError;
use crate::{
    call::Cancel,
    error::{Error, Quoted, Result},
    format::{
        ReadAt,
        erofs::{Nid, inode::Data, reader},
    },
    tree::{
        Attributes, Body, Device, Entry, FileType, Xattr,
        whiteout::{self, Marker},
        xattr,
    },
    view::{
        At, ErofsView, View as _,
        memory::Memory,
        stack::{Marks, Metacopy, join},
    },
};

/// Regular file with data, as a layer has it.
#[derive(Debug)]
pub(super) struct Original<'a, R> {
    /// Place of the layer in the list.
    pub layer: usize,
    /// The layer.
    pub view: &'a ErofsView<R>,
    /// The file in it.
    pub node: &'a reader::Node,
}

/// Image that the merged tree goes into. Directories come before what is in them.
pub(super) trait Output<R> {
    /// Takes an entry without data.
    fn add(&mut self, entry: &Entry) -> Result<()>;

    /// Takes a regular file whose data is that of `original`.
    fn add_file(&mut self, entry: &Entry, original: &Original<'_, R>) -> Result<()>;

    /// Whether names of the OCI specification mean deletions, as in layers that are made of a table of contents. In
    /// others they are no names of files.
    fn has_oci_whiteouts(&self) -> bool {
        false
    }

    /// Whether the directory of a layer has no entry of its own there, so that the attributes of the layers below count.
    fn is_implied(&self, _layer: usize, _path: &[u8], _attributes: &Attributes) -> bool {
        false
    }
}

/// Directory of one layer.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Place of the layer in the list.
    layer: usize,
    nid: Nid,
    /// It may hold whiteouts in the form of an attribute.
    holds_whiteouts: bool,
}

/// Merged directory whose names are still to be read.
struct Waiting {
    path: Vec<u8>,
    /// The directories that it is merged from, the newest first.
    parts: Vec<Part>,
}

impl Waiting {
    fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.path.capacity() + self.parts.capacity() * size_of::<Part>()
    }
}

/// Name in one of the directories that are being merged.
#[derive(Clone, Copy, Debug)]
struct Name {
    start: u32,
    len: u8,
    /// Place of the directory among the parts: 0 is the newest.
    part: u32,
    nid: Nid,
    /// It is the name that a whiteout deletes from the layers below.
    is_whiteout: bool,
}

impl Name {
    fn of(self, bytes: &[u8]) -> &[u8] {
        // 32 bits fit usize wherever this runs.
        let start = usize::try_from(self.start).unwrap_or(usize::MAX);
        bytes.get(start..).and_then(|rest| rest.get(..usize::from(self.len))).unwrap_or_default()
    }
}

/// File or directory of a layer under a name.
struct Found {
    node: reader::Node,
    xattrs: Vec<Xattr>,
    marks: Marks,
}

/// Attributes of a merged directory.
#[derive(Default)]
struct Shown {
    attributes: Attributes,
    xattrs: Vec<Xattr>,
    is_set: bool,
    is_explicit: bool,
}

/// A walk over the merged tree, which adds what it finds to an image.
pub(super) struct Walk<'a, R> {
    layers: &'a [ErofsView<R>],
    output: &'a mut dyn Output<R>,
    cancel: &'a Cancel,
    memory: Memory<'a>,
    queue: VecDeque<Waiting>,
    /// First names of inodes that may have several, by layer and number.
    links: HashMap<(usize, Nid), Vec<u8>>,
}

impl<'a, R: ReadAt> Walk<'a, R> {
    /// A walk over `layers`, the bottom one first. `charge` gets in steps the memory that the walk is about to use in
    /// all, and may refuse it.
    pub fn new(
        layers: &'a [ErofsView<R>],
        output: &'a mut dyn Output<R>,
        cancel: &'a Cancel,
        charge: &'a mut dyn FnMut(u64) -> Result<()>,
    ) -> Self {
        let memory = Memory::new(charge);
        Self { layers, output, cancel, memory, queue: VecDeque::new(), links: HashMap::new() }
    }

    /// Adds the whole tree.
    pub fn run(mut self) -> Result<()> {
        let mut parts = Vec::with_capacity(self.layers.len());
        let mut shown = Shown::default();
        for (layer, view) in self.layers.iter().enumerate().rev() {
            let root = view.image().root().map_err(|error| view.failed(b"", error))?;
            let found = self.describe(layer, b"", root)?;
            // overlayfs ignores that a root is opaque.
            parts.push(Part { layer, nid: found.node.nid, holds_whiteouts: found.marks.holds_whiteouts });
            self.show(&mut shown, layer, b"", found);
        }
        self.add(b"", shown.attributes, shown.xattrs, Body::Directory)?;
        self.wait(Waiting { path: Vec::new(), parts })?;
        let (mut names, mut bytes) = (Vec::new(), Vec::new());
        while let Some(directory) = self.queue.pop_front() {
            self.cancel.check()?;
            self.read_names(&directory, &mut names, &mut bytes)?;
            for same in names.chunk_by(|a: &Name, b: &Name| a.of(&bytes) == b.of(&bytes)) {
                let Some(name) = same.first().map(|name| name.of(&bytes)) else { continue };
                self.name(&directory, join(&directory.path, name), same)?;
            }
            self.memory.release(directory.memory_bytes());
        }
        Ok(())
    }

    fn wait(&mut self, directory: Waiting) -> Result<()> {
        self.memory.add(directory.memory_bytes())?;
        self.queue.push_back(directory);
        Ok(())
    }

    /// Reads the names of all parts of a directory, sorted: of equal ones that of the newest layer first.
    fn read_names(&mut self, directory: &Waiting, names: &mut Vec<Name>, bytes: &mut Vec<u8>) -> Result<()> {
        names.clear();
        bytes.clear();
        for (part, at) in (0_u32..).zip(&directory.parts) {
            let view = self.view(at.layer);
            let failed = |error| view.failed(&directory.path, error);
            let node = view.image().node(at.nid).map_err(failed)?;
            let mut walk = view.image().directory(&node).map_err(failed)?;
            let mut is_opaque = false;
            while let Some(child) = walk.next_child().map_err(failed)? {
                let (name, is_whiteout) = match self.marker(child.name).map_err(|error| {
                    Error::from(error).context(format!("{} in {}", Quoted(&directory.path), view.name()))
                })? {
                    Marker::Ordinary => (child.name, false),
                    Marker::Whiteout(name) => (name, true),
                    Marker::Opaque => {
                        is_opaque = true;
                        continue;
                    }
                    Marker::Ignored => continue,
                };
                let (held, room) = (names.capacity() * size_of::<Name>(), bytes.capacity());
                let full = || MergeError::Names { path: directory.path.clone() };
                let start = u32::try_from(bytes.len()).map_err(|_too_long| full())?;
                let len = u8::try_from(name.len()).map_err(|_too_long| full())?;
                bytes.extend_from_slice(name);
                names.push(Name { start, len, part, nid: child.nid, is_whiteout });
                let more = names.capacity() * size_of::<Name>() - held + bytes.capacity() - room;
                if more > 0 {
                    self.memory.add(more)?;
                }
            }
            if is_opaque {
                break;
            }
        }
        // An entry beside the whiteout of its name stands: the whiteout is about the layers below.
        let rank = |name: &Name| (name.part, name.is_whiteout);
        names.sort_unstable_by(|a, b| a.of(bytes).cmp(b.of(bytes)).then(rank(a).cmp(&rank(b))));
        Ok(())
    }

    fn marker<'n>(&self, name: &'n [u8]) -> std::result::Result<Marker<'n>, whiteout::WhiteoutError> {
        if self.output.has_oci_whiteouts() { whiteout::parse(name) } else { Ok(Marker::Ordinary) }
    }

    /// Adds a directory of a layer to what the merged one shows: the attributes are those of the topmost layer that has
    /// an entry for it, or else of the topmost.
    fn show(&self, shown: &mut Shown, layer: usize, path: &[u8], found: Found) {
        let attributes = found.node.inode.attributes;
        let is_explicit = !found.xattrs.is_empty() || !self.output.is_implied(layer, path, &attributes);
        if !shown.is_explicit && (is_explicit || !shown.is_set) {
            *shown = Shown { attributes, xattrs: found.xattrs, is_set: true, is_explicit };
        }
    }

    fn view(&self, layer: usize) -> &'a ErofsView<R> {
        self.layers.get(layer).expect("a layer's number is its place in the list")
    }

    /// Decides what the name at `path` means, which the parts in `same` have, and adds it.
    fn name(&mut self, directory: &Waiting, path: Vec<u8>, same: &[Name]) -> Result<()> {
        let (mut shown, mut parts) = (Shown::default(), Vec::new());
        for name in same {
            if name.is_whiteout {
                break;
            }
            let part = usize::try_from(name.part).ok().and_then(|part| directory.parts.get(part));
            let Part { layer, holds_whiteouts, .. } = *part.expect("every name is of one of the parts");
            let view = self.view(layer);
            let node = view.image().node(name.nid).map_err(|error| view.failed(&path, error))?;
            if node.inode.data == Data::Device(Device::WHITEOUT)
                && node.inode.file_type == FileType::CharDevice
            {
                break;
            }
            let is_directory = node.inode.file_type == FileType::Directory;
            if !parts.is_empty() && !is_directory {
                break;
            }
            let found = self.describe(layer, &path, node)?;
            if holds_whiteouts && found.marks.whiteout && is_empty_file(&found.node) {
                break;
            }
            if !is_directory {
                return self.file(layer, path, found);
            }
            parts.push(Part { layer, nid: name.nid, holds_whiteouts: found.marks.holds_whiteouts });
            let is_opaque = found.marks.opaque;
            self.show(&mut shown, layer, &path, found);
            if is_opaque {
                break;
            }
        }
        if parts.is_empty() {
            return Ok(());
        }
        self.require_plain_name(&path, &parts)?;
        self.add(&path, shown.attributes, shown.xattrs, Body::Directory)?;
        self.wait(Waiting { path, parts })
    }

    /// Reads the attributes of a file. Errors: overlayfs would look for its data or its names elsewhere.
    fn describe(&self, layer: usize, path: &[u8], node: reader::Node) -> Result<Found> {
        let view = self.view(layer);
        if node.inode.xattr_icount == 0 {
            return Ok(Found { node, xattrs: Vec::new(), marks: Marks::default() });
        }
        let shown = view.file(path, node.nid)?;
        let mut xattrs = view.xattrs(At { path, node: &shown })?;
        let marks = Marks::read(&xattrs, view.control_prefix());
        let attribute = match (&marks.redirect, marks.metacopy) {
            (Some(_), _) => Some("redirect"),
            (None, Metacopy::None) => None,
            (None, _) => Some("metacopy"),
        };
        if let Some(attribute) = attribute {
            let (layer, path) = (view.name().to_owned(), path.to_vec());
            return Err(MergeError::Overlay { layer, path, attribute }.into());
        }
        xattrs.retain(|found| xattr::is_kept(&found.name));
        Ok(Found { node, xattrs, marks })
    }

    fn require_plain_name(&self, path: &[u8], parts: &[Part]) -> Result<()> {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        match parts.first() {
            Some(top) if whiteout::is_reserved(name) => {
                let layer = self.view(top.layer).name().to_owned();
                Err(MergeError::Name { layer, path: path.to_vec() }.into())
            }
            _ => Ok(()),
        }
    }

    /// Adds a file that is no directory.
    fn file(&mut self, layer: usize, path: Vec<u8>, found: Found) -> Result<()> {
        let Found { node, xattrs, .. } = found;
        let view = self.view(layer);
        let part = Part { layer, nid: node.nid, holds_whiteouts: false };
        self.require_plain_name(&path, &[part])?;
        let attributes = node.inode.attributes;
        let device = if let Data::Device(device) = node.inode.data { device } else { Device::default() };
        if node.inode.nlink > 1 {
            // Names of one layer share an inode; those of different layers never do.
            if let Some(first) = self.links.get(&(layer, node.nid)) {
                let target = first.clone();
                return self.add(&path, attributes, Vec::new(), Body::HardLink { target });
            }
            self.memory.add(size_of::<((usize, Nid), Vec<u8>)>() * 2 + path.len())?;
            self.links.insert((layer, node.nid), path.clone());
        }
        let size_bytes = node.inode.size_bytes;
        let body = match node.inode.file_type {
            FileType::Regular if size_bytes > 0 => {
                let body = Body::Regular { size_bytes, extents: None };
                let entry = Entry { path, attributes, xattrs, body };
                return self.output.add_file(&entry, &Original { layer, view, node: &node });
            }
            FileType::Regular => Body::Regular { size_bytes, extents: None },
            FileType::Symlink => {
                let shown = view.file(&path, node.nid)?;
                Body::Symlink { target: view.symlink_target(At { path: &path, node: &shown })? }
            }
            FileType::CharDevice => Body::CharDevice(device),
            FileType::BlockDevice => Body::BlockDevice(device),
            FileType::Fifo => Body::Fifo,
            FileType::Socket => {
                return Err(MergeError::Socket { layer: view.name().to_owned(), path }.into());
            }
            FileType::Directory => Body::Directory,
        };
        self.add(&path, attributes, xattrs, body)
    }

    fn add(&mut self, path: &[u8], attributes: Attributes, xattrs: Vec<Xattr>, body: Body) -> Result<()> {
        self.output.add(&Entry { path: path.to_vec(), attributes, xattrs, body })
    }
}

fn is_empty_file(node: &reader::Node) -> bool {
    node.inode.file_type == FileType::Regular && node.inode.size_bytes == 0
}
