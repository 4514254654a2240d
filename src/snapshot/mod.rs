//! Directories of snapshots: which one a mount list means, which layers it stacks, and how files get into it.
//!
//! A mount list is a claim. [`Roots::resolve`] turns it into one [`SnapshotDir`] below a root that the operator
//! configured, or refuses it; [`SnapshotDir::publish`] begins a [`Publication`], whose files appear whole or not
//! at all. For reading, [`Roots::stack`] opens all the layers of a list without mounting any. The bytes of the
//! files are not this module's concern.
//!
//! Source: docs/formats/containerd.md, "Mount lists", "From a list to a stack" and "Publishing a layer".

mod block;
mod device;
mod directory;
mod error;
mod ids;
mod layout;
mod list;
#[cfg(test)]
mod lists_tests;
mod lock;
mod mount;
mod new_file;
mod numbers;
mod options;
mod place;
mod plan;
mod publication;
mod records;
mod resolve;
mod roots;
#[cfg(test)]
mod scratch_tests;
mod space;
mod stack;
mod survey;
mod sweep;
mod watch;

pub use device::{DeviceDir, Writable};
pub use directory::SnapshotDir;
pub use error::{MountError, PublishError};
pub use ids::{IdMap, IdMaps};
pub use layout::{
    DEVICE_LAYER, FileSet, LAYER, LAYER_NAME, MERGED, MERGED_NAME, OVERLAYBD_NAME, TAR_INDEX_NAME, TAR_NAME,
    TRACE, TRACE_NAME, TURBO, TURBO_EROFS_NAME, TURBO_EXT4_NAME, TURBO_GZIP_NAME, TURBO_MARKER_NAME,
};
pub use list::snapshot_id;
pub use mount::Mount;
pub use new_file::NewFile;
pub use numbers::{Numbered, State};
pub use publication::{Durability, Publication};
pub use records::{Record, Records};
pub use resolve::Access;
pub use roots::{Roots, RootsError, check_root};
pub use stack::{DeviceState, LayerSource, Stack, StackLayer};
pub use survey::{Frozen, Holds, Listed, Survey, Temporary};
pub use sweep::{Sweep, Swept};
pub use watch::Watch;
