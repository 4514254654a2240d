//! Settings of Apply, as the configuration has them.

use serde::{Deserialize, Serialize};

use crate::{format::erofs::writer::WriteOptions, snapshot::Durability};

/// How images are made, checked and published.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Layout of images made from tar layers.
    pub image: WriteOptions,
    /// When a published image is on disk.
    pub durability: Durability,
    /// How images that come ready are checked.
    pub native_verify: NativeVerify,
    /// The attributes of directories that an archive does not list.
    pub implied_directories: ImpliedDirectories,
}

/// How an image that comes ready is checked before it is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NativeVerify {
    /// All its metadata.
    #[default]
    Strict,
    /// Its superblock.
    Superblock,
    /// Not at all.
    Off,
}

/// Where directories that an archive does not list get their attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImpliedDirectories {
    /// Like the directory of the layers below that they shadow, where that can be seen; otherwise root's.
    #[default]
    FromParents,
    /// Root's, of mode 0755 and time 0.
    Default,
}
