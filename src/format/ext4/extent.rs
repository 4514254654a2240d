//! Extent trees: the 12-byte header of a node, and its entries of 12 bytes.
//!
//! A node lies in the 60 bytes of an inode, or in a block with a checksum behind its last entry.
//! The reader puts nodes together to a tree.
//!
//! Source: Linux `fs/ext4/ext4_extents.h`; `fs/ext4/extents.c`, `__ext4_ext_check`,
//! `Documentation/filesystems/ext4/ifork.rst`.

use super::Block;

/// Header of a node, little-endian, 12 bytes.
///
/// | offset | size | field         | unit and meaning                         |
/// |-------:|-----:|---------------|------------------------------------------|
/// |      0 |    2 | eh_magic      | 0xF30A                                   |
/// |      2 |    2 | eh_entries    | entries in use                           |
/// |      4 |    2 | eh_max        | entries that fit                         |
/// |      6 |    2 | eh_depth      | levels below; 0: the entries are extents |
/// |      8 |    4 | eh_generation | not used                                 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of entries in use.
    pub entries: u16,
    /// Levels below this node; 0 for a leaf.
    pub depth: u16,
    /// Number of entries that fit the node.
    pub max: u16,
}

/// Entry of a node above the leaves, little-endian, 12 bytes.
///
/// | offset | size | field      | unit and meaning                       |
/// |-------:|-----:|------------|----------------------------------------|
/// |      0 |    4 | ei_block   | first block of the file it is about    |
/// |      4 |    4 | ei_leaf_lo | block of the node below                |
/// |      8 |    2 | ei_leaf_hi | bits 32..47                            |
/// |     10 |    2 | ei_unused  |                                        |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index {
    /// First block of the file that the node below covers.
    pub first: u32,
    /// Block that holds the node below.
    pub node: Block,
}

/// Entry of a leaf, little-endian, 12 bytes.
///
/// | offset | size | field       | unit and meaning                                          |
/// |-------:|-----:|-------------|-----------------------------------------------------------|
/// |      0 |    4 | ee_block    | first block of the file                                   |
/// |      4 |    2 | ee_len      | blocks; above 32768: that many more than 32768, unwritten |
/// |      6 |    2 | ee_start_hi | bits 32..47                                               |
/// |      8 |    4 | ee_start_lo | first block of the file system                            |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// First block of the file that the extent covers.
    pub first: u32,
    /// Length in blocks, at most 32768.
    pub len: u16,
    /// First block in the file system; `None` for blocks that were allocated but never written,
    /// which read as zeros.
    pub start: Option<Block>,
}

/// Fault of a node or of one of its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExtentFault {
    /// The node does not start with the magic number.
    #[error("magic number {found:#06x} is not 0xf30a")]
    Magic {
        /// Number in the place of the magic number.
        found: u16,
    },
    /// The node is on another level than its parent says.
    #[error("its depth is {found}, not {want}")]
    Depth {
        /// Depth in the node.
        found: u16,
        /// Depth that the parent leaves, or 5 for the root, which may have less.
        want: u16,
    },
    /// The entries do not fit the node.
    #[error("{entries} of at most {max} entries do not fit {len} bytes")]
    Entries {
        /// Entries in use.
        entries: u16,
        /// Entries that fit, according to the node.
        max: u16,
        /// Length of the node in bytes.
        len: usize,
    },
    /// The stored checksum is not that of the bytes.
    #[error("its checksum {stored:#010x} is not the computed {computed:#010x}")]
    Checksum {
        /// Checksum that is stored in the node.
        stored: u32,
        /// Checksum of the node's bytes.
        computed: u32,
    },
    /// An extent covers no blocks.
    #[error("extent {index} has no blocks")]
    Empty {
        /// Index of the entry in the node.
        index: usize,
    },
    /// An entry does not ascend, overlaps the one before, or covers blocks of another node.
    #[error("entry {index} is about block {first} of the file, outside {low}..{high}")]
    Order {
        /// Index of the entry in the node.
        index: usize,
        /// First block of the file that the entry covers.
        first: u64,
        /// Lowest block that it may cover.
        low: u64,
        /// Block after the last that it may cover.
        high: u64,
    },
}

impl Header {
    /// Length of a header and of an entry, in bytes.
    pub const LEN: usize = 12;
    /// Deepest tree, the kernel's `EXT4_MAX_EXTENT_DEPTH`: 2^32 blocks never need more levels.
    pub const MAX_DEPTH: u16 = 5;
    const MAGIC: u16 = 0xF30A;

