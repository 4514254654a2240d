//! The loop that nearly all bytes come from: symbols of one block, while there is plenty of input and
//! of room for output.
//!
//! It stops before it would have to look at an edge, and leaves what is there to the careful loop of
//! [`super::Inflate`]: input that may end inside a symbol, output that may be too short for a match,
//! and matches that start before the output.
//!
//! Source: RFC 1951, section 3.2.3.

use super::{
    bits::Bits,
    copy::{ROOM, copy},
    table::{DistanceTable, Entry, LiteralTable, low},
    unit::Unit,
};

/// Input that a turn may load: twice eight bytes, the second time up to seven bytes further on.
const AHEAD: usize = 16;
/// Output that a turn may write: literals, then a match.
const TURN_ROOM: usize = 3 + ROOM;
/// Bits that a distance may need, with its extra bits.
const DISTANCE_BITS_MAX: u32 = 15 + 13;

/// Why the loop stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Too little input or room is left for another turn.
    Edge,
    /// The block has ended.
    End,
    /// A match that starts before the output.
    Match { length: usize, distance: usize },
    /// A code of literals and lengths without a symbol.
    NoLiteral,
    /// A code of distances without a symbol.
    NoDistance,
}

/// Whether [`run`] can take a turn at all.
pub(super) fn worthwhile(input: &[u8], room: usize) -> bool {
    input.len() >= AHEAD && room >= TURN_ROOM
}

/// Decodes symbols into `output` from `at` on, and moves `at`. `held` has less than a byte, on entry and
/// afterwards; whole bytes are taken off the front of `input`.
///
/// A turn of the loop decodes up to three literals, or up to two and a match. It starts with 56 bits: two codes of
/// the first table take 22, a length at most 20, and if less than 28 are left, more are loaded for the distance.
#[inline(always)]
pub(super) fn run<T: Unit>(
    literals: &LiteralTable,
    distances: &DistanceTable,
    held: &mut Bits,
    input: &mut &[u8],
    output: &mut [T],
    at: &mut usize,
) -> Stop {
    let (Some(mut ahead), Some(last)) = (input.first_chunk(), output.len().checked_sub(TURN_ROOM)) else {
        return Stop::Edge;
    };
    let mut reader = Reader { buffer: held.buffer(), count: held.count() };
    let mut to = *at;
    let mut from = reader.load(ahead, 0);
    // The next entry is looked up before a match is copied, so that the copy does not hold it up.
    let mut entry = literals.first(reader.buffer);

    let stop = loop {
        match input.get(from..).and_then(<[u8]>::first_chunk) {
            Some(next) if to <= last => ahead = next,
            _ => break Stop::Edge,
        }
        if entry.is_literal() {
            reader.drop(entry);
            put(output, &mut to, entry);
            entry = literals.first(reader.buffer);
            if entry.is_literal() {
                reader.drop(entry);
                put(output, &mut to, entry);
                entry = literals.first(reader.buffer);
                if entry.is_literal() {
                    reader.drop(entry);
                    put(output, &mut to, entry);
                    from = from.wrapping_add(reader.load(ahead, 0));
                    entry = literals.first(reader.buffer);
                    continue;
                }
            }
        }
        if entry.is_special() {
            if entry.is_second() {
                reader.drop(entry);
                entry = literals.second(entry, reader.buffer);
            }
            if entry.is_literal() {
                reader.drop(entry);
                put(output, &mut to, entry);
                from = from.wrapping_add(reader.load(ahead, 0));
                entry = literals.first(reader.buffer);
                continue;
            }
            if entry.is_special() {
                reader.drop(entry);
                break if entry.is_end() { Stop::End } else { Stop::NoLiteral };
            }
        }
        let length = low(entry.value(reader.buffer).into());
        reader.drop(entry);

        let mut loaded = 0;
        if reader.count & 63 < DISTANCE_BITS_MAX {
            loaded = reader.load(ahead, 0);
        }
        entry = distances.first(reader.buffer);
        if entry.is_special() {
            if entry.is_second() {
                reader.drop(entry);
                entry = distances.second(entry, reader.buffer);
            }
            if entry.is_special() {
                reader.drop(entry);
                from = from.wrapping_add(loaded);
                break Stop::NoDistance;
            }
        }
        let distance = low(entry.value(reader.buffer).into());
        reader.drop(entry);
        if distance > to {
            from = from.wrapping_add(loaded);
            break Stop::Match { length, distance };
        }
        from = from.wrapping_add(reader.load(ahead, loaded));
        entry = literals.first(reader.buffer);
        copy(output, to, distance, length);
        to = to.wrapping_add(length);
    };

    *at = to;
    let (bytes, bits) = reader.close();
    held.set(reader.buffer & ((1 << bits) - 1), bits);
    *input = input.get(from.wrapping_sub(bytes)..).unwrap_or_default();
    stop
}

#[inline(always)]
fn put<T: Unit>(output: &mut [T], at: &mut usize, entry: Entry) {
    // There is room: the turn would not have started without.
    if let Some(unit) = output.get_mut(*at) {
        *unit = T::from(entry.literal());
    }
    *at = at.wrapping_add(1);
}

/// Bits at hand.
struct Reader {
    buffer: u64,
    /// Bits in the buffer, modulo 64: the upper bits of this number are anything.
    count: u32,
}

impl Reader {
    /// Loads bytes from `ahead[at..]` until 56 bits at least are at hand; where the next byte stands.
    ///
    /// Eight bytes are loaded at once and as many of them counted as fit. Of the next one some bits may be in the
    /// buffer too: loading it again puts the same bits in their place.
    #[inline(always)]
    fn load(&mut self, ahead: &[u8; AHEAD], at: usize) -> usize {
        // At most seven anyway; said so, the range needs no check.
        let at = at & 7;
        let bytes = ahead.get(at..at.wrapping_add(8)).and_then(<[u8]>::first_chunk);
        self.buffer |= u64::from_le_bytes(bytes.copied().unwrap_or_default()) << (self.count & 63);
        let next = at.wrapping_add(7).wrapping_sub(low(((self.count >> 3) & 7).into()));
        self.count |= 56;
        next
    }

    #[inline(always)]
    fn drop(&mut self, entry: Entry) {
        self.buffer >>= entry.bits();
        // The number of bits stands lowest in the entry; what is above it spoils only what is above the count.
        self.count = self.count.wrapping_sub(entry.0);
    }

    /// How many whole bytes were loaded and not used, and how many bits of the one before them.
    fn close(&self) -> (usize, u32) {
        let count = self.count & 63;
        (low((count >> 3).into()), count & 7)
    }
}
