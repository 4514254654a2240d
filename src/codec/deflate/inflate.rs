//! The decoder of one deflate stream: headers, edges, and the way from block to block.
//!
//! Source: RFC 1951.

use super::{
    bits::Bits,
    cpu,
    error::{DeflateError, Fault},
    fast::{self, Stop},
    history::History,
    table::{self, Alphabet, DISTANCES, DistanceTable, LITERALS, LengthTable, LiteralTable},
    unit::Unit,
};

/// Where a decoder is in its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first block, so many bits into the first byte.
    Skip(u32),
    /// Before the header of a block.
    Block,
    /// Before the lengths of a stored block.
    StoredLength,
    /// In a stored block, so many bytes before its end.
    Stored(usize),
    /// Before the numbers of codes.
    Counts,
    /// In the code lengths of the code lengths.
    CodeLengths,
    /// In the code lengths.
    Lengths,
    /// In a block with codes.
    Symbols,
    /// In a match.
    Match { length: usize, distance: usize },
    /// After the last block.
    Ended,
}

/// Reason why a decoder stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// All input was taken.
    Input,
    /// The output is full. There may be more to come without further input.
    Output,
    /// A block has ended and another one follows. Only after [`Inflate::pause_at_blocks`], and when [`Inflate::starts`]
    /// has all it may.
    Block,
    /// The stream has ended. Input behind its last byte was left.
    Ended,
}

/// Decoder of one deflate stream.
pub struct Inflate<T: Unit = u8> {
    state: State,
    bits: Bits,
    /// Bytes taken from the input.
    taken: u64,
    /// Bytes of the stream up to the end of the input at hand.
    given: u64,
    /// Whether this is the last block.
    last: bool,
    /// Where pauses between blocks begin, in bits of the stream.
    pause_from: Option<u64>,
    /// Most starts to list; 0 lists none.
    most_starts: usize,
    starts: Vec<(usize, u64)>,
    history: History<T>,
    literals: Box<LiteralTable>,
    distances: Box<DistanceTable>,
    /// Whether the tables hold the fixed codes.
    fixed: bool,
    header: Header,
}

/// The header of a block with codes of its own, as far as it was read.
#[derive(Clone, Debug)]
struct Header {
    literals: usize,
    distances: usize,
    code_lengths: usize,
    /// Lengths that are known.
    read: usize,
    lengths: [u8; LITERALS + DISTANCES],
    table: LengthTable,
}

