//! Policies of the check: features and limits that an image is allowed, and how much of it is read.
//!
//! Described in `docs/formats/erofs.md`, "Checking".

use crate::format::erofs::superblock::{compat, incompat};

/// Limits and permissions that an image is checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Depth of the check: superblock only, or everything.
    pub level: Level,
    /// log2 of the largest block size: that of a page on the machine that mounts the image.
    pub max_block_bits: u8,
    /// Compatible feature bits that may be set.
    pub compat: u32,
    /// Incompatible feature bits that may be set.
    pub incompat: u32,
    /// True when data may lie on extra devices.
    pub devices: bool,
    /// True when attributes may steer overlayfs: redirect, metacopy, and any value of `opaque` and
    /// `origin`.
    pub overlay_control: bool,
    /// Most directory records, `.` and `..` not counted.
    pub max_nodes: u64,
    /// Most memory that the check holds, in bytes.
    pub max_memory_bytes: u64,
}

/// Depth of a check: how much of the image it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Superblock, tables and root inode only.
    Superblock,
    /// Every inode, directory and attribute.
    Strict,
}

// Without ISHARE_XATTRS: by a forged content fingerprint a layer could share another's pages.
const LAYER_COMPAT: u32 = compat::SB_CHKSUM | compat::MTIME | compat::XATTR_FILTER | compat::PLAIN_XATTR_PFX;
const LAYER_INCOMPAT: u32 = incompat::KNOWN & !incompat::METABOX;

impl Policy {
    /// Policy for a layer from a stranger and for our own output: no extra devices, no metabox, no
    /// references into other layers. It does not ask which kernel an image needs: one that is too
    /// old does not mount it.
    pub fn layer() -> Self {
        let limits = crate::limits::Limits::default();
        Self {
            level: Level::Strict,
            // The page size of most machines; a kernel mounts no larger blocks.
            max_block_bits: 12,
            compat: LAYER_COMPAT,
            incompat: LAYER_INCOMPAT,
            devices: false,
            overlay_control: false,
            max_nodes: limits.nodes,
            max_memory_bytes: limits.metadata_bytes,
        }
    }

    /// Policy for looking at images of any origin: sound, but with devices, all known features,
    /// blocks up to 64 KiB, and attributes that steer overlayfs.
    pub fn any() -> Self {
        Self { max_block_bits: 16, compat: u32::MAX, devices: true, overlay_control: true, ..Self::layer() }
    }
}
