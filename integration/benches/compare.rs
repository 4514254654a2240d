//! How long Diff takes beside containerd's own EROFS differ: the bars P12 and P13 of docs/performance.md, and what the
//! size of the image below costs.
//!
//!     cargo build --release
//!     eval "$(integration/setup/tools.sh)"
//!     PLYWOOD_CORPORA=DIR cargo bench -p plywood-integration --bench compare [-- --gate] [--pairs N] [CORPUS|lowers ...]
//!
//! One containerd holds the snapshots and takes the blobs of both differs; its own is asked through its diff service,
//! Plywood through its socket. Corpora are those of tests/benches/corpora.py, unpacked as the upper directory of an
//! active snapshot. Pairs are ours, theirs, theirs, ours, ...; the blob is collected after each. Measured is the call,
//! from the page cache; processor time is that of both daemons. Needs what the tests need.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use containerd_client::services::v1::DiffRequest;
use containerd_client::types::{Descriptor, Mount};
use plywood_integration::calls::{Caller, Differ};
use plywood_integration::env::{Env, Setup};
use plywood_integration::host;
use plywood_integration::image::{Coding, Layer};

const PROGRAMS: [&str; 6] = ["containerd", "ctr", "docker-registry", "umount", "mkfs.erofs", "tar"];
const CORPORA: [&str; 4] = ["minbase", "pydata", "node", "tf"];
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const LEASE: &str = "bench";

/// Times and blob sizes of one differ.
#[derive(Default)]
struct Taken {
    wall: Vec<f64>,
    cpu: Vec<f64>,
    bytes: i64,
}

fn main() -> anyhow::Result<()> {
    if let Some(missing) = host::missing(&PROGRAMS) {
        println!("not measured: {missing}");
        return Ok(());
    }
    let mut pairs = 5;
    let mut gate = false;
    let mut wanted = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--gate" => gate = true,
            "--bench" => {}
            "--pairs" => pairs = arguments.next().context("--pairs N")?.parse()?,
            _ => wanted.push(argument),
        }
    }
    host::isolate()?;
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|want| want == name);
    let mut missed = Vec::new();
    if let Some(corpora) = std::env::var_os("PLYWOOD_CORPORA") {
        let names: Vec<&str> = CORPORA.into_iter().filter(|name| is_wanted(name)).collect();
        missed.extend(corpus_pairs(Path::new(&corpora), &names, pairs)?);
    } else {
        println!("corpora: not measured, PLYWOOD_CORPORA is not set");
    }
    if is_wanted("lowers") {
        missed.extend(lowers(pairs)?);
    }
    for name in &missed {
        println!("MISSED: {name}");
    }
    anyhow::ensure!(!gate || missed.is_empty(), "{} bars were missed", missed.len());
    Ok(())
}

/// Every corpus, gzip and zstd, in pairs; the bars that were missed.
fn corpus_pairs(corpora: &Path, names: &[&str], pairs: usize) -> anyhow::Result<Vec<String>> {
    println!(
        "{:8} {:5} {:>24} {:>7} {:>8}   {:>24} {:>7} {:>8}   {:>5} {:>5} {:>6}",
        "corpus",
        "type",
        "wall s",
        "cpu s",
        "MB",
        "containerd's wall s",
        "cpu s",
        "MB",
        "wall",
        "cpu",
        "size"
    );
    let mut missed = Vec::new();
    for name in names {
        let env = Env::start(&Setup { differs: &["erofs"], ..Setup::default() })?;
        let caller = env.caller()?;
        let tar = corpora.join(format!("{name}.tar"));
        let request = upper_of(&caller, &tar)?;
        for (bar, kind, media_type, wall_bar, size_bar) in
            [("P12", "gzip", GZIP, 0.55, 1.01), ("P13", "zstd", ZSTD, 0.70, 1.05)]
        {
            let request = DiffRequest { media_type: media_type.into(), ..request.clone() };
            let (ours, theirs) = measure(&env, &caller, &request, pairs)?;
            let wall = median(&ours.wall) / median(&theirs.wall);
            let cpu = median(&ours.cpu) / median(&theirs.cpu);
            #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
            let size = ours.bytes as f64 / theirs.bytes as f64;
            println!("{name:8} {kind:5} {ours}   {theirs}   {wall:5.2} {cpu:5.2} {size:6.3}");
            if wall > wall_bar {
                missed
                    .push(format!("{bar} {name}: {wall:.2} of containerd's wall time, more than {wall_bar}"));
            }
            if size > size_bar {
                missed.push(format!("{bar} {name}: {size:.3} of containerd's bytes, more than {size_bar}"));
            }
        }
    }
    Ok(missed)
}

/// An active snapshot on a tiny image, with the files of `tar` as its changes.
fn upper_of(caller: &Caller, tar: &Path) -> anyhow::Result<DiffRequest> {
    let mut archive = tar::Builder::new(Vec::new());
    add_file(&mut archive, "a-file-of-the-image", b"below")?;
    let parent = commit(caller, "base", "", &Layer::oci(&archive.into_inner()?, Coding::Plain)?)?;
    let right = caller.prepare("upper", &parent)?;
    let upper = upper_directory(&right)?;
    host::run(host::command("tar").arg("-xf").arg(tar).arg("-C").arg(&upper).args([
        "--numeric-owner",
        "--same-permissions",
        "--xattrs",
        "--xattrs-include=*",
    ]))?;
    let left = caller.view("erofs", "lower", &parent)?;
    Ok(DiffRequest { left, right, ..DiffRequest::default() })
}

