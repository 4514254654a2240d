//! A helper: finds a block ahead of the decoder, and decodes from there.

use std::sync::Arc;

use super::{
    piece::{Indexed, Input, Job, Next, Part, Run},
    run::{self, is_too_dense},
    shared::Shared,
    stream::{HELPER_WINDOW_BYTES, Stream},
};
use crate::{
    codec::{
        Cut,
        deflate::{Finder, HEADER_BYTES, Inflate, Pause, Unit, WINDOW_BYTES, known_at_end},
    },
    error::Result,
    format::ztoc::Ztoc,
    pipeline::{
        buffer::{Chunk, Pool},
        resources::Plan,
    },
};

/// Bytes searched at a time: the helper sees within a few milliseconds that nobody needs it any more.
const SEARCH_STEP: usize = 64 << 10;
/// Bytes searched for one piece. Blocks of all common compressors are shorter.
const SEARCH_BYTES: u64 = 512 << 10;
/// Candidates of one search.
const CANDIDATES: u32 = 3;
/// Compressed bytes after which the next end of a block is noted. Each one noted costs a copy of the window.
const STEP_BITS: u64 = 8 * (48 << 10);
/// Units after which a part is handed over, as soon as a block ends.
const READY_UNITS: usize = 96 << 10;

/// One helper.
pub(super) struct Helper<'env> {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    plan: Plan<'env>,
    /// Number of helpers that go before this one when there are few processors.
    number: usize,
    /// Index of the stream, which has the windows.
    index: Option<&'env Ztoc<'env>>,
    finder: Finder,
    marked: Inflate<u16>,
    plain: Inflate<u8>,
    /// Decoder of runs, made when it is first needed, and the memory of its window.
    members: Option<Stream>,
    window: u64,
}

/// How a piece ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Whatever came of it, the next one is further ahead.
    Done,
    /// There was no block.
    Miss,
}

impl<'env> Helper<'env> {
    pub(super) fn new(
        shared: Arc<Shared>,
        pool: Arc<Pool>,
        plan: Plan<'env>,
        number: usize,
        index: Option<&'env Ztoc<'env>>,
    ) -> Self {
        let (finder, marked, plain) = (Finder::new(), Inflate::new(), Inflate::new());
        Self { shared, pool, plan, number, index, finder, marked, plain, members: None, window: 0 }
    }

    /// Works on pieces until there is nothing more to do. Errors: there is no memory for a decoder.
    pub(super) fn work(mut self) -> Result<()> {
        let (helpers, number) = (&self.plan.resources.helpers, self.number);
        while let Some(job) = self.shared.job(SEARCH_BYTES, || helpers.idle_processors() > number) {
            if self.plan.work.cancel.check().is_err() {
                return Ok(());
            }
            match job {
                Job::Search(from) => self.search(from),
                Job::Indexed(indexed) => self.indexed(indexed),
                Job::Run(run) => self.run(&run)?,
            }
        }
        Ok(())
    }

    /// Looks for a piece from bit `from` on, and decodes it.
    fn search(&mut self, from: u64) {
        let mut scratch = vec![0; SEARCH_STEP + HEADER_BYTES];
        let mut candidates = 0;
        let mut at = from / 8;
        let mut next = from % 8;
        while at < from / 8 + SEARCH_BYTES {
            if self.shared.is_closed() {
                return;
            }
            let filled = self.shared.copy(at, &mut scratch);
            let input = scratch.get(..filled).unwrap_or_default();
            let bits = 8 * filled.min(SEARCH_STEP) as u64;
            while let Some(bit) = self.finder.find(input, next..bits) {
                if self.piece(Cut(8 * at + bit)) == Outcome::Done {
                    return;
                }
                candidates += 1;
                if candidates == CANDIDATES {
                    return;
                }
                next = bit + 1;
            }
            if filled < scratch.len() {
                break;
            }
            at += SEARCH_STEP as u64;
            next = 0;
        }
        if candidates == 0 {
            self.shared.found_none();
        }
    }

    /// Decodes from a place in the index, as far as its window can be read.
    fn indexed(&mut self, Indexed { start, until, number }: Indexed) {
        let Some(window) = self.index.and_then(|index| index.window(number).ok()) else {
            return self.shared.found_unreadable(start);
        };
        self.plain.start_at(bit_of(start), &window);
        if let Some(mut piece) = Progress::announce(&self.shared, start, until, Some(window)) {
            piece.decode_plain(&mut self.plain, &self.pool);
            piece.finish();
        }
    }

