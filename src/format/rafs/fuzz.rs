//! Fuzz entry: metadata images and compression contexts from outside.
//!
//! Described in `docs/formats/rafs.md`.

use super::{check::verify, records::ChunkRef, tables::Tables};
use crate::format::erofs::reader::Image;

/// Fuzz entry: reads `data` as a metadata image, and as the compression context of its own blobs.
///
/// # Panics
///
/// When a table that was read breaks a promise of [`Tables`].
pub fn fuzz(data: &[u8]) {
    let Ok(image) = Image::open(data) else { return };
    let _ = verify(&image, 1 << 20);
    let Ok(tables) = Tables::read(&image, 1 << 20) else { return };
    for entry in tables.chunks() {
        let blob = u8::try_from(entry.blob).expect("there are at most 254 blobs");
        let reference = ChunkRef { blob, index: entry.chunk.index, block: 0 };
        assert_eq!(tables.chunk(reference), Some(entry), "a chunk is found by its place");
        let (of, _) = tables.blobs.get(usize::from(blob)).expect("a chunk has a blob");
        assert!(entry.chunk.index < of.chunk_count && entry.chunk.size_bytes > 0);
    }
    let _ = tables.compare_context(0, &data);
}
