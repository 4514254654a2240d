//! Indexes of overlaybd as the second opinion, and indexes that lie.

use std::io::{Read, Write};

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;

use super::{writer::Place, *};
use crate::{
    codec::{BlockStart, deflate::WINDOW_BYTES, zlib},
    error::{Classify, Error, Kind},
    format::ReadAt,
};

const HEX: &[u8] = include_bytes!("../../../tests/fixtures/gzindex/hex.gz");
const HEX_INDEX: &[u8] = include_bytes!("../../../tests/fixtures/gzindex/hex.gz_idx");
const BASE: &[u8] = include_bytes!("../../../tests/fixtures/gzindex/base.tar.gz");
const BASE_INDEX: &[u8] = include_bytes!("../../../tests/fixtures/gzindex/base.gzip.meta");

fn gunzip(blob: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::MultiGzDecoder::new(blob).read_to_end(&mut plain).unwrap();
    plain
}

fn gzip(plain: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// Text that compresses about three to one, other text everywhere.
fn text(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut plain = Vec::new();
    while plain.len() < len {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        plain.extend(format!("line {:x} of {}\n", state >> 8, plain.len()).bytes());
    }
    plain.truncate(len);
    plain
}

/// Everything about a point but where its window stands, and the window itself.
fn places(index: &[u8]) -> Vec<(u64, u64, u8, Vec<u8>)> {
    let read = Index::read(index).unwrap();
    let window = |number| read.window(index, number).unwrap();
    read.points()
        .iter()
        .enumerate()
        .map(|(number, point)| (point.plain, point.byte, point.bits, window(number)))
        .collect()
}

#[test]
fn points_are_those_of_overlaybd() {
    for (blob, want) in [(HEX, HEX_INDEX), (BASE, BASE_INDEX)] {
        let (plain, index) = (gunzip(blob), index_of(blob, SPAN_BYTES));
        assert_eq!(places(&index), places(want));
        let (ours, theirs) = (Index::read(&*index).unwrap(), Index::read(want).unwrap());
        let sizes = |index: &Index| {
            let Header { is_packed, level, span_bytes, points, blob_bytes, plain_bytes, .. } =
                *index.header();
            (is_packed, level, span_bytes, points, blob_bytes, plain_bytes)
        };
        assert_eq!(sizes(&ours), sizes(&theirs));
        assert_eq!(ours.header().plain_bytes, plain.len() as u64);
    }
}

/// Index of a blob of any length.
fn index_of(blob: &[u8], span_bytes: u32) -> Vec<u8> {
    indexed(blob, span_bytes).unwrap()
}

fn indexed(blob: &[u8], span_bytes: u32) -> Result<Vec<u8>, Error> {
    use crate::codec::{BLOCKS_MAX, Decoder, Gzip};
    let mut gzip = Gzip::new();
    gzip.list_blocks();
    let mut index = Vec::new();
    let (mut chooser, mut writer) = (Chooser::new(span_bytes), Writer::new(&mut index, span_bytes));
    let (mut input, mut total, mut output) = (blob, 0, vec![0; 100_000]);
    loop {
        let filled = gzip.decode(&mut input, &mut output)?;
        total += filled as u64;
        for chosen in chooser.take(&output[..filled], gzip.blocks())? {
            writer.add(chosen.pack()?)?;
        }
        if filled < output.len() && gzip.blocks().len() < BLOCKS_MAX {
            break;
        }
    }
    gzip.finish()?;
    writer.finish(blob.len() as u64, total)?;
    Ok(index)
}

#[test]
fn a_header_comes_back_and_so_does_a_point() {
    for index in [HEX_INDEX, BASE_INDEX] {
        let record = index.first_chunk().unwrap();
        let header = Header::decode(record, index.len() as u64).unwrap();
        assert_eq!(header.encode(), *record);
        for point in Index::read(index).unwrap().points() {
            assert_eq!(Point::decode(&point.encode(), 0, None, &header).is_ok(), point.plain == 0);
            assert_eq!(Point::decode(&point.encode(), 1, Some(point), &header).unwrap(), *point);
        }
    }
}

#[test]
fn every_byte_is_read_from_anywhere() {
    let plain = text(700_000);
    let blob = gzip(&plain, 6);
    let ours = index_of(&blob, 100_000);
    assert!(Index::read(&*ours).unwrap().points().len() >= 6);
    let hex = gunzip(HEX);
    for (blob, index, plain) in [(&*blob, &*ours, &plain), (HEX, HEX_INDEX, &hex)] {
        let reader = Reader::open(blob, index).unwrap();
        let size = plain.len();
        let mut state = 7_usize;
        for turn in 0..200 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 20) % size;
            let len = [1, 512, 4096, 70_000, 150_000][turn % 5].min(size - at);
            let mut bytes = vec![0; len];
            reader.read_exact_at(at as u64, &mut bytes).unwrap();
            assert!(bytes == plain[at..at + len], "{len} bytes at {at}");
        }
        let mut whole = vec![0; size];
        reader.read_exact_at(0, &mut whole).unwrap();
        assert!(whole == *plain);
        for (offset, len) in [(size as u64, 1), (size as u64 - 1, 2), (u64::MAX, 1)] {
            let error = reader.read_exact_at(offset, &mut vec![0; len]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
        }
    }
}

