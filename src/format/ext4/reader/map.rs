//! Maps blocks of a file to blocks of the file system, by extent tree or by block map.
//!
//! Both give runs of blocks in a stretch of the file. The stretch of one leaf is kept. Finding the
//! next stretch walks down from the root again, through at most five nodes.
//!
//! Source: Linux `fs/ext4/extents.c` (`ext4_find_extent`), `fs/ext4/indirect.c` (`ext4_block_to_path`).

use super::{
    Image, Node,
    error::{NodeFault, Place, ReadError},
};
use crate::format::{
    ReadAt,
    ext4::{
        Block, checksum,
        extent::{ExtentFault, Header, Index, Leaf},
        inode::{Content, Inode},
    },
};

/// Run of consecutive blocks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// First block of the file in the run.
    pub(super) first: u64,
    /// Block of the file after the run.
    pub(super) end: u64,
    /// First block of the file system; `None` for a hole.
    pub(super) start: Option<Block>,
}

/// Finder of runs, which keeps the runs of the last leaf.
#[derive(Debug)]
pub(super) struct Map {
    node: Node,
    /// Stretch of the file that `runs` covers: first block, then the block after it.
    first: u64,
    end: u64,
    /// Runs with data in the stretch, ascending.
    runs: Vec<Run>,
}

/// Blocks of a file that 32 bits can number.
const LIMIT: u64 = 1 << 32;

impl Map {
    pub(super) fn new(node: Node) -> Self {
        Self { node, first: 0, end: 0, runs: Vec::new() }
    }

    /// Run that holds block `at` of the file, cut to start at `at`.
    pub(super) fn find<R: ReadAt>(&mut self, image: &Image<R>, at: u64) -> Result<Run, ReadError> {
        if at >= LIMIT {
            let size_bytes = self.node.inode.size_bytes;
            return Err(ReadError::Node {
                number: self.node.number,
                fault: NodeFault::TooLarge { size_bytes },
            });
        }
        if !(self.first..self.end).contains(&at) {
            // An error leaves no runs behind.
            (self.first, self.end) = (0, 0);
            self.runs.clear();
            (self.first, self.end) = match self.node.inode.content() {
                Content::Extents => self.by_extents(image, at)?,
                _ => self.by_map(image, at)?,
            };
        }
        let next = self.runs.partition_point(|run| run.end <= at);
        Ok(match self.runs.get(next) {
            Some(run) if run.first <= at => {
                let start = run.start.map(|start| Block(start.0 + (at - run.first)));
                Run { first: at, end: run.end, start }
            }
            Some(run) => Run { first: at, end: run.first, start: None },
            None => Run { first: at, end: self.end, start: None },
        })
    }

    /// Walks down the extent tree to the leaf that covers block `at`. Returns the stretch that the
    /// leaf covers.
    fn by_extents<R: ReadAt>(&mut self, image: &Image<R>, at: u64) -> Result<(u64, u64), ReadError> {
        let number = self.node.number;
        let fault = |place, fault| ReadError::Extent { number, place, fault };
        let seed = self.node.inode.checksum_seed(number, &image.superblock);
        let (mut low, mut high) = (0, LIMIT);
        let mut place = Place::Inode;
        let root = self.node.inode.payload;
        let mut block;
        let mut node: &[u8] = &root;
        let mut depth = None;
        loop {
            let header = Header::decode(node).map_err(|error| fault(place, error))?;
            let want = depth.unwrap_or(Header::MAX_DEPTH);
            if header.depth > want || depth.is_some_and(|depth| depth != header.depth) {
                return Err(fault(place, ExtentFault::Depth { found: header.depth, want }));
            }
            if place != Place::Inode && image.superblock.has_checksums() {
                verify(node, &header, seed).map_err(|error| fault(place, error))?;
            }
            if header.depth == 0 {
                self.leaf(image, node, &header, (low, high)).map_err(|error| match error {
                    LeafError::Fault(error) => fault(place, error),
                    LeafError::Read(error) => error,
                })?;
                return Ok((low, high));
            }
            let chosen = choose(node, &header, at, (low, high)).map_err(|error| fault(place, error))?;
            // A hole comes before the first entry.
            let Some((index, first, end)) = chosen else {
                let end =
                    header.records(node).next().map_or(high, |record| Index::decode(record).first.into());
                return Ok((low, end));
            };
            (low, high) = (first, end);
            place = Place::Block(index.node);
            block = image.blocks.read(index.node, "extents")?;
            node = &block;
            depth = Some(header.depth - 1);
        }
    }

