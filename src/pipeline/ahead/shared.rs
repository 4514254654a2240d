//! State shared by the decoder and its helpers: the input from the decoder on, and the pieces further on.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    options::{AheadFacts, AheadPlan},
    stream::HELPER_WINDOW_BYTES,
};
use crate::{
    codec::{Coding, Cut, Starts},
    error::{Error, Kind, Result},
    pipeline::{budget::SHARE_BYTES, buffer::Chunk},
};

/// Units of a part whose window is not known.
pub(super) const PART_UNITS: usize = 256 << 10;
/// Input that waits for a decoder without helpers.
const NEAR_BYTES: u64 = 768 << 10;
/// Misses in a row after which no more pieces are looked for.
const MISSES_MAX: u32 = 3;
/// Bytes of input without the start of a member after which helpers look for blocks instead, or end where frames have none.
/// The files of indexed layers begin every few MiB at least.
const KNOWN_REACH: u64 = 16 << 20;
/// Compressed bytes before a piece from which on the decoder is about to come to it.
const DUE_REACH: u64 = 128 << 10;
/// Longest time that a helper waits before it looks whether it may work again.
const PAUSE: Duration = Duration::from_millis(50);

/// Shared by the thread that feeds the decoder, the decoder, and its helpers.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Wakes everybody: input has come or was taken, memory has come back, or this is the end.
    changed: Condvar,
    coding: Coding,
    distance: u64,
    /// Most bytes of input from the decoder on.
    window: u64,
    /// Most bytes of all parts.
    memory: u64,
}

struct State {
    /// Input from the decoder on, by its offset in the stream.
    input: VecDeque<(u64, Chunk)>,
    /// Bytes of input that have come, and whether those are all.
    end: u64,
    has_ended: bool,
    /// No more input comes although there is some.
    is_abandoned: bool,
    /// The decoder has ended.
    is_closed: bool,
    /// First byte that the decoder has not taken, and end of the input that it is at work on.
    decoder: u64,
    decoder_until: u64,
    /// Pieces in the order of the stream.
    pieces: VecDeque<Piece>,
    /// Members or frames that are known to come, sparsely; how many were found, and the last one.
    members: VecDeque<u64>,
    members_found: u64,
    last_member: u64,
    /// No piece is looked for before this bit.
    search_from: u64,
    misses: u32,
    /// Why a helper has failed.
    failed: Option<Error>,
    /// Bytes of all parts.
    memory: u64,
    /// Parts to be filled again.
    idle: Vec<Box<[u16]>>,
    facts: AheadFacts,
}

/// Start of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begins {
    /// A block, before which the window is not known.
    Block,
    /// A member or a frame.
    Member,
}

/// Next work of a helper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Look for a block from this bit on.
    Search(u64),
    /// Decode members or frames from this byte on.
    Members(u64),
}

/// Blocks or members that a helper decodes.
struct Piece {
    start: Cut,
    begins: Begins,
    parts: Vec<Part>,
    /// Where the last whole block ends, and how many bytes come before that.
    end: Option<(Cut, usize)>,
}

/// A part of a piece.
pub(super) enum Part {
    /// Bytes, and places in the unknown window.
    Marked(Units),
    /// Bytes.
    Plain(Chunk),
}

impl Part {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Marked(units) => units.filled,
            Self::Plain(chunk) => chunk.len(),
        }
    }
}

/// Units in a buffer, of which the first `filled` count.
pub(super) struct Units {
    pub(super) buffer: Box<[u16]>,
    pub(super) filled: usize,
}

impl Units {
    pub(super) fn units(&self) -> &[u16] {
        self.buffer.get(..self.filled).unwrap_or_default()
    }

    pub(super) fn space(&mut self) -> &mut [u16] {
        self.buffer.get_mut(self.filled..).unwrap_or_default()
    }
}

/// Part of a piece that is ready.
pub(super) struct Taken {
    pub(super) parts: Vec<Part>,
    pub(super) end: Cut,
    pub(super) begins: Begins,
}

