//! State shared by the decoder and its helpers: the input from the decoder on, and the pieces further on.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    options::{AheadFacts, AheadPlan},
    piece::{Begins, Decoded, Indexed, Input, Job, Next, Part, Piece, Ready, Run, Taken, Units},
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
/// Misses in a row after which no more pieces are looked for, and after which an index is given up. One may be right but for
/// some places: the window that SOCI has for the start of a member is the end of the one before.
const MISSES_MAX: u32 = 3;
/// Bytes of input without the start of a frame after which helpers end. The files of indexed layers begin every few MiB at
/// least.
const FRAMES_REACH: u64 = 16 << 20;
/// Longest time that the decoder waits for a helper before it does the work itself. It has decoded other members meanwhile,
/// for as long as there were any, so a helper that is not done by then has lost its processor, and may not get it back soon.
pub(super) const PATIENCE: Duration = Duration::from_millis(5);
/// Longest time that a helper waits before it looks whether it may work again.
const PAUSE: Duration = Duration::from_millis(50);

/// Shared by the thread that feeds the decoder, the decoder, and its helpers.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Wakes everybody: input has come or was taken, memory has come back, or this is the end.
    changed: Condvar,
    coding: Coding,
    distance: u64,
    /// Compressed bytes of a run of members, and most of them where one member is longer.
    run: u64,
    run_max: u64,
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
    /// Compressed bytes of the runs that were decoded, and what became of them.
    compressed: u64,
    uncompressed: u64,
    /// Members or frames that are known to come, sparsely; how many were found, and the last one.
    members: VecDeque<u64>,
    members_found: u64,
    last_member: u64,
    /// Places in the index that nobody has come to, and the numbers of their checkpoints; pieces in a row that began at such
    /// places and were none.
    index: VecDeque<(Cut, usize)>,
    index_misses: u32,
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

/// Memory of one part of bytes that no window is needed for.
pub(super) const PLAIN_BYTES: u64 = 512 << 10;
const UNITS_BYTES: u64 = 2 * PART_UNITS as u64;

