//! The corners of RFC 1951, and zlib-rs as the second opinion on everything else.

use proptest::prelude::*;

use super::{inflate::LENGTH_ORDER, *};

/// Writes a stream bit by bit.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    bits: usize,
}

impl Writer {
    /// Numbers, and extra bits: the lowest bit first.
    fn number(&mut self, value: u32, bits: usize) -> &mut Self {
        for bit in 0..bits {
            if self.bits.is_multiple_of(8) {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().unwrap() |= u8::try_from((value >> bit) & 1).unwrap() << (self.bits % 8);
            self.bits += 1;
        }
        self
    }

    /// A code: the highest bit first.
    fn code(&mut self, value: u32, bits: usize) -> &mut Self {
        for bit in (0..bits).rev() {
            self.number((value >> bit) & 1, 1);
        }
        self
    }

    fn align(&mut self) -> &mut Self {
        while !self.bits.is_multiple_of(8) {
            self.number(0, 1);
        }
        self
    }

    /// The header of a block with codes of these lengths, all of which are written plainly with four bits.
    fn codes(&mut self, last: bool, literals: &[u8], distances: &[u8]) -> &mut Self {
        self.number(last.into(), 1).number(2, 2);
        self.number(u32::try_from(literals.len()).unwrap() - 257, 5);
        self.number(u32::try_from(distances.len()).unwrap() - 1, 5).number(15, 4);
        for symbol in LENGTH_ORDER {
            self.number(if symbol < 16 { 4 } else { 0 }, 3);
        }
        for length in literals.iter().chain(distances) {
            self.code((*length).into(), 4);
        }
        self
    }

    fn decode(&self) -> Result<Vec<u8>, DeflateError> {
        fuzz(&self.bytes);
        decode(&self.bytes)
    }
}

fn decode(stream: &[u8]) -> Result<Vec<u8>, DeflateError> {
    let (mut inflate, mut output) = (Inflate::<u8>::new(), vec![0; 1 << 20]);
    let (filled, pause) = inflate.decode(&mut &*stream, &mut output)?;
    assert_eq!(pause, Pause::Ended);
    output.truncate(filled);
    Ok(output)
}

/// Code lengths with these symbols set.
fn lengths(len: usize, set: &[(usize, u8)]) -> Vec<u8> {
    let mut lengths = vec![0; len];
    for (symbol, length) in set {
        lengths[*symbol] = *length;
    }
    lengths
}

fn compress(bytes: &[u8], level: u32) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn fault(outcome: Result<Vec<u8>, DeflateError>) -> Fault {
    outcome.unwrap_err().what
}

#[test]
fn empty_blocks_of_every_type_are_passed_over() {
    let mut stream = Writer::default();
    stream.number(0, 3).align().number(0xffff_0000, 32); // stored
    stream.number(0, 1).number(1, 2).code(0, 7); // fixed codes
    stream.codes(false, &lengths(257, &[(256, 1)]), &[0]).code(0, 1);
    stream.number(1, 1).number(1, 2).code(0, 7);
    assert_eq!(stream.decode().unwrap(), b"");
}

#[test]
fn a_tree_of_one_symbol_is_one_bit_and_its_other_bit_is_nothing() {
    // Literals 'a' and the end, and distance 1 alone.
    let literals = lengths(258, &[(97, 1), (256, 2), (257, 2)]);
    let block = |distance: u32| {
        let mut stream = Writer::default();
        stream.codes(true, &literals, &[1]).code(0, 1).code(3, 2).code(distance, 1).code(2, 2);
        stream
    };
    assert_eq!(block(0).decode().unwrap(), b"aaaa");
    assert_eq!(fault(block(1).decode()), Fault::Distance);

    let mut stream = Writer::default();
    stream.codes(true, &lengths(257, &[(256, 1)]), &[0]).code(1, 1).number(0, 32);
    assert_eq!(fault(stream.decode()), Fault::Literal);
}

#[test]
fn a_match_without_any_distance_code_is_refused() {
    let literals = lengths(258, &[(97, 1), (256, 2), (257, 2)]);
    let mut stream = Writer::default();
    stream.codes(true, &literals, &[0]).code(0, 1).code(3, 2).number(0, 16);
    assert_eq!(fault(stream.decode()), Fault::Distance);
}

#[test]
fn over_and_under_subscribed_codes_are_refused() {
    let good = lengths(257, &[(97, 1), (256, 1)]);
    for (literals, distances, want) in [
        (lengths(257, &[(97, 1), (98, 1), (256, 1)]), vec![0], Fault::LiteralLengths),
        (lengths(257, &[(97, 2), (256, 2)]), vec![0], Fault::LiteralLengths),
        (lengths(257, &[(256, 2)]), vec![0], Fault::LiteralLengths),
        (lengths(257, &[(97, 1), (98, 1)]), vec![0], Fault::NoEnd),
        (good.clone(), vec![1, 1, 1], Fault::Distances),
        (good.clone(), vec![2, 2], Fault::Distances),
        (good.clone(), vec![2], Fault::Distances),
    ] {
        let mut stream = Writer::default();
        stream.codes(true, &literals, &distances).number(0, 32);
        assert_eq!(fault(stream.decode()), want, "{distances:?}");
    }
    // The code of the code lengths must be complete: one symbol is not enough. None at all is one bit for each length 0.
    for (length, want) in [(1, Fault::CodeLengths), (0, Fault::NoEnd)] {
        let mut stream = Writer::default();
        stream.number(5, 3).number(0, 10).number(0, 4).number(length, 3).number(0, 9);
        for _ in 0..40 {
            stream.number(0, 8);
        }
        assert_eq!(fault(stream.decode()), want);
    }
}

#[test]
fn lengths_have_their_two_spellings_of_258() {
    // Symbol 284 with all extra bits is 258 too, and so is 285.
    for (symbol, extra) in [(284_u32, Some(31)), (285, None)] {
        let mut stream = Writer::default();
        stream.number(3, 3).code(0x30 + 97, 8).code(0xc0 + symbol - 280, 8);
        if let Some(extra) = extra {
            stream.number(extra, 5);
        }
        stream.code(0, 5).code(0, 7);
        assert_eq!(stream.decode().unwrap(), vec![b'a'; 259]);
    }
}

#[test]
fn symbols_without_a_meaning_are_refused_where_they_are_met() {
    for symbol in [286_u32, 287] {
        let mut stream = Writer::default();
        stream.number(3, 3).code(0xc0 + symbol - 280, 8).number(0, 32);
        assert_eq!(stream.decode(), Err(DeflateError { what: Fault::Literal, bit: 11 }));
    }
    for distance in [30, 31] {
        let mut stream = Writer::default();
        stream.number(3, 3).code(0x30 + 97, 8).code(1, 7).code(distance, 5).number(0, 32);
        assert_eq!(stream.decode(), Err(DeflateError { what: Fault::Distance, bit: 23 }));
    }
}

#[test]
fn a_distance_past_the_start_is_refused() {
    for (distance, good) in [(0, true), (1, false), (29, false)] {
        let mut stream = Writer::default();
        stream.number(3, 3).code(0x30 + 97, 8).code(1, 7).code(distance, 5);
        stream.number(0, if distance == 29 { 13 } else { 0 }).code(0, 7);
        match stream.decode() {
            Ok(bytes) => assert!(good && bytes == b"aaaa"),
            Err(error) => assert!(!good && error.what == Fault::TooFar, "{distance}"),
        }
    }
}

#[test]
fn too_many_codes_and_repetitions_of_nothing_are_refused() {
    for (literals, distances) in [(30, 0), (31, 0), (0, 30), (0, 31)] {
        let mut stream = Writer::default();
        stream.number(5, 3).number(literals, 5).number(distances, 5).number(0, 32);
        assert_eq!(stream.decode(), Err(DeflateError { what: Fault::Counts, bit: 17 }));
    }
    let header = |first: u32| {
        let mut stream = Writer::default();
        stream.number(5, 3).number(0, 5).number(0, 5).number(0, 4);
        stream.number(1, 3).number(0, 3).number(1, 3).number(0, 3); // codes for 16 and 18
        stream.code(first, 1).number(127, 7);
        for _ in 0..40 {
            stream.code(1, 1).number(127, 7);
        }
        stream
    };
    assert_eq!(fault(header(0).decode()), Fault::Repeat); // of the length before the first
    assert_eq!(fault(header(1).decode()), Fault::Repeat); // past the last one
}

#[test]
fn block_type_3_and_wrong_stored_lengths_are_refused() {
    assert_eq!(decode(&[0b111, 0]), Err(DeflateError { what: Fault::BlockType, bit: 3 }));
    assert_eq!(decode(&[1, 1, 0, 1, 0]), Err(DeflateError { what: Fault::StoredLength, bit: 40 }));
    assert_eq!(decode(&[1, 1, 0, 0xfe, 0xff, 7]).unwrap(), [7]);
}

/// Text, runs and noise: matches near and far, long codes, stored blocks.
fn mixed(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut bytes = Vec::new();
    while bytes.len() < len {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let [_, kind, a, b] = state.to_le_bytes();
        match kind % 5 {
            0 => bytes.extend(format!("entry {a} of {b}; ").bytes()),
            1 => bytes.extend(std::iter::repeat_n(a, usize::from(b) * 3)),
            2 => {
                let from = bytes.len().saturating_sub(usize::from(a) * 131);
                bytes.extend_from_within(from..(from + usize::from(b)).min(bytes.len()));
            }
            3 => bytes.extend([a, b].repeat(usize::from(a % 40))),
            _ => bytes.extend((0..100).map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_le_bytes()[3]
            })),
        }
    }
    bytes.truncate(len);
    bytes
}

