//! The directories that the daemon opened when it started, and whether their paths still lead to them.
//!
//! Roots are opened once, and Landlock allows directories, not paths. When containerd's data is removed and made
//! anew, the daemon holds directories that nobody else sees. Only a restart reaches the new ones.

use std::{
    fmt, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use crate::{
    config::Config,
    error::{Error, Kind},
    sys::dir::Dir,
};

/// Time between two looks. A look takes a few microseconds, and users pull again right after they reset containerd.
const LOOK: Duration = Duration::from_secs(1);

/// Time without a request before a restart that is not urgent. A call that comes during the restart waits in the
/// socket, but containerd gives up a connection that is not answered within a second (gRPC's first back-off).
const QUIET: Duration = Duration::from_secs(5);

/// All directories that the configuration names.
#[derive(Debug)]
pub(super) struct Places(Vec<Place>);

#[derive(Debug)]
struct Place {
    /// Key of the setting that names the directory.
    key: &'static str,
    path: PathBuf,
    /// The directory found at the start. Held open, so that a new directory cannot get its inode number.
    dir: Option<Dir>,
    /// Whether it is a snapshot root, without which no request can be served.
    is_root: bool,
    /// Whether the present change has been logged.
    logged: AtomicBool,
}

/// Change of a directory since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Gone,
    Replaced,
    Appeared,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => "is gone",
            Self::Replaced => "was replaced since the daemon started",
            Self::Appeared => "did not exist when the daemon started",
        })
    }
}

/// The reason for which the daemon has to start again.
#[derive(Debug)]
pub(super) struct Stale {
    /// Error with which the process ends.
    pub error: Error,
    /// Whether a snapshot root was replaced: running requests then write to a directory that is gone.
    pub is_root: bool,
}

impl Places {
    /// Opens all directories of the configuration. Call it before they are put to use, so that a change in between is
    /// noticed.
    pub(super) fn note(config: &Config) -> Self {
        let place = |key, path: &Path, is_root| Place {
            key,
            path: path.to_owned(),
            dir: Dir::open_root(path).ok(),
            is_root,
            logged: AtomicBool::new(false),
        };
        let roots = config.snapshots.roots.iter().map(|path| place("snapshots.roots", path, true));
        let mut all: Vec<_> = roots.collect();
        // Without one it is passed over: one that appears later is a change like that of a directory to read.
        let overlaybd = config.snapshots.overlaybd_roots.iter();
        all.extend(overlaybd.map(|path| place("snapshots.overlaybd_roots", path, path.exists())));
        all.extend(config.content_roots().iter().map(|path| place("containerd.content_root", path, false)));
        if config.diff.enabled {
            let snapshots = &config.snapshots;
            let further = (snapshots.overlayfs_roots.iter().map(|path| ("snapshots.overlayfs_roots", path)))
                .chain(snapshots.shared_layers.iter().map(|path| ("snapshots.shared_layers", path)))
                .chain([("containerd.state_dir", &config.containerd.state_dir)]);
            all.extend(further.map(|(key, path)| place(key, path, false)));
            let work = &config.diff.work_directory;
            if !work.as_os_str().is_empty() {
                all.push(place("diff.work_directory", work, false));
            }
        }
        Self(all)
    }

    /// Errors, in words: a snapshot root is not the one that the daemon has open.
    pub(super) fn health(&self) -> Result<(), String> {
        let lost =
            self.0.iter().filter(|place| place.is_root).find_map(|place| Some((place, place.change()?)));
        lost.map_or(Ok(()), |(place, change)| Err(place.describe(change)))
    }

