//! Directories that names imply and no entry describes, and the tree below the layer that they shadow.
//!
//! A layer may hold `tmp/x` without an entry for `tmp`, which then exists in the layers below. overlayfs
//! shows a merged directory with the owner, mode, times and attributes of the topmost layer that has it, so
//! an image whose `tmp` had other ones would change them for everybody.
//!
//! Source: `docs/formats/erofs.md`, "Directories that the archive does not list"; Linux
//! `Documentation/filesystems/overlayfs.rst`, "Merging Directories".

use super::{Attributes, TreeError, Xattr, arena::index, layer::Tree, names::Target};

/// The merged tree below a layer, looked up from its root on.
pub trait Below {
    /// One of its directories.
    type Directory;
    /// Why it cannot be read.
    type Error: From<TreeError>;

    /// The root.
    fn root(&mut self) -> Result<Self::Directory, Self::Error>;

    /// The directory called `name` in `parent`; `path` leads to it. `None` when there is nothing, or something
    /// else: no link is followed.
    fn child(
        &mut self,
        parent: &Self::Directory,
        path: &[u8],
        name: &[u8],
    ) -> Result<Option<Self::Directory>, Self::Error>;

    /// Owner, permissions and time of a directory, and those of its extended attributes that belong to an
    /// image; `path` leads to it.
    fn describe(
        &mut self,
        directory: &Self::Directory,
        path: &[u8],
    ) -> Result<(Attributes, Vec<Xattr>), Self::Error>;
}

/// A directory of the layer whose names are being looked at, and the one that it is merged with.
struct Frame<D> {
    /// The next name.
    next: Option<u32>,
    below: D,
    /// Length of the path that leads to it.
    path_len: usize,
}

impl<P: Copy + Default> Tree<P> {
    /// Directories that names imply and no entry describes. The root is never one of them.
    pub fn implied_directories(&self) -> u64 {
        self.directories.slots().filter(|(_, directory)| directory.implied).count() as u64
    }

    /// Gives implied directories the owner, mode, time and attributes of the directories of `below` that they
    /// shadow, and returns how many shadow one. Nothing else is looked up there than what leads to them.
    ///
    /// Directories that the layer itself deletes or hides are not shadowed. Errors: those of `below`, and
    /// [`TreeError`] when the attributes take too much memory. [`Tree::disinherit`] undoes what was done until then.
    pub fn inherit<B: Below>(&mut self, below: &mut B) -> Result<u64, B::Error> {
        let leads = self.ways_to_implied();
        let root = super::DirectoryId::ROOT.0;
        if !leads.get(index(root)).is_some_and(|leads| *leads) {
            return Ok(0);
        }
        let mut inherited = 0;
        let mut path = Vec::new();
        // A marker in the root means nothing to overlayfs, which merges the roots of all layers.
        let mut frames = vec![Frame { next: self.first_name(root), below: below.root()?, path_len: 0 }];
        while let Some(frame) = frames.last_mut() {
            path.truncate(frame.path_len);
            let Some(at) = frame.next else {
                frames.pop();
                continue;
            };
            frame.next = self.names.chain(at).nth(1);
            let name = self.names.get(at);
            let Target::Directory(number) = name.target() else { continue };
            // A directory whose own name the layer deletes is a new one.
            if name.whited_out || !leads.get(index(number)).is_some_and(|leads| *leads) {
                continue;
            }
            let spelling = self.names.spelling(at);
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(spelling);
            let Some(found) = below.child(&frame.below, &path, spelling)? else { continue };
            if self.directories.get(number).implied {
                let (attributes, xattrs) = below.describe(&found, &path)?;
                self.attribute(number, &attributes, &xattrs)?;
                let limit = self.limits.memory_bytes;
                if self.memory_bytes() > limit {
                    return Err(TreeError::Memory { limit }.into());
                }
                inherited += 1;
            }
            if !self.directories.get(number).opaque {
                let next = self.first_name(number);
                frames.push(Frame { next, below: found, path_len: path.len() });
            }
        }
        Ok(inherited)
    }

    /// Makes implied directories again what they are without a tree below.
    pub fn disinherit(&mut self) {
        for number in 0..self.directory_slots() {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            if self.directories.get(number).implied {
                self.make_implied(number);
            }
        }
    }

    /// By number of directory, whether an implied one lies in it or is it.
    fn ways_to_implied(&self) -> Vec<bool> {
        let mut leads = vec![false; self.directory_slots()];
        for (implied, _) in self.directories.slots().filter(|(_, directory)| directory.implied) {
            let mut number = implied;
            while let Some(leads) = leads.get_mut(index(number))
                && !std::mem::replace(leads, true)
            {
                number = self.parent(super::DirectoryId(number)).0;
            }
        }
        leads
    }

    fn first_name(&self, directory: u32) -> Option<u32> {
        self.names.chain(self.directories.get(directory).first).next()
    }
}
