//! Fuzz entry: tables of contents, footers and blobs from outside.
//!
//! Described in `docs/formats/stargz.md`.

use std::collections::BTreeMap;

use super::{
    declared::{Declared, TOC_DIGEST},
    layout::Layout,
    split_check::verify_split,
    toc::{Body, Toc},
    verify::verify,
};
use crate::error::{Error, Kind};

/// Fuzz entry: reads `data` as a table, and as a blob with one: finds it, reads it, and decodes what it leads to.
///
/// # Panics
///
/// When a table that was read breaks a promise of [`Toc`].
pub fn fuzz(data: &[u8]) {
    read(data, 1 << 20);
    let declared = Declared::default();
    let Ok(Some(layout)) = Layout::find(&data, &declared) else { return };
    let Ok(Some(json)) = layout.read_toc(&data, &declared) else { return };
    let Some(toc) = read(&json, layout.payload_end) else { return };
    let mut left = 4_u64 << 20;
    let mut progress = |bytes| match left.checked_sub(bytes) {
        Some(rest) => {
            left = rest;
            Ok(())
        }
        None => Err(Error::new(Kind::Exhausted, "fuzz.limit", "too long")),
    };
    let _ = verify(&data, &layout, &toc, &mut progress);
    let _ = verify_split(&data, &layout, &toc, &mut progress);
    let wrong = BTreeMap::from([(TOC_DIGEST.to_owned(), format!("sha256:{}", "0".repeat(64)))]);
    let wrong = Declared::of(&wrong).expect("it is a digest");
    assert!(layout.read_toc(&data, &wrong).is_err(), "a table is the one that was declared");
}

fn read(json: &[u8], payload_end: u64) -> Option<Toc> {
    let toc = Toc::read(json, payload_end).ok()?;
    let mut seen = BTreeMap::new();
    for entry in toc.entries() {
        let before = seen.insert(entry.path.as_slice(), entry.body == Body::Directory);
        assert!(before.is_none(), "a path comes twice");
        let chunks = toc.chunks_of(entry);
        let mut covered = 0;
        for chunk in chunks {
            assert_eq!(chunk.offset, covered, "there is a gap");
            assert!(
                chunk.blob_offset < chunk.blob_end && chunk.blob_end <= payload_end,
                "outside of the payload"
            );
            covered += chunk.size_bytes;
        }
        match &entry.body {
            Body::Regular { size_bytes, .. } => {
                assert_eq!(covered, *size_bytes, "a part of a file is missing")
            }
            Body::HardLink { target } => {
                let target = toc.entries().get(*target).expect("a hard link leads somewhere");
                assert!(!matches!(target.body, Body::HardLink { .. } | Body::Directory));
            }
            _ => assert!(chunks.is_empty()),
        }
    }
    for path in seen.keys() {
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let parent = path.get(..at).unwrap_or_default();
            assert_ne!(seen.get(parent), Some(&false), "a file has names below it");
        }
    }
    Some(toc)
}
