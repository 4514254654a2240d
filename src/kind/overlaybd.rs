//! The words by which images and snapshots say what is on an overlaybd device.
//!
//! Source: accelerated-container-image `pkg/label/label.go`.

use serde::{Deserialize, Serialize};

/// Digest of a native layer's blob, or of a turboOCI layer's small archive.
pub const BLOB_DIGEST: &str = "containerd.io/snapshot/overlaybd/blob-digest";
/// Size of that blob in bytes, in decimal.
pub const BLOB_SIZE: &str = "containerd.io/snapshot/overlaybd/blob-size";
/// Version of the format.
pub const VERSION: &str = "containerd.io/snapshot/overlaybd/version";
/// Digest of the original layer, on a turboOCI layer; the second is the older spelling.
pub const TURBO_TARGETS: [&str; 2] = [
    "containerd.io/snapshot/overlaybd/turbo-oci/target-digest",
    "containerd.io/snapshot/overlaybd/fastoci/target-digest",
];

/// Media type of the original layer, on a turboOCI layer; the second is the older spelling.
pub const TURBO_TARGET_TYPES: [&str; 2] = [
    "containerd.io/snapshot/overlaybd/turbo-oci/target-media-type",
    "containerd.io/snapshot/overlaybd/fastoci/target-media-type",
];

/// The file system on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// EROFS.
    #[default]
    Erofs,
    /// ext4.
    Ext4,
}
