use std::{io::Write, sync::Mutex, thread, time::Instant};

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;

use super::{piece::Job, stream::HELPER_WINDOW_BYTES, *};
use crate::{
    call::{Cancel, Progress, Work},
    codec::{Coding, Decoder as _},
    digest::Digest,
    error::Kind,
    format::ztoc::{Ztoc, fixture},
    limits::Limits,
    pipeline::{Pipeline, Ran, Resources, Source},
};

mod index;

/// Collects what comes.
#[derive(Default)]
pub(super) struct Collect(Vec<u8>);

impl Stage for Collect {
    type Output = Vec<u8>;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        // As slow as a consumer that builds an image, so that helpers get a turn on any machine.
        thread::sleep(Duration::from_micros(300));
        self.0.extend_from_slice(&chunk);
        Ok(())
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.0)
    }
}

const SMALL: AheadOptions =
    AheadOptions { from_bytes: Some(0), members_from_bytes: 0, distance: 128 << 10, yields: false };

fn run(blob: &[u8], helpers: usize, ahead: AheadOptions) -> Result<Ran<Vec<u8>>> {
    run_as(blob, Some(Digest::sha256(blob)), helpers, ahead)
}

fn run_as(blob: &[u8], digest: Option<Digest>, helpers: usize, ahead: AheadOptions) -> Result<Ran<Vec<u8>>> {
    run_hinted(blob, None, digest, helpers, ahead)
}

fn run_hinted(
    blob: &[u8],
    index: Option<&Ztoc<'_>>,
    digest: Option<Digest>,
    helpers: usize,
    ahead: AheadOptions,
) -> Result<Ran<Vec<u8>>> {
    let resources = Resources::with_ahead(Limits::default(), helpers, ahead);
    let cancel = Cancel::new();
    let lease = resources.budget.lease(&cancel).unwrap();
    let plan = Plan {
        resources: &resources,
        lease: &lease,
        work: Work { cancel: &cancel, progress: &Progress::default() },
    };
    let source = Source { reader: &mut &*blob, size_bytes: Some(blob.len() as u64), digest };
    let outcome = Pipeline::new(source, plan).hinted(index).run(Collect::default());
    drop(lease);
    assert_eq!(resources.helpers.free_idle(), helpers.saturating_sub(2), "permits come back");
    assert_eq!(resources.budget.charged_bytes(), 0, "memory comes back");
    outcome
}

pub(super) fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Text, runs, noise, and copies from near and far.
fn mixed(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut step = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()
    };
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let [_, kind, a, b] = step();
        match kind % 4 {
            0 => bytes.extend(format!("entry {a} of {b}; ").bytes()),
            1 => bytes.extend(std::iter::repeat_n(a, usize::from(b) / 8)),
            2 => {
                let from = bytes.len().saturating_sub(usize::from(a) * 131 + 1);
                bytes.extend_from_within(from..(from + usize::from(b) / 4).min(bytes.len()));
            }
            _ => bytes.extend((0..60).map(|_| step()[3])),
        }
    }
    bytes.truncate(len);
    bytes
}

#[test]
fn pieces_decoded_ahead_are_used_and_give_the_bytes_of_the_stream() {
    let plain = mixed(6 << 20);
    for level in [1, 4, 6, 9] {
        let blob = gzip(&plain, level);
        for helpers in [3, 4, 6] {
            let Ran { output, facts, index: _ } = run(&blob, helpers, SMALL).unwrap();
            assert!(output == plain, "level {level}, {helpers} threads");
            assert_eq!((facts.diff_id, facts.blob), (Digest::sha256(&plain), Digest::sha256(&blob)));
            println!("level {level}: {} blob, {:?}", blob.len(), facts.ahead);
        }
    }
}

/// Everything for a decoder and helpers that are run by hand.
struct Bench {
    resources: Arc<Resources>,
    cancel: Cancel,
    progress: Progress,
    pool: Arc<Pool>,
}

