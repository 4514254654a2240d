//! The result of one block, which every encoder returns.
//!
//! Described in `docs/formats/compression.md`, "What is written".

/// Result of compressing a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coded {
    /// Length of the output in bytes.
    pub len: usize,
    /// CRC-32 of the block's plain bytes; 0 for codings whose envelope has none.
    pub crc32: u32,
}
