use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::{
    call::Seen,
    limits::Limits,
    pipeline::{
        decode::Meter,
        test_setup::{Setup, setup},
    },
};

/// Half noise, half words, so that blocks differ and compress.
fn sample(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let step = |at: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if (at / 4096).is_multiple_of(2) { state.to_be_bytes()[0] } else { b"words and "[at % 10] }
    };
    (0..len).map(step).collect()
}

impl Setup {
    /// The blob that `bytes`, written in pieces of `step` bytes, become.
    fn blob(&self, compression: Compression, bytes: &[u8], step: usize) -> (Vec<u8>, Facts) {
        let mut blob = Vec::new();
        let mut deliver = |piece: &[u8]| {
            blob.extend_from_slice(piece);
            Ok(())
        };
        let produce = |feed: &mut dyn Feed| {
            bytes.chunks(step).try_for_each(|piece| feed.write_all(piece)).unwrap();
            Ok(())
        };
        let ((), facts) = self.run(|plan| run(plan, compression, &mut deliver, produce)).unwrap();
        let Seen { phase, done_bytes, .. } = self.progress.look();
        assert_eq!((phase, done_bytes), (Phase::Transfer, bytes.len() as u64));
        (blob, facts)
    }
}

const ALL: [Compression; 3] = [Compression::PLAIN, Compression::GZIP, Compression::ZSTD];

fn decode(coding: Coding, blob: &[u8]) -> Vec<u8> {
    let mut decoder = coding.decoder(8 << 20).unwrap();
    let (mut plain, mut space, mut input) = (Vec::new(), vec![0; 1 << 20], blob);
    loop {
        let filled = decoder.decode(&mut input, &mut space).unwrap();
        plain.extend_from_slice(&space[..filled]);
        if input.is_empty() && filled < space.len() {
            break;
        }
    }
    decoder.finish().unwrap();
    plain
}

/// Holes of sparse files are zeros in a tar layer, and nothing is denser.
#[test]
fn apply_takes_holes_that_diff_writes_up_to_the_limit_of_both() {
    let limits = Limits::default();
    for coding in [Coding::Gzip, Coding::Zstd] {
        for level in 1..=if coding == Coding::Gzip { 9 } else { 19 } {
            let compression = Compression::at_level(coding, level).unwrap();
            let block = vec![0; compression.block_bytes()];
            let mut out = vec![0; compression.bound(block.len())];
            let before = if compression.looks_back() { &block[..] } else { &[] };
            let coded = compression.encode(before, &block, &mut out).unwrap();
            let mut meter = Meter::new(&limits);
            for _ in 0..limits.stream_bytes / block.len() as u64 {
                meter.count(coded.len, block.len()).unwrap();
            }
        }
    }
    // A bomb of any other writer is none the less one.
    let bomb = flate2_zeros(1 << 20);
    let mut meter = Meter::new(&limits);
    let outcome = (0..2048).try_for_each(|_| meter.count(bomb, 1 << 20));
    assert!(matches!(outcome, Err(StreamLimit::Expansion { .. })), "{outcome:?}");
}

/// Bytes that so many zeros become elsewhere.
fn flate2_zeros(len: usize) -> usize {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&vec![0; len]).unwrap();
    encoder.finish().unwrap().len()
}

#[test]
fn the_blob_does_not_depend_on_the_threads_nor_on_the_pieces() {
    for compression in ALL {
        let block = compression.block_bytes();
        for len in [0, 1, block - 1, block, block + 1, 2 * block + 12_345] {
            let bytes = sample(len);
            let (want, facts) = setup(0).blob(compression, &bytes, usize::MAX);
            assert!(decode(compression.coding(), &want) == bytes, "{compression:?}, {len} bytes");
            assert_eq!((facts.diff_id, facts.stream_bytes), (Digest::sha256(&bytes), len as u64));
            assert_eq!((&facts.blob, facts.blob_bytes), (&Digest::sha256(&want), want.len() as u64));
            for (helpers, step) in [(1, 100_001), (2, 1 << 20), (3, 4095), (8, usize::MAX)] {
                let (blob, facts) = setup(helpers).blob(compression, &bytes, step);
                assert!(blob == want, "{compression:?}, {len} bytes, {helpers} helpers");
                assert_eq!(facts.blob, Digest::sha256(&want));
            }
        }
    }
}

#[test]
fn many_blocks_keep_their_order() {
    let bytes = sample(40 * Compression::GZIP.block_bytes() + 1);
    let (want, _) = setup(0).blob(Compression::GZIP, &bytes, 1 << 20);
    for helpers in [1, 4, 20] {
        assert!(setup(helpers).blob(Compression::GZIP, &bytes, 1 << 20).0 == want, "{helpers} helpers");
    }
}

#[test]
fn one_block_uses_the_callers_thread_alone() {
    for (compression, blocks) in ALL.into_iter().flat_map(|compression| [(compression, 1), (compression, 2)])
    {
        let caller = thread::current().id();
        let mut elsewhere = false;
        let mut deliver = |_: &[u8]| {
            elsewhere |= thread::current().id() != caller;
            Ok(())
        };
        let bytes = sample(blocks * compression.block_bytes());
        setup(3)
            .run(|plan| {
                run(plan, compression, &mut deliver, |feed| feed.write_all(&bytes).map_err(Error::disk))
            })
            .unwrap();
        assert_eq!(elsewhere, blocks > 1, "{compression:?}");
    }
}

