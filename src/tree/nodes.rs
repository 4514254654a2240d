//! Contents of a layer's tree: names, directories, files and links, with the operations that add
//! and remove them.
//!
//! [`super::layer`] decides which of them an entry needs.

use super::{
    Attributes, FileType, TreeError, Xattr,
    arena::{Bytes, Slab},
    names::{NONE, Names, Target},
    pool::{Pool, Set},
    whiteout,
};
use crate::{error::Quoted, limits};

/// Bounds of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most live names: entries, implied directories and whiteouts. Above 2^30 it counts as 2^30.
    pub nodes: u64,
    /// Most memory that the tree holds, in bytes.
    pub memory_bytes: u64,
}

/// Number of a directory in a [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirectoryId(pub(super) u32);

impl DirectoryId {
    /// Root directory, which every tree has.
    pub const ROOT: Self = Self(0);

    /// Number of the directory, below [`Tree::directory_slots`].
    pub fn index(self) -> usize {
        super::arena::index(self.0)
    }
}

/// Number of a file in a [`Tree`]: an inode that is no directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub(super) u32);

/// Directory or file that a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// Directory, with this number.
    Directory(DirectoryId),
    /// Any other inode, with this number.
    File(FileId),
}

/// Directory while the layer is read.
#[derive(Debug, Default)]
pub(super) struct Directory {
    attributes: Attributes,
    xattrs: Set,
    /// Name of the directory; [`NONE`] for the root.
    pub(super) name: u32,
    /// Name in it that was added last.
    pub(super) first: u32,
    /// Number of directories above it.
    depth: u16,
    /// True when the layer has an opaque marker in it.
    pub(super) opaque: bool,
    /// True when names imply the directory and no entry describes it.
    pub(super) implied: bool,
}

impl Directory {
    /// Creates a directory without a name and without names in it.
    pub(super) fn nameless() -> Self {
        Self { name: NONE, first: NONE, ..Self::default() }
    }
}

/// File while the layer is read.
#[derive(Debug)]
pub(super) struct File<P> {
    payload: P,
    /// Number of its names; 0 for a freed slot.
    pub(super) nlink: u32,
    /// Number of its symbolic link, or [`NONE`] for other files.
    pub(super) link: u32,
    pub(super) file_type: FileType,
    pub(super) whiteout: bool,
}

/// Symbolic link while the layer is read. [`super::resolve`] follows it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) offset: u32,
    /// Length of the target in bytes; 0 for a freed slot.
    pub(super) len: u16,
    /// Number of links followed on the way to `directory`.
    pub(super) hops: u16,
    /// Directory that the link leads to. Valid while `generation` is the tree's.
    pub(super) directory: u32,
    pub(super) generation: u32,
}

/// Tree of a layer, which entries are added to in the order of the source.
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
    /// Nameless directory with the files of aufs: images do not have them, but hard links may name
    /// them.
    pub(super) aufs: Option<u32>,
    /// Rises when a directory or a symbolic link loses its name, because directories that links led
    /// to may be gone.
    pub(super) generation: u32,
    pub(super) last_parent: LastParent,
    /// True when an entry describes the root.
    pub(super) root_is_described: bool,
    /// Bytes of link targets that may still be followed. Each entry adds some.
    pub(super) link_steps: u64,
    /// True when hard links may name files of the layers below.
    pub(super) links_below: bool,
}

/// Parent of the last entry. Entries of one directory mostly follow each other.
#[derive(Debug, Default)]
pub(super) struct LastParent {
    pub(super) spelling: Vec<u8>,
    pub(super) directory: u32,
    pub(super) generation: u32,
    pub(super) is_set: bool,
}

/// Attributes of directories that the layer implies but does not list. 0755 and root: never
/// writable for others.
const IMPLIED: Attributes =
    Attributes { mode: 0o755, uid: 0, gid: 0, mtime: super::Timestamp { seconds: 0, nanoseconds: 0 } };

/// Bytes of link targets that may be followed in a whole layer, before those that entries add. Real
/// layers need a few bytes per entry, because the tree remembers where a link leads. This bounds
/// layers that keep replacing what they link to.
const LINK_STEPS: u64 = 16 << 20;