/// Answer to a helper that hands over parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The piece goes on, to the start of the next one.
    On(Option<Cut>),
    /// Nobody wants more of it.
    Gone,
}

/// Answer to a helper that needs input.
pub(super) enum Input {
    /// A buffer, and its offset.
    Chunk(u64, Chunk),
    /// It has not come yet.
    NotYet,
    /// There is no more, or nobody wants more of the piece.
    End,
}

/// Memory of one part of bytes that no window is needed for.
pub(super) const PLAIN_BYTES: u64 = 512 << 10;
const UNITS_BYTES: u64 = 2 * PART_UNITS as u64;

impl Shared {
    pub(super) fn new(plan: AheadPlan, helpers: usize) -> Self {
        let AheadPlan { coding, distance } = plan;
        let helpers = helpers as u64;
        let window = (helpers + 1) * distance;
        let decoders = if coding == Coding::Zstd { helpers * HELPER_WINDOW_BYTES } else { 0 };
        let memory = (helpers * SHARE_BYTES).saturating_sub(window + decoders).max(4 * UNITS_BYTES);
        let (state, changed) = (Mutex::new(State::new()), Condvar::new());
        Self { state, changed, coding, distance, window, memory }
    }

    #[cfg(test)]
    pub(super) fn set_window(&mut self, bytes: u64) {
        self.window = bytes;
    }

    #[cfg(test)]
    pub(super) fn set_memory(&mut self, bytes: u64) {
        self.memory = bytes;
    }

