//! What differs between two stacks of layers, as the entries of a layer that turns the first into the
//! second.
//!
//! One walk serves every case. A directory is a list of the layers' directories that it is merged from
//! ([`merged`]); the part that both sides' lists end in is the same on both and never listed, so a diff
//! of a new layer on top of many costs what the new layer holds, however much lies below. When the newer
//! stack is the older one and one layer more, every entry of that layer is told as it is; otherwise files
//! whose attributes are the same are compared by their contents.
//!
//! A live layer is read while it changes. Every file is told as it was at one moment, and a directory's
//! names are those of one moment but for files that were deleted since; anything else ends the walk. Files
//! that are moved from one directory to another meanwhile may still be told twice or not at all: only a
//! container at rest has one state.
//!
//! Entries come depth first, the names of a directory in byte order, a deleted name where it was. What
//! leads to a change is told once, before it; sockets, which no layer can hold, count as nothing. Of a file
//! with several names all are told when one is: those that are the same on both sides come last, behind
//! the directories that lead to them.
//!
//! Source: OCI image specification, layer.md; `docs/formats/containerd.md`, "Diff"; Linux
//! `Documentation/filesystems/overlayfs.rst`.

mod error;
mod examine;
#[cfg(test)]
pub(crate) mod fixture;
mod links;
#[cfg(test)]
mod live_tests;
mod merged;
#[cfg(test)]
mod model_tests;
mod names;
#[cfg(test)]
mod pair_tests;
#[cfg(test)]
mod row_tests;
mod same;
mod view;
#[cfg(test)]
mod view_tests;
mod walk;
mod xattrs;

pub use self::{
    error::ChangesError,
    view::{Directory, View},
    xattrs::XattrFilter,
};
use self::{merged::Layers, walk::Walk};
use super::{layer::Layer, output::Output};
use crate::{call::Cancel, error::Result, limits::Limits, tree::Timestamp};

/// What is told, and what it may cost.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Extended attributes that are told; others do not count as changes either.
    pub xattrs: XattrFilter,
    /// Later times are lowered to this one.
    pub epoch: Option<Timestamp>,
    /// Whether there is an entry for the root.
    pub root: RootEntry,
    /// Of these, `nodes` bounds the names compared and `stream_bytes` the sizes of the files told, holes
    /// included.
    pub limits: Limits,
}

/// Whether there is an entry for the root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RootEntry {
    /// When its owner, permissions or attributes differ. Its time alone is no reason: it changes with
    /// every file in it. An older stack without layers has a root of owner 0:0 and mode 0755, a newer one none.
    #[default]
    WhenChanged,
    /// Always: for an image, whose root has to have attributes.
    Always,
}

/// What was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files and directories, new or changed, hard links included.
    pub changed: u64,
    /// Deleted names.
    pub deleted: u64,
    /// Directories that hide what was in them before.
    pub opaque: u64,
    /// Unchanged directories on the way to a change.
    pub parents: u64,
    /// Sockets left out.
    pub sockets: u64,
    /// Bytes of data, without holes.
    pub data_bytes: u64,
}

/// Writes to `output` what turns the stack `lower` into the stack `upper`, both the newest layer first.
///
/// `charge` is told in steps how much memory the walk uses in all, before it does, and may refuse.
///
/// Errors: [`ChangesError`], those of the layers, of `charge` and of `output`; kind `Changed` when a live
/// layer changed in a way that could make the result wrong. Whatever was written then is to be thrown away.
pub fn write(
    lower: &[&dyn Layer],
    upper: &[&dyn Layer],
    options: &Options,
    cancel: &Cancel,
    charge: &mut dyn FnMut(u64) -> Result<()>,
    output: &mut dyn Output,
) -> Result<Counts> {
    // A layer that is in both stacks has one number, and is read through one reader.
    let mut layers: Vec<&dyn Layer> = Vec::new();
    let lower = number(lower, &mut layers);
    let upper = number(upper, &mut layers);
    Walk::new(Layers(&layers), options, cancel, charge, output).run(&lower, &upper)
}

/// The numbers of the layers of `stack` in the list `layers`, which gets those that it lacks.
fn number<'a>(stack: &[&'a dyn Layer], layers: &mut Vec<&'a dyn Layer>) -> Vec<usize> {
    let mut numbers = Vec::with_capacity(stack.len());
    for layer in stack {
        let known = layers.iter().position(|known| known.key() == layer.key());
        numbers.push(known.unwrap_or(layers.len()));
        if known.is_none() {
            layers.push(*layer);
        }
    }
    numbers
}
