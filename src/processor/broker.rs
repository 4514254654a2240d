//! The broker: starts the processors of its table, kills and reaps them, and reports how they ended.
//!
//! One thread, which waits for the daemon and for all processors at once. It trusts its first message, which comes
//! before the daemon has read anything from outside, and no later one.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{process::Pid, thread::CapabilitySet};
use serde::{Deserialize, Serialize};

use super::{
    message::{
        ERRORS_BYTES, READY, REPORT_BYTES, REQUEST_BYTES, Refused, Report, Request, SETUP_BYTES, What,
    },
    program::check_program,
};
use crate::{
    config::{Log, MEDIA_TYPE_VARIABLE, StreamProcessor, StreamProcessors},
    error::{Error, Kind, Result},
    sys::{
        capabilities,
        messages::{self, Message},
        pipe::{self, Wanted},
        process::{self, Descriptors, Ended, PidfdFlags, ProcessLimits, Program, pidfd_open},
        sandbox,
    },
};

/// Most processors at a time: 32 layers with eight each.
const MOST_RUNNING: usize = 256;
/// Largest file that a processor writes, in bytes.
const FILE_BYTES: u64 = 1 << 30;
/// Open descriptors of a processor, at most. The broker itself needs three for each one that runs.
const OPEN: u64 = 4096;
/// Time between two looks at processors that are being killed.
const KILLING: Duration = Duration::from_millis(5);
/// Time between two looks for orphans to reap while processors run.
const REAPING: Duration = Duration::from_secs(1);
/// Longest time for the end of all processors once the daemon has ended.
const LAST: Duration = Duration::from_secs(1);
/// Refused messages that are logged. A daemon that sends one is broken; more say nothing new.
const LOGGED_REFUSALS: u32 = 16;
/// Directories that processors may write to: temporary files, and devices such as `/dev/null`.
const WRITABLE: [&str; 3] = ["/tmp", "/var/tmp", "/dev"];

/// First message to the broker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// The processors. Requests name them by their place.
    pub processors: StreamProcessors,
    /// Owner of programs besides root.
    pub user: u32,
    /// Bytes of memory of its own that a processor may have.
    pub memory_bytes: u64,
    /// Seconds of processor time that a processor may take.
    pub cpu_seconds: u64,
    /// Give up capabilities, and writing but to temporary files.
    pub sandbox: bool,
    /// How the broker logs.
    pub log: Log,
}

fn broken(what: &str, problem: impl ToString) -> Error {
    Error::new(Kind::Unavailable, "broker.setup", format!("{what}: {}", problem.to_string()))
}

/// Waits for the first message on `socket`. Errors: there is none; it is not a setup.
pub fn receive_setup(socket: impl AsFd) -> Result<Setup> {
    let socket = socket.as_fd();
    let mut buffer = vec![0; SETUP_BYTES];
    pipe::ready(&[(socket, Wanted::Read)], None).map_err(|error| broken("standard input", error))?;
    let message = messages::receive(socket, &mut buffer);
    let Message { len, is_cut, .. } = message.map_err(|error| broken("standard input", error))?;
    let bytes = buffer.get(..len).filter(|bytes| !is_cut && !bytes.is_empty()).unwrap_or_default();
    serde_json::from_slice(bytes).map_err(|error| broken("the setup", error))
}

/// Obeys the requests on `socket` until its other end is closed. Then kills all processors and returns. Errors, which are
/// sent over `socket` as well: a program of the table may not be run; the process cannot be set up for it.
pub fn serve(socket: impl AsFd, setup: Setup) -> Result<()> {
    let socket = socket.as_fd();
    let prepared = prepare(&setup);
    let mut answer = prepared.as_ref().map_or_else(|error| error.to_string().into_bytes(), |_| vec![READY]);
    answer.truncate(REPORT_BYTES);
    messages::send(socket, &answer, &[]).map_err(|error| broken("standard input", error))?;
    Broker { socket, programs: prepared?, jobs: Vec::new(), refusals: 0 }.run();
    Ok(())
}

/// One processor of the table.
struct Entry {
    id: String,
    /// The program without symbolic links.
    path: PathBuf,
    processor: StreamProcessor,
}

