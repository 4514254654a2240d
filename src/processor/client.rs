//! The daemon's half of the broker.

use std::{
    env, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::net::{Shutdown, shutdown};

use super::{
    broker::Setup,
    message::{REPORT_BYTES, Report, Request},
};
use crate::{
    error::{Error, Kind, Result},
    kind::route::Step,
    pipeline::processor::{Outcome, ProcessorError, Running, Start},
    sys::{
        messages,
        pipe::{self, SecretFile, Wanted},
        thread,
    },
};

/// Longest time until the broker has checked its programs.
const SETUP: Duration = Duration::from_secs(20);

/// Starts processors through the broker, a process of its own.
#[derive(Debug)]
pub struct Broker {
    socket: OwnedFd,
    ended: AtomicBool,
    /// `None` while a thread waits for its end.
    child: Mutex<Option<Child>>,
}

fn failed(problem: impl ToString) -> Error {
    let message = format!("the broker of stream processors does not start: {}", problem.to_string());
    Error::new(Kind::Unavailable, "broker.start", message)
}

impl Broker {
    /// Starts the broker, and waits until it is ready. Call it before the process is confined. Errors: a program may not
    /// be run, or the broker cannot.
    pub fn launch(setup: &Setup) -> Result<Arc<Self>> {
        let (socket, far) = messages::pair().map_err(failed)?;
        // The running file itself, which an upgrade may have replaced under its name.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("plywood").arg("broker").env_clear().current_dir("/").process_group(0);
        command.envs(env::var_os("RUST_LOG").map(|level| ("RUST_LOG", level)));
        command.stdin(Stdio::from(far)).stdout(Stdio::null());
        let child = Mutex::new(Some(command.spawn().map_err(failed)?));
        drop(command);
        let broker = Self { socket, ended: AtomicBool::new(false), child };
        let setup = serde_json::to_vec(setup).map_err(failed)?;
        messages::send(&broker.socket, &setup, &[]).map_err(failed)?;
        pipe::ready(&[(broker.socket.as_fd(), Wanted::Read)], Some(SETUP)).map_err(failed)?;
        let mut answer = vec![0; REPORT_BYTES];
        // One byte is sent by a broker that is ready; without any it has ended.
        let message = messages::receive(&broker.socket, &mut answer).map_err(failed)?;
        match answer.get(..message.len) {
            Some([super::message::READY]) => Ok(Arc::new(broker)),
            Some(problem) if !problem.is_empty() => Err(failed(String::from_utf8_lossy(problem))),
            _ => Err(failed("it has ended")),
        }
    }

    /// Waits for the end of the broker on a thread, logs it, and then calls `then`. Errors: the system has no more
    /// threads.
    pub fn watch(self: &Arc<Self>, then: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut child) = child else { return Ok(()) };
        let broker = Arc::clone(self);
        thread::spawn("broker", move || {
            let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
            broker.ended.store(true, Ordering::Release);
            tracing::error!(
                status,
                "the broker has ended: layers that need a stream processor fail until the daemon is restarted"
            );
            then();
        })?;
        Ok(())
    }

    /// Errors, in words: processors cannot be started.
    pub fn health(&self) -> Result<(), String> {
        match self.ended.load(Ordering::Acquire) {
            true => Err(ProcessorError::Broker.to_string()),
            false => Ok(()),
        }
    }
}

impl Start for Broker {
    fn start(
        &self,
        step: &Step,
        input: OwnedFd,
        output: OwnedFd,
        payload: Option<&[u8]>,
    ) -> Result<Box<dyn Running>> {
        let no_more = |error| Error::from_io(error, Kind::Exhausted, "processor.pipe");
        let (leash, far) = messages::pair().map_err(no_more)?;
        let payload = payload.map(SecretFile::new).transpose().map_err(no_more)?;
        let request = Request {
            processor: u32::try_from(step.processor).unwrap_or(u32::MAX),
            has_payload: payload.is_some(),
            media_type: step.media_type.clone(),
        };
        let mut descriptors = vec![far.as_fd(), input.as_fd(), output.as_fd()];
        descriptors.extend(payload.as_ref().map(SecretFile::as_fd));
        messages::send(&self.socket, &request.encode(), &descriptors).map_err(|error| {
            match error.kind() {
                io::ErrorKind::WouldBlock => no_more(error),
                _ => ProcessorError::Broker.into(),
            }
        })?;
        Ok(Box::new(Leashed { leash, id: step.id.clone(), _payload: payload }))
    }
}

impl Drop for Broker {
    /// Ends the broker, with all that it has started.
    fn drop(&mut self) {
        let _gone_already = shutdown(&self.socket, Shutdown::Both);
        if let Some(child) = self.child.get_mut().unwrap_or_else(PoisonError::into_inner) {
            let _gone_already = child.wait();
        }
    }
}

/// A processor that the broker runs for as long as this end of its leash is open.
struct Leashed {
    leash: OwnedFd,
    id: String,
    /// Overwritten with zeros when the processor is done with it.
    _payload: Option<SecretFile>,
}

impl Running for Leashed {
    fn ended(&self) -> BorrowedFd<'_> {
        self.leash.as_fd()
    }

    fn outcome(&mut self) -> Result<Option<Outcome>> {
        let mut buffer = vec![0; REPORT_BYTES];
        match messages::receive(&self.leash, &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(_) => Err(ProcessorError::Broker.into()),
            Ok(message) => {
                // Without a report, the broker has ended before the processor.
                let report =
                    buffer.get(..message.len).and_then(Report::decode).ok_or(ProcessorError::Broker)?;
                Ok(Some(report.outcome(&self.id)?))
            }
        }
    }
}
