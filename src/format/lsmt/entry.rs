//! Index entry: a run of device sectors, and where its data lies.
//!
//! Source: `docs/formats/overlaybd.md`, "LSMT"; overlaybd `src/overlaybd/lsmt/index.h`, `SegmentMapping`.

use crate::format::record::{get, put};

/// Value of all bits of the start: the entry is unused.
const NOWHERE: u64 = (1 << Entry::START_BITS) - 1;

/// One entry, 16 bytes: two little-endian words.
///
/// | word | bits   | field   | unit and meaning                                                   |
/// |-----:|--------|---------|--------------------------------------------------------------------|
/// |    0 | 0..49  | start   | first sector on the device; all ones with length 0: an unused entry |
/// |    0 | 50..63 | sectors | length                                                             |
/// |    1 | 0..54  | at      | first sector of the data in its file                               |
/// |    1 | 55     | zeroed  | the range reads as zeros, and there is no data                     |
/// |    1 | 56..63 | tag     | the file: 0 this one, 1 the target of a turboOCI layer             |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) start: u64,
    pub(super) sectors: u64,
    pub(super) at: u64,
    pub(super) zeroed: bool,
    pub(super) tag: u8,
}

impl Entry {
    /// Length of the record, in bytes.
    pub(super) const LEN: usize = 16;
    /// Longest run, in sectors.
    pub(super) const MAX_SECTORS: u64 = (1 << 14) - 1;
    const START_BITS: u32 = 50;
    const AT_BITS: u32 = 55;
    /// An unused entry, which readers drop.
    pub(super) const UNUSED: [u8; Self::LEN] =
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    /// Reads one entry; `None` for an unused one.
    pub(super) fn decode(record: &[u8; Self::LEN]) -> Option<Self> {
        let [first, second] = [get::<0, _, _>(record), get::<8, _, _>(record)].map(u64::from_le_bytes);
        let (start, sectors) = (first & NOWHERE, first >> Self::START_BITS);
        if (start, sectors) == (NOWHERE, 0) {
            return None;
        }
        let [.., tag] = second.to_le_bytes();
        Some(Self {
            start,
            sectors,
            at: second & ((1 << Self::AT_BITS) - 1),
            zeroed: second >> Self::AT_BITS & 1 == 1,
            tag,
        })
    }

    /// Writes one entry, whose fields fit their bits.
    pub(super) fn encode(self) -> [u8; Self::LEN] {
        let mut record = [0; Self::LEN];
        put::<0, _, _>(&mut record, (self.start | self.sectors << Self::START_BITS).to_le_bytes());
        let zeroed = u64::from(self.zeroed) << Self::AT_BITS;
        let second = self.at | zeroed | u64::from(self.tag) << (Self::AT_BITS + 1);
        put::<8, _, _>(&mut record, second.to_le_bytes());
        record
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_entry_reads_back_as_it_was_written(
            start in 0..1_u64 << 50, sectors in 1..1_u64 << 14, at in 0..1_u64 << 55, zeroed: bool, tag: u8,
        ) {
            let entry = Entry { start, sectors, at, zeroed, tag };
            prop_assert_eq!(Entry::decode(&entry.encode()), Some(entry));
        }
    }

    #[test]
    fn an_entry_is_unused_when_its_start_has_all_bits_and_its_length_none() {
        let unused = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Entry::UNUSED, unused);
        assert_eq!(Entry::decode(&unused), None);
        let mut empty = unused;
        empty[0] = 0xfe;
        assert_eq!(Entry::decode(&empty).map(|entry| entry.sectors), Some(0));
    }

    #[test]
    fn the_bits_are_those_of_the_other_implementation() {
        // `ops2.commit`: 20 zeroed sectors from 180 on; then the same with a tag.
        let record = [180, 0, 0, 0, 0, 0, 0x50, 0, 129, 0, 0, 0, 0, 0, 0x80, 0];
        let entry = Entry { start: 180, sectors: 20, at: 129, zeroed: true, tag: 0 };
        assert_eq!(Entry::decode(&record), Some(entry));
        let tagged = Entry { tag: 1, zeroed: false, ..entry };
        assert_eq!(tagged.encode()[8..], [129, 0, 0, 0, 0, 0, 0, 1]);
    }
}
