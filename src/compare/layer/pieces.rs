//! Extents of a file read piece by piece.

use crate::{call::Cancel, error::Result, tree::Extent};

/// Bytes read at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Reads `extents` with `read`, which fills one byte at least from an offset on and tells how many, and hands each
/// piece to `each` with its offset. `buffer` grows to what the pieces need, 256 KiB at most.
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
