//! The in-memory tree of a layer: entries in the order of the source, one image's tree at the end.
//!
//! Later entries win; markers delete; a hard link is one more name of a file. The tree knows names,
//! directories and what links where. Of a file it keeps only what the writer of an image asks it to
//! (`P`, a few numbers): its data and attributes are in the image already.
//!
//! Everything a hostile layer can ask for costs at most a logarithm more than the bytes it takes to
//! ask: wide and deep trees, chains of links, names replaced again and again.
//!
//! Source: OCI image specification, layer.md; overlayfs, Linux `Documentation/filesystems/overlayfs.rst`.

use super::{
    Attributes, Body, Device, Entry, FileType, TreeError, Xattr,
    arena::{Bytes, Slab},
    names::{NONE, Names, Target},
    path,
    pool::{Pool, Set},
    resolve::{LastParent, Missing, Way},
    whiteout::{self, Marker},
};
use crate::{error::Quoted, limits};

/// What a tree may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most live names: entries, implied directories and whiteouts. Above 2^30 it counts as 2^30.
    pub nodes: u64,
    /// Largest memory of the tree, in bytes.
    pub memory_bytes: u64,
}

/// A directory of a [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirectoryId(pub(super) u32);

impl DirectoryId {
    /// The root directory.
    pub const ROOT: Self = Self(0);

    /// Its number, below [`Tree::directory_slots`].
    pub fn index(self) -> usize {
        super::arena::index(self.0)
    }
}

/// A file of a [`Tree`]: an inode that is no directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(u32);

/// What an entry did to the tree, as far as whoever writes inodes has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// A new file that needs an inode; its type is that of the entry.
    File(FileId),
    /// A new whiteout, character device 0:0, that needs an inode. A body the entry has does not count.
    Whiteout(FileId),
    /// Nothing that needs an inode now. A body the entry has does not count.
    Nothing,
}

/// What a name of a directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory(DirectoryId),
    /// Any other inode.
    File(FileId),
}

/// A directory while the layer is read.
#[derive(Debug, Default)]
pub(super) struct Directory {
    attributes: Attributes,
    xattrs: Set,
    /// Its name; [`NONE`] for the root.
    pub(super) name: u32,
    /// The newest of its names.
    pub(super) first: u32,
    /// Directories above it.
    depth: u16,
    /// An opaque marker was seen in it.
    pub(super) opaque: bool,
    /// Names imply it and no entry describes it.
    pub(super) implied: bool,
}

/// A file while the layer is read.
#[derive(Debug)]
pub(super) struct File<P> {
    payload: P,
    /// Names it has; 0 for a freed slot.
    pub(super) nlink: u32,
    /// Number of its symbolic link, or [`NONE`].
    pub(super) link: u32,
    pub(super) file_type: FileType,
    pub(super) whiteout: bool,
}

/// A symbolic link while the layer is read; [`super::resolve`] follows it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) offset: u32,
    /// 0 for a freed slot.
    pub(super) len: u16,
    /// Links followed on the way to `directory`.
    pub(super) hops: u16,
    /// Where it leads, as long as `generation` is the tree's.
    pub(super) directory: u32,
    pub(super) generation: u32,
}

/// The tree of a layer; see the module's description.
#[derive(Debug)]
pub struct Tree<P> {
    pub(super) limits: Limits,
    pub(super) names: Names,
    pub(super) directories: Slab<Directory>,
    pub(super) files: Slab<File<P>>,
    pub(super) links: Slab<Link>,
    pub(super) targets: Bytes,
    pool: Pool,
    /// Memory that directories hold in their attribute sets, in bytes.
    set_bytes: usize,
    /// A directory without a name that holds aufs's files: images do not have them, but hard links name them.
    aufs: Option<u32>,
    /// Rises when a directory or a symbolic link loses its name: what links led to may be gone.
    pub(super) generation: u32,
    pub(super) last_parent: LastParent,
    /// Bytes of link targets that may still be followed; each entry adds some.
    pub(super) link_steps: u64,
}

/// Owner and permissions of directories that the layer implies but does not list.
const IMPLIED: Attributes =
    Attributes { mode: 0o755, uid: 0, gid: 0, mtime: super::Timestamp { seconds: 0, nanoseconds: 0 } };

