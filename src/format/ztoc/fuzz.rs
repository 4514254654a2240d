//! Fuzz entry: zTOCs from outside.
//!
//! Described in `docs/formats/ztoc.md`.

use super::index::Ztoc;
use crate::codec::deflate::WINDOW_BYTES;

/// Fuzz entry: reads `data` as a zTOC, and all windows of one that is read.
///
/// # Panics
///
/// When a zTOC that was read breaks a promise of [`Ztoc`].
pub fn fuzz(data: &[u8]) {
    let Ok(ztoc) = Ztoc::read(&data) else { return };
    let checkpoints = ztoc.checkpoints();
    assert!(checkpoints.is_sorted_by_key(|checkpoint| (checkpoint.bit, checkpoint.plain)), "they go on");
    for (number, checkpoint) in checkpoints.iter().enumerate() {
        assert!(checkpoint.bit <= ztoc.blob_bytes().saturating_mul(8), "it is in the blob");
        let window = ztoc.window(number).expect("heads that were read have windows");
        assert_eq!(window.len(), WINDOW_BYTES);
    }
    assert!(ztoc.starts().count() <= checkpoints.len());
}
