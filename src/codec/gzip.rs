//! gzip: any number of members, each a header, a deflate stream and a trailer.
//!
//! Frames the members, whose deflate streams [`super::deflate`] decodes. No header field can make it allocate, no
//! number of members can make it recurse, and every refusal names its place.
//!
//! Source: RFC 1952 (gzip), RFC 1951 (deflate).

use zlib_rs::crc32::crc32;

use super::{
    decoder::{BLOCKS_MAX, BlockStart, Decoder},
    deflate::{DeflateError, Inflate, Pause},
    error::CodecError,
};
use crate::limits::GZIP_HEADER_BYTES;

/// ID1 and ID2, the first bytes of every member.
pub(super) const MAGIC: [u8; 2] = [0x1f, 0x8b];

const METHOD_DEFLATE: u8 = 8;
const FLAG_HEADER_CRC: u8 = 1 << 1;
const FLAG_EXTRA: u8 = 1 << 2;
const FLAG_NAME: u8 = 1 << 3;
const FLAG_COMMENT: u8 = 1 << 4;
const FLAGS_RESERVED: u8 = 0b1110_0000;

/// Bytes of a member's header that [`member_bytes`] looks at.
pub(super) const SIZED_HEADER_BYTES: usize = 76;

/// Length of the member whose header starts `bytes`, if that says so: as BGZF does, in a subfield `BC` of the extra field.
/// It may be a lie.
///
/// Source: SAM/BAM format specification, section 4.1.
pub(super) fn member_bytes(bytes: &[u8]) -> Option<u64> {
    let (head, rest) = bytes.split_first_chunk::<12>()?;
    let [id1, id2, METHOD_DEFLATE, flags, .., len0, len1] = *head else { return None };
    if [id1, id2] != MAGIC || flags & FLAG_EXTRA == 0 {
        return None;
    }
    let mut extra = rest.get(..u16::from_le_bytes([len0, len1]).into())?;
    while let Some(([id1, id2, len0, len1], fields)) = extra.split_first_chunk() {
        let (field, others) = fields.split_at_checked(u16::from_le_bytes([*len0, *len1]).into())?;
        if let (b'B', b'C', [size0, size1]) = (*id1, *id2, field) {
            let bytes = u64::from(u16::from_le_bytes([*size0, *size1])) + 1;
            // Less than its header and trailer is no member.
            return Some(bytes).filter(|bytes| *bytes > 12 + 8);
        }
        extra = others;
    }
    None
}

/// Decoder of gzip streams.
///
/// A member, little-endian (RFC 1952, section 2.3):
///
/// | offset | size | field | meaning                                                       |
/// |-------:|-----:|-------|---------------------------------------------------------------|
/// |      0 |    2 | ID    | 0x1f 0x8b                                                     |
/// |      2 |    1 | CM    | 8, deflate                                                    |
/// |      3 |    1 | FLG   | which of the optional fields follow; bits 5 to 7 are zero     |
/// |      4 |    4 | MTIME | ignored                                                       |
/// |      8 |    2 | XFL OS | ignored                                                      |
/// |        |      | EXTRA | length (2 bytes) and that many bytes, with flag bit 2         |
/// |        |      | NAME  | NUL-terminated, with flag bit 3                               |
/// |        |      | COMMENT | NUL-terminated, with flag bit 4                             |
/// |        |    2 | HCRC  | low half of the header's CRC-32, with flag bit 1              |
/// |        |      |       | the deflate stream                                            |
/// |        |    4 | CRC32 | of the uncompressed bytes                                     |
/// |        |    4 | ISIZE | their number modulo 2^32                                      |
pub struct Gzip {
    inflate: Inflate,
    state: State,
    /// Fixed-size field being gathered, and how much of it is there.
    field: [u8; 10],
    gathered: usize,
    flags: u8,
    header_crc: u32,
    crc: u32,
    /// Uncompressed bytes of this member, modulo 2^32 like ISIZE.
    length: u32,
    /// Compressed bytes taken so far, and where this member started.
    taken: u64,
    member: u64,
    /// Where the deflate stream of this member started.
    body: u64,
    /// Whether blocks are listed, and those in the last output.
    lists: bool,
    blocks: Vec<BlockStart>,
}

/// A place at which decoding can go on: the first bit of a block or of a member, in bits of the whole stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cut(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the start of the stream, where a member must follow.
    First,
    /// After a member: another one, NUL padding or the end.
    Between,
    Header,
    ExtraLength,
    Extra(u16),
    Name(u64),
    Comment(u64),
    HeaderCrc,
    Body,
    Trailer,
    Padding,
}

