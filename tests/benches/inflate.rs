//! Times our gzip decoder beside zlib-rs, in pairs, on the layers of corpora.py; and `igzip` and `libdeflate-gunzip`,
//! where they are installed.
//!
//!     cargo bench --bench inflate -- [--costs FILE] [NAME ...]   # minbase pydata node cuda tf, from $PLYWOOD_CORPORA
//!
//! Both decoders get the file in pieces of 256 KiB, fill buffers of 512 KiB, and compute the CRC-32, as in Apply. A pair
//! is A B, the next one B A; figures are processor time of the thread, the least of all pairs. The tools write to
//! /dev/null; what they take is their processes' user time.
//!
//! The last columns are the work of a helper that decodes ahead, as shares of the time that the same bytes take in order:
//! finding a block, decoding with the window unknown, putting the bytes in; and which share of the bytes needed no window.
//! `--costs` writes them to a file for model.py.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "figures are what it is for")]

use std::{
    env, fs,
    process::{Command, ExitCode, Stdio},
};

use plywood::codec::{
    Coding,
    deflate::{Finder, HEADER_BYTES, Inflate, Pause, WINDOW_BYTES, Window, known_at_end},
};
use serde_json::json;
use zlib_rs::{Inflate as Zlib, InflateFlush, Status, crc32::crc32};

const PAIRS: usize = 5;
const INPUT_BYTES: usize = 256 << 10;
const OUTPUT_BYTES: usize = 512 << 10;

/// Seconds that this thread has had a processor.
fn thread_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel counts");
    stat.split(' ').next().and_then(|nanoseconds| nanoseconds.parse::<f64>().ok()).expect("a number") / 1e9
}

/// Seconds of user time of children that have ended, in steps of 10 ms.
fn children_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("the kernel counts");
    let behind_name = stat.rsplit(')').next().expect("split gives one part at least");
    behind_name.split_whitespace().nth(13).and_then(|ticks| ticks.parse::<f64>().ok()).expect("a number")
        / 100.0
}

fn ours(blob: &[u8]) -> u64 {
    let mut decoder = Coding::Gzip.decoder(0).expect("a decoder");
    let (mut output, mut filled, mut total) = (vec![0; OUTPUT_BYTES], 0, 0);
    for mut piece in blob.chunks(INPUT_BYTES) {
        loop {
            let room = OUTPUT_BYTES - filled;
            let now = decoder.decode(&mut piece, &mut output[filled..]).expect("the corpus is good");
            filled = (filled + now) % OUTPUT_BYTES;
            total += now as u64;
            if now < room {
                break;
            }
        }
    }
    decoder.finish().expect("the corpus is whole");
    total
}

/// The one member of a file as gzip writes it: ten bytes of header, or a name behind them.
fn theirs(blob: &[u8]) -> u64 {
    let name =
        if blob[3] & 8 == 0 { 0 } else { blob[10..].iter().position(|byte| *byte == 0).expect("an end") + 1 };
    let (mut inflate, mut crc) = (Zlib::new(false, 15), 0);
    let (mut output, mut filled) = (vec![0; OUTPUT_BYTES], 0);
    for mut piece in blob[10 + name..].chunks(INPUT_BYTES) {
        loop {
            let before = (inflate.total_in(), inflate.total_out());
            let status = inflate.decompress(piece, &mut output[filled..], InflateFlush::NoFlush);
            let taken = usize::try_from(inflate.total_in() - before.0).expect("a piece");
            let now = usize::try_from(inflate.total_out() - before.1).expect("a buffer");
            piece = &piece[taken..];
            crc = crc32(crc, &output[filled..filled + now]);
            filled += now;
            if status.expect("the corpus is good") == Status::StreamEnd {
                let stored = blob[blob.len() - 8..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
                assert_eq!(stored, Some(crc), "CRC-32");
                return inflate.total_out();
            }
            if filled < OUTPUT_BYTES {
                break;
            }
            filled = 0;
        }
    }
    panic!("the corpus is cut short");
}

/// How much of a piece's work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Find,
    Decode,
    Resolve,
}

/// Distance of pieces, and what is searched for the start of one: as in Apply.
const PIECE_BYTES: usize = 4 << 20;
const SEARCH_BYTES: usize = 512 << 10;
const PART_UNITS: usize = 256 << 10;

