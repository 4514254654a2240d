//! zstd: any number of frames, with skippable frames anywhere.
//!
//! Reads every frame header before libzstd sees it. So the window is known, and refused or charged
//! for, before memory is allocated, and the result does not depend on how the input is cut. libzstd
//! checks blocks, content sizes and checksums.
//!
//! Source: RFC 8878, sections 3.1.1 (frames) and 3.1.2 (skippable frames).

use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective, get_error_name};

use super::{decoder::Decoder, error::CodecError};

const MAGIC: u32 = 0xfd2f_b528;
/// First of the sixteen magic numbers of skippable frames; the other fifteen follow it.
const MAGIC_SKIPPABLE: u32 = 0x184d_2a50;

/// True when a stream that starts with `magic` consists of zstd frames.
pub(super) fn is_magic(magic: u32) -> bool {
    magic == MAGIC || magic & !0xf == MAGIC_SKIPPABLE
}

/// Longest header: magic number, descriptor, window, dictionary id of 4 bytes and content size of 8
/// bytes.
const HEADER_MAX: usize = 4 + 1 + 1 + 4 + 8;

/// Frame header, little-endian:
///
/// | offset | size | field             | meaning                                                  |
/// |-------:|-----:|-------------------|----------------------------------------------------------|
/// |      0 |    4 | magic             | 0xfd2fb528                                               |
/// |      4 |    1 | descriptor        | bits 6-7: size of the content size; 5: single segment; 3: reserved; 2: checksum; 0-1: size of the dictionary id |
/// |      5 |    1 | window            | exponent (5 bits) and eighths; absent in a single segment |
/// |        | 0-4  | dictionary id     |                                                          |
/// |        | 0-8  | content size      | plus 256 when it has two bytes; the window of a single segment |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FrameHeader {
    window_bytes: u64,
    content_bytes: Option<u64>,
    dictionary: u32,
    reserved: bool,
}

impl FrameHeader {
    /// Length in bytes of the header that starts with `head`; a lower bound while `head` lacks the
    /// descriptor.
    fn len(head: &[u8]) -> usize {
        let Some(descriptor) = head.get(4) else { return 5 };
        let single_segment = descriptor & 0x20 != 0;
        let content_size = match descriptor >> 6 {
            0 => usize::from(single_segment),
            1 => 2,
            2 => 4,
            _ => 8,
        };
        5 + usize::from(!single_segment) + dictionary_len(*descriptor) + content_size
    }

    /// Reads a header of exactly [`len`](Self::len) bytes.
    fn decode(head: &[u8]) -> Option<Self> {
        let descriptor = *head.get(4)?;
        let mut at = 5;
        let mut window_bytes = 0;
        let single_segment = descriptor & 0x20 != 0;
        if !single_segment {
            let window = head.get(at)?;
            let base = 1_u64 << (10 + (window >> 3));
            window_bytes = base + base / 8 * u64::from(window & 7);
            at += 1;
        }
        let dictionary = head.get(at..at + dictionary_len(descriptor))?;
        let content_size = head.get(at + dictionary.len()..)?;
        let bias = if content_size.len() == 2 { 256 } else { 0 };
        let content_bytes =
            (!content_size.is_empty()).then(|| little_endian(content_size).saturating_add(bias));
        if single_segment {
            window_bytes = content_bytes?;
        }
        Some(Self {
            window_bytes,
            content_bytes,
            dictionary: u32::try_from(little_endian(dictionary)).ok()?,
            reserved: descriptor & 8 != 0,
        })
    }
}

fn dictionary_len(descriptor: u8) -> usize {
    match descriptor & 3 {
        3 => 4,
        len => len.into(),
    }
}

