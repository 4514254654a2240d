//! How long two large gzip layers at once take with helpers that decode ahead, beside the same without: the bar P17 of
//! docs/performance.md.
//!
//!     cargo build --release
//!     eval "$(integration/setup/tools.sh)"
//!     PLYWOOD_CORPORA=DIR cargo bench -p plywood-integration --bench two [-- --gate] [--pairs N]
//!
//! Two daemons, each with a containerd of its own, hold the same blobs; one decodes ahead, the other does not. Both layers are
//! asked for over one connection, and measured is the time until both are answered, from the page cache. Pairs are on, off, off,
//! on, ... Corpora are those of tests/benches/corpora.py. Needs what the tests need.

use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use plywood_integration::calls::{Caller, apply_request};
use plywood_integration::env::{Env, Setup};
use plywood_integration::host;
use plywood_integration::image::Layer;

const PROGRAMS: [&str; 4] = ["containerd", "ctr", "docker-registry", "umount"];
const TOGETHER: [[&str; 2]; 3] = [["cuda", "pydata"], ["tf", "node"], ["cuda", "node"]];
const BAR: f64 = 1.03;

/// A daemon, and what it took.
struct Side {
    env: Env,
    caller: Caller,
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

fn main() -> anyhow::Result<()> {
    if let Some(missing) = host::missing(&PROGRAMS) {
        println!("not measured: {missing}");
        return Ok(());
    }
    let Some(corpora) = std::env::var_os("PLYWOOD_CORPORA") else {
        println!("not measured, PLYWOOD_CORPORA is not set");
        return Ok(());
    };
    let mut pairs = 5;
    let mut gate = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--gate" => gate = true,
            "--pairs" => pairs = arguments.next().context("--pairs N")?.parse()?,
            _ => {}
        }
    }
    host::isolate()?;
    println!(
        "{:14} {:>24} {:>7}   {:>24} {:>7}   {:>5} {:>5}",
        "", "on: wall s", "cpu s", "off: wall s", "cpu s", "wall", "cpu"
    );
    let mut worst: f64 = 0.0;
    for names in TOGETHER {
        let layers = names.map(|name| layer(&Path::new(&corpora).join(format!("{name}.tar.gz"))));
        let [one, two] = layers;
        let layers = [one?, two?];
        let mut sides = [Side::start("auto", &layers)?, Side::start("off", &layers)?];
        for round in 0..=pairs {
            for index in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                // The first round makes programs and files warm.
                sides[index].run(&layers, round > 0)?;
            }
        }
        let [on, off] = &sides;
        let wall = median(&on.wall) / median(&off.wall);
        let cpu = median(&on.cpu) / median(&off.cpu);
        println!("{:14} {on}   {off}   {wall:5.2} {cpu:5.2}", names.join("+"));
        worst = worst.max(wall);
    }
    let missed = worst > BAR;
    println!(
        "P17  two layers at once, wall, worst <= {BAR}: {worst:.3} {}",
        if missed { "MISSED" } else { "pass" }
    );
    anyhow::ensure!(!(missed && gate), "the bar was missed");
    Ok(())
}

fn layer(file: &Path) -> anyhow::Result<Layer> {
    let blob = std::fs::read(file).with_context(|| format!("{}", file.display()))?;
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip".to_owned();
    // The diffID is not compared: both sides are one program.
    Ok(Layer { media_type, blob, diff_id: String::new(), annotations: Default::default() })
}

impl Side {
    fn start(ahead: &str, layers: &[Layer]) -> anyhow::Result<Self> {
        let tables = format!("[apply]\ndecode_ahead = \"{ahead}\"\n");
        let env = Env::start(&Setup { plywood_tables: tables, ..Setup::default() })?;
        let caller = env.caller()?;
        for layer in layers {
            caller.ingest(layer)?;
        }
        Ok(Self { env, caller, wall: Vec::new(), cpu: Vec::new() })
    }

    fn run(&mut self, layers: &[Layer], is_counted: bool) -> anyhow::Result<()> {
        let mut requests = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            requests.push(apply_request(layer, &self.caller.prepare(&format!("active-{number}"), "")?));
        }
        let before = self.env.processor_time()?;
        let start = Instant::now();
        let running: Vec<_> = requests.into_iter().map(|request| self.caller.begin_here(request)).collect();
        for call in running {
            self.caller.finish(call)?;
        }
        if is_counted {
            self.wall.push(start.elapsed().as_secs_f64());
            self.cpu.push((self.env.processor_time()? - before).as_secs_f64());
        }
        for number in 0..layers.len() {
            self.caller.remove("erofs", &format!("active-{number}"))?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let least = self.wall.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.wall.iter().copied().fold(0.0, f64::max);
        let wall = format!("{:.3} ({least:.2}..{most:.2})", median(&self.wall));
        write!(f, "{wall:>24} {:7.2}", median(&self.cpu))
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
