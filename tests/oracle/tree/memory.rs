//! Peak memory of a layer that is never a file and never ends early.

use std::{
    fs,
    io::{self, Write as _},
    process::Stdio,
};

use libtest_mimic::Failed;
use testkit::{host::plywood, random::noise};

/// The small stream, in MiB: enough for every buffer to have been used.
const SMALL_MIB: u64 = 64;
/// The large one, unless `PLYWOOD_STREAM_MIB` asks for more (4096 is what docs/performance.md quotes).
const LARGE_MIB: u64 = 640;
/// More than a few pages of difference is growth with the layer.
const SLACK_KIB: u64 = 4 << 10;
/// Memory that the documentation promises for a layer of few entries.
const PROMISE_KIB: u64 = 48 << 10;

/// Memory is a matter of configuration, not of the layer's size.
pub fn a_stream_of_any_size() -> Result<(), Failed> {
    let large_mib = match std::env::var("PLYWOOD_STREAM_MIB") {
        Ok(text) => text.parse()?,
        Err(_) => LARGE_MIB,
    };
    let (small, large) = (peak_kib(SMALL_MIB)?, peak_kib(large_mib)?);
    if large > small + SLACK_KIB || large > PROMISE_KIB {
        return Err(format!("{SMALL_MIB} MiB took {small} KiB, {large_mib} MiB took {large} KiB").into());
    }
    Ok(())
}

/// Streams one file of `mib` MiB through `plywood apply -`; its peak resident set, in KiB.
fn peak_kib(mib: u64) -> Result<u64, Failed> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut child = plywood()
        .args(["apply", "-", "-o"])
        .arg(dir.path().join("out.erofs"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut pipe = child.stdin.take().ok_or("no pipe")?;
    let stretches = [noise(1 << 20, 1), vec![0; 1 << 20], b"plywood ".repeat(1 << 17)];
    let fed = (|| -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path("stream.bin")?;
        header.set_mode(0o644);
        header.set_size(mib << 20);
        header.set_cksum();
        pipe.write_all(header.as_bytes())?;
        for stretch in stretches.iter().cycle().take(usize::try_from(mib).map_err(io::Error::other)?) {
            pipe.write_all(stretch)?;
        }
        Ok(())
    })();
    // While it still waits for the end of the archive, all buffers are in use and the process is there to ask.
    let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
    pipe.write_all(&[0; 1024])?;
    drop(pipe);
    let ended = child.wait()?;
    fed?;
    if !ended.success() {
        return Err(format!("plywood apply - ended with {ended}").into());
    }
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
