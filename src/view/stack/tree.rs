//! The merged tree of a stack, looked up directory by directory.
//!
//! A new layer on top of the stack shadows these directories. Nothing is listed, no data is read and no link is
//! followed.

use std::{cell::Cell, rc::Rc};

use super::{
    error::StackError,
    merged::{Found, Layers, Meaning, Merged, Place},
};
use crate::{
    call::Cancel,
    error::{Error, Quoted, Result},
    limits,
    tree::{Attributes, Below, FileType, Xattr, xattr},
    view::{View, memory::Memory},
};

/// A merged tree.
pub(crate) struct MergedTree<'a> {
    layers: Layers<'a>,
    /// The numbers of the layers, the newest first.
    stack: Vec<usize>,
    /// The roots of the layers, from which redirects may lead on.
    roots: Vec<Found>,
    cancel: &'a Cancel,
    memory: Memory<'a>,
    /// Lookups done.
    lookups: u64,
    max_lookups: u64,
    /// Bytes of all directories that have not been dropped.
    held: Rc<Cell<u64>>,
}

/// A directory of a [`MergedTree`].
pub(crate) struct MergedDirectory {
    merged: Merged,
    bytes: u64,
    held: Rc<Cell<u64>>,
}

impl Drop for MergedDirectory {
    fn drop(&mut self) {
        self.held.set(self.held.get().saturating_sub(self.bytes));
    }
}

impl<'a> MergedTree<'a> {
    /// The tree of `layers`, the newest first. `charge` gets in steps the memory that the directories at hand use
    /// in all, and may refuse it.
    pub(crate) fn new(
        layers: &'a [&'a dyn View],
        cancel: &'a Cancel,
        charge: &'a mut dyn FnMut(u64) -> Result<()>,
    ) -> Self {
        let stack = (0..layers.len()).collect();
        Self {
            layers: Layers(layers),
            stack,
            roots: Vec::new(),
            cancel,
            memory: Memory::new(charge),
            lookups: 0,
            max_lookups: limits::PARENT_LOOKUPS,
            held: Rc::default(),
        }
    }

    fn hold(&mut self, merged: Merged) -> Result<MergedDirectory> {
        let bytes = merged.memory_bytes();
        let held = self.held.get().saturating_add(bytes);
        self.memory.cover(held)?;
        self.held.set(held);
        Ok(MergedDirectory { merged, bytes, held: Rc::clone(&self.held) })
    }
}

impl Below for MergedTree<'_> {
    type Directory = MergedDirectory;
    type Error = Error;

    fn root(&mut self) -> Result<MergedDirectory> {
        let root = self.layers.root(&self.stack)?;
        self.roots.clone_from(&root.parts);
        self.hold(root)
    }

    fn child(
        &mut self,
        parent: &MergedDirectory,
        path: &[u8],
        name: &[u8],
    ) -> Result<Option<MergedDirectory>> {
        self.cancel.check()?;
        self.lookups += parent.merged.parts.len() as u64;
        if self.lookups > self.max_lookups {
            return Err(StackError::Lookups { limit: self.max_lookups }.into());
        }
        let directory = path.strip_suffix(name).unwrap_or_default();
        let directory = directory.strip_suffix(b"/").unwrap_or_default();
        let place = Place { parts: &parent.merged.parts, roots: &self.roots, directory, path };
        match self.layers.meaning(place, place.search())? {
            Meaning::Directory(merged) => self.hold(merged).map(Some),
            Meaning::File(_) | Meaning::Nothing => Ok(None),
        }
    }

    fn describe(&mut self, directory: &MergedDirectory, path: &[u8]) -> Result<(Attributes, Vec<Xattr>)> {
        let Merged { parts, xattrs, .. } = &directory.merged;
        // Like overlayfs: the topmost layer that has the directory decides about all of it.
        let attributes = parts.first().map(|top| top.node.attributes).unwrap_or_default();
        // Images of other tools may have attributes that the kernel would not set. They are left out.
        let is_settable =
            |found: &Xattr| xattr::is_settable(&found.name, &found.value, FileType::Directory) == Ok(true);
        let is_kept = |found: &&Xattr| xattr::is_kept(&found.name) && is_settable(found);
        let mut kept: Vec<_> = xattrs.iter().filter(is_kept).cloned().collect();
        let checked = kept.iter().try_for_each(|found| xattr::check(&found.name, &found.value));
        let settled = checked.and_then(|()| xattr::settle(&mut kept));
        settled.map_err(|error| Error::from(error).context(Quoted(path).to_string()))?;
        Ok((attributes, kept))
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
