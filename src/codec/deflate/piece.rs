//! Blocks in the middle of a stream, decoded before what comes before them: for several processors on one stream.
//!
//! [`Finder`] looks for a block's first bit. An [`Inflate`] of 16-bit units that [starts](Inflate::start_unknown) there gives
//! numbers in place of the bytes of the unknown window, and [`Window::resolve`] puts the bytes in once they are known. What
//! was found may be no block at all: its bytes count only if the blocks before it end on exactly its first bit, and then
//! they are those that decoding in order gives.
//!
//! Source: RFC 1951; the scheme is that of pugz (Kerbiriou and Chikhi, 2019) and rapidgzip (Knespel and Brunst, 2023).

use std::ops::Range;

use super::{
    inflate::{Inflate, Pause},
    table::low,
    unit::WINDOW_BYTES,
};

/// Units above the bytes: places in the unknown window, the oldest one first.
const MARKERS: u16 = 256;
/// Every number that a unit can be.
const UNITS: usize = 1 << 16;
/// Most bytes that a block's header can take: 17 bits of counts, 19 lengths of 3 bits, and 316 codes of 7 bits with 7
/// extra bits.
pub const HEADER_BYTES: usize = 568;

/// Looks for blocks.
pub struct Finder {
    inflate: Inflate<u8>,
    /// For four code lengths of three bits: how much of all codes they take, in 128ths.
    shares: Box<[u16; 4096]>,
}

impl Default for Finder {
    fn default() -> Self {
        Self::new()
    }
}

impl Finder {
    /// A finder.
    pub fn new() -> Self {
        let mut shares = Box::new([0; 4096]);
        for (lengths, share) in shares.iter_mut().enumerate() {
            // Each code of n bits is 1/2^n of all.
            let used = (0..4).map(|at| (lengths >> (3 * at)) & 7).filter(|length| *length > 0);
            *share = used.map(|length| 128 >> length).sum();
        }
        Self { inflate: Inflate::new(), shares }
    }

    /// Looks for the first bit in `bits` where a block with codes of its own could start that is not the last one. Bits
    /// count from the start of `input`, which should go on for [`HEADER_BYTES`] behind the last of them.
    ///
    /// Only a header that holds three complete codes is taken for one.
    pub fn find(&mut self, input: &[u8], mut bits: Range<u64>) -> Option<u64> {
        bits.find(|bit| self.is_header(input, *bit))
    }

    #[inline(always)]
    fn is_header(&mut self, input: &[u8], bit: u64) -> bool {
        let eight = |bit: u64| {
            let bytes = input.get(low(bit / 8)..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
            u64::from_le_bytes(bytes) >> (bit % 8)
        };
        let head = eight(bit);
        // Not the last block, type 2, at most 286 literals and 30 distances.
        if head & 7 != 4 || (head >> 3) & 31 > 29 || (head >> 8) & 31 > 29 {
            return false;
        }
        // The code of the code lengths must be complete.
        let count = ((head >> 13) & 15) + 4;
        let lengths = eight(bit + 17) & ((1 << (3 * count)) - 1);
        let share = |at: u64| self.shares.get(low((lengths >> at) & 4095)).copied().unwrap_or_default();
        if share(0) + share(12) + share(24) + share(36) + share(48) != 128 {
            return false;
        }
        // Without room for output it stops behind the header, if that is good.
        self.inflate.start_at(u32::try_from(bit % 8).unwrap_or_default(), &[]);
        let mut rest = input.get(low(bit / 8)..).unwrap_or_default();
        matches!(self.inflate.decode(&mut rest, &mut []), Ok((0, Pause::Output)))
    }
}

impl Inflate<u16> {
    /// Goes to a block that starts `bit` bits, 0 to 7, into the next byte of the input, after bytes that are not known:
    /// units above 255 stand for them.
    pub fn start_unknown(&mut self, bit: u32) {
        let unknown: Vec<u16> = (MARKERS..).take(WINDOW_BYTES).collect();
        self.start_at(bit, &unknown);
    }

    /// The window as bytes, if all of it is known.
    pub fn known_window(&self) -> Option<Vec<u8>> {
        self.window().into_iter().map(|unit| u8::try_from(unit).ok()).collect()
    }
}

/// How many units at the end of `units` are bytes.
pub fn known_at_end(units: &[u16]) -> usize {
    // A look at the end alone tells where little is known, which is where it is asked most.
    units.iter().rposition(|unit| *unit >= MARKERS).map_or(units.len(), |at| units.len() - at - 1)
}

/// The bytes before a piece, once they are known.
pub struct Window {
    /// Byte that each unit stands for.
    bytes: Box<[u8; UNITS]>,
    /// Units that stand for bytes before the start of the stream.
    missing: Range<u16>,
}

impl Window {
    /// The last 32768 bytes before the piece, or all when there are fewer.
    pub fn new(window: &[u8]) -> Self {
        let mut bytes = Box::new([0; UNITS]);
        for (byte, slot) in (0..=u8::MAX).zip(bytes.iter_mut()) {
            *slot = byte;
        }
        let missing = WINDOW_BYTES.saturating_sub(window.len());
        let first = usize::from(MARKERS) + missing;
        if let Some(place) = bytes.get_mut(first..first + window.len()) {
            place.copy_from_slice(window);
        }
        Self { bytes, missing: MARKERS..u16::try_from(first).unwrap_or(u16::MAX) }
    }

    /// Whether all units stand for bytes of the stream. If not, it refers to bytes before its start.
    pub fn knows(&self, units: &[u16]) -> bool {
        self.missing.is_empty() || !units.iter().any(|unit| self.missing.contains(unit))
    }

    /// Writes the bytes of `units` to the start of `output`, as many as there is room for; how many.
    pub fn resolve(&self, units: &[u16], output: &mut [u8]) -> usize {
        const GROUP: usize = 32;
        let (places, rest) = output.as_chunks_mut::<GROUP>();
        let (groups, tail) = units.as_chunks::<GROUP>();
        let mut done = 0;
        for (place, group) in places.iter_mut().zip(groups) {
            // Where all are bytes, a few instructions narrow the whole group.
            if group.iter().fold(0, |all, unit| all | unit) < MARKERS {
                for (byte, unit) in place.iter_mut().zip(group) {
                    let [low, _] = unit.to_le_bytes();
                    *byte = low;
                }
            } else {
                self.each(group, place);
            }
            done += GROUP;
        }
        // One of the two is used up but for less than a group.
        let (left, room) = match groups.len().cmp(&places.len()) {
            std::cmp::Ordering::Less => {
                (tail, places.get_mut(groups.len()).map_or(&mut [][..], |place| place))
            }
            std::cmp::Ordering::Equal => (tail, rest),
            std::cmp::Ordering::Greater => (groups.get(places.len()).map_or(&[][..], |group| group), rest),
        };
        self.each(left, room);
        done + left.len().min(room.len())
    }

    #[inline(always)]
    fn each(&self, units: &[u16], output: &mut [u8]) {
        for (byte, unit) in output.iter_mut().zip(units) {
            *byte = self.bytes.get(usize::from(*unit)).copied().unwrap_or_default();
        }
    }
}