/// Reads up to eight bytes as a number.
fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Goes from frame to frame without decoding them: every block says how long it is.
#[derive(Default)]
pub(super) struct FrameWalk {
    /// Bytes that were walked over.
    at: u64,
    /// Bytes to pass over before the next field.
    skip: u64,
    field: [u8; HEADER_MAX],
    gathered: usize,
    /// Inside a frame, whether a checksum comes behind its last block.
    blocks: Option<bool>,
    /// No frame is where one should be.
    is_lost: bool,
}

impl FrameWalk {
    /// Walks over the next bytes; `found` gets the offset of each frame, skippable or not, as soon as its first byte is
    /// there.
    pub(super) fn push(&mut self, mut bytes: &[u8], found: &mut dyn FnMut(u64)) {
        while !bytes.is_empty() && !self.is_lost {
            if self.skip > 0 {
                let step = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                bytes = bytes.get(step..).unwrap_or_default();
                self.skip -= step as u64;
                self.at += step as u64;
                continue;
            }
            if self.gathered == 0 && self.blocks.is_none() {
                found(self.at);
            }
            // No field is whole before all of its bytes are there, and few bytes are gathered at all.
            let Some((byte, rest)) = bytes.split_first() else { return };
            if let Some(slot) = self.field.get_mut(self.gathered) {
                *slot = *byte;
            }
            self.gathered += 1;
            self.at += 1;
            bytes = rest;
            self.step();
        }
    }

    /// Goes on behind the field, if it is whole.
    fn step(&mut self) {
        let field = self.field.get(..self.gathered).unwrap_or_default();
        if let Some(has_checksum) = self.blocks {
            let Some([b0, b1, b2]) = field.first_chunk() else { return };
            let header = u32::from_le_bytes([*b0, *b1, *b2, 0]);
            let (is_last, kind, size) = (header & 1 == 1, header >> 1 & 3, u64::from(header >> 3));
            // A block of one byte repeated holds that byte.
            self.skip = if kind == 1 { 1 } else { size };
            self.is_lost = kind == 3;
            if is_last {
                self.skip += if has_checksum { 4 } else { 0 };
                self.blocks = None;
            }
            self.gathered = 0;
            return;
        }
        let Some(magic) = field.first_chunk().map(|magic| u32::from_le_bytes(*magic)) else { return };
        if magic == MAGIC {
            if self.gathered > 4 && self.gathered == FrameHeader::len(field) {
                self.blocks = field.get(4).map(|descriptor| descriptor & 4 != 0);
                self.gathered = 0;
            }
        } else if !is_magic(magic) {
            self.is_lost = true;
        } else if let Some(len) = field.get(4..).and_then(<[u8]>::first_chunk) {
            self.skip = u32::from_le_bytes(*len).into();
            self.gathered = 0;
        }
    }
}

/// Decoder of zstd streams.
pub struct Zstd {
    context: DCtx<'static>,
    limit: u64,
    state: State,
    head: [u8; HEADER_MAX],
    gathered: usize,
    /// Largest window of the frames so far, in bytes.
    window_bytes: u64,
    frames: bool,
    /// Content length that the current frame's header declares, then the bytes decoded so far.
    declared: Option<u64>,
    produced: u64,
    /// Number of compressed bytes taken so far, then the offset of the current frame.
    taken: u64,
    frame: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the header of a frame, or at the end of the stream.
    Header,
    /// The header is complete and its window known. libzstd has not seen it yet.
    Ready,
    /// Inside a frame, after its header.
    Body,
    /// Inside a skippable frame with this many bytes left.
    Skip(u32),
}

impl Zstd {
    /// Decoder at the start of a stream. It refuses frames with windows above `limit` bytes.
    /// Errors: [`CodecError::Memory`].
    pub fn new(limit: u64) -> Result<Self, CodecError> {
        let mut context = DCtx::try_create().ok_or(CodecError::Memory)?;
        // libzstd's own limit, behind the check of the header: the next power of two that libzstd
        // knows.
        let log = limit.checked_next_power_of_two().map_or(31, u64::ilog2).clamp(10, 31);
        context.set_parameter(DParameter::WindowLogMax(log)).map_err(|_code| CodecError::Memory)?;
        Ok(Self {
            context,
            limit,
            state: State::Header,
            head: [0; HEADER_MAX],
            gathered: 0,
            window_bytes: 0,
            frames: false,
            declared: None,
            produced: 0,
            taken: 0,
            frame: 0,
        })
    }