    /// Decodes from the block at `start`, if that is one.
    fn piece(&mut self, start: Cut) -> Outcome {
        // So that there is work for other helpers.
        let until = Cut(start.0 + 8 * self.shared.distance());
        let Some(mut piece) = Progress::announce(&self.shared, start, until, None) else {
            return Outcome::Done;
        };
        self.marked.start_unknown(bit_of(start));
        let clean = piece.decode_marked(&mut self.marked);
        if let Some(window) = clean.and_then(|()| self.marked.known_window()) {
            let end = piece.end.map_or(start.0, |(end, _)| end.0);
            piece.first_bit = end - end % 8;
            piece.go_to(end / 8);
            self.plain.start_at(bit_of(Cut(end)), &window);
            piece.decode_plain(&mut self.plain, &self.pool);
        }
        piece.finish()
    }

    fn run(&mut self, run: &Run) -> Result<()> {
        let stream = match &mut self.members {
            Some(members) => members,
            none => none.insert(Stream::new(self.shared.coding(), HELPER_WINDOW_BYTES)?),
        };
        let decoded = run::decode(&self.shared, &self.pool, stream, &mut self.window, run);
        self.shared.complete(run, decoded);
        Ok(())
    }
}

/// Bits before `cut` of the byte that it is in.
fn bit_of(cut: Cut) -> u32 {
    let [bit, ..] = cut.0.to_le_bytes();
    (bit & 7).into()
}

impl Drop for Helper<'_> {
    fn drop(&mut self) {
        self.shared.give_back_window(self.window);
    }
}

/// A piece being decoded.
struct Progress<'a> {
    shared: &'a Shared,
    start: Cut,
    /// Where the next piece starts.
    until: Option<Cut>,
    /// Where the piece ends in any case.
    longest: Cut,
    /// Next byte of input, and bit that positions of the decoder count from.
    at: u64,
    first_bit: u64,
    input: Option<(u64, Chunk)>,
    /// Parts that were not handed over yet, and bytes in them and those that were.
    parts: Vec<Part>,
    filled: usize,
    /// Bytes decoded.
    produced: usize,
    /// Where the last whole block ends, and how many bytes come before that.
    end: Option<(Cut, usize)>,
    /// The decoder has refused the stream.
    is_false: bool,
}

/// Why decoding stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The output is full.
    Full,
    /// A block has ended, and the piece goes on.
    Block,
    /// The piece ends where its last whole block does.
    Over,
}

impl<'a> Progress<'a> {
    /// A piece at its start, decoded with `window` if that is known; `None` when nobody wants it.
    fn announce(shared: &'a Shared, start: Cut, longest: Cut, window: Option<Vec<u8>>) -> Option<Self> {
        let Next::On(until) = shared.announce(start, window) else { return None };
        Some(Self {
            shared,
            start,
            until,
            longest,
            at: start.0 / 8,
            first_bit: start.0 - start.0 % 8,
            input: None,
            parts: Vec::new(),
            filled: 0,
            produced: 0,
            end: None,
            is_false: false,
        })
    }

    /// Hands over the rest of the piece.
    fn finish(mut self) -> Outcome {
        self.hand_over();
        if self.end.is_some() {
            return Outcome::Done;
        }
        self.shared.withdraw(self.start, self.is_false);
        if self.is_false { Outcome::Miss } else { Outcome::Done }
    }

    /// Decodes with the window unknown; `Some` when the rest can be decoded as bytes.
    fn decode_marked(&mut self, inflate: &mut Inflate<u16>) -> Option<()> {
        // Units at the end that are bytes.
        let mut known = 0;
        let mut units = self.shared.units()?;
        let step = loop {
            let before = units.filled;
            let (filled, step) = self.step(inflate, units.space());
            units.filled += filled;
            let new = units.units().get(before..).unwrap_or_default();
            let at_end = known_at_end(new);
            known = if at_end == new.len() { known + at_end } else { at_end };
            match step {
                Step::Over => break step,
                Step::Block if known >= WINDOW_BYTES => break step,
                Step::Block if units.filled < READY_UNITS => {}
                Step::Full | Step::Block => {
                    self.add(Part::Marked(units));
                    if step == Step::Block && !self.hand_over() {
                        return None;
                    }
                    units = self.shared.units()?;
                }
            }
        };
        self.add(Part::Marked(units));
        (step == Step::Block && self.hand_over()).then_some(())
    }