    #[cfg(test)]
    pub(super) fn memory_in_use(&self) -> u64 {
        self.lock().memory
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Compression of the stream.
    pub(super) fn coding(&self) -> Coding {
        self.coding
    }

    /// Compressed bytes from piece to piece.
    pub(super) fn distance(&self) -> u64 {
        self.distance
    }

    // --- the thread that feeds the decoder

    /// Adds input, once there is room; `false` when the decoder has ended. `starts` has seen all input before.
    pub(super) fn add(&self, chunk: Chunk, starts: &mut Starts) -> bool {
        let mut members = Vec::new();
        starts.push(&chunk, &mut |start| members.push(start));
        let mut state = self.lock();
        loop {
            let window = if state.is_off() { NEAR_BYTES } else { self.window };
            if state.is_closed || state.end.saturating_sub(state.decoder) < window {
                break;
            }
            state = self.wait(state);
        }
        let end = state.end;
        state.end += chunk.len() as u64;
        state.input.push_back((end, chunk));
        state.note_members(&members, self.distance / 8);
        let goes_on = !state.is_closed;
        drop(state);
        self.changed.notify_all();
        goes_on
    }

    /// All input has been added.
    pub(super) fn end_input(&self) {
        self.lock().has_ended = true;
        self.changed.notify_all();
    }

    /// No more input is added, for whatever reason.
    pub(super) fn abandon(&self) {
        self.lock().is_abandoned = true;
        self.changed.notify_all();
    }

    // --- the decoder

    /// The input at byte `at`, once it has come; `None` behind all of it. Errors: it will not come.
    pub(super) fn input(&self, at: u64) -> Result<Option<(u64, Chunk)>> {
        let mut state = self.lock();
        state.decoder = at;
        let first = |state: &State| state.input.front().map(|(offset, chunk)| offset + chunk.len() as u64);
        let mut freed = Vec::new();
        while first(&state).is_some_and(|end| end <= at) {
            freed.extend(state.input.pop_front());
        }
        self.changed.notify_all();
        loop {
            if let Some(error) = state.failed.take() {
                return Err(error);
            }
            if let Some((offset, chunk)) = state.input.front() {
                return Ok(Some((*offset, chunk.clone())));
            }
            if state.has_ended {
                return Ok(None);
            }
            if state.is_abandoned {
                return Err(abandoned());
            }
            state = self.wait(state);
        }
    }

    /// Where the next piece starts, as the decoder goes to work on input up to byte `until`.
    pub(super) fn next_piece(&self, until: u64) -> Option<Cut> {
        let mut state = self.lock();
        state.decoder_until = until;
        state.pieces.front().map(|piece| piece.start)
    }

    /// The piece that starts at `at`, where the decoder stands, as far as it is ready. Those before, which it has decoded
    /// itself and met no such block, are none.
    pub(super) fn take(&self, at: Cut, begins: Begins) -> Option<Taken> {
        let mut state = self.lock();
        while let Some(piece) = pop_if(&mut state.pieces, |piece| piece.start < at) {
            state.miss();
            state.cut_off(piece.parts, 0);
        }
        let piece = pop_if(&mut state.pieces, |piece| piece.start == at);
        let taken = piece.and_then(|piece| match piece.end {
            Some((end, bytes)) if piece.begins == begins => {
                state.misses = 0;
                state.facts.used += 1;
                state.facts.bytes += bytes as u64;
                Some(Taken { parts: state.cut_off(piece.parts, bytes), end, begins })
            }
            _ => {
                state.facts.late += 1;
                state.cut_off(piece.parts, 0);
                None
            }
        });
        let end = taken.as_ref().map_or(at, |taken| taken.end);
        while let Some(piece) = pop_if(&mut state.pieces, |piece| piece.start < end) {
            state.facts.late += 1;
            state.cut_off(piece.parts, 0);
        }
        drop(state);
        self.changed.notify_all();
        taken
    }

    pub(super) fn give_back_units(&self, units: Units) {
        let mut state = self.lock();
        state.free_units(units);
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn give_back_plain(&self) {
        self.lock().memory -= PLAIN_BYTES;
        self.changed.notify_all();
    }

    /// The decoder has ended, and with it everything.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        for piece in std::mem::take(&mut state.pieces) {
            state.cut_off(piece.parts, 0);
        }
        state.input.clear();
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn facts(&self) -> AheadFacts {
        self.lock().facts
    }

    // --- helpers

    /// Whether the helpers' time is over.
    pub(super) fn is_closed(&self) -> bool {
        let state = self.lock();
        state.is_closed || state.is_abandoned || state.is_off()
    }

    /// Next work, once there is input of `bytes` for it or all of it; `None` when there is nothing more to do.
    /// Waits while `may_work` says no.
    pub(super) fn job(&self, bytes: u64, may_work: impl Fn() -> bool) -> Option<Job> {
        let bytes = bytes.min(self.distance / 2);
        let mut state = self.lock();
        loop {
            if state.is_closed || state.is_abandoned || state.is_off() {
                return None;
            }
            let from = state.search_from.max(8 * (state.decoder + self.distance));
            if state.has_ended && from / 8 >= state.end {
                return None;
            }
            let (is_known, may_search) = (state.is_known(), self.coding == Coding::Gzip);
            // Nothing of a frame can be decoded before its start.
            if !is_known && !may_search && (state.has_ended || state.end > state.last_member + KNOWN_REACH) {
                return None;
            }
            if state.memory + 2 * UNITS_BYTES <= self.memory && may_work() {
                if is_known {
                    if let Some(member) = state.members.iter().copied().find(|member| 8 * member >= from) {
                        state.search_from = 8 * (member + self.distance);
                        return Some(Job::Members(member));
                    }
                    if state.has_ended {
                        return None;
                    }
                } else if may_search && (state.has_ended || from / 8 + bytes <= state.end) {
                    state.search_from = from + 8 * self.distance;
                    return Some(Job::Search(from));
                }
            }
            state = self.changed.wait_timeout(state, PAUSE).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Copies input from byte `from` on; how many bytes.
    pub(super) fn copy(&self, from: u64, output: &mut [u8]) -> usize {
        // A helper that loses its processor must not hold the lock for long: the decoder would wait for both.
        let end = from + output.len() as u64;
        let input: Vec<_> = {
            let state = self.lock();
            let is_part =
                |(offset, chunk): &&(u64, Chunk)| *offset < end && from < offset + chunk.len() as u64;
            state.input.iter().filter(is_part).cloned().collect()
        };
        copy(&input, from, output)
    }

    /// Announces a piece; [`Next::Gone`] when the decoder or another piece may be there already.
    pub(super) fn announce(&self, start: Cut, begins: Begins) -> Next {
        let mut state = self.lock();
        let place = state.pieces.iter().position(|piece| piece.start >= start).unwrap_or(state.pieces.len());
        let is_there = state.pieces.get(place).is_some_and(|piece| piece.start == start);
        let before = place.checked_sub(1).and_then(|before| state.pieces.get(before));
        let is_behind = before.is_none_or(|piece| piece.end.is_none_or(|(end, _)| end <= start));
        let decoder = state.decoder_until.max(state.decoder).saturating_mul(8);
        if state.is_closed || start.0 <= decoder || is_there || !is_behind {
            return Next::Gone;
        }
        state.pieces.insert(place, Piece { start, begins, parts: Vec::new(), end: None });
        state.until(place)
    }

    /// Whether the decoder comes to the piece that starts at `start` within a moment.
    pub(super) fn is_due(&self, start: Cut) -> bool {
        self.lock().decoder_until.saturating_add(DUE_REACH) >= start.0 / 8
    }

    /// Takes back a piece without a whole block; `is_false`: because it is none.
    pub(super) fn withdraw(&self, start: Cut, is_false: bool) {
        let mut state = self.lock();
        if let Some(place) = state.pieces.iter().position(|piece| piece.start == start) {
            let piece = state.pieces.remove(place);
            state.cut_off(piece.map(|piece| piece.parts).unwrap_or_default(), 0);
            if is_false {
                state.miss();
            }
        }
    }

    /// A helper has failed, which nothing in the stream can make it do.
    pub(super) fn fail(&self, error: Error) {
        self.lock().failed.get_or_insert(error);
        self.changed.notify_all();
    }

    /// No piece was found where one was looked for.
    pub(super) fn found_none(&self) {
        self.lock().miss();
        self.changed.notify_all();
    }

    /// Hands over parts of the piece that starts at `start`, up to `end`.
    pub(super) fn hand_over(&self, start: Cut, parts: &mut Vec<Part>, end: Option<(Cut, usize)>) -> Next {
        let mut state = self.lock();
        let Some(place) = state.pieces.iter().position(|piece| piece.start == start) else {
            state.cut_off(std::mem::take(parts), 0);
            return Next::Gone;
        };
        if let Some(piece) = state.pieces.get_mut(place) {
            piece.parts.append(parts);
            piece.end = end.or(piece.end);
        }
        // The next piece that is looked for comes after this one.
        state.search_from = state.search_from.max(end.map_or(0, |(end, _)| end.0));
        state.until(place)
    }

    /// A buffer for units, if there is memory for one.
    pub(super) fn units(&self) -> Option<Units> {
        let idle = self.reserve(UNITS_BYTES)?.idle.pop();
        let buffer = idle.unwrap_or_else(|| vec![0; PART_UNITS].into_boxed_slice());
        Some(Units { buffer, filled: 0 })
    }

    /// Memory for a buffer of bytes, if there is any.
    pub(super) fn plain(&self) -> Option<()> {
        self.reserve(PLAIN_BYTES).map(drop)
    }

    fn reserve(&self, bytes: u64) -> Option<MutexGuard<'_, State>> {
        let mut state = self.lock();
        state.memory = state.memory.checked_add(bytes).filter(|memory| *memory <= self.memory)?;
        Some(state)
    }

    /// The input at byte `at` for the piece that starts at `start`.
    pub(super) fn input_of(&self, start: Cut, at: u64) -> Input {
        let state = self.lock();
        state.input_of(start, at)
    }

    /// The same, once it has come.
    pub(super) fn wait_for_input_of(&self, start: Cut, at: u64) -> Input {
        let mut state = self.lock();
        loop {
            match state.input_of(start, at) {
                Input::NotYet => state = self.wait(state),
                input => return input,
            }
        }
    }
}

/// Copies input from byte `from` on; how many bytes.
fn copy<'a>(input: impl IntoIterator<Item = &'a (u64, Chunk)>, from: u64, output: &mut [u8]) -> usize {
    let mut filled = 0;
    for (offset, chunk) in input {
        let skipped = (from + filled as u64).checked_sub(*offset).and_then(|skip| usize::try_from(skip).ok());
        let bytes = skipped.and_then(|skipped| chunk.get(skipped..)).unwrap_or_default();
        let room = output.get_mut(filled..).unwrap_or_default();
        let len = bytes.len().min(room.len());
        if let (Some(room), Some(bytes)) = (room.get_mut(..len), bytes.get(..len)) {
            room.copy_from_slice(bytes);
        }
        filled += len;
    }
    filled
}

/// The first item, if it is one that `take` wants.
fn pop_if<T>(items: &mut VecDeque<T>, take: impl Fn(&T) -> bool) -> Option<T> {
    if items.front().is_some_and(take) { items.pop_front() } else { None }
}

impl State {
    fn new() -> Self {
        Self {
            input: VecDeque::new(),
            end: 0,
            has_ended: false,
            is_abandoned: false,
            is_closed: false,
            decoder: 0,
            decoder_until: 0,
            pieces: VecDeque::new(),
            members: VecDeque::new(),
            members_found: 0,
            last_member: 0,
            search_from: 0,
            misses: 0,
            failed: None,
            memory: 0,
            idle: Vec::new(),
            facts: AheadFacts::default(),
        }
    }