#[test]
fn a_stream_cut_at_any_byte_gives_what_its_bytes_hold_and_asks_for_more() {
    let plain = mixed(8_000);
    for level in [0, 1, 6] {
        let stream = compress(&plain, level);
        let mut output = vec![0; plain.len() + 1];
        for cut in 0..stream.len() {
            let mut inflate = Inflate::<u8>::new();
            let (first, second) = stream.split_at(cut);
            let (before, pause) = inflate.decode(&mut &*first, &mut output).unwrap();
            assert_eq!(pause, Pause::Input, "level {level}, {cut} bytes");
            let (after, pause) = inflate.decode(&mut &*second, &mut output[before..]).unwrap();
            assert_eq!(pause, Pause::Ended);
            assert!(output[..before + after] == plain, "level {level}, {cut} bytes");
        }
    }
}

#[test]
fn every_step_of_input_and_output_gives_the_same_bytes() {
    let plain = mixed(90_000);
    for level in [0, 1, 9] {
        let stream = compress(&plain, level);
        for (step_in, step_out) in
            [(1, 1), (1, 1 << 20), (2, 3), (17, 400), (31, 293), (1 << 20, 1), (4096, 33_000)]
        {
            let mut inflate = Inflate::<u8>::new();
            let (mut got, mut output) = (Vec::new(), vec![0; step_out]);
            let mut ended = false;
            for mut piece in stream.chunks(step_in) {
                loop {
                    let (filled, pause) = inflate.decode(&mut piece, &mut output).unwrap();
                    got.extend_from_slice(&output[..filled]);
                    match pause {
                        Pause::Output => {}
                        Pause::Input => break,
                        Pause::Block => unreachable!(),
                        Pause::Ended => {
                            ended = true;
                            break;
                        }
                    }
                }
            }
            assert!(ended && got == plain, "level {level}, steps of {step_in} and {step_out}");
        }
        fuzz(&stream);
    }
}

