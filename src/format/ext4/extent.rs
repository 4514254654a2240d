//! Extent trees: the 12-byte header of a node, and its entries of 12 bytes.
//!
//! A node is in the 60 bytes of an inode, or a block with a checksum behind its last entry. How nodes
//! make a tree is the reader's part.
//!
//! Source: Linux `fs/ext4/ext4_extents.h`; `fs/ext4/extents.c`, `__ext4_ext_check`,
//! `Documentation/filesystems/ext4/ifork.rst`.

use super::Block;

/// The head of a node, little-endian, 12 bytes.
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
    /// Entries in use.
    pub entries: u16,
    /// Levels below.
    pub depth: u16,
    /// Entries that fit.
    pub max: u16,
}

/// An entry of a node above the leaves, little-endian, 12 bytes.
///
/// | offset | size | field      | unit and meaning                       |
/// |-------:|-----:|------------|----------------------------------------|
/// |      0 |    4 | ei_block   | first block of the file it is about    |
/// |      4 |    4 | ei_leaf_lo | block of the node below                |
/// |      8 |    2 | ei_leaf_hi | bits 32..47                            |
/// |     10 |    2 | ei_unused  |                                        |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index {
    /// First block of the file that it is about.
    pub first: u32,
    /// The node below.
    pub node: Block,
}

/// An entry of a leaf, little-endian, 12 bytes.
///
/// | offset | size | field       | unit and meaning                                          |
/// |-------:|-----:|-------------|-----------------------------------------------------------|
/// |      0 |    4 | ee_block    | first block of the file                                   |
/// |      4 |    2 | ee_len      | blocks; above 32768: that many more than 32768, unwritten |
/// |      6 |    2 | ee_start_hi | bits 32..47                                               |
/// |      8 |    4 | ee_start_lo | first block of the file system                            |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// First block of the file.
    pub first: u32,
    /// Blocks, at most 32768.
    pub len: u16,
    /// First block of the file system; `None`: given out but never written, and read as zeros.
    pub start: Option<Block>,
}

/// What is wrong with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExtentFault {
    /// Not a node.
    #[error("magic number {found:#06x} is not 0xf30a")]
    Magic {
        /// As found.
        found: u16,
    },
    /// On another level than its place says.
    #[error("its depth is {found}, not {want}")]
    Depth {
        /// As found.
        found: u16,
        /// What is wanted, at most.
        want: u16,
    },
    /// More entries than fit.
    #[error("{entries} of at most {max} entries do not fit {len} bytes")]
    Entries {
        /// In use.
        entries: u16,
        /// That fit, by the node.
        max: u16,
        /// Bytes of the node.
        len: usize,
    },
    /// The checksum does not match.
    #[error("its checksum {stored:#010x} is not the computed {computed:#010x}")]
    Checksum {
        /// In the node.
        stored: u32,
        /// Of its bytes.
        computed: u32,
    },
    /// An extent without blocks.
    #[error("extent {index} has no blocks")]
    Empty {
        /// Its place in the node.
        index: usize,
    },
    /// Entries that do not ascend, overlap, or are about blocks that are another node's.
    #[error("entry {index} is about block {first} of the file, outside {low}..{high}")]
    Order {
        /// Its place in the node.
        index: usize,
        /// First block of the file that it is about.
        first: u64,
        /// Lowest block that it could be about.
        low: u64,
        /// One after the last block that it could be about.
        high: u64,
    },
}

impl Header {
    /// Length of a header, and of an entry, in bytes.
    pub const LEN: usize = 12;
    /// Deepest tree: more levels are never needed for 2^32 blocks.
    pub const MAX_DEPTH: u16 = 5;
    const MAGIC: u16 = 0xF30A;

    /// Reads the head of `node` and checks that its entries fit.
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

    /// Where the checksum of a node that is a block lies, in bytes: behind the last entry that fits.
    pub fn checksum_offset(&self) -> usize {
        Self::LEN * (1 + usize::from(self.max))
    }

    /// The entries in use, as they are.
    pub fn records<'n>(&self, node: &'n [u8]) -> impl Iterator<Item = &'n [u8; Self::LEN]> {
        let (records, _) = node.as_chunks::<{ Self::LEN }>();
        records.iter().skip(1).take(self.entries.into())
    }
}

impl Index {
    /// Reads one entry.
    pub fn decode(record: &[u8; Header::LEN]) -> Self {
        let [f0, f1, f2, f3, l0, l1, l2, l3, h0, h1, ..] = *record;
        Self {
            first: u32::from_le_bytes([f0, f1, f2, f3]),
            node: Block(u64::from_le_bytes([l0, l1, l2, l3, h0, h1, 0, 0])),
        }
    }
}

impl Leaf {
    /// Most blocks of an extent that was written.
    pub const MAX_LEN: u16 = 1 << 15;

    /// Reads one entry.
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