    fn is_off(&self) -> bool {
        self.misses >= MISSES_MAX
    }

    /// Takes note of the starts of members. Keeps those that are `apart` bytes from each other.
    fn note_members(&mut self, starts: &[u64], apart: u64) {
        for start in starts {
            self.members_found += 1;
            self.last_member = *start;
            if self.members.back().is_none_or(|last| *start >= last + apart) {
                self.members.push_back(*start);
            }
        }
        let decoder = self.decoder;
        while pop_if(&mut self.members, |member| *member < decoder).is_some() {}
    }

    /// Whether helpers know where members begin, and have no need to look for blocks.
    fn is_known(&self) -> bool {
        self.members_found > 1 && self.end.saturating_sub(self.last_member) <= KNOWN_REACH
    }

    fn miss(&mut self) {
        self.misses += 1;
        self.facts.missed += 1;
    }

    /// Up to where the piece at `place` goes.
    fn until(&self, place: usize) -> Next {
        Next::On(self.pieces.get(place + 1).map(|piece| piece.start))
    }

    fn free_units(&mut self, units: Units) {
        self.idle.push(units.buffer);
        self.memory -= UNITS_BYTES;
    }

    /// The first `bytes` bytes of `parts`; takes back the rest.
    fn cut_off(&mut self, parts: Vec<Part>, bytes: usize) -> Vec<Part> {
        let mut left = bytes;
        let mut kept = Vec::new();
        for part in parts {
            let len = part.len().min(left);
            left -= len;
            match part {
                Part::Marked(units) if len == 0 => self.free_units(units),
                Part::Plain(_) if len == 0 => self.memory -= PLAIN_BYTES,
                Part::Marked(units) => kept.push(Part::Marked(Units { filled: len, ..units })),
                Part::Plain(chunk) => kept.push(Part::Plain(chunk.first(len))),
            }
        }
        kept
    }

    fn input_of(&self, start: Cut, at: u64) -> Input {
        let is_wanted = self.pieces.iter().any(|piece| piece.start == start);
        if self.is_closed || self.is_abandoned || !is_wanted {
            return Input::End;
        }
        let found =
            self.input.iter().find(|(offset, chunk)| (*offset..offset + chunk.len() as u64).contains(&at));
        match found {
            Some((offset, chunk)) => Input::Chunk(*offset, chunk.clone()),
            None if self.has_ended => Input::End,
            None => Input::NotYet,
        }
    }
}

/// Error of whoever finds the other side gone.
pub(super) fn abandoned() -> Error {
    Error::new(Kind::Internal, "pipeline.abandoned", "the decoder has ended before its input")
}
