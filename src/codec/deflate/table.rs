//! Prefix codes of deflate as tables: one look-up turns the next bits of the stream into a symbol.
//!
//! A table is indexed by the next bits of the stream, lowest first. Codes longer than its index go
//! through a second table, which the entry of their first bits points to.
//!
//! Source: RFC 1951, sections 3.2.2 and 3.2.5 to 3.2.7.

/// Longest code of literals, lengths and distances.
pub(super) const CODE_BITS_MAX: usize = 15;
/// Literals, the end of the block, and lengths; the last two have fixed codes and are never used.
pub(super) const LITERALS: usize = 288;
/// Distances; again, two are never used.
pub(super) const DISTANCES: usize = 32;

/// Index bits of the table of literals and lengths: nearly all codes are found at once in it, and its
/// 8 KiB leave most of a first-level cache to the data.
pub(super) const LITERAL_BITS: u32 = 11;
/// Index bits of the table of distances.
pub(super) const DISTANCE_BITS: u32 = 8;
/// Index bits of the table of code lengths, none of whose codes is longer.
pub(super) const LENGTH_BITS: u32 = 7;

/// One table entry.
///
/// | bits   | literal      | length, distance                  | pointer to a second table  |
/// |--------|--------------|-----------------------------------|----------------------------|
/// | 0..6   | bits to drop | bits to drop, extra bits included | bits to drop               |
/// | 8..12  |              | of these, bits of the code        | index bits of that table   |
/// | 13     |              |                                   | 1: [`SECOND`]              |
/// | 14     |              | 1, [`END`], for the block's end   |                            |
/// | 15     |              | 1, [`SPECIAL`], for the block's end and for no symbol | 1      |
/// | 16..31 | the literal  | smallest length or distance       | where that table starts    |
/// | 31     | 1            | 0                                 | 0                          |
///
/// In a second table, bits count from the end of the first table's index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry(pub u32);

pub(super) const LITERAL: u32 = 1 << 31;
pub(super) const SPECIAL: u32 = 1 << 15;
pub(super) const END: u32 = 1 << 14;
pub(super) const SECOND: u32 = 1 << 13;

impl Entry {
    const fn new(code_bits: u32, symbol: u32) -> Self {
        // `symbol` is an entry as for a code of no bits.
        Self(symbol + code_bits + (code_bits << 8))
    }

    #[inline(always)]
    pub(super) const fn is_literal(self) -> bool {
        self.0 & LITERAL != 0
    }

    #[inline(always)]
    pub(super) const fn is_special(self) -> bool {
        self.0 & SPECIAL != 0
    }

    #[inline(always)]
    pub(super) const fn is_end(self) -> bool {
        self.0 & END != 0
    }

    #[inline(always)]
    pub(super) const fn is_second(self) -> bool {
        self.0 & SECOND != 0
    }

    /// Bits to drop: those of the code and the extra bits after it.
    #[inline(always)]
    pub(super) const fn bits(self) -> u32 {
        self.0 & 63
    }

    /// Bits of the code alone; for a pointer, index bits of the second table.
    #[inline(always)]
    pub(super) const fn code_bits(self) -> u32 {
        (self.0 >> 8) & 15
    }

    /// The literal, as a byte of output.
    #[inline(always)]
    pub(super) const fn literal(self) -> u8 {
        self.0.to_le_bytes()[2]
    }

    /// The smallest length or distance, or where a second table starts.
    #[inline(always)]
    pub(super) const fn base(self) -> u32 {
        (self.0 >> 16) & 0x7fff
    }

    /// The length or distance: the base plus the extra bits, which stand in `bits` after the code.
    #[inline(always)]
    pub(super) fn value(self, bits: u64) -> u32 {
        let mask = (1_u64 << self.bits()).wrapping_sub(1);
        // No flag is set, so the fields at the top and beside the code bits need no mask.
        let [b0, b1, b2, b3, ..] = ((bits & mask) >> ((self.0 >> 8) & 63)).to_le_bytes();
        (self.0 >> 16).wrapping_add(u32::from_le_bytes([b0, b1, b2, b3]))
    }
}

/// Which alphabet a code is for: what its symbols mean, and when it may leave codes unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// Code lengths 0 to 15 and the three repetitions.
    Lengths,
    /// Literals, end of block, lengths.
    Literals,
    /// Distances.
    Distances,
}

/// Smallest length and extra bits of symbol 257 and those after it.
const LENGTHS: [(u32, u32); 29] = [
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 0),
    (7, 0),
    (8, 0),
    (9, 0),
    (10, 0),
    (11, 1),
    (13, 1),
    (15, 1),
    (17, 1),
    (19, 2),
    (23, 2),
    (27, 2),
    (31, 2),
    (35, 3),
    (43, 3),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 4),
    (115, 4),
    (131, 5),
    (163, 5),
    (195, 5),
    (227, 5),
    // The one before can spell it too.
    (258, 0),
];

