//! The snapshotter's directories: which one a mount list means, and how a layer gets into it.
//!
//! A mount list is a claim. [`Roots`] turns it into one [`SnapshotDir`] below a root that the operator
//! configured, or refuses; [`LayerFile`] publishes one file in it, whole or not at all. What is in
//! that file is not this module's matter. For reading, [`Roots::stack`] turns a list into all the layers
//! it stacks, and mounts none.
//!
//! Source: docs/formats/containerd.md, "Mount lists", "From a list to a stack" and "Publishing a layer".

mod block;
mod error;
mod ids;
mod layer_file;
#[cfg(test)]
mod lists_tests;
mod lock;
mod mount;
mod plan;
mod resolve;
mod roots;
mod stack;
mod sweep;

pub use block::Watch;
pub use error::MountError;
pub use ids::{IdMap, IdMaps};
pub use layer_file::{Durability, LayerError, LayerFile};
pub use mount::Mount;
pub use resolve::Access;
pub use roots::{Roots, RootsError, SnapshotDir, check_root};
pub use stack::{LayerSource, Stack, StackLayer};
pub use sweep::{Sweep, Swept};

use std::ffi::CStr;

/// The name under which the snapshotter looks for a layer.
pub const LAYER_NAME: &CStr = c"layer.erofs";
