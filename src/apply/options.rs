//! Settings of Apply, as the configuration has them.

use serde::{Deserialize, Serialize};

use crate::{format::erofs::writer::WriteOptions, kind::overlaybd::Flavour, snapshot::Durability};

/// Settings for making, checking and publishing images.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Layout of images made from tar layers.
    pub image: WriteOptions,
    /// Moment at which a published image is synced to disk.
    pub durability: Durability,
    /// Check of layers that are EROFS images already.
    pub native_verify: NativeVerify,
    /// Attributes of directories that an archive uses but does not list.
    pub implied_directories: ImpliedDirectories,
    /// Layers of a snapshot that may be mounted one by one before they get merged metadata; 0: any number.
    pub max_unmerged_layers: u32,
    /// Layers in snapshots of devices.
    pub overlaybd: Overlaybd,
}

/// Settings for layers in snapshots of the overlaybd snapshotter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlaybd {
    /// Form of ordinary tar layers.
    pub layers: OrdinaryLayers,
    /// File system of a new device.
    pub flavour: Flavour,
    /// Size of a new device, in bytes.
    pub virtual_bytes: u64,
    /// Whether an archive gets an image beside it that the kernel can mount.
    pub kernel_index: bool,
    /// Whether published layers may come with an ext4 file system.
    pub published_ext4: bool,
}

impl Default for Overlaybd {
    fn default() -> Self {
        let (layers, flavour) = (OrdinaryLayers::default(), Flavour::default());
        let virtual_bytes = u64::from(Self::VIRTUAL_GIB) << 30;
        Self { layers, flavour, virtual_bytes, kernel_index: false, published_ext4: true }
    }
}

impl Overlaybd {
    /// Default size of a device, in GiB: that of the snapshotter's own conversions.
    pub const VIRTUAL_GIB: u32 = 256;
}

/// Form that an ordinary tar layer gets in a snapshot of the overlaybd snapshotter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrdinaryLayers {
    /// None, unless a label of the snapshot asks for a conversion: another differ unpacks the layer.
    #[default]
    AsLabelled,
    /// A turboOCI layer that points into the archive.
    Turbo,
    /// A native layer that holds all data.
    Native,
}

/// Check of a layer that is an EROFS image already, made before it is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NativeVerify {
    /// Checks the superblock and all metadata.
    #[default]
    Strict,
    /// Checks the superblock only.
    Superblock,
    /// Publishes the image unread.
    Off,
}

/// Source of the attributes of directories that an archive uses but does not list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImpliedDirectories {
    /// Copied from the directory of the layers below that they shadow. Where the layers cannot be read, as `Default`.
    #[default]
    FromParents,
    /// Owned by root, mode 0755, time 0.
    Default,
}
