//! A child process that serves: started with its output in a log file, ended when it is dropped. And one that is
//! started again whenever it ends, as a socket unit of systemd does it.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

/// How long a daemon may take to come up or to end before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running daemon. Dropping it asks it to end, and insists after five seconds.
#[derive(Debug)]
pub struct Daemon {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` with both outputs appended to `log`.
    pub fn start(name: &'static str, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    /// Waits until `ready` holds; an error when the daemon ends before or takes too long.
    pub fn wait_until(&mut self, mut ready: impl FnMut() -> bool) -> anyhow::Result<()> {
        let start = Instant::now();
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("{} ended with {status} while it started:\n{}", self.name, self.log_tail(20));
            }
            anyhow::ensure!(
                start.elapsed() < PATIENCE,
                "{} did not come up:\n{}",
                self.name,
                self.log_tail(20)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Bytes it has passed to write calls so far, to files and sockets.
    pub fn written_bytes(&self) -> anyhow::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/io", self.pid()))?;
        let count = text.lines().find_map(|line| line.strip_prefix("wchar: ")).context("no wchar")?;
        Ok(count.trim().parse()?)
    }

    /// User and system time it has taken so far, in steps of the kernel's clock tick.
    pub fn processor_time(&self) -> anyhow::Result<Duration> {
        // What `sysconf(_SC_CLK_TCK)` says on every Linux architecture that there is.
        const TICK: Duration = Duration::from_millis(10);
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The name, in parentheses, may hold anything.
        let (_, fields) = text.rsplit_once(')').context("no name in stat")?;
        let mut fields = fields.split_whitespace().skip(11);
        let mut ticks = || anyhow::Ok(fields.next().context("stat is too short")?.parse::<u32>()?);
        Ok(TICK * (ticks()? + ticks()?))
    }

    /// Everything it wrote to its log so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
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

    /// Asks it to end and waits for that.
    pub fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM);
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            anyhow::ensure!(start.elapsed() < PATIENCE, "{} did not end on SIGTERM", self.name);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // A child that has ended was not waited for yet, so the id is still its own.
        if let Some(pid) = pid {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        self.signal(Signal::TERM);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A socket that outlives its daemon, which inherits it and is started again 200 ms after it ended:
/// `plywood.socket` with the unit's `Restart=always` and `RestartSec=200ms`.
#[derive(Debug)]
pub struct SocketUnit {
    state: Arc<UnitState>,
    socket: PathBuf,
    keeper: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct UnitState {
    ends: AtomicBool,
    /// The next start does not wait.
    at_once: AtomicBool,
    child: Mutex<Option<Child>>,
}

impl SocketUnit {
    /// Listens on `socket` and keeps `command` running, its output appended to `log`.
    pub fn start(command: &Command, socket: &Path, log: &Path) -> anyhow::Result<Self> {
        const RESTART: Duration = Duration::from_millis(200);
        let listener = UnixListener::bind(socket)?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let start = {
            let program = command.get_program().to_owned();
            let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
            move || -> anyhow::Result<Child> {
                // The descriptor comes in as standard input, and the process keeps its id through exec.
                let mut shell = Command::new("/bin/sh");
                shell.arg("-c").arg("exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"").arg("sh");
                shell.arg(&program).args(&arguments).env("LISTEN_FDNAMES", "plywood");
                let socket = std::os::fd::OwnedFd::from(listener.try_clone()?);
                Ok(shell.stdin(socket).stdout(log.try_clone()?).stderr(log.try_clone()?).spawn()?)
            }
        };
        let state = Arc::new(UnitState::default());
        let kept = Arc::clone(&state);
        let keeper = thread::spawn(move || {
            while !kept.ends.load(Ordering::SeqCst) {
                let running = kept.running(|child| Ok(child.try_wait()?.is_none())).unwrap_or(false);
                if running {
                    thread::sleep(Duration::from_millis(10));
                    continue;
                }
                let was_there = kept.child.lock().unwrap_or_else(PoisonError::into_inner).is_some();
                if was_there && !kept.at_once.swap(false, Ordering::SeqCst) {
                    thread::sleep(RESTART);
                }
                *kept.child.lock().unwrap_or_else(PoisonError::into_inner) = start().ok();
            }
        });
        Ok(Self { state, socket: socket.to_owned(), keeper: Some(keeper) })
    }

    /// Asks the daemon to end, and has it started again as soon as it has: `systemctl restart`. `false` when none
    /// runs.
    pub fn restart(&self) -> bool {
        let ask = |child: &mut Child| {
            let runs = child.try_wait()?.is_none();
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw).filter(|_| runs) {
                self.state.at_once.store(true, Ordering::SeqCst);
                kill_process(pid, Signal::TERM)?;
            }
            Ok(runs)
        };
        self.state.running(ask).unwrap_or(false)
    }
}

impl UnitState {
    fn running(&self, look: impl FnOnce(&mut Child) -> anyhow::Result<bool>) -> anyhow::Result<bool> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map_or(Ok(false), look)
    }
}

impl Drop for SocketUnit {
    fn drop(&mut self) {
        self.state.ends.store(true, Ordering::SeqCst);
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
        let _ = self.state.running(|child| {
            child.kill()?;
            child.wait()?;
            Ok(false)
        });
        let _ = std::fs::remove_file(&self.socket);
    }
}
