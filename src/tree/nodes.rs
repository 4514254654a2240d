//! What the tree of a layer holds: names, directories, files and links, and how each of them comes and goes.
//!
//! Which entry does what to them is decided by [`super::layer`].

use super::{
    Attributes, FileType, TreeError, Xattr,
    arena::{Bytes, Slab},
    names::{NONE, Names, Target},
    pool::{Pool, Set},
    whiteout,
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
pub struct FileId(pub(super) u32);

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

impl Directory {
    /// A directory without a name and without names in it.
    pub(super) fn nameless() -> Self {
        Self { name: NONE, first: NONE, ..Self::default() }
    }
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

/// The tree of a layer: entries in the order of the source, one image's tree at the end.
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
    pub(super) aufs: Option<u32>,
    /// Rises when a directory or a symbolic link loses its name: what links led to may be gone.
    pub(super) generation: u32,
    pub(super) last_parent: LastParent,
    /// Bytes of link targets that may still be followed; each entry adds some.
    pub(super) link_steps: u64,
}

/// The parent of the last entry: entries of one directory mostly follow each other.
#[derive(Debug, Default)]
pub(super) struct LastParent {
    pub(super) spelling: Vec<u8>,
    pub(super) directory: u32,
    pub(super) generation: u32,
    pub(super) is_set: bool,
}

/// Owner and permissions of directories that the layer implies but does not list.
const IMPLIED: Attributes =
    Attributes { mode: 0o755, uid: 0, gid: 0, mtime: super::Timestamp { seconds: 0, nanoseconds: 0 } };

/// What following links may cost in all, in bytes of their targets: this, and some more per entry.
/// Layers in the wild need a few bytes per entry, and what was followed once is remembered; this
/// bounds those that keep replacing what they link to.
const LINK_STEPS: u64 = 16 << 20;

impl<P: Copy + Default> Tree<P> {
    /// An empty tree: a root of mode 0755, owner 0:0, time 0.
    pub fn new(limits: Limits) -> Self {
        let mut directories = Slab::default();
        directories.insert(Directory { attributes: IMPLIED, ..Directory::nameless() });
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
    pub(super) fn directory_at(
        &mut self,
        parent: u32,
        name: &[u8],
        freed: &mut Vec<P>,
    ) -> Result<u32, TreeError> {
        if let Some(found) = self.names.find(parent, name)
            && let Target::Directory(number) = self.names.get(found).target()
        {
            return Ok(number);
        }
        let depth = self.directories.get(parent).depth + 1;
        if u32::from(depth) > limits::DIRECTORY_DEPTH {
            return Err(TreeError::Depth);
        }
        let directory = Directory { attributes: IMPLIED, depth, ..Directory::nameless() };
        let number = self.directories.insert(directory);
        let name = self.name(parent, name, Target::Directory(number), freed)?;
        self.directories.get_mut(number).name = name;
        Ok(number)
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

    pub(super) fn new_file(&mut self, file_type: FileType, whiteout: bool) -> u32 {
        self.files.insert(File { payload: P::default(), nlink: 1, link: NONE, file_type, whiteout })
    }

    pub(super) fn new_link(&mut self, target: &[u8]) -> Result<u32, TreeError> {
        let len = u16::try_from(target.len()).expect("link targets are at most 4095 bytes");
        let offset = self.targets.push(target).ok_or(TreeError::Memory { limit: u64::from(u32::MAX) })?;
        // A generation that is not the tree's: nobody has followed it yet.
        let generation = self.generation.wrapping_sub(1);
        Ok(self.links.insert(Link { offset, len, hops: 0, directory: 0, generation }))
    }

    /// Makes `name` stand for `target`, whatever it stood for, and returns the name's number.
    pub(super) fn name(
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
    pub(super) fn drop_directory(&mut self, number: u32, freed: &mut Vec<P>) {
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
    pub(super) fn tidy_targets(&mut self) {
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
}
