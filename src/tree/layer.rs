//! The in-memory tree of a layer: entries in the order of the source, one image's tree at the end.
//!
//! Later entries replace earlier ones, markers delete, and a hard link is one more name of a file.
//! The tree knows names, directories and links. Of a file it keeps only the payload that the writer
//! of an image stores in it (`P`, a few numbers): data and attributes are in the image already.
//!
//! A hostile layer can cause work of at most n log n in its own bytes: with wide and deep trees,
//! chains of links, names replaced again and again.
//!
//! Source: OCI image specification, layer.md; overlayfs, Linux `Documentation/filesystems/overlayfs.rst`.

use super::{
    Attributes, Body, Device, Entry, FileType, TreeError, Xattr,
    names::Target,
    nodes::{Directory, DirectoryId, FileId, Tree},
    path,
    resolve::{Missing, Way},
    whiteout::{self, Marker},
};
use crate::{error::Quoted, limits};

/// Effect of an entry on the tree, as far as a writer of inodes needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// New file that needs an inode of the entry's type.
    File(FileId),
    /// New whiteout, character device 0:0, that needs an inode. The entry's data has no meaning.
    Whiteout(FileId),
    /// New name of a file that the layers below have under the hard link's target. Its type is not known here. Only
    /// after [`Tree::allow_links_below`].
    Borrowed(FileId),
    /// No new inode. The entry's data has no meaning.
    Nothing,
}

/// Bytes of link targets that each entry adds to those that may be followed.
const LINK_STEPS_PER_ENTRY: u64 = 256;

fn is_link_target(target: &[u8]) -> bool {
    (1..=limits::LINK_TARGET_BYTES).contains(&target.len()) && !target.contains(&0)
}

impl<P: Copy + Default> Tree<P> {
    /// Applies the next entry. The payloads of files that lost their last name are added to `freed`.
    ///
    /// Errors: [`TreeError`]. After an error the tree cannot be used.
    pub fn insert(&mut self, entry: &Entry, freed: &mut Vec<P>) -> Result<Inserted, TreeError> {
        self.link_steps += LINK_STEPS_PER_ENTRY;
        let inserted = self.place(entry, freed)?;
        self.names.tidy();
        self.tidy_targets();
        let limit = self.limits.memory_bytes;
        if self.memory_bytes() > limit { Err(TreeError::Memory { limit }) } else { Ok(inserted) }
    }

    fn place(&mut self, entry: &Entry, freed: &mut Vec<P>) -> Result<Inserted, TreeError> {
        if let Some(components) = path::below_aufs(&entry.path)? {
            return self.place_aufs(&components, &entry.body, freed);
        }
        let Some((parent, name)) = self.parent_of(&entry.path)? else {
            return match entry.body {
                Body::Directory => {
                    self.describe(DirectoryId::ROOT.0, &entry.attributes, &entry.xattrs)?;
                    Ok(Inserted::Nothing)
                }
                Body::HardLink { ref target } if path::clean(target)?.is_empty() => Ok(Inserted::Nothing),
                _ => Err(TreeError::Root),
            };
        };
        let file_type = match (whiteout::parse(name)?, &entry.body) {
            // `place_aufs` has handled these names.
            (Marker::Ignored, _) => return Ok(Inserted::Nothing),
            (Marker::Opaque, _) => {
                let parent = parent.resolve(self, freed)?;
                self.directories.get_mut(parent).opaque = true;
                return Ok(Inserted::Nothing);
            }
            (Marker::Whiteout(name), _) => {
                let parent = parent.resolve(self, freed)?;
                return self.white_out(parent, name, freed);
            }
            // Overlayfs takes this device for a whiteout, so the tree treats it as one.
            (Marker::Ordinary, Body::CharDevice(Device::WHITEOUT)) => {
                let parent = parent.resolve(self, freed)?;
                return self.white_out(parent, name, freed);
            }
            (Marker::Ordinary, Body::Directory) => {
                let parent = parent.resolve(self, freed)?;
                let directory = self.directory_at(parent, name, freed)?;
                self.describe(directory, &entry.attributes, &entry.xattrs)?;
                return Ok(Inserted::Nothing);
            }
            (Marker::Ordinary, Body::HardLink { target }) => {
                // Looked up first: only entries before this one count.
                let file = match self.link_target(target) {
                    Err(TreeError::LinkMissing(_)) if self.is_left_to_below(target)? => None,
                    found => Some(found?),
                };
                let parent = parent.resolve(self, freed)?;
                if let Some(file) = file {
                    self.link(parent, name, file, freed)?;
                    return Ok(Inserted::Nothing);
                }
                let file = self.new_file(FileType::Regular, false);
                self.name(parent, name, Target::File(file), freed)?;
                return Ok(Inserted::Borrowed(FileId(file)));
            }
            (Marker::Ordinary, Body::Symlink { target }) => {
                if !is_link_target(target) {
                    return Err(TreeError::SymlinkTarget { len: target.len() });
                }
                FileType::Symlink
            }
            (Marker::Ordinary, Body::Regular { .. }) => FileType::Regular,
            (Marker::Ordinary, Body::CharDevice(_)) => FileType::CharDevice,
            (Marker::Ordinary, Body::BlockDevice(_)) => FileType::BlockDevice,
            (Marker::Ordinary, Body::Fifo) => FileType::Fifo,
        };
        let parent = parent.resolve(self, freed)?;
        let file = self.new_file(file_type, false);
        if let Body::Symlink { target } = &entry.body {
            let link = self.new_link(target)?;
            self.files.get_mut(file).link = link;
        }
        self.name(parent, name, Target::File(file), freed)?;
        Ok(Inserted::File(FileId(file)))
    }