/// Checks the programs, and makes this process one that may start them.
fn prepare(setup: &Setup) -> Result<Vec<Entry>> {
    let mut programs = Vec::new();
    for (id, processor) in &setup.processors {
        let path = check_program(&processor.path, setup.user)
            .map_err(|error| Error::from(error).context(format!("processor {id}")))?;
        programs.push(Entry { id: id.clone(), path, processor: processor.clone() });
    }
    let failed = |what: &'static str| move |error: io::Error| broken(what, error);
    process::keep_descriptors().map_err(failed("descriptors"))?;
    process::reserve_extra().map_err(failed("descriptor 3"))?;
    process::adopt_orphans().map_err(failed("orphans"))?;
    let limits = ProcessLimits {
        memory_bytes: setup.memory_bytes,
        cpu_seconds: setup.cpu_seconds,
        file_bytes: FILE_BYTES,
        descriptors: OPEN,
    };
    process::limit(limits).map_err(failed("limits"))?;
    if setup.sandbox {
        let writable = WRITABLE.map(Path::new);
        let enforced = sandbox::confine_programs(&writable).map_or("none", |enforced| enforced.level);
        capabilities::drop_all_but(CapabilitySet::empty()).map_err(failed("capabilities"))?;
        tracing::debug!(landlock = enforced, "the broker is confined");
    } else {
        capabilities::forbid_new().map_err(failed("no_new_privs"))?;
    }
    Ok(programs)
}

struct Broker<'s> {
    socket: BorrowedFd<'s>,
    programs: Vec<Entry>,
    jobs: Vec<Job>,
    refusals: u32,
}

/// A processor that was started.
struct Job {
    leader: Pid,
    /// Readable once the leader has ended.
    process: OwnedFd,
    leash: OwnedFd,
    /// The daemon has closed its end of the leash.
    is_let_go: bool,
    /// Standard error, while it is open.
    stderr: Option<File>,
    errors: Vec<u8>,
    /// How the leader has ended. The rest of its group is killed then.
    ended: Option<Ended>,
    left_behind: bool,
}

impl Broker<'_> {
    fn run(mut self) {
        while self.wait() {
            self.look_after();
        }
        tracing::debug!(running = self.jobs.len(), "the daemon has ended, and so does the broker");
        let end = Instant::now() + LAST;
        while !self.jobs.is_empty() && Instant::now() < end {
            for job in &mut self.jobs {
                job.is_let_go = true;
            }
            self.look_after();
            std::thread::sleep(KILLING);
        }
    }

    /// Waits until there is something to do, and takes requests. Returns `false` when no more can come.
    fn wait(&mut self) -> bool {
        let (mut ends, mut leashes) = (vec![(self.socket, Wanted::Read)], Vec::new());
        for job in &self.jobs {
            ends.extend(job.ended.is_none().then_some((job.process.as_fd(), Wanted::Read)));
            ends.extend(job.stderr.as_ref().map(|stderr| (stderr.as_fd(), Wanted::Read)));
            leashes.push(ends.len());
            ends.extend((!job.is_let_go).then_some((job.leash.as_fd(), Wanted::End)));
        }
        let is_killing = |job: &Job| job.ended.is_some() || job.is_let_go;
        let limit = match self.jobs.iter().any(is_killing) {
            true => Some(KILLING),
            false => (!self.jobs.is_empty()).then_some(REAPING),
        };
        let Ok(ready) = pipe::ready(&ends, limit) else { return false };
        for (job, place) in self.jobs.iter_mut().zip(leashes) {
            // The place of a job that was let go before is another's, and changes nothing.
            job.is_let_go |= ready.get(place) == Some(&true);
        }
        ready.first() != Some(&true) || self.take()
    }

    /// Takes one request. Returns `false` at the end of the socket.
    fn take(&mut self) -> bool {
        let mut buffer = [0; REQUEST_BYTES];
        let message = match messages::receive(self.socket, &mut buffer) {
            Ok(message) => message,
            Err(error) => {
                return matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            }
        };
        if message.len == 0 && message.descriptors.is_empty() && !message.is_cut {
            return false;
        }
        let bytes = buffer.get(..message.len).unwrap_or_default();
        if let Err(refused) = self.obey(bytes, message.descriptors, message.is_cut) {
            self.refusals = self.refusals.saturating_add(1);
            if self.refusals <= LOGGED_REFUSALS {
                tracing::error!(
                    target: "plywood::security",
                    event = "broker-refused",
                    problem = %refused,
                    "the daemon asked for what it may not have"
                );
            }
        }
        true
    }

    fn obey(&mut self, bytes: &[u8], descriptors: Vec<OwnedFd>, is_cut: bool) -> Result<(), Refused> {
        if is_cut {
            return Err(Refused(format!(
                "a message of more than {REQUEST_BYTES} bytes or too many descriptors"
            )));
        }
        let Request { processor, media_type, .. } = Request::decode(bytes, descriptors.len())?;
        let entry = usize::try_from(processor).ok().and_then(|place| self.programs.get(place));
        let entry =
            entry.ok_or_else(|| Refused(format!("processor {processor} of {}", self.programs.len())))?;
        if !entry.processor.accepts.contains(&media_type) {
            return Err(Refused(format!("processor {} for type {media_type:?}", entry.id)));
        }
        let mut descriptors = descriptors.into_iter();
        let (Some(leash), Some(input), Some(output)) =
            (descriptors.next(), descriptors.next(), descriptors.next())
        else {
            return Err(Refused("descriptors are missing".to_owned()));
        };
        let running = self.jobs.len();
        let started = match running >= MOST_RUNNING {
            true => Err(What::Busy(i32::try_from(running).unwrap_or(i32::MAX))),
            false => start(entry, &media_type, input, output, descriptors.next())
                .map_err(|error| What::NotStarted(error.raw_os_error().unwrap_or_default())),
        };
        match started {
            Ok((leader, process, stderr)) => self.jobs.push(Job {
                leader,
                process,
                leash,
                is_let_go: false,
                stderr: Some(stderr),
                errors: Vec::new(),
                ended: None,
                left_behind: false,
            }),
            Err(what) => report(&leash, &Report::of(what)),
        }
        Ok(())
    }

    /// Reads what processors say, kills those that are to end, reaps, and reports the ends.
    fn look_after(&mut self) {
        let leaders: Vec<_> = self.jobs.iter().map(|job| job.leader).collect();
        self.jobs.retain_mut(|job| {
            job.listen();
            if job.is_let_go {
                process::kill_group(job.leader);
            }
            let (ended, killed) = process::reap_group(job.leader);
            job.ended = job.ended.or(ended);
            if job.ended.is_none() {
                return true;
            }
            job.left_behind |= killed;
            if process::kill_group(job.leader) {
                return true;
            }
            if process::kill_strays(&leaders) {
                job.left_behind = true;
                return true;
            }
            job.report();
            false
        });
    }
}

