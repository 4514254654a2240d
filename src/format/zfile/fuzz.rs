//! Fuzz entry: reads files as ZFiles, and writes ZFiles.
//!
//! Described in `docs/formats/overlaybd.md`, "ZFile".

use super::{
    block::{Algorithm, BlockSize, CHECKSUM_LEN, checksum},
    header::{Header, flag},
    index::ENTRY_LEN,
    reader::Reader,
    writer::{Encoder, Layout, Options},
};
use crate::format::{ReadAt, crc32c};

/// Most contents that are read, in bytes. Fuzzers find small files.
const CONTENTS: u64 = 1 << 20;

/// Fuzz entry: reads `data` as a ZFile, once as it is and once with all digests and checksums corrected, so that a fuzzer
/// gets past them. Then writes it as the contents of one, and reads that.
///
/// # Panics
///
/// When two ways to read the same thing differ.
pub fn fuzz(data: &[u8]) {
    read(data);
    if let Some(mended) = mend(data.to_vec()) {
        read(&mended);
    }
    let contents = data.get(..1 << 20).unwrap_or(data);
    for algorithm in [Algorithm::Lz4, Algorithm::Zstd] {
        for size in [BlockSize::MIN, BlockSize::MAX] {
            // Blocks that grow beyond 64 KiB are refused.
            let Some(file) = write(Options { algorithm, block_size: size }, contents) else { continue };
            let reader = Reader::open(&file[..]).expect("what is written is read");
            let mut found = vec![0; contents.len()];
            reader.read_exact_at(0, &mut found).expect("every block is sound");
            assert!(found == contents, "contents come out as they went in");
        }
    }
}

fn read(file: &[u8]) {
    let Ok(reader) = Reader::open(file) else { return };
    let end = reader.size_bytes();
    let mut all = vec![0; usize::try_from(end.min(CONTENTS)).unwrap_or_default()];
    let whole = reader.read_exact_at(0, &mut all);
    let step = 1 + all.len() / 5;
    for (number, want) in all.chunks(step).enumerate().rev() {
        let mut part = vec![0; want.len()];
        let read = reader.read_exact_at((number * step) as u64, &mut part);
        assert!(whole.is_err() || read.is_ok() && part == want, "a part is a part of the whole");
    }
    let _any = reader.read_exact_at(end.saturating_sub(9), &mut [0; 9]);
    assert!(reader.read_exact_at(end, &mut [0]).is_err(), "nothing is behind the end");
}

fn write(options: Options, contents: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut lengths) = (vec![0; options.bound(contents.len())], Vec::new());
    let stored = Encoder::new(options).ok()?.encode(contents, &mut out, &mut lengths).ok()?;
    let mut layout = Layout::new(options);
    layout.add(&lengths, contents.len() as u64).ok()?;
    let ends = layout.finish();
    Some([&ends.header[..], out.get(..stored)?, &ends.tail].concat())
}

/// Corrects the checksums of the blocks, of the index, and of both ends of a file.
fn mend(mut file: Vec<u8>) -> Option<Vec<u8>> {
    let end = file.len().checked_sub(Header::LEN)?;
    let undigested = |record: &[u8; Header::LEN]| {
        let mut record = *record;
        if let Some(flags) = record.get_mut(32) {
            *flags &= !u8::try_from(flag::DIGEST).unwrap_or_default();
        }
        record
    };
    let trailer = Header::decode_trailer(&undigested(file.get(end..)?.first_chunk()?)).ok()?;
    let header = Header::decode_header(&undigested(file.first_chunk()?)).ok()?;
    let offset = usize::try_from(trailer.index_offset).ok()?;
    let index_len = usize::try_from(trailer.blocks).ok()?.checked_mul(ENTRY_LEN)?;
    let index = file.get(offset..offset.checked_add(index_len)?)?.to_vec();
    let mut at = Header::LEN.checked_add(usize::try_from(trailer.dictionary_bytes).ok()?)?;
    for entry in index.as_chunks::<ENTRY_LEN>().0 {
        let stored = usize::try_from(u32::from_le_bytes(*entry)).ok()?;
        let after = at.checked_add(stored)?;
        if let Some((block, sum)) =
            file.get_mut(at..after).and_then(|stored| stored.split_last_chunk_mut::<CHECKSUM_LEN>())
        {
            *sum = checksum(block).to_le_bytes();
        }
        at = after;
    }
    let index_crc = crc32c::raw(0, &index);
    let mended = |header: Header| Header { flags: header.flags | flag::DIGEST, index_crc, ..header }.encode();
    file.get_mut(end..)?.copy_from_slice(&mended(trailer));
    file.get_mut(..Header::LEN)?.copy_from_slice(&mended(header));
    Some(file)
}
