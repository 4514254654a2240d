use std::io::{self, Read, Write};

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;

use super::*;
use crate::{
    call::{Cancel, Phase, Progress, Seen, Work},
    error::{Error, Kind},
    format::{ReadAt as _, Sink, gzindex},
    limits::Limits,
    pipeline::{AheadOptions, Resources, buffer::Chunk},
};

/// Collects the bytes; refuses or panics when it meets a certain one.
#[derive(Default)]
struct Collect {
    bytes: Vec<u8>,
    refuse: Option<u8>,
    panic: Option<u8>,
}

impl Stage for Collect {
    type Output = Vec<u8>;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        if let Some(byte) = self.panic {
            assert!(!chunk.contains(&byte), "met the byte to panic at");
        }
        if self.refuse.is_some_and(|byte| chunk.contains(&byte)) {
            return Err(Error::new(Kind::Malformed, "test.refused", "met the byte to refuse"));
        }
        self.bytes.extend_from_slice(&chunk);
        Ok(())
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.bytes)
    }
}

/// Delivers bytes in pieces of `step`.
struct Pieces<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = buf.len().min(self.step).min(self.bytes.len());
        let (now, rest) = self.bytes.split_at(len);
        buf[..len].copy_from_slice(now);
        self.bytes = rest;
        Ok(len)
    }
}

struct Setup {
    helpers: usize,
    limits: Limits,
    cancel: Cancel,
    size_bytes: Option<u64>,
    digest: Option<Digest>,
    step: usize,
    ahead: AheadOptions,
}

fn setup(blob: &[u8]) -> Setup {
    Setup {
        helpers: 3,
        limits: Limits::default(),
        cancel: Cancel::new(),
        size_bytes: Some(blob.len() as u64),
        digest: Some(Digest::sha256(blob)),
        step: usize::MAX,
        ahead: AheadOptions::AUTO,
    }
}

impl Setup {
    fn run<S: Stage>(&self, blob: &[u8], consumer: S) -> Result<Ran<S::Output>> {
        let resources = Resources::with_ahead(self.limits.clone(), self.helpers, self.ahead);
        let progress = Progress::default();
        let mut reader = Pieces { bytes: blob, step: self.step };
        let (size_bytes, digest) = (self.size_bytes, self.digest.clone());
        let source = Source { reader: &mut reader, size_bytes, digest };
        let lease = resources.budget.lease(&Cancel::new()).unwrap();
        let work = Work { cancel: &self.cancel, progress: &progress };
        let plan = Plan { resources: &resources, lease: &lease, work };
        let outcome = Pipeline::new(source, plan).run(consumer);
        drop(lease);
        assert_eq!(resources.helpers.free(), self.helpers, "permits come back");
        assert_eq!(resources.budget.charged_bytes(), 0, "memory comes back");
        if outcome.is_ok() {
            let seen =
                Seen { phase: Phase::Transfer, done_bytes: blob.len() as u64, total_bytes: self.size_bytes };
            assert_eq!(progress.look(), seen);
        }
        outcome
    }

    fn collect(&self, blob: &[u8]) -> Result<Ran<Vec<u8>>> {
        self.run(blob, Collect::default())
    }

    /// Result of a run, and the index that it left behind.
    fn index(&self, blob: &[u8], file: impl Sink + Send) -> Result<Ran<Vec<u8>>> {
        let resources = Resources::new(self.limits.clone(), self.helpers);
        let progress = Progress::default();
        let mut reader = Pieces { bytes: blob, step: self.step };
        let source = Source { reader: &mut reader, size_bytes: self.size_bytes, digest: self.digest.clone() };
        let lease = resources.budget.lease(&Cancel::new()).unwrap();
        let work = Work { cancel: &self.cancel, progress: &progress };
        let plan = Plan { resources: &resources, lease: &lease, work };
        let outcome = Pipeline::new(source, plan).indexed(file).run(Collect::default());
        assert_eq!(resources.helpers.free(), self.helpers, "permits come back");
        outcome
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).unwrap()
}

