//! Differential fuzzing: the same bytes or the same refusal as from zlib-rs, however a stream is decoded.
//!
//! Source: RFC 1951.

use super::{Finder, Inflate, Pause, Unit, WINDOW_BYTES, Window, known_at_end};

/// Most bytes compared: enough to cross the window, and the buffers of zlib-rs.
const LIMIT: usize = 1 << 18;

/// Fuzz entry: decodes `data` as a deflate stream in all ways of [`Fuzzer`].
///
/// # Panics
///
/// When anything differs.
pub fn fuzz(data: &[u8]) {
    let seed = u64::from(zlib_rs::crc32::crc32(0, data));
    let mut fuzzer = Fuzzer::new(seed);
    let want = fuzzer.second_opinion(data);
    for (step_in, step_out) in [(usize::MAX, LIMIT), (7, 61), (1 << 10, 1 << 9)] {
        fuzzer.in_steps(data, &want, step_in, step_out);
    }
    fuzzer.at_every_block(data, &want);
    for workers in [2, 3, 8] {
        fuzzer.in_pieces(data, &want, workers);
    }
}

/// Decodes streams in ways drawn by lot, and compares with zlib-rs.
pub struct Fuzzer {
    state: u64,
    zlib: zlib_rs::Inflate,
    inflate: Inflate<u8>,
    other: Inflate<u8>,
    marked: Inflate<u16>,
    finder: Finder,
    output: Vec<u8>,
    units: Vec<u16>,
    joined: u64,
}

/// Result of zlib-rs: bytes, and whether the stream has ended or why it is refused.
struct Opinion {
    plain: Vec<u8>,
    outcome: Result<bool, &'static str>,
}

impl Opinion {
    /// Compares with what came out elsewhere.
    fn check(&self, plain: &[u8], outcome: Result<bool, &'static str>, how: &str) {
        if plain.len() >= LIMIT || self.plain.len() >= LIMIT {
            let common = plain.len().min(self.plain.len());
            assert!(plain.get(..common) == self.plain.get(..common), "other bytes {how}");
            return;
        }
        match (outcome, self.outcome) {
            // zlib-rs goes on after an error and then has no other word for it.
            (Err(_), Err("repeated call with bad state")) => {}
            (got, want) => assert_eq!(got, want, "{how}"),
        }
        if outcome.is_ok() {
            assert!(plain == self.plain, "other bytes {how}");
        }
    }
}

/// Blocks that were decoded with an unknown window.
struct Piece {
    start: u64,
    units: Vec<u16>,
    plain: Vec<u8>,
    /// Where the last whole block ends, and how many units and bytes come before that.
    end: Option<(u64, usize)>,
}

