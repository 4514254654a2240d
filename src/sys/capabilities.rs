//! Giving up capabilities for good.
//!
//! Everything an Apply touches belongs to root, and the daemon is root: its user id is all it needs. These
//! calls bind the calling thread and those it starts later, so they come before any other thread.
//!
//! Source: capabilities(7), `PR_SET_NO_NEW_PRIVS`(2const).

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// What the daemon keeps. Nothing: applying needs no more than root's own files. Reading other users'
/// files, or mounting, would need some, and they would be named here.
pub const KEPT: CapabilitySet = CapabilitySet::empty();

/// Drops every capability but `keep` from all sets of the calling thread, and forbids gaining any by
/// running a program.
pub fn drop_all_but(keep: CapabilitySet) -> io::Result<()> {
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
    set_capabilities(
        None,
        CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() },
    )?;
    Ok(())
}

/// What the calling thread may use now.
pub fn effective() -> io::Result<CapabilitySet> {
    Ok(rustix::thread::capabilities(None)?.effective)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_gave_up_its_capabilities_cannot_get_them_back() {
        // Other tests run on other threads and keep theirs.
        std::thread::spawn(|| {
            drop_all_but(KEPT).unwrap();
            assert_eq!(effective().unwrap(), CapabilitySet::empty());
            assert!(rustix::thread::no_new_privs().unwrap());
            let all = CapabilitySet::CHOWN;
            let regained =
                CapabilitySets { effective: all, permitted: all, inheritable: CapabilitySet::empty() };
            assert_eq!(set_capabilities(None, regained), Err(rustix::io::Errno::PERM));
        })
        .join()
        .unwrap();
    }
}