/// Applies a layer by Plywood and commits it; its name.
fn commit(caller: &Caller, name: &str, parent: &str, layer: &Layer) -> anyhow::Result<String> {
    caller.ingest(layer)?;
    let key = format!("{name}-active");
    let mounts = caller.prepare(&key, parent)?;
    caller.apply(layer, &mounts)?;
    caller.commit("erofs", name, &key)?;
    Ok(name.to_owned())
}

fn upper_directory(mounts: &[Mount]) -> anyhow::Result<PathBuf> {
    let options = &mounts.first().context("no mount")?.options;
    let upper = options.iter().find_map(|option| option.strip_prefix("upperdir=")).context("no upperdir")?;
    Ok(upper.into())
}

fn measure(
    env: &Env,
    caller: &Caller,
    request: &DiffRequest,
    pairs: usize,
) -> anyhow::Result<(Taken, Taken)> {
    let (mut ours, mut theirs) = (Taken::default(), Taken::default());
    for number in 0..pairs {
        let mut order = [Differ::Plywood, Differ::Service];
        if number % 2 == 1 {
            order.reverse();
        }
        for differ in order {
            let taken = if differ == Differ::Plywood { &mut ours } else { &mut theirs };
            taken.add(env, caller, differ, request)?;
        }
    }
    Ok((ours, theirs))
}

impl Taken {
    fn add(
        &mut self,
        env: &Env,
        caller: &Caller,
        differ: Differ,
        request: &DiffRequest,
    ) -> anyhow::Result<Descriptor> {
        caller.create_lease(LEASE)?;
        let before = env.processor_time()?;
        let start = Instant::now();
        let found = caller.diff(differ, request.clone(), Some(LEASE))?;
        self.wall.push(start.elapsed().as_secs_f64());
        self.cpu.push((env.processor_time()? - before).as_secs_f64());
        self.bytes = found.size;
        // Else the next one would find its blob written already.
        caller.delete_lease(LEASE)?;
        anyhow::ensure!(caller.content(&found.digest)?.is_none(), "the blob was not collected");
        Ok(found)
    }
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let least = self.wall.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.wall.iter().copied().fold(0.0, f64::max);
        let wall = format!("{:.3} ({least:.2}..{most:.2})", median(&self.wall));
        #[expect(clippy::cast_precision_loss, reason = "megabytes for people")]
        let megabytes = self.bytes as f64 / 1e6;
        write!(f, "{wall:>24} {:7.2} {megabytes:8.2}", median(&self.cpu))
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// An upper directory of 1000 entries over ten layers of more and more files.
fn lowers(pairs: usize) -> anyhow::Result<Vec<String>> {
    const LAYERS: usize = 10;
    println!("\n1000 entries over {LAYERS} layers; ms, gzip");
    println!("{:>9} {:>10} {:>22}", "files", "plywood", "containerd's own");
    let mut curve = Vec::new();
    for files in [3_000, 30_000, 300_000] {
        let env = Env::start(&Setup { differs: &["erofs"], ..Setup::default() })?;
        let caller = env.caller()?;
        let mut parent = String::new();
        for number in 0..LAYERS {
            let mut archive = tar::Builder::new(Vec::new());
            for file in 0..files / LAYERS {
                let name = format!("layer-{number}/{}/{file}", file / 100);
                add_file(&mut archive, &name, name.as_bytes())?;
            }
            let layer = Layer::oci(&archive.into_inner()?, Coding::Plain)?;
            parent = commit(&caller, &format!("layer-{number}"), &parent, &layer)?;
        }
        let right = caller.prepare("upper", &parent)?;
        let upper = upper_directory(&right)?;
        for number in 0..LAYERS {
            // Two directories of each layer: 49 changed files, and one new one, in each.
            for directory in [0, 1] {
                let at = upper.join(format!("layer-{number}/{directory}"));
                std::fs::create_dir_all(&at)?;
                for file in 0..49 {
                    std::fs::write(at.join(format!("{}", directory * 100 + file)), b"changed")?;
                }
                std::fs::write(at.join("new"), b"new")?;
            }
        }
        let left = caller.view("erofs", "lower", &parent)?;
        let request = DiffRequest { left, right, media_type: GZIP.into(), ..DiffRequest::default() };
        let (ours, theirs) = measure(&env, &caller, &request, pairs.max(5))?;
        println!("{files:9} {:10.1} {:22.1}", median(&ours.wall) * 1e3, median(&theirs.wall) * 1e3);
        curve.push(median(&ours.wall));
    }
    let grown = curve[curve.len() - 1] / curve[0];
    println!("300 000 files against 3 000: {grown:.2}");
    // A hundred times the files; what is left is noise and deeper binary searches.
    Ok(if grown > 1.5 { vec![format!("curve: {grown:.2} times the time of 3 000 files")] } else { vec![] })
}

fn add_file(archive: &mut tar::Builder<Vec<u8>>, name: &str, contents: &[u8]) -> anyhow::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_mtime(1_748_736_000);
    header.set_size(u64::try_from(contents.len())?);
    Ok(archive.append_data(&mut header, name, contents)?)
}