impl Bench {
    fn new() -> Self {
        Self {
            resources: Resources::with_ahead(Limits::default(), 3, SMALL),
            cancel: Cancel::new(),
            progress: Progress::default(),
            pool: Pool::new(512 << 10),
        }
    }

    /// All of `blob`, in chunks, for `helpers` helpers.
    fn shared(blob: &[u8], distance: u64, helpers: usize, chunk_bytes: usize) -> Arc<Shared> {
        Arc::new(Self::filled(blob, distance, helpers, chunk_bytes))
    }

    fn filled(blob: &[u8], distance: u64, helpers: usize, chunk_bytes: usize) -> Shared {
        Self::hinted(blob, None, distance, helpers, chunk_bytes)
    }

    fn hinted(
        blob: &[u8],
        index: Option<&Ztoc<'_>>,
        distance: u64,
        helpers: usize,
        chunk_bytes: usize,
    ) -> Shared {
        let coding = Coding::detect(blob);
        let mut shared = Shared::new(AheadPlan { coding, distance, index }, helpers);
        let mut starts = Starts::of(coding);
        shared.set_window(u64::MAX);
        for bytes in blob.chunks(chunk_bytes) {
            assert!(shared.add(Chunk::copy_of(bytes), &mut starts));
        }
        shared.end_input();
        shared
    }

    /// Runs `helpers` helpers one after the other over the whole input, and then the decoder: nothing depends on who is
    /// faster.
    fn in_turn(&self, shared: &Arc<Shared>, helpers: usize) -> Result<(Vec<u8>, AheadFacts)> {
        self.in_turn_with(None, shared, helpers)
    }

    fn in_turn_with(
        &self,
        index: Option<&Ztoc<'_>>,
        shared: &Arc<Shared>,
        helpers: usize,
    ) -> Result<(Vec<u8>, AheadFacts)> {
        let lease = self.resources.budget.lease(&self.cancel).unwrap();
        let work = Work { cancel: &self.cancel, progress: &self.progress };
        let plan = Plan { resources: &self.resources, lease: &lease, work };
        for _ in 0..helpers {
            Helper::new(Arc::clone(shared), Arc::clone(&self.pool), plan, 0, index).work()?;
        }
        let pool = Arc::clone(&self.pool);
        let outlet = Outlet::new(Arc::clone(&pool), plan, Collect::default());
        let stream = Stream::new(shared.coding(), Limits::default().zstd_window_bytes)?;
        let decoded = Near { shared: Arc::clone(shared), stream, pool, outlet, plan }.run();
        let is_back = helpers == 0 || shared.memory_in_use() == 0;
        assert!(decoded.is_err() || is_back, "memory of parts comes back");
        decoded.map(|decoded| (decoded.output, decoded.ahead))
    }
}

fn in_turn(blob: &[u8], distance: u64, chunk_bytes: usize) -> Result<(Vec<u8>, AheadFacts)> {
    let mut shared = Bench::filled(blob, distance, 1, chunk_bytes);
    // The helper comes before the decoder, which gives no memory back meanwhile.
    shared.set_memory(u64::MAX / 2);
    Bench::new().in_turn(&Arc::new(shared), 1)
}

#[test]
fn all_that_a_helper_has_decoded_is_used_but_for_the_first_and_the_last_blocks() {
    let plain = mixed(3 << 20);
    for level in [4, 6, 9] {
        let blob = gzip(&plain, level);
        for chunk_bytes in [256 << 10, 70_001] {
            let (output, ahead) = in_turn(&blob, 200 << 10, chunk_bytes).unwrap();
            assert!(output == plain, "level {level}");
            assert_eq!((ahead.missed, ahead.late), (0, 0), "level {level}: {ahead:?}");
            assert!(ahead.used > 5 && ahead.bytes > plain.len() as u64 * 3 / 4, "level {level}: {ahead:?}");
        }
    }
}

