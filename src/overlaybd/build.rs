//! Builds the layer of a device: the entries of an archive become the file system on it, above what it has already.
//!
//! The layer holds what differs from the device below: new inodes and names, and the data of new files or, for turboOCI,
//! a mapping to the archive. The result does not depend on threads, on how the archive is compressed, or on how it is
//! split.
//!
//! Described in `docs/formats/overlaybd.md`, "The file system on the device".

use std::{io, sync::Arc};

use super::{device::index_bytes, options::DeviceOptions};
use crate::{
    error::{Classify, Error, Kind, Quoted, Result},
    format::{
        ReadAt, Remote, Sink,
        erofs::{
            check::Level,
            reader::Image,
            writer::{self, Summary, WriteOptions, is_mappable},
        },
        lsmt::{self, CommitOptions, Targets},
        zfile,
    },
    kind::sniff,
    pipeline::{
        Plan,
        budget::Use,
        helpers::Helpers,
        image::{self, ImageWriter},
        unpack::Entries,
        zfile as compress,
    },
    tree::{Body, Entry},
};

/// Where a layer has the data of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPlace {
    /// In the layer: native overlaybd.
    Layer,
    /// In the archive, which is the target of the layer: turboOCI.
    Target,
}

/// Reason why no layer can be built.
#[derive(Debug, thiserror::Error)]
enum BuildError {
    /// The device has an ext4 file system.
    #[error("the device has an ext4 file system, which no layer can be written on yet")]
    Ext4,
    /// The device has something else.
    #[error("the device has neither an EROFS nor an ext4 file system, and is not empty")]
    FileSystem,
    /// The device is smaller than the file system on it would be.
    #[error("the device of {size_bytes} bytes ends before byte {end}")]
    Full {
        /// Size of the device.
        size_bytes: u64,
        /// Byte after the last one that is needed.
        end: u64,
    },
    /// The metadata of an archive does not say where the data of a sparse file is.
    #[error(
        "{}: the data of a sparse file is not in whole sectors, and the archive's metadata does not hold it",
        Quoted(path)
    )]
    Sparse {
        /// Name of the file.
        path: Vec<u8>,
    },
}

impl Classify for BuildError {
    fn kind(&self) -> Kind {
        match self {
            Self::Ext4 | Self::FileSystem | Self::Sparse { .. } => Kind::NotImplemented,
            Self::Full { .. } => Kind::Exhausted,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Ext4 => "overlaybd.ext4",
            Self::FileSystem => "overlaybd.file-system",
            Self::Full { .. } => "overlaybd.device-full",
            Self::Sparse { .. } => "overlaybd.import-sparse",
        }
    }
}

/// The device that a layer goes on.
pub struct Base<'d> {
    device: Option<&'d dyn ReadAt>,
    size_bytes: u64,
    /// File system on it; `None` for an empty device.
    image: Option<Image<&'d dyn ReadAt>>,
}

/// Bytes at the start of a device in which every file system has a magic number.
const HEAD_BYTES: usize = 64 << 10;

impl<'d> Base<'d> {
    /// A new device. Errors: [`DeviceOptions::check`].
    pub fn new(options: &DeviceOptions) -> Result<Self> {
        options.check()?;
        Ok(Self { device: None, size_bytes: options.virtual_bytes, image: None })
    }

    /// The device that the layers below make.
    ///
    /// Errors: a file system that no layer can be written on; one that is damaged, of kind `DataLoss`; for an empty
    /// device those of [`DeviceOptions::check`].
    pub fn open(device: &'d dyn ReadAt, options: &DeviceOptions) -> Result<Self> {
        let size_bytes = device.size_bytes();
        let mut head = vec![0; usize::try_from(size_bytes).unwrap_or(HEAD_BYTES).min(HEAD_BYTES)];
        device.read_exact_at(0, &mut head).map_err(Error::disk)?;
        let has = |offset: u64, magic: &[u8]| {
            let at = usize::try_from(offset).ok().and_then(|offset| head.get(offset..));
            at.is_some_and(|bytes| bytes.starts_with(magic))
        };
        match sniff::Image::of(has) {
            Some(sniff::Image::Erofs) => {
                let image = Image::open(device).map_err(damaged)?;
                Ok(Self { device: Some(device), size_bytes, image: Some(image) })
            }
            Some(sniff::Image::Ext4) => Err(BuildError::Ext4.into()),
            None if head.iter().any(|byte| *byte != 0) => Err(BuildError::FileSystem.into()),
            None => {
                DeviceOptions { virtual_bytes: size_bytes, ..*options }.check()?;
                Ok(Self { device: Some(device), size_bytes, image: None })
            }
        }
    }