impl Default for Gzip {
    fn default() -> Self {
        Self::new()
    }
}

impl Gzip {
    /// A decoder at the start of a stream.
    pub fn new() -> Self {
        Self {
            inflate: Inflate::new(),
            state: State::First,
            field: [0; 10],
            gathered: 0,
            flags: 0,
            header_crc: 0,
            crc: 0,
            length: 0,
            taken: 0,
            member: 0,
            body: 0,
            lists: false,
            blocks: Vec::new(),
        }
    }

    /// A decoder at the start of a member that is not the first one: after it the stream may end.
    pub fn at_member() -> Self {
        Self { state: State::Between, ..Self::new() }
    }

    /// Compressed bytes taken so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Where the decoder stands, if that is between two blocks or two members.
    pub fn cut(&self) -> Option<Cut> {
        match self.state {
            State::Body if self.inflate.is_between_blocks() => {
                Some(Cut(self.body.saturating_mul(8).saturating_add(self.inflate.position())))
            }
            State::Between => Some(Cut(self.taken.saturating_mul(8))),
            _ => None,
        }
    }

    /// Whether the decoder stands between two members.
    pub fn is_between_members(&self) -> bool {
        self.state == State::Between
    }

    /// Where the last whole member ends, which is the start of this one, and how many bytes were given out since.
    pub fn last_end(&self) -> (u64, u32) {
        if self.is_between_members() { (self.taken, 0) } else { (self.member, self.length) }
    }

    /// The last bytes given out of this member, at most 32768.
    pub fn window(&self) -> Vec<u8> {
        self.inflate.window()
    }

    /// Like [`decode`](Decoder::decode), but stops at the first block or member that starts at `cut` or behind:
    /// [`cut`](Self::cut) is where. It has stopped for that if output is not full and input is left.
    pub fn decode_to(
        &mut self,
        cut: Option<Cut>,
        input: &mut &[u8],
        output: &mut [u8],
    ) -> Result<usize, CodecError> {
        let mut filled: usize = 0;
        self.blocks.clear();
        loop {
            match self.state {
                State::Body => {
                    let rest = output.get_mut(filled..).unwrap_or_default();
                    if rest.is_empty() {
                        return Ok(filled);
                    }
                    let from = cut.map(|cut| cut.0.saturating_sub(self.body.saturating_mul(8)));
                    self.inflate.pause_from(from);
                    if self.lists {
                        self.inflate.list_starts(BLOCKS_MAX.saturating_sub(self.blocks.len()));
                    }
                    let (bytes, pause) = self.inflate(input, rest)?;
                    for (at, position) in self.inflate.starts() {
                        let bit = self.body.saturating_mul(8).saturating_add(*position);
                        let at = filled.saturating_add(*at);
                        self.blocks.push(BlockStart { at, member: self.member, bit });
                    }
                    filled = filled.saturating_add(bytes);
                    match pause {
                        Pause::Ended => self.state = State::Trailer,
                        Pause::Input | Pause::Output | Pause::Block => return Ok(filled),
                    }
                }
                _ if input.is_empty() => return Ok(filled),
                state => {
                    self.state = self.frame(input)?;
                    self.body = self.taken;
                    let is_new = state == State::Trailer && self.state == State::Between;
                    if is_new && cut.is_some_and(|cut| self.cut() >= Some(cut)) {
                        return Ok(filled);
                    }
                    if self.state == State::Body && self.lists {
                        let bit = self.body.saturating_mul(8);
                        self.blocks.push(BlockStart { at: filled, member: self.member, bit });
                        if self.blocks.len() >= BLOCKS_MAX {
                            return Ok(filled);
                        }
                    }
                }
            }
        }
    }

    /// Takes note of bytes of this member that another decoder gave out. They come after all that this one gave out, and
    /// [`go_on_at`](Self::go_on_at) says where they end.
    pub fn add(&mut self, bytes: &[u8]) {
        self.inflate.add(bytes);
        self.count(bytes);
    }

    /// Goes on at another block of this member, behind the bytes that were added. The next input starts with the byte
    /// that holds its first bit.
    pub fn go_on_at(&mut self, cut: Cut) {
        self.inflate.go_on_at(cut.0.saturating_sub(self.body.saturating_mul(8)));
        self.taken = cut.0 / 8;
    }

