//! Options of devices. Configuration, commands and the builder share them.

use crate::{
    error::{Error, Kind, Result},
    format::erofs::BlockBits,
    kind::overlaybd::Flavour,
};

/// What a device is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// File system of a new device. One that is there already stays what it is.
    pub flavour: Flavour,
    /// Size of a new device in bytes, a multiple of 4096. One that is there already keeps its size.
    pub virtual_bytes: u64,
}

impl DeviceOptions {
    /// Size of devices whose layers hold all data, as published images have it.
    pub const NATIVE_BYTES: u64 = 64 << 30;
    /// Size of devices over archives on this host, as the snapshotter's own conversion has it.
    pub const TURBO_BYTES: u64 = 256 << 30;

    /// Refuses what cannot be built, before anything is read or written.
    pub fn check(&self) -> Result<()> {
        if self.flavour == Flavour::Ext4 {
            let message = "making an ext4 file system on a device is not supported; ask for erofs";
            return Err(Error::new(Kind::NotImplemented, "overlaybd.ext4", message));
        }
        if self.virtual_bytes == 0 || !self.virtual_bytes.is_multiple_of(BlockBits::DEFAULT.size()) {
            let message =
                format!("a device of {} bytes has no whole blocks of 4096 bytes", self.virtual_bytes);
            return Err(Error::new(Kind::Malformed, "overlaybd.virtual-size", message));
        }
        Ok(())
    }
}
