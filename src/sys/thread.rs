//! Starting threads: the only place in the program that does.
//!
//! A new thread inherits the effective capabilities of the one that starts it, which may be in the middle of
//! reading a snapshot ([`capabilities::reading`]). Every thread started here gives those up before it does
//! anything else, so no caller has to remember to.
//!
//! The threads of tokio's runtime are not started here. The daemon builds its runtime before the first request,
//! when no capability is raised.
//!
//! Source: pthreads(7) and capabilities(7) for what a thread inherits, sched(7) and setpriority(2) for when
//! a thread runs.

#![allow(unsafe_code)]

use std::{
    any::Any,
    ffi::c_int,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    thread::{Builder, JoinHandle, Scope, ScopedJoinHandle},
};

use super::capabilities;
use crate::error::{Error, Kind, Result};

/// Starts a thread called `name`; Linux shows the first 15 bytes of the name. Errors: the system has no more
/// threads.
pub fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        capabilities::lower();
        work()
    })
}

/// Policy of threads that any other thread may take the processor from at once.
///
/// A low priority is not enough: a thread that wakes up would have to wait for the end of the turn, some milliseconds.
const SCHED_IDLE: c_int = 5;

unsafe extern "C" {
    fn sched_setscheduler(pid: c_int, policy: c_int, parameter: *const c_int) -> c_int;
}

/// From now on this thread runs only when a processor has nothing else to do, or nearly so. Where the system does not
/// allow that, it runs like any other.
pub fn lower_priority() {
    // The only parameter is the priority, which is 0 in this policy; C libraries may have room for more behind it.
    let parameter = [0; 16];
    // SAFETY: 0 is this thread, and the parameter is read only, while it lives.
    if unsafe { sched_setscheduler(0, SCHED_IDLE, parameter.as_ptr()) } != 0 {
        // In Linux the priority is the thread's own, whatever the name says.
        let _refused = rustix::process::setpriority_process(None, 19);
    }
}

/// A thread that ends before its scope does.
#[derive(Debug)]
pub struct Scoped<'scope, T>(ScopedJoinHandle<'scope, Result<T>>);

/// Like [`spawn`], but within `scope` and for work that can fail: a panic in `work` is an error like the others.
/// Errors: the system has no more threads.
pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> Result<T> + Send + 'scope,
) -> Result<Scoped<'scope, T>> {
    let thread = Builder::new().name(name.to_owned()).spawn_scoped(scope, move || {
        capabilities::lower();
        catch(work)
    });
    thread.map(Scoped).map_err(|error| Error::from_io(error, Kind::Exhausted, "pipeline.threads"))
}

impl<T> Scoped<'_, T> {
    /// Waits for the end of the thread. Errors: those of its work.
    pub fn join(self) -> Result<T> {
        self.0.join().unwrap_or_else(|panic| Err(panicked(&*panic)))
    }
}

/// Runs `work` on this thread; a panic becomes an error of kind [`Kind::Internal`]. What `work` shares with others
/// must survive that: a lock that ignores poisoning, a value that is only dropped afterwards.
pub fn catch<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    Error::new(Kind::Internal, "internal.panic", format!("panic: {message}"))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::thread::{CapabilitySet, capabilities as of_thread};

    use super::*;

    fn effective() -> CapabilitySet {
        of_thread(None).unwrap().effective
    }

    #[test]
    fn a_thread_that_is_started_while_capabilities_are_raised_begins_without_them() {
        // On a thread of its own: giving up capabilities is for good.
        let test = || {
            let kept = capabilities::drop_all_but(capabilities::READING).unwrap();
            capabilities::reading(|| {
                assert_eq!(effective(), kept, "raised for the one that reads");
                let plain = spawn("plain", effective).unwrap().join().unwrap();
                let scoped = thread::scope(|scope| {
                    spawn_scoped(scope, "scoped", || Ok(effective())).unwrap().join().unwrap()
                });
                assert_eq!([plain, scoped], [CapabilitySet::empty(); 2]);
                assert_eq!(effective(), kept, "still raised for the one that reads");
            })
            .unwrap();
        };
        thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_thread_of_low_priority_has_the_policy_for_idle_processors() {
        let policy = || {
            lower_priority();
            // The 41st field; the name in brackets has no space.
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            stat.split(' ').nth(40).unwrap().to_owned()
        };
        assert_eq!(spawn("lowered", policy).unwrap().join().unwrap(), "5");
    }

    #[test]
    fn threads_have_the_name_that_they_were_given() {
        let name = || thread::current().name().map(str::to_owned);
        assert_eq!(spawn("plain", name).unwrap().join().unwrap().as_deref(), Some("plain"));
        let scoped = thread::scope(|scope| spawn_scoped(scope, "scoped", || Ok(name())).unwrap().join());
        assert_eq!(scoped.unwrap().as_deref(), Some("scoped"));
    }

    #[test]
    fn a_panic_in_a_scoped_thread_is_an_internal_error() {
        let outcome: Result<()> =
            thread::scope(|scope| spawn_scoped(scope, "panics", || panic!("at {}", 7)).unwrap().join());
        let error = outcome.unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Internal, "internal.panic"));
        assert_eq!(error.to_string(), "panic: at 7");
        // Nobody asks for this one, and its scope ends in peace.
        thread::scope(|scope| {
            drop(spawn_scoped(scope, "alone", || -> Result<()> { panic!("alone") }).unwrap())
        });
    }
}