    /// Goes on at another member, when this decoder stands between two. All between them was decoded by another one.
    pub fn go_on_at_member(&mut self, byte: u64) {
        self.taken = byte;
    }

    fn count(&mut self, bytes: &[u8]) {
        self.crc = crc32(self.crc, bytes);
        let [b0, b1, b2, b3, ..] = bytes.len().to_le_bytes();
        self.length = self.length.wrapping_add(u32::from_le_bytes([b0, b1, b2, b3]));
    }

    fn take<'a>(&mut self, input: &mut &'a [u8], len: usize) -> &'a [u8] {
        let (bytes, rest) = input.split_at_checked(len).unwrap_or((input, &[]));
        *input = rest;
        self.taken = self.taken.saturating_add(bytes.len() as u64);
        bytes
    }

    /// Moves input into the field of `N` bytes; the field once it is whole.
    fn gather<const N: usize>(&mut self, input: &mut &[u8]) -> Option<[u8; N]> {
        let bytes = self.take(input, N.saturating_sub(self.gathered));
        if let Some(slot) = self.field.get_mut(self.gathered..).and_then(|rest| rest.get_mut(..bytes.len())) {
            slot.copy_from_slice(bytes);
        }
        self.gathered = self.gathered.saturating_add(bytes.len());
        if self.gathered < N {
            return None;
        }
        self.gathered = 0;
        self.field.first_chunk().copied()
    }

    /// The state that reads the next optional field of the header after `state`.
    fn after(&mut self, state: State) -> State {
        let has = |flag| self.flags & flag != 0;
        match state {
            State::Header if has(FLAG_EXTRA) => State::ExtraLength,
            State::Header | State::Extra(_) if has(FLAG_NAME) => State::Name(0),
            State::Header | State::Extra(_) | State::Name(_) if has(FLAG_COMMENT) => State::Comment(0),
            State::HeaderCrc => State::Body,
            _ if has(FLAG_HEADER_CRC) => State::HeaderCrc,
            _ => State::Body,
        }
    }

    /// Skips a NUL-terminated header string of which `seen` bytes have been read; `None` at its end.
    fn skip_string(&mut self, input: &mut &[u8], seen: u64) -> Result<Option<u64>, CodecError> {
        let end = input.iter().position(|byte| *byte == 0);
        let bytes = self.take(input, end.map_or(usize::MAX, |end| end.saturating_add(1)));
        self.header_crc = crc32(self.header_crc, bytes);
        let seen = seen.saturating_add(bytes.len() as u64);
        if seen > GZIP_HEADER_BYTES {
            return Err(CodecError::GzipHeaderString { offset: self.member, limit: GZIP_HEADER_BYTES });
        }
        Ok(if end.is_some() { None } else { Some(seen) })
    }

    /// One step of everything but the body; the next state.
    fn frame(&mut self, input: &mut &[u8]) -> Result<State, CodecError> {
        let state = self.state;
        match state {
            State::First | State::Between => {
                self.member = self.taken;
                self.header_crc = 0;
                self.crc = 0;
                self.length = 0;
                match input.first() {
                    Some(0) if state == State::Between => Ok(State::Padding),
                    _ => Ok(State::Header),
                }
            }
            State::Header => {
                // Before the field is whole, so that bytes after the last member are named for what they are.
                for (byte, magic) in input.iter().zip(MAGIC.iter().skip(self.gathered)) {
                    if byte != magic {
                        return Err(CodecError::GzipTrailing { offset: self.member, byte: *byte });
                    }
                }
                let Some(header) = self.gather::<10>(input) else { return Ok(state) };
                let [_, _, method, flags, ..] = header;
                if method != METHOD_DEFLATE {
                    return Err(CodecError::GzipMethod { method, offset: self.member });
                }
                if flags & FLAGS_RESERVED != 0 {
                    return Err(CodecError::GzipFlags { flags, offset: self.member });
                }
                self.flags = flags;
                self.header_crc = crc32(0, &header);
                self.inflate.reset();
                Ok(self.after(state))
            }
            State::ExtraLength => {
                let Some(length) = self.gather::<2>(input) else { return Ok(state) };
                self.header_crc = crc32(self.header_crc, &length);
                Ok(State::Extra(u16::from_le_bytes(length)))
            }
            State::Extra(left) => {
                let bytes = self.take(input, left.into());
                self.header_crc = crc32(self.header_crc, bytes);
                let taken = u16::try_from(bytes.len()).unwrap_or(left);
                match left.saturating_sub(taken) {
                    0 => Ok(self.after(state)),
                    left => Ok(State::Extra(left)),
                }
            }
            State::Name(seen) => match self.skip_string(input, seen)? {
                Some(seen) => Ok(State::Name(seen)),
                None => Ok(self.after(state)),
            },
            State::Comment(seen) => match self.skip_string(input, seen)? {
                Some(seen) => Ok(State::Comment(seen)),
                None => Ok(self.after(state)),
            },
            State::HeaderCrc => {
                let Some(stored) = self.gather::<2>(input).map(u16::from_le_bytes) else { return Ok(state) };
                let [low, high, ..] = self.header_crc.to_le_bytes();
                let computed = u16::from_le_bytes([low, high]);
                if stored != computed {
                    return Err(CodecError::GzipHeaderChecksum { offset: self.member, stored, computed });
                }
                Ok(State::Body)
            }
            State::Trailer => {
                let Some([c0, c1, c2, c3, l0, l1, l2, l3]) = self.gather::<8>(input) else {
                    return Ok(state);
                };
                let stored = u32::from_le_bytes([c0, c1, c2, c3]);
                if stored != self.crc {
                    return Err(CodecError::GzipChecksum { offset: self.member, stored, computed: self.crc });
                }
                let stored = u32::from_le_bytes([l0, l1, l2, l3]);
                if stored != self.length {
                    return Err(CodecError::GzipLength {
                        offset: self.member,
                        stored,
                        computed: self.length,
                    });
                }
                Ok(State::Between)
            }
            State::Padding => match input.iter().position(|byte| *byte != 0) {
                Some(position) => {
                    self.take(input, position);
                    let byte = input.first().copied().unwrap_or_default();
                    Err(CodecError::GzipTrailing { offset: self.taken, byte })
                }
                None => {
                    self.take(input, usize::MAX);
                    Ok(state)
                }
            },
            State::Body => Ok(state),
        }
    }

    /// Inflates into `output`; how much of it was filled, and why not all of it.
    fn inflate(&mut self, input: &mut &[u8], output: &mut [u8]) -> Result<(usize, Pause), CodecError> {
        let before = input.len();
        let outcome = self.inflate.decode(input, output);
        self.taken = self.taken.saturating_add(before.saturating_sub(input.len()) as u64);
        let (filled, pause) = outcome.map_err(|DeflateError { what, .. }| CodecError::GzipDeflate {
            offset: self.member,
            before: self.taken,
            message: what.as_str(),
        })?;
        self.count(output.get(..filled).unwrap_or_default());
        Ok((filled, pause))
    }
}

