//! LZ4 frames: any number of them, of the current and of the legacy format, with skippable frames anywhere.
//!
//! Only blocks are left to the library: its reader of frames takes an input that ends inside a frame for a whole one.
//!
//! Source: lz4's `doc/lz4_Frame_format.md`, version 1.6.4; `programs/lz4io.c` for where a legacy frame ends.

use std::io::{self, BufRead, Read};

use lz4_flex::block::decompress_into_with_dict;
use xxhash_rust::xxh32::{Xxh32, xxh32};

use super::{coding::Foreign, counted::Counted, error::ForeignError};

const MAGIC: u32 = 0x184d_2204;
const MAGIC_LEGACY: u32 = 0x184c_2102;
/// First of the sixteen magic numbers of skippable frames; the other fifteen follow it.
const MAGIC_SKIPPABLE: u32 = 0x184d_2a50;
/// Uncompressed size of every block of a legacy frame but the last.
const LEGACY_BLOCK_BYTES: usize = 8 << 20;
/// Largest size that a legacy block of this length is compressed to: lz4's `LZ4_COMPRESSBOUND`.
const LEGACY_COMPRESSED_BYTES: usize = LEGACY_BLOCK_BYTES + LEGACY_BLOCK_BYTES / 255 + 16;
/// How far back linked blocks refer.
const WINDOW_BYTES: usize = 64 << 10;
/// Bit of a block's size that marks its bytes as stored.
const STORED: u32 = 1 << 31;

/// Frame descriptor, behind the magic number:
///
/// | offset | size | field             | meaning                                                          |
/// |-------:|-----:|-------------------|------------------------------------------------------------------|
/// |      0 |    1 | FLG               | bits 6-7: version, 1; 5: blocks are independent; 4: block checksums; 3: content size; 2: content checksum; 1: reserved; 0: dictionary id |
/// |      1 |    1 | BD                | bits 4-6: 4 to 7 for blocks of 64 KiB, 256 KiB, 1 MiB, 4 MiB; the others are reserved |
/// |        |  0-8 | content size      | little-endian                                                    |
/// |        |  0-4 | dictionary id     |                                                                  |
/// |        |    1 | HC                | second byte of the descriptor's xxh32                            |
struct Frame {
    block_bytes: usize,
    has_block_checksums: bool,
    linked: bool,
    content_bytes: Option<u64>,
    /// Checksum of the content so far, if the frame has one.
    checksum: Option<Xxh32>,
    produced: u64,
}

enum State {
    /// Before a frame, or at the end of the stream. The magic number, if it was read already.
    Between(Option<u32>),
    Frame(Box<Frame>),
    Legacy,
    End,
}

/// Decoder of LZ4 frames.
pub(super) struct Lz4<R> {
    input: Counted<R>,
    state: State,
    any: bool,
    compressed: Vec<u8>,
    block: Vec<u8>,
    /// Part of `block` that is still to be read.
    from: usize,
    to: usize,
    window: Vec<u8>,
}

impl<R: BufRead> Lz4<R> {
    pub(super) fn new(input: Counted<R>) -> Self {
        let (compressed, block, window) = (Vec::new(), Vec::new(), Vec::new());
        Self { input, state: State::Between(None), any: false, compressed, block, from: 0, to: 0, window }
    }

    fn offset(&self) -> u64 {
        self.input.taken().get()
    }

    fn invalid(&self, message: impl Into<String>) -> io::Error {
        ForeignError::Data { coding: Foreign::Lz4, offset: self.offset(), message: message.into() }.into_io()
    }

    fn truncated(&self) -> io::Error {
        ForeignError::Truncated { coding: Foreign::Lz4, offset: self.offset() }.into_io()
    }