impl Shared {
    pub(super) fn new(plan: AheadPlan<'_>, helpers: usize) -> Self {
        let AheadPlan { coding, distance, index } = plan;
        let helpers = helpers as u64;
        let (run, run_max) = (distance / 4, distance + distance / 4);
        let window = (helpers + 1) * run_max;
        let memory = (helpers * SHARE_BYTES).saturating_sub(window).max(4 * UNITS_BYTES);
        let index = index.map(|index| index.starts().collect()).unwrap_or_default();
        let (state, changed) = (Mutex::new(State { index, ..State::new() }), Condvar::new());
        Self { state, changed, coding, distance, run, run_max, window, memory }
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
        state.note_members(&members, self.run / 2);
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

    /// The piece that starts at `at`, where the decoder stands and `window` are the bytes before, as far as it is ready. Those
    /// before, which it has decoded itself and met no such block, are none.
    pub(super) fn take(&self, at: Cut, begins: Begins, window: &[u8]) -> Ready {
        let mut state = self.lock();
        let is_none = |piece: &Piece| piece.start < at || (piece.start == at && !piece.follows(window));
        while let Some(piece) = pop_if(&mut state.pieces, is_none) {
            state.drop_none(piece);
        }
        if begins == Begins::Member && state.is_under_way(at) {
            return Ready::UnderWay;
        }
        let piece = pop_if(&mut state.pieces, |piece| piece.start == at);
        let taken = piece.and_then(|piece| match piece.end {
            Some((end, bytes)) if piece.begins == begins => {
                state.facts.used += 1;
                state.facts.bytes += bytes as u64;
                if piece.window.is_some() {
                    state.index_misses = 0;
                    state.facts.indexed += 1;
                } else {
                    state.misses = 0;
                }
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
        taken.map_or(Ready::None, Ready::Taken)
    }

    /// Work for the decoder while somebody else is at work on the piece that starts at `at`, where it stands; `None` once
    /// there is something to take, or the decoder shall do that work again itself.
    pub(super) fn meanwhile(&self, at: Cut) -> Option<Run> {
        let since = Instant::now();
        let mut state = self.lock();
        while state.is_under_way(at) {
            if let Some(run) = self.next_run(&mut state) {
                return Some(run);
            }
            let left = PATIENCE.saturating_sub(since.elapsed());
            if left.is_zero() || state.failed.is_some() {
                state.facts.late += 1;
                state.pieces.pop_front();
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        None
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
            let run = state.next_members(self.run, self.run_max);
            let near = from / 8 + self.run_max;
            let is_near = run.map_or(!state.has_ended && state.end < near, |(start, _)| start <= near);
            // Members behind a long one come after its blocks. Nothing of a frame can be decoded before its start.
            let may_search = self.coding == Coding::Gzip && !(state.members_found > 1 && is_near);
            let has_run = run.is_some() && !may_search;
            if !has_run && state.has_ended && (!may_search || from / 8 >= state.end) {
                return None;
            }
            if self.coding == Coding::Zstd && state.end > state.last_member + FRAMES_REACH {
                return None;
            }
            if state.memory + 2 * UNITS_BYTES <= self.memory && may_work() {
                if has_run {
                    if let Some(run) = self.next_run(&mut state) {
                        return Some(Job::Run(run));
                    }
                } else if may_search && (state.has_ended || from / 8 + bytes <= state.end) {
                    if let Some(indexed) = state.next_indexed(Cut(from), 8 * self.run_max) {
                        return Some(Job::Indexed(indexed));
                    }
                    state.search_from = from + 8 * self.distance;
                    return Some(Job::Search(from));
                }
            }
            state = self.changed.wait_timeout(state, PAUSE).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes on the next run, once all of its input and memory for its output are there.
    fn next_run(&self, state: &mut State) -> Option<Run> {
        let (start, end) = state.next_members(self.run, self.run_max)?;
        let expected = state.uncompressed.saturating_mul(end - start) / state.compressed;
        let buffers = (expected / PLAIN_BYTES + 1).min(self.memory / PLAIN_BYTES / 4);
        let memory = state.memory + buffers * PLAIN_BYTES;
        if memory > self.memory {
            return None;
        }
        state.memory = memory;
        state.search_from = 8 * end;
        let place = state.pieces.iter().position(|piece| piece.start.0 > 8 * start);
        let (start_cut, begins) = (Cut(8 * start), Begins::Member);
        let piece = Piece { start: start_cut, begins, window: None, parts: Vec::new(), end: None };
        state.pieces.insert(place.unwrap_or(state.pieces.len()), piece);
        Some(Run {
            start,
            end,
            input: state.input_in(start, end),
            buffers: usize::try_from(buffers).unwrap_or_default(),
        })
    }

    /// Hands over what came of a run.
    pub(super) fn complete(&self, run: &Run, decoded: Decoded) {
        let Decoded { parts, end, is_false } = decoded;
        let mut state = self.lock();
        state.memory -= PLAIN_BYTES * run.buffers.saturating_sub(parts.len()) as u64;
        let parts = state.cut_off(parts, end.map_or(0, |(_, bytes)| bytes));
        let place = state.pieces.iter().position(|piece| piece.start.0 == 8 * run.start);
        let piece = place.and_then(|place| state.pieces.get_mut(place));
        match (piece, end) {
            (Some(piece), Some((cut, bytes))) => {
                (piece.parts, piece.end) = (parts, end);
                state.compressed += cut.0 / 8 - run.start;
                state.uncompressed += bytes as u64;
            }
            (_, _) => {
                state.cut_off(parts, 0);
                if let Some(place) = place {
                    state.pieces.remove(place);
                    if is_false {
                        state.miss();
                    }
                }
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Memory for a window of a run's decoder, if there is any.
    pub(super) fn reserve_window(&self, bytes: u64) -> bool {
        bytes == 0 || self.reserve(bytes).is_some()
    }

    pub(super) fn give_back_window(&self, bytes: u64) {
        self.lock().memory -= bytes;
    }

    /// Copies input from byte `from` on; how many bytes.
    pub(super) fn copy(&self, from: u64, output: &mut [u8]) -> usize {
        // A helper that loses its processor must not hold the lock for long: the decoder would wait for both.
        let end = from + output.len() as u64;
        let input = self.lock().input_in(from, end);
        copy(&input, from, output)
    }

    /// Announces a piece that begins with a block, after `window` if the index has that; [`Next::Gone`] when the decoder or
    /// another piece may be there already.
    pub(super) fn announce(&self, start: Cut, window: Option<Vec<u8>>) -> Next {
        let mut state = self.lock();
        let place = state.pieces.iter().position(|piece| piece.start >= start).unwrap_or(state.pieces.len());
        let is_there = state.pieces.get(place).is_some_and(|piece| piece.start == start);
        let before = place.checked_sub(1).and_then(|before| state.pieces.get(before));
        let is_behind = before.is_none_or(|piece| piece.end.is_none_or(|(end, _)| end <= start));
        let decoder = state.decoder_until.max(state.decoder).saturating_mul(8);
        if state.is_closed || start.0 <= decoder || is_there || !is_behind {
            return Next::Gone;
        }
        state
            .pieces
            .insert(place, Piece { start, begins: Begins::Block, window, parts: Vec::new(), end: None });
        state.until(place)
    }

    /// Takes back a piece without a whole block; `is_false`: because it is none.
    pub(super) fn withdraw(&self, start: Cut, is_false: bool) {
        let mut state = self.lock();
        let place = state.pieces.iter().position(|piece| piece.start == start);
        if let Some(piece) = place.and_then(|place| state.pieces.remove(place)) {
            if is_false {
                state.drop_none(piece);
            } else {
                state.cut_off(piece.parts, 0);
            }
        }
    }

    /// The window of the index at `start` could not be read.
    pub(super) fn found_unreadable(&self, start: Cut) {
        self.lock().miss_indexed(start);
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
            // As compressors do, until something is known.
            compressed: 1,
            uncompressed: 3,
            members: VecDeque::new(),
            members_found: 0,
            last_member: 0,
            index: VecDeque::new(),
            index_misses: 0,
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

    /// The next members that nobody has come to, which are at most `longest` bytes and, if there are several, `most`; once
    /// all of their input is there.
    fn next_members(&self, most: u64, longest: u64) -> Option<(u64, u64)> {
        let is_next = |member: &&u64| 8 * **member >= self.search_from && **member > self.decoder_until;
        let end = self.has_ended.then_some(self.end);
        let mut members = self.members.iter().skip_while(|member| !is_next(member)).copied().chain(end);
        let mut start = members.next()?;
        let mut whole = None;
        for end in members {
            if end - start > most && whole.is_some() {
                return whole;
            }
            if end - start > longest {
                start = end;
                continue;
            }
            whole = Some((start, end));
        }
        whole.filter(|_| self.has_ended || self.end - start > most)
    }

    /// Whether somebody is at work on the members that start at `at`.
    fn is_under_way(&self, at: Cut) -> bool {
        let is_it =
            |piece: &Piece| piece.start == at && piece.begins == Begins::Member && piece.end.is_none();
        self.pieces.front().is_some_and(is_it)
    }

    /// Input that has bytes from `start` to `end`.
    fn input_in(&self, start: u64, end: u64) -> Vec<(u64, Chunk)> {
        let is_in = |(offset, chunk): &&(u64, Chunk)| *offset < end && start < offset + chunk.len() as u64;
        self.input.iter().filter(is_in).cloned().collect()
    }

    /// The next place in the index at bit `from` or soon behind, and how far to decode from there: to another such place
    /// within `reach` bits, so that the next piece follows, or as far as that.
    fn next_indexed(&mut self, from: Cut, reach: u64) -> Option<Indexed> {
        while pop_if(&mut self.index, |(start, _)| *start < from).is_some() {}
        let (start, number) = *self.index.front().filter(|(start, _)| start.0 - from.0 <= reach)?;
        let ends = self.index.iter().skip(1).map(|(end, _)| *end);
        let until = ends.take_while(|end| end.0 - start.0 <= reach).last().unwrap_or(Cut(start.0 + reach));
        self.search_from = until.0;
        Some(Indexed { start, until, number })
    }

    fn miss(&mut self) {
        self.misses += 1;
        self.facts.missed += 1;
    }

    /// A piece that began at `start` because the index says so was none.
    fn miss_indexed(&mut self, start: Cut) {
        self.index_misses += 1;
        self.facts.missed += 1;
        if self.index_misses >= MISSES_MAX {
            self.facts.misfit.get_or_insert(start);
            self.index.clear();
        }
    }

    /// Takes note of a piece that was none.
    fn drop_none(&mut self, piece: Piece) {
        match piece.window {
            Some(_) => self.miss_indexed(piece.start),
            None => self.miss(),
        }
        self.cut_off(piece.parts, 0);
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