#[test]
fn members_that_say_how_long_they_are_are_decoded_ahead_without_a_search() {
    let plain = mixed(3 << 20);
    let blob = sized_members(&plain, 0);
    let (output, ahead) = in_turn(&blob, 200 << 10, 256 << 10).unwrap();
    assert!(output == plain);
    assert_eq!((ahead.missed, ahead.late), (0, 0), "{ahead:?}");
    assert!(ahead.used > 5 && ahead.bytes > plain.len() as u64 * 3 / 4, "{ahead:?}");
    // Sizes that are a lie lead nowhere.
    for lie in [1, 7, 300] {
        let (output, ahead) = in_turn(&sized_members(&plain, lie), 200 << 10, 256 << 10).unwrap();
        assert!(output == plain);
        assert_eq!((ahead.used, ahead.bytes), (0, 0), "{ahead:?}");
    }
    // Nor is a sum taken on trust.
    let mut wrong = blob;
    let at = wrong.len() / 2;
    let end = at + wrong[at..].windows(4).position(|bytes| bytes == [0x1f, 0x8b, 8, 4]).unwrap();
    wrong[end - 6] ^= 1;
    let error = in_turn(&wrong, 200 << 10, 256 << 10).unwrap_err();
    assert_eq!(error.reason(), "codec.gzip.checksum");
}

/// Members as BGZF has them; each says that it is `lie` bytes longer than it is.
fn sized_members(plain: &[u8], lie: u16) -> Vec<u8> {
    let mut blob = Vec::new();
    for bytes in plain.chunks(40_000) {
        let member = gzip(bytes, 6);
        let size = u16::try_from(member.len() + 8 - 1).unwrap() + lie;
        blob.extend([&member[..3], &[4], &member[4..10], &[6, 0, b'B', b'C', 2, 0]].concat());
        blob.extend(size.to_le_bytes());
        blob.extend(&member[10..]);
    }
    blob
}

/// Members as eStargz has them: one for each file, with the headers of others between them.
fn members(plain: &[u8], bytes: usize) -> Vec<u8> {
    plain.chunks(bytes).flat_map(|bytes| gzip(bytes, 6)).collect()
}

fn frames(plain: &[u8], bytes: usize) -> Vec<u8> {
    let frame = |(n, bytes): (usize, &[u8])| {
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        [if n % 3 == 1 { skippable } else { Vec::new() }, zstd::bulk::compress(bytes, 1).unwrap()].concat()
    };
    plain.chunks(bytes).enumerate().flat_map(frame).collect()
}

#[test]
fn members_and_frames_are_decoded_ahead_without_a_search() {
    let plain = mixed(4 << 20);
    for bytes in [700, 9000, 150_000] {
        for blob in [members(&plain, bytes), frames(&plain, bytes)] {
            for chunk_bytes in [256 << 10, 70_001] {
                let (output, ahead) = in_turn(&blob, 100 << 10, chunk_bytes).unwrap();
                assert!(output == plain);
                assert_eq!((ahead.missed, ahead.late), (0, 0), "{bytes}: {ahead:?}");
                assert!(ahead.used > 3 && ahead.bytes > plain.len() as u64 / 2, "{bytes}: {ahead:?}");
            }
        }
    }
}

#[test]
fn a_real_run_decodes_members_and_frames_ahead() {
    let plain = mixed(6 << 20);
    for blob in [members(&plain, 50_000), frames(&plain, 50_000)] {
        for helpers in [3, 6] {
            let Ran { output, facts, index: _ } = run(&blob, helpers, SMALL).unwrap();
            assert!(output == plain);
            assert_eq!((facts.diff_id, facts.blob), (Digest::sha256(&plain), Digest::sha256(&blob)));
            assert_eq!(facts.ahead.missed, 0, "{:?}", facts.ahead);
        }
    }
}