#[test]
fn threads_read_through_one_reader() {
    let plain = text(600_000);
    let blob = gzip(&plain, 6);
    let index = index_of(&blob, 50_000);
    let reader = Reader::open(&*blob, &*index).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (reader, plain) = (&reader, &plain);
            scope.spawn(move || {
                for turn in 0..60 {
                    let at = (turn * 77_777 + thread * 33_333) % (plain.len() - 5000);
                    let mut bytes = [0; 5000];
                    reader.read_exact_at(at as u64, &mut bytes).unwrap();
                    assert!(bytes == plain[at..at + 5000], "at {at}");
                }
            });
        }
    });
}

#[test]
fn more_than_fits_the_cache_is_read_again() {
    let plain: Vec<u8> = text(1 << 20).repeat(20);
    let blob = gzip(&plain, 1);
    let index = index_of(&blob, SPAN_BYTES);
    let reader = Reader::open(&*blob, &*index).unwrap();
    for turn in 0..40 {
        let at = turn * 1_500_000 % (plain.len() - 4096);
        let mut bytes = [0; 4096];
        reader.read_exact_at(at as u64, &mut bytes).unwrap();
        assert!(bytes == plain[at..at + 4096], "at {at}");
    }
}

#[test]
fn an_empty_stream_has_one_point_and_no_bytes() {
    let blob = gzip(b"", 6);
    let index = index_of(&blob, SPAN_BYTES);
    let reader = Reader::open(&*blob, &*index).unwrap();
    assert_eq!((reader.size_bytes(), reader.index().points().len()), (0, 1));
}

#[test]
fn a_second_member_is_refused_by_the_builder_and_by_the_reader() {
    let first = gzip(&text(50_000), 6);
    for second in [gzip(&text(50_000), 6), gzip(b"", 6), gzip(b"x", 0)] {
        let blob = [&first[..], &second].concat();
        let error = indexed(&blob, SPAN_BYTES).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "gzindex.members"), "{error}");
        assert!(error.to_string().contains(&format!("at byte {}", first.len())), "{error}");

        // As overlaybd indexes such a blob: the first member, and the size of the whole.
        let mut index = index_of(&first, SPAN_BYTES);
        header::mend(&mut index, blob.len() as u64);
        let error = Reader::open(&*blob, &*index).err().unwrap();
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "gzindex.members"), "{error}");
    }
    // Zeros behind the member are padding.
    let blob = [&first[..], &[0; 3000]].concat();
    let index = index_of(&blob, SPAN_BYTES);
    assert_eq!(Reader::open(&*blob, &*index).unwrap().size_bytes(), 50_000);
}

