//! Volumes: blocks to read, below the views of images.

use std::{fmt, fs::File, io};

use crate::format::{ReadAt, lsmt};

/// A file of a device, or the target of one of its layers: whatever is around the contents, they read as if they stood
/// alone.
pub trait DeviceFile: ReadAt + fmt::Debug + Send + Sync {}

impl<T: ReadAt + fmt::Debug + Send + Sync> DeviceFile for T {}

/// A stack of overlaybd layers.
// Their files are trait objects: there are many shapes of them, and one call reads many sectors.
pub type Device = lsmt::Device<Box<dyn DeviceFile>>;

/// Something whose blocks can be read.
// An enum and no trait object: image readers ask for single blocks, and one arm costs nothing.
#[derive(Debug)]
pub enum Volume {
    /// A file that holds the blocks in their order.
    File(File),
    /// A stack of overlaybd layers.
    Device(Box<Device>),
}

impl From<File> for Volume {
    fn from(file: File) -> Self {
        Self::File(file)
    }
}

impl From<Device> for Volume {
    fn from(device: Device) -> Self {
        Self::Device(Box::new(device))
    }
}

impl ReadAt for Volume {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(offset, buf),
            Self::Device(device) => device.read_exact_at(offset, buf),
        }
    }

    fn size_bytes(&self) -> u64 {
        match self {
            Self::File(file) => file.size_bytes(),
            Self::Device(device) => device.size_bytes(),
        }
    }
}
