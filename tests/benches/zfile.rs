//! Times our ZFile writer beside liblz4, in pairs, on the layers of corpora.py: LZ4 in blocks of 4 KiB on two threads,
//! against two processes of `lz4 -b1 -B4096`, which compress half of the layer each, in memory.
//!
//!     cargo bench --bench zfile -- [NAME ...]       # minbase pydata node cuda tf, from $PLYWOOD_CORPORA
//!
//! Ours is the whole writer: it also copies the layer into batches, computes the checksums, and copies the file into
//! memory. liblz4 does nothing but compress. A pair is A B, the next one B A. Both rates are wall time, the best of all
//! pairs; `lz4` measures itself, and takes the best of a second.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "figures are what it is for")]

use std::{
    env, fs, io,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use plywood::{
    error::Error,
    format::{Sink, zfile::writer::Options},
    pipeline::{helpers::Helpers, zfile},
};

const PAIRS: usize = 5;
/// Most bytes of a layer that are compressed: enough for a second.
const LAYER_BYTES: usize = 512 << 20;
/// Threads and processes.
const CORES: usize = 2;

/// Keeps the last piece: what a file system would do is not ours.
#[derive(Default)]
struct Memory {
    piece: Vec<u8>,
    end: u64,
}

impl Sink for Memory {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.piece.clear();
        self.piece.extend_from_slice(bytes);
        self.end = self.end.max(offset + bytes.len() as u64);
        Ok(())
    }

    fn discard(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&mut self, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

/// MB per second, and bytes of the file.
fn ours(layer: &[u8]) -> (f64, u64) {
    let (helpers, mut file) = (Helpers::new(CORES - 1), Memory::default());
    let started = Instant::now();
    zfile::write(&helpers, Options::default(), &mut file, |out| {
        layer.chunks(1 << 20).try_for_each(|piece| out.write_all(piece)).map_err(Error::disk)
    })
    .expect("memory takes everything");
    (layer.len() as f64 / 1e6 / started.elapsed().as_secs_f64(), file.end)
}

/// MB per second of all processes together, and bytes of all blocks.
fn theirs(parts: &[String]) -> Option<(f64, u64)> {
    let start = |part: &String| {
        let mut command = Command::new("lz4");
        command.args(["-q", "-b1", "-B4096", "-i1", part]).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().ok()
    };
    let children = parts.iter().map(start).collect::<Option<Vec<_>>>()?;
    let mut sum = (0.0, 0);
    for child in children {
        let output = child.wait_with_output().ok()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        // "-1     41055250 (1.559) 285.31 MB/s 1037.2 MB/s  NAME"
        let line = text.lines().find(|line| line.starts_with("-1 "))?;
        let mut words = line.split_whitespace().skip(1);
        sum.1 += words.next()?.parse::<u64>().ok()?;
        sum.0 += words.nth(1)?.parse::<f64>().ok()?;
    }
    Some(sum)
}

fn main() -> ExitCode {
    let Ok(corpora) = env::var("PLYWOOD_CORPORA") else {
        eprintln!("skipped: PLYWOOD_CORPORA is not set; tests/benches/corpora.py makes them");
        return ExitCode::SUCCESS;
    };
    let names: Vec<_> = env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let names = if names.is_empty() {
        ["minbase", "pydata", "node", "cuda", "tf"].map(Into::into).into()
    } else {
        names
    };
    let scratch = tempfile::tempdir().expect("a directory for the halves");
    println!("{:8} {:>8} {:>8} {:>6} {:>6}  MB/s", "", "ours", "liblz4", "ratio", "size");
    let mut ratios = Vec::new();
    for name in names {
        let Ok(mut layer) = fs::read(format!("{corpora}/{name}.tar")) else {
            println!("{name:8} is not there");
            continue;
        };
        layer.truncate(LAYER_BYTES);
        let half = (layer.len() / CORES).next_multiple_of(4096);
        let parts: Vec<_> = layer
            .chunks(half)
            .enumerate()
            .map(|(number, part)| {
                let path = scratch.path().join(number.to_string());
                fs::write(&path, part).expect("room for the halves");
                path.to_str().expect("a name of ours").to_owned()
            })
            .collect();
        let (mut best, mut bytes) = ([0.0_f64; 2], [0; 2]);
        for pair in 0..PAIRS {
            for turn in 0..2 {
                let which = (pair + turn) % 2;
                let measured = if which == 0 { Some(ours(&layer)) } else { theirs(&parts) };
                let Some((rate, size)) = measured else {
                    eprintln!("skipped: lz4 is not installed, or reports in another form");
                    return ExitCode::SUCCESS;
                };
                best[which] = best[which].max(rate);
                bytes[which] = size;
            }
        }
        let ratio = best[0] / best[1];
        let size = bytes[0] as f64 / bytes[1] as f64;
        println!("{name:8} {:8.0} {:8.0} {ratio:6.2} {size:6.3}", best[0], best[1]);
        ratios.push(ratio);
    }
    if !ratios.is_empty() {
        let mean = ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64;
        println!("{:8} {:>24.2}", "mean", mean.exp());
    }
    ExitCode::SUCCESS
}
