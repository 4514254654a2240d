//! Settings of Apply, as the configuration has them.

use serde::{Deserialize, Serialize};

use crate::{format::erofs::writer::WriteOptions, snapshot::Durability};

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
