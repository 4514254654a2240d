//! Settings of a walk, and the numbers that it returns.

use super::xattrs::XattrFilter;
use crate::{limits::Limits, tree::Timestamp};

/// Settings of a walk.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Extended attributes that are emitted; others do not count as changes either.
    pub xattrs: XattrFilter,
    /// Later times are lowered to this one.
    pub epoch: Option<Timestamp>,
    /// Whether there is an entry for the root.
    pub root: RootEntry,
    /// Limits, of which `nodes` bounds the names compared and `stream_bytes` the sizes of the emitted files, holes
    /// included.
    pub limits: Limits,
}

/// Whether there is an entry for the root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RootEntry {
    /// When owner, permissions or attributes differ. A new time alone is no reason: it changes with every
    /// file in the root. An older stack without layers has a root of owner 0:0 and mode 0755, a newer one none.
    #[default]
    WhenChanged,
    /// Always: for an image, whose root has to have attributes.
    Always,
}

/// Numbers of the entries that were emitted.
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