impl Decoder for Gzip {
    fn decode(&mut self, input: &mut &[u8], output: &mut [u8]) -> Result<usize, CodecError> {
        self.decode_to(None, input, output)
    }

    fn list_blocks(&mut self) {
        self.lists = true;
    }

    fn blocks(&self) -> &[BlockStart] {
        &self.blocks
    }

    fn finish(&mut self) -> Result<(), CodecError> {
        match self.state {
            State::Between | State::Padding => Ok(()),
            _ => Err(CodecError::GzipTruncated { offset: self.taken }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, GzBuilder, write::GzEncoder};
    use proptest::prelude::*;

    use super::{super::tests::decode, *};

    fn member(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn whole(input: &[u8]) -> Result<Vec<u8>, CodecError> {
        let want = decode(Gzip::new(), input, usize::MAX, 1 << 16);
        for (step_in, step_out) in [(1, 1), (3, 100), (1, 1 << 16)] {
            let got = decode(Gzip::new(), input, step_in, step_out);
            match (&want, &got) {
                (Ok(want), Ok(got)) => assert_eq!(want, got, "steps of {step_in} and {step_out}"),
                (Err(want), Err(got)) => {
                    use crate::error::Classify;
                    assert_eq!(want.reason(), got.reason(), "steps of {step_in} and {step_out}");
                }
                _ => panic!("steps of {step_in} and {step_out}: {want:?} or {got:?}"),
            }
        }
        want
    }

    #[test]
    fn every_block_of_every_member_is_listed() {
        let member = |pieces: &[&[u8]]| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
            for piece in pieces {
                encoder.write_all(piece).unwrap();
                encoder.flush().unwrap(); // An empty stored block, on a byte boundary.
            }
            encoder.finish().unwrap()
        };
        let first = member(&[b"one", b"two"]);
        let stream = [&first[..], &member(&[])].concat();
        for (step_in, step_out) in [(usize::MAX, 100), (1, 100), (2, 1)] {
            let mut gzip = Gzip::new();
            gzip.list_blocks();
            let (mut plain, mut blocks, mut output) = (Vec::new(), Vec::new(), vec![0; step_out]);
            for mut piece in stream.chunks(step_in.min(stream.len())) {
                loop {
                    let filled = gzip.decode(&mut piece, &mut output).unwrap();
                    let listed = gzip.blocks().iter();
                    blocks.extend(listed.map(|block| (plain.len() + block.at, block.member, block.bit)));
                    plain.extend_from_slice(&output[..filled]);
                    if filled < step_out {
                        break;
                    }
                }
            }
            gzip.finish().unwrap();
            assert_eq!(plain, b"onetwo");
            let [start, .., last] = blocks[..] else { panic!("{blocks:?}") };
            assert_eq!((start, last.1), ((0, 0, 80), first.len() as u64), "{step_in} {step_out}");
            // "one", its flush, "two", its flush, the end; and the end of the second member.
            let at: Vec<_> = blocks.iter().map(|(plain, ..)| *plain).collect();
            assert_eq!(at, [0, 3, 3, 6, 6, 6], "{step_in} {step_out}");
            assert!(blocks.iter().is_sorted_by_key(|(.., bit)| *bit));
        }
    }

    #[test]
    fn a_list_of_blocks_ends_when_it_is_long() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
        let text = vec![b'x'; 3 * BLOCKS_MAX];
        for byte in text.chunks(1) {
            encoder.write_all(byte).unwrap();
            encoder.flush().unwrap();
        }
        let stream = [encoder.finish().unwrap(), member(b"").repeat(BLOCKS_MAX + 1)].concat();
        let mut gzip = Gzip::new();
        gzip.list_blocks();
        let (mut input, mut output, mut plain, mut listed) = (&*stream, vec![0; 1 << 16], Vec::new(), 0);
        loop {
            let filled = gzip.decode(&mut input, &mut output).unwrap();
            plain.extend_from_slice(&output[..filled]);
            let blocks = gzip.blocks().len();
            listed += blocks;
            assert!(blocks <= BLOCKS_MAX);
            if blocks < BLOCKS_MAX {
                break;
            }
        }
        gzip.finish().unwrap();
        assert!(plain == text && input.is_empty());
        // A byte and an empty block for each flush, and one block for each member behind it.
        assert!(listed >= 7 * BLOCKS_MAX, "{listed}");
    }

    #[test]
    fn members_are_concatenated_however_many_and_however_empty() {
        let mut stream = member(b"one ");
        stream.extend(member(b""));
        stream.extend(member(b"two"));
        for _ in 0..1000 {
            stream.extend(member(b""));
        }
        assert_eq!(whole(&stream).unwrap(), b"one two");
    }

    #[test]
    fn every_optional_header_field_is_skipped_and_checked() {
        let mut stream = Vec::new();
        let mut encoder = GzBuilder::new()
            .extra(vec![7; 300])
            .filename("layer.tar")
            .comment("made by hand")
            .mtime(99)
            .write(&mut stream, Compression::fast());
        encoder.write_all(b"body").unwrap();
        encoder.finish().unwrap();
        assert_eq!(whole(&stream).unwrap(), b"body");

        // The same header with its own checksum, flag bit 1.
        let header_len = 10 + 2 + 300 + "layer.tar".len() + 1 + "made by hand".len() + 1;
        let mut summed = stream.clone();
        summed[3] |= FLAG_HEADER_CRC;
        let sum = crc32(0, &summed[..header_len]).to_le_bytes();
        summed.splice(header_len..header_len, [sum[0], sum[1]]);
        assert_eq!(whole(&summed).unwrap(), b"body");
        summed[header_len] ^= 1;
        assert!(matches!(whole(&summed), Err(CodecError::GzipHeaderChecksum { offset: 0, .. })));
    }

    #[test]
    fn a_member_says_how_long_it_is_in_the_subfield_of_bgzf_alone() {
        let with = |extra: &[u8]| {
            let len = u8::try_from(extra.len()).unwrap();
            [&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, len, 0], extra, &[3, 0]].concat()
        };
        assert_eq!(member_bytes(&with(&[b'B', b'C', 2, 0, 27, 0])), Some(28));
        assert_eq!(member_bytes(&with(&[b'A', b'P', 1, 0, 9, b'B', b'C', 2, 0, 0, 1])), Some(257));
        assert_eq!(member_bytes(&with(&[b'B', b'C', 3, 0, 27, 0, 0])), None);
        assert_eq!(member_bytes(&with(&[b'B', b'C', 2, 0, 27])), None, "cut short");
        assert_eq!(
            member_bytes(&with(&[b'B', b'C', 2, 0, 19, 0])),
            None,
            "shorter than a header and a trailer"
        );
        assert_eq!(member_bytes(&member(b"x")), None);
        assert_eq!(member_bytes(&[0x1f, 0x8b]), None);
    }