#[test]
fn a_blob_of_another_size_or_content_is_refused() {
    let plain = text(400_000);
    let blob = gzip(&plain, 6);
    let index = index_of(&blob, 50_000);
    let reason = |blob: &[u8], index: &[u8]| {
        let error = Reader::open(blob, index).err().unwrap();
        (error.kind(), error.reason())
    };
    assert_eq!(reason(&blob[1..], &index), (Kind::DataLoss, "gzindex.blob-size"));
    let mut short = index.clone();
    header::mend(&mut short, blob.len() as u64 - 9);
    assert_eq!(reason(&blob[..blob.len() - 9], &short), (Kind::DataLoss, "gzindex.cut"));
    let mut noise = blob.clone();
    let len = noise.len();
    noise[len / 2..len - 1000].fill(0xff);
    assert_eq!(reason(&noise, &index).0, Kind::DataLoss);

    // Damage before the last point is found when it is read.
    let mut noise = blob.clone();
    noise[100..len / 4].fill(0xff);
    let reader = Reader::open(&*noise, &*index).unwrap();
    let error = Error::from_io(reader.read_exact_at(1000, &mut [0; 9]).unwrap_err(), Kind::Internal, "");
    assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "gzindex.data"), "{error}");

    for (by, want) in [(1, "gzindex.end"), (-1_i64, "gzindex.end")] {
        let mut other = index.clone();
        let plain_bytes = (plain.len() as u64).wrapping_add_signed(by);
        other[49..57].copy_from_slice(&plain_bytes.to_le_bytes());
        header::mend(&mut other, blob.len() as u64);
        assert_eq!(reason(&blob, &other), (Kind::DataLoss, want), "{by}");
    }
}

/// Index with these points and windows, and a table as it is given.
fn made(packed: bool, points: u64, windows: &[u8], table: &[u8]) -> Vec<u8> {
    let header = Header {
        is_packed: packed,
        level: 6,
        span_bytes: SPAN_BYTES,
        points,
        blob_bytes: 1000,
        file_bytes: (Header::LEN + windows.len() + table.len()) as u64,
        plain_bytes: 5000,
        table_offset: (Header::LEN + windows.len()) as u64,
        table_bytes: table.len() as u64,
    };
    [&header.encode()[..], windows, table].concat()
}

fn refusal(index: &[u8]) -> &'static str {
    match Index::read(index).and_then(|read| read.verify(index)) {
        Ok(()) => "ok",
        Err(error) => error.reason(),
    }
}

#[test]
fn a_header_that_lies_is_refused_before_it_sizes_anything() {
    let good = made(false, 0, &[], &[]);
    assert_eq!(refusal(&good), "gzindex.start");
    let changed = |at: usize, bytes: &[u8], mend: bool| {
        let mut index = good.clone();
        index[at..at + bytes.len()].copy_from_slice(bytes);
        if mend {
            let sum = !crc32c::crc32c_append(!0, &index[..329]);
            index[329..333].copy_from_slice(&sum.to_le_bytes());
        }
        refusal(&index)
    };
    for (at, bytes, mend, want) in [
        (0, &b"D"[..], true, "gzindex.magic"),
        (8, &[2], true, "gzindex.version"),
        (9, &[7], true, "gzindex.start"), // A minor version breaks nothing.
        (9, &[7], false, "gzindex.checksum"),
        (10, &[2], true, "gzindex.field"),
        (17, &[0, 64, 0, 0], true, "gzindex.field"),
        (21, &[30], true, "gzindex.field"),
        (25, &[0xff; 8], true, "limit.gzindex-points"),
        (25, &[1, 0, 0x40, 0, 0, 0, 0, 0], true, "limit.gzindex-points"),
        (25, &[0, 0, 0x40, 0, 0, 0, 0, 0], true, "gzindex.table-data"),
        (33, &[0xff; 8], true, "gzindex.field"),
        (41, &[0xff; 8], true, "gzindex.file-size"),
        (49, &[0xff; 8], true, "gzindex.field"),
        (313, &[0xff; 8], true, "gzindex.table"),
        (313, &[0; 8], true, "gzindex.table"),
        (321, &[0xff; 8], true, "gzindex.table"),
        (321, &[1], true, "gzindex.table"),
    ] {
        assert_eq!(changed(at, bytes, mend), want, "{bytes:x?} at {at}");
    }
    for len in 0..Header::LEN {
        assert_eq!(refusal(&good[..len]), "gzindex.truncated");
    }
    assert_eq!(refusal(&[&good[..], b"x"].concat()), "gzindex.file-size");
}