    /// Keeps a file of aufs until [`Tree::drop_aufs`], for hard links to it. Entries that cannot be
    /// hard linked are dropped at once. Nothing is followed, replaced or refused, because all of it
    /// is dropped in the end.
    fn place_aufs(
        &mut self,
        components: &[&[u8]],
        body: &Body,
        freed: &mut Vec<P>,
    ) -> Result<Inserted, TreeError> {
        let file_type = match body {
            Body::Regular { .. } => FileType::Regular,
            Body::Symlink { target } if !is_link_target(target) => return Ok(Inserted::Nothing),
            Body::Symlink { .. } => FileType::Symlink,
            Body::CharDevice(device) if *device != Device::WHITEOUT => FileType::CharDevice,
            Body::BlockDevice(_) => FileType::BlockDevice,
            Body::Fifo => FileType::Fifo,
            Body::HardLink { .. } => FileType::Regular,
            Body::Directory | Body::CharDevice(_) => return Ok(Inserted::Nothing),
        };
        let linked = match body {
            Body::HardLink { target } => match self.link_target(target) {
                Ok(file) => Some(file),
                Err(_nothing_to_link_to) => return Ok(Inserted::Nothing),
            },
            _ => None,
        };
        let Some((name, parents)) = components.split_last() else { return Ok(Inserted::Nothing) };
        if components.iter().any(|component| component.len() > limits::NAME_BYTES) {
            return Ok(Inserted::Nothing);
        }
        let mut parent = match self.aufs {
            Some(aufs) => aufs,
            None => *self.aufs.insert(self.directories.insert(Directory::nameless())),
        };
        for component in parents {
            parent = self.directory_at(parent, component, freed)?;
        }
        if let Some(file) = linked {
            self.link(parent, name, file, freed)?;
            return Ok(Inserted::Nothing);
        }
        let file = self.new_file(file_type, false);
        if let Body::Symlink { target } = body {
            let link = self.new_link(target)?;
            self.files.get_mut(file).link = link;
        }
        self.name(parent, name, Target::File(file), freed)?;
        Ok(Inserted::File(FileId(file)))
    }

    /// Drops the files of aufs, after the last entry that could link to them. The payloads of those
    /// without another name are added to `freed`.
    pub fn drop_aufs(&mut self, freed: &mut Vec<P>) {
        if let Some(aufs) = self.aufs.take() {
            self.drop_directory(aufs, freed);
        }
    }

    /// Gives a directory the attributes of its entry. It no longer counts as implied.
    fn describe(&mut self, number: u32, attributes: &Attributes, xattrs: &[Xattr]) -> Result<(), TreeError> {
        self.directories.get_mut(number).implied = false;
        self.root_is_described |= number == DirectoryId::ROOT.0;
        self.attribute(number, attributes, xattrs)
    }

