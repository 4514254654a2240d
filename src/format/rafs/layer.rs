//! The metadata of one layer, made of its table of contents alone.
//!
//! Source: nydus `builder/src/stargz.rs`; `docs/formats/rafs.md`.

use std::{borrow::Cow, collections::HashMap};

use super::{
    context,
    error::RafsError,
    image::Contents,
    plan::Plan,
    records::{BlobEntry, ChunkEntry, ChunkRef, flags},
    tree::{Body, IMPLIED, Tree, split},
};
use crate::format::{
    erofs::BlockBits,
    stargz::{self, Entry, Toc},
};

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
    let has_data = !plan.chunks.is_empty();
    // Both are bounded by the plan.
    let chunk_size = u32::try_from(plan.chunk_bytes).unwrap_or(0);
    let count = u32::try_from(plan.chunks.len()).unwrap_or(0);
    let blob = has_data.then(|| {
        let entry = BlobEntry {
            compressed_bytes: plan.blob_end(),
            uncompressed_bytes: plan.device_bytes,
            ..BlobEntry::of_gzip(blob_id, chunk_size, count)
        };
        (entry, BlockBits::DEFAULT.block_of(plan.device_bytes))
    });
    let chunk = |chunk| ChunkEntry { chunk, blob: 0, flags: ChunkEntry::COMPRESSED };
    let contents = Contents {
        flags: flags::GZIP | flags::SHA256 | flags::EXPLICIT_OWNER | flags::XATTRS,
        chunk_size,
        blobs: blob.into_iter().collect(),
        chunks: plan.chunks.iter().copied().map(chunk).collect(),
        tree: tree_of(toc, &plan)?,
    };
    let mut image = Vec::new();
    contents.write(&mut image)?;
    let context = has_data.then(|| context::encode(&plan.chunks, count));
    Ok(Metadata { image, context, data_bytes: plan.device_bytes })
}

/// The tree of a table of contents.
fn tree_of<'t>(toc: &'t Toc, plan: &Plan) -> Result<Tree<'t>, RafsError> {
    let mut directories = Directories { tree: Tree::default(), known: HashMap::from([(&b""[..], 0)]) };
    let mut found: HashMap<usize, usize> = HashMap::new();
    let mut links = Vec::new();
    let entries = toc.entries().iter().enumerate();
    for (number, entry) in entries.filter(|(_, entry)| !toc.is_of_the_format(entry)) {
        let body = match &entry.body {
            stargz::Body::Directory => {
                let node = directories.at(&entry.path);
                let node = directories.tree.node(node);
                node.attributes = entry.attributes;
                node.xattrs = Cow::Borrowed(&entry.xattrs);
                continue;
            }
            stargz::Body::HardLink { target } => {
                links.push((entry, *target));
                continue;
            }
            stargz::Body::Regular { size_bytes, .. } => {
                Body::Regular { size_bytes: *size_bytes, chunks: chunks_of(toc, entry, plan) }
            }
            stargz::Body::Symlink { target } => Body::Symlink(Cow::Borrowed(target)),
            stargz::Body::CharDevice(device) => Body::CharDevice(*device),
            stargz::Body::BlockDevice(device) => Body::BlockDevice(*device),
            stargz::Body::Fifo => Body::Fifo,
        };
        let (parent, name) = split(&entry.path);
        let (parent, xattrs) = (directories.at(parent), Cow::Borrowed(entry.xattrs.as_slice()));
        let node = directories.tree.add(parent, Cow::Borrowed(name), entry.attributes, xattrs, body);
        found.insert(number, node);
    }
    for (entry, target) in links {
        let target = found.get(&target).ok_or_else(|| RafsError::Link { path: entry.path.clone() })?;
        let (parent, name) = split(&entry.path);
        let parent = directories.at(parent);
        directories.tree.link(parent, Cow::Borrowed(name), *target);
    }
    Ok(directories.tree)
}

fn chunks_of(toc: &Toc, entry: &Entry, plan: &Plan) -> Vec<ChunkRef> {
    let chunks = toc.chunks_of(entry).iter().filter_map(|chunk| plan.find(chunk));
    let reference = |chunk: &context::Chunk| ChunkRef {
        blob: 0,
        index: chunk.index,
        // Below 2^32 as the plan bounds the device.
        block: u32::try_from(BlockBits::DEFAULT.block_of(chunk.device_offset)).unwrap_or(u32::MAX),
    };
    chunks.map(reference).collect()
}

/// A tree, and where its directories are.
struct Directories<'t> {
    tree: Tree<'t>,
    known: HashMap<&'t [u8], usize>,
}

impl<'t> Directories<'t> {
    /// The directory at `path`, made if need be with all above it.
    fn at(&mut self, path: &'t [u8]) -> usize {
        let (mut missing, mut at) = (Vec::new(), path);
        let mut number = loop {
            if let Some(number) = self.known.get(at) {
                break *number;
            }
            missing.push(at);
            at = split(at).0;
        };
        for path in missing.into_iter().rev() {
            let name = Cow::Borrowed(split(path).1);
            number = self.tree.add(number, name, IMPLIED, Cow::Borrowed(&[]), Body::Directory);
            self.known.insert(path, number);
        }
        number
    }
}
