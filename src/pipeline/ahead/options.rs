//! When streams are decoded ahead, and what came of it.

use crate::{
    codec::{Coding, Cut, Starts},
    format::ztoc::Ztoc,
};

/// When streams are decoded ahead, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AheadOptions {
    /// Shortest other blob that helpers work on, in bytes; `None`: there are no helpers at all.
    pub from_bytes: Option<u64>,
    /// Shortest gzip blob of many members, or with an index, that helpers work on, in bytes.
    pub members_from_bytes: u64,
    /// Compressed bytes between the decoder and the first piece, and from each piece to the next one.
    pub distance: u64,
    /// Helpers run only when a processor has nothing else to do.
    pub yields: bool,
}

impl AheadOptions {
    /// Helpers work on large blobs.
    // A shorter blob is decoded in a quarter of a second, of which looking for blocks and the first wait would take a part.
    // Where members begin takes no looking, and what a helper decodes costs no more than it does in order.
    pub const AUTO: Self =
        Self { from_bytes: Some(64 << 20), members_from_bytes: 8 << 20, distance: 4 << 20, yields: true };
    /// Helpers never work.
    pub const OFF: Self = Self { from_bytes: None, ..Self::AUTO };

    /// How helpers may work on a blob of `size_bytes` whose first bytes are `head`, if they may. `index` is that of the blob,
    /// or so they say.
    pub(in crate::pipeline) fn plan<'a, 'i>(
        &self,
        size_bytes: Option<u64>,
        coding: Coding,
        head: impl IntoIterator<Item = &'a [u8]>,
        index: Option<&'i Ztoc<'i>>,
    ) -> Option<AheadPlan<'i>> {
        let (from_bytes, size_bytes) = (self.from_bytes?, size_bytes?);
        if size_bytes < from_bytes.min(self.members_from_bytes) {
            return None;
        }
        let index = index.filter(|index| coding == Coding::Gzip && index.blob_bytes() == size_bytes);
        let from = match coding {
            Coding::Gzip if index.is_some() => self.members_from_bytes,
            Coding::Plain => return None,
            Coding::Gzip => {
                let (mut starts, mut found) = (Starts::of(coding), 0);
                head.into_iter().for_each(|bytes| starts.push(bytes, &mut |_| found += 1));
                if found > 1 { self.members_from_bytes } else { from_bytes }
            }
            // It is decoded so fast that the memory of helpers takes longer than they save of a shorter one.
            Coding::Zstd => from_bytes,
        };
        (size_bytes >= from).then_some(AheadPlan { coding, distance: self.distance, index })
    }
}

/// How helpers work on one stream.
#[derive(Clone, Copy)]
pub(in crate::pipeline) struct AheadPlan<'i> {
    /// Compression of the stream.
    pub(in crate::pipeline) coding: Coding,
    /// Compressed bytes from piece to piece.
    pub(in crate::pipeline) distance: u64,
    /// Places in the stream at which helpers can start. All of it may be a lie.
    pub(in crate::pipeline) index: Option<&'i Ztoc<'i>>,
}

/// Work of helpers on one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AheadFacts {
    /// Pieces that the decoder took.
    pub used: u64,
    /// Pieces that it came to before anything of them was ready.
    pub late: u64,
    /// Pieces that were none: nothing of them is in the stream, or what the index has before them is not.
    pub missed: u64,
    /// Uncompressed bytes of the pieces that were used.
    pub bytes: u64,
    /// Pieces among those used that began where the index says.
    pub indexed: u64,
    /// Place for which the index was given up, if it was: it does not fit the stream.
    pub misfit: Option<Cut>,
}