    /// Returns when the daemon has to start again, because a snapshot root was made anew. If it `loses_no_call` by a
    /// restart, also because another directory was made anew, once no request has come for [`QUIET`]. Other changes are
    /// logged once.
    pub(super) async fn stale(&self, loses_no_call: bool, quiet_for: impl Fn() -> Duration) -> Stale {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            // A pull that fails at a restart is worse than one that is slower until the next.
            let may_restart = loses_no_call && quiet_for() >= QUIET;
            let stale = self.0.iter().find_map(|place| match place.change() {
                None | Some(Change::Gone) => None,
                Some(change) => (place.is_root || may_restart).then(|| place.stale(change)),
            });
            match stale {
                Some(stale) => return stale,
                None => self.log(loses_no_call),
            }
        }
    }

    /// Logs every directory that is out of reach, once for each change.
    fn log(&self, loses_no_call: bool) {
        for place in &self.0 {
            let Some(change) = place.change() else {
                place.logged.store(false, Relaxed);
                continue;
            };
            let until = match change {
                Change::Gone => "it is there again",
                // The restart comes soon, and reaches it.
                _ if loses_no_call => continue,
                _ => "the next start",
            };
            if !place.logged.swap(true, Relaxed) {
                tracing::warn!("{}: out of reach until {until}", place.describe(change));
            }
        }
    }
}

impl Place {
    fn change(&self) -> Option<Change> {
        let now = match std::fs::metadata(&self.path) {
            Ok(found) => Some((found.dev(), found.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // A directory that cannot be looked at is not known to be gone.
            Err(_) => return None,
        };
        let then = self.dir.as_ref().and_then(|dir| dir.status().ok());
        match (then.map(|then| (then.device, then.inode)), now) {
            (None, None) => None,
            (None, Some(_)) => Some(Change::Appeared),
            (Some(_), None) => Some(Change::Gone),
            (Some(then), Some(now)) => (then != now).then_some(Change::Replaced),
        }
    }

    fn describe(&self, change: Change) -> String {
        format!("{} = {:?} {change}", self.key, self.path)
    }

    fn stale(&self, change: Change) -> Stale {
        let reason = if self.is_root { "server.root-replaced" } else { "server.directory-replaced" };
        let message = format!("{}: the daemon has to start again to reach it", self.describe(change));
        Stale { error: Error::new(Kind::Unavailable, reason, message), is_root: self.is_root }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::time::timeout;

    use super::*;

    /// Places below `base`: a snapshot root, which exists, and a content store, which does not.
    fn fixture(base: &Path) -> (PathBuf, PathBuf, Places) {
        let (root, content) = (base.join("root"), base.join("content"));
        fs::create_dir(&root).unwrap();
        let text = format!(
            "[snapshots]\nroots = [{root:?}]\n[containerd]\ncontent_root = {content:?}\n[diff]\nenabled = false"
        );
        let places = Places::note(&crate::config::parse(&text, "test").unwrap());
        (root, content, places)
    }

    #[tokio::test]
    async fn a_root_that_was_made_anew_ends_the_daemon_and_one_that_is_gone_does_not() {
        let scratch = tempfile::tempdir().unwrap();
        let (root, _, places) = fixture(scratch.path());
        assert_eq!(places.health(), Ok(()));
        fs::remove_dir(&root).unwrap();
        assert!(places.health().unwrap_err().ends_with("is gone"));
        assert!(timeout(LOOK / 2, places.stale(true, || QUIET)).await.is_err(), "the next start would fail");
        fs::create_dir(&root).unwrap();
        assert!(places.health().is_err());
        let stale = timeout(LOOK, places.stale(false, || QUIET)).await.unwrap();
        assert_eq!((stale.error.reason(), stale.is_root), ("server.root-replaced", true));
        assert!(stale.error.to_string().contains("was replaced since the daemon started"), "{}", stale.error);
    }

    #[tokio::test]
    async fn a_content_store_that_appears_ends_the_daemon_only_where_that_loses_no_call() {
        let scratch = tempfile::tempdir().unwrap();
        let (_, content, places) = fixture(scratch.path());
        assert!(timeout(LOOK / 2, places.stale(true, || QUIET)).await.is_err());
        fs::create_dir(&content).unwrap();
        assert_eq!(places.health(), Ok(()), "blobs come over gRPC");
        assert!(timeout(LOOK / 2, places.stale(false, || QUIET)).await.is_err());
        assert!(timeout(LOOK / 2, places.stale(true, || QUIET / 2)).await.is_err(), "not while it works");
        let stale = timeout(LOOK, places.stale(true, || QUIET)).await.unwrap();
        assert_eq!((stale.error.reason(), stale.is_root), ("server.directory-replaced", false));
    }
}
