//! System calls listed and disturbed by strace.

use std::{collections::BTreeMap, fmt, fs, path::Path};

/// The fate of the chosen system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Kill,
    NoSpace,
    Broken,
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "survives SIGKILL",
            Self::NoSpace => "survives ENOSPC",
            Self::Broken => "survives EIO",
        }
    }

    fn injection(self) -> &'static str {
        match self {
            Self::Kill => "signal=KILL",
            Self::NoSpace => "error=ENOSPC",
            Self::Broken => "error=EIO",
        }
    }
}

/// One system call: the `number`th of its name in its thread.
#[derive(Clone, Debug)]
pub struct Point {
    pub call: String,
    pub number: usize,
    pub line: String,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.call, self.number, self.line)
    }
}

impl Point {
    /// Arguments that disturb this call and, where it has several threads, the same one of each.
    pub fn injection(&self, fault: Fault, always: &[String]) -> Vec<String> {
        let mut strace: Vec<String> = ["-f", "-qq", "-o", "/dev/null"].map(String::from).into();
        if fault != Fault::Kill {
            // Stops at the traced calls only; signals are not injected that way.
            strace.push("--seccomp-bpf".into());
        }
        // Calls in which faults are injected must be among the traced ones.
        let traced = if always.is_empty() { self.call.clone() } else { format!("{},openat", self.call) };
        strace.extend(["-e".into(), format!("trace={traced}")]);
        strace.extend_from_slice(always);
        let what = format!("inject={}:{}:when={}", self.call, fault.injection(), self.number);
        strace.extend(["-e".into(), what]);
        strace
    }
}

/// All system calls of what `run` starts behind strace with the arguments it is given, in their order.
pub fn list(scratch: &Path, always: &[String], run: impl FnOnce(&[String])) -> Vec<Point> {
    let log = scratch.join("trace.log");
    let mut strace: Vec<String> = ["-f", "-y", "-s", "0", "-o"].map(String::from).into();
    strace.push(log.to_str().unwrap().to_owned());
    strace.extend_from_slice(always);
    run(&strace);
    let mut counts = BTreeMap::new();
    let mut points = Vec::new();
    for line in fs::read_to_string(&log).unwrap().lines() {
        let Some((thread, text)) = line.split_once(' ') else { continue };
        let Some((call, _)) = text.trim_start().split_once('(') else { continue };
        if !call.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            continue;
        }
        let number = counts.entry((thread.to_owned(), call.to_owned())).or_insert(0_usize);
        *number += 1;
        points.push(Point { call: call.to_owned(), number: *number, line: text.trim_start().to_owned() });
    }
    points
}