/// Bytes without a pattern, so that compressed blobs are not small ones; none of them is 255.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 % 255
    };
    (0..len).map(step).collect()
}

fn codings(bytes: &[u8]) -> [Vec<u8>; 3] {
    [bytes.to_vec(), gzip(bytes), zstd(bytes)]
}

#[test]
fn every_coding_gives_the_same_stream_and_diff_id_with_any_threads() {
    for len in [0, 1, 511, 300_000, 2_500_000] {
        let bytes = noise(len);
        for (blob, coding) in codings(&bytes).into_iter().zip([Coding::Plain, Coding::Gzip, Coding::Zstd]) {
            for helpers in 0..=4 {
                let ran = Setup { helpers, ..setup(&blob) }.collect(&blob).unwrap();
                assert_eq!((ran.facts.coding, ran.output == bytes), (coding, true), "{len} bytes, {helpers}");
                assert_eq!((ran.facts.diff_id, ran.facts.stream_bytes), (Digest::sha256(&bytes), len as u64));
                assert_eq!(
                    (ran.facts.blob, ran.facts.blob_bytes),
                    (Digest::sha256(&blob), blob.len() as u64)
                );
            }
        }
    }
}

/// A step before the detection, which makes other bytes of the blob and pushes them on one by one.
struct Flip<S>(S);

impl<S: Stage> Stage for Flip<S> {
    type Output = S::Output;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        chunk.iter().try_for_each(|byte| self.0.push(Chunk::copy_of(&[!byte])))
    }

    fn finish(self) -> Result<S::Output> {
        self.0.finish()
    }
}

#[test]
fn the_coding_is_that_of_the_bytes_that_reach_the_detection() {
    for len in [0, 1, 30_000] {
        let bytes = noise(len);
        for (stream, coding) in codings(&bytes).into_iter().zip([Coding::Plain, Coding::Gzip, Coding::Zstd]) {
            for helpers in [0, 3] {
                let blob: Vec<u8> = stream.iter().map(|byte| !byte).collect();
                let Setup { limits, cancel, size_bytes, digest, .. } = setup(&blob);
                let resources = Resources::new(limits, helpers);
                let lease = resources.budget.lease(&cancel).unwrap();
                let work = Work { cancel: &cancel, progress: &Progress::default() };
                let plan = Plan { resources: &resources, lease: &lease, work };
                let source = Source { reader: &mut &blob[..], size_bytes, digest };
                let hash = Waiting::new(Algorithm::Sha256, &resources.helpers);
                let (is_small, size_bytes) = (false, None);
                let (ztoc, coded, whole) = (None, None, None);
                let manner = Manner { plan, is_small, size_bytes, ztoc, coding: coded, whole, blob: &hash };
                let fed = thread::scope(|scope| {
                    let detect = Detect::new(scope, manner, Collect::default());
                    Feed::new(source, plan)?.drive(scope, &Spare::default(), &hash, Flip(detect))
                });
                let Ran { output, facts, .. } = fed.unwrap().into_ran();
                assert_eq!((facts.coding, output == bytes), (coding, true), "{len} bytes, {helpers} helpers");
                assert_eq!((facts.blob, facts.diff_id), (Digest::sha256(&blob), Digest::sha256(&bytes)));
                assert_eq!((facts.blob_bytes, facts.stream_bytes), (blob.len() as u64, len as u64));
            }
        }
    }
}

#[test]
fn digests_of_other_kinds_are_compared_and_the_diff_id_stays_sha256() {
    let bytes = noise(300_000);
    for blob in codings(&bytes) {
        let mut hasher = crate::digest::Hasher::new(Algorithm::Sha512);
        hasher.update(&blob);
        let digest = hasher.finish();
        let ran = Setup { digest: Some(digest.clone()), ..setup(&blob) }.collect(&blob).unwrap();
        assert_eq!((ran.facts.blob, ran.facts.diff_id), (digest, Digest::sha256(&bytes)));
    }
}