/// Starts a processor. Returns its process, and its standard error.
fn start(
    entry: &Entry,
    media_type: &str,
    input: OwnedFd,
    output: OwnedFd,
    extra: Option<OwnedFd>,
) -> io::Result<(Pid, OwnedFd, File)> {
    let (stderr, errors) = pipe::pair(0)?;
    pipe::set_nonblocking(&stderr)?;
    let mut environment = entry.processor.environment();
    environment.push((MEDIA_TYPE_VARIABLE.to_owned(), media_type.to_owned()));
    let program = Program {
        path: &entry.path,
        name: &entry.processor.path,
        arguments: &entry.processor.args,
        environment: &environment,
    };
    let leader = process::start(&program, Descriptors { input, output, errors, extra })?;
    let process = pidfd_open(leader, PidfdFlags::empty()).inspect_err(|_| {
        process::kill_group(leader);
    })?;
    Ok((leader, process, File::from(stderr)))
}

fn report(leash: &OwnedFd, report: &Report) {
    // A daemon that let it go has closed the leash.
    let _let_go = messages::send(leash, &report.encode(), &[]);
}

impl Job {
    /// Reads what is there of the standard error. A flood is read piece by piece, for the sake of the others.
    fn listen(&mut self) {
        let Some(stderr) = &mut self.stderr else { return };
        let mut buffer = [0; 16 << 10];
        match stderr.read(&mut buffer) {
            Ok(0) => self.stderr = None,
            Ok(read) => {
                self.errors.extend(buffer.get(..read).unwrap_or_default());
                if self.errors.len() > 2 * ERRORS_BYTES {
                    self.keep_the_end();
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.stderr = None,
        }
    }

    fn keep_the_end(&mut self) {
        self.errors.drain(..self.errors.len().saturating_sub(ERRORS_BYTES));
    }

    /// Sends the daemon how it has ended.
    fn report(&mut self) {
        // All writers of the standard error are gone, so there is no more than a pipe holds.
        for _ in 0..8 {
            self.listen();
        }
        self.keep_the_end();
        let what = match self.ended {
            Some(Ended::Exited(status)) => What::Exited(status),
            Some(Ended::Killed(signal)) => What::Killed(signal),
            None => return,
        };
        let errors = std::mem::take(&mut self.errors);
        report(&self.leash, &Report { what, left_behind: self.left_behind, errors });
    }
}
