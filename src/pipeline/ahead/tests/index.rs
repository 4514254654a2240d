//! Helpers with an index of the stream.

use super::*;
use crate::format::ztoc::fixture::Point;

/// One helper, before the decoder, with an index.
fn in_turn_with(index: &[u8], blob: &[u8], distance: u64) -> (Vec<u8>, AheadFacts) {
    let ztoc = Ztoc::read(&index).unwrap();
    let mut shared = Bench::hinted(blob, Some(&ztoc), distance, 1, 256 << 10);
    shared.set_memory(u64::MAX / 2);
    Bench::new().in_turn_with(Some(&ztoc), &Arc::new(shared), 1).unwrap()
}

#[test]
fn with_an_index_pieces_begin_where_it_says() {
    let plain = mixed(3 << 20);
    for level in [4, 6, 9] {
        let blob = gzip(&plain, level);
        let index = fixture::file(blob.len() as u64, &fixture::points(&blob, 100_000));
        let (output, ahead) = in_turn_with(&index, &blob, 200 << 10);
        assert!(output == plain, "level {level}");
        assert_eq!((ahead.missed, ahead.late, ahead.misfit), (0, 0, None), "level {level}: {ahead:?}");
        assert!(ahead.indexed > 5 && ahead.indexed == ahead.used, "level {level}: {ahead:?}");
        assert!(ahead.bytes > plain.len() as u64 * 3 / 4, "level {level}: {ahead:?}");
    }
}

/// Indexes of a blob that lie in one way each.
fn lies(blob: &[u8]) -> Vec<(&'static str, Vec<Point>)> {
    let points = fixture::points(blob, 60_000);
    let each = |change: fn(&mut Point)| {
        let mut points = points.clone();
        points.iter_mut().skip(1).for_each(change);
        points
    };
    let mut turned = points.clone();
    for (point, other) in turned.iter_mut().zip(points.iter().cycle().skip(1)) {
        point.window.clone_from(&other.window);
    }
    let other: Vec<u8> = mixed(6 << 20).split_off(2 << 20);
    vec![
        ("a byte late", each(|point| point.byte += 1)),
        ("a bit early", each(|point| (point.byte, point.bits) = (point.byte - 1, point.bits ^ 1))),
        ("far off", each(|point| point.byte -= 20_000)),
        ("the oldest byte of the window", each(|point| point.window[0] ^= 1)),
        ("the last byte of the window", each(|point| point.window[32_767] ^= 0x80)),
        ("windows of other places", turned),
        ("of another layer", fixture::points(&gzip(&other, 6), 60_000)),
    ]
}

#[test]
fn an_index_that_lies_is_given_up() {
    let plain = mixed(4 << 20);
    let blob = gzip(&plain, 6);
    for (what, mut points) in lies(&blob) {
        points.retain(|point| point.byte <= blob.len() as u64);
        let (output, ahead) = in_turn_with(&fixture::file(blob.len() as u64, &points), &blob, 100 << 10);
        assert!(output == plain, "{what}");
        assert_eq!(ahead.indexed, 0, "{what}: {ahead:?}");
        assert!(ahead.missed >= 3 && ahead.misfit.is_some(), "{what}: {ahead:?}");
    }
}

#[test]
fn an_index_with_some_wrong_places_is_used_for_the_others() {
    let plain = mixed(4 << 20);
    let blob = gzip(&plain, 6);
    let mut points = fixture::points(&blob, 60_000);
    points.iter_mut().step_by(4).for_each(|point| point.window[9] ^= 1);
    let (output, ahead) = in_turn_with(&fixture::file(blob.len() as u64, &points), &blob, 30 << 10);
    assert!(output == plain);
    assert!(ahead.indexed > 5 && ahead.missed > 3 && ahead.misfit.is_none(), "{ahead:?}");
}

