//! gRPC and ttrpc on the daemon's one socket, at the same time, beside clients that speak neither.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use containerd_client::services::v1::{ApplyRequest, ApplyResponse, DiffRequest, DiffResponse};
use containerd_client::types::Mount;
use plywood_integration::archive;
use plywood_integration::calls::apply_request;
use plywood_integration::env::{Env, Setup};
use plywood_integration::image::{Coding, Layer};
use plywood_integration::ttrpc;

use crate::Suite;

/// Threads of each wire and calls of each thread.
const THREADS: usize = 4;
const CALLS: usize = 8;
const DIFF: &str = "containerd.services.diff.v1.Diff";
/// The number of UNIMPLEMENTED on both wires.
const UNIMPLEMENTED: i32 = 12;
/// How long a connection may say nothing, with room for a slow machine.
const SILENCE: Duration = Duration::from_secs(20);

pub fn add(suite: &mut Suite) {
    suite.with_env(
        "both_wires_serve_at_the_same_time_beside_noise_and_silence",
        Setup::default(),
        both_wires,
    );
    suite.with_env("unknown_methods_and_diff_are_unimplemented_over_ttrpc", Setup::default(), unimplemented);
}

fn both_wires(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let layer = Layer::oci(&archive::one_file("file", &archive::text(300_000, 2))?, Coding::Gzip)?;
    caller.ingest(&layer)?;
    let mut requests = Vec::new();
    for number in 0..2 * THREADS * CALLS {
        requests.push(apply_request(&layer, &caller.prepare(&format!("wire-{number}"), "")?));
    }
    let socket = env.plywood_socket();
    let namespace = env.namespace();
    let layer = &layer;
    let caller = &caller;

    let mut silent = UnixStream::connect(&socket)?;
    let since = Instant::now();
    let mut garbage = UnixStream::connect(&socket)?;
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    // A ttrpc frame that never ends.
    let mut torn = UnixStream::connect(&socket)?;
    torn.write_all(&[0, 0, 1])?;

    std::thread::scope(|scope| -> anyhow::Result<()> {
        let mut threads = Vec::new();
        for (number, work) in requests.chunks(CALLS).enumerate() {
            let socket = &socket;
            threads.push(scope.spawn(move || -> anyhow::Result<()> {
                if number % 2 == 0 {
                    over_ttrpc(&mut ttrpc::Client::connect(socket)?, namespace, work, layer)
                } else {
                    for request in work {
                        let applied = caller.finish(caller.begin_here(request.clone()))?;
                        anyhow::ensure!(applied.digest == layer.diff_id, "gRPC: {applied:?}");
                    }
                    Ok(())
                }
            }));
        }
        for thread in threads {
            thread.join().map_err(|_panic| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(())
    })?;

    let published = env.layer_files()?;
    anyhow::ensure!(published.len() == 2 * THREADS * CALLS, "{} layers", published.len());
    let first = std::fs::read(&published[0])?;
    for file in &published {
        anyhow::ensure!(std::fs::read(file)? == first, "{file:?} differs");
    }
    is_closed(&mut garbage, Instant::now()).context("a connection that speaks neither wire")?;
    is_closed(&mut silent, since).context("a silent connection")?;
    drop(torn);
    Ok(())
}

fn over_ttrpc(
    client: &mut ttrpc::Client,
    namespace: &str,
    work: &[ApplyRequest],
    layer: &Layer,
) -> anyhow::Result<()> {
    for request in work {
        let answer: Result<ApplyResponse, ttrpc::Status> = client.call(DIFF, "Apply", namespace, request)?;
        let answer = answer.map_err(|status| anyhow::anyhow!("ttrpc: {status:?}"))?;
        let applied = answer.applied.context("an answer without a descriptor")?;
        anyhow::ensure!(applied.digest == layer.diff_id, "ttrpc: {applied:?}");
    }
    Ok(())
}

/// Nothing was ever sent, and the other side closes in time.
fn is_closed(stream: &mut UnixStream, since: Instant) -> anyhow::Result<()> {
    let left = SILENCE.saturating_sub(since.elapsed()).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left))?;
    let mut bytes = [0; 16];
    match stream.read(&mut bytes) {
        Ok(0) => Ok(()),
        Ok(len) => anyhow::bail!("got {:?}", &bytes[..len]),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error).context("still open"),
    }
}

fn unimplemented(env: &mut Env) -> anyhow::Result<()> {
    let mut client = ttrpc::Client::connect(&env.plywood_socket())?;
    let namespace = env.namespace();
    let calls = [(DIFF, "Nothing"), ("some.other.Service", "Apply")];
    for (service, method) in calls {
        let answer: Result<ApplyResponse, _> =
            client.call(service, method, namespace, &ApplyRequest::default())?;
        let code = answer.map(|_| 0).map_err(|status| status.code);
        anyhow::ensure!(code == Err(UNIMPLEMENTED), "{service}/{method}: {code:?}");
    }
    // Mounts that are not ours, on the same connection.
    let elsewhere = Mount { r#type: "bind".into(), source: "/elsewhere/1/fs".into(), ..Mount::default() };
    let message = DiffRequest { right: vec![elsewhere], ..DiffRequest::default() };
    let answer: Result<DiffResponse, _> = client.call(DIFF, "Diff", namespace, &message)?;
    let code = answer.map(|_| 0).map_err(|status| status.code);
    anyhow::ensure!(code == Err(UNIMPLEMENTED), "Diff: {code:?}");
    Ok(())
}