    /// Deletes `name` from lower layers. A name that this layer has itself stays.
    fn white_out(&mut self, parent: u32, name: &[u8], freed: &mut Vec<P>) -> Result<Inserted, TreeError> {
        let found = self.names.find(parent, name);
        let stays = found.is_some_and(|found| match self.names.get(found).target() {
            Target::Directory(_) => true,
            Target::File(file) => !self.files.get(file).whiteout,
        });
        if let (true, Some(found)) = (stays, found) {
            self.names.get_mut(found).whited_out = true;
            return Ok(Inserted::Nothing);
        }
        let file = self.new_file(FileType::CharDevice, true);
        let number = self.name(parent, name, Target::File(file), freed)?;
        self.names.get_mut(number).whited_out = true;
        Ok(Inserted::Whiteout(FileId(file)))
    }

    /// Finds the file that a hard link's target names.
    fn link_target(&mut self, target: &[u8]) -> Result<u32, TreeError> {
        let missing = || TreeError::LinkMissing(Quoted(target).to_string());
        if let Some(components) = path::below_aufs(target)? {
            let found = components.iter().try_fold(Target::Directory(self.aufs.ok_or_else(missing)?), {
                |at, component| match at {
                    Target::Directory(parent) => {
                        self.names.find(parent, component).map(|name| self.names.get(name).target())
                    }
                    Target::File(_) => None,
                }
            });
            return match found {
                Some(Target::File(file)) => Ok(file),
                _ => Err(missing()),
            };
        }
        let wrong = |what| TreeError::LinkType(Quoted(target).to_string(), what);
        let Some((parent, name)) = self.parent_of(target)? else {
            return Err(wrong("directory"));
        };
        let found = match parent.look_up(self) {
            Ok(parent) => self.names.find(parent, name).ok_or_else(missing)?,
            Err(Missing::Nothing) => return Err(missing()),
            Err(Missing::Refused(error)) => return Err(error),
        };
        match self.names.get(found).target() {
            Target::Directory(_) => Err(wrong("directory")),
            Target::File(file) if self.files.get(file).whiteout => Err(wrong("whiteout")),
            Target::File(file) => Ok(file),
        }
    }

    /// Whether hard links may name a path of the layers below: they are allowed to, and this layer neither replaces nor
    /// deletes anything on the way.
    fn is_left_to_below(&self, path: &[u8]) -> Result<bool, TreeError> {
        let components = path::clean(path)?;
        if !self.links_below || components.iter().any(|component| whiteout::is_reserved(component)) {
            return Ok(false);
        }
        let mut at = DirectoryId::ROOT;
        for component in components {
            if self.is_opaque(at) {
                return Ok(false);
            }
            match self.names.find(at.0, component).map(|name| self.names.get(name).target()) {
                None => return Ok(true),
                Some(Target::Directory(directory)) => at = DirectoryId(directory),
                Some(Target::File(_)) => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Adds the name `name` to `file`.
    fn link(&mut self, parent: u32, name: &[u8], file: u32, freed: &mut Vec<P>) -> Result<(), TreeError> {
        let found = self.names.find(parent, name);
        if found.is_some_and(|found| self.names.get(found).target() == Target::File(file)) {
            return Ok(());
        }
        // Counted first, because the link may replace the directory that holds the file's only
        // other name.
        self.files.get_mut(file).nlink += 1;
        self.name(parent, name, Target::File(file), freed)?;
        Ok(())
    }

    /// Splits a name into the way to its parent, and its last component; `None` for the root.
    fn parent_of<'a>(&self, name: &'a [u8]) -> Result<Option<(Way<'a>, &'a [u8])>, TreeError> {
        if let Some(known) = Way::recall(&self.last_parent, name, self.generation) {
            return Ok(Some(known));
        }
        let mut components = path::clean(name)?;
        let Some(last) = components.pop() else { return Ok(None) };
        if let Some(reserved) = components.iter().find(|component| whiteout::is_reserved(component)) {
            return Err(TreeError::Reserved(Quoted(reserved).to_string()));
        }
        Ok(Some((Way::new(name, components), last)))
    }
}