impl<P: Copy + Default> Tree<P> {
    /// Creates a tree with a root of mode 0755, owner 0:0, time 0.
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
            root_is_described: false,
            link_steps: LINK_STEPS,
            links_below: false,
        }
    }

    /// Lets hard links name files that only the layers below have, see [`super::Inserted::Borrowed`].
    pub fn allow_links_below(&mut self) {
        self.links_below = true;
    }

    /// Stores the payload of a file, for the writer of the image.
    pub fn set_payload(&mut self, file: FileId, payload: P) {
        self.files.get_mut(file.0).payload = payload;
    }

    /// Payload of a file, as stored by [`Tree::set_payload`].
    pub fn payload(&self, file: FileId) -> P {
        self.files.get(file.0).payload
    }

    /// Type of the file's inode.
    pub fn file_type(&self, file: FileId) -> FileType {
        self.files.get(file.0).file_type
    }

    /// True when a file is a whiteout.
    pub fn is_whiteout(&self, file: FileId) -> bool {
        self.files.get(file.0).whiteout
    }

    /// Payload and link count of every file.
    pub fn link_counts(&self) -> impl Iterator<Item = (P, u32)> {
        let live = self.files.slots().filter(|(_, file)| file.nlink > 0);
        live.map(|(_, file)| (file.payload, file.nlink))
    }

    /// Payload and type of every file, each once, and true for a whiteout.
    pub fn files(&self) -> impl Iterator<Item = (P, FileType, bool)> {
        let live = self.files.slots().filter(|(_, file)| file.nlink > 0);
        live.map(|(_, file)| (file.payload, file.file_type, file.whiteout))
    }

    /// Number of files in the tree, each counted once.
    pub fn file_count(&self) -> u64 {
        self.files.live() as u64
    }

    /// Number of directories in the tree, the root included.
    pub fn directory_count(&self) -> u64 {
        self.directories.live() as u64
    }

    /// One more than the largest number that a directory has or had.
    pub fn directory_slots(&self) -> usize {
        self.directories.slots().count()
    }

    /// Sorts the names of a directory by unsigned bytes. Before that, [`Tree::children`] lists them
    /// in any order.
    pub fn sort(&mut self, directory: DirectoryId) {
        let first = self.directories.get(directory.0).first;
        self.directories.get_mut(directory.0).first = self.names.sort_chain(first);
    }

    /// Names in a directory, with the nodes that they stand for.
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

    /// Directory that holds `directory`; the root holds itself.
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

    /// True when the directory keeps the attributes of one that it is merged with: names imply it, no entry describes
    /// it, and the layer does not delete the one below.
    pub fn inherits(&self, directory: DirectoryId) -> bool {
        let found = self.directories.get(directory.0);
        match found.name {
            NONE => !self.root_is_described,
            name => found.implied && !self.names.get(name).whited_out,
        }
    }

    /// True when a directory hides everything that lower layers have in it.
    pub fn is_opaque(&self, directory: DirectoryId) -> bool {
        let directory = self.directories.get(directory.0);
        directory.opaque || (directory.name != NONE && self.names.get(directory.name).whited_out)
    }

    /// Memory that the tree holds, in bytes.
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

    /// Creates an implied directory called `name`, for which `parent` has no name or only a
    /// whiteout.
    pub(super) fn imply(&mut self, parent: u32, name: &[u8], freed: &mut Vec<P>) -> Result<u32, TreeError> {
        if whiteout::is_reserved(name) {
            return Err(TreeError::Reserved(Quoted(name).to_string()));
        }
        let number = self.directory_at(parent, name, freed)?;
        self.directories.get_mut(number).implied = true;
        Ok(number)
    }

    /// Directory called `name`. If the name stands for anything else, a new directory replaces
    /// that.
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

    /// Gives a directory the attributes of an implied one.
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
        // An older generation than the tree's marks a link that was not followed yet.
        let generation = self.generation.wrapping_sub(1);
        Ok(self.links.insert(Link { offset, len, hops: 0, directory: 0, generation }))
    }

    /// Makes `name` stand for `target` instead of what it stood for. Returns the number of the
    /// name.
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

    /// Removes a directory that lost its name, and everything below it.
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

    /// Removes one name of a file, and the file with its last name.
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

    /// Rewrites the link targets when most of their store belongs to removed links.
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
