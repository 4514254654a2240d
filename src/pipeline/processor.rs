//! Stream processors as a step of a run: the blob goes to the first, and what the last returns is the stream.
//!
//! Between two processors is a pipe that this process only makes. It feeds the first and reads the last on one thread, by
//! turns, so that neither waits for the other. The stream counts as whole once every processor has ended with status 0.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    buffer::{Buffer, Chunk, Pool},
    decode::Meter,
    resources::Plan,
    stage::Stage,
};
use crate::{
    call::Cancel,
    error::{Classify, Error, Kind, Result},
    kind::route::Step,
    sys::pipe::{self, Wanted},
};

/// Bytes that a pipe holds: with the 64 KiB of an ordinary one, every 64 KiB cost two switches between processes.
const PIPE_BYTES: usize = 1 << 20;
/// Bytes read at a time.
const READ_BYTES: usize = 256 << 10;
/// End of a processor's error output that is part of the error's message, in bytes.
const SHOWN_BYTES: usize = 1024;

/// Why what processors returned is not used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessorError {
    /// One ended with another status than 0.
    #[error("processor {id} {how}{}", said(.errors))]
    Failed {
        /// Name of the processor.
        id: String,
        /// How it ended, in words.
        how: String,
        /// End of its standard error.
        errors: String,
    },
    /// Several have failed: one that ends early makes those before it write to nobody, and those behind it read a part.
    #[error("{}", failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several {
        /// Their failures, in the order of the stream.
        failures: Vec<ProcessorError>,
    },
    /// It ended before processes that it had started. What they would have written is missing.
    #[error("processor {id} ended before the processes that it had started{}", said(.errors))]
    LeftBehind {
        /// Name of the processor.
        id: String,
        /// End of its standard error.
        errors: String,
    },
    /// All ended with status 0, and the last one has written nothing.
    #[error("processor {id} wrote nothing")]
    Empty {
        /// Name of the processor.
        id: String,
    },
    /// One cannot be executed.
    #[error("processor {id} cannot be started: {problem}")]
    Start {
        /// Name of the processor.
        id: String,
        /// Reason, in words.
        problem: String,
    },
    /// None of them took or gave a byte, or ended, for too long.
    #[error("the processors ({ids}) did nothing for {} s", limit.as_secs())]
    Stalled {
        /// Names of the processors.
        ids: String,
        /// The time, [`Limits::stall`](crate::limits::Limits::stall).
        limit: Duration,
    },
    /// Too many run.
    #[error("{running} processors are running, no more may be started")]
    Busy {
        /// Number of them.
        running: i32,
    },
    /// The broker, which starts processors, has ended.
    #[error("processors cannot be started since their broker has ended; restart the daemon")]
    Broker,
}

fn said(errors: &str) -> String {
    if errors.is_empty() { String::new() } else { format!(": {errors}") }
}

impl Classify for ProcessorError {
    fn kind(&self) -> Kind {
        match self {
            Self::Failed { .. } | Self::Several { .. } | Self::LeftBehind { .. } | Self::Empty { .. } => {
                Kind::Malformed
            }
            Self::Start { .. } | Self::Stalled { .. } | Self::Broker => Kind::Unavailable,
            Self::Busy { .. } => Kind::Exhausted,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Failed { .. } | Self::Several { .. } => "processor.failed",
            Self::LeftBehind { .. } => "processor.left-behind",
            Self::Empty { .. } => "processor.empty",
            Self::Start { .. } => "processor.start",
            Self::Stalled { .. } => "processor.stalled",
            Self::Busy { .. } => "processor.busy",
            Self::Broker => "processor.broker",
        }
    }
}

/// Starts processors.
pub trait Start: Send + Sync + fmt::Debug {
    /// Starts the processor of `step` between two pipes. `payload` is what it finds on descriptor 3.
    ///
    /// Errors: [`ProcessorError::Broker`], [`ProcessorError::Busy`]; pipes or sockets run out.
    fn start(
        &self,
        step: &Step,
        input: OwnedFd,
        output: OwnedFd,
        payload: Option<&[u8]>,
    ) -> Result<Box<dyn Running>>;
}

/// A processor that was started. It is killed, with all that it has started, when this is dropped before it has ended.
pub trait Running: Send {
    /// Readable once the processor has ended.
    fn ended(&self) -> BorrowedFd<'_>;

    /// Returns how it has ended; `None` while it runs.
    ///
    /// Errors: [`ProcessorError::Broker`], [`ProcessorError::Start`], [`ProcessorError::Busy`].
    fn outcome(&mut self) -> Result<Option<Outcome>>;
}