#[test]
fn a_blob_of_unknown_size_and_digest_is_taken_as_it_is() {
    let bytes = noise(1000);
    for blob in codings(&bytes) {
        let unknown = Setup { size_bytes: None, digest: None, step: 7, ..setup(&blob) };
        let ran = unknown.collect(&blob).unwrap();
        assert_eq!((ran.output, ran.facts.blob), (bytes.clone(), Digest::sha256(&blob)));
    }
}

#[test]
fn wrong_bytes_are_data_loss_wherever_they_are_noticed() {
    let bytes = noise(600_000);
    for blob in codings(&bytes) {
        for helpers in [0, 3] {
            let setup = Setup { helpers, ..setup(&blob) };
            let reason = |blob: &[u8]| {
                let error = setup.collect(blob).unwrap_err();
                assert_eq!(error.kind(), Kind::DataLoss, "{error}");
                error.reason()
            };
            for at in [0, blob.len() / 2, blob.len() - 1] {
                let mut flipped = blob.clone();
                flipped[at] ^= 0x20;
                assert_eq!(reason(&flipped), "blob.digest", "byte {at} of {}", blob.len());
            }
            assert_eq!(reason(&blob[..blob.len() - 1]), "blob.size");
            assert_eq!(reason(&[]), "blob.size");
            assert_eq!(reason(&[&blob[..], b"x"].concat()), "blob.size");
            assert_eq!(reason(&[&blob[..], &noise(600_000)].concat()), "blob.size");
        }
    }
}

#[test]
fn a_refusal_stands_only_against_the_bytes_that_were_asked_for() {
    for helpers in [0, 1, 2, 3] {
        for bytes in [vec![255; 10], [noise(900_000), vec![255], noise(900_000)].concat()] {
            for blob in codings(&bytes) {
                let refuse = || Collect { refuse: Some(255), ..Collect::default() };
                let right = Setup { helpers, ..setup(&blob) };
                let error = right.run(&blob, refuse()).unwrap_err();
                assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "test.refused"));
                let wrong = Setup { digest: Some(Digest::sha256(b"another")), ..right };
                let error = wrong.run(&blob, refuse()).unwrap_err();
                assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "blob.digest"));
                assert!(error.to_string().contains("hence: met the byte to refuse"), "{error}");
            }
        }
    }
}

#[test]
fn a_damaged_stream_is_refused_for_what_it_is() {
    let cut = gzip(&noise(400_000));
    let cut = &cut[..cut.len() - 3];
    for (blob, reason) in [
        (cut, "codec.gzip.truncated"),
        (&[&gzip(b"x")[..], b"garbage"].concat()[..], "codec.gzip.trailing"),
        (&[&zstd(b"x")[..], b"garbage"].concat(), "codec.zstd.trailing"),
    ] {
        let error = setup(blob).collect(blob).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, reason));
    }
}

#[test]
fn everything_after_the_first_member_counts_too() {
    let blob = [gzip(b"one"), gzip(b""), gzip(b"two"), vec![0; 100]].concat();
    let ran = setup(&blob).collect(&blob).unwrap();
    assert_eq!((ran.facts.diff_id, &ran.output[..]), (Digest::sha256(b"onetwo"), &b"onetwo"[..]));
}

#[test]
fn a_panic_anywhere_is_an_internal_error() {
    let blob = gzip(&[noise(900_000), vec![255], noise(900_000)].concat());
    for helpers in [1, 2, 3] {
        let error = Setup { helpers, ..setup(&blob) }
            .run(&blob, Collect { panic: Some(255), ..Collect::default() })
            .unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Internal, "internal.panic"));
    }
}