/// The order in which lengths of the code of the code lengths are written.
pub(super) const LENGTH_ORDER: [usize; 19] =
    [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

impl<T: Unit> Default for Inflate<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Unit> Inflate<T> {
    /// A decoder at the start of a stream.
    pub fn new() -> Self {
        Self {
            state: State::Block,
            bits: Bits::default(),
            taken: 0,
            given: 0,
            last: false,
            pause_from: None,
            most_starts: 0,
            starts: Vec::new(),
            history: History::new(),
            literals: Box::new(LiteralTable::new()),
            distances: Box::new(DistanceTable::new()),
            fixed: false,
            header: Header {
                literals: 0,
                distances: 0,
                code_lengths: 0,
                read: 0,
                lengths: [0; LITERALS + DISTANCES],
                table: LengthTable::new(),
            },
        }
    }

    /// Goes to the start of another stream.
    pub fn reset(&mut self) {
        self.state = State::Block;
        self.bits = Bits::default();
        self.taken = 0;
        self.last = false;
        self.history.clear();
    }

    /// Goes to a block that starts `bit` bits, 0 to 7, into the next byte of the input, after the units of `window`. The
    /// last 32768 of them are enough. [`position`](Self::position) counts from that byte on.
    pub fn start_at(&mut self, bit: u32, window: &[T]) {
        self.reset();
        self.state = State::Skip(bit & 7);
        self.history.append(window);
    }

    /// From now on, every end of a block but the last one is a [`Pause::Block`]: there [`position`](Self::position) is
    /// where the next block starts, and [`window`](Self::window) what a decoder needs to start with it.
    pub fn pause_at_blocks(&mut self) {
        self.pause_from(Some(0));
    }

    /// Like [`pause_at_blocks`](Self::pause_at_blocks), but only where [`position`](Self::position) is `bit` or more; never
    /// with `None`.
    pub fn pause_from(&mut self, bit: Option<u64>) {
        self.pause_from = bit;
    }

    /// From now on, lists where blocks start, up to `most` in each call of [`decode`](Self::decode), which then ends.
    // Pauses would do as well, but after each one matches reach out of the output, into the history, which is slow.
    pub fn list_starts(&mut self, most: usize) {
        self.most_starts = most;
    }

    /// Units of the last output before each block that starts in it or right behind it, and the
    /// [`position`](Self::position) there. The first block of a stream is not listed.
    pub fn starts(&self) -> &[(usize, u64)] {
        &self.starts
    }

    /// Goes on at a block that starts at bit `position` of the stream, after the bytes that were given out and those
    /// that [`add`](Self::add) named. The next input starts with the byte that holds the bit.
    pub fn go_on_at(&mut self, position: u64) {
        let [bit, ..] = position.to_le_bytes();
        self.state = State::Skip((bit & 7).into());
        self.bits = Bits::default();
        self.taken = position / 8;
    }

    /// Takes note of bytes of the stream that another decoder gave out.
    pub fn add(&mut self, units: &[T]) {
        self.history.append(units);
    }

    /// Whether a block has ended here and another one follows.
    pub fn is_between_blocks(&self) -> bool {
        matches!(self.state, State::Block | State::Skip(_))
    }

    /// The units given out last, at most 32768, the oldest one first.
    pub fn window(&self) -> Vec<T> {
        self.history.pieces().concat()
    }

    /// Bits of the stream used so far.
    pub fn position(&self) -> u64 {
        let skipped = if let State::Skip(bit) = self.state { bit } else { 0 };
        self.taken.wrapping_mul(8).wrapping_sub(self.bits.count().into()).wrapping_add(skipped.into())
    }

    /// Takes bytes off the front of `input` and fills `output` from its start; how many units of `output` are
    /// filled, and why there are no more.
    pub fn decode(&mut self, input: &mut &[u8], output: &mut [T]) -> Result<(usize, Pause), DeflateError> {
        let before = input.len();
        let mut at = 0;
        self.starts.clear();
        self.given = self.taken.wrapping_add(before as u64);
        let outcome = self.advance(input, output, &mut at);
        self.taken = self.taken.wrapping_add(before.wrapping_sub(input.len()) as u64);
        match outcome {
            Ok(pause) => {
                self.history.append(output.get(..at).unwrap_or_default());
                Ok((at, pause))
            }
            Err(what) => Err(DeflateError { what, bit: self.position() }),
        }
    }

    fn advance(&mut self, input: &mut &[u8], output: &mut [T], at: &mut usize) -> Result<Pause, Fault> {
        loop {
            match self.state {
                State::Ended => return Ok(Pause::Ended),
                State::Symbols => {
                    if let Some(pause) = self.symbols(input, output, at)? {
                        return Ok(pause);
                    }
                }
                State::Match { length, distance } => {
                    let room = output.len().wrapping_sub(*at);
                    let now = length.min(room);
                    if !self.history.copy(output, *at, distance, now) {
                        return Err(Fault::TooFar);
                    }
                    *at = at.wrapping_add(now);
                    if now < length {
                        self.state = State::Match { length: length.wrapping_sub(now), distance };
                        return Ok(Pause::Output);
                    }
                    self.state = State::Symbols;
                }
                State::Stored(left) => {
                    let now = left.min(input.len()).min(output.len().wrapping_sub(*at));
                    let (bytes, rest) = input.split_at_checked(now).unwrap_or_default();
                    if let Some(place) = output.get_mut(*at..at.wrapping_add(now)) {
                        for (unit, byte) in place.iter_mut().zip(bytes) {
                            *unit = T::from(*byte);
                        }
                    }
                    *input = rest;
                    *at = at.wrapping_add(now);
                    if now < left {
                        self.state = State::Stored(left.wrapping_sub(now));
                        return Ok(if input.is_empty() { Pause::Input } else { Pause::Output });
                    }
                    if self.block_ended(input, *at) {
                        return Ok(Pause::Block);
                    }
                }
                _ => {
                    if !self.header(input)? {
                        return Ok(Pause::Input);
                    }
                }
            }
        }
    }

    /// Goes behind a block, after `at` units of the output; whether to pause there.
    fn block_ended(&mut self, input: &[u8], at: usize) -> bool {
        if self.last {
            self.state = State::Ended;
            return false;
        }
        self.state = State::Block;
        let taken = self.given.wrapping_sub(input.len() as u64);
        let position = taken.wrapping_mul(8).wrapping_sub(self.bits.count().into());
        if self.most_starts > 0 {
            self.starts.push((at, position));
        }
        let is_full = self.most_starts > 0 && self.starts.len() >= self.most_starts;
        is_full || self.pause_from.is_some_and(|from| position >= from)
    }

    /// Decodes symbols up to the end of the block; what stopped it before that.
    fn symbols(
        &mut self,
        input: &mut &[u8],
        output: &mut [T],
        at: &mut usize,
    ) -> Result<Option<Pause>, Fault> {
        loop {
            if self.bits.count() < 8 && fast::worthwhile(input, output.len().wrapping_sub(*at)) {
                match cpu::run(&self.literals, &self.distances, &mut self.bits, input, output, at) {
                    Stop::Edge => {}
                    Stop::End => {
                        return Ok(self.block_ended(input, *at).then_some(Pause::Block));
                    }
                    Stop::Match { length, distance } => {
                        self.state = State::Match { length, distance };
                        return Ok(None);
                    }
                    Stop::NoLiteral => return Err(Fault::Literal),
                    Stop::NoDistance => return Err(Fault::Distance),
                }
            }
            if *at >= output.len() {
                return Ok(Some(Pause::Output));
            }

            // One symbol, whole: a match needs the bits of its distance before any are dropped.
            let Some((entry, skipped)) = lookup(&mut self.bits, input, 0, |buffer| {
                let entry = self.literals.first(buffer);
                (entry, entry.is_second().then(|| self.literals.second(entry, buffer >> entry.bits())))
            }) else {
                return Ok(Some(Pause::Input));
            };
            if entry.is_literal() {
                self.bits.drop(skipped.wrapping_add(entry.bits()));
                if let Some(unit) = output.get_mut(*at) {
                    *unit = T::from(entry.literal());
                }
                *at = at.wrapping_add(1);
                continue;
            }
            if entry.is_special() {
                self.bits.drop(skipped.wrapping_add(entry.bits()));
                if !entry.is_end() {
                    return Err(Fault::Literal);
                }
                return Ok(self.block_ended(input, *at).then_some(Pause::Block));
            }
            let length = entry.value(self.bits.buffer() >> skipped);
            let used = skipped.wrapping_add(entry.bits());
            let Some((entry, skipped)) = lookup(&mut self.bits, input, used, |buffer| {
                let entry = self.distances.first(buffer);
                (entry, entry.is_second().then(|| self.distances.second(entry, buffer >> entry.bits())))
            }) else {
                return Ok(Some(Pause::Input));
            };
            let distance = entry.value(self.bits.buffer() >> used >> skipped);
            self.bits.drop(used.wrapping_add(skipped).wrapping_add(entry.bits()));
            if entry.is_special() {
                return Err(Fault::Distance);
            }
            self.state =
                State::Match { length: table::low(length.into()), distance: table::low(distance.into()) };
            return Ok(None);
        }
    }

    /// Reads one step of a block's header; `false` when it waits for input.
    fn header(&mut self, input: &mut &[u8]) -> Result<bool, Fault> {
        let header = &mut self.header;
        match self.state {
            State::Skip(bit) => {
                if bit > 0 {
                    if !self.bits.want(input, 8) {
                        return Ok(false);
                    }
                    self.bits.drop(bit);
                }
                self.state = State::Block;
            }
            State::Block => {
                if !self.bits.want(input, 3) {
                    return Ok(false);
                }
                self.last = self.bits.take(1) == 1;
                self.state = match self.bits.take(2) {
                    0 => State::StoredLength,
                    1 => {
                        if !self.fixed {
                            self.fixed = true;
                            fixed_codes(&mut self.literals, &mut self.distances);
                        }
                        State::Symbols
                    }
                    2 => State::Counts,
                    _ => return Err(Fault::BlockType),
                };
            }
            State::StoredLength => {
                // Less than a byte is left of the header's, or the lengths wait for their last bytes.
                let padding = self.bits.count() & 7;
                self.bits.drop(padding);
                if !self.bits.want(input, 32) {
                    return Ok(false);
                }
                let length = self.bits.take(16);
                if self.bits.take(16) ^ 0xffff != length {
                    return Err(Fault::StoredLength);
                }
                self.state = State::Stored(length);
            }
            State::Counts => {
                if !self.bits.want(input, 14) {
                    return Ok(false);
                }
                header.literals = self.bits.take(5).wrapping_add(257);
                header.distances = self.bits.take(5).wrapping_add(1);
                header.code_lengths = self.bits.take(4).wrapping_add(4);
                if header.literals > 286 || header.distances > 30 {
                    return Err(Fault::Counts);
                }
                header.read = 0;
                header.lengths.fill(0);
                self.state = State::CodeLengths;
            }
            State::CodeLengths => {
                for symbol in LENGTH_ORDER.iter().take(header.code_lengths).skip(header.read) {
                    if !self.bits.want(input, 3) {
                        return Ok(false);
                    }
                    let [length, ..] = self.bits.take(3).to_le_bytes();
                    if let Some(slot) = header.lengths.get_mut(*symbol) {
                        *slot = length;
                    }
                    header.read = header.read.wrapping_add(1);
                }
                let lengths = header.lengths.get(..LENGTH_ORDER.len()).unwrap_or_default();
                header.table.build(Alphabet::Lengths, lengths).ok_or(Fault::CodeLengths)?;
                header.read = 0;
                self.state = State::Lengths;
            }
            State::Lengths => {
                let all = header.literals.wrapping_add(header.distances);
                while header.read < all {
                    let entry = loop {
                        let entry = header.table.first(self.bits.buffer());
                        if entry.bits() <= self.bits.count() {
                            break entry;
                        }
                        let more = self.bits.count().wrapping_add(1);
                        if !self.bits.want(input, more) {
                            return Ok(false);
                        }
                    };
                    let (extra, base) = match entry.base() {
                        16 => (2, 3),
                        17 => (3, 3),
                        18 => (7, 11),
                        length => {
                            self.bits.drop(entry.bits());
                            if let Some(slot) = header.lengths.get_mut(header.read) {
                                let [length, ..] = length.to_le_bytes();
                                *slot = length;
                            }
                            header.read = header.read.wrapping_add(1);
                            continue;
                        }
                    };
                    if !self.bits.want(input, entry.bits().wrapping_add(extra)) {
                        return Ok(false);
                    }
                    self.bits.drop(entry.bits());
                    let end = self.bits.take(extra).wrapping_add(base).wrapping_add(header.read);
                    let length = match (entry.base(), header.read.checked_sub(1)) {
                        (16, None) => return Err(Fault::Repeat),
                        (16, Some(before)) => header.lengths.get(before).copied().unwrap_or_default(),
                        _ => 0,
                    };
                    if end > all {
                        return Err(Fault::Repeat);
                    }
                    if let Some(run) = header.lengths.get_mut(header.read..end) {
                        run.fill(length);
                    }
                    header.read = end;
                }
                let (literals, rest) = header.lengths.split_at_checked(header.literals).unwrap_or_default();
                if literals.get(256) == Some(&0) {
                    return Err(Fault::NoEnd);
                }
                self.fixed = false;
                self.literals.build(Alphabet::Literals, literals).ok_or(Fault::LiteralLengths)?;
                let distances = rest.get(..header.distances).unwrap_or_default();
                self.distances.build(Alphabet::Distances, distances).ok_or(Fault::Distances)?;
                self.state = State::Symbols;
            }
            State::Stored(_) | State::Symbols | State::Match { .. } | State::Ended => {}
        }
        Ok(true)
    }
}

/// Looks up the code that stands `used` bits ahead, taking just as much input as it and its extra bits need. The
/// entry, and the bits of the first table's index if it stands in a second one. `None` when the input is too short.
fn lookup(
    bits: &mut Bits,
    input: &mut &[u8],
    used: u32,
    find: impl Fn(u64) -> (table::Entry, Option<table::Entry>),
) -> Option<(table::Entry, u32)> {
    loop {
        let (entry, skipped) = match find(bits.buffer() >> used) {
            (first, Some(second)) => (second, first.bits()),
            (first, None) => (first, 0),
        };
        // Bits that are not here yet read as zeros, and lead to an entry that asks for more than is here.
        let needed = used.wrapping_add(skipped).wrapping_add(entry.bits());
        let code = used.wrapping_add(skipped).wrapping_add(entry.code_bits());
        let have = bits.count();
        if needed <= have {
            return Some((entry, skipped));
        }
        let wanted = if code <= have { needed } else { have.wrapping_add(1) };
        if !bits.want(input, wanted) {
            return None;
        }
    }
}

/// The codes of block type 1.
fn fixed_codes(literals: &mut LiteralTable, distances: &mut DistanceTable) {
    let mut lengths = [8; LITERALS];
    for (symbol, length) in lengths.iter_mut().enumerate() {
        *length = match symbol {
            144..=255 => 9,
            256..=279 => 7,
            _ => 8,
        };
    }
    // Both are complete.
    let _built = literals.build(Alphabet::Literals, &lengths);
    let _built = distances.build(Alphabet::Distances, &[5; DISTANCES]);
}
