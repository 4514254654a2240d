//! Gives up capabilities for good, and raises those that are left only where they are needed.
//!
//! Everything an Apply touches belongs to root, and the daemon is root: its user id is all it needs. A Diff
//! reads what containers wrote, files of any owner and attributes of overlayfs's own. What that takes stays
//! in the permitted set of every thread and becomes effective while [`reading`] runs.
//!
//! The calls bind the calling thread and those it starts later, so giving up comes before any other thread, and
//! [`super::thread`] undoes in new threads what their parent has raised.
//!
//! Source: capabilities(7), `PR_SET_NO_NEW_PRIVS`(2const); xattr(7) for `trusted.`.

use std::{io, marker::PhantomData};

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// Reading what containers wrote: past the modes of files of any owner, and attributes `trusted.*`, which
/// the kernel shows to `CAP_SYS_ADMIN` alone.
pub const READING: CapabilitySet = CapabilitySet::DAC_READ_SEARCH.union(CapabilitySet::SYS_ADMIN);

/// Drops every capability but `keep` from all sets of the calling thread, makes none effective, and
/// forbids gaining any by running a program. Returns what is left to be raised.
pub fn drop_all_but(keep: CapabilitySet) -> io::Result<CapabilitySet> {
    set_no_new_privs(true)?;
    for capability in CapabilitySet::all().difference(keep).iter() {
        // The kernel may know fewer than this list, and then there is nothing to drop.
        if !matches!(capability_is_in_bounding_set(capability), Ok(true)) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // Dropping needs CAP_SETPCAP, which a service manager may have taken already.
            Ok(()) | Err(rustix::io::Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // Kernels without ambient capabilities have none to clear.
    let _unknown = clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    // A service manager may have taken some of these, too.
    let permitted = capabilities(None)?.permitted.intersection(keep);
    set_capabilities(None, CapabilitySets { effective: none, permitted, inheritable: none })?;
    Ok(permitted)
}

/// Forbids gaining capabilities by running a program, and drops none.
pub fn forbid_new() -> io::Result<()> {
    Ok(set_no_new_privs(true)?)
}

/// Whether the calling thread has all of `set` effective now.
pub fn are_effective(set: CapabilitySet) -> io::Result<bool> {
    Ok(capabilities(None)?.effective.contains(set))
}

/// Names of a set's members for a log line, `none` for the empty set.
pub fn names(set: CapabilitySet) -> String {
    let names: Vec<_> = set.iter_names().map(|(name, _)| name).collect();
    if names.is_empty() { "none".to_owned() } else { names.join("+") }
}

/// Raises CAP_DAC_READ_SEARCH and CAP_SYS_ADMIN ([`READING`]) on this thread while `work` runs, as far as the thread
/// is permitted to; does nothing where it has neither, or has both raised already. Threads started meanwhile begin
/// without them. Errors: the kernel refuses to change capabilities; then `work` has not run.
pub fn reading<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    let raised = Raised::for_reading()?;
    let outcome = work();
    drop(raised);
    Ok(outcome)
}

/// Capabilities that are effective for the calling thread until this is dropped, also by a panic.
#[derive(Debug)]
struct Raised {
    before: CapabilitySets,
    effective: CapabilitySet,
    /// It undoes what it did to its own thread, and must not leave it.
    stays: PhantomData<*const ()>,
}

impl Raised {
    fn for_reading() -> io::Result<Self> {
        let before = capabilities(None)?;
        let effective = before.effective.union(READING.intersection(before.permitted));
        if effective != before.effective {
            set_capabilities(None, CapabilitySets { effective, ..before })?;
        }
        Ok(Self { before, effective, stays: PhantomData })
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if self.effective != self.before.effective {
            // Giving up what one has cannot fail; and if it did, the thread would only be able to read more.
            let _still_raised = set_capabilities(None, self.before);
        }
    }
}

/// Lowers what [`reading`] raises. A new thread calls it: it inherits what its parent has raised.
pub(super) fn lower() {
    let Ok(sets) = capabilities(None) else { return };
    let effective = sets.effective.difference(READING);
    if effective != sets.effective {
        // Giving up what one has cannot fail; and if it did, the thread would only be able to read more.
        let _still_raised = set_capabilities(None, CapabilitySets { effective, ..sets });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effective() -> CapabilitySet {
        capabilities(None).unwrap().effective
    }

    /// Other tests run on other threads and keep theirs.
    fn on_a_thread_of_its_own(test: impl FnOnce() + Send + 'static) {
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_thread_that_gave_up_its_capabilities_cannot_get_them_back() {
        on_a_thread_of_its_own(|| {
            assert_eq!(drop_all_but(CapabilitySet::empty()).unwrap(), CapabilitySet::empty());
            assert_eq!(effective(), CapabilitySet::empty());
            assert!(rustix::thread::no_new_privs().unwrap());
            let all = CapabilitySet::CHOWN;
            let regained =
                CapabilitySets { effective: all, permitted: all, inheritable: CapabilitySet::empty() };
            assert_eq!(set_capabilities(None, regained), Err(rustix::io::Errno::PERM));
            assert!(!reading(|| are_effective(CapabilitySet::SYS_ADMIN)).unwrap().unwrap());
        });
    }

    #[test]
    fn what_is_kept_is_effective_only_while_it_is_raised() {
        on_a_thread_of_its_own(|| {
            let kept = drop_all_but(READING).unwrap();
            assert_eq!(effective(), CapabilitySet::empty());
            reading(|| {
                reading(|| {
                    assert_eq!((are_effective(READING).unwrap(), effective()), (kept == READING, kept));
                })
                .unwrap();
                assert_eq!(effective(), kept, "the outer one still holds");
            })
            .unwrap();
            assert_eq!(effective(), CapabilitySet::empty());
            let panicked = std::panic::catch_unwind(|| reading(|| panic!("on purpose")));
            assert!(panicked.is_err() && effective() == CapabilitySet::empty());
            assert!(capabilities(None).unwrap().inheritable.is_empty());
        });
    }

    #[test]
    fn sets_are_named_for_the_log() {
        assert_eq!(names(CapabilitySet::empty()), "none");
        assert_eq!(names(READING), "DAC_READ_SEARCH+SYS_ADMIN");
    }
}
