//! How long a layer of three files takes, asked for over one connection: the bar P10 of docs/performance.md.
//!
//!     cargo build --release
//!     eval "$(integration/setup/tools.sh)"
//!     cargo bench -p plywood-integration --bench tiny [-- --gate]
//!
//! containerd's content store holds the blob and its EROFS snapshotter makes the directories; every Apply goes into a
//! fresh one. Measured is the call alone, from the first byte sent to the answer decoded. Needs what the tests need.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use containerd_client::services::v1::{ApplyRequest, ApplyResponse};
use plywood_integration::calls::{Caller, apply_request};
use plywood_integration::env::{Env, Setup};
use plywood_integration::image::{Coding, Layer};
use plywood_integration::{host, ttrpc};

/// Calls that are timed; before them a tenth as many that are not.
const CALLS: usize = 200;
/// The bar for the median over ttrpc, with the settings of the default configuration.
const BAR: Duration = Duration::from_millis(3);
const PROGRAMS: [&str; 4] = ["containerd", "ctr", "docker-registry", "umount"];

fn main() -> anyhow::Result<()> {
    if let Some(missing) = host::missing(&PROGRAMS) {
        println!("not measured: {missing}");
        return Ok(());
    }
    host::isolate()?;
    let layer = Layer::oci(&three_files()?, Coding::Gzip)?;
    println!(
        "{:>10} {:>10} {:>8} {:>8} {:>8} {:>8}",
        "wire", "durability", "min ms", "p50 ms", "p95 ms", "max ms"
    );
    let mut missed = false;
    for durability in ["always", "request"] {
        let tables = format!("[apply]\ndurability = \"{durability}\"\n");
        let env = Env::start(&Setup { plywood_tables: tables, ..Setup::default() })?;
        let caller = env.caller()?;
        caller.ingest(&layer)?;
        let namespace = env.namespace();

        let mut client = ttrpc::Client::connect(&env.plywood_socket())?;
        let times = measure(&caller, &layer, "ttrpc", |request| {
            let answer: Result<ApplyResponse, _> =
                client.call("containerd.services.diff.v1.Diff", "Apply", namespace, request)?;
            let answer = answer.map_err(|status| anyhow::anyhow!("{}: {}", status.code, status.message))?;
            Ok(answer.applied.context("an answer without a descriptor")?.digest)
        })?;
        show("ttrpc", durability, &times);
        missed |= durability == "always" && times[times.len() / 2] > BAR;

        let times = measure(&caller, &layer, "grpc", |request| {
            Ok(caller.finish(caller.begin_here(request.clone()))?.digest)
        })?;
        show("grpc", durability, &times);
    }
    println!("P10  ttrpc, p50 <= {} ms: {}", BAR.as_millis(), if missed { "MISSED" } else { "pass" });
    anyhow::ensure!(!(missed && std::env::args().any(|argument| argument == "--gate")), "the bar was missed");
    Ok(())
}

/// Sorted times of the calls after the first ones.
fn measure(
    caller: &Caller,
    layer: &Layer,
    name: &str,
    mut call: impl FnMut(&ApplyRequest) -> anyhow::Result<String>,
) -> anyhow::Result<Vec<Duration>> {
    let warm = CALLS / 10;
    let mut requests = Vec::new();
    for number in 0..warm + CALLS {
        requests.push(apply_request(layer, &caller.prepare(&format!("{name}-{number}"), "")?));
    }
    let mut times = Vec::new();
    for request in &requests {
        let start = Instant::now();
        let diff_id = call(request)?;
        times.push(start.elapsed());
        anyhow::ensure!(diff_id == layer.diff_id, "diffID {diff_id}");
    }
    let mut times = times.split_off(warm);
    times.sort();
    Ok(times)
}

fn show(wire: &str, durability: &str, times: &[Duration]) {
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    println!("{wire:>10} {durability:>10} {:8.2} {:8.2} {:8.2} {:8.2}", at(0), at(50), at(95), at(100));
}

/// A layer equal to the corpus `tiny`: a directory, two files and a link.
fn three_files() -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind, mode, contents: &[u8]| -> anyhow::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_748_736_000);
        header.set_size(u64::try_from(contents.len())?);
        if kind == tar::EntryType::Symlink {
            header.set_size(0);
            archive.append_link(&mut header, name, std::str::from_utf8(contents)?)?;
        } else {
            archive.append_data(&mut header, name, contents)?;
        }
        Ok(())
    };
    add("etc", tar::EntryType::Directory, 0o755, b"")?;
    add("etc/hostname", tar::EntryType::Regular, 0o644, b"tiny\n")?;
    add("etc/motd", tar::EntryType::Regular, 0o644, b"three files make a layer\n")?;
    add("etc/issue", tar::EntryType::Symlink, 0o777, b"motd")?;
    Ok(archive.into_inner()?)
}