    /// Checks the whole file system on the device with `layer` on top. The writer of the layer must be gone.
    ///
    /// Errors: a broken rule is a fault of this program, or damage of the device below, of kind `DataLoss`. Also when the
    /// request gets no more memory.
    pub fn check<R: ReadAt>(&self, layer: &lsmt::Device<R>, plan: Plan<'_>) -> Result<()> {
        let (lease, cancel) = (plan.lease, plan.work.cancel);
        let below_bytes = lease.used(Use::Device);
        lease.charge(Use::Metadata, 0, cancel)?;
        lease.charge(Use::Device, below_bytes.saturating_add(index_bytes(layer)), cancel)?;
        self.check_within(layer, plan)?;
        lease.charge(Use::Device, below_bytes, cancel)
    }

    fn check_within<R: ReadAt>(&self, layer: &lsmt::Device<R>, plan: Plan<'_>) -> Result<()> {
        let whole = Whole { layer, below: self.device };
        let (limits, lease, cancel) = (&plan.resources.limits, plan.lease, plan.work.cancel);
        image::verify_own(&whole, &[], limits, lease, cancel).map_err(|error| {
            // What is wrong may lie in parts of the device that the layer leaves as they are.
            let below = self.device.filter(|_| self.image.is_some());
            let below = below.and_then(|below| {
                image::verify(&below, Level::Strict, limits, lease, cancel).map_err(damaged).err()
            });
            below.unwrap_or(error)
        })
    }

    /// Whether the device has a file system already.
    pub fn has_file_system(&self) -> bool {
        self.image.is_some()
    }
}

/// What is on a device already was sound when it got there.
fn damaged(error: impl Into<Error>) -> Error {
    let error = error.into();
    match error.kind() {
        Kind::Malformed => error.with_kind(Kind::DataLoss),
        _ => error,
    }
    .context("the device below")
}

/// A layer that entries are added to.
pub struct LayerWriter<'a, S> {
    image: ImageWriter<'a, Ended<lsmt::Writer<S>>>,
    place: DataPlace,
}

impl<'a, S: Sink> LayerWriter<'a, S> {
    /// Begins a layer on `base`, in an empty `scratch` file.
    pub fn new(scratch: S, base: &Base<'_>, place: DataPlace, plan: Plan<'a>) -> Result<Self> {
        let limits = &plan.resources.limits;
        let options = writer::Options {
            image: WriteOptions::DEFAULT,
            max_nodes: limits.nodes,
            max_metadata_bytes: limits.metadata_bytes,
            ..writer::Options::default()
        };
        let size_bytes = base.size_bytes;
        let sink = Ended { inner: lsmt::Writer::new(scratch, size_bytes), size_bytes };
        let below = base.image.as_ref().map(Image::superblock);
        let image = ImageWriter::device(sink, options, below, plan.lease, plan.work.cancel)?;
        Ok(Self { image, place })
    }

    /// Takes an entry whose data the archive has from byte `data_start` on. [`Self::data`] and [`Self::end_entry`] take
    /// the data of a regular file, wherever the layer has it.
    pub fn entry(&mut self, entry: &Entry, data_start: u64) -> Result<()> {
        match self.place {
            DataPlace::Layer => self.image.entry(entry),
            DataPlace::Target => self.image.entry_mapped(entry, data_start),
        }
    }

    /// Takes data of the current entry from byte `offset` of the file on.
    pub fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.image.data(offset, bytes)
    }

    /// Ends the data of the current entry.
    pub fn end_entry(&mut self) -> Result<()> {
        self.image.end_entry()
    }

    /// Takes an entry of an archive whose data does not come.
    ///
    /// Errors: also [`BuildError::Sparse`].
    pub fn import(&mut self, entry: &Entry, data_start: u64) -> Result<()> {
        if matches!(entry.body, Body::Regular { .. }) && !is_mappable(&entry.body, data_start) {
            return Err(BuildError::Sparse { path: entry.path.clone() }.into());
        }
        self.entry(entry, data_start)?;
        self.end_entry()
    }

    /// Completes the layer, and checks the whole file system on the device with it.
    pub fn finish(self, base: &Base<'_>, plan: Plan<'_>) -> Result<NewLayer<S>>
    where
        S: ReadAt,
    {
        let layer = self.finish_unchecked(base)?;
        base.check(&layer.device, plan)?;
        Ok(layer)
    }

    /// Completes the layer, which the caller checks in its last form: see [`Base::check`].
    pub fn finish_unchecked(self, base: &Base<'_>) -> Result<NewLayer<S>>
    where
        S: ReadAt,
    {
        let (sink, summary) =
            self.image.finish_above(base.image.as_ref()).map_err(|error| match error.reason() {
                // The reader of images has no other reasons, and this one reads what is below.
                reason if reason.starts_with("erofs.") => damaged(error),
                _ => error,
            })?;
        let device = lsmt::Device::new(vec![sink.inner.finish()?])?;
        Ok(NewLayer { device, place: self.place, summary })
    }
}

