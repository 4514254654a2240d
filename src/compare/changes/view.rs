//! The merged tree of one stack of layers, looked up directory by directory.
//!
//! A new layer on top of the stack shadows these directories. Nothing is listed, no data is read and no link is
//! followed.

use std::{cell::Cell, rc::Rc};

use super::{
    ChangesError,
    merged::{Found, Layers, Meaning, Merged, Place},
    names::CHARGE_BYTES,
};
use crate::{
    call::Cancel,
    compare::layer::Layer,
    error::{Error, Quoted, Result},
    limits,
    tree::{Attributes, Below, FileType, Xattr, xattr},
};

/// A merged tree.
pub struct View<'a> {
    layers: Layers<'a>,
    /// The numbers of the layers, the newest first.
    stack: Vec<usize>,
    /// Their roots, from which redirects may lead on.
    roots: Vec<Found>,
    cancel: &'a Cancel,
    charge: &'a mut dyn FnMut(u64) -> Result<()>,
    charged: u64,
    /// Lookups done, and how many may be.
    lookups: u64,
    pub(super) max_lookups: u64,
    /// Bytes that all directories hold which have not been dropped.
    held: Rc<Cell<u64>>,
}

/// A directory of a [`View`]: those of the layers that it is merged from.
pub struct Directory {
    merged: Merged,
    bytes: u64,
    held: Rc<Cell<u64>>,
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.held.set(self.held.get().saturating_sub(self.bytes));
    }
}

impl<'a> View<'a> {
    /// The tree of `layers`, the newest first. `charge` is told in steps how much memory the directories at hand
    /// use in all, and may refuse.
    pub fn new(
        layers: &'a [&'a dyn Layer],
        cancel: &'a Cancel,
        charge: &'a mut dyn FnMut(u64) -> Result<()>,
    ) -> Self {
        let stack = (0..layers.len()).collect();
        Self {
            layers: Layers(layers),
            stack,
            roots: Vec::new(),
            cancel,
            charge,
            charged: 0,
            lookups: 0,
            max_lookups: limits::PARENT_LOOKUPS,
            held: Rc::default(),
        }
    }

    fn hold(&mut self, merged: Merged) -> Result<Directory> {
        let bytes = merged.memory_bytes();
        let held = self.held.get().saturating_add(bytes);
        if held > self.charged {
            let charged = held.next_multiple_of(CHARGE_BYTES);
            (self.charge)(charged)?;
            self.charged = charged;
        }
        self.held.set(held);
        Ok(Directory { merged, bytes, held: Rc::clone(&self.held) })
    }
}

impl Below for View<'_> {
    type Directory = Directory;
    type Error = Error;

    fn root(&mut self) -> Result<Directory> {
        let root = self.layers.root(&self.stack)?;
        self.roots.clone_from(&root.parts);
        self.hold(root)
    }

    fn child(&mut self, parent: &Directory, path: &[u8], name: &[u8]) -> Result<Option<Directory>> {
        self.cancel.check()?;
        self.lookups += parent.merged.parts.len() as u64;
        if self.lookups > self.max_lookups {
            return Err(ChangesError::Lookups { limit: self.max_lookups }.into());
        }
        let directory = path.strip_suffix(name).unwrap_or_default();
        let directory = directory.strip_suffix(b"/").unwrap_or_default();
        let place = Place { parts: &parent.merged.parts, roots: &self.roots, directory, path };
        match self.layers.meaning(place, place.search())? {
            Meaning::Directory(merged) => self.hold(merged).map(Some),
            Meaning::File(_) | Meaning::Nothing => Ok(None),
        }
    }

    fn describe(&mut self, directory: &Directory, path: &[u8]) -> Result<(Attributes, Vec<Xattr>)> {
        let Merged { parts, xattrs, .. } = &directory.merged;
        // Like overlayfs: the topmost layer that has the directory decides about all of it.
        let attributes = parts.first().map(|top| top.node.attributes).unwrap_or_default();
        // An image made by others may have what the kernel would not set; it is not handed on.
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
