//! Plywood is restarted again and again while containerd asks it for work: no request is lost.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use plywood_integration::archive;
use plywood_integration::calls::Caller;
use plywood_integration::env::{Env, Setup};
use plywood_integration::image::{Coding, Layer};

use crate::Suite;

/// Time from one restart to the next.
const PERIOD: Duration = Duration::from_millis(400);
/// Requests at a time.
const CALLERS: usize = 4;
/// Restarts, unless the environment says otherwise.
const RESTARTS: usize = 12;
const RESTARTS_VARIABLE: &str = "PLYWOOD_TEST_RESTARTS";
/// Uncompressed size of the layer in bytes: large enough that most restarts meet a request at work.
const LAYER_BYTES: usize = 4 << 20;

pub fn add(suite: &mut Suite) {
    suite.with_env("restarts_each_400_ms_lose_no_request_of_containerd", Setup::default(), restarts);
}

fn restarts(env: &mut Env) -> anyhow::Result<()> {
    let restarts = match std::env::var(RESTARTS_VARIABLE) {
        Ok(text) => text.parse().context(RESTARTS_VARIABLE)?,
        Err(_) => RESTARTS,
    };
    let unit = env.start_socket_unit()?;
    let layer = Layer::oci(&archive::one_file("file", &archive::text(LAYER_BYTES, 1))?, Coding::Gzip)?;
    env.caller()?.ingest(&layer)?;
    let callers = (0..CALLERS).map(|_| env.caller()).collect::<anyhow::Result<Vec<_>>>()?;
    let (stop, applied) = (AtomicBool::new(false), AtomicUsize::new(0));
    let outcomes: Vec<anyhow::Result<()>> = thread::scope(|scope| {
        let (layer, stop, applied) = (&layer, &stop, &applied);
        let begin = |(number, caller)| scope.spawn(move || work(caller, number, layer, stop, applied));
        let running: Vec<_> = callers.iter().enumerate().map(begin).collect();
        let mut done = 0;
        while done < restarts && running.iter().all(|thread| !thread.is_finished()) {
            let next = Instant::now() + PERIOD;
            done += usize::from(unit.restart());
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        stop.store(true, Ordering::Relaxed);
        let ended = running.into_iter().map(thread::ScopedJoinHandle::join);
        ended.map(|outcome| outcome.unwrap_or_else(|_| anyhow::bail!("a caller panicked"))).collect()
    });
    let lost: Vec<String> =
        outcomes.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    let applied = applied.into_inner();
    println!("{restarts} restarts: {applied} requests answered, {} lost", lost.len());
    anyhow::ensure!(lost.is_empty(), "{applied} requests were answered, but not all: {}", lost.join("\n"));
    anyhow::ensure!(applied > restarts, "{applied} requests are too few to prove anything");
    Ok(())
}

/// Applies the layer to one snapshot through containerd's diff service, over and over, until the test stops it.
fn work(
    caller: &Caller,
    number: usize,
    layer: &Layer,
    stop: &AtomicBool,
    applied: &AtomicUsize,
) -> anyhow::Result<()> {
    let mounts = caller.prepare(&format!("restart-{number}"), "")?;
    while !stop.load(Ordering::Relaxed) {
        let descriptor = caller.apply_by_service(layer, &mounts)?;
        anyhow::ensure!(descriptor.digest == layer.diff_id, "{} for {}", descriptor.digest, layer.diff_id);
        applied.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
