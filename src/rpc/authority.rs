//! Replaces the `:authority` of requests by one that the HTTP/2 library accepts.
//!
//! On a Unix socket this header has no meaning, and clients send what they like: gRPC's C core
//! sends the escaped path of the socket, Java's the path unescaped. The `h2` crate resets every
//! stream whose authority is no host name, and has no setting for it. So the bytes of this one
//! value are replaced before the library sees them.
//!
//! The value keeps its length, encoded and decoded. So frames stay as they are, and so does the
//! table of fields that both sides keep; this module needs to know nothing about it. Input that
//! cannot be followed is passed on unchanged, for the library to refuse.
//!
//! Source: RFC 9113, sections 4.1, 6.2 and 6.10; RFC 7541, sections 5 and 6 and appendices A and B.

use std::mem;

/// Length of the client preface, in bytes.
const PREFACE_LEN: usize = 24;
/// Length of a frame's header in bytes: length in 3, type, flags, stream in 4.
const FRAME_HEADER_LEN: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Length of stream and weight, which a frame with the flag PRIORITY has.
const PRIORITY_LEN: usize = 5;
const NAME: &[u8] = b":authority";
/// Number of `:authority` in the static table.
const NAME_INDEX: usize = 1;

/// Follows the bytes of a client, and replaces those of `:authority` that no host name has.
#[derive(Debug)]
pub(super) struct Amender {
    frame: Frame,
    field: Field,
}

/// Position in the stream of frames.
#[derive(Clone, Copy, Debug)]
enum Frame {
    /// Bytes before the next frame that are passed on.
    Skip(usize),
    Header {
        bytes: [u8; FRAME_HEADER_LEN],
        seen: usize,
    },
    /// Before the first byte of a padded frame, which is the length of the padding.
    PadLength {
        length: usize,
        priority: usize,
    },
    Priority {
        left: usize,
        block: usize,
        padding: usize,
    },
    Block {
        left: usize,
        padding: usize,
    },
    /// The frames cannot be followed. Nothing is changed any more.
    Lost,
}

/// Position in a header block. A block continues in the next frame as if there was no boundary.
#[derive(Clone, Copy, Debug)]
enum Field {
    Start,
    /// In a number that did not fit its first byte.
    Number {
        of: Number,
        value: usize,
        shift: u32,
    },
    NameLength,
    /// In a name. `same`: all bytes so far are those of `:authority`.
    Name {
        left: usize,
        same: bool,
    },
    ValueLength {
        authority: bool,
    },
    Value {
        left: usize,
        kind: Value,
    },
}

/// Use of a number in a header block.
#[derive(Clone, Copy, Debug)]
enum Number {
    /// Number of a whole field in the table, or the size of the table.
    Whole,
    /// Number of a name in the table; the value follows.
    NameIndex,
    NameLength {
        huffman: bool,
    },
    ValueLength {
        authority: bool,
        huffman: bool,
    },
}

#[derive(Clone, Copy, Debug)]
enum Value {
    Other,
    Plain,
    Huffman(Code),
}

/// Bits of a Huffman code read so far.
#[derive(Clone, Copy, Debug, Default)]
struct Code {
    bits: u8,
    len: u8,
    lost: bool,
}

impl Amender {
    pub(super) fn new() -> Self {
        Self { frame: Frame::Skip(PREFACE_LEN), field: Field::Start }
    }

    /// Amends the next bytes of the connection in place.
    pub(super) fn amend(&mut self, mut bytes: &mut [u8]) {
        while !matches!(self.frame, Frame::Lost) {
            if let Frame::Skip(left) = &mut self.frame {
                let passed = bytes.len().min(*left);
                *left -= passed;
                bytes = mem::take(&mut bytes).split_at_mut(passed).1;
            }
            let Some((byte, rest)) = mem::take(&mut bytes).split_first_mut() else { return };
            self.frame = self.next(byte).unwrap_or(Frame::Lost);
            bytes = rest;
        }
    }

    fn next(&mut self, byte: &mut u8) -> Option<Frame> {
        Some(match self.frame {
            Frame::Skip(_) => Frame::Header { bytes: [*byte, 0, 0, 0, 0, 0, 0, 0, 0], seen: 1 },
            Frame::Header { mut bytes, seen } => {
                *bytes.get_mut(seen)? = *byte;
                match seen + 1 {
                    FRAME_HEADER_LEN => self.begin(bytes)?,
                    seen => Frame::Header { bytes, seen },
                }
            }
            Frame::PadLength { length, priority } => {
                let padding = usize::from(*byte);
                let block = length.checked_sub(1 + priority + padding)?;
                after_pad_length(priority, block, padding)
            }
            Frame::Priority { left, block, padding } => {
                after_pad_length(left.checked_sub(1)?, block, padding)
            }
            Frame::Block { left, padding } => {
                self.field = self.field.next(byte)?;
                block(left.checked_sub(1)?, padding)
            }
            Frame::Lost => Frame::Lost,
        })
    }