#[test]
fn what_is_under_way_is_bounded() {
    for compression in ALL {
        let block = compression.block_bytes();
        let (written, taken) = (AtomicU64::new(0), AtomicU64::new(0));
        let mut deliver = |_: &[u8]| {
            thread::sleep(Duration::from_millis(5));
            taken.fetch_add(1, Ordering::Relaxed);
            // A channel of 6, a worker, the blocks ahead, and those at both ends.
            let ahead = written.load(Ordering::Relaxed).saturating_sub(taken.load(Ordering::Relaxed));
            assert!(ahead < 13, "{ahead} blocks are under way");
            Ok(())
        };
        let produce = |feed: &mut dyn Feed| {
            let zeros = vec![0; block];
            for _ in 0..30 {
                feed.write_all(&zeros).map_err(Error::disk)?;
                written.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        setup(3).run(|plan| run(plan, compression, &mut deliver, produce)).unwrap();
    }
}

#[test]
fn an_error_of_the_producer_or_of_the_store_ends_the_run() {
    for (compression, helpers) in ALL.into_iter().flat_map(|c| [(c, 0), (c, 1), (c, 2), (c, 3), (c, 6)]) {
        let refuse = || Error::new(Kind::Changed, "test.refused", "refused");
        let setup = setup(helpers);
        let block = compression.block_bytes();
        let endless = |feed: &mut dyn Feed| -> Result<()> {
            let bytes = sample(block);
            for _ in 0..40 {
                feed.write_all(&bytes).map_err(Error::disk)?;
            }
            panic!("the store's error does not come back");
        };
        let mut pieces = 0;
        let mut deliver = |_: &[u8]| {
            pieces += 1;
            if pieces == 3 { Err(refuse()) } else { Ok(()) }
        };
        let error = setup.run(|plan| run(plan, compression, &mut deliver, endless)).unwrap_err();
        assert_eq!(error.reason(), "test.refused", "{compression:?}, {helpers} helpers");

        // At the very end: only `finish` can return the error.
        let error = setup
            .run(|plan| {
                run(plan, compression, &mut |_: &[u8]| Err(refuse()), |feed| {
                    feed.write_all(b"x").map_err(Error::disk)
                })
            })
            .unwrap_err();
        assert_eq!(error.reason(), "test.refused");

        let failing = |feed: &mut dyn Feed| -> Result<()> {
            feed.write_all(&sample(2 * block)).unwrap();
            Err(refuse())
        };
        let error = setup.run(|plan| run(plan, compression, &mut |_| Ok(()), failing)).unwrap_err();
        assert_eq!(error.reason(), "test.refused");
    }
}

#[test]
fn a_panic_of_the_store_on_a_thread_is_an_internal_error() {
    for compression in ALL {
        let mut deliver = |_: &[u8]| panic!("the store is broken");
        let error = setup(4)
            .run(|plan| {
                run(plan, compression, &mut deliver, |feed| {
                    feed.write_all(&sample(3 * compression.block_bytes())).map_err(Error::disk)
                })
            })
            .unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Internal, "internal.panic"));
    }
}

#[test]
fn a_cancelled_run_ends_at_the_next_block() {
    for (compression, helpers) in ALL.into_iter().flat_map(|c| [(c, 0), (c, 3)]) {
        let setup = setup(helpers);
        let produce = |feed: &mut dyn Feed| {
            let block = sample(compression.block_bytes());
            feed.write_all(&block).unwrap();
            setup.cancel.cancel();
            feed.write_all(&block).map_err(Error::disk)
        };
        let error = setup.run(|plan| run(plan, compression, &mut |_| Ok(()), produce)).unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled);
    }
}

#[test]
fn the_limit_on_the_stream_holds_before_and_while_it_is_written() {
    let mut setup = setup(0);
    setup.limits.stream_bytes = 1000;
    let announced = |feed: &mut dyn Feed| {
        feed.write_all(&[0; 400]).unwrap();
        feed.announce(600)?;
        feed.announce(601)
    };
    let unannounced = |feed: &mut dyn Feed| feed.write_all(&[0; 1001]).map_err(Error::disk);
    let error = setup.run(|plan| run(plan, Compression::GZIP, &mut |_| Ok(()), announced)).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.stream"));
    let error = setup.run(|plan| run(plan, Compression::GZIP, &mut |_| Ok(()), unannounced)).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.stream"));
    setup
        .run(|plan| {
            run(plan, Compression::GZIP, &mut |_| Ok(()), |feed| {
                feed.write_all(&[0; 1000]).map_err(Error::disk)
            })
        })
        .unwrap();
}

/// The threads of this process that are called `name`, and those of them that may read what they like.
fn threads(name: &str) -> (usize, usize) {
    const DAC_READ_SEARCH: u64 = 1 << 2;
    let (mut all, mut able) = (0, 0);
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        // Threads of other tests come and go.
        let Ok(status) = std::fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        let field =
            |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim();
        if field("Name:") == name {
            all += 1;
            let effective = u64::from_str_radix(field("CapEff:"), 16).unwrap();
            able += usize::from(effective & DAC_READ_SEARCH != 0);
        }
    }
    (all, able)
}

#[test]
fn no_thread_that_is_started_here_may_read_what_the_producer_may() {
    let bytes = sample(4 * Compression::GZIP.block_bytes());
    let produce = |feed: &mut dyn Feed| {
        feed.write_all(&bytes).map_err(Error::disk)?;
        for name in ["encode", "deliver", "diff-id"] {
            // One that was just started gives up its capabilities first of all.
            let mut found = threads(name);
            for _ in 0..200 {
                if found.0 > 0 && found.1 == 0 {
                    break;
                }
                thread::sleep(Duration::from_millis(10));
                found = threads(name);
            }
            assert!(found.0 > 0 && found.1 == 0, "{name}: {} of {}", found.1, found.0);
        }
        Ok(())
    };
    setup(3).run(|plan| run(plan, Compression::GZIP, &mut |_| Ok(()), produce)).unwrap();
}