    #[test]
    fn only_nul_bytes_may_follow_the_last_member() {
        let mut stream = member(b"x");
        let len = stream.len() as u64;
        stream.extend([0; 700]);
        assert_eq!(whole(&stream).unwrap(), b"x");
        stream.push(7);
        assert_eq!(whole(&stream), Err(CodecError::GzipTrailing { offset: len + 700, byte: 7 }));

        let mut stream = member(b"x");
        stream.extend(b"garbage");
        assert!(matches!(whole(&stream), Err(CodecError::GzipTrailing { byte: b'g', .. })));
        let mut stream = member(b"x");
        stream.push(0);
        stream.extend(member(b"after padding"));
        assert!(matches!(whole(&stream), Err(CodecError::GzipTrailing { byte: 0x1f, .. })));
    }

    #[test]
    fn a_stream_cut_anywhere_is_refused() {
        let stream = member(b"some bytes that deflate can chew on, chew on, chew on");
        for len in 0..stream.len() {
            assert!(matches!(whole(&stream[..len]), Err(CodecError::GzipTruncated { .. })), "{len} bytes");
        }
    }

    #[test]
    fn reserved_flags_and_other_methods_are_refused() {
        for bit in 5..8 {
            let mut stream = member(b"x");
            stream[3] |= 1 << bit;
            assert!(matches!(whole(&stream), Err(CodecError::GzipFlags { offset: 0, .. })));
        }
        let mut stream = member(b"x");
        stream[2] = 7;
        assert_eq!(whole(&stream), Err(CodecError::GzipMethod { method: 7, offset: 0 }));
    }

