//! The words by which images and snapshots say what is on an overlaybd device.
//!
//! Source: accelerated-container-image `pkg/label/label.go`.

use serde::{Deserialize, Serialize};

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
