//! Reading the extents of a file piece by piece.

use crate::{call::Cancel, error::Result, tree::Extent};

/// Bytes read at a time, at most.
const PIECE_BYTES: usize = 256 << 10;

/// Reads `extents` with `read`, and passes each piece to `each` with its offset. `read` fills at least one byte of
/// its buffer from an offset on, and returns how many. `buffer` grows to the largest piece, at most 256 KiB.
pub(super) fn read_in_pieces(
    extents: &[Extent],
    buffer: &mut Vec<u8>,
    cancel: &Cancel,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<usize>,
    each: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    for extent in extents {
        let (mut offset, mut left) = (extent.offset, extent.len);
        while left > 0 {
            cancel.check()?;
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES);
            if buffer.len() < want {
                buffer.resize(want, 0);
            }
            let piece = buffer.get_mut(..want).unwrap_or_default();
            let len = read(offset, piece)?;
            each(offset, piece.get(..len).unwrap_or_default())?;
            offset += len as u64;
            left = left.saturating_sub(len as u64);
        }
    }
    Ok(())
}