#[test]
fn indexes_that_soci_wrote_are_used() {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ztoc");
    let read = |name: &str| std::fs::read(fixtures.join(name)).unwrap();
    // The second member begins where the index has a place, and the decoder does not pause there.
    for (index, members, indexed, missed) in [("layer.ztoc", 1, 2, 0), ("twice.ztoc", 2, 4, 1)] {
        let blob = read("layer.tar.gz").repeat(members);
        let (output, ahead) = in_turn_with(&read(index), &blob, 40 << 10);
        let Ran { output: plain, .. } = run(&blob, 0, AheadOptions::OFF).unwrap();
        assert!(output == plain, "{index}");
        let found = (ahead.indexed, ahead.missed, ahead.misfit);
        assert_eq!(found, (indexed, missed, None), "{index}: {ahead:?}");
    }
}

#[test]
fn an_index_makes_no_difference_to_a_real_run() {
    let plain = mixed(2 << 20);
    let blob = gzip(&plain, 6);
    let mut indexes = lies(&blob);
    indexes.push(("right", fixture::points(&blob, 60_000)));
    for (what, mut points) in indexes {
        points.retain(|point| point.byte <= blob.len() as u64);
        let index = fixture::file(blob.len() as u64, &points);
        let ztoc = Ztoc::read(&index).unwrap();
        // Two threads are those of decoding and building.
        for helpers in [0, 1, 2, 8] {
            let digest = Some(Digest::sha256(&blob));
            let Ran { output, facts, .. } =
                run_hinted(&blob, Some(&ztoc), digest, helpers + 2, SMALL).unwrap();
            assert!(output == plain, "{what}, {helpers} helpers");
            assert_eq!(facts.diff_id, Digest::sha256(&plain), "{what}, {helpers} helpers");
            let is_right = what == "right";
            assert!(is_right || facts.ahead.indexed == 0, "{what}, {helpers} helpers: {:?}", facts.ahead);
            assert!(!is_right || facts.ahead.misfit.is_none(), "{helpers} helpers: {:?}", facts.ahead);
        }
    }
}

#[test]
fn an_index_whose_windows_cannot_be_read_any_more_is_given_up() {
    struct Shrinking(Vec<u8>, std::sync::atomic::AtomicBool);
    impl crate::format::ReadAt for Shrinking {
        fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
            match self.1.load(std::sync::atomic::Ordering::Relaxed) {
                true => Err(std::io::ErrorKind::UnexpectedEof.into()),
                false => self.0.read_exact_at(offset, buf),
            }
        }

        fn size_bytes(&self) -> u64 {
            self.0.len() as u64
        }
    }
    let plain = mixed(2 << 20);
    let blob = gzip(&plain, 6);
    let file = fixture::file(blob.len() as u64, &fixture::points(&blob, 60_000));
    let file = Shrinking(file, false.into());
    let ztoc = Ztoc::read(&file).unwrap();
    file.1.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut shared = Bench::hinted(&blob, Some(&ztoc), 60 << 10, 1, 256 << 10);
    shared.set_memory(u64::MAX / 2);
    let (output, ahead) = Bench::new().in_turn_with(Some(&ztoc), &Arc::new(shared), 1).unwrap();
    assert!(output == plain);
    assert!(ahead.indexed == 0 && ahead.used > 3 && ahead.misfit.is_some(), "{ahead:?}");
}

#[test]
fn an_index_is_that_of_a_gzip_blob_of_its_size() {
    let (one, frame) = (gzip(&mixed(100_000), 6), zstd::bulk::compress(&mixed(100_000), 1).unwrap());
    let file = fixture::file(20 << 20, &fixture::points(&one, 10_000));
    let ztoc = Ztoc::read(&file).unwrap();
    for (head, size, want) in [
        (&one, Some(20 << 20), Some(true)),
        (&one, Some((20 << 20) + 1), None),
        (&one, Some(64 << 20), Some(false)),
        (&one, None, None),
        (&frame, Some(20 << 20), None),
    ] {
        let plan = AheadOptions::AUTO.plan(size, Coding::detect(head), [head.as_slice()], Some(&ztoc));
        assert_eq!(plan.map(|plan| plan.index.is_some()), want, "{size:?}");
    }
}