#[test]
fn members_that_a_helper_is_at_work_on_are_not_decoded_twice() {
    let plain = mixed(1 << 20);
    for blob in [members(&plain, 20_000), frames(&plain, 20_000)] {
        let shared = Bench::filled(&blob, 100 << 10, 1, 64 << 10);
        let Some(Job::Run(first)) = shared.job(0, || true) else { panic!("no members") };
        let start = Cut(8 * first.start);
        assert!(matches!(shared.take(start, Begins::Member, &[]), Ready::UnderWay));
        let second = shared.meanwhile(start).expect("the decoder takes the next ones");
        assert!(matches!(shared.take(start, Begins::Member, &[]), Ready::UnderWay));
        let mut stream = Stream::new(shared.coding(), HELPER_WINDOW_BYTES).unwrap();
        let mut at = start;
        for run in [second, first] {
            let decoded = run::decode(&shared, &Pool::new(512 << 10), &mut stream, &mut 0, &run);
            assert!(!decoded.is_false);
            shared.complete(&run, decoded);
        }
        assert!(shared.meanwhile(start).is_none(), "it is there");
        for _ in 0..2 {
            let Ready::Taken(taken) = shared.take(at, Begins::Member, &[]) else {
                panic!("nothing at {at:?}")
            };
            at = taken.end;
        }
        assert_eq!((shared.facts().used, shared.facts().late), (2, 0));
    }
}

#[test]
fn members_of_a_helper_that_gets_no_processor_are_decoded_in_order() {
    let plain = mixed(1 << 20);
    for blob in [members(&plain, 20_000), frames(&plain, 20_000)] {
        let shared = Bench::shared(&blob, 100 << 10, 1, 64 << 10);
        let Some(Job::Run(lost)) = shared.job(0, || true) else { panic!("no members") };
        let since = Instant::now();
        let (output, ahead) = Bench::new().in_turn(&shared, 0).unwrap_or_else(|error| panic!("{error}"));
        assert!(output == plain && since.elapsed() > shared::PATIENCE);
        assert_eq!((ahead.late, ahead.missed), (1, 0), "{ahead:?}");
        assert!(ahead.used > 3, "what the decoder did meanwhile counts: {ahead:?}");
        drop(lost);
    }
}

#[test]
fn a_member_behind_a_long_one_is_found_by_its_header_and_the_blocks_of_the_long_one_by_a_search() {
    let plain = mixed(12 << 20);
    let (long, short) = plain.split_at(8 << 20);
    let blob =
        [members(&short[..1 << 20], 100_000), gzip(long, 6), members(&short[1 << 20..], 100_000)].concat();
    let (output, ahead) = in_turn(&blob, 400 << 10, 256 << 10).unwrap();
    assert!(output == [&short[..1 << 20], long, &short[1 << 20..]].concat());
    assert!(ahead.bytes > plain.len() as u64 / 2 && ahead.missed < 3, "{ahead:?}");
}

#[test]
fn helpers_of_a_stream_that_is_one_long_frame_end() {
    let noise = (0_u32..5 << 20).flat_map(|at| at.wrapping_mul(0x9e37_79b9).to_be_bytes());
    let blob = zstd::bulk::compress(&noise.collect::<Vec<_>>(), 1).unwrap();
    let plan = AheadPlan { coding: Coding::Zstd, distance: 1 << 20, index: None };
    let (mut shared, mut starts) = (Shared::new(plan, 1), Starts::of(Coding::Zstd));
    shared.set_window(u64::MAX);
    for bytes in blob.chunks(1 << 20) {
        assert!(shared.add(Chunk::copy_of(bytes), &mut starts));
    }
    assert!(blob.len() > 17 << 20, "{}", blob.len());
    assert!(shared.job(1 << 20, || true).is_none(), "although more input may come");
}

#[test]
fn members_inside_of_stored_members_are_not_taken_for_those_of_the_stream() {
    let inner = members(&mixed(2 << 20), 50_000);
    let blob: Vec<u8> = inner.chunks(300_000).flat_map(|bytes| gzip(bytes, 0)).collect();
    let (output, _) = in_turn(&blob, 100 << 10, 256 << 10).unwrap();
    assert!(output == inner);
    let blob: Vec<u8> = frames(&mixed(2 << 20), 50_000)
        .chunks(300_000)
        .flat_map(|bytes| zstd::bulk::compress(bytes, 1).unwrap())
        .collect();
    let (output, ahead) = in_turn(&blob, 100 << 10, 256 << 10).unwrap();
    assert!(output == frames(&mixed(2 << 20), 50_000));
    assert_eq!(ahead.missed, 0, "blocks say how long they are");
}

