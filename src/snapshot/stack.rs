//! The layers that a mount list stacks, opened without mounting any.
//!
//! Source: docs/formats/containerd.md, "Mount lists" and "Diff".

use std::{fs::File, path::PathBuf};

use crate::sys::dir::Dir;

/// The layers of one snapshot, the newest first. Empty for a view of nothing.
#[derive(Debug, Default)]
pub struct Stack {
    /// Newest first.
    pub layers: Vec<StackLayer>,
}

/// One layer of a stack.
#[derive(Debug)]
pub struct StackLayer {
    /// For messages; nothing is opened by this path.
    pub path: PathBuf,
    /// Device and inode number of the directory or image: the same layer has the same key.
    pub key: (u64, u64),
    /// What holds it.
    pub source: LayerSource,
}

/// What holds a layer.
#[derive(Debug)]
pub enum LayerSource {
    /// A directory, which a container may be writing to.
    Directory {
        /// The layer's root.
        dir: Dir,
        /// The mount has overlayfs keep its attributes in `user.overlay.` instead of `trusted.overlay.`.
        user_xattr: bool,
    },
    /// An EROFS image and the further devices it names.
    Erofs {
        /// The image.
        image: File,
        /// In the order of its device table.
        devices: Vec<File>,
    },
    /// An ext4 image mounted nowhere, whose directory `upper` is the layer.
    Ext4 {
        /// The image.
        image: File,
    },
}