#[test]
fn a_cancelled_run_ends_at_the_next_buffer() {
    /// Cancels after a while, and goes on for ever.
    struct Endless<'a>(&'a Cancel, u32);
    impl Read for Endless<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.1 += 1;
            if self.1 == 20 {
                self.0.cancel();
            }
            assert!(self.1 < 30, "read on after the cancellation");
            buf.fill(b'a');
            Ok(buf.len())
        }
    }
    for helpers in [0, 3] {
        let (resources, cancel) = (Resources::new(Limits::default(), helpers), Cancel::new());
        let source = Source { reader: &mut Endless(&cancel, 0), size_bytes: None, digest: None };
        let lease = resources.budget.lease(&cancel).unwrap();
        let work = Work { cancel: &cancel, progress: &Progress::default() };
        let plan = Plan { resources: &resources, lease: &lease, work };
        let error = Pipeline::new(source, plan).run(Collect::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled);
    }
}

#[test]
fn limits_on_blob_stream_and_window_hold() {
    let bytes = noise(300_000);
    let limits = |blob_bytes, stream_bytes, zstd_window_bytes| Limits {
        blob_bytes,
        stream_bytes,
        zstd_window_bytes,
        ..Limits::default()
    };
    for blob in codings(&bytes) {
        let refused = |limits, size_bytes| {
            let error = Setup { limits, size_bytes, ..setup(&blob) }.collect(&blob).unwrap_err();
            (error.kind(), error.reason())
        };
        assert_eq!(refused(limits(1000, 1 << 30, 1 << 27), None), (Kind::Exhausted, "limit.blob"));
        let size = Some(blob.len() as u64);
        assert_eq!(refused(limits(1000, 1 << 30, 1 << 27), size), (Kind::Exhausted, "limit.blob"));
        assert_eq!(refused(limits(1 << 30, 299_999, 1 << 27), size), (Kind::Exhausted, "limit.stream"));
    }
    let blob = zstd(&bytes);
    let error = Setup { limits: limits(1 << 30, 1 << 30, 1024), ..setup(&blob) }.collect(&blob).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "codec.zstd.window"));
}

#[test]
fn an_error_of_the_store_keeps_its_class() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(Error::new(Kind::Unavailable, "store.gone", "the store went away").into_io())
        }
    }
    let (resources, cancel) = (Resources::new(Limits::default(), 0), Cancel::new());
    let source = Source { reader: &mut Failing, size_bytes: Some(9), digest: None };
    let lease = resources.budget.lease(&cancel).unwrap();
    let work = Work { cancel: &cancel, progress: &Progress::default() };
    let plan = Plan { resources: &resources, lease: &lease, work };
    let error = Pipeline::new(source, plan).run(Collect::default()).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, "store.gone"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn steps_of_the_reader_make_no_difference(
        len in 0_usize..2000, step in 1_usize..300, helpers in 0_usize..4,
    ) {
        let bytes = noise(len);
        for blob in codings(&bytes) {
            let ran = Setup { step, helpers, ..setup(&blob) }.collect(&blob).unwrap();
            prop_assert_eq!(&ran.output, &bytes);
        }
    }
}

#[test]
fn an_index_is_left_behind_and_is_the_same_with_any_threads() {
    let plain: Vec<u8> = noise(300_000).into_iter().map(|byte| byte % 16).cycle().take(2_500_000).collect();
    // Level 1 makes one block of everything.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(&plain).unwrap();
    let blob = encoder.finish().unwrap();
    let mut want = None;
    for helpers in [0, 1, 3, 8] {
        for step in [usize::MAX, 10_000] {
            let mut index = Vec::new();
            let ran = Setup { helpers, step, ..setup(&blob) }.index(&blob, &mut index).unwrap();
            assert!(ran.output == plain && ran.facts.diff_id == Digest::sha256(&plain), "{helpers}");
            assert_eq!(ran.index.map(|header| header.file_bytes), Some(index.len() as u64));
            assert!(
                *want.get_or_insert_with(|| index.clone()) == index,
                "{helpers} helpers, steps of {step}"
            );
        }
    }
    let index = want.unwrap();
    let reader = gzindex::Reader::open(&*blob, &*index).unwrap();
    assert_eq!((reader.size_bytes(), reader.index().points().len()), (2_500_000, 3));
    let mut bytes = [0; 5000];
    for at in [0, 1 << 20, 1_999_999, 2_495_000] {
        reader.read_exact_at(at as u64, &mut bytes).unwrap();
        assert!(bytes == plain[at..at + 5000], "at {at}");
    }
}

