//! Checks of the superblock and the tables it points at: sizes, features, devices.
//!
//! Source: Linux `fs/erofs/super.c`.

use super::{CheckError, Notes, Policy, Rule, ranges::Ranges};
use crate::{
    format::{
        ReadAt,
        erofs::{
            device::DeviceSlot,
            dump::feature_names,
            reader::Image,
            superblock::{Superblock, compat, incompat},
        },
    },
    tree::FileType,
};

/// Incompatible features that say an image holds compressed data.
const COMPRESSION: u32 = incompat::ZERO_PADDING | incompat::COMPR_CFGS | incompat::ZTAILPACKING;

/// Size of the image itself, in bytes, as the superblock declares it.
pub(super) fn declared_bytes<R: ReadAt>(image: &Image<R>) -> u64 {
    // Block counts have at most 48 bits, block sizes at most 16.
    image.own_blocks() << image.superblock().block_bits.get()
}

/// Checks the superblock against the policy. Returns the bytes of the superblock and its tables.
pub(super) fn check<R: ReadAt>(
    image: &Image<R>,
    policy: &Policy,
    notes: &mut Notes,
) -> Result<Ranges, CheckError> {
    let superblock = image.superblock();
    features(superblock, policy)?;
    let (declared, found) = (declared_bytes(image), image.size_bytes());
    if declared > found || declared < Superblock::OFFSET + Superblock::LEN as u64 {
        return Err(CheckError::image(
            Rule::Blocks,
            format!("the superblock declares {declared} bytes, the file has {found}"),
        ));
    }
    devices(image)?;
    let mut ranges = Ranges::default();
    // Bytes 0 to 1023 belong to boot loaders: nothing else may lie there.
    let extensions = usize::from(superblock.extension_slots) * Superblock::SLOT_LEN;
    ranges.add(0, Superblock::OFFSET + (Superblock::LEN + extensions) as u64);
    if superblock.has_incompat(incompat::DEVICE_TABLE) {
        let start = u64::from(superblock.device_slot_offset) * DeviceSlot::LEN as u64;
        ranges.add(start, start + (image.slots().len() * DeviceSlot::LEN) as u64);
    }
    for (start, len) in image.prefix_places() {
        ranges.add(start, start + len);
    }
    // The configurations follow the superblock; a kernel reads them when it mounts.
    ranges.add(Superblock::OFFSET + (Superblock::LEN + extensions) as u64, image.compression()?.end);
    if let Some(packed) = image.packed()?
        && packed.inode.file_type != FileType::Regular
    {
        let detail = format!("the packed file is {:?}", packed.inode.file_type);
        return Err(CheckError::inode(Rule::Packed, packed.nid, detail));
    }
    lints(image, notes)?;
    Ok(ranges)
}

fn features(superblock: &Superblock, policy: &Policy) -> Result<(), CheckError> {
    let bits = superblock.block_bits.get();
    if bits > policy.max_block_bits {
        return Err(CheckError::image(
            Rule::BlockSize,
            format!("blocks of {} bytes are above 2^{}", superblock.block_bits.size(), policy.max_block_bits),
        ));
    }
    let refused = superblock.feature_incompat & !policy.incompat;
    // One bit stands for a device table and for a second compression algorithm.
    if superblock.has_incompat(incompat::DEVICE_TABLE) && superblock.extra_devices > 0 && !policy.devices {
        return Err(CheckError::image(
            Rule::Devices,
            format!("the image refers to {} extra devices", superblock.extra_devices),
        ));
    }
    let refused_compat = superblock.feature_compat & !policy.compat;
    for (refused, names_of) in [(refused, &incompat::NAMES[..]), (refused_compat, &compat::NAMES[..])] {
        if refused != 0 {
            let found = feature_names(refused, names_of);
            return Err(CheckError::image(Rule::Feature, format!("features not allowed: {found}")));
        }
    }
    // Kernels that know prefixes read the table whatever the bit says; older kernels do not know
    // it.
    let prefixes = superblock.xattr_prefix_count;
    if prefixes > 0 && !superblock.has_incompat(incompat::XATTR_PREFIXES) {
        let detail = format!("{prefixes} xattr prefixes without the feature");
        return Err(CheckError::image(Rule::Field, detail));
    }
    if superblock.has_compat(compat::SHARED_EA_IN_METABOX) {
        let detail = "shared xattrs lie in a metabox, which the image does not have";
        return Err(CheckError::image(Rule::Field, detail));
    }
    if superblock.has_compat(compat::ISHARE_XATTRS) && superblock.ishare_prefix_id >= prefixes {
        let id = superblock.ishare_prefix_id;
        let detail = format!("xattr prefix {id} of {prefixes} is that of the content fingerprint");
        return Err(CheckError::image(Rule::Field, detail));
    }
    Ok(())
}

/// Checks that devices neither overlap the image on the unified line nor end outside their files.
fn devices<R: ReadAt>(image: &Image<R>) -> Result<(), CheckError> {
    let superblock = image.superblock();
    for (id, slot) in (1_u16..).zip(image.slots()) {
        let in_file = image.has_device_files();
        // A device without a place on the line needs a separate file.
        let on_line = slot.unified_start != 0 || !in_file;
        if on_line && slot.unified_start < image.own_blocks() {
            return Err(CheckError::image(
                Rule::DeviceRange,
                format!(
                    "device {id} starts at block {}, the image ends at {}",
                    slot.unified_start,
                    image.own_blocks()
                ),
            ));
        }
        let start = if in_file { 0 } else { slot.unified_start };
        let end = superblock.block_bits.offset(start + slot.blocks);
        let size = image.device_size_bytes(id).unwrap_or(0);
        if end.is_none_or(|end| end > size) {
            return Err(CheckError::image(
                Rule::DeviceRange,
                format!(
                    "device {id}, {} blocks from block {start} on, ends outside {size} bytes",
                    slot.blocks
                ),
            ));
        }
    }
    Ok(())
}

fn lints<R: ReadAt>(image: &Image<R>, notes: &mut Notes) -> Result<(), CheckError> {
    let superblock = image.superblock();
    let mut record = [0; Superblock::LEN];
    image.read_at(Superblock::OFFSET, &mut record, "superblock")?;
    let (_, reserved) = record.split_at(0x78);
    let (_, gap) = record.split_at(0x6A);
    if gap.iter().take(2).chain(reserved).any(|byte| *byte != 0) {
        notes.lint(Rule::Reserved, None, || "reserved bytes of the superblock are not zero".into());
    }
    if superblock.fixed_nsec >= 1_000_000_000 {
        let found = superblock.fixed_nsec;
        notes.lint(Rule::Time, None, || format!("the superblock has {found} nanoseconds"));
    }
    if !superblock.has_compat(compat::MTIME) {
        notes.lint(Rule::Unused, None, || "the feature mtime is not set".into());
    }
    if superblock.has_incompat(incompat::XATTR_PREFIXES) != (superblock.xattr_prefix_count > 0) {
        notes
            .lint(Rule::Unused, None, || "the feature xattr_prefixes has no prefixes, or the reverse".into());
    }
    if superblock.has_incompat(incompat::DEVICE_TABLE) != (superblock.extra_devices > 0)
        && !superblock.has_incompat(COMPRESSION)
    {
        notes.lint(Rule::Unused, None, || "the feature device_table has no devices, or the reverse".into());
    }
    if superblock.compression != 0 && !superblock.has_incompat(COMPRESSION) {
        let found = superblock.compression;
        notes.lint(Rule::Unused, None, || format!("algorithms {found:#x} of an image without compression"));
    }
    Ok(())
}