/// Entries of literals, the end and lengths, as for codes of no bits.
#[expect(clippy::indexing_slicing, reason = "the compiler evaluates it")]
const LITERAL_SYMBOLS: [u32; LITERALS] = {
    let mut symbols = [SPECIAL; LITERALS];
    let (mut at, mut literal) = (0, 0);
    while at < 256 {
        symbols[at] = LITERAL | (literal << 16);
        literal += 1;
        at += 1;
    }
    symbols[256] = SPECIAL | END;
    at = 0;
    while at < LENGTHS.len() {
        let (base, extra) = LENGTHS[at];
        symbols[257 + at] = (base << 16) | extra;
        at += 1;
    }
    symbols
};

/// Entries of the distances: after the first two, each number of extra bits has two symbols.
#[expect(clippy::indexing_slicing, reason = "the compiler evaluates it")]
const DISTANCE_SYMBOLS: [u32; DISTANCES] = {
    let mut symbols = [SPECIAL; DISTANCES];
    let (mut at, mut base, mut extra) = (0, 1, 0);
    while at < 30 {
        symbols[at] = (base << 16) | extra;
        base += 1 << extra;
        if at > 2 && at % 2 == 1 {
            extra += 1;
        }
        at += 1;
    }
    symbols
};

/// Entries of the code lengths and their repetitions.
#[expect(clippy::indexing_slicing, reason = "the compiler evaluates it")]
const LENGTH_SYMBOLS: [u32; 19] = {
    let mut symbols = [0; 19];
    let (mut at, mut value) = (0, 0);
    while at < 19 {
        symbols[at] = value << 16;
        value += 1;
        at += 1;
    }
    symbols
};

/// A table of `SIZE` entries, of which the first 2 to the power of `BITS` make the first table.
///
/// `SIZE` is a power of two, so that an index cut to its width needs no check.
#[derive(Clone, Debug)]
pub(super) struct Table<const SIZE: usize, const BITS: u32> {
    entries: [Entry; SIZE],
}

// At most 286 codes of at most 15 bits fill 2342 entries behind an index of 11 bits.
pub(super) type LiteralTable = Table<4096, LITERAL_BITS>;
// 30 codes fill 402 behind one of 8 bits.
pub(super) type DistanceTable = Table<512, DISTANCE_BITS>;
pub(super) type LengthTable = Table<128, LENGTH_BITS>;

impl<const SIZE: usize, const BITS: u32> Table<SIZE, BITS> {
    /// A table that holds no symbol.
    pub(super) const fn new() -> Self {
        assert!(SIZE.is_power_of_two() && SIZE >> BITS != 0);
        Self { entries: [Entry::new(1, SPECIAL); SIZE] }
    }

    /// The entry for the next bits.
    #[inline(always)]
    pub(super) fn first(&self, bits: u64) -> Entry {
        self.at(low(bits) & ((1 << BITS) - 1))
    }

    /// The entry that `pointer` leads to, for the bits after the first table's index.
    #[inline(always)]
    pub(super) fn second(&self, pointer: Entry, bits: u64) -> Entry {
        let start = low(pointer.base().into());
        self.at(start.wrapping_add(low(bits) & ((1_usize << pointer.code_bits()).wrapping_sub(1))))
    }

    #[inline(always)]
    fn at(&self, index: usize) -> Entry {
        // The mask keeps the index inside, whatever it was: the default is never taken.
        self.entries.get(index & (SIZE - 1)).copied().unwrap_or_default()
    }

    /// Fills the table for a code of these lengths, one for each symbol, 0 for symbols without a code.
    ///
    /// As in zlib, a code may have no symbol at all, or a single one of one bit unless it is the code of the code lengths.
    /// A code without a symbol is refused where one is met; as a code length it is 0. Every other code that
    /// is not complete is refused here, as `None`.
    pub(super) fn build(&mut self, alphabet: Alphabet, lengths: &[u8]) -> Option<()> {
        let symbols: &[u32] = match alphabet {
            Alphabet::Lengths => &LENGTH_SYMBOLS,
            Alphabet::Literals => &LITERAL_SYMBOLS,
            Alphabet::Distances => &DISTANCE_SYMBOLS,
        };

        let mut counts = [0_u16; CODE_BITS_MAX + 1];
        for length in lengths {
            if let Some(count) = counts.get_mut(usize::from(*length)) {
                *count = count.wrapping_add(1);
            }
        }
        let longest = counts.iter().skip(1).rposition(|count| *count != 0).map_or(0, |at| at + 1);

        // How much of all codes of a length is still free, and where symbols of each length go.
        let mut free: u32 = 1;
        let mut places = [0_u16; CODE_BITS_MAX + 2];
        let mut place: u16 = 0;
        for (length, count) in counts.iter().enumerate().skip(1) {
            free = (free << 1).checked_sub((*count).into())?;
            if let Some(slot) = places.get_mut(length) {
                *slot = place;
            }
            place = place.wrapping_add(*count);
        }
        if free != 0 && (longest > 1 || longest == 1 && alphabet == Alphabet::Lengths) {
            return None;
        }

        // The entries of the symbols in the order of their codes.
        let mut sorted = [0_u32; LITERALS];
        for (length, symbol) in lengths.iter().zip(symbols) {
            if *length == 0 {
                continue;
            }
            if let Some(place) = places.get_mut(usize::from(*length)) {
                if let Some(slot) = sorted.get_mut(usize::from(*place)) {
                    *slot = *symbol;
                }
                *place = place.wrapping_add(1);
            }
        }
        self.fill(&counts, longest, &sorted);
        Some(())
    }

