//! The first pass: walks the directories breadth first.
//!
//! Described in `docs/formats/erofs.md`, "Checking".

use std::collections::VecDeque;

use super::{CheckError, Notes, Policy, Rule, ranges::Ranges};
use crate::{
    format::{
        ReadAt,
        erofs::{
            Nid, SLOT_LEN,
            inode::Layout,
            reader::{Image, Node, NodeFault, Place, ReadError},
        },
    },
    limits::DIRECTORY_DEPTH,
    tree::FileType,
};

/// Most directories whose inodes the disk may read before they are walked.
const AHEAD: usize = 256;

/// Result of the walk over the directories.
#[derive(Debug)]
pub(super) struct Tree {
    /// Every directory record, and one for the root.
    pub(super) records: Vec<Record>,
    /// Blocks of directory data, to be checked for overlaps.
    pub(super) blocks: Ranges,
}

/// Directory record in 8 bytes: the slot of its inode, counted from byte 0, and the type it claims.
///
/// Sorted by slot, so that the records of one inode are neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Record(u64);

impl Record {
    fn new(position: u64, file_type: FileType) -> Self {
        let number = match file_type {
            FileType::Regular => 0,
            FileType::Directory => 1,
            FileType::CharDevice => 2,
            FileType::BlockDevice => 3,
            FileType::Fifo => 4,
            FileType::Socket => 5,
            FileType::Symlink => 6,
        };
        // A byte position has 64 bits and a slot 59, which leaves room for the type.
        Self((position / SLOT_LEN) << 3 | number)
    }

    /// Byte of the image at which the named inode starts.
    pub(super) fn position(self) -> u64 {
        (self.0 >> 3) * SLOT_LEN
    }

    /// True when the record claims `file_type`.
    pub(super) fn claims(self, file_type: FileType) -> bool {
        self == Self::new(self.position(), file_type)
    }
}

/// Directory that is still to be walked.
#[derive(Clone, Copy, Debug)]
struct Pending {
    position: u64,
    parent: u64,
    depth: u32,
}

impl Tree {
    /// Walks every directory from `root` on.
    pub(super) fn walk<R: ReadAt>(
        image: &Image<R>,
        policy: &Policy,
        root: &Node,
        notes: &mut Notes,
    ) -> Result<Self, CheckError> {
        let mut tree = Self {
            records: vec![Record::new(root.position, FileType::Directory)],
            blocks: Ranges::default(),
        };
        let start = Pending { position: root.position, parent: root.position, depth: 0 };
        let mut pending = VecDeque::from([start]);
        let (mut directory_bytes, mut hinted) = (0_u64, 0_usize);
        let mut positions = Vec::new();
        while let Some(directory) = pending.pop_front() {
            hinted = hinted.saturating_sub(1);
            if hinted <= AHEAD / 2 {
                let next = pending.range(hinted..).take(AHEAD);
                hinted += next.len();
                positions.clear();
                positions.extend(next.map(|directory| directory.position));
                positions.sort_unstable();
                image.will_need(positions.iter().copied());
            }
            let found = pending.len();
            let node = tree.directory(image, policy, directory, &mut pending, notes)?;
            // Directories that do not overlap are together smaller than the image. If they overlap,
            // one block could be walked a million times.
            directory_bytes = directory_bytes.saturating_add(node.inode.size_bytes);
            if directory_bytes > image.size_bytes() {
                return Err(CheckError::inode(
                    Rule::Overlap,
                    node.nid,
                    format!("directories of {directory_bytes} bytes in an image of {}", image.size_bytes()),
                ));
            }
            Self::each_once(image, root, &mut pending, found)?;
            let records = (tree.records.capacity() * size_of::<Record>()) as u64;
            let waiting = (pending.capacity() * size_of::<Pending>()) as u64;
            if records + waiting + tree.blocks.memory_bytes() > policy.max_memory_bytes {
                return Err(CheckError::Memory { limit: policy.max_memory_bytes });
            }
        }
        Ok(tree)
    }

