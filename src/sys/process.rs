//! Child processes in groups of their own: starting, killing and reaping all that belongs to one.
//!
//! Source: execve(2), waitpid(2), kill(2), setrlimit(2), `PR_SET_CHILD_SUBREAPER`(2const).

// What happens between fork and exec is unsafe by its nature.
#![allow(unsafe_code)]

use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{Command, Stdio},
};

use rustix::{
    io::{Errno, FdFlags, fcntl_setfd},
    process::{
        Pid, Resource, Rlimit, Signal, WaitOptions, getpgid, getpid, getppid, getrlimit, kill_process,
        kill_process_group, set_child_subreaper, set_parent_process_death_signal, setrlimit,
        test_kill_process_group, waitpgid, waitpid,
    },
};

pub use rustix::process::{PidfdFlags, pidfd_open};

/// The descriptor on which a child finds what it gets besides its standard input.
const EXTRA: i32 = 3;

/// A program to start.
#[derive(Debug)]
pub struct Program<'a> {
    /// File that is executed.
    pub path: &'a Path,
    /// Name under which the program finds itself called.
    pub name: &'a Path,
    /// Arguments behind the name.
    pub arguments: &'a [String],
    /// All of its environment.
    pub environment: &'a [(String, String)],
}

/// The descriptors of a child.
#[derive(Debug)]
pub struct Descriptors {
    /// Standard input.
    pub input: OwnedFd,
    /// Standard output.
    pub output: OwnedFd,
    /// Standard error.
    pub errors: OwnedFd,
    /// Descriptor 3. Without it the child has none.
    pub extra: Option<OwnedFd>,
}

/// Closes all descriptors but the first three on exec: also those that this process was started with, whose owners may
/// have forgotten them.
pub fn keep_descriptors() -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        if let Some(number) = number.filter(|number| *number >= EXTRA) {
            // SAFETY: it was open a moment ago. One that was closed since, as that of the directory will be, is an
            // error of the call.
            let open = unsafe { BorrowedFd::borrow_raw(number) };
            let _closed_since = fcntl_setfd(open, FdFlags::CLOEXEC);
        }
    }
    Ok(())
}

/// Keeps descriptor 3 taken for as long as this process lives. Otherwise the standard library could use it for its own
/// report from the child, over which [`start`] would put the child's.
pub fn reserve_extra() -> io::Result<()> {
    loop {
        let taken = fs::File::open("/dev/null")?;
        let number = taken.as_raw_fd();
        if number <= EXTRA {
            // Open for good: it is never looked at again.
            let _kept = taken.into_raw_fd();
        }
        if number >= EXTRA {
            return Ok(());
        }
    }
}

/// Starts `program` as the leader of a new process group and the parent of its orphans, in the root directory. Nothing but `descriptors` is inherited, as
/// long as all others of this process are closed on exec. Errors: the program cannot be executed.
pub fn start(program: &Program<'_>, descriptors: Descriptors) -> io::Result<Pid> {
    let Descriptors { input, output, errors, extra } = descriptors;
    let mut command = Command::new(program.path);
    command
        .arg0(program.name)
        .args(program.arguments)
        .env_clear()
        .envs(program.environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .stderr(Stdio::from(errors))
        .process_group(0);
    let extra_number = extra.as_ref().map(|extra| extra.as_raw_fd());
    let starter = getpid();
    let prepare = move || {
        // A program whose starter is gone has nobody who kills it. The signal comes only if that ends from now on.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(starter) {
            return Err(Errno::SRCH.into());
        }
        // What it starts and leaves stays below it while it runs, and is not taken for another one's.
        set_child_subreaper(Some(getpid()))?;
        if let Some(extra) = extra_number {
            // SAFETY: `extra` is open in the parent until `spawn` returns, and so in this copy of its table.
            let extra = unsafe { BorrowedFd::borrow_raw(extra) };
            // SAFETY: descriptor 3 is this process's to give: `reserve_extra` keeps it from being anybody else's. It
            // is given up below, so that it stays open.
            let mut third = unsafe { OwnedFd::from_raw_fd(EXTRA) };
            let placed = match extra.as_raw_fd() {
                EXTRA => fcntl_setfd(&third, FdFlags::empty()),
                _ => rustix::io::dup2(extra, &mut third),
            };
            let _kept = third.into_raw_fd();
            placed?;
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls, allocates nothing and takes no lock.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn()?;
    drop(extra);
    // Not waited for through `Child`, whose drop does nothing: see `reap_group`.
    Ok(Pid::from_child(&child))
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

/// Makes this process the parent of those whose own parent ends, below all its children.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Reaps ended members of the group of `leader` as far as they are children of this process. Returns how the leader
/// ended, if it was among them, and whether others were that had to be killed.
pub fn reap_group(leader: Pid) -> (Option<Ended>, bool) {
    let (mut ended, mut killed) = (None, false);
    while let Ok(Some((pid, status))) = waitpgid(leader, WaitOptions::NOHANG) {
        if pid != leader {
            killed |= status.terminating_signal() == Some(Signal::KILL.as_raw());
        } else if let Some(code) = status.exit_status() {
            ended = Some(Ended::Exited(code));
        } else if let Some(signal) = status.terminating_signal() {
            ended = Some(Ended::Killed(signal));
        }
    }
    (ended, killed)
}

/// Kills every process in the group of `leader`. Returns whether there was one; a zombie counts.
pub fn kill_group(leader: Pid) -> bool {
    match kill_process_group(leader, Signal::KILL) {
        Err(Errno::SRCH) => false,
        _ => test_kill_process_group(leader) != Err(Errno::SRCH),
    }
}

/// Kills and reaps children of this process that are in none of the groups of `leaders`: they left theirs, and their
/// leader has ended. Returns whether any was killed. Finds none on a kernel without `/proc/PID/task/TID/children`.
pub fn kill_strays(leaders: &[Pid]) -> bool {
    let mut found = false;
    for child in children() {
        let group = getpgid(Some(child));
        if leaders.contains(&child) || group.is_ok_and(|group| leaders.contains(&group)) {
            continue;
        }
        // One that has ended by itself is only reaped.
        if !matches!(waitpid(Some(child), WaitOptions::NOHANG), Ok(Some(_))) {
            found = true;
            let _gone_already = kill_process(child, Signal::KILL);
        }
    }
    found
}

fn children() -> Vec<Pid> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let lists = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(parse).collect::<Vec<_>>()).collect()
}

fn parse(text: &str) -> Option<Pid> {
    text.parse().ok().and_then(Pid::from_raw)
}

/// Bounds on each process that this one starts from now on, and on this one.
#[derive(Clone, Copy, Debug)]
pub struct ProcessLimits {
    /// Bytes of writable memory of its own.
    pub memory_bytes: u64,
    /// Seconds of processor time.
    pub cpu_seconds: u64,
    /// Size of any file that it writes, in bytes.
    pub file_bytes: u64,
    /// Open descriptors.
    pub descriptors: u64,
}

/// Sets `limits`, as far as they are not lower already. No process writes a core file: it may hold keys.
pub fn limit(limits: ProcessLimits) -> io::Result<()> {
    for (resource, most) in [
        (Resource::Data, limits.memory_bytes),
        (Resource::Cpu, limits.cpu_seconds),
        (Resource::Fsize, limits.file_bytes),
        (Resource::Nofile, limits.descriptors),
        (Resource::Core, 0),
    ] {
        let Rlimit { maximum, .. } = getrlimit(resource);
        let most = Some(maximum.map_or(most, |maximum| most.min(maximum)));
        setrlimit(resource, Rlimit { current: most, maximum: most })?;
    }
    Ok(())
}
