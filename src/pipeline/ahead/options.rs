//! When streams are decoded ahead, and what came of it.

/// When streams are decoded ahead, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AheadOptions {
    /// Shortest blob that helpers work on, in bytes; `None`: they never do.
    pub from_bytes: Option<u64>,
    /// Compressed bytes between the decoder and the first piece, and from each piece to the next one.
    pub distance: u64,
    /// Helpers run only when a processor has nothing else to do.
    pub yields: bool,
}

impl AheadOptions {
    /// Helpers work on large blobs.
    // A shorter blob is decoded in a quarter of a second, of which looking for blocks and the first wait would take a part.
    pub const AUTO: Self = Self { from_bytes: Some(64 << 20), distance: 4 << 20, yields: true };
    /// Helpers never work.
    pub const OFF: Self = Self { from_bytes: None, ..Self::AUTO };

    /// Whether helpers may work on a blob of `size_bytes`.
    pub(in crate::pipeline) fn take(&self, size_bytes: Option<u64>) -> bool {
        matches!((self.from_bytes, size_bytes), (Some(from), Some(size)) if size >= from)
    }
}

/// Work of helpers on one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AheadFacts {
    /// Pieces that the decoder took.
    pub used: u64,
    /// Pieces that it came to before anything of them was ready.
    pub late: u64,
    /// Pieces that were none: nothing of them is in the stream.
    pub missed: u64,
    /// Uncompressed bytes of the pieces that were used.
    pub bytes: u64,
}