/// What following links may cost in all, in bytes of their targets: this, and some more per entry.
/// Layers in the wild need a few bytes per entry, and what was followed once is remembered; this
/// bounds those that keep replacing what they link to.
const LINK_STEPS: u64 = 16 << 20;
const LINK_STEPS_PER_ENTRY: u64 = 256;

fn is_link_target(target: &[u8]) -> bool {
    (1..=limits::LINK_TARGET_BYTES).contains(&target.len()) && !target.contains(&0)
}

impl<P: Copy + Default> Tree<P> {
    /// An empty tree: a root of mode 0755, owner 0:0, time 0.
    pub fn new(limits: Limits) -> Self {
        let mut directories = Slab::default();
        directories.insert(Directory {
            attributes: IMPLIED,
            name: NONE,
            first: NONE,
            ..Directory::default()
        });
        Self {
            limits: Limits { nodes: limits.nodes.min(1 << 30), ..limits },
            names: Names::default(),
            directories,
            files: Slab::default(),
            links: Slab::default(),
            targets: Bytes::default(),
            pool: Pool::default(),
            set_bytes: 0,
            aufs: None,
            generation: 0,
            last_parent: LastParent::default(),
            link_steps: LINK_STEPS,
        }
    }

    /// Applies the next entry. The payloads of files that lost their last name are added to `freed`.
    ///
    /// Errors: [`TreeError`]; the tree is not to be used after one.
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
            // `place_aufs` has taken it.
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
            // Overlayfs would take it for a whiteout, so that is what it is.
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
                // Looked up first: the layer's own entries at this point count.
                let file = self.link_target(target)?;
                let parent = parent.resolve(self, freed)?;
                self.link(parent, name, file, freed)?;
                return Ok(Inserted::Nothing);
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

    /// Keeps one of aufs's files until [`Tree::drop_aufs`], for hard links to it. What cannot be linked to is
    /// dropped at once; nothing is followed, replaced or refused, since all of it is dropped in the end.
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
            None => {
                let directory = Directory { name: NONE, first: NONE, ..Directory::default() };
                *self.aufs.insert(self.directories.insert(directory))
            }
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

    /// Drops aufs's files, once no entry follows that could link to them. The payloads of those that have no
    /// other name are added to `freed`.
    pub fn drop_aufs(&mut self, freed: &mut Vec<P>) {
        if let Some(aufs) = self.aufs.take() {
            self.drop_directory(aufs, freed);
        }
    }

    /// What a writer wants to remember about a file.
    pub fn set_payload(&mut self, file: FileId, payload: P) {
        self.files.get_mut(file.0).payload = payload;
    }

    /// What [`Tree::set_payload`] stored.
    pub fn payload(&self, file: FileId) -> P {
        self.files.get(file.0).payload
    }

    /// What a file is.
    pub fn file_type(&self, file: FileId) -> FileType {
        self.files.get(file.0).file_type
    }

    /// Whether a file is a whiteout.
    pub fn is_whiteout(&self, file: FileId) -> bool {
        self.files.get(file.0).whiteout
    }

    /// Payload and number of names of every file that has more than one.
    pub fn hard_linked(&self) -> impl Iterator<Item = (P, u32)> {
        self.files.slots().filter(|(_, file)| file.nlink > 1).map(|(_, file)| (file.payload, file.nlink))
    }

    /// Type of every file, each once, and whether it is a whiteout.
    pub fn files(&self) -> impl Iterator<Item = (FileType, bool)> {
        let live = self.files.slots().filter(|(_, file)| file.nlink > 0);
        live.map(|(_, file)| (file.file_type, file.whiteout))
    }

    /// Files that are in the tree, each once.
    pub fn file_count(&self) -> u64 {
        self.files.live() as u64
    }

    /// Directories that are in the tree, the root included.
    pub fn directory_count(&self) -> u64 {
        self.directories.live() as u64
    }

    /// Numbers that directories have or had: one more than the largest.
    pub fn directory_slots(&self) -> usize {
        self.directories.slots().count()
    }

    /// Sorts the names of a directory by unsigned bytes. Until this is done for it,
    /// [`Tree::children`] lists in any order.
    pub fn sort(&mut self, directory: DirectoryId) {
        let first = self.directories.get(directory.0).first;
        self.directories.get_mut(directory.0).first = self.names.sort_chain(first);
    }

