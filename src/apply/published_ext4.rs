//! Refuses layers of devices that come with an ext4 file system, where the operator does not want such.
//!
//! The kernel mounts a published file system as it is, and its ext4 driver does not promise to withstand a hostile one.

use crate::{
    error::{Classify, Error, Kind, Result},
    format::{
        ReadAt,
        ext4::superblock::Superblock,
        lsmt::{Layer, SectorPlace},
    },
};

/// Unit in which a layer maps the device, in bytes.
const SECTOR: u64 = 512;
/// Byte of the device at which an ext4 file system has its magic number.
const MAGIC_AT: u64 = Superblock::OFFSET + Superblock::MAGIC_OFFSET;

/// Reason why a layer is refused that comes with a file system.
#[derive(Debug, thiserror::Error)]
pub(super) enum PublishedExt4 {
    /// The archive has metadata of that kind.
    #[error("the layer comes with ext4.fs.meta, and overlaybd.published_ext4 is false")]
    Metadata,
    /// The layer writes the superblock.
    #[error(
        "the layer has the magic number {:#06x} of ext4 at byte {MAGIC_AT} of the device, and \
         overlaybd.published_ext4 is false",
        Superblock::MAGIC
    )]
    Superblock,
    /// The superblock is in a file that is not at hand.
    #[error(
        "the layer has byte {MAGIC_AT} of the device, where ext4 has its magic number, in its original layer, \
         which is not looked at, and overlaybd.published_ext4 is false"
    )]
    Elsewhere,
}

impl Classify for PublishedExt4 {
    fn kind(&self) -> Kind {
        Kind::Denied
    }

    fn reason(&self) -> &'static str {
        "overlaybd.published-ext4"
    }
}

/// Refuses `layer`, which `file` holds, if the device shows an ext4 superblock of it.
///
/// A sector is in one layer as a whole, so one of them has the magic number or none. In the superblock of an EROFS these
/// bytes are in the middle of the UUID, where no UUID of RFC 9562 has them.
pub(super) fn refuse_superblock<R>(layer: &Layer<R>, file: &impl ReadAt) -> Result<()> {
    let at = match layer.sector(MAGIC_AT / SECTOR) {
        None => return Ok(()),
        Some(SectorPlace::Target) => return Err(PublishedExt4::Elsewhere.into()),
        Some(SectorPlace::Layer { at }) => at,
    };
    let mut found = [0; 2];
    file.read_exact_at(at * SECTOR + MAGIC_AT % SECTOR, &mut found).map_err(Error::disk)?;
    match u16::from_le_bytes(found) {
        Superblock::MAGIC => Err(PublishedExt4::Superblock.into()),
        _ => Ok(()),
    }
}
