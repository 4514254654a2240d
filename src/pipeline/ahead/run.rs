//! Runs of whole members or frames: decoded from input that is all there, by whoever has time for it.

use std::sync::Arc;

use super::{
    piece::{Decoded, Part, Run},
    shared::Shared,
    stream::Stream,
};
use crate::{
    codec::{CodecError, Cut},
    pipeline::buffer::Pool,
};

/// Most bytes of output for each byte of input, beyond the first part. What is denser is decoded fast enough in order, and
/// limits are met where they are without helpers.
const RATIO_MAX: u64 = 64;

/// Whether so much output of so much input is too much for a piece.
pub(super) fn is_too_dense(taken: u64, produced: usize) -> bool {
    produced as u64 > taken.saturating_mul(RATIO_MAX).saturating_add(1 << 20)
}

/// Decodes `run` up to its last whole member or frame, as far as there is memory. `stream` loses its place; `window` is the
/// memory of its window that was reserved.
pub(super) fn decode(
    shared: &Shared,
    pool: &Arc<Pool>,
    stream: &mut Stream,
    window: &mut u64,
    run: &Run,
) -> Decoded {
    let mut decoded = Decoded::default();
    let mut produced = 0;
    let mut slices = run.slices();
    let mut input = slices.next().unwrap_or_default();
    stream.restart();
    while decoded.parts.len() < run.buffers || shared.plain().is_some() {
        let mut buffer = pool.take();
        let mut filled = 0;
        let goes_on = loop {
            if input.is_empty() {
                let Some(next) = slices.next() else { break false };
                input = next;
                continue;
            }
            let grown = stream.memory_bytes().saturating_sub(*window);
            if !shared.reserve_window(grown) {
                break false;
            }
            *window += grown;
            let room = buffer.space().get_mut(filled..).unwrap_or_default();
            if room.is_empty() {
                break true;
            }
            let now = match stream.decode_to(None, &mut input, room) {
                Ok(now) => now,
                Err(error) => {
                    // A frame with a larger window is one.
                    decoded.is_false = !matches!(error, CodecError::ZstdWindow { .. });
                    break false;
                }
            };
            filled += now;
            produced += now;
            let (end, bytes_since) = stream.last_end();
            if end > 0 {
                decoded.end = Some((Cut(8 * (run.start + end)), produced - bytes_since));
            }
            if is_too_dense(stream.taken(), produced) {
                break false;
            }
        };
        decoded.parts.push(Part::Plain(buffer.freeze(filled)));
        if !goes_on {
            break;
        }
    }
    decoded
}