#[test]
fn input_behind_the_stream_is_left() {
    for level in [0, 1, 6] {
        for len in [0, 1, 1000, 100_000] {
            let mut stream = compress(&mixed(len), level);
            let end = stream.len();
            stream.extend([0xff; 40]);
            let mut input = &*stream;
            let mut inflate = Inflate::<u8>::new();
            let mut output = vec![0; len + 1];
            assert_eq!(inflate.decode(&mut input, &mut output), Ok((len, Pause::Ended)));
            assert_eq!((input.len(), inflate.position().div_ceil(8)), (40, end as u64));
        }
    }
}

#[test]
fn pieces_with_an_unknown_window_are_put_in_where_they_belong() {
    use std::io::Write;
    for level in [4, 6] {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(level));
        for bytes in mixed(200_000).chunks(9000) {
            encoder.write_all(bytes).unwrap();
            // Ends a block.
            encoder.flush().unwrap();
        }
        let stream = encoder.finish().unwrap();
        let mut fuzzer = Fuzzer::new(1);
        for _ in 0..60 {
            fuzzer.run(&stream);
        }
        assert!(fuzzer.joined() > 20, "level {level}: {}", fuzzer.joined());
    }
}

#[test]
fn a_block_is_found_where_one_starts_and_hardly_anywhere_else() {
    let stream = compress(&mixed(2_000_000), 6);
    let mut inflate = Inflate::<u8>::new();
    inflate.pause_at_blocks();
    let (mut input, mut output, mut starts) = (&stream[..], vec![0; 2_000_001], vec![0]);
    while let Ok((_, Pause::Block)) = inflate.decode(&mut input, &mut output) {
        starts.push(inflate.position());
    }
    let (mut finder, mut found, mut from) = (Finder::new(), Vec::new(), 0);
    while let Some(bit) = finder.find(&stream, from..8 * stream.len() as u64) {
        found.push(bit);
        from = bit + 1;
    }
    // Stored blocks, those of fixed codes and the last one are not looked for.
    assert!(found.iter().all(|bit| starts.contains(bit)), "{found:?}, but {starts:?}");
    assert!(found.len() > 3 && found.len() * 2 > starts.len(), "{found:?} of {starts:?}");
}