#[test]
fn a_table_of_another_length_is_refused() {
    let point = Point { plain: 0, byte: 10, bits: 0, window_offset: 333, window_bytes: 32_768 };
    let windows = vec![0; 32_768];
    let record = point.encode();
    assert_eq!(refusal(&made(false, 1, &windows, &record)), "ok");
    assert_eq!(refusal(&made(false, 1, &windows, &record[1..])), "gzindex.table-data");
    assert_eq!(refusal(&made(false, 1, &windows, &[&record[..], b"x"].concat())), "gzindex.table-data");
    assert_eq!(refusal(&made(false, 2, &windows, &record)), "gzindex.table-data");

    let window = zlib::pack(6, &windows).unwrap();
    let record = Point { window_bytes: u32::try_from(window.len()).unwrap(), ..point }.encode();
    let table = |bytes: &[u8]| zlib::pack(6, bytes).unwrap();
    assert_eq!(refusal(&made(true, 1, &window, &table(&record))), "ok");
    for (points, table) in [
        (1, table(&[&record[..], b"x"].concat())),
        (1, table(&record[1..])),
        (2, table(&record)),
        (1, record.to_vec()),
        (1, table(&vec![0; 10 << 20])), // A bomb.
        (1, [table(&record), vec![0; 5]].concat()),
        (4 << 20, table(&record)), // Asks for 120 MB and has 40 bytes.
    ] {
        assert_eq!(refusal(&made(true, points, &window, &table)), "gzindex.table-data", "{points}");
    }
}

#[test]
fn a_window_of_another_length_is_refused() {
    for (len, want) in
        [(32_768, "ok"), (32_767, "gzindex.window"), (32_769, "gzindex.window"), (10 << 20, "gzindex.window")]
    {
        let window = zlib::pack(6, &vec![0; len]).unwrap();
        let window_bytes = u32::try_from(window.len()).unwrap();
        let point = Point { plain: 0, byte: 10, bits: 0, window_offset: 333, window_bytes };
        let index = made(true, 1, &window, &zlib::pack(6, &point.encode()).unwrap());
        assert_eq!(refusal(&index), want, "{len}");
    }
}

#[test]
fn points_that_go_back_or_lead_outside_are_refused() {
    let at = |plain, byte| Point { plain, byte, bits: 3, window_offset: 333, window_bytes: 32_768 };
    let good = at(0, 10);
    for (points, want) in [
        (vec![good, at(5000, 1000)], "ok"),
        (vec![good, good], "ok"),
        (vec![at(1, 10)], "gzindex.start"),
        (vec![good, at(100, 9)], "gzindex.order"),
        (vec![good, at(100, 20), at(99, 30)], "gzindex.order"),
        (vec![good, at(5001, 20)], "gzindex.range"),
        (vec![good, at(100, 1001)], "gzindex.range"),
        (vec![at(0, 0)], "gzindex.range"),
        (vec![at(u64::MAX, 10)], "gzindex.range"),
        (vec![at(0, u64::MAX)], "gzindex.range"),
        (vec![Point { bits: 8, ..good }], "gzindex.range"),
        (vec![Point { window_offset: 332, ..good }], "gzindex.range"),
        (vec![Point { window_offset: 334, ..good }], "gzindex.range"),
        (vec![Point { window_offset: u64::MAX, ..good }], "gzindex.range"),
        (vec![Point { window_bytes: 32_767, ..good }], "gzindex.range"),
        (vec![Point { window_bytes: u32::MAX, ..good }], "gzindex.range"),
    ] {
        let table: Vec<u8> = points.iter().flat_map(Point::encode).collect();
        let index = made(false, points.len() as u64, &[0; 32_768], &table);
        assert_eq!(refusal(&index), want, "{points:?}");
    }
}