    /// Decodes the rest, with the window known.
    fn decode_plain(&mut self, inflate: &mut Inflate<u8>, pool: &Arc<Pool>) {
        while self.shared.plain().is_some() {
            let mut buffer = pool.take();
            let mut filled = 0;
            let step = loop {
                let (now, step) = self.step(inflate, buffer.space().get_mut(filled..).unwrap_or_default());
                filled += now;
                match step {
                    Step::Block if filled < buffer.space().len() / 2 => {}
                    step => break step,
                }
            };
            self.add(Part::Plain(buffer.freeze(filled)));
            if step == Step::Over || (step == Step::Block && !self.hand_over()) {
                return;
            }
        }
    }

    /// Decodes into `output` until that is full or a block ends; how many units.
    fn step<T: Unit>(&mut self, inflate: &mut Inflate<T>, output: &mut [T]) -> (usize, Step) {
        let mut filled = 0;
        loop {
            if !self.refill() {
                return (filled, Step::Over);
            }
            let next = self.end.map_or(self.start, |(end, _)| end).0 + STEP_BITS;
            let until = self.until.map_or(self.longest, |until| until.min(self.longest));
            let pause = until.0.min(next);
            inflate.pause_from(Some(pause.saturating_sub(self.first_bit)));
            let Some((offset, chunk)) = &self.input else { return (filled, Step::Over) };
            let skipped = usize::try_from(self.at - offset).unwrap_or(usize::MAX);
            let mut rest = chunk.get(skipped..).unwrap_or_default();
            let had = rest.len();
            let outcome = inflate.decode(&mut rest, output.get_mut(filled..).unwrap_or_default());
            self.at += (had - rest.len()) as u64;
            let Ok((now, pause)) = outcome else {
                self.is_false = true;
                return (filled, Step::Over);
            };
            filled += now;
            self.produced += now;
            match pause {
                Pause::Input => {}
                Pause::Output if self.is_too_dense() => return (filled, Step::Over),
                Pause::Output => return (filled, Step::Full),
                Pause::Ended => return (filled, Step::Over),
                Pause::Block => {
                    let end = Cut(self.first_bit + inflate.position());
                    self.end = Some((end, self.produced));
                    let is_over = end >= until || self.is_too_dense();
                    return (filled, if is_over { Step::Over } else { Step::Block });
                }
            }
        }
    }

    fn is_too_dense(&self) -> bool {
        is_too_dense(self.at.saturating_sub(self.start.0 / 8), self.produced)
    }

    /// Goes to another byte of the input.
    fn go_to(&mut self, at: u64) {
        self.at = at;
        self.input = None;
    }

    /// Sees to it that there is input; `false` when there is no more. What is ready is handed over before it waits.
    fn refill(&mut self) -> bool {
        let has = |input: &(u64, Chunk)| (input.0..input.0 + input.1.len() as u64).contains(&self.at);
        if self.input.as_ref().is_some_and(has) {
            return true;
        }
        let input = match self.shared.input_of(self.start, self.at) {
            Input::NotYet => {
                self.hand_over();
                self.shared.wait_for_input_of(self.start, self.at)
            }
            input => input,
        };
        self.input = match input {
            Input::Chunk(offset, chunk) => Some((offset, chunk)),
            Input::NotYet | Input::End => None,
        };
        self.input.is_some()
    }

    fn add(&mut self, part: Part) {
        self.filled += part.len();
        self.parts.push(part);
    }

    /// Hands over all parts that were filled; `false` when nobody wants more.
    fn hand_over(&mut self) -> bool {
        // A block may have ended in the part that is being filled.
        let end = self.end.filter(|(_, bytes)| *bytes <= self.filled);
        match self.shared.hand_over(self.start, &mut self.parts, end) {
            Next::On(until) => {
                self.until = until;
                true
            }
            Next::Gone => false,
        }
    }
}