/// Decodes all pieces of a file behind the first one, each without what comes before it; their uncompressed bytes, and
/// those among them that needed no window.
fn pieces(blob: &[u8], work: Work) -> (u64, u64) {
    let (mut finder, mut marked, mut plain) = (Finder::new(), Inflate::<u16>::new(), Inflate::<u8>::new());
    let (mut units, mut bytes) = (vec![0; PART_UNITS], vec![0; OUTPUT_BYTES]);
    let window = Window::new(&[0; WINDOW_BYTES]);
    let (mut total, mut known_total) = (0, 0);
    for from in (PIECE_BYTES..blob.len()).step_by(PIECE_BYTES) {
        let end = (from + SEARCH_BYTES + HEADER_BYTES).min(blob.len());
        let Some(start) = finder.find(&blob[from..end], 0..8 * SEARCH_BYTES as u64) else { continue };
        if work == Work::Find {
            continue;
        }
        let until = 8 * PIECE_BYTES as u64;
        let mut first = start - start % 8;
        let mut input = &blob[from + usize::try_from(start / 8).expect("small")..];
        marked.start_unknown(u32::try_from(start % 8).expect("small"));
        let (mut known, mut at) = (0, start);
        let is_over = loop {
            marked.pause_from(Some((at + 8 * (48 << 10)).min(until) - first));
            let Ok((now, pause)) = marked.decode(&mut input, &mut units) else { break true };
            let at_end = known_at_end(&units[..now]);
            known = if at_end == now { known + now } else { at_end };
            total += now as u64;
            let mut rest = if work == Work::Resolve { &units[..now] } else { &[] };
            while !rest.is_empty() {
                let done = window.resolve(rest, &mut bytes);
                rest = &rest[done..];
            }
            if pause == Pause::Block {
                at = first + marked.position();
                if at >= until || known >= WINDOW_BYTES {
                    break at >= until;
                }
            } else if pause != Pause::Output {
                break true;
            }
        };
        let Some(before) = marked.known_window().filter(|_| !is_over) else { continue };
        plain.start_at(u32::try_from(at % 8).expect("small"), &before);
        first = at - at % 8;
        input = &blob[from + usize::try_from(at / 8).expect("small")..];
        plain.pause_from(Some(until - first));
        while let Ok((now, pause)) = plain.decode(&mut input, &mut bytes) {
            total += now as u64;
            known_total += now as u64;
            if pause != Pause::Output {
                break;
            }
        }
    }
    (total, known_total)
}

/// The least user time of three runs, if the tool is installed.
fn tool(name: &str, path: &str) -> Option<f64> {
    let mut least = f64::MAX;
    for _ in 0..3 {
        let before = children_seconds();
        let status = Command::new(name).args(["-d", "-c", path]).stdout(Stdio::null()).status().ok()?;
        assert!(status.success(), "{name}: {status}");
        least = least.min(children_seconds() - before);
    }
    Some(least)
}

fn main() -> ExitCode {
    let Ok(corpora) = env::var("PLYWOOD_CORPORA") else {
        eprintln!("skipped: PLYWOOD_CORPORA is not set; tests/benches/corpora.py makes them");
        return ExitCode::SUCCESS;
    };
    let mut names: Vec<_> = env::args().skip(1).filter(|name| name != "--bench").collect();
    let costs_file = names.iter().position(|name| name == "--costs").map(|at| {
        names.remove(at);
        names.remove(at)
    });
    let names = if names.is_empty() {
        ["minbase", "pydata", "node", "cuda", "tf"].map(Into::into).into()
    } else {
        names
    };
    println!(
        "{:8} {:>8} {:>8} {:>6} {:>8} {:>10}  MB/s; {:>6} {:>6} {:>8} {:>6}",
        "", "ours", "zlib-rs", "ratio", "igzip", "libdeflate", "find", "decode", "resolve", "known"
    );
    let (mut ratios, mut costs) = (Vec::new(), serde_json::Map::new());
    for name in names {
        let path = format!("{corpora}/{name}.tar.gz");
        let Ok(blob) = fs::read(&path) else {
            println!("{name:8} is not there");
            continue;
        };
        let mut least = [f64::MAX; 2];
        let mut totals = [0; 2];
        for pair in 0..PAIRS {
            for turn in 0..2 {
                let which = (pair + turn) % 2;
                let before = thread_seconds();
                totals[which] = if which == 0 { ours(&blob) } else { theirs(&blob) };
                least[which] = least[which].min(thread_seconds() - before);
            }
        }
        assert_eq!(totals[0], totals[1], "bytes of {name}");
        // Shares of the time that decoding the same bytes in order takes.
        let mut steps = [f64::MAX; 3];
        let mut known = 0.0;
        let mut share = 0.0;
        for _ in 0..3 {
            for (step, work) in steps.iter_mut().zip([Work::Find, Work::Decode, Work::Resolve]) {
                let before = thread_seconds();
                let (total, of_these) = pieces(&blob, work);
                *step = step.min(thread_seconds() - before);
                if total > 0 {
                    known = of_these as f64 / total as f64;
                    share = total as f64 / totals[0] as f64;
                }
            }
        }
        let in_order = least[0] * share;
        let [find, decode, resolve] =
            [steps[0] / in_order, (steps[1] - steps[0]) / in_order, (steps[2] - steps[1]) / in_order];
        costs.insert(
            name.clone(),
            json!({ "in_order_s": least[0], "find": find, "decode": decode, "resolve": resolve, "known": known }),
        );
        let rate = |seconds: f64| totals[0] as f64 / 1e6 / seconds;
        let of_tool =
            |tool: Option<f64>| tool.map_or("-".to_owned(), |seconds| format!("{:.0}", rate(seconds)));
        println!(
            "{name:8} {:8.0} {:8.0} {:6.3} {:>8} {:>10}        {find:6.3} {decode:6.3} {resolve:8.3} {known:6.3}",
            rate(least[0]),
            rate(least[1]),
            least[1] / least[0],
            of_tool(tool("igzip", &path)),
            of_tool(tool("libdeflate-gunzip", &path)),
        );
        ratios.push(least[1] / least[0]);
    }
    if let Some(file) = costs_file {
        fs::write(file, format!("{:#}\n", serde_json::Value::Object(costs)))
            .expect("the file can be written");
    }
    if !ratios.is_empty() {
        let mean = ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64;
        println!("{:8} {:>24.3}", "mean", mean.exp());
    }
    ExitCode::SUCCESS
}