#[test]
fn a_match_into_the_zeros_of_a_window_is_refused() {
    // Bytes before the start of the stream do not exist, whatever stands in the window for them: fixed codes, 'a', and
    // a match of 3 bytes, 4 bytes back.
    let body = [0x4b, 0x04, 0xc2, 0x00, 0x00];
    let blob = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255][..], &body, &[0; 8]].concat();
    assert_eq!(indexed(&blob, SPAN_BYTES).unwrap_err().reason(), "codec.gzip.deflate");
    let point = Point { plain: 0, byte: 10, bits: 0, window_offset: 333, window_bytes: 32_768 };
    let mut index = made(false, 1, &[7; 32_768], &point.encode());
    header::mend(&mut index, blob.len() as u64);
    let error = Reader::open(&*blob, &*index).err().unwrap();
    assert_eq!(error.reason(), "gzindex.data", "{error}");
}

/// The rule in words: the last block at or before every multiple of the span, each once.
fn wanted(blocks: &[u64], span: u64) -> Vec<u64> {
    let end = blocks.last().copied().unwrap_or_default();
    let mut points: Vec<_> = (0..=end)
        .step_by(usize::try_from(span).unwrap())
        .filter_map(|multiple| blocks.iter().rposition(|block| *block <= multiple))
        .map(|at| blocks[at])
        .collect();
    points.dedup();
    points
}

proptest! {
    #[test]
    fn points_are_the_last_blocks_before_each_multiple(
        steps in proptest::collection::vec(1_u64..60, 0..60), span in 1_u64..100, piece in 1_usize..200,
    ) {
        let mut chooser = Chooser::new(u32::try_from(span).unwrap());
        let (mut blocks, mut points) = (vec![0], Vec::new());
        for step in steps {
            blocks.push(blocks[blocks.len() - 1] + step);
        }
        let stream: Vec<u8> = (0..blocks[blocks.len() - 1]).map(|at| at.to_le_bytes()[0]).collect();
        let mut listed = 0;
        for start in (0..=stream.len()).step_by(piece) {
            let bytes = &stream[start..stream.len().min(start + piece)];
            // Those at the end of a piece are found with it, or with the next one.
            let ends = (start + bytes.len()) as u64 + u64::from(start % 2 == 0);
            let here = blocks[listed..].iter().take_while(|plain| **plain < ends || bytes.len() < piece);
            let here: Vec<_> = here
                .map(|plain| BlockStart {
                    at: usize::try_from(*plain).unwrap() - start, member: 0, bit: plain * 5,
                })
                .collect();
            listed += here.len();
            points.extend(chooser.take(bytes, &here).unwrap());
        }
        prop_assert_eq!(listed, blocks.len());
        let found: Vec<_> = points.iter().map(|chosen| chosen.place().plain).collect();
        prop_assert_eq!(found, wanted(&blocks, span));
        for chosen in points {
            let Place { plain, bit } = chosen.place();
            prop_assert_eq!(bit, plain * 5);
            let (zeros, window) = chosen.window().split_at(WINDOW_BYTES - usize::try_from(plain).unwrap());
            prop_assert!(zeros.iter().all(|byte| *byte == 0));
            prop_assert_eq!(window, &stream[..usize::try_from(plain).unwrap()]);
        }
    }

    #[test]
    fn damaged_indexes_never_panic(at in any::<prop::sample::Index>(), value in 1_u8..) {
        let mut index = BASE_INDEX.to_vec();
        let place = at.index(index.len());
        index[place] ^= value;
        let len = u32::try_from(BASE.len()).unwrap().to_le_bytes();
        fuzz(&[&len[..], BASE, &index].concat());
    }
}