#[test]
fn layers_of_other_tools_are_decoded_ahead_as_in_order() {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stargz");
    for part in ["estargz", "zstdchunked", "other", "bad"] {
        for entry in std::fs::read_dir(fixtures.join(part)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ending| ending == "json") {
                continue;
            }
            let blob = std::fs::read(path).unwrap();
            let coding = Coding::detect(&blob);
            if coding == Coding::Plain {
                continue;
            }
            for (helpers, distance) in [(1, 4000), (3, 300)] {
                let how = AheadPlan { coding, distance, index: None };
                fuzz::compare_up_to(16 << 20, how, &blob, helpers, 5000);
            }
        }
    }
}

#[test]
fn a_damaged_member_or_frame_is_refused_as_in_order() {
    let plain = mixed(1 << 20);
    for blob in [members(&plain, 30_000), frames(&plain, 30_000)] {
        let coding = Coding::detect(&blob);
        for at in (40..blob.len()).step_by(blob.len() / 40) {
            let mut damaged = blob.clone();
            damaged[at] ^= 0x11;
            for blob in [&damaged, &blob[..at]] {
                fuzz::compare(coding, blob, 2, 20_000, 64 << 10);
            }
        }
    }
}

#[test]
fn blocks_inside_of_stored_blocks_are_not_taken_for_blocks_of_the_stream() {
    // A layer may hold compressed files, whose blocks look like those of the layer.
    let inner = gzip(&mixed(4 << 20), 6);
    let blob = gzip(&inner, 0);
    let (output, ahead) = in_turn(&blob, 200 << 10, 256 << 10).unwrap();
    assert!(output == inner);
    assert_eq!((ahead.used, ahead.bytes), (0, 0), "{ahead:?}");
    assert!(ahead.missed >= 3, "{ahead:?}");
}

#[test]
fn where_no_block_is_found_three_times_nobody_looks_any_more() {
    let noise: Vec<u8> = mixed(8 << 20)
        .iter()
        .zip((0_u32..).map(|at| at.wrapping_mul(0x9e37_79b9) >> 23))
        .map(|(a, b)| a ^ b.to_le_bytes()[0])
        .collect();
    let blob = gzip(&noise, 0);
    let (output, ahead) = in_turn(&blob, 200 << 10, 256 << 10).unwrap();
    assert!(output == noise);
    assert_eq!((ahead.used, ahead.missed), (0, 3), "{ahead:?}");
}

#[test]
fn a_bomb_is_decoded_in_order_and_holds_no_memory() {
    // 1000 to 1, where a piece would hold thousands of times its input.
    let plain = [mixed(400_000), vec![0; 64 << 20], mixed(400_000)].concat();
    let blob = gzip(&plain, 6);
    let bench = Bench::new();
    let shared = Bench::shared(&blob, 20 << 10, 1, 64 << 10);
    let (output, ahead) = bench.in_turn(&shared, 1).unwrap();
    assert!(output == plain);
    assert!(ahead.bytes < 16 << 20, "{ahead:?}");
}

#[test]
fn pieces_hold_no_more_memory_than_the_shares_of_their_helpers() {
    let blob = gzip(&mixed(40 << 20), 6);
    let shared = Bench::shared(&blob, 1 << 20, 1, 256 << 10);
    let bench = Bench::new();
    let lease = bench.resources.budget.lease(&bench.cancel).unwrap();
    let work = Work { cancel: &bench.cancel, progress: &bench.progress };
    let plan = Plan { resources: &bench.resources, lease: &lease, work };
    thread::scope(|scope| {
        // It stops for want of memory, until the decoder takes pieces or everything ends.
        let helper = Helper::new(Arc::clone(&shared), Arc::clone(&bench.pool), plan, 0, None);
        let helping = scope.spawn(|| helper.work().unwrap());
        let mut before = 0;
        loop {
            thread::sleep(Duration::from_millis(300));
            let now = shared.memory_in_use();
            assert!(now <= 24 << 20, "{now}");
            if now == before && now > 16 << 20 {
                break;
            }
            before = now;
        }
        assert!(!helping.is_finished());
        shared.close();
        helping.join().unwrap();
    });
}

