//! The lease of one unpacking, and the lock that tells a run at work from one that was killed.

use std::{path::Path, sync::Arc, thread::sleep, time::Duration};

use crate::{
    call::{Call, Cancel},
    containerd::Containerd,
    digest::Digest,
    error::{Error, Result},
    sys::{file, lock_file::LockFile},
};

/// Time after which containerd removes what a run has left and nobody has come back for.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Prefix of the names of leases and locks.
const PREFIX: &str = "plywood-unpack-";
/// Digits of the key in these names.
const KEY_DIGITS: usize = 16;
/// Pause between two looks at a lock that another run holds.
const PAUSE: Duration = Duration::from_millis(50);

/// A lease that keeps blobs and snapshots while an image is unpacked. Dropped without [`Lease::end`], it stays for the next
/// run.
pub struct Lease {
    containerd: Arc<Containerd>,
    call: Call,
    /// Dropped last: another run takes the lease over then.
    _lock: Option<LockFile>,
}

impl Lease {
    /// Takes a new lease for unpacking the layers up to `top`, and puts everything under it that earlier runs for the same
    /// namespace, snapshotter and `top` have left. Their active snapshots are removed. While such a run is at work, waits for its
    /// end.
    ///
    /// `directory`: where such runs lock each other out; that of containerd's socket. Without one that can be written to
    /// nothing is taken over, and what was left expires.
    pub fn take(
        containerd: &Arc<Containerd>,
        call: &Call,
        (snapshotter, top): (&str, &Digest),
        directory: Option<&Path>,
    ) -> Result<Self> {
        let key = Digest::sha256(format!("{} {snapshotter} {top}", call.namespace).as_bytes());
        let prefix = format!("{PREFIX}{}-", key.hex().chars().take(KEY_DIGITS).collect::<String>());
        let lock = match directory {
            Some(directory) => lock(directory, &format!("{prefix}lock"), &call.cancel)?,
            None => None,
        };
        let id = format!("{prefix}{}", file::random_hex().map_err(Error::disk)?);
        containerd.create_lease(call, &id, LIFETIME)?;
        let lease = Self {
            containerd: Arc::clone(containerd),
            call: Call { lease: Some(id.clone()), ..call.clone() },
            _lock: lock,
        };
        if lease._lock.is_some() {
            // Under a lease of their own, because the end of the old one cannot be moved.
            for left in containerd.leases_of(call, &prefix)?.into_iter().filter(|left| *left != id) {
                tracing::debug!(lease = left, "taken over from a run that ended early");
                containerd.adopt_lease(&lease.call, &left)?;
            }
        }
        Ok(lease)
    }

    /// The call with the lease.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// Deletes the lease. With `collect`, what nothing else holds is gone when this returns.
    pub fn end(self, collect: bool) -> Result<()> {
        let Some(id) = &self.call.lease else { return Ok(()) };
        // The call may be cancelled, which is no reason to leave the lease.
        let call = Call { cancel: Cancel::new(), lease: None, ..self.call.clone() };
        self.containerd.delete_lease(&call, id, collect)
    }
}

fn lock(directory: &Path, name: &str, cancel: &Cancel) -> Result<Option<LockFile>> {
    let mut waits = false;
    loop {
        match LockFile::take(directory, name) {
            Ok(Some(lock)) => return Ok(Some(lock)),
            Ok(None) => {
                if !waits {
                    tracing::info!(lock = name, "waiting for another run that unpacks the same layers");
                }
                waits = true;
                cancel.check()?;
                sleep(PAUSE);
            }
            Err(error) => {
                tracing::debug!(directory = %directory.display(), %error, "without a lock");
                return Ok(None);
            }
        }
    }
}