    /// Walks one directory: notes its records, and its subdirectories as pending.
    fn directory<R: ReadAt>(
        &mut self,
        image: &Image<R>,
        policy: &Policy,
        directory: Pending,
        pending: &mut VecDeque<Pending>,
        notes: &mut Notes,
    ) -> Result<Node, CheckError> {
        let meta_start = image.superblock().meta_start();
        let nid = Nid::at_byte_offset(directory.position, meta_start).unwrap_or(Nid(0));
        let (node, _) = image.node_at(nid, directory.position)?;
        if node.inode.file_type != FileType::Directory {
            let found = node.inode.file_type;
            let detail = format!("a record calls it a directory, it is {found:?}");
            return Err(CheckError::inode(Rule::EntryType, nid, detail));
        }
        self.data(image, &node)?;
        let (mut dot, mut dot_dot) = (node.inode.dot_omitted, false);
        let subdirectories = pending.len();
        let mut walk = image.directory(&node)?;
        while let Some(entry) = walk.next_entry()? {
            if entry.nid.in_metabox() {
                let fault = NodeFault::Metabox;
                return Err(ReadError::Node { nid: entry.nid, fault }.into());
            }
            let position = entry.nid.byte_offset(meta_start);
            let (seen, rule, want) = match entry.name {
                b"." => (&mut dot, Rule::Dot, directory.position),
                b".." => (&mut dot_dot, Rule::DotDot, directory.parent),
                _ => {
                    if self.records.len() as u64 > policy.max_nodes {
                        return Err(CheckError::Nodes { limit: policy.max_nodes });
                    }
                    self.records.push(Record::new(position, entry.file_type));
                    if entry.file_type == FileType::Directory {
                        let depth = directory.depth + 1;
                        pending.push_back(Pending { position, parent: directory.position, depth });
                    }
                    continue;
                }
            };
            if position != want || entry.file_type != FileType::Directory {
                let name = entry.name.escape_ascii();
                let detail = format!("its \"{name}\" leads to inode {}, {:?}", entry.nid, entry.file_type);
                return Err(CheckError::inode(rule, nid, detail));
            }
            *seen = true;
        }
        for (seen, rule, name) in [(dot, Rule::Dot, "."), (dot_dot, Rule::DotDot, "..")] {
            if !seen {
                return Err(CheckError::inode(rule, nid, format!("it has no \"{name}\"")));
            }
        }
        if walk.dirty_bytes() > 0 {
            let found = walk.dirty_bytes();
            notes.lint(Rule::Fill, Some(nid), || {
                format!("{found} bytes in records or after names are not zero")
            });
        }
        let links = (pending.len() - subdirectories) as u64 + 2;
        let nlink = u64::from(node.inode.nlink);
        // The kernel's convention for more links than can be counted is 1.
        if nlink != links && !(nlink == 1 && links > u64::from(u16::MAX)) {
            notes.lint(Rule::Links, Some(nid), || format!("link count {nlink} of a directory with {links}"));
        }
        if directory.depth > DIRECTORY_DEPTH {
            let detail = format!("it lies more than {DIRECTORY_DEPTH} directories deep");
            return Err(CheckError::inode(Rule::Depth, nid, detail));
        }
        Ok(node)
    }

    /// Checks that the directories found from index `found` on are different, and none is the root.
    ///
    /// Each `..` leads to one parent, so a directory with two parents, and a loop, is found there.
    /// The case left is one parent that lists a directory twice; walking both would double the work
    /// at every level.
    fn each_once<R: ReadAt>(
        image: &Image<R>,
        root: &Node,
        pending: &mut VecDeque<Pending>,
        found: usize,
    ) -> Result<(), CheckError> {
        let mut positions: Vec<u64> = pending.range(found..).map(|directory| directory.position).collect();
        positions.sort_unstable();
        let twice = positions.windows(2).find_map(|pair| match pair {
            [a, b] if a == b => Some(*a),
            _ => None,
        });
        let again = positions.binary_search(&root.position).is_ok().then_some(root.position);
        if let Some(position) = twice.or(again) {
            let nid = Nid::at_byte_offset(position, image.superblock().meta_start()).unwrap_or(Nid(0));
            return Err(CheckError::inode(Rule::Twice, nid, "the directory is listed twice"));
        }
        Ok(())
    }

    /// Notes the blocks of a directory. They lie in the image's own file, in one piece.
    fn data<R: ReadAt>(&mut self, image: &Image<R>, node: &Node) -> Result<(), CheckError> {
        let fault = |rule, detail: &str| Err(CheckError::inode(rule, node.nid, detail));
        if !matches!(node.inode.data.layout(), Layout::Plain | Layout::Inline) {
            let layout = node.inode.data.layout().as_str();
            return fault(Rule::Layout, &format!("a directory of layout {layout}"));
        }
        let bits = image.superblock().block_bits;
        for extent in image.extents(node, 0) {
            let extent = extent?;
            match extent.place {
                Place::Blocks { device, offset } => {
                    let start = bits.block_of(offset);
                    let end = start + bits.blocks_for(extent.len);
                    if device != 0 || end > image.own_blocks() {
                        return fault(Rule::Undeclared, "the directory's blocks are not the image's own");
                    }
                    self.blocks.add(start, end);
                }
                Place::Hole => return fault(Rule::Layout, "the directory has a hole"),
                Place::Inline { .. } => {}
            }
        }
        Ok(())
    }
}
