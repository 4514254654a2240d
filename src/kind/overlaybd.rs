//! The words by which images and snapshots say that a layer is overlaybd's: annotations, labels and file systems.
//!
//! There are no media types of their own: a native layer is a plain tar with one member, a turboOCI layer a small
//! compressed tar. An annotation below `containerd.io/snapshot/` becomes a label of the layer's snapshot.
//!
//! Source: accelerated-container-image `pkg/label/label.go`, `docs/IMAGE_CONVERTOR.md`.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Digest of a native layer's blob, or of a turboOCI layer's small archive.
pub const BLOB_DIGEST: &str = "containerd.io/snapshot/overlaybd/blob-digest";
/// Size of that blob in bytes, in decimal.
pub const BLOB_SIZE: &str = "containerd.io/snapshot/overlaybd/blob-size";
/// Version of the format.
pub const VERSION: &str = "containerd.io/snapshot/overlaybd/version";
/// Version of native layers.
pub const NATIVE_VERSION: &str = "0.1.0";
/// The file system on the device; options of mount and mkfs may follow, each after a semicolon.
pub const FS_TYPE: &str = "containerd.io/snapshot/overlaybd/blob-fs-type";
/// `yes` on a layer that holds a list of blocks to fetch early.
const ACCELERATION: &str = "containerd.io/snapshot/overlaybd/acceleration-layer";
/// Asks for the local conversion of an ordinary layer to turboOCI.
pub const CONVERT: &str = "containerd.io/snapshot/overlaybd/convert2turbo-oci";
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// EROFS.
    #[default]
    Erofs,
    /// ext4.
    Ext4,
}

impl Flavour {
    /// Name of the file system, as annotations have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
        }
    }

    /// Returns the file system that the value of [`FS_TYPE`] names; `None` for one that is neither.
    pub fn of_annotation(value: &str) -> Option<Self> {
        value.split(';').next().unwrap_or_default().parse().ok()
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Flavour {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, &'static str> {
        let found = [Self::Erofs, Self::Ext4].into_iter().find(|flavour| flavour.as_str() == name);
        found.ok_or("neither erofs nor ext4")
    }
}

/// The kind of a layer, by the annotations of its descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A native layer: its blob holds blocks of a device.
    Native,
    /// A list of blocks to fetch early.
    Acceleration,
    /// A turboOCI layer: metadata of a file system whose file data is in the original layer.
    Turbo,
}

impl Mark {
    /// Returns the mark in `annotations`. A turboOCI layer has those of a native one as well.
    pub fn of(annotations: &BTreeMap<String, String>) -> Option<Self> {
        let has = |name: &str| annotations.contains_key(name);
        if TURBO_TARGETS.iter().any(|name| has(name)) {
            return Some(Self::Turbo);
        }
        if annotations.get(ACCELERATION).is_some_and(|value| value == "yes") {
            return Some(Self::Acceleration);
        }
        has(BLOB_DIGEST).then_some(Self::Native)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_mark_a_layer() {
        let mark = |names: &[(&str, &str)]| {
            let pairs = names.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            Mark::of(&pairs.collect())
        };
        let [new, old] = TURBO_TARGETS;
        assert_eq!(mark(&[]), None);
        assert_eq!(mark(&[(BLOB_SIZE, "1"), (VERSION, "0.1.0")]), None);
        assert_eq!(mark(&[(BLOB_DIGEST, "sha256:x")]), Some(Mark::Native));
        assert_eq!(mark(&[(BLOB_DIGEST, "sha256:x"), (new, "sha256:y")]), Some(Mark::Turbo));
        assert_eq!(mark(&[(old, "sha256:y")]), Some(Mark::Turbo));
        assert_eq!(mark(&[(BLOB_DIGEST, "sha256:x"), (ACCELERATION, "yes")]), Some(Mark::Acceleration));
        assert_eq!(mark(&[(BLOB_DIGEST, "sha256:x"), (ACCELERATION, "no")]), Some(Mark::Native));
    }

    #[test]
    fn a_file_system_is_named_before_its_options() {
        assert_eq!(Flavour::of_annotation("erofs"), Some(Flavour::Erofs));
        assert_eq!(Flavour::of_annotation("ext4;noload;-b 4096"), Some(Flavour::Ext4));
        assert_eq!(Flavour::of_annotation("ntfs"), None);
    }
}
