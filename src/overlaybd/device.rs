//! Devices: the files of a configuration, stacked.

use std::{fs::File, io};

use super::{
    blob::{Blob, damaged},
    config::{Files, LowerFiles, TargetFiles, UpperFiles},
};
use crate::{
    call::Work,
    codec::Coding,
    error::{Classify, Error, Kind, Result},
    format::{
        ReadAt, Sink,
        lsmt::{Device, Layer, LsmtError},
    },
    sys::inode,
    tree::Extent,
    view::{DeviceFile, LayeredDevice},
};

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;
/// Zeros of this length stay holes when a device is written to a file.
const HOLE: usize = 64 << 10;
/// Bytes of contents that the reader of a layer keeps.
const READER_BYTES: u64 = 1 << 20;
/// Bytes of an entry of an index. While indexes are merged there are two of each.
const ENTRY_BYTES: u64 = 16;
/// Bytes of a sector: mappings of a target are in these.
const SECTOR: u64 = 512;

/// A layer of a device, whatever its files are.
pub type DeviceLayer = Layer<Box<dyn DeviceFile>>;

/// Reason why a device cannot be opened, besides those of its formats.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum DeviceError {
    /// A target is not the one that the layer was made for.
    #[error("{name} has {size_bytes} bytes, and the layer maps {mapped} of them")]
    TargetSize {
        /// Name of the target.
        name: String,
        /// Size of its contents in bytes.
        size_bytes: u64,
        /// End of what the layer maps, in bytes.
        mapped: u64,
    },
    /// A target is compressed, and nothing says how to read it in pieces.
    #[error("{name} is compressed with {}, and no index says how to read it in pieces", coding.as_str())]
    TargetCoding {
        /// Name of the target.
        name: String,
        /// Compression of its first bytes.
        coding: Coding,
    },
    /// No layer says how large the device is.
    #[error("no layer of the device has a size")]
    NoSize,
}

impl Classify for DeviceError {
    fn kind(&self) -> Kind {
        match self {
            Self::TargetSize { .. } | Self::TargetCoding { .. } => Kind::DataLoss,
            Self::NoSize => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::TargetSize { .. } => "overlaybd.target.size",
            Self::TargetCoding { .. } => "overlaybd.target.coding",
            Self::NoSize => "overlaybd.device.size",
        }
    }
}

/// Stacks the layers of a device: its lowers, and the writable one if there is one.
///
/// Errors: those of the files, with their names; a lower that breaks a rule is `DataLoss`.
pub fn open(files: Files) -> Result<LayeredDevice> {
    open_within(files, &mut |_bytes| Ok(()))
}

/// Like [`open`]. `charge` gets the number of bytes of memory that each layer takes, and refuses what is too much.
pub fn open_within(files: Files, charge: &mut dyn FnMut(u64) -> Result<()>) -> Result<LayeredDevice> {
    let mut layers = Vec::with_capacity(files.lowers.len() + 1);
    let lowers = files.lowers.into_iter().map(lower);
    for layer in lowers.chain(files.upper.map(upper)) {
        let layer = layer?;
        charge(layer_bytes(&layer))?;
        layers.push(layer);
    }
    let device = LayeredDevice::new(layers)?;
    match device.size_bytes() {
        0 => Err(DeviceError::NoSize.into()),
        _ => Ok(device),
    }
}

/// Memory that a layer takes while it is open, in bytes.
pub fn layer_bytes<R>(layer: &Layer<R>) -> u64 {
    READER_BYTES.saturating_add(layer.entries().saturating_mul(2 * ENTRY_BYTES))
}

/// Memory that the index of an open device takes, in bytes, and what its readers keep.
pub fn index_bytes<R>(device: &Device<R>) -> u64 {
    READER_BYTES.saturating_add(device.entries().saturating_mul(ENTRY_BYTES))
}