#[test]
fn units_become_the_bytes_that_they_stand_for_in_any_steps() {
    let window: Vec<u8> = (0..WINDOW_BYTES).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
    let units: Vec<u16> =
        (0..5000_u16).map(|at| if at / 100 % 3 == 0 { at % 256 } else { at * 13 }).collect();
    let byte = |unit: &u16| u8::try_from(*unit).unwrap_or_else(|_| window[usize::from(*unit) - 256]);
    // Numbers behind the window stand for nothing.
    let units: Vec<u16> = units.into_iter().filter(|unit| usize::from(*unit) < 256 + WINDOW_BYTES).collect();
    let want: Vec<u8> = units.iter().map(byte).collect();
    let known = Window::new(&window);
    for (step, room) in [(1, 1), (31, 32), (32, 31), (64, 100), (100, 64), (5000, 5000), (7, 5000)] {
        let (mut got, mut rest) = (Vec::<u8>::new(), &units[..]);
        while !rest.is_empty() {
            let mut output = vec![0; room];
            let done = known.resolve(&rest[..step.min(rest.len())], &mut output);
            got.extend(&output[..done]);
            rest = &rest[done..];
        }
        assert!(got == want, "{step} units into {room} bytes");
    }
    assert!(known.knows(&units));
    let short = Window::new(&window[..1000]);
    let first = u16::try_from(256 + WINDOW_BYTES - 1000).unwrap();
    assert!(short.knows(&[0, 255, first]) && !short.knows(&[255, first - 1]) && !short.knows(&[256]));
    assert_eq!((known_at_end(&[1, 256, 3, 255]), known_at_end(&[1, 2]), known_at_end(&[300])), (2, 2, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn damaged_streams_are_refused_as_by_zlib_rs(
        len in 1_usize..20_000, level in 0_u32..10, at in any::<prop::sample::Index>(), value in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut stream = compress(&mixed(len), level);
        fuzz(&stream);
        let place = at.index(stream.len());
        stream[place] ^= value;
        fuzz(&stream);
        stream.truncate(cut.index(stream.len()));
        fuzz(&stream);
    }

    #[test]
    fn any_bytes_are_refused_as_by_zlib_rs(mut bytes in proptest::collection::vec(any::<u8>(), 1..400), kind in 0_u8..3) {
        bytes[0] = bytes[0] & 0xf8 | kind << 1;
        fuzz(&bytes);
    }
}

/// A point of an overlaybd index.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Point {
    /// Offset in what comes out.
    plain: usize,
    /// First whole byte behind it in the stream, and how many bits of the one before belong to it.
    byte: usize,
    bits: usize,
    /// The 32768 bytes before.
    window: Vec<u8>,
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

fn unpack(stream: &[u8]) -> Vec<u8> {
    use std::io::Read;
    let mut plain = Vec::new();
    flate2::read::ZlibDecoder::new(stream).read_to_end(&mut plain).unwrap();
    plain
}

fn points_of(index: &[u8]) -> Vec<Point> {
    let (start, len) = (number(&index[313..321]), number(&index[321..329]));
    let table = unpack(&index[start..start + len]);
    let point = |entry: &[u8]| {
        let (window, window_len) = (number(&entry[16..24]), number(&entry[25..29]));
        Point {
            plain: number(&entry[..8]),
            byte: number(&entry[8..16]),
            bits: entry[24].into(),
            window: unpack(&index[window..window + window_len]),
        }
    };
    table.chunks(29).map(point).collect()
}

/// Indexed by overlaybd, see tests/fixtures/gzindex/README.md.
#[test]
fn pauses_at_blocks_give_the_points_of_an_overlaybd_index() {
    let blob = include_bytes!("../../../tests/fixtures/gzindex/hex.gz");
    let want = points_of(include_bytes!("../../../tests/fixtures/gzindex/hex.gz_idx"));
    let mut plain = vec![0; 1_300_001];
    let (mut input, mut done) = (&blob[10..], 0);
    let mut inflate = Inflate::<u8>::new();
    inflate.pause_at_blocks();
    let mut blocks = Vec::new();
    loop {
        let end = 80 + usize::try_from(inflate.position()).unwrap();
        let mut window = vec![0; WINDOW_BYTES];
        let known = inflate.window();
        window[WINDOW_BYTES - known.len()..].copy_from_slice(&known);
        blocks.push(Point {
            plain: done,
            byte: end.div_ceil(8),
            bits: end.next_multiple_of(8) - end,
            window,
        });
        let (filled, pause) = inflate.decode(&mut input, &mut plain[done..]).unwrap();
        done += filled;
        if pause == Pause::Ended {
            break;
        }
        assert_eq!(pause, Pause::Block);
    }
    assert_eq!(done, 1_300_000);

    // The first block, and the last one before each MiB.
    let first = blocks.first().cloned();
    let last = blocks.iter().rposition(|block| block.plain <= 1 << 20).map(|at| blocks[at].clone());
    assert_eq!([first, last].into_iter().flatten().collect::<Vec<_>>(), want);

    for Point { plain: from, byte, bits, window } in blocks.iter().step_by(7).chain(&want) {
        let mut inflate = Inflate::<u8>::new();
        let mut input = &blob[byte - usize::from(*bits > 0)..];
        inflate.start_at(u32::try_from((8 - bits) % 8).unwrap(), window);
        let mut again = vec![0; done - from + 1];
        assert_eq!(inflate.decode(&mut input, &mut again), Ok((done - from, Pause::Ended)));
        assert!(again[..done - from] == plain[*from..done], "from {from}");
    }
}