#[test]
fn refusals_are_those_of_decoding_in_order() {
    let plain = mixed(2 << 20);
    let good = gzip(&plain, 6);
    let in_order = |blob: &[u8]| {
        let (mut gzip, mut output, mut input) = (Gzip::new(), vec![0; 1 << 16], blob);
        while gzip.decode(&mut input, &mut output)? == output.len() {}
        gzip.finish().map(|()| 0)
    };
    let mut refused = 0;
    for at in (60..good.len()).step_by(good.len() / 60) {
        let mut damaged = good.clone();
        damaged[at] ^= 0x55;
        let cut = &good[..at];
        let trailing = [&good[..], &good[20..at]].concat();
        for blob in [&damaged[..], cut, &trailing] {
            match (in_order(blob), in_turn(blob, 100 << 10, 256 << 10)) {
                (Err(want), Err(got)) => assert_eq!(got.to_string(), want.to_string(), "byte {at}"),
                (want, got) => panic!("byte {at}: {want:?}, but {:?} ahead", got.map(|_| 0)),
            }
            refused += 1;
        }
    }
    assert!(refused > 100);
}

#[test]
fn a_blob_that_is_not_the_one_asked_for_is_data_loss_however_it_is_decoded() {
    let blob = gzip(&mixed(2 << 20), 6);
    let wanted = Digest::sha256(&blob);
    for at in [blob.len() / 3, blob.len() / 2, blob.len() - 2] {
        let mut changed = blob.clone();
        changed[at] ^= 4;
        let error = run_as(&changed, Some(wanted.clone()), 6, SMALL).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "blob.digest"));
        let error = run_as(&blob[..at], Some(wanted.clone()), 6, SMALL).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "blob.digest"));
    }
}

#[test]
fn a_panic_of_a_helper_is_an_internal_error() {
    let blob = gzip(&mixed(1 << 20), 6);
    let shared = Bench::shared(&blob, 100 << 10, 1, 64 << 10);
    help(&shared, || -> Result<()> { panic!("at work") });
    let error = Bench::new().in_turn(&shared, 1).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Internal, "internal.panic"));
}

#[test]
fn after_a_cancellation_every_thread_ends_within_a_second() {
    struct Stuck<'a>(&'a Cancel, u32, &'a Mutex<Option<Instant>>);
    impl Stage for Stuck<'_> {
        type Output = ();

        fn push(&mut self, _: Chunk) -> Result<()> {
            self.1 += 1;
            if self.1 == 3 {
                *self.2.lock().unwrap() = Some(Instant::now());
                self.0.cancel();
            }
            Ok(())
        }

        fn finish(self) -> Result<()> {
            Ok(())
        }
    }
    let blob = gzip(&mixed(12 << 20), 6);
    let (resources, cancel) = (Resources::with_ahead(Limits::default(), 6, SMALL), Cancel::new());
    let lease = resources.budget.lease(&cancel).unwrap();
    let work = Work { cancel: &cancel, progress: &Progress::default() };
    let plan = Plan { resources: &resources, lease: &lease, work };
    let source = Source { reader: &mut &*blob, size_bytes: Some(blob.len() as u64), digest: None };
    let cancelled = Mutex::new(None);
    let error = Pipeline::new(source, plan).run(Stuck(&cancel, 0, &cancelled)).unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled);
    let since = cancelled.into_inner().unwrap().expect("it was cancelled");
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    assert_eq!((resources.helpers.free(), resources.helpers.free_idle()), (6, 4), "every thread is gone");
}

