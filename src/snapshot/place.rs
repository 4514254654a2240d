//! The position of a path below a root, by its spelling alone.

use super::{
    layout::{Layout, Leaf, SNAPSHOTS},
    mount::decimal,
};

/// The position of a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'p> {
    /// Not below the root.
    Outside,
    /// Below the root, but not an entry of the expected name in a snapshot.
    Odd,
    /// The entry of the snapshot with this number.
    Snapshot(&'p str),
}

/// Compares `path` with `<root>/snapshots/<id>/<leaf>`, byte by byte.
pub(super) fn place<'p>(root: &str, path: &'p str, leaves: &[&str]) -> Place<'p> {
    let Some(rest) = path.strip_prefix(root) else { return Place::Outside };
    let Some(rest) = rest.strip_prefix('/') else {
        return if rest.is_empty() { Place::Odd } else { Place::Outside };
    };
    let mut parts = rest.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(SNAPSHOTS), Some(id), Some(leaf))
            if decimal(id).is_some_and(|number| number > 0) && leaves.contains(&leaf) =>
        {
            Place::Snapshot(id)
        }
        _ => Place::Odd,
    }
}

/// A snapshot, by the spelling of its directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot<'a> {
    /// The root as a list spells it.
    pub(super) root: &'a str,
    /// The number of the snapshot.
    pub(super) id: &'a str,
    pub(super) layout: &'static Layout,
}

impl Spot<'_> {
    /// The position of `path`, which should name a `leaf`, below the root of this snapshot.
    pub(super) fn place<'p>(&self, path: &'p str, leaf: Leaf) -> Place<'p> {
        place(self.root, path, self.layout.names(leaf))
    }
}
