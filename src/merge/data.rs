//! Where a layer has the data of a file, in the terms of the merged image.

use super::{
    error::MergeError,
    tree::{Original, Output},
};
use crate::{
    error::Result,
    format::{
        ReadAt, Sink,
        erofs::{
            Block,
            chunk::ChunkIndex,
            inode::{Data, Layout},
            reader::{Node, Place, ReadError},
            writer::{Referred, WriterError},
        },
    },
    pipeline::image::ImageWriter,
    tree::Entry,
    view::{ErofsView, View as _},
};

impl<R: ReadAt, S: Sink> Output<R> for ImageWriter<'_, S> {
    fn add(&mut self, entry: &Entry) -> Result<()> {
        self.entry(entry)?;
        self.end_entry()
    }

    fn add_file(&mut self, entry: &Entry, original: &Original<'_, R>) -> Result<()> {
        // As many layers as can be mounted are numbered with 16 bits.
        let device = u16::try_from(original.layer + 1).unwrap_or(u16::MAX);
        add(self, entry, (device, original.view, original.node))
    }
}

/// Adds a regular file with data to `writer`. The layer `view` is the device `device` and has the file as `node`.
///
/// Errors: [`MergeError::Compressed`]; those of reading and of writing.
fn add<R: ReadAt, S: Sink>(
    writer: &mut ImageWriter<'_, S>,
    entry: &Entry,
    (device, view, node): (u16, &ErofsView<R>, &Node),
) -> Result<()> {
    let (image, size) = (view.image(), node.inode.size_bytes);
    let bits = image.superblock().block_bits;
    let failed = |error| view.failed(&entry.path, error);
    if matches!(node.inode.data.layout(), Layout::CompressedFull | Layout::CompressedCompact) {
        let (layer, path) = (view.name().to_owned(), entry.path.clone());
        return Err(MergeError::Compressed { layer, path }.into());
    }
    let mut extents = image.extents(node, 0);
    let mut next =
        || extents.next().transpose().map(|extent| extent.map(|extent| extent.place)).map_err(failed);
    // The kernel takes the last block for the tail, even if it is whole.
    let whole_bytes = (bits.blocks_for(size) - 1) << bits.get();
    let tail = || {
        let mut tail = vec![0; usize::try_from(size - whole_bytes).unwrap_or(0)];
        image.read_data(node, whole_bytes, &mut tail).map_err(failed)?;
        Ok::<_, crate::error::Error>(tail)
    };
    match (next()?, next()?) {
        (Some(Place::Blocks { offset, .. }), None) => {
            writer.entry_referred(entry, Referred::Run { device, block: bits.block_of(offset) })
        }
        (Some(Place::Inline { .. }), None) => {
            writer.entry_referred(entry, Referred::Tail { body: None, tail: &tail()? })
        }
        (Some(Place::Blocks { offset, .. }), Some(Place::Inline { .. })) => {
            let body = Some((device, bits.block_of(offset)));
            writer.entry_referred(entry, Referred::Tail { body, tail: &tail()? })
        }
        _ => {
            let chunk_bits = match node.inode.data {
                Data::Chunks(format) => format.bits(),
                // A flat hole.
                _ => (0..31).find(|log| bits.size() << log >= size).unwrap_or(31),
            };
            let chunk_bytes = bits.size() << chunk_bits;
            let mut records = (0..size.div_ceil(chunk_bytes)).map(|chunk| {
                let extent = image.extent_at(node, chunk * chunk_bytes);
                let start = match extent.map_err(|error| unreadable(view, &entry.path, error))? {
                    Some(extent) => match extent.place {
                        Place::Blocks { offset, .. } => Some(Block(bits.block_of(offset))),
                        Place::Hole | Place::Inline { .. } => None,
                    },
                    None => None,
                };
                Ok(ChunkIndex { device_id: if start.is_some() { device } else { 0 }, start })
            });
            writer.entry_referred(entry, Referred::Chunks { bits: chunk_bits, records: &mut records })
        }
    }
}

/// The error of reading a layer while the writer runs.
fn unreadable<R: ReadAt>(view: &ErofsView<R>, path: &[u8], error: ReadError) -> WriterError {
    WriterError::Sink(view.failed(path, error).into_io())
}