    fn exactly<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        match self.input.fill(&mut bytes)? {
            filled if filled == N => Ok(bytes),
            _ => Err(self.truncated()),
        }
    }

    /// The next number; `None` at the end of the input.
    fn number_or_end(&mut self) -> io::Result<Option<u32>> {
        let mut bytes = [0; 4];
        match self.input.fill(&mut bytes)? {
            0 => Ok(None),
            4 => Ok(Some(u32::from_le_bytes(bytes))),
            _ => Err(self.truncated()),
        }
    }

    fn number(&mut self) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.exactly()?))
    }

    /// Reads the beginning of a frame, or skips one that is to be skipped.
    fn begin(&mut self, magic: u32) -> io::Result<State> {
        let (coding, offset) = (Foreign::Lz4, self.offset().saturating_sub(4));
        match magic {
            MAGIC => {}
            MAGIC_LEGACY => {
                self.any = true;
                return Ok(State::Legacy);
            }
            _ if magic & !0xf == MAGIC_SKIPPABLE => {
                let len = u64::from(self.number()?);
                self.any = true;
                let skipped = io::copy(&mut self.input.by_ref().take(len), &mut io::sink())?;
                return if skipped < len { Err(self.truncated()) } else { Ok(State::Between(None)) };
            }
            _ if self.any => return Err(ForeignError::Trailing { coding, offset }.into_io()),
            _ => return Err(self.invalid(format!("{magic:#010x} is not the magic number of a frame"))),
        }
        let [flags, sizes] = self.exactly()?;
        let mut descriptor = vec![flags, sizes];
        let has = |bit: u8| flags >> bit & 1 == 1;
        if flags >> 6 != 1 || has(1) || sizes & 0x8f != 0 || sizes >> 4 < 4 {
            return Err(self.invalid(format!("frame flags {flags:#04x} {sizes:#04x}")));
        }
        let mut content_bytes = None;
        if has(3) {
            let size: [u8; 8] = self.exactly()?;
            descriptor.extend(size);
            content_bytes = Some(u64::from_le_bytes(size));
        }
        if has(0) {
            let id: [u8; 4] = self.exactly()?;
            return Err(ForeignError::Dictionary { coding, offset, id: u32::from_le_bytes(id) }.into_io());
        }
        let [checksum] = self.exactly()?;
        let [_, computed, ..] = xxh32(&descriptor, 0).to_le_bytes();
        if checksum != computed {
            return Err(self.invalid("wrong header checksum"));
        }
        self.any = true;
        self.window.clear();
        Ok(State::Frame(Box::new(Frame {
            block_bytes: 1 << (8 + 2 * (sizes >> 4)),
            has_block_checksums: has(4),
            linked: !has(5),
            content_bytes,
            checksum: has(2).then(|| Xxh32::new(0)),
            produced: 0,
        })))
    }

    /// Reads `len` compressed or stored bytes.
    fn take_block(&mut self, len: usize) -> io::Result<()> {
        self.compressed.resize(len, 0);
        let filled = self.input.fill(&mut self.compressed)?;
        if filled < len { Err(self.truncated()) } else { Ok(()) }
    }

    /// Decompresses the bytes that were taken into a block of at most `most` bytes.
    fn decompress(&mut self, most: usize) -> io::Result<()> {
        self.block.resize(most, 0);
        let result = decompress_into_with_dict(&self.compressed, &mut self.block, &self.window);
        (self.from, self.to) = (0, result.map_err(|error| self.invalid(error.to_string()))?);
        Ok(())
    }

    /// Reads one block of the current frame into `block`; goes on to the next frame at the end of this one.
    fn frame_block(&mut self, mut frame: Box<Frame>) -> io::Result<State> {
        let head = self.number()?;
        if head == 0 {
            if frame.content_bytes.is_some_and(|declared| declared != frame.produced) {
                let message =
                    format!("the content of the frame has {} bytes, not those declared", frame.produced);
                return Err(self.invalid(message));
            }
            if let Some(checksum) = frame.checksum
                && self.number()? != checksum.digest()
            {
                return Err(self.invalid("wrong content checksum"));
            }
            return Ok(State::Between(None));
        }
        let len = usize::try_from(head & !STORED).unwrap_or(usize::MAX);
        if len > frame.block_bytes {
            return Err(self.invalid(format!("a block of {len} bytes in a frame with {}", frame.block_bytes)));
        }
        self.take_block(len)?;
        if frame.has_block_checksums && self.number()? != xxh32(&self.compressed, 0) {
            return Err(self.invalid("wrong block checksum"));
        }
        if head & STORED != 0 {
            std::mem::swap(&mut self.block, &mut self.compressed);
            (self.from, self.to) = (0, len);
        } else {
            self.decompress(frame.block_bytes)?;
        }
        let bytes = self.block.get(..self.to).unwrap_or_default();
        frame.produced = frame.produced.saturating_add(bytes.len() as u64);
        if let Some(checksum) = &mut frame.checksum {
            checksum.update(bytes);
        }
        if frame.linked {
            let kept = bytes.get(bytes.len().saturating_sub(WINDOW_BYTES)..).unwrap_or_default();
            let surplus = (self.window.len() + kept.len()).saturating_sub(WINDOW_BYTES);
            self.window.drain(..surplus.min(self.window.len()));
            self.window.extend_from_slice(kept);
        }
        Ok(State::Frame(frame))
    }

    /// Like [`frame_block`](Self::frame_block). A legacy frame has no end of its own: the magic number of another one,
    /// or the end of the input, is in the place of a block's size.
    fn legacy_block(&mut self) -> io::Result<State> {
        let Some(head) = self.number_or_end()? else { return Ok(State::End) };
        let len = usize::try_from(head).unwrap_or(usize::MAX);
        if len > LEGACY_COMPRESSED_BYTES {
            return Ok(State::Between(Some(head)));
        }
        self.take_block(len)?;
        self.window.clear();
        self.decompress(LEGACY_BLOCK_BYTES)?;
        Ok(State::Legacy)
    }
}

impl<R: BufRead> Read for Lz4<R> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        while self.from == self.to && !output.is_empty() {
            self.state = match std::mem::replace(&mut self.state, State::End) {
                State::End => return Ok(0),
                State::Frame(frame) => self.frame_block(frame)?,
                State::Legacy => self.legacy_block()?,
                State::Between(Some(magic)) => self.begin(magic)?,
                State::Between(None) => match self.number_or_end()? {
                    Some(magic) => self.begin(magic)?,
                    None if self.any => State::End,
                    None => return Err(self.truncated()),
                },
            };
        }
        let bytes = self.block.get(self.from..self.to).unwrap_or_default();
        let bytes = bytes.get(..bytes.len().min(output.len())).unwrap_or_default();
        if let Some(space) = output.get_mut(..bytes.len()) {
            space.copy_from_slice(bytes);
        }
        self.from += bytes.len();
        Ok(bytes.len())
    }
}