    /// Reads the header of `node` and checks that its entries fit the node.
    ///
    /// Errors: [`ExtentFault::Magic`], [`ExtentFault::Entries`].
    pub fn decode(node: &[u8]) -> Result<Self, ExtentFault> {
        let head = node.first_chunk().copied().unwrap_or([0; Self::LEN]);
        let [m0, m1, e0, e1, x0, x1, d0, d1, ..] = head;
        let magic = u16::from_le_bytes([m0, m1]);
        if magic != Self::MAGIC {
            return Err(ExtentFault::Magic { found: magic });
        }
        let (entries, max) = (u16::from_le_bytes([e0, e1]), u16::from_le_bytes([x0, x1]));
        if entries > max || Self::LEN * (1 + usize::from(max)) > node.len() {
            return Err(ExtentFault::Entries { entries, max, len: node.len() });
        }
        Ok(Self { entries, max, depth: u16::from_le_bytes([d0, d1]) })
    }

    /// Byte of a node block at which its checksum lies: after the last entry that fits.
    pub fn checksum_offset(&self) -> usize {
        Self::LEN * (1 + usize::from(self.max))
    }

    /// Encoded entries in use, in order.
    pub fn records<'n>(&self, node: &'n [u8]) -> impl Iterator<Item = &'n [u8; Self::LEN]> {
        let (records, _) = node.as_chunks::<{ Self::LEN }>();
        records.iter().skip(1).take(self.entries.into())
    }
}

impl Index {
    /// Reads one entry of a node above the leaves.
    pub fn decode(record: &[u8; Header::LEN]) -> Self {
        let [f0, f1, f2, f3, l0, l1, l2, l3, h0, h1, ..] = *record;
        Self {
            first: u32::from_le_bytes([f0, f1, f2, f3]),
            node: Block(u64::from_le_bytes([l0, l1, l2, l3, h0, h1, 0, 0])),
        }
    }
}

impl Leaf {
    /// Most blocks of a written extent. Larger lengths mark unwritten ones.
    pub const MAX_LEN: u16 = 1 << 15;

    /// Reads one entry of a leaf.
    pub fn decode(record: &[u8; Header::LEN]) -> Self {
        let [f0, f1, f2, f3, n0, n1, h0, h1, l0, l1, l2, l3] = *record;
        let len = u16::from_le_bytes([n0, n1]);
        let start = Block(u64::from_le_bytes([l0, l1, l2, l3, h0, h1, 0, 0]));
        let first = u32::from_le_bytes([f0, f1, f2, f3]);
        match len.checked_sub(Self::MAX_LEN) {
            None | Some(0) => Self { first, len, start: Some(start) },
            Some(len) => Self { first, len, start: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_says_whether_an_extent_was_written() {
        for (field, len, written) in
            [(0, 0, true), (1, 1, true), (0x8000, 0x8000, true), (0x8001, 1, false), (0xFFFF, 0x7FFF, false)]
        {
            let mut record = [0; 12];
            record[4..6].copy_from_slice(&u16::to_le_bytes(field));
            record[6..12].copy_from_slice(&[1, 2, 3, 4, 5, 6]);
            let leaf = Leaf::decode(&record);
            assert_eq!((leaf.len, leaf.start.is_some()), (len, written), "{field:#x}");
            assert!(leaf.start.is_none_or(|start| start == Block(0x0201_0605_0403)));
        }
    }

    #[test]
    fn entries_beyond_the_node_are_refused() {
        let node = |entries: u16, max: u16, len: usize| {
            let mut node = vec![0; len];
            node[..2].copy_from_slice(&0xF30A_u16.to_le_bytes());
            node[2..4].copy_from_slice(&entries.to_le_bytes());
            node[4..6].copy_from_slice(&max.to_le_bytes());
            node
        };
        assert_eq!(Header::decode(&node(4, 4, 60)), Ok(Header { entries: 4, max: 4, depth: 0 }));
        for (entries, max, len) in [(5, 4, 60), (4, 5, 60), (0, 1, 12)] {
            let found = Header::decode(&node(entries, max, len));
            assert_eq!(found, Err(ExtentFault::Entries { entries, max, len }));
        }
        assert_eq!(Header::decode(&[0; 60]), Err(ExtentFault::Magic { found: 0 }));
        assert_eq!(Header::decode(&[]), Err(ExtentFault::Magic { found: 0 }));
        let node = node(2, 4, 60);
        assert_eq!(Header::decode(&node).unwrap().records(&node).count(), 2);
    }
}
