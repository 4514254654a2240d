//! Directories that names imply and no entry describes, and the directories below the layer that
//! they shadow.
//!
//! A layer may hold `tmp/x` without an entry for `tmp`, which exists in the layers below. overlayfs
//! shows a merged directory with the owner, mode, times and attributes of the topmost layer that
//! has it. An image whose `tmp` had other ones would change them for everybody.
//!
//! Source: `docs/formats/erofs.md`, "Directories that the archive does not list"; Linux
//! `Documentation/filesystems/overlayfs.rst`, "Merging Directories".

use super::{Attributes, TreeError, Xattr, arena::index, names::Target, nodes::Tree};

/// Merged tree below a layer, looked up from its root on.
pub trait Below {
    /// Handle of one of its directories.
    type Directory;
    /// Error of reading the tree.
    type Error: From<TreeError>;

    /// Opens the root.
    fn root(&mut self) -> Result<Self::Directory, Self::Error>;

    /// Finds the directory `name` in `parent`; `path` leads to it. `None` when the name does not
    /// exist or is no directory: links are not followed.
    fn child(
        &mut self,
        parent: &Self::Directory,
        path: &[u8],
        name: &[u8],
    ) -> Result<Option<Self::Directory>, Self::Error>;

    /// Owner, permissions and time of a directory, and its extended attributes that belong to an
    /// image. `path` leads to it.
    fn describe(
        &mut self,
        directory: &Self::Directory,
        path: &[u8],
    ) -> Result<(Attributes, Vec<Xattr>), Self::Error>;
}

/// Directory of the layer whose names are being compared, with the directory that it is merged
/// with.
struct Frame<D> {
    /// Next name of the directory; `None` after the last.
    next: Option<u32>,
    below: D,
    /// Length in bytes of the path that leads to the directory.
    path_len: usize,
}

impl<P: Copy + Default> Tree<P> {
    /// Number of directories that names imply and no entry describes. The root is never one of
    /// them.
    pub fn implied_directories(&self) -> u64 {
        self.directories.slots().filter(|(_, directory)| directory.implied).count() as u64
    }

    /// Gives implied directories the owner, mode, time and attributes of the directories of `below`
    /// that they shadow. Returns how many shadow one. Only directories that lead to implied ones
    /// are looked up.
    ///
    /// Directories that the layer itself deletes or hides shadow nothing. Errors: those of `below`,
    /// and [`TreeError`] when the attributes take too much memory. [`Tree::disinherit`] undoes the
    /// changes made before an error.
    pub fn inherit<B: Below>(&mut self, below: &mut B) -> Result<u64, B::Error> {
        let leads = self.ways_to_implied();
        let root = super::DirectoryId::ROOT.0;
        if !leads.get(index(root)).is_some_and(|leads| *leads) {
            return Ok(0);
        }
        let mut inherited = 0;
        let mut path = Vec::new();
        // A whiteout of the root has no meaning: overlayfs merges the roots of all layers.
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
            // The layer deletes this name below, so the directory is a new one.
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

    /// Resets implied directories to their defaults: 0755, 0:0, time 0, no attributes.
    pub fn disinherit(&mut self) {
        for number in 0..self.directory_slots() {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            if self.directories.get(number).implied {
                self.make_implied(number);
            }
        }
    }

    /// For each number of a directory, whether it is implied or holds an implied one at any depth.
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