/// How a processor has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// `None` for status 0, otherwise what happened, in words.
    pub failure: Option<String>,
    /// Processes that it had started were still there.
    pub left_behind: bool,
    /// The last bytes of its standard error.
    pub errors: Vec<u8>,
}

/// The processors of one layer, before they are started.
#[derive(Debug)]
pub struct Chain {
    /// Starts them.
    pub starter: Arc<dyn Start>,
    /// At least one, each with its payload if it has one.
    pub steps: Vec<(Step, Option<Secret>)>,
}

/// Bytes for descriptor 3: a secret, overwritten with zeros when it is dropped and never shown.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes over `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.fill(0);
        // Without a look at them, the compiler may leave the zeros out.
        std::hint::black_box(&self.0);
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

impl Chain {
    fn ids(&self) -> String {
        self.steps.iter().map(|(step, _)| step.id.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// A processor of a layer.
struct Started {
    id: String,
    running: Box<dyn Running>,
    /// How it has ended, once it has.
    outcome: Option<Outcome>,
}

/// The running processors of one layer, before the stage that gets their stream.
pub(super) struct Processed<'env, S> {
    /// In the order of the stream.
    stages: Vec<Started>,
    ids: String,
    /// Standard input of the first one; `None` once it has no reader.
    input: Option<File>,
    /// Standard output of the last one; `None` once it has ended.
    output: Option<File>,
    pool: Arc<Pool>,
    buffer: Option<Buffer>,
    filled: usize,
    /// Bytes of the blob since the stream was last counted.
    taken: usize,
    meter: Meter,
    any: bool,
    plan: Plan<'env>,
    last_move: Instant,
    /// The stage behind, or why it refuses the stream. A processor that has failed explains that, so the rest of the
    /// stream is awaited.
    next: Result<S>,
}

impl<'env, S: Stage> Processed<'env, S> {
    /// Starts the processors of `chain`.
    pub(super) fn start(chain: &Chain, plan: Plan<'env>, next: S) -> Result<Self> {
        let pipe = || pipe::pair(PIPE_BYTES).map_err(out_of_descriptors);
        let (mut read, input) = pipe()?;
        let mut stages = Vec::new();
        for (step, payload) in &chain.steps {
            let (output, write) = pipe()?;
            let payload = payload.as_ref().map(Secret::bytes);
            let input = std::mem::replace(&mut read, output);
            let running = chain.starter.start(step, input, write, payload)?;
            stages.push(Started { id: step.id.clone(), running, outcome: None });
        }
        for end in [input.as_fd(), read.as_fd()] {
            pipe::set_nonblocking(end).map_err(out_of_descriptors)?;
        }
        tracing::debug!(processors = chain.ids(), "started the processors");
        Ok(Self {
            stages,
            ids: chain.ids(),
            input: Some(File::from(input)),
            output: Some(File::from(read)),
            pool: Pool::new(READ_BYTES),
            buffer: None,
            filled: 0,
            taken: 0,
            meter: Meter::new(&plan.resources.limits),
            any: false,
            plan,
            last_move: Instant::now(),
            next: Ok(next),
        })
    }

    /// Writes as much of `bytes` as there is room for.
    fn feed(&mut self, bytes: &mut &[u8]) -> Result<bool> {
        let Some(input) = &mut self.input else {
            *bytes = &[];
            return Ok(true);
        };
        match input.write(bytes) {
            Ok(written) => {
                *bytes = bytes.get(written..).unwrap_or_default();
                self.taken = self.taken.saturating_add(written);
                Ok(written > 0)
            }
            // It has read enough. Whether that was enough for the layer, its status says.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.input = None;
                Ok(true)
            }
            Err(error) if is_not_now(&error) => Ok(false),
            Err(error) => Err(Error::from_io(error, Kind::Unavailable, "processor.write")),
        }
    }

    /// Reads what is there of the stream. Returns whether anything was, or the end.
    fn draw(&mut self) -> Result<bool> {
        let Some(output) = &mut self.output else { return Ok(false) };
        let buffer = self.buffer.get_or_insert_with(|| self.pool.take());
        let space = buffer.space().get_mut(self.filled..).unwrap_or_default();
        match output.read(space) {
            Ok(0) => {
                self.output = None;
                self.ship()?;
            }
            Ok(read) => {
                self.filled += read;
                self.any = true;
                if self.filled == READ_BYTES {
                    self.ship()?;
                }
            }
            Err(error) if is_not_now(&error) => return Ok(false),
            Err(error) => return Err(Error::from_io(error, Kind::Unavailable, "processor.read")),
        }
        Ok(true)
    }

    /// Hands the buffer on.
    fn ship(&mut self) -> Result<()> {
        self.meter.count(std::mem::take(&mut self.taken), self.filled)?;
        let Some(buffer) = self.buffer.take().filter(|_| self.filled > 0) else { return Ok(()) };
        let chunk = buffer.freeze(std::mem::take(&mut self.filled));
        if let Ok(next) = &mut self.next
            && let Err(error) = next.push(chunk)
        {
            if error.kind() != Kind::Malformed {
                return Err(error);
            }
            self.next = Err(error);
        }
        Ok(())
    }

    /// Waits until there is something to do with the pipes, or a processor ends. Errors: cancelled; nothing for too long;
    /// a processor will never say how it ended.
    fn wait(&mut self, for_input: bool) -> Result<()> {
        self.plan.work.cancel.check()?;
        let limit = self.plan.resources.limits.stall;
        if self.last_move.elapsed() >= limit {
            return Err(ProcessorError::Stalled { ids: self.ids.clone(), limit }.into());
        }
        let input = self.input.as_ref().filter(|_| for_input).map(|input| (input.as_fd(), Wanted::Write));
        let output = self.output.as_ref().map(|output| (output.as_fd(), Wanted::Read));
        let running = self.stages.iter().filter(|stage| stage.outcome.is_none());
        let ends =
            input.into_iter().chain(output).chain(running.map(|stage| (stage.running.ended(), Wanted::Read)));
        pipe::ready(&ends.collect::<Vec<_>>(), Some(Cancel::POLL)).map_err(out_of_descriptors)?;
        for stage in self.stages.iter_mut().filter(|stage| stage.outcome.is_none()) {
            stage.outcome = stage.running.outcome()?;
            if stage.outcome.is_some() {
                self.last_move = Instant::now();
            }
        }
        Ok(())
    }

    /// Waits for the end of every processor. Errors: those that have failed.
    fn await_ends(&mut self) -> Result<()> {
        while self.stages.iter().any(|stage| stage.outcome.is_none()) {
            self.wait(false)?;
        }
        let mut failures = Vec::new();
        for Started { id, outcome, .. } in &mut self.stages {
            let Some(outcome) = outcome.take() else { continue };
            let errors = shown(&outcome.errors);
            let found = match outcome.failure {
                Some(how) => Some(ProcessorError::Failed { id: id.clone(), how, errors }),
                None if outcome.left_behind => Some(ProcessorError::LeftBehind { id: id.clone(), errors }),
                None => {
                    if !errors.is_empty() {
                        tracing::debug!(processor = id, errors, "a processor has said something");
                    }
                    None
                }
            };
            failures.extend(found);
        }
        match failures.len() {
            0 => Ok(()),
            1 => failures.pop().map_or(Ok(()), |only| Err(only.into())),
            _ => Err(ProcessorError::Several { failures }.into()),
        }
    }
}

impl<S: Stage> Stage for Processed<'_, S> {
    type Output = S::Output;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        let mut rest = &*chunk;
        while !rest.is_empty() {
            self.plan.work.cancel.check()?;
            let fed = self.feed(&mut rest)?;
            if self.draw()? || fed {
                self.last_move = Instant::now();
            } else {
                self.wait(true)?;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<S::Output> {
        self.input = None;
        while self.output.is_some() {
            self.plan.work.cancel.check()?;
            if self.draw()? {
                self.last_move = Instant::now();
            } else {
                self.wait(false)?;
            }
        }
        self.await_ends()?;
        if let (false, Some(last)) = (self.any, self.stages.last()) {
            return Err(ProcessorError::Empty { id: last.id.clone() }.into());
        }
        self.next?.finish()
    }
}

fn is_not_now(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn out_of_descriptors(error: io::Error) -> Error {
    Error::from_io(error, Kind::Exhausted, "processor.pipe")
}

/// The end of what a processor has said, on one line.
fn shown(errors: &[u8]) -> String {
    let text = String::from_utf8_lossy(errors);
    let mut from = text.len().saturating_sub(SHOWN_BYTES);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let end = text.get(from..).unwrap_or_default().trim();
    let line: String = end.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if from > 0 { format!("...{line}") } else { line }
}

#[cfg(test)]
#[path = "processor_tests.rs"]
mod tests;
