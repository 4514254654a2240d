//! Merged RAFS metadata: `image.boot`, whose files refer to the blobs of all layers.
//!
//! Chunks keep their number in their blob and their place on its device; blobs get new numbers, and those that no file
//! needs are left out. The tables of every layer are in memory, and so is the merged tree.
//!
//! Described in `docs/formats/merged.md`.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use super::{
    error::MergeError,
    tree::{Original, Output, Walk},
};
use crate::{
    call::Cancel,
    error::{Error, Kind, Result},
    format::{
        ReadAt, Sink,
        rafs::{self, Body, ChunkEntry, ChunkRef, Contents, IMPLIED, Tables, Tree},
    },
    limits::{self, Limits},
    pipeline::budget::{Lease, Use},
    tree::{self, Attributes, Entry},
    view::{ErofsView, View as _, memory::Memory},
};

/// A layer to be merged: RAFS metadata.
#[derive(Debug)]
pub struct Layer<R> {
    /// The metadata.
    pub view: ErofsView<R>,
    /// Paths of the directories that have an entry in the layer, if that is known. The metadata does not tell them from
    /// those that names imply. Where it is not known, a directory with the attributes of an implied one is taken for one.
    pub explicit: Option<HashSet<Vec<u8>>>,
}

/// Writes the merged metadata of `layers`, the bottom one first, to `sink`. Returns its number of files and directories.
///
/// Errors: [`MergeError`] for layers that cannot be merged; those of reading them; `limit.metadata` and `limit.nodes`.
pub fn write<R: ReadAt>(
    layers: Vec<Layer<R>>,
    limits: &Limits,
    lease: &Lease,
    cancel: &Cancel,
    sink: &mut impl Sink,
) -> Result<u64> {
    if layers.is_empty() || layers.len() > limits::MOUNTS {
        return Err(MergeError::Layers { count: layers.len() }.into());
    }
    let (views, explicit): (Vec<_>, Vec<_>) =
        layers.into_iter().map(|layer| (layer.view, layer.explicit)).unzip();
    let mut tables = Vec::with_capacity(views.len());
    let mut left = limits.metadata_bytes / 2;
    for view in &views {
        let read =
            Tables::read(view.image(), left).map_err(|error| Error::from(error).context(view.name()))?;
        left = left.saturating_sub(size_of_val(read.chunks()) as u64);
        tables.push(read);
    }
    let held = limits.metadata_bytes / 2 - left;
    lease.charge(Use::Device, held, cancel)?;
    let (flags, chunk_size) = common(&views, &tables)?;
    let mut charge_tree = |bytes| lease.charge(Use::Index, bytes, cancel);
    let mut output = Merged {
        tables: &tables,
        explicit: &explicit,
        contents: Contents {
            flags,
            chunk_size,
            blobs: Vec::new(),
            chunks: Vec::new(),
            tree: Tree::default(),
        },
        blobs: HashMap::new(),
        places: HashMap::new(),
        parent: (Vec::new(), 0),
        memory: Memory::new(&mut charge_tree),
        max_nodes: limits.nodes,
    };
    let mut charge = |bytes: u64| lease.charge(Use::Window, bytes, cancel);
    Walk::new(&views, &mut output, cancel, &mut charge).run()?;
    let Merged { mut contents, mut memory, places, .. } = output;
    contents.chunks.shrink_to_fit();
    contents.tree.shrink();
    // The places of the inodes take theirs.
    drop((places, tables, views));
    memory.add(contents.tree.nodes().len() * PLACE_BYTES)?;
    let nodes = contents.tree.nodes().len() as u64;
    contents.write(sink)?;
    Ok(nodes)
}

/// Bytes of memory for the place of an inode, about.
const PLACE_BYTES: usize = 96;

/// Flags and size of the chunks of all layers.
fn common<R: ReadAt>(views: &[ErofsView<R>], tables: &[Tables]) -> Result<(u64, u32)> {
    let first = tables.first().map_or(0, |tables| tables.extended.kind());
    let mut flags = first;
    let mut chunk_size = None;
    for (view, Tables { extended, blobs, .. }) in views.iter().zip(tables) {
        let layer = || view.name().to_owned();
        let (found, want) = (extended.kind(), first);
        if found != want {
            return Err(MergeError::Flags { layer: layer(), found, want }.into());
        }
        flags |= extended.flags;
        // Without data the size is any.
        if !blobs.is_empty() {
            let (found, want) = (extended.chunk_size, *chunk_size.get_or_insert(extended.chunk_size));
            if found != want {
                return Err(MergeError::ChunkSize { layer: layer(), found, want }.into());
            }
        }
    }
    let any = tables.first().map_or(0, |tables| tables.extended.chunk_size);
    Ok((flags, chunk_size.unwrap_or(any)))
}

/// The merged image, in memory.
struct Merged<'a, 'm> {
    tables: &'a [Tables],
    explicit: &'a [Option<HashSet<Vec<u8>>>],
    contents: Contents<'static>,
    /// Places of the blobs that files need, by their ids.
    blobs: HashMap<[u8; 64], u8>,
    /// Places of chunks in the table, by blob and number.
    places: HashMap<(u8, u32), usize>,
    /// Path of the directory that the last name was added to, and its node.
    parent: (Vec<u8>, usize),
    memory: Memory<'m>,
    max_nodes: u64,
}

