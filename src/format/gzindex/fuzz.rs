//! Fuzz entry: reads blobs through indexes, and writes indexes.
//!
//! Described in `docs/formats/overlaybd.md`, "gzip index".

use super::{chooser::Chooser, error::GzindexError, header, reader::Reader, writer::Writer};
use crate::{
    codec::{BLOCKS_MAX, Decoder, Gzip},
    error::Error,
    format::ReadAt,
};

/// Fuzz entry: reads `data` as the length of a blob, the blob and its index, once as it is and once with sizes and
/// checksum corrected, so that a fuzzer gets past them. Then takes the blob for gzip, indexes it and reads it back.
///
/// # Panics
///
/// When two ways to read the same thing differ.
pub fn fuzz(data: &[u8]) {
    let Some((len, rest)) = data.split_first_chunk() else { return };
    let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
    let (blob, index) = rest.split_at_checked(len).unwrap_or((rest, &[]));
    read_twice(blob, index);
    let mut mended = index.to_vec();
    header::mend(&mut mended, blob.len() as u64);
    read_twice(blob, &mended);
    if let Ok((plain, index)) = build(blob, 4096) {
        let reader = Reader::open(blob, &*index).expect("what is written is read");
        assert_eq!(reader.size_bytes(), plain.len() as u64, "the length of the stream");
        for at in (0..plain.len()).rev().step_by(3000) {
            let mut byte = [0];
            reader.read_exact_at(at as u64, &mut byte).expect("every byte is there");
            assert_eq!(plain.get(at), Some(&byte[0]), "byte {at}");
        }
    }
}

fn read_twice(blob: &[u8], index: &[u8]) {
    /// Fuzzers find small blobs.
    const LIMIT: u64 = 1 << 18;
    let Ok(reader) = Reader::open(blob, index) else { return };
    let len = usize::try_from(reader.size_bytes().min(LIMIT)).unwrap_or_default();
    let mut forward = vec![0; len];
    if reader.read_exact_at(0, &mut forward).is_err() {
        return;
    }
    for (n, want) in forward.chunks(5000).enumerate().rev() {
        let mut again = vec![0; want.len()];
        // Points may lead anywhere: what is read from them need not be what is read on the way to them.
        let _ = reader.read_exact_at(5000 * n as u64, &mut again);
    }
    assert!(reader.read_exact_at(reader.size_bytes(), &mut [0]).is_err(), "nothing is behind the end");
}

/// Decodes a gzip blob and indexes it on the way; the uncompressed bytes, at most 1 MiB, and the index.
fn build(blob: &[u8], span_bytes: u32) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let mut gzip = Gzip::new();
    gzip.list_blocks();
    let mut chooser = Chooser::new(span_bytes);
    let mut index = Vec::new();
    let mut writer = Writer::new(&mut index, span_bytes);
    let (mut input, mut plain, mut output) = (blob, Vec::new(), vec![0; 1 << 14]);
    loop {
        let filled = gzip.decode(&mut input, &mut output)?;
        let bytes = output.get(..filled).unwrap_or_default();
        let chosen = chooser.take(bytes, gzip.blocks())?;
        plain.extend_from_slice(bytes);
        if plain.len() > 1 << 20 {
            return Err(GzindexError::End { found: plain.len() as u64, expected: 1 << 20 }.into());
        }
        for chosen in chosen {
            writer.add(chosen.pack()?)?;
        }
        if filled < output.len() && gzip.blocks().len() < BLOCKS_MAX {
            break;
        }
    }
    gzip.finish()?;
    writer.finish(blob.len() as u64, plain.len() as u64)?;
    Ok((plain, index))
}