impl<S: Sink + Send> Entries for LayerWriter<'_, S> {
    fn entry(&mut self, entry: &Entry, data_start: u64) -> Result<()> {
        self.entry(entry, data_start)
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.data(offset, bytes)
    }

    fn end_entry(&mut self) -> Result<()> {
        self.end_entry()
    }
}

/// Takes the entries of an archive's metadata, whose data does not come.
pub struct Imports<'a, S>(pub LayerWriter<'a, S>);

impl<S: Sink + Send> Entries for Imports<'_, S> {
    fn entry(&mut self, entry: &Entry, data_start: u64) -> Result<()> {
        self.0.import(entry, data_start)
    }

    fn data(&mut self, _offset: u64, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }

    fn end_entry(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A sink that ends with the device.
struct Ended<S> {
    inner: S,
    size_bytes: u64,
}

impl<S> Ended<S> {
    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        let (size_bytes, end) = (self.size_bytes, offset.saturating_add(len));
        if end > size_bytes {
            Err(Error::from(BuildError::Full { size_bytes, end }).into_io())
        } else {
            Ok(())
        }
    }
}

impl<S: Sink> Sink for Ended<S> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(offset, bytes.len() as u64)?;
        self.inner.write_at(offset, bytes)
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.discard(offset, len)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.check(len, 0)?;
        self.inner.set_len(len)
    }

    fn memory_bytes(&self) -> u64 {
        self.inner.memory_bytes()
    }
}

impl<S: Remote> Remote for Ended<S> {
    fn map(&mut self, offset: u64, len: u64, target: u64) -> io::Result<()> {
        self.check(offset, len)?;
        self.inner.map(offset, len, target)
    }
}

/// The device with the new layer.
struct Whole<'a, S> {
    layer: &'a lsmt::Device<S>,
    below: Option<&'a dyn ReadAt>,
}

impl<S: ReadAt> ReadAt for Whole<'_, S> {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self.below {
            Some(below) => below.read_exact_at(offset, buf)?,
            None => buf.fill(0),
        }
        let end = offset.saturating_add(buf.len() as u64);
        for mapped in self.layer.data(offset, end) {
            let (start, stop) = (mapped.offset.max(offset), (mapped.offset + mapped.len).min(end));
            let [from, to] = [start, stop].map(|at| usize::try_from(at - offset).unwrap_or(usize::MAX));
            if let Some(part) = buf.get_mut(from..to) {
                self.layer.read_exact_at(start, part)?;
            }
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.layer.size_bytes()
    }
}

/// A layer that was built and checked, in its scratch file.
pub struct NewLayer<S> {
    device: lsmt::Device<S>,
    place: DataPlace,
    /// Counts of what is on the device.
    pub summary: Summary,
}

/// Sizes of a layer's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Size of the layer before it was compressed.
    pub layer_bytes: u64,
    /// Size of the file.
    pub file_bytes: u64,
}

impl<S: ReadAt> NewLayer<S> {
    /// Writes the layer to `out`, which is empty: committed, and compressed as a ZFile.
    pub fn write(
        &self,
        options: zfile::writer::Options,
        helpers: &Arc<Helpers>,
        out: &mut impl Sink,
    ) -> Result<Written> {
        let commit = CommitOptions { targets: self.targets(), ..CommitOptions::default() };
        let (_, written) = compress::write(helpers, options, out, |out| {
            let mut out = out;
            self.device.commit(&commit, &mut out).map_err(Error::from)
        })?;
        Ok(Written { layer_bytes: written.contents_bytes, file_bytes: written.file_bytes })
    }

    /// The layer as a device of its own.
    pub fn device(&self) -> &lsmt::Device<S> {
        &self.device
    }

    /// The layer itself, to be written to the files of a writable one.
    pub fn into_layer(self) -> Option<lsmt::Layer<S>> {
        self.device.into_layer()
    }

    fn targets(&self) -> Targets {
        match self.place {
            DataPlace::Layer => Targets::Store,
            DataPlace::Target => Targets::Keep,
        }
    }
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
