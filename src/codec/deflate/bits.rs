//! Bits of a stream that comes in pieces.
//!
//! Source: RFC 1951, section 3.1.1: the lowest bit of each byte comes first.

use super::table::low;

/// Bits taken from the input and not used yet, the next one lowest.
///
/// Nothing is taken before it is needed: once all that was asked for has been dropped, less than a byte is left.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bits {
    buffer: u64,
    count: u32,
}

impl Bits {
    /// The first `count` bits of `buffer`; the others must be zero.
    pub(super) fn set(&mut self, buffer: u64, count: u32) {
        *self = Self { buffer, count };
    }

    #[inline(always)]
    pub(super) fn buffer(&self) -> u64 {
        self.buffer
    }

    #[inline(always)]
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Takes bytes off the front of `input` until `wanted` bits, at most 56, are here. `false` when the input
    /// does not have that many: it is empty then, and what it had is kept.
    #[inline(always)]
    pub(super) fn want(&mut self, input: &mut &[u8], wanted: u32) -> bool {
        while self.count < wanted {
            let Some((byte, rest)) = input.split_first() else { return false };
            self.buffer |= u64::from(*byte) << (self.count & 63);
            self.count = self.count.wrapping_add(8);
            *input = rest;
        }
        true
    }

    /// The next `bits` bits, which must have been asked for, as a number.
    #[inline(always)]
    pub(super) fn peek(&self, bits: u32) -> usize {
        low(self.buffer & ((1_u64 << (bits & 63)).wrapping_sub(1)))
    }

    /// Goes on behind the next `bits` bits, which must have been asked for.
    #[inline(always)]
    pub(super) fn drop(&mut self, bits: u32) {
        self.buffer >>= bits & 63;
        self.count = self.count.wrapping_sub(bits);
    }

    /// [`peek`](Self::peek) and [`drop`](Self::drop).
    #[inline(always)]
    pub(super) fn take(&mut self, bits: u32) -> usize {
        let number = self.peek(bits);
        self.drop(bits);
        number
    }
}
