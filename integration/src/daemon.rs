//! A child process that serves: started with its output in a log file, ended when it is dropped. And one that is
//! started again whenever it ends, as a socket unit of systemd does it.

use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// A running daemon. Dropping it asks it to end, and insists after five seconds.
#[derive(Debug)]
pub struct Daemon(testkit::daemon::Daemon);

impl Daemon {
    /// Starts `command` with both outputs appended to `log`.
    pub fn start(name: &'static str, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        testkit::daemon::Daemon::start(name, command.stdin(Stdio::null()), log).map(Self)
    }

    /// Waits until `ready` holds; an error when the daemon ends before or takes too long.
    pub fn wait_until(&mut self, mut ready: impl FnMut() -> bool) -> anyhow::Result<()> {
        self.0.wait_until(|_| ready())
    }
}

impl Deref for Daemon {
    type Target = testkit::daemon::Daemon;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Daemon {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !matches!(self.wait_within(Duration::ZERO), Ok(Some(_))) {
            self.signal(Signal::TERM);
            let _ = self.wait_within(Duration::from_secs(5));
        }
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