impl<R: ReadAt> Output<R> for Merged<'_, '_> {
    fn add(&mut self, entry: &Entry) -> Result<()> {
        let body = match &entry.body {
            tree::Body::Directory => Body::Directory,
            tree::Body::Regular { .. } => Body::Regular { size_bytes: 0, chunks: Vec::new() },
            tree::Body::Symlink { target } => Body::Symlink(Cow::Owned(target.clone())),
            tree::Body::CharDevice(device) => Body::CharDevice(*device),
            tree::Body::BlockDevice(device) => Body::BlockDevice(*device),
            tree::Body::Fifo => Body::Fifo,
            tree::Body::HardLink { target } => {
                let target = self.contents.tree.find(target).expect("a file comes before its further names");
                let (parent, name) = self.place(&entry.path);
                self.memory.add(name.len() + NAME_BYTES)?;
                self.contents.tree.link(parent, Cow::Owned(name), target);
                return Ok(());
            }
        };
        self.insert(entry, body)
    }

    fn add_file(&mut self, entry: &Entry, original: &Original<'_, R>) -> Result<()> {
        let Original { layer, view, node } = original;
        let tables = self.tables.get(*layer).expect("every layer has tables");
        let failed = |error| {
            Error::from(error).context(view.name()).context(crate::error::Quoted(&entry.path).to_string())
        };
        let found = tables.chunks_of(view.image(), node).map_err(failed)?;
        self.memory.add(found.len() * size_of::<ChunkRef>())?;
        let mut chunks = Vec::with_capacity(found.len());
        for reference in found {
            chunks.push(self.chunk(tables, reference)?);
        }
        self.insert(entry, Body::Regular { size_bytes: node.inode.size_bytes, chunks })
    }

    fn has_oci_whiteouts(&self) -> bool {
        true
    }

    fn is_implied(&self, layer: usize, path: &[u8], attributes: &Attributes) -> bool {
        let explicit = self.explicit.get(layer).and_then(Option::as_ref);
        *attributes == IMPLIED && explicit.is_none_or(|explicit| !explicit.contains(path))
    }
}

/// Bytes of a name in a directory besides its characters, about.
const NAME_BYTES: usize = 64;

impl Merged<'_, '_> {
    /// The directory and the name that a path consists of.
    fn place(&mut self, path: &[u8]) -> (usize, Vec<u8>) {
        let (above, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
            None => (&b""[..], path),
        };
        if self.parent.0 != above {
            let node = self.contents.tree.find(above).expect("a directory comes before what is in it");
            self.parent = (above.to_vec(), node);
        }
        (self.parent.1, name.to_vec())
    }

    fn insert(&mut self, entry: &Entry, body: Body<'static>) -> Result<()> {
        let xattrs = Cow::Owned(entry.xattrs.clone());
        if entry.path.is_empty() {
            let root = self.contents.tree.node(0);
            (root.attributes, root.xattrs) = (entry.attributes, xattrs);
            return Ok(());
        }
        if self.contents.tree.nodes().len() as u64 >= self.max_nodes {
            let message = format!("the merged image has more than {} files and directories", self.max_nodes);
            return Err(Error::new(Kind::Exhausted, "limit.nodes", message));
        }
        let (parent, name) = self.place(&entry.path);
        let attributes = entry.xattrs.iter().map(|xattr| xattr.name.len() + xattr.value.len() + NAME_BYTES);
        let bytes = size_of::<rafs::Node<'_>>() + NAME_BYTES + name.len() + attributes.sum::<usize>();
        self.memory.add(bytes)?;
        self.contents.tree.add(parent, Cow::Owned(name), entry.attributes, xattrs, body);
        Ok(())
    }

    /// Adds a chunk, and its blob, unless they are there. Returns the reference to it in the merged image.
    fn chunk(&mut self, tables: &Tables, reference: ChunkRef) -> Result<ChunkRef> {
        let entry = *tables.chunk(reference).expect("a file's chunks are in the table");
        let (blob, blocks) = tables.blobs.get(usize::from(reference.blob)).expect("a chunk has a blob");
        let known = self.blobs.get(&blob.id).copied();
        let place = match known {
            Some(place) => place,
            None => {
                let count = self.blobs.len();
                let place = u8::try_from(count).ok().filter(|place| *place < rafs::MOST_BLOBS);
                let place = place
                    .ok_or(rafs::RafsError::Blobs { count: count + 1, limit: rafs::MOST_BLOBS.into() })?;
                self.contents.blobs.push((rafs::BlobEntry { index: place.into(), ..*blob }, *blocks));
                self.blobs.insert(blob.id, place);
                place
            }
        };
        let number = self.contents.chunks.len();
        let at = *self.places.entry((place, reference.index)).or_insert(number);
        match self.contents.chunks.get(at) {
            None => {
                self.memory.add(size_of::<ChunkEntry>() + size_of::<((u8, u32), usize)>() * 2)?;
                self.contents.chunks.push(ChunkEntry { blob: place.into(), ..entry });
            }
            // Where it was first in a file may differ.
            Some(known)
                if (known.chunk.digest, known.chunk.device_offset, known.chunk.size_bytes)
                    != (entry.chunk.digest, entry.chunk.device_offset, entry.chunk.size_bytes) =>
            {
                return Err(MergeError::Blob { id: rafs::id_text(&blob.id), chunk: reference.index }.into());
            }
            Some(_) => {}
        }
        Ok(ChunkRef { blob: place, ..reference })
    }
}

#[cfg(test)]
#[path = "rafs_tests.rs"]
mod tests;