    /// Starts over at a frame that is not the first one: after it the stream may end.
    pub fn restart(&mut self) {
        // A session alone can always be reset.
        let _ = self.context.reset(ResetDirective::SessionOnly);
        self.state = State::Header;
        self.gathered = 0;
        self.go_on_at(0);
    }

    /// Compressed bytes taken so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether the decoder stands between two frames.
    pub fn is_between_frames(&self) -> bool {
        self.state == State::Header && self.gathered == 0
    }

    /// Where the last whole frame ends, which is the start of this one, and how many bytes were given out since.
    pub fn last_end(&self) -> (u64, u64) {
        if self.is_between_frames() { (self.taken, 0) } else { (self.frame, self.produced) }
    }

    /// Refuses frames with windows above `limit` bytes from now on; the limit that there was.
    pub fn set_limit(&mut self, limit: u64) -> u64 {
        std::mem::replace(&mut self.limit, limit)
    }

    /// Goes on at another frame, when this decoder stands between two. All between them was decoded by another one.
    pub fn go_on_at(&mut self, byte: u64) {
        self.taken = byte;
        self.frames = true;
    }

    fn take<'a>(&mut self, input: &mut &'a [u8], len: usize) -> &'a [u8] {
        let (bytes, rest) = input.split_at_checked(len).unwrap_or((input, &[]));
        *input = rest;
        self.taken = self.taken.saturating_add(bytes.len() as u64);
        bytes
    }

    /// Moves input into the header until it has `len` bytes. Returns true when it has.
    fn gather(&mut self, input: &mut &[u8], len: usize) -> bool {
        let bytes = self.take(input, len.saturating_sub(self.gathered));
        if let Some(slot) = self.head.get_mut(self.gathered..).and_then(|rest| rest.get_mut(..bytes.len())) {
            slot.copy_from_slice(bytes);
        }
        self.gathered = self.gathered.saturating_add(bytes.len());
        self.gathered >= len
    }

    /// Reads a part of a frame header. Returns the next state.
    fn header(&mut self, input: &mut &[u8]) -> Result<State, CodecError> {
        if self.gathered == 0 {
            self.frame = self.taken;
            self.produced = 0;
        }
        if !self.gather(input, 4) {
            return Ok(State::Header);
        }
        let magic = self.head.first_chunk().map_or(0, |magic| u32::from_le_bytes(*magic));
        if !is_magic(magic) {
            return Err(CodecError::ZstdTrailing { offset: self.frame });
        }
        if magic != MAGIC {
            if !self.gather(input, 8) {
                return Ok(State::Header);
            }
            self.gathered = 0;
            self.frames = true;
            let len = self.head.get(4..).and_then(<[u8]>::first_chunk);
            return Ok(match len.map_or(0, |len| u32::from_le_bytes(*len)) {
                0 => State::Header,
                len => State::Skip(len),
            });
        }
        // The descriptor, the fifth byte, decides the length.
        if !self.gather(input, 5) {
            return Ok(State::Header);
        }
        let len = FrameHeader::len(self.head.get(..5).unwrap_or_default());
        if !self.gather(input, len) {
            return Ok(State::Header);
        }
        let offset = self.frame;
        let header = self.head.get(..len).and_then(FrameHeader::decode).ok_or(CodecError::Memory)?;
        if header.reserved {
            return Err(CodecError::ZstdReserved { offset });
        }
        if header.dictionary != 0 {
            return Err(CodecError::ZstdDictionary { offset, id: header.dictionary });
        }
        let window_bytes = header.window_bytes;
        if window_bytes > self.limit {
            return Err(CodecError::ZstdWindow { offset, window_bytes, limit: self.limit });
        }
        self.frames = true;
        self.declared = header.content_bytes;
        self.window_bytes = self.window_bytes.max(window_bytes);
        Ok(State::Ready)
    }

    /// Runs libzstd over `input`. Returns the number of decoded bytes, and whether the frame has
    /// ended.
    fn step(&mut self, input: &mut &[u8], output: &mut [u8]) -> Result<(usize, bool), CodecError> {
        let mut from = InBuffer::around(input);
        let mut into = OutBuffer::around(output);
        let result = self.context.decompress_stream(&mut into, &mut from);
        let (taken, filled) = (from.pos(), into.pos());
        self.take(input, taken);
        self.produced = self.produced.saturating_add(filled as u64);
        match result {
            // libzstd compares the length too, except when the last block of a frame is empty.
            Ok(0) if self.declared.is_some_and(|declared| declared != self.produced) => {
                Err(CodecError::ZstdLength {
                    offset: self.frame,
                    declared: self.declared.unwrap_or_default(),
                    produced: self.produced,
                })
            }
            Ok(hint) => Ok((filled, hint == 0)),
            Err(code) => {
                let (offset, before) = (self.frame, self.taken);
                Err(match get_error_name(code) {
                    "Restored data doesn't match checksum" => CodecError::ZstdChecksum { offset },
                    "Allocation error : not enough memory" => CodecError::Memory,
                    message => CodecError::ZstdFrame { offset, before, message },
                })
            }
        }
    }

    /// Like [`decode`](Decoder::decode), but stops at the first frame that starts at byte `stop` or behind:
    /// [`taken`](Self::taken) is where. It has stopped for that if output is not full and input is left.
    pub fn decode_to(
        &mut self,
        stop: Option<u64>,
        input: &mut &[u8],
        output: &mut [u8],
    ) -> Result<usize, CodecError> {
        let mut filled: usize = 0;
        let (began, began_between) = (self.taken, self.is_between_frames());
        loop {
            let has_come = self.is_between_frames() && (self.taken > began || !began_between);
            if has_come && stop.is_some_and(|stop| self.taken >= stop) {
                return Ok(filled);
            }
            match self.state {
                State::Header => {
                    if input.is_empty() {
                        return Ok(filled);
                    }
                    let known = self.window_bytes;
                    self.state = self.header(input)?;
                    if self.window_bytes > known {
                        return Ok(filled); // The caller may refuse the window before it is allocated.
                    }
                }
                State::Ready => {
                    let head = self.head;
                    let mut head = head.get(..self.gathered).unwrap_or_default();
                    let before = self.taken;
                    while !head.is_empty() {
                        let had = head.len();
                        self.step(&mut head, &mut [])?;
                        if head.len() == had {
                            let (offset, message) = (self.frame, "the header was not taken");
                            return Err(CodecError::ZstdFrame { offset, before, message });
                        }
                    }
                    self.taken = before; // These bytes were counted when they were gathered.
                    self.gathered = 0;
                    self.state = State::Body;
                }
                State::Body => {
                    let rest = output.get_mut(filled..).unwrap_or_default();
                    if rest.is_empty() {
                        return Ok(filled);
                    }
                    let had = input.len();
                    let (bytes, ended) = self.step(input, rest)?;
                    filled = filled.saturating_add(bytes);
                    if ended {
                        self.state = State::Header;
                    } else if bytes == 0 && had == input.len() {
                        return Ok(filled); // No input was taken and no output produced: libzstd waits for input.
                    }
                }
                State::Skip(left) => {
                    if input.is_empty() {
                        return Ok(filled);
                    }
                    let bytes = self.take(input, usize::try_from(left).unwrap_or(usize::MAX));
                    let taken = u32::try_from(bytes.len()).unwrap_or(left);
                    self.state = match left.saturating_sub(taken) {
                        0 => State::Header,
                        left => State::Skip(left),
                    };
                }
            }
        }
    }
}

