//! The snapshotter's directories: which one a mount list means, and how a layer gets into it.
//!
//! A mount list is a claim. [`Roots`] turns it into one [`SnapshotDir`] below a root that the operator
//! configured, or refuses; [`LayerFile`] publishes one file in it, whole or not at all. What is in
//! that file is not this module's matter.
//!
//! Source: docs/formats/containerd.md, "Mount lists" and "Publishing a layer".

mod layer_file;
mod lock;
mod mount;
mod resolve;
mod roots;
mod stack;
mod sweep;

pub use layer_file::{Durability, LayerError, LayerFile};
pub use mount::Mount;
pub use resolve::{Access, MountError};
pub use roots::{Roots, RootsError, SnapshotDir};
pub use stack::{LayerSource, Stack, StackLayer};
pub use sweep::{Sweep, Swept};

use std::ffi::CStr;

/// The name under which the snapshotter looks for a layer.
pub const LAYER_NAME: &CStr = c"layer.erofs";