impl Fuzzer {
    /// A fuzzer whose lots depend on `seed` alone.
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed,
            zlib: zlib_rs::Inflate::new(false, 15),
            inflate: Inflate::new(),
            other: Inflate::new(),
            marked: Inflate::new(),
            finder: Finder::new(),
            output: vec![0; LIMIT],
            units: vec![0; LIMIT],
            joined: 0,
        }
    }

    /// Pieces with an unknown window that were put in.
    pub fn joined(&self) -> u64 {
        self.joined
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        // SplitMix64.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let number = (mixed ^ (mixed >> 31)) % (end.max(1) as u64);
        usize::try_from(number).unwrap_or_default()
    }

    /// A number from 1 to 1 MiB, small ones as often as large ones.
    fn step(&mut self) -> usize {
        let bits = self.below(21);
        1 + self.below(1 << bits)
    }

    /// Decodes `data` as a deflate stream in one way.
    ///
    /// # Panics
    ///
    /// When anything differs from what zlib-rs makes of it.
    pub fn run(&mut self, data: &[u8]) {
        let want = self.second_opinion(data);
        match self.below(8) {
            0 => self.in_steps(data, &want, usize::MAX, LIMIT),
            1 | 2 => {
                let (step_in, step_out) = (self.step(), self.step());
                self.in_steps(data, &want, step_in, step_out);
            }
            3 => self.at_every_block(data, &want),
            _ => {
                let workers = 2 + self.below(7);
                self.in_pieces(data, &want, workers);
            }
        }
    }

    fn second_opinion(&mut self, data: &[u8]) -> Opinion {
        let zlib = &mut self.zlib;
        zlib.reset(false);
        let outcome = zlib.decompress(data, &mut self.output, zlib_rs::InflateFlush::NoFlush);
        let outcome = match outcome {
            Ok(status) => Ok(status == zlib_rs::Status::StreamEnd),
            Err(error) => Err(zlib.error_message().unwrap_or(error.as_str())),
        };
        let len = usize::try_from(zlib.total_out()).unwrap_or(LIMIT);
        Opinion { plain: self.output.get(..len).unwrap_or_default().to_vec(), outcome }
    }

    /// In steps of `step_in` bytes of input and `step_out` bytes of output.
    fn in_steps(&mut self, data: &[u8], want: &Opinion, step_in: usize, step_out: usize) {
        let step_out = step_out.min(LIMIT);
        let inflate = &mut self.inflate;
        inflate.reset();
        inflate.pause_from(None);
        let output = self.output.get_mut(..step_out).unwrap_or_default();
        let mut plain = Vec::new();
        let mut outcome = Ok(false);
        'stream: for mut piece in data.chunks(step_in) {
            loop {
                match inflate.decode(&mut piece, output) {
                    Ok((filled, pause)) => {
                        plain.extend_from_slice(output.get(..filled).unwrap_or_default());
                        match pause {
                            Pause::Ended => outcome = Ok(true),
                            Pause::Input => break assert!(piece.is_empty(), "input was left"),
                            Pause::Output if plain.len() < LIMIT => continue,
                            Pause::Output | Pause::Block => {}
                        }
                    }
                    Err(error) => outcome = Err(error.what.as_str()),
                }
                break 'stream;
            }
        }
        want.check(&plain, outcome, &format!("in steps of {step_in} and {step_out}"));
    }

    /// Starts at every block of a valid stream, with its window.
    fn at_every_block(&mut self, data: &[u8], want: &Opinion) {
        if want.outcome != Ok(true) || want.plain.len() >= LIMIT {
            return;
        }
        let Self { inflate, other, output, .. } = self;
        inflate.reset();
        inflate.pause_at_blocks();
        other.pause_from(None);
        let (mut input, mut done) = (data, 0);
        while let Ok((filled, Pause::Block)) = inflate.decode(&mut input, output) {
            done += filled;
            let (byte, bit) = (inflate.position() / 8, inflate.position() % 8);
            let mut rest = usize::try_from(byte).ok().and_then(|byte| data.get(byte..)).unwrap_or_default();
            other.start_at(u32::try_from(bit).unwrap_or_default(), &inflate.window());
            let again = other.decode(&mut rest, output);
            let expected = want.plain.len().saturating_sub(done);
            assert_eq!(again, Ok((expected, Pause::Ended)), "from the block at byte {byte}, bit {bit}");
            assert!(
                output.get(..expected) == want.plain.get(done..),
                "from the block at byte {byte}, bit {bit}"
            );
        }
    }

    /// Cuts the stream for `workers` decoders, each of which starts at a block, or what may be one, without its window.
    fn in_pieces(&mut self, data: &[u8], want: &Opinion, workers: usize) {
        let bits = 8 * data.len();
        let blocks = self.blocks(data);
        let mut starts: Vec<u64> = Vec::new();
        for _ in 1..workers {
            let from = self.below(bits) as u64;
            starts.extend(match self.below(8) {
                // Hardly ever a block.
                0 => Some(from),
                1..=4 => blocks.iter().copied().find(|block| *block >= from),
                _ => self.finder.find(data, from..bits as u64),
            });
        }
        starts.sort_unstable();
        starts.dedup();
        let ends: Vec<_> = starts.iter().skip(1).copied().chain([u64::MAX]).collect();
        let mut pieces = Vec::new();
        for (start, until) in starts.into_iter().zip(ends) {
            pieces.push(self.piece(data, start, until));
        }
        self.join(data, want, pieces);
    }

    /// Where blocks of the stream start.
    fn blocks(&mut self, data: &[u8]) -> Vec<u64> {
        let Self { inflate, output, .. } = self;
        inflate.reset();
        inflate.pause_at_blocks();
        let (mut input, mut blocks, mut total) = (data, Vec::new(), 0);
        while let Ok((filled, pause)) = inflate.decode(&mut input, output) {
            total += filled;
            match pause {
                Pause::Block => blocks.push(inflate.position()),
                Pause::Output if total < LIMIT => {}
                Pause::Output | Pause::Input | Pause::Ended => break,
            }
        }
        blocks
    }

    /// Decodes from `start` until a block ends at `until` or behind.
    fn piece(&mut self, data: &[u8], start: u64, until: u64) -> Piece {
        let mut piece = Piece { start, units: Vec::new(), plain: Vec::new(), end: None };
        let [bit, ..] = start.to_le_bytes();
        self.marked.start_unknown((bit & 7).into());
        let (step, mut units) = (self.step(), std::mem::take(&mut self.units));
        let room = self.step().min(units.len());
        let window = blocks_of(
            &mut self.marked,
            data,
            start,
            until,
            step,
            units.get_mut(..room).unwrap_or_default(),
            |new, end| {
                piece.units.extend_from_slice(new);
                if end.is_some() {
                    piece.end = end.map(|end| (end, piece.units.len()));
                }
                (end.is_some() && known_at_end(&piece.units) >= WINDOW_BYTES) || piece.units.len() >= LIMIT
            },
        );
        self.units = units;
        let (Some(()), Some((from, _))) = (window, piece.end) else { return piece };
        let Some(window) = self.marked.known_window() else { return piece };
        let [bit, ..] = from.to_le_bytes();
        self.other.start_at((bit & 7).into(), &window);
        let mut output = std::mem::take(&mut self.output);
        blocks_of(
            &mut self.other,
            data,
            from,
            until,
            step,
            output.get_mut(..room).unwrap_or_default(),
            |new, end| {
                piece.plain.extend_from_slice(new);
                if end.is_some() {
                    piece.end = end.map(|end| (end, piece.units.len() + piece.plain.len()));
                }
                piece.plain.len() >= LIMIT
            },
        );
        self.output = output;
        piece
    }

    /// Decodes in order, and takes the pieces that it comes to.
    fn join(&mut self, data: &[u8], want: &Opinion, pieces: Vec<Piece>) {
        let step = self.step();
        let Self { inflate, output, joined, .. } = self;
        inflate.reset();
        let mut plain = Vec::new();
        let mut outcome = Ok(false);
        let mut pieces = pieces.into_iter().peekable();
        let mut taken = 0;
        loop {
            let at = inflate.position();
            while pieces.next_if(|piece| piece.start < at).is_some() {}
            if inflate.is_between_blocks()
                && let Some(piece) = pieces.next_if(|piece| piece.start == at)
                && let Some((end, len)) = piece.end
            {
                let window = Window::new(&inflate.window());
                let marked = piece.units.get(..len.min(piece.units.len())).unwrap_or_default();
                if window.knows(marked) {
                    let mut bytes = vec![0; marked.len()];
                    let mut done = 0;
                    while let (Some(units), Some(room)) = (marked.get(done..), bytes.get_mut(done..))
                        && !units.is_empty()
                    {
                        let now = units.len().min(step);
                        done += window.resolve(units.get(..now).unwrap_or_default(), room);
                    }
                    bytes.extend(piece.plain.get(..len - marked.len()).unwrap_or_default());
                    inflate.add(&bytes);
                    plain.append(&mut bytes);
                    *joined += 1;
                    inflate.go_on_at(end);
                    taken = usize::try_from(end / 8).unwrap_or(usize::MAX);
                    continue;
                }
            }
            inflate.pause_from(pieces.peek().map(|piece| piece.start));
            let rest = data.get(taken..).unwrap_or_default();
            let mut input = rest.get(..step).unwrap_or(rest);
            let (had, is_all) = (input.len(), input.len() == rest.len());
            let decoded = inflate.decode(&mut input, output);
            taken += had - input.len();
            match decoded {
                Ok((filled, pause)) => {
                    plain.extend_from_slice(output.get(..filled).unwrap_or_default());
                    match pause {
                        Pause::Ended => outcome = Ok(true),
                        Pause::Input if is_all => {}
                        Pause::Output if plain.len() >= LIMIT => {}
                        Pause::Block | Pause::Input | Pause::Output => continue,
                    }
                }
                Err(error) => outcome = Err(error.what.as_str()),
            }
            break;
        }
        want.check(&plain, outcome, "in pieces");
    }
}

/// Decodes blocks of `data` from bit `start` on, in steps of `step` bytes. Gives all output to `take`, and where a block
/// has ended. `Some` when `take` wants no more.
fn blocks_of<T: Unit>(
    inflate: &mut Inflate<T>,
    data: &[u8],
    start: u64,
    until: u64,
    step: usize,
    output: &mut [T],
    mut take: impl FnMut(&[T], Option<u64>) -> bool,
) -> Option<()> {
    let first = usize::try_from(start / 8).ok()?;
    inflate.pause_at_blocks();
    for mut input in data.get(first..)?.chunks(step) {
        loop {
            let (filled, pause) = inflate.decode(&mut input, output).ok()?;
            let end = (pause == Pause::Block).then(|| 8 * (start / 8) + inflate.position());
            if take(output.get(..filled)?, end) {
                return Some(());
            }
            match pause {
                Pause::Ended => return None,
                Pause::Block if end.is_some_and(|end| end >= until) => return None,
                Pause::Input => break,
                Pause::Block | Pause::Output => {}
            }
        }
    }
    None
}
