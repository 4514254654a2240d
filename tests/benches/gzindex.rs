//! Times what a gzip index costs while a layer is decoded, and random reads through one, on the layers of corpora.py.
//!
//!     cargo bench --bench gzindex -- [NAME ...]       # minbase pydata node cuda tf, from $PLYWOOD_CORPORA
//!
//! First columns: seconds to decode the layer in order and to hash blob and stream, on as many threads as Apply takes; how many
//! times as long it takes with the index and the metadata of the archive as well, and to make a whole turboOCI layer; MB of the
//! stream for each second of processor time, of all three. In turns, the least of all. Then 4 KiB reads at random places
//! through the index, in microseconds: the median, and what 99 of 100 take.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "figures are what it is for")]

use std::{env, fs, process::ExitCode, time::Instant};

use plywood::{
    call::{Cancel, Progress, Work},
    error::Result,
    format::{ReadAt, gzindex::Reader, tar::metadata::Exporter},
    kind::overlaybd::Flavour,
    limits::Limits,
    overlaybd::{build::Base, options::DeviceOptions, publish},
    pipeline::{
        AheadOptions, Pipeline, Plan, Resources, Source, buffer::Chunk, helpers::Helpers, stage::Stage,
    },
    snapshot::NewFile,
};

const TURNS: usize = 5;
const READS: usize = 2000;
const READ_BYTES: usize = 4096;

/// Seconds of processor time of this process, in steps of 10 ms.
fn process_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("the kernel counts");
    let behind_name = stat.rsplit(')').next().expect("split gives one part at least");
    let ticks = behind_name.split_whitespace().skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<f64>().expect("a number")).sum::<f64>() / 100.0
}

/// Takes a stream, and does nothing with it.
struct Discard;

impl Stage for Discard {
    type Output = ();

    fn push(&mut self, _: Chunk) -> Result<()> {
        Ok(())
    }

    fn finish(self) -> Result<()> {
        Ok(())
    }
}

/// Makes the metadata of the archive.
#[derive(Default)]
struct Metadata {
    exporter: Exporter,
    metadata: Vec<u8>,
}

impl Stage for Metadata {
    type Output = ();

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        Ok(self.exporter.push(&chunk, &mut self.metadata)?)
    }

    fn finish(mut self) -> Result<()> {
        Ok(self.exporter.finish(&mut self.metadata)?)
    }
}

/// What is made of a blob.
#[derive(Clone, Copy, Debug)]
enum Made {
    Nothing,
    Index,
    Layer,
}

/// Decodes the blob and makes something of it; the size of the stream, the seconds that it took, and those of processors.
fn run(blob: &[u8], made: Made, index: &mut Vec<u8>) -> (u64, f64, f64) {
    let resources = Resources::with_ahead(Limits::default(), Helpers::default_threads(), AheadOptions::OFF);
    let (cancel, progress) = (Cancel::new(), Progress::default());
    let lease = resources.budget.lease(&cancel).expect("memory");
    let plan =
        Plan { resources: &resources, lease: &lease, work: Work { cancel: &cancel, progress: &progress } };
    let mut reader = blob;
    let source = Source { reader: &mut reader, size_bytes: Some(blob.len() as u64), digest: None };
    let (processors, clock) = (process_seconds(), Instant::now());
    let facts = match made {
        Made::Nothing => Pipeline::new(source, plan).run(Discard).map(|ran| ran.facts),
        Made::Index => {
            index.clear();
            Pipeline::new(source, plan).indexed(index).run(Metadata::default()).map(|ran| ran.facts)
        }
        Made::Layer => {
            let options = DeviceOptions { flavour: Flavour::Erofs, virtual_bytes: 64 << 30 };
            let base = Base::new(&options).expect("it can be made");
            let scratch = || Ok(NewFile::scratch(&env::temp_dir(), &resources.limits)?);
            let mut deliver = |_: &[u8]| Ok(());
            publish::turbo(source, None, &base, &scratch, plan, &mut deliver).map(|made| made.original)
        }
    };
    let facts = facts.expect("the corpus is good");
    (facts.stream_bytes, clock.elapsed().as_secs_f64(), process_seconds() - processors)
}

/// Microseconds of random reads: the median, and the 99th of 100.
fn random_reads(blob: &[u8], index: &[u8]) -> (f64, f64) {
    let reader = Reader::open(blob, index).expect("it is the blob's");
    let last = reader.size_bytes().checked_sub(READ_BYTES as u64).expect("the corpus is large");
    let (mut state, mut bytes) = (1_u64, [0; READ_BYTES]);
    let mut micros: Vec<_> = (0..READS)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 11) % last;
            let clock = Instant::now();
            reader.read_exact_at(at, &mut bytes).expect("the corpus is good");
            clock.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    micros.sort_by(f64::total_cmp);
    (micros[READS / 2], micros[READS * 99 / 100])
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
    println!(
        "{:8} {:>8} {:>6} {:>6} {:>10} {:>7} {:>7} {:>9} {:>8} {:>8}",
        "", "decode s", "index", "layer", "MB/CPU s", "index", "layer", "index KiB", "p50 us", "p99 us"
    );
    for name in names {
        let Ok(blob) = fs::read(format!("{corpora}/{name}.tar.gz")) else {
            println!("{name:8} is not there");
            continue;
        };
        let mut index = Vec::new();
        let (mut least, mut processors, mut stream_bytes) = ([f64::MAX; 3], [f64::MAX; 3], 0);
        for turn in 0..3 * TURNS {
            let which = (turn + turn / 3) % 3;
            let made = [Made::Nothing, Made::Index, Made::Layer][which];
            let (bytes, seconds, of_processors) = run(&blob, made, &mut index);
            least[which] = least[which].min(seconds);
            processors[which] = processors[which].min(of_processors);
            stream_bytes = bytes;
        }
        let rate = |seconds: f64| stream_bytes as f64 / 1e6 / seconds;
        let (median, most) = random_reads(&blob, &index);
        println!(
            "{name:8} {:8.3} {:6.3} {:6.3} {:10.0} {:7.0} {:7.0} {:9} {median:8.0} {most:8.0}",
            least[0],
            least[1] / least[0],
            least[2] / least[0],
            rate(processors[0]),
            rate(processors[1]),
            rate(processors[2]),
            index.len() / 1024,
        );
    }
    ExitCode::SUCCESS
}
