//! Merge: one metadata image over the layers of a container image, whose files keep the data.
//!
//! ```text
//! images of layers ──> tree: the merged tree, directory by directory ──> data: fsmeta.erofs
//! RAFS metadata    ──>   the same                                    ──> rafs: image.boot
//! ```
//!
//! The kernel mounts the result with each layer as a `device=`, the bottom one first: one file system in the place of a
//! stack, without overlayfs and without whiteouts. What the result shows is what overlayfs shows of the layers.
//!
//! Described in `docs/formats/merged.md`.

mod data;
mod error;
mod flat;
mod rafs;
mod tree;

use uuid::Uuid;

use self::tree::Walk;
pub use self::{
    error::MergeError,
    flat::describe,
    rafs::{Layer, write as write_rafs},
};
use crate::{
    call::Cancel,
    error::Result,
    format::{
        ReadAt, Sink,
        erofs::{
            reader::Image,
            writer::{LayerDevice, Options, Summary, WriteOptions},
        },
        rafs::is_rafs,
    },
    limits::{self, Limits},
    pipeline::{
        budget::{Lease, Use},
        image::ImageWriter,
    },
    view::ErofsView,
};

/// Most memory that the reader of one image takes, in bytes.
const READER_BYTES: u64 = 1 << 20;

/// Writes the merged metadata of `layers`, the bottom one first, into `file`, which is empty. The bytes depend on the
/// layers alone. Memory is charged to `lease`. [`crate::pipeline::image::verify_own`] checks the result.
///
/// Errors: [`MergeError`] for layers that cannot be merged; those of reading them, and of writing.
pub fn write<R: ReadAt, S: Sink>(
    layers: &[ErofsView<R>],
    file: S,
    limits: &Limits,
    lease: &Lease,
    cancel: &Cancel,
) -> Result<(S, Summary)> {
    let Some(bottom) = layers.first() else { return Err(MergeError::Layers { count: 0 }.into()) };
    if layers.len() > limits::MOUNTS {
        return Err(MergeError::Layers { count: layers.len() }.into());
    }
    let bits = bottom.image().superblock().block_bits;
    let mut devices = Vec::with_capacity(layers.len());
    for layer in layers {
        let image = layer.image();
        let found = image.superblock().block_bits;
        let name = || crate::view::View::name(layer).to_owned();
        if found != bits {
            return Err(
                MergeError::BlockSize { layer: name(), found: found.size(), want: bits.size() }.into()
            );
        }
        if is_rafs(image) {
            return Err(MergeError::Form { layer: name() }.into());
        }
        // Without files of its own, an image has its devices behind it, or they are not there: merged metadata.
        let end = blocks(image).saturating_mul(found.size());
        let is_whole = image.slots().is_empty() || image.device_size_bytes(0).is_some_and(|size| end <= size);
        if image.has_device_files() || !is_whole {
            return Err(MergeError::Devices { layer: name() }.into());
        }
        devices.push(LayerDevice { uuid: image.superblock().uuid, blocks: blocks(image) });
    }
    let options = Options {
        image: WriteOptions { block_bits: bits, ..WriteOptions::DEFAULT },
        max_nodes: limits.nodes,
        max_metadata_bytes: limits.metadata_bytes,
        ..Options::default()
    };
    let readers = READER_BYTES.saturating_mul(layers.len() as u64);
    let mut charge = |bytes: u64| lease.charge(Use::Window, readers.saturating_add(bytes), cancel);
    charge(0)?;
    let mut writer = ImageWriter::merged(file, options, &devices, lease, cancel)?;
    Walk::new(layers, &mut writer, cancel, &mut charge).run()?;
    writer.finish(identifier(&devices))
}

/// Blocks of the file that holds an image and, behind it, the devices that the image has in the same file.
fn blocks<R: ReadAt>(image: &Image<R>) -> u64 {
    let ends = image.slots().iter().map(|slot| slot.unified_start.saturating_add(slot.blocks));
    ends.fold(image.superblock().blocks, u64::max)
}

/// Identifier of a merged image: name-based, from those of its layers.
fn identifier(layers: &[LayerDevice]) -> [u8; 16] {
    let name: String =
        layers.iter().map(|layer| format!("/{}", Uuid::from_bytes(layer.uuid).simple())).collect();
    Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("erofs:fsmeta{name}").as_bytes()).into_bytes()
}

#[cfg(test)]
mod tests;