    /// The names of a directory and what they stand for.
    pub fn children(&self, directory: DirectoryId) -> impl Iterator<Item = (&[u8], Node)> {
        let first = self.directories.get(directory.0).first;
        self.names.chain(first).map(|at| {
            let node = match self.names.get(at).target() {
                Target::Directory(number) => Node::Directory(DirectoryId(number)),
                Target::File(number) => Node::File(FileId(number)),
            };
            (self.names.spelling(at), node)
        })
    }

    /// The directory that holds `directory`; the root's is the root itself.
    pub fn parent(&self, directory: DirectoryId) -> DirectoryId {
        match self.directories.get(directory.0).name {
            NONE => DirectoryId::ROOT,
            name => DirectoryId(self.names.get(name).parent),
        }
    }

    /// Owner, permissions and time of a directory.
    pub fn attributes(&self, directory: DirectoryId) -> Attributes {
        self.directories.get(directory.0).attributes
    }

    /// Extended attributes of a directory, sorted by name.
    pub fn xattrs(&self, directory: DirectoryId) -> impl Iterator<Item = &Xattr> {
        self.pool.attributes(&self.directories.get(directory.0).xattrs)
    }

    /// Whether a directory hides what lower layers have in it.
    pub fn is_opaque(&self, directory: DirectoryId) -> bool {
        let directory = self.directories.get(directory.0);
        directory.opaque || (directory.name != NONE && self.names.get(directory.name).whited_out)
    }