    #[test]
    fn wrong_checksum_and_length_are_refused() {
        let good = member(b"payload");
        let first = good.len() as u64;
        let mut stream = good.clone();
        stream.extend(&good);
        let end = stream.len();
        for (at, length) in [(end - 8, false), (end - 5, false), (end - 4, true), (end - 1, true)] {
            let mut bad = stream.clone();
            bad[at] ^= 0x10;
            match whole(&bad) {
                Err(CodecError::GzipLength { offset, .. }) => assert!(length && offset == first),
                Err(CodecError::GzipChecksum { offset, .. }) => assert!(!length && offset == first),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn header_strings_are_limited() {
        let limit = usize::try_from(GZIP_HEADER_BYTES).unwrap();
        for (len, good) in [(limit - 1, true), (limit, false)] {
            let mut stream = vec![0x1f, 0x8b, 8, FLAG_NAME, 0, 0, 0, 0, 0, 0];
            stream.extend(std::iter::repeat_n(b'n', len));
            stream.push(0);
            stream.extend(&member(b"x")[10..]);
            let result = decode(Gzip::new(), &stream, 4096, 4096);
            assert_eq!(result.is_ok(), good, "{len}: {result:?}");
        }
    }

    #[test]
    fn invalid_deflate_data_is_refused_with_its_place() {
        let mut stream = member(b"x");
        stream[10] = 0b111; // block type 3
        assert!(matches!(whole(&stream), Err(CodecError::GzipDeflate { offset: 0, .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_in_any_steps_round_trip(
            bytes in proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), any::<u8>()], 0..5000),
            members in 1_usize..4,
            step_in in 1_usize..600,
            step_out in 1_usize..600,
        ) {
            let stream: Vec<u8> = bytes.chunks(bytes.len() / members + 1).flat_map(member).collect();
            let stream = if stream.is_empty() { member(b"") } else { stream };
            prop_assert_eq!(decode(Gzip::new(), &stream, step_in, step_out).unwrap(), bytes);
        }

        #[test]
        fn hostile_bytes_give_an_error_or_output_but_never_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            at in 0_usize..100,
            value in any::<u8>(),
        ) {
            super::super::fuzz_gzip(&[&MAGIC[..], &bytes].concat());
            let mut stream = member(&bytes);
            if let Some(byte) = stream.get_mut(at) { *byte = value; }
            super::super::fuzz_gzip(&stream);
        }
    }
}
