//! Differential fuzzing of deflate without a fuzzer: many executions a second, drawn by lot.
//!
//!     cargo bench --bench fuzz_deflate -- [--seconds N] [--executions N] [--seed N] [--threads N]
//!
//! Small streams of every kind of block, whole and damaged, are decoded in one of the ways of
//! `codec::deflate::Fuzzer` each, and compared with zlib-rs. Every so often a stream goes through the decoder with
//! helper threads. It ends at the first difference; the seed that is printed then brings it back.

#![expect(clippy::print_stdout, reason = "figures are what it is for")]

use std::{
    env,
    io::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use flate2::{Compression, write::DeflateEncoder};
use plywood::codec::deflate::Fuzzer;

/// Streams to draw from. They are made anew every so often, so that the lots do not run dry.
const POOL: usize = 512;
/// Executions between two pools.
const ROUND: u64 = 200_000;

/// Bytes that deflate has something to do with.
fn plain(lots: &mut Fuzzer) -> Vec<u8> {
    let kind = lots.below(12);
    let len = match kind {
        0..=7 => lots.below(600),
        8..=10 => lots.below(6_000),
        _ => lots.below(80_000),
    };
    let mut bytes = Vec::new();
    while bytes.len() < len {
        match lots.below(5) {
            0 => bytes.extend(format!("entry {} of {}; ", lots.below(9), lots.below(300)).bytes()),
            1 => {
                let (byte, count) = (lots.below(256), lots.below(600));
                bytes.extend(std::iter::repeat_n(u8::try_from(byte).unwrap_or_default(), count));
            }
            2 => {
                let from = bytes.len().saturating_sub(lots.below(33_000));
                let count = lots.below(300);
                bytes.extend_from_within(from..(from + count).min(bytes.len()));
            }
            3 => {
                let few = 1 + lots.below(20);
                bytes.extend((0..40).map(|_| u8::try_from(lots.below(few)).unwrap_or_default()));
            }
            _ => bytes.extend((0..lots.below(60)).map(|_| u8::try_from(lots.below(256)).unwrap_or_default())),
        }
    }
    bytes
}

/// A stream with blocks that end where the lots say.
fn stream(lots: &mut Fuzzer) -> Vec<u8> {
    let level = u32::try_from(lots.below(10)).unwrap_or_default();
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(level));
    let plain = plain(lots);
    let mut rest = &plain[..];
    while !rest.is_empty() {
        let bits = lots.below(17);
        let (now, then) = rest.split_at((1 + lots.below(1 << bits)).min(rest.len()));
        encoder.write_all(now).expect("a vector takes everything");
        if lots.below(3) > 0 {
            encoder.flush().expect("a vector takes everything");
        }
        rest = then;
    }
    encoder.finish().expect("a vector takes everything")
}

/// Damages a stream, or not.
fn damage(lots: &mut Fuzzer, pool: &[Vec<u8>], stream: &mut Vec<u8>) {
    for _ in 0..lots.below(4) {
        let at = lots.below(stream.len().max(1));
        match lots.below(6) {
            0 => stream.truncate(at),
            1 => {
                let other = &pool[lots.below(pool.len())];
                stream.truncate(at);
                stream.extend_from_slice(&other[lots.below(other.len())..]);
            }
            2 => {
                let many = (at + lots.below(20)).min(stream.len());
                stream.drain(at..many);
            }
            _ => {
                let bit = lots.below(8);
                if let Some(byte) = stream.get_mut(at) {
                    *byte ^= 1 << bit;
                }
            }
        }
    }
}

/// A zstd stream of a few frames, whole or damaged.
fn frames(lots: &mut Fuzzer, pool: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = Vec::new();
    for _ in 0..1 + lots.below(9) {
        let level = i32::try_from(1 + lots.below(5)).unwrap_or(1);
        let plain = plain(lots);
        stream.extend(zstd::bulk::compress(&plain, level).expect("any bytes can be compressed"));
        if lots.below(3) == 0 {
            let len = u8::try_from(lots.below(200)).unwrap_or_default();
            stream.extend([0x50, 0x2a, 0x4d, 0x18, len, 0, 0, 0]);
            stream.extend(vec![len; len.into()]);
        }
    }
    if lots.below(2) == 0 {
        damage(lots, pool, &mut stream);
    }
    stream
}

fn work(seed: u64, until: Instant, most: u64, done: &AtomicU64, joined: &AtomicU64) -> Result<(), u64> {
    for round in 0.. {
        let seed = seed.wrapping_add(round).wrapping_mul(0x2545_f491_4f6c_dd1d);
        let mut lots = Fuzzer::new(seed);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let pool: Vec<_> = (0..POOL).map(|_| stream(&mut lots)).collect();
            for _ in 0..ROUND {
                let mut data = pool[lots.below(POOL)].clone();
                damage(&mut lots, &pool, &mut data);
                lots.run(&data);
                if done.fetch_add(1, Ordering::Relaxed).is_multiple_of(2000) {
                    let (helpers, distance) = (1 + lots.below(7), 64 + lots.below(4000));
                    let chunk = (1 + lots.below(5000)).max(data.len() / 500);
                    plywood::pipeline::fuzz_ahead(&data, helpers, distance as u64, chunk);
                    let frames = frames(&mut lots, &pool);
                    let chunk = chunk.max(frames.len() / 500);
                    plywood::pipeline::fuzz_ahead_zstd(&frames, helpers, distance as u64, chunk);
                }
            }
        }));
        if outcome.is_err() {
            return Err(seed);
        }
        joined.fetch_add(lots.joined(), Ordering::Relaxed);
        if Instant::now() >= until || done.load(Ordering::Relaxed) >= most {
            break;
        }
    }
    Ok(())
}

fn number(name: &str) -> Option<u64> {
    let mut arguments = env::args().skip_while(|argument| argument != name).skip(1);
    arguments.next().and_then(|value| value.parse().ok())
}

fn main() -> ExitCode {
    let seconds = number("--seconds").unwrap_or(10);
    let most = number("--executions").unwrap_or(u64::MAX);
    let first = number("--seed").unwrap_or(1);
    let threads = number("--threads").unwrap_or(1);
    let (since, done, joined) = (Instant::now(), AtomicU64::new(0), AtomicU64::new(0));
    let until = since + Duration::from_secs(seconds);
    let failed: Vec<u64> = thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|thread| {
                let (seed, done, joined) = (first + (thread << 32), &done, &joined);
                scope.spawn(move || work(seed, until, most, done, joined))
            })
            .collect();
        all.into_iter().filter_map(|thread| thread.join().expect("panics are caught").err()).collect()
    });
    let (done, took) = (done.into_inner(), since.elapsed().as_secs_f64());
    println!(
        "{done} executions in {took:.0} s, {:.0} a second, {} pieces put in, seed {first}",
        done as f64 / took,
        joined.into_inner(),
    );
    for seed in &failed {
        println!("a difference with seed {seed}");
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