#[test]
fn helpers_pause_while_another_layer_is_at_work() {
    let helpers = crate::pipeline::helpers::Helpers::new(3);
    let _first = helpers.begin_layer();
    assert_eq!(helpers.idle_processors(), 1);
    let second = helpers.begin_layer();
    assert_eq!(helpers.idle_processors(), 0);
    drop(second);
    assert_eq!(helpers.idle_processors(), 1);
}

#[test]
fn size_and_first_bytes_decide_whether_a_blob_is_decoded_ahead() {
    let plain = mixed(100_000);
    let (one, many) = (gzip(&plain, 6), members(&plain, 10_000));
    let frame = zstd::bulk::compress(&plain, 1).unwrap();
    const MIB: u64 = 1 << 20;
    for (head, size, want) in [
        (&one, None, None),
        (&one, Some(64 * MIB - 1), None),
        (&one, Some(64 * MIB), Some(4 * MIB)),
        (&many, None, None),
        (&many, Some(8 * MIB - 1), None),
        (&many, Some(8 * MIB), Some(4 * MIB)),
        (&frame, Some(64 * MIB - 1), None),
        (&frame, Some(64 * MIB), Some(4 * MIB)),
        (&plain, Some(64 * MIB), None),
    ] {
        let coding = Coding::detect(head);
        let plan = |options: AheadOptions| options.plan(size, coding, [head.as_slice()], None);
        assert_eq!(plan(AheadOptions::AUTO).map(|plan| plan.distance), want, "{coding:?} {size:?}");
        assert!(plan(AheadOptions::OFF).is_none());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn helpers_make_no_difference(
        len in 1_usize..300_000, level in 0_u32..10, at in any::<prop::sample::Index>(), value in any::<u8>(),
        helpers in 1_usize..8, distance in 16_u64..60_000, chunk_bytes in 1_usize..40_000,
    ) {
        let blob = gzip(&mixed(len), level);
        let deflate = &blob[10..blob.len() - 8];
        fuzz_ahead(deflate, helpers, distance, chunk_bytes.max(deflate.len() / 2000));
        let mut damaged = deflate.to_vec();
        damaged[at.index(deflate.len())] ^= value;
        fuzz_ahead(&damaged, helpers, distance, chunk_bytes.max(deflate.len() / 2000));
    }

    #[test]
    fn an_index_makes_no_difference(
        len in 1_usize..300_000, level in 0_u32..10, span in 1_usize..60_000, bytes in 9000_usize..400_000,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        helpers in 1_usize..8, distance in 16_u64..60_000, chunk_bytes in 1000_usize..40_000,
    ) {
        let blob: Vec<u8> = mixed(len).chunks(bytes).flat_map(|bytes| gzip(bytes, level)).collect();
        let mut index = fixture::file(blob.len() as u64, &fixture::points(&blob, span));
        for (at, value) in changes {
            let at = at.index(index.len());
            index[at] ^= value;
        }
        if let Ok(ztoc) = Ztoc::read(&index) {
            let how = AheadPlan { coding: Coding::Gzip, distance, index: Some(&ztoc) };
            fuzz::compare_up_to(1 << 20, how, &blob, helpers, chunk_bytes);
        }
    }

    #[test]
    fn helpers_make_no_difference_to_members_and_frames(
        len in 1_usize..300_000, bytes in 200_usize..60_000, at in any::<prop::sample::Index>(), value in any::<u8>(),
        helpers in 1_usize..8, distance in 16_u64..60_000, chunk_bytes in 1000_usize..40_000,
    ) {
        for blob in [members(&mixed(len), bytes), frames(&mixed(len), bytes)] {
            let coding = Coding::detect(&blob);
            fuzz::compare(coding, &blob, helpers, distance, chunk_bytes);
            let mut damaged = blob.clone();
            // The magic number says which decoder gets it.
            let at = 4 + at.index(blob.len() - 4);
            damaged[at] ^= value;
            fuzz::compare(coding, &damaged, helpers, distance, chunk_bytes);
        }
    }
}