    /// Keeps the extents of a leaf, which have to lie between `low` and `high`.
    fn leaf<R: ReadAt>(
        &mut self,
        image: &Image<R>,
        node: &[u8],
        header: &Header,
        (mut low, high): (u64, u64),
    ) -> Result<(), LeafError> {
        for (index, record) in header.records(node).enumerate() {
            let leaf = Leaf::decode(record);
            let (first, len) = (u64::from(leaf.first), u64::from(leaf.len));
            if len == 0 {
                return Err(LeafError::Fault(ExtentFault::Empty { index }));
            }
            if first < low || first + len > high {
                return Err(LeafError::Fault(ExtentFault::Order { index, first, low, high }));
            }
            low = first + len;
            // Unwritten blocks read as a hole.
            if let Some(start) = leaf.start {
                image.blocks.contains(start, len, "file data").map_err(LeafError::Read)?;
                self.runs.push(Run { first, end: low, start: Some(start) });
            }
        }
        Ok(())
    }

    /// Walks down the block maps to the numbers that cover block `at`. Returns the stretch that
    /// they cover.
    fn by_map<R: ReadAt>(&mut self, image: &Image<R>, at: u64) -> Result<(u64, u64), ReadError> {
        /// Blocks whose numbers are in the inode.
        const DIRECT: u64 = 12;
        let payload = self.node.inode.payload;
        let (slots, _) = payload.as_chunks::<4>();
        if at < DIRECT {
            let slots = slots.iter().take(12);
            self.numbered(image, 0, slots)?;
            return Ok((0, DIRECT));
        }
        let bits = image.superblock.block_bits;
        // A block holds a power of two of numbers, so each map covers a power of two of blocks.
        let width = bits.get() - 2;
        let mut first = DIRECT;
        let mut found = None;
        for (level, slot) in (1..=3).zip(slots.iter().skip(12)) {
            let end = first + (1 << (level * width));
            if at < end {
                found = Some((level, slot));
                break;
            }
            first = end;
        }
        let Some((mut level, slot)) = found else {
            let fault = NodeFault::TooLarge { size_bytes: self.node.inode.size_bytes };
            return Err(ReadError::Node { number: self.node.number, fault });
        };
        let mut number = u32::from_le_bytes(*slot);
        loop {
            let end = first + (1 << (level * width));
            if number == 0 {
                return Ok((first, end));
            }
            let map = image.blocks.read(Block(number.into()), "block map")?;
            let (slots, _) = map.as_chunks::<4>();
            if level == 1 {
                self.numbered(image, first, slots.iter())?;
                return Ok((first, end));
            }
            level -= 1;
            let index = (at - first) >> (level * width);
            first += index << (level * width);
            let slot = usize::try_from(index).ok().and_then(|index| slots.get(index));
            number = slot.map_or(0, |slot| u32::from_le_bytes(*slot));
        }
    }

    /// Keeps blocks that are numbered one by one, from block `first` of the file on.
    fn numbered<'s, R: ReadAt>(
        &mut self,
        image: &Image<R>,
        first: u64,
        slots: impl Iterator<Item = &'s [u8; 4]>,
    ) -> Result<(), ReadError> {
        for (at, slot) in (first..).zip(slots) {
            let number = u64::from(u32::from_le_bytes(*slot));
            if number == 0 {
                continue;
            }
            image.blocks.contains(Block(number), 1, "file data")?;
            match self.runs.last_mut() {
                Some(Run { first, end, start: Some(start) })
                    if *end == at && start.0 + (at - *first) == number =>
                {
                    *end += 1;
                }
                _ => self.runs.push(Run { first: at, end: at + 1, start: Some(Block(number)) }),
            }
        }
        Ok(())
    }
}

enum LeafError {
    Fault(ExtentFault),
    Read(ReadError),
}

/// Chooses the entry that covers block `at`, with the stretch that it covers. Checks that all
/// entries ascend.
fn choose(
    node: &[u8],
    header: &Header,
    at: u64,
    (low, high): (u64, u64),
) -> Result<Option<(Index, u64, u64)>, ExtentFault> {
    let mut chosen: Option<(Index, u64, u64)> = None;
    let mut before = None;
    for (index, record) in header.records(node).enumerate() {
        let entry = Index::decode(record);
        let first = u64::from(entry.first);
        let least = before.map_or(low, |before| before + 1);
        if first < least || first >= high {
            return Err(ExtentFault::Order { index, first, low: least, high });
        }
        if first <= at {
            chosen = Some((entry, first, high));
        } else if before.is_some_and(|before| before <= at)
            && let Some(chosen) = &mut chosen
        {
            chosen.2 = first;
        }
        before = Some(first);
    }
    Ok(chosen)
}

fn verify(node: &[u8], header: &Header, seed: u32) -> Result<(), ExtentFault> {
    let (covered, tail) = node.split_at_checked(header.checksum_offset()).unwrap_or((node, &[]));
    let stored = tail.first_chunk().map_or(0, |field| u32::from_le_bytes(*field));
    let computed = checksum::crc32c(seed, covered);
    if stored == computed { Ok(()) } else { Err(ExtentFault::Checksum { stored, computed }) }
}

impl Inode {
    /// True when the data is in blocks, which a [`Map`] finds.
    pub(super) fn has_blocks(&self) -> bool {
        matches!(self.content(), Content::Extents | Content::BlockMap)
    }
}
