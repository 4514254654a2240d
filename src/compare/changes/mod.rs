//! The differences between two stacks of layers, as the entries of a layer that turns the first into the
//! second.
//!
//! One walk serves every case. A directory is a list of the layers' directories that it is merged from
//! (`view::stack`). The part that both sides' lists end in is the same on both and never listed, so a diff
//! of a new layer on top of many costs what the new layer holds, however much lies below. When the newer
//! stack is the older one and one layer more, every entry of that layer is emitted as it is; otherwise files
//! whose attributes are the same are compared by their contents.
//!
//! A live layer is read while it changes. Every file is emitted as it was at one moment, and a directory's
//! names are those of one moment except for files that were deleted since; any other change ends the walk.
//! A file that is moved from one directory to another meanwhile may still be emitted twice or not at all: only
//! a container at rest has one state.
//!
//! Entries come depth first, the names of a directory in byte order, a deleted name where it was. The
//! directories that lead to a change are emitted once, before it; sockets, which no layer can hold, count as
//! nothing. When one name of an inode is emitted, all are: names that are the same on both sides come last,
//! behind the directories that lead to them.
//!
//! Source: OCI image specification, layer.md; `docs/formats/containerd.md`, "Diff"; Linux
//! `Documentation/filesystems/overlayfs.rst`.

mod error;
mod examine;
#[cfg(test)]
mod fixture;
mod links;
#[cfg(test)]
mod live_tests;
#[cfg(test)]
mod model_tests;
mod names;
mod options;
#[cfg(test)]
mod pair_tests;
#[cfg(test)]
mod row_tests;
mod same;
mod walk;
mod xattrs;

pub use self::{
    error::ChangesError,
    options::{Counts, Options, RootEntry},
    same::same_data,
    walk::write,
    xattrs::XattrFilter,
};