impl Decoder for Zstd {
    fn decode(&mut self, input: &mut &[u8], output: &mut [u8]) -> Result<usize, CodecError> {
        self.decode_to(None, input, output)
    }

    fn finish(&mut self) -> Result<(), CodecError> {
        if self.state == State::Header && self.gathered == 0 && self.frames {
            return Ok(());
        }
        Err(CodecError::ZstdTruncated { offset: self.taken })
    }

    fn memory_bytes(&self) -> u64 {
        self.window_bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zstd::zstd_safe::{CCtx, CParameter};

    use super::{super::tests::decode, *};
    use crate::error::Classify;

    const LIMIT: u64 = 8 << 20;

    fn frame(bytes: &[u8]) -> Vec<u8> {
        let mut context = CCtx::create();
        context.set_parameter(CParameter::ChecksumFlag(true)).unwrap();
        let mut frame = Vec::with_capacity(zstd::zstd_safe::compress_bound(bytes.len()));
        context.compress2(&mut frame, bytes).unwrap();
        frame
    }

    fn skippable(kind: u32, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(body.len()).unwrap();
        [&(MAGIC_SKIPPABLE + kind).to_le_bytes()[..], &len.to_le_bytes(), body].concat()
    }

    fn whole(input: &[u8]) -> Result<Vec<u8>, CodecError> {
        let run = |step_in, step_out| decode(Zstd::new(LIMIT).unwrap(), input, step_in, step_out);
        let want = run(usize::MAX, 1 << 20);
        for (step_in, step_out) in [(1, 1), (3, 100), (1, 1 << 16)] {
            match (&want, &run(step_in, step_out)) {
                (Ok(want), Ok(got)) => assert_eq!(want, got, "steps of {step_in} and {step_out}"),
                (Err(want), Err(got)) => {
                    assert_eq!(want.reason(), got.reason(), "steps of {step_in} and {step_out}");
                }
                (want, got) => panic!("steps of {step_in} and {step_out}: {want:?} or {got:?}"),
            }
        }
        want
    }

    #[test]
    fn frames_and_skippable_frames_may_stand_in_any_order() {
        let stream = [
            skippable(0, b"at the start"),
            frame(b"one "),
            skippable(15, b""),
            frame(b""),
            frame(b"two"),
            skippable(7, &[0; 3000]),
        ]
        .concat();
        assert_eq!(whole(&stream).unwrap(), b"one two");
        assert_eq!(whole(&skippable(3, b"nothing else")).unwrap(), b"");
    }

    #[test]
    fn a_stream_cut_anywhere_is_refused() {
        let stream =
            [frame(b"some bytes, some bytes, some bytes"), skippable(1, b"abc"), frame(b"x")].concat();
        let ends = [frame(b"some bytes, some bytes, some bytes").len(), stream.len() - frame(b"x").len()];
        for len in (0..stream.len()).filter(|len| !ends.contains(len)) {
            assert!(matches!(whole(&stream[..len]), Err(CodecError::ZstdTruncated { .. })), "{len} bytes");
        }
    }

    #[test]
    fn bytes_after_the_last_frame_are_refused() {
        let end = frame(b"x").len() as u64;
        for tail in [&b"tail"[..], &[0; 4]] {
            let stream = [&frame(b"x")[..], tail].concat();
            assert_eq!(whole(&stream), Err(CodecError::ZstdTrailing { offset: end }));
        }
        let stream = [&frame(b"x")[..], &[0]].concat();
        assert!(matches!(whole(&stream), Err(CodecError::ZstdTruncated { .. })));
    }

    #[test]
    fn a_window_above_the_limit_is_refused_in_both_of_its_spellings() {
        // Exponent 13 is 8 MiB.
        let by_window = |window: u8| [&MAGIC.to_le_bytes()[..], &[0, window], &[1, 0, 0]].concat();
        assert_eq!(whole(&by_window(13 << 3)).unwrap(), b"");
        assert_eq!(
            whole(&by_window(13 << 3 | 1)),
            Err(CodecError::ZstdWindow { offset: 0, window_bytes: 9 << 20, limit: LIMIT })
        );
        assert!(matches!(
            whole(&by_window(0xff)),
            Err(CodecError::ZstdWindow { window_bytes, .. }) if window_bytes == (1 << 41) + 7 * (1 << 38)
        ));
        // In a single segment the content size is the window.
        let by_size =
            |size: u64| [&MAGIC.to_le_bytes()[..], &[0xe0], &size.to_le_bytes(), &[1, 0, 0]].concat();
        assert!(matches!(whole(&by_size(LIMIT)), Err(CodecError::ZstdLength { produced: 0, .. })));
        assert!(matches!(whole(&by_size(LIMIT + 1)), Err(CodecError::ZstdWindow { .. })));
        assert_eq!(whole(&by_size(0)).unwrap(), b"");
    }

    #[test]
    fn the_window_is_known_before_it_is_used() {
        let mut decoder = Zstd::new(LIMIT).unwrap();
        let stream = [&MAGIC.to_le_bytes()[..], &[0, 13 << 3], &[1, 0, 0]].concat();
        let mut input = &stream[..];
        assert_eq!(decoder.decode(&mut input, &mut [0; 16]), Ok(0));
        assert_eq!((decoder.memory_bytes(), input.len()), (LIMIT, 3));
        assert_eq!(decoder.decode(&mut input, &mut [0; 16]), Ok(0));
        assert_eq!((input.len(), decoder.finish()), (0, Ok(())));
    }

    #[test]
    fn dictionaries_and_reserved_bits_are_refused() {
        let with = |descriptor: u8, rest: &[u8]| [&MAGIC.to_le_bytes()[..], &[descriptor], rest].concat();
        assert_eq!(
            whole(&with(1, &[0, 0x2a, 1, 0, 0])),
            Err(CodecError::ZstdDictionary { offset: 0, id: 0x2a })
        );
        // Dictionary id 0 stands for no dictionary.
        assert_eq!(whole(&with(3, &[0, 0, 0, 0, 0, 1, 0, 0])).unwrap(), b"");
        assert_eq!(whole(&with(8, &[0, 1, 0, 0])), Err(CodecError::ZstdReserved { offset: 0 }));
        // Block type 3, which is reserved.
        assert!(matches!(whole(&with(0, &[0, 7, 0, 0])), Err(CodecError::ZstdFrame { .. })));
    }

    #[test]
    fn wrong_checksum_and_content_size_are_refused() {
        let good = frame(b"the content that is summed");
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        assert_eq!(whole(&bad), Err(CodecError::ZstdChecksum { offset: 0 }));
        let mut bad = good;
        bad[5] += 1; // single segment: content size in one byte
        assert!(matches!(whole(&bad), Err(CodecError::ZstdFrame { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_in_any_steps_round_trip(
            bytes in proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), any::<u8>()], 0..5000),
            frames in 1_usize..4,
            step_in in 1_usize..600,
            step_out in 1_usize..600,
        ) {
            let stream: Vec<u8> = bytes.chunks(bytes.len() / frames + 1).flat_map(frame).collect();
            let stream = if stream.is_empty() { frame(b"") } else { stream };
            prop_assert_eq!(decode(Zstd::new(LIMIT).unwrap(), &stream, step_in, step_out).unwrap(), bytes);
        }

        #[test]
        fn hostile_bytes_give_an_error_or_output_but_never_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            at in 0_usize..100,
            value in any::<u8>(),
        ) {
            super::super::fuzz_zstd(&[&MAGIC.to_le_bytes()[..], &bytes].concat());
            let mut stream = frame(&bytes);
            if let Some(byte) = stream.get_mut(at) { *byte = value; }
            super::super::fuzz_zstd(&stream);
        }
    }
}
