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

use super::{data, error::MergeError};
use crate::{
    call::Cancel,
    error::Result,
    format::{
        ReadAt, Sink,
        erofs::{Nid, inode::Data, reader},
    },
    pipeline::image::ImageWriter,
    tree::{Attributes, Body, Device, Entry, FileType, Xattr, whiteout, xattr},
    view::{
        At, ErofsView, View as _,
        memory::Memory,
        stack::{Marks, Metacopy, join},
    },
};

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

/// A walk over the merged tree, which adds what it finds to a writer.
pub(super) struct Walk<'a, 'w, R, S> {
    layers: &'a [ErofsView<R>],
    writer: &'a mut ImageWriter<'w, S>,
    cancel: &'a Cancel,
    memory: Memory<'a>,
    queue: VecDeque<Waiting>,
    /// First names of inodes that may have several, by layer and number.
    links: HashMap<(usize, Nid), Vec<u8>>,
}

impl<'a, 'w, R: ReadAt, S: Sink> Walk<'a, 'w, R, S> {
    /// A walk over `layers`, the bottom one first. `charge` gets in steps the memory that the walk is about to use in
    /// all, and may refuse it.
    pub fn new(
        layers: &'a [ErofsView<R>],
        writer: &'a mut ImageWriter<'w, S>,
        cancel: &'a Cancel,
        charge: &'a mut dyn FnMut(u64) -> Result<()>,
    ) -> Self {
        let memory = Memory::new(charge);
        Self { layers, writer, cancel, memory, queue: VecDeque::new(), links: HashMap::new() }
    }

    /// Adds the whole tree.
    pub fn run(mut self) -> Result<()> {
        let mut parts = Vec::with_capacity(self.layers.len());
        for (layer, view) in self.layers.iter().enumerate().rev() {
            let root = view.image().root().map_err(|error| view.failed(b"", error))?;
            let found = self.describe(layer, b"", root)?;
            if parts.is_empty() {
                self.add(b"", found.node.inode.attributes, found.xattrs, Body::Directory)?;
            }
            // overlayfs ignores that a root is opaque.
            parts.push(Part { layer, nid: found.node.nid, holds_whiteouts: found.marks.holds_whiteouts });
        }
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
            while let Some(child) = walk.next_child().map_err(failed)? {
                let (held, room) = (names.capacity() * size_of::<Name>(), bytes.capacity());
                let full = || MergeError::Names { path: directory.path.clone() };
                let start = u32::try_from(bytes.len()).map_err(|_too_long| full())?;
                let len = u8::try_from(child.name.len()).map_err(|_too_long| full())?;
                bytes.extend_from_slice(child.name);
                names.push(Name { start, len, part, nid: child.nid });
                let more = names.capacity() * size_of::<Name>() - held + bytes.capacity() - room;
                if more > 0 {
                    self.memory.add(more)?;
                }
            }
        }
        names.sort_unstable_by(|a, b| a.of(bytes).cmp(b.of(bytes)).then(a.part.cmp(&b.part)));
        Ok(())
    }

    fn view(&self, layer: usize) -> &'a ErofsView<R> {
        self.layers.get(layer).expect("a layer's number is its place in the list")
    }

    /// Decides what the name at `path` means, which the parts in `same` have, and adds it.
    fn name(&mut self, directory: &Waiting, path: Vec<u8>, same: &[Name]) -> Result<()> {
        let mut merged: Option<(Found, Vec<Part>)> = None;
        for name in same {
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
            if merged.is_some() && !is_directory {
                break;
            }
            let found = self.describe(layer, &path, node)?;
            if holds_whiteouts && found.marks.whiteout && is_empty_file(&found.node) {
                break;
            }
            if !is_directory {
                return self.file(layer, path, found);
            }
            let part = Part { layer, nid: name.nid, holds_whiteouts: found.marks.holds_whiteouts };
            let is_opaque = found.marks.opaque;
            match &mut merged {
                Some((_, parts)) => parts.push(part),
                None => merged = Some((found, vec![part])),
            }
            if is_opaque {
                break;
            }
        }
        let Some((top, parts)) = merged else { return Ok(()) };
        self.require_plain_name(&path, &parts)?;
        self.add(&path, top.node.inode.attributes, top.xattrs, Body::Directory)?;
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
                let device = u16::try_from(layer + 1).unwrap_or(u16::MAX);
                return data::add(self.writer, &entry, (device, view, &node));
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
        self.writer.entry(&Entry { path: path.to_vec(), attributes, xattrs, body })?;
        self.writer.end_entry()
    }
}

fn is_empty_file(node: &reader::Node) -> bool {
    node.inode.file_type == FileType::Regular && node.inode.size_bytes == 0
}