/// Opens a read-only layer.
///
/// Errors: those of its files, with their names; one that breaks a rule is `DataLoss`.
pub fn lower(files: LowerFiles) -> Result<DeviceLayer> {
    let LowerFiles { name, layer, target } = files;
    let in_layer = |error: Error| damaged(error, &name);
    let file = Box::new(Blob::layer(layer).map_err(in_layer)?.named(name.clone()));
    let Some(files) = target else {
        return Layer::open(file as Box<dyn DeviceFile>).map_err(|error| in_layer(error.into()));
    };
    let target_name = files.name.clone();
    let target = target_of(files)?;
    let size_bytes = target.size_bytes();
    let layer =
        Layer::open_turbo(file as Box<dyn DeviceFile>, target).map_err(|error| in_layer(error.into()))?;
    let mapped = layer.target_end();
    // The last sector of an archive's file is whole, but other targets may end in the middle of one.
    if mapped > size_bytes.next_multiple_of(SECTOR) {
        return Err(DeviceError::TargetSize { name: target_name, size_bytes, mapped }.into());
    }
    Ok(layer)
}

fn target_of(files: TargetFiles) -> Result<Box<dyn DeviceFile>> {
    let TargetFiles { name, file, gzip_index } = files;
    let opened = match gzip_index {
        Some(index) => Blob::gzip_target(file, index),
        None => match coding_of(&file).map_err(|error| damaged(error, &name))? {
            Coding::Plain => Blob::target(file),
            coding => return Err(DeviceError::TargetCoding { name, coding }.into()),
        },
    };
    Ok(Box::new(opened.map_err(|error| damaged(error, &name))?.named(name)))
}

/// Compression that the first bytes of a file show.
fn coding_of(file: &File) -> Result<Coding> {
    let len = usize::try_from(file.size_bytes()).unwrap_or(usize::MAX).min(Coding::PREFIX_LEN);
    let mut prefix = vec![0; len];
    file.read_exact_at(0, &mut prefix).map_err(Error::disk)?;
    Ok(Coding::detect(&prefix))
}

/// Opens a writable layer for reading.
///
/// Errors: those of its files, with their names.
fn upper(files: UpperFiles) -> Result<DeviceLayer> {
    let UpperFiles { name, data, index, target } = files;
    let in_upper = |error: LsmtError| Error::from(error).context(name.clone());
    match target {
        Some(target) => {
            let target = target_of(target)?;
            Layer::open_turbo_pair(Box::new(data) as Box<dyn DeviceFile>, &index, target).map_err(in_upper)
        }
        None => {
            let layer = writable(data, &index).map_err(|error| error.context(name.clone()))?;
            Ok(layer.map(|data| Box::new(data) as Box<dyn DeviceFile>))
        }
    }
}

/// Opens the files of a writable layer that is no turboOCI layer: its header says whether its data file is sparse.
pub fn writable(data: File, index: &File) -> Result<Layer<File>> {
    match Layer::is_sparse(&data)? {
        true => {
            let extents = extents(&data).map_err(Error::disk)?;
            Ok(Layer::open_sparse(data, extents)?)
        }
        false => Ok(Layer::open_pair(data, index)?),
    }
}

/// The parts of a file that are no holes.
fn extents(file: &File) -> io::Result<Vec<Extent>> {
    let (mut extents, mut next) = (Vec::new(), 0);
    while let Some((start, end)) = inode::next_data(file, next)? {
        extents.push(Extent { offset: start, len: end.saturating_sub(start) });
        next = end.max(start + 1);
    }
    Ok(extents)
}

/// Writes the device to `out`, which is empty: its bytes, with holes where it has no data or zeros.
pub fn flatten(device: &LayeredDevice, out: &mut impl Sink, work: Work<'_>) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut done = 0;
    for Extent { offset, len } in device.data(0, device.size_bytes()) {
        // The last sector of a device may be cut.
        let end = (offset + len).min(device.size_bytes());
        let mut at = offset;
        while at < end {
            work.cancel.check()?;
            let want = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let piece = buffer.get_mut(..want).unwrap_or_default();
            device.read_exact_at(at, piece).map_err(Error::disk)?;
            for part in piece.chunks(HOLE) {
                if part.iter().any(|byte| *byte != 0) {
                    out.write_at(at, part).map_err(Error::disk)?;
                }
                at += part.len() as u64;
            }
            done += want as u64;
            work.progress.set_done(done);
        }
    }
    out.set_len(device.size_bytes()).map_err(Error::disk)
}

/// Bytes of data that a device has, which [`flatten`] and committing copy.
pub fn data_bytes(device: &LayeredDevice) -> u64 {
    device.data(0, device.size_bytes()).map(|extent| extent.len).sum()
}
