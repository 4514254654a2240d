//! The description of one flat disk that is made of a merged image and its layers, for virtual machines.
//!
//! A merged image also mounts without `device=` where its layers follow it on the same disk, in the order of its device
//! table. So a monitor that understands such a description attaches one read-only disk instead of one for each layer.
//!
//! The format is the text descriptor of VMware virtual disks with flat extents. Source: VMware, "Virtual Disk Format
//! 5.0"; QEMU `block/vmdk.c`, which reads it.

use std::{fmt::Write as _, os::unix::ffi::OsStrExt as _, path::Path};

use super::error::MergeError;
use crate::format::{
    ReadAt,
    erofs::{BlockBits, reader::Image},
};

/// Unit of extents, in bytes.
const SECTOR: u64 = 512;
/// Most sectors of one extent: 2 GiB, as the type of the disk says.
const LARGEST: u64 = (2 << 30) / SECTOR;

/// Describes the disk of the merged image `merged`, which is at `path`, and of the files `layers` behind it: its devices,
/// in their order.
///
/// Errors: [`MergeError::Extent`] for names that the format cannot spell; [`MergeError::Layers`] unless there are as many
/// layers as devices.
pub fn describe<R: ReadAt>(merged: &Image<R>, path: &Path, layers: &[&Path]) -> Result<String, MergeError> {
    let superblock = merged.superblock();
    if layers.len() != merged.slots().len() {
        return Err(MergeError::Layers { count: layers.len() });
    }
    let [a, b, c, d, ..] = superblock.uuid;
    let id = u32::from_be_bytes([a, b, c, d]);
    let mut text = format!(
        "# Disk DescriptorFile\nversion=1\nCID={id:08x}\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n\n\
         # Extent description\n"
    );
    let bits = superblock.block_bits;
    let mut all = extent(&mut text, path, superblock.blocks, bits)?;
    for (layer, slot) in layers.iter().zip(merged.slots()) {
        all = all.saturating_add(extent(&mut text, layer, slot.blocks, bits)?);
    }
    // Nobody reads the geometry, but readers want one.
    let (heads, sectors) = (16, 63);
    let cylinders = all / (heads * sectors);
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"{heads}\"\nddb.geometry.sectors = \"{sectors}\"\nddb.adapterType = \"ide\"\n"
    );
    Ok(text)
}

/// Adds the extents of a file of `blocks` blocks. Returns their sectors.
fn extent(text: &mut String, path: &Path, blocks: u64, bits: BlockBits) -> Result<u64, MergeError> {
    let name = path.as_os_str().as_bytes();
    let refused = |why| MergeError::Extent { name: name.to_vec(), why };
    let spelled = str::from_utf8(name).map_err(|_not_utf8| refused("it is not UTF-8"))?;
    if spelled.contains(['"', '\n', '\r']) {
        return Err(refused("it has a quotation mark or a line break"));
    }
    let all = blocks.saturating_mul(bits.size() / SECTOR);
    let mut at = 0;
    while at < all {
        let sectors = (all - at).min(LARGEST);
        let _ = writeln!(text, "RW {sectors} FLAT \"{spelled}\" {at}");
        at += sectors;
    }
    Ok(all)
}