#[test]
fn only_gzip_leaves_an_index_behind() {
    let bytes = noise(100_000);
    for (blob, is_gzip) in codings(&bytes).into_iter().zip([false, true, false]) {
        let mut index = Vec::new();
        let ran = setup(&blob).index(&blob, &mut index).unwrap();
        assert_eq!((ran.index.is_some(), index.is_empty()), (is_gzip, !is_gzip));
    }
}

#[test]
fn a_blob_of_two_members_is_refused_when_its_index_is_wanted() {
    let blob = [gzip(&noise(200_000)), gzip(b"more")].concat();
    for helpers in [0, 4] {
        let setup = Setup { helpers, ..setup(&blob) };
        assert!(setup.collect(&blob).is_ok());
        let error = setup.index(&blob, Vec::new()).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "gzindex.members"), "{error}");
    }
}

#[test]
fn a_disk_that_is_full_ends_an_index_as_what_it_is() {
    struct Full;
    impl Sink for Full {
        fn write_at(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn discard(&mut self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn set_len(&mut self, _: u64) -> io::Result<()> {
            Ok(())
        }
    }
    let blob = gzip(&noise(3_000_000));
    for helpers in [0, 4] {
        let error = Setup { helpers, ..setup(&blob) }.index(&blob, Full).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "disk.io"), "{error}");
    }
}

/// Every layer of other tools, good and bad, and the digest that its archive has by the tool's word, if it has one.
fn indexed_layers() -> Vec<(String, Vec<u8>, Option<String>)> {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stargz");
    let mut found = Vec::new();
    for part in ["estargz", "zstdchunked", "other", "bad"] {
        for entry in std::fs::read_dir(fixtures.join(part)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ending| ending == "json") {
                continue;
            }
            let name = path.display().to_string();
            let declared = std::fs::read(format!("{name}.json")).ok().map(|json| {
                let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
                json["diffID"].as_str().unwrap().to_owned()
            });
            found.push((name, std::fs::read(path).unwrap(), declared));
        }
    }
    found
}

#[test]
fn indexed_layers_give_the_same_bytes_and_digest_with_any_number_of_helpers() {
    let layers = indexed_layers();
    assert!(layers.iter().filter(|(.., declared)| declared.is_some()).count() >= 12);
    for (name, blob, declared) in layers {
        let in_order = Setup { helpers: 0, ahead: AheadOptions::OFF, ..setup(&blob) }.collect(&blob);
        if let (Ok(ran), Some(declared)) = (&in_order, &declared) {
            assert_eq!(ran.facts.diff_id.to_string(), *declared, "{name}");
        }
        // Every layer of ours is a short one.
        let ahead = AheadOptions { from_bytes: Some(0), members_from_bytes: 0, distance: 300, yields: false };
        for helpers in [1, 2, 8] {
            let found = Setup { helpers, ahead, step: 700, ..setup(&blob) }.collect(&blob);
            match (&in_order, found) {
                (Ok(want), Ok(found)) => {
                    assert!(found.output == want.output, "{name}: other bytes with {helpers} helpers");
                    assert_eq!(found.facts.diff_id, want.facts.diff_id, "{name}, {helpers} helpers");
                }
                (Err(want), Err(found)) => assert_eq!(found.reason(), want.reason(), "{name}"),
                (want, found) => panic!("{name}, {helpers} helpers: {:?}, {:?}", want.is_ok(), found.is_ok()),
            }
        }
    }
}