    /// Memory the tree holds, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let bytes = self.names.memory_bytes()
            + self.directories.memory_bytes()
            + self.set_bytes
            + self.files.memory_bytes()
            + self.links.memory_bytes()
            + self.targets.memory_bytes()
            + self.pool.memory_bytes();
        bytes as u64
    }

    /// An implied directory called `name`, which `parent` has no name or only a whiteout for.
    pub(super) fn imply(&mut self, parent: u32, name: &[u8], freed: &mut Vec<P>) -> Result<u32, TreeError> {
        if whiteout::is_reserved(name) {
            return Err(TreeError::Reserved(Quoted(name).to_string()));
        }
        let number = self.directory_at(parent, name, freed)?;
        self.directories.get_mut(number).implied = true;
        Ok(number)
    }

    /// The directory called `name`, made in place of whatever else has that name.
    fn directory_at(&mut self, parent: u32, name: &[u8], freed: &mut Vec<P>) -> Result<u32, TreeError> {
        if let Some(found) = self.names.find(parent, name)
            && let Target::Directory(number) = self.names.get(found).target()
        {
            return Ok(number);
        }
        let depth = self.directories.get(parent).depth + 1;
        if u32::from(depth) > limits::DIRECTORY_DEPTH {
            return Err(TreeError::Depth);
        }
        let directory =
            Directory { attributes: IMPLIED, name: NONE, first: NONE, depth, ..Directory::default() };
        let number = self.directories.insert(directory);
        let name = self.name(parent, name, Target::Directory(number), freed)?;
        self.directories.get_mut(number).name = name;
        Ok(number)
    }

    /// Gives a directory the attributes of an entry for it.
    fn describe(&mut self, number: u32, attributes: &Attributes, xattrs: &[Xattr]) -> Result<(), TreeError> {
        self.directories.get_mut(number).implied = false;
        self.attribute(number, attributes, xattrs)
    }

    pub(super) fn attribute(
        &mut self,
        number: u32,
        attributes: &Attributes,
        xattrs: &[Xattr],
    ) -> Result<(), TreeError> {
        let directory = self.directories.get_mut(number);
        directory.attributes = *attributes;
        let before = directory.xattrs.memory_bytes();
        if !self.pool.merge(&mut directory.xattrs, xattrs) {
            return Err(TreeError::XattrSum);
        }
        self.set_bytes = self.set_bytes + directory.xattrs.memory_bytes() - before;
        Ok(())
    }

    /// Gives a directory the attributes of one that is only implied.
    pub(super) fn make_implied(&mut self, number: u32) {
        let directory = self.directories.get_mut(number);
        directory.attributes = IMPLIED;
        self.set_bytes -= directory.xattrs.memory_bytes();
        self.pool.clear(&mut directory.xattrs);
    }

    fn new_file(&mut self, file_type: FileType, whiteout: bool) -> u32 {
        self.files.insert(File { payload: P::default(), nlink: 1, link: NONE, file_type, whiteout })
    }

    fn new_link(&mut self, target: &[u8]) -> Result<u32, TreeError> {
        let len = u16::try_from(target.len()).expect("link targets are at most 4095 bytes");
        let offset = self.targets.push(target).ok_or(TreeError::Memory { limit: u64::from(u32::MAX) })?;
        // A generation that is not the tree's: nobody has followed it yet.
        let generation = self.generation.wrapping_sub(1);
        Ok(self.links.insert(Link { offset, len, hops: 0, directory: 0, generation }))
    }

    /// Deletes `name` from lower layers: what this layer has of that name stays.
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

    /// The file that a hard link's target names.
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

    /// Gives `file` the name `name` too.
    fn link(&mut self, parent: u32, name: &[u8], file: u32, freed: &mut Vec<P>) -> Result<(), TreeError> {
        let found = self.names.find(parent, name);
        if found.is_some_and(|found| self.names.get(found).target() == Target::File(file)) {
            return Ok(());
        }
        // Counted first: what is replaced may be the directory that holds the file's other name.
        self.files.get_mut(file).nlink += 1;
        self.name(parent, name, Target::File(file), freed)?;
        Ok(())
    }

    /// Makes `name` stand for `target`, whatever it stood for, and returns the name's number.
    fn name(
        &mut self,
        parent: u32,
        name: &[u8],
        target: Target,
        freed: &mut Vec<P>,
    ) -> Result<u32, TreeError> {
        if let Some(found) = self.names.find(parent, name) {
            let replaced = self.names.get(found).target();
            self.names.get_mut(found).set_target(target);
            match replaced {
                Target::Directory(number) => self.drop_directory(number, freed),
                Target::File(number) => self.drop_name(number, freed),
            }
            return Ok(found);
        }
        if self.names.len() as u64 + 1 >= self.limits.nodes {
            return Err(TreeError::Nodes { limit: self.limits.nodes });
        }
        let next = self.directories.get(parent).first;
        let number = self
            .names
            .insert(parent, name, target, next)
            .ok_or(TreeError::Memory { limit: u64::from(u32::MAX) })?;
        self.directories.get_mut(parent).first = number;
        Ok(number)
    }

    /// Removes a directory that has lost its name, and everything below it.
    fn drop_directory(&mut self, number: u32, freed: &mut Vec<P>) {
        self.generation = self.generation.wrapping_add(1);
        let mut dropped = vec![number];
        while let Some(number) = dropped.pop() {
            let mut directory = std::mem::take(self.directories.get_mut(number));
            self.set_bytes -= directory.xattrs.memory_bytes();
            self.pool.clear(&mut directory.xattrs);
            self.directories.release(number);
            let mut at = directory.first;
            while at != NONE {
                let (target, next) = (self.names.get(at).target(), self.names.get(at).next);
                self.names.remove(at);
                match target {
                    Target::Directory(number) => dropped.push(number),
                    Target::File(number) => self.drop_name(number, freed),
                }
                at = next;
            }
        }
    }

    /// Takes one name from a file, and the file when it was the last.
    fn drop_name(&mut self, number: u32, freed: &mut Vec<P>) {
        let file = self.files.get_mut(number);
        file.nlink -= 1;
        if file.link != NONE {
            self.generation = self.generation.wrapping_add(1);
        }
        if file.nlink > 0 {
            return;
        }
        freed.push(file.payload);
        if file.link != NONE {
            let link = self.links.get_mut(file.link);
            self.targets.release(usize::from(link.len));
            link.len = 0;
            self.links.release(file.link);
        }
        self.files.release(number);
    }

    /// Rewrites the link targets when most of their store belongs to links that are gone.
    fn tidy_targets(&mut self) {
        if !self.targets.is_wasteful() {
            return;
        }
        let mut rewritten = self.targets.successor();
        for link in self.links.slots_mut().filter(|link| link.len > 0) {
            let target = self.targets.get(link.offset, usize::from(link.len));
            link.offset = rewritten.push(target).expect("it is smaller than its source");
        }
        self.targets = rewritten;
    }

    /// Splits a name into the way to its parent and its last component; `None` for the root.
    fn parent_of<'a>(&self, name: &'a [u8]) -> Result<Option<(Way<'a>, &'a [u8])>, TreeError> {
        if let Some(known) = self.last_parent.recall(name, self.generation) {
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
