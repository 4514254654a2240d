//! A file tree to be written as metadata, in memory.
//!
//! Source: as for [`super::image`].

use std::{borrow::Cow, collections::BTreeMap};

use super::records::ChunkRef;
use crate::tree::{Attributes, Device, FileType, Timestamp, Xattr};

/// Attributes of directories without an entry of their own.
pub const IMPLIED: Attributes =
    Attributes { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp { seconds: 0, nanoseconds: 0 } };

/// File or directory.
#[derive(Debug)]
pub struct Node<'t> {
    /// Owner, permissions and time.
    pub attributes: Attributes,
    /// Extended attributes.
    pub xattrs: Cow<'t, [Xattr]>,
    /// Type, and what only this type has.
    pub body: Body<'t>,
    pub(super) parent: usize,
    pub(super) children: BTreeMap<Cow<'t, [u8]>, usize>,
    pub(super) links: u32,
}

/// Type of a file with its own fields.
#[derive(Debug)]
pub enum Body<'t> {
    /// Directory.
    Directory,
    /// Regular file.
    Regular {
        /// Size in bytes.
        size_bytes: u64,
        /// Chunks of the file, in order.
        chunks: Vec<ChunkRef>,
    },
    /// Symbolic link.
    Symlink(Cow<'t, [u8]>),
    /// Character device.
    CharDevice(Device),
    /// Block device.
    BlockDevice(Device),
    /// Named pipe.
    Fifo,
}

impl Body<'_> {
    /// Type in an inode.
    pub fn file_type(&self) -> FileType {
        match self {
            Self::Directory => FileType::Directory,
            Self::Regular { .. } => FileType::Regular,
            Self::Symlink(_) => FileType::Symlink,
            Self::CharDevice(_) => FileType::CharDevice,
            Self::BlockDevice(_) => FileType::BlockDevice,
            Self::Fifo => FileType::Fifo,
        }
    }
}

/// A tree whose nodes have numbers. The root is number 0.
#[derive(Debug)]
pub struct Tree<'t> {
    nodes: Vec<Node<'t>>,
}

impl Default for Tree<'_> {
    /// An implied root without anything in it.
    fn default() -> Self {
        Self {
            nodes: vec![Node {
                attributes: IMPLIED,
                xattrs: Cow::Borrowed(&[]),
                body: Body::Directory,
                parent: 0,
                children: BTreeMap::new(),
                links: 2,
            }],
        }
    }
}

impl<'t> Tree<'t> {
    /// All nodes, by number.
    pub fn nodes(&self) -> &[Node<'t>] {
        &self.nodes
    }

    /// Gives back the memory that was set aside for further nodes.
    pub fn shrink(&mut self) {
        self.nodes.shrink_to_fit();
    }

    /// The node of a number that this tree has given.
    pub fn node(&mut self, number: usize) -> &mut Node<'t> {
        self.nodes.get_mut(number).expect("numbers are those of nodes")
    }

    /// Adds a file or directory to the directory `parent`. Returns its number.
    pub fn add(
        &mut self,
        parent: usize,
        name: Cow<'t, [u8]>,
        attributes: Attributes,
        xattrs: Cow<'t, [Xattr]>,
        body: Body<'t>,
    ) -> usize {
        let (number, is_directory) = (self.nodes.len(), matches!(body, Body::Directory));
        let links = if is_directory { 2 } else { 1 };
        self.nodes.push(Node { attributes, xattrs, body, parent, children: BTreeMap::new(), links });
        let above = self.node(parent);
        above.children.insert(name, number);
        above.links += u32::from(is_directory);
        number
    }

    /// Gives the file `target` a further name in the directory `parent`.
    pub fn link(&mut self, parent: usize, name: Cow<'t, [u8]>, target: usize) {
        self.node(parent).children.insert(name, target);
        self.node(target).links += 1;
    }

    /// The node at `path`, whose components are separated by slashes; the root for an empty one.
    pub fn find(&self, path: &[u8]) -> Option<usize> {
        let components = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        components.into_iter().try_fold(0, |at, name| self.nodes.get(at)?.children.get(name).copied())
    }
}

/// Splits a path into that of its parent and its name.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (&[], path),
    }
}