    fn begin(&mut self, [l0, l1, l2, kind, flags, ..]: [u8; FRAME_HEADER_LEN]) -> Option<Frame> {
        let length = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
        let priority = if flags & PRIORITY == 0 { 0 } else { PRIORITY_LEN };
        Some(match kind {
            HEADERS => {
                self.field = Field::Start;
                match flags & PADDED {
                    0 => after_pad_length(priority, length.checked_sub(priority)?, 0),
                    _ if length == 0 => return None,
                    _ => Frame::PadLength { length, priority },
                }
            }
            CONTINUATION => block(length, 0),
            _ => Frame::Skip(length),
        })
    }
}

fn after_pad_length(priority: usize, length: usize, padding: usize) -> Frame {
    match priority {
        0 => block(length, padding),
        left => Frame::Priority { left, block: length, padding },
    }
}

fn block(left: usize, padding: usize) -> Frame {
    if left == 0 { Frame::Skip(padding) } else { Frame::Block { left, padding } }
}

impl Field {
    fn next(self, byte: &mut u8) -> Option<Self> {
        match self {
            // The first bits are the kind of the field, the others a number.
            Self::Start => match *byte {
                0x80.. => number(*byte, 7, Number::Whole),
                0x40.. => number(*byte, 6, Number::NameIndex),
                0x20.. => number(*byte, 5, Number::Whole),
                _ => number(*byte, 4, Number::NameIndex),
            },
            Self::Number { of, value, shift } => {
                let value = value.checked_add(usize::from(*byte & 0x7f).checked_shl(shift)?)?;
                match *byte & 0x80 {
                    0 => of.read(value),
                    // No field of an acceptable length needs more bytes.
                    _ if shift >= 21 => None,
                    _ => Some(Self::Number { of, value, shift: shift + 7 }),
                }
            }
            Self::NameLength => number(*byte, 7, Number::NameLength { huffman: *byte & 0x80 != 0 }),
            Self::Name { left, same } => {
                let position = NAME.len().checked_sub(left);
                let expected = position.and_then(|position| NAME.get(position));
                name(left.checked_sub(1)?, same && expected == Some(byte))
            }
            Self::ValueLength { authority } => {
                number(*byte, 7, Number::ValueLength { authority, huffman: *byte & 0x80 != 0 })
            }
            Self::Value { left, mut kind } => {
                match &mut kind {
                    Value::Other => {}
                    Value::Plain if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) => {}
                    Value::Plain => *byte = b'-',
                    Value::Huffman(code) => code.amend(byte),
                }
                value(left.checked_sub(1)?, kind)
            }
        }
    }
}

/// Starts a number whose first byte has `bits` bits for it.
fn number(byte: u8, bits: u32, of: Number) -> Option<Field> {
    let mask = 0xff_u8 >> (8 - bits);
    match byte & mask {
        value if value == mask => Some(Field::Number { of, value: usize::from(value), shift: 0 }),
        value => of.read(usize::from(value)),
    }
}

fn name(left: usize, same: bool) -> Option<Field> {
    Some(if left == 0 { Field::ValueLength { authority: same } } else { Field::Name { left, same } })
}

fn value(left: usize, kind: Value) -> Option<Field> {
    Some(if left == 0 { Field::Start } else { Field::Value { left, kind } })
}

impl Number {
    fn read(self, number: usize) -> Option<Field> {
        match self {
            Self::Whole => Some(Field::Start),
            Self::NameIndex if number == 0 => Some(Field::NameLength),
            Self::NameIndex => Some(Field::ValueLength { authority: number == NAME_INDEX }),
            // Clients that spell the name out do not compress it either.
            Self::NameLength { huffman } => name(number, !huffman && number == NAME.len()),
            Self::ValueLength { authority: false, .. } => value(number, Value::Other),
            Self::ValueLength { huffman: false, .. } => value(number, Value::Plain),
            Self::ValueLength { .. } => value(number, Value::Huffman(Code::default())),
        }
    }
}

impl Code {
    /// Replaces codes by others of the same length, bit by bit, because the bits before may have
    /// been passed on already.
    fn amend(&mut self, byte: &mut u8) {
        for mask in [0x80, 0x40, 0x20, 0x10, 0x08, 0x04, 0x02, 0x01] {
            if self.lost {
                return;
            }
            // A space, `%`, `-` or `.` becomes `-` or `.`; `/` becomes `3`, `:` becomes `B`.
            if matches!((self.len, self.bits), (4, 0b0101) | (5, 0b0_1100) | (6, 0b10_1110)) {
                *byte |= mask;
            }
            self.bits = self.bits << 1 | u8::from(*byte & mask != 0);
            self.len += 1;
            match (self.len, self.bits) {
                (5, ..=0x09) | (6, 0x14..=0x2d) | (7, 0x5c..=0x7b) | (8, 0xf8..=0xfd) => {
                    *self = Self::default()
                }
                // A rarer character, which no host name holds, or the end.
                (8, _) => self.lost = true,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