    /// Writes the entries of sorted symbols, doubling the table for every bit of code length.
    fn fill(&mut self, counts: &[u16; CODE_BITS_MAX + 1], longest: usize, sorted: &[u32; LITERALS]) {
        let mut sorted = sorted.iter();
        let mut size: usize = 1;
        // The next code, its first bit lowest as in the stream.
        let mut code: u32 = 0;
        let bits = low(BITS.into());
        if let Some(entry) = self.entries.first_mut() {
            *entry = Entry::new(1, SPECIAL);
        }
        for length in 1..=longest.min(bits) {
            self.entries.copy_within(0..size, size);
            if length == 1 && longest == 1 {
                // A lone code of one bit leaves the other one without a symbol.
                if let Some(entry) = self.entries.get_mut(1) {
                    *entry = Entry::new(1, SPECIAL);
                }
            }
            size <<= 1;
            let count = counts.get(length).copied().unwrap_or_default();
            for symbol in sorted.by_ref().take(count.into()) {
                if let Some(entry) = self.entries.get_mut(low(code.into())) {
                    *entry = Entry::new(narrow(length), *symbol);
                }
                code = next_code(code, narrow(length));
            }
        }
        while size < 1 << BITS {
            self.entries.copy_within(0..size, size);
            size <<= 1;
        }

        // Longer codes go to second tables, each for all codes that start with the same bits.
        let mask = (1_u32 << BITS) - 1;
        let mut prefix = u32::MAX;
        let (mut start, mut end) = (size, size);
        for length in bits + 1..=longest {
            let count = counts.get(length).copied().unwrap_or_default();
            let mut left = u32::from(count);
            let beyond = narrow(length - bits);
            for symbol in sorted.by_ref().take(count.into()) {
                if code & mask != prefix {
                    prefix = code & mask;
                    start = end;
                    let second_bits = second_index_bits(counts, length, left, bits);
                    end = start + (1 << second_bits);
                    let pointer = SPECIAL | SECOND | (narrow(start) << 16) | (second_bits << 8) | BITS;
                    if let Some(entry) = self.entries.get_mut(low(prefix.into())) {
                        *entry = Entry(pointer);
                    }
                }
                // Every index that starts with the code's last bits.
                let slots = self.entries.get_mut(start..end).unwrap_or_default();
                for slot in slots.iter_mut().skip(low((code >> BITS).into())).step_by(1 << beyond) {
                    *slot = Entry::new(beyond, *symbol);
                }
                code = next_code(code, narrow(length));
                left = left.wrapping_sub(1);
            }
        }
    }
}

/// The code after `code` among those of `bits` bits, both with their first bit lowest.
#[inline(always)]
fn next_code(code: u32, bits: u32) -> u32 {
    // Adding one carries from the last bit, the highest here, through all ones below it.
    let ones = (1_u32 << bits).wrapping_sub(1);
    let free = !code & ones;
    if free == 0 {
        return 0;
    }
    let carry = 1_u32 << free.ilog2();
    (code & (carry - 1)) | carry
}

/// Index bits of the second table for the code of `length` bits of which, with itself, `left` are still to come:
/// as many as it takes until the longer codes fill it.
fn second_index_bits(counts: &[u16; CODE_BITS_MAX + 1], length: usize, left: u32, first_bits: usize) -> u32 {
    let mut bits = length - first_bits;
    let mut used = left;
    while used < 1 << bits {
        bits += 1;
        let count = counts.get(first_bits + bits).copied();
        // A complete code fills it with its longest codes at the latest.
        let Some(count) = count else { break };
        used = (used << 1) + u32::from(count);
    }
    narrow(bits)
}

/// The low bits as an index.
#[inline(always)]
pub(super) fn low(bits: u64) -> usize {
    let [b0, b1, b2, b3, ..] = bits.to_le_bytes();
    usize::try_from(u32::from_le_bytes([b0, b1, b2, b3])).unwrap_or(usize::MAX)
}

/// A small number of this module as 32 bits.
#[inline(always)]
fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
