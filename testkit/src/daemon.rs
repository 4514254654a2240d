//! A child process that serves, with its output in a log file.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

/// How long a daemon may take to come up or to end before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running daemon. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` with both outputs appended to `log`.
    pub fn start(name: &'static str, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let file = fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = command
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    /// Waits until `ready` holds; an error when the daemon ends before or takes too long.
    pub fn wait_until(&mut self, mut ready: impl FnMut(&Self) -> bool) -> anyhow::Result<()> {
        let start = Instant::now();
        while !ready(self) {
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("{} ended with {status} while it started:\n{}", self.name, self.log_tail(20));
            }
            anyhow::ensure!(
                start.elapsed() < PATIENCE,
                "{} did not come up:\n{}",
                self.name,
                self.log_tail(20)
            );
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The id of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Bytes it has passed to write calls so far, to files and sockets.
    pub fn written_bytes(&self) -> anyhow::Result<u64> {
        let text = self.proc("io")?;
        let count = text.lines().find_map(|line| line.strip_prefix("wchar: ")).context("no wchar")?;
        Ok(count.trim().parse()?)
    }

    /// User and system time it has taken so far, in steps of the kernel's clock tick.
    pub fn processor_time(&self) -> anyhow::Result<Duration> {
        // The value of `sysconf(_SC_CLK_TCK)` on every Linux architecture that there is.
        const TICK: Duration = Duration::from_millis(10);
        let text = self.proc("stat")?;
        // The name, in parentheses, may hold anything.
        let (_, fields) = text.rsplit_once(')').context("no name in stat")?;
        let mut fields = fields.split_whitespace().skip(11);
        let mut ticks = || anyhow::Ok(fields.next().context("stat is too short")?.parse::<u32>()?);
        Ok(TICK * (ticks()? + ticks()?))
    }

    /// Open descriptors, threads, resident bytes.
    pub fn size(&self) -> (usize, usize, u64) {
        let entries = |name: &str| fs::read_dir(format!("/proc/{}/{name}", self.pid())).unwrap().count();
        let statm = self.proc("statm").unwrap();
        let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
        (entries("fd"), entries("task"), pages * 4096)
    }

    fn proc(&self, name: &str) -> anyhow::Result<String> {
        Ok(fs::read_to_string(format!("/proc/{}/{name}", self.pid()))?)
    }

    /// Everything it wrote to its log so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Ends it without a chance to clean up.
    pub fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// Sends it a signal. A child that has ended was not waited for yet, so the id is still its own.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Asks it to end and waits for that.
    pub fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM);
        self.wait_within(PATIENCE)?.with_context(|| format!("{} did not end on SIGTERM", self.name))
    }

    /// Waits for its end, for so long; `None` when it still runs.
    pub fn wait_within(&mut self, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let start = Instant::now();
        loop {
            let ended = self.child.try_wait()?;
            if ended.is_some() || start.elapsed() > limit {
                return Ok(ended);
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end, which something else has brought about.
    pub fn ended(&mut self) -> ExitStatus {
        let ended = self.wait_within(2 * PATIENCE).unwrap();
        ended.unwrap_or_else(|| panic!("{} is still running\n{}", self.name, self.log()))
    }

    /// Asks it to end, and expects that it does so with success.
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.ended();
        assert!(status.success(), "{status}\n{}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Waits until `done`; fails when that takes longer than `limit`.
pub fn until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        sleep(Duration::from_millis(5));
    }
}
