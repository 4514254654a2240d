//! The directories that the daemon was bound to when it started, and whether they still are where they were.
//!
//! Roots are opened once, and Landlock allows directories, not paths. When containerd's data is removed and made
//! anew, the daemon holds directories that nobody else sees, and only a new start reaches the new ones.

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

/// Time between two looks. A look takes a few microseconds; whoever resets containerd pulls again at once.
const LOOK: Duration = Duration::from_secs(1);

/// Time without a request before a restart that is not urgent. A call that comes between end and start waits in
/// the socket, but containerd gives up a connection that is not answered within a second (gRPC's first back-off).
const QUIET: Duration = Duration::from_secs(5);

/// All of them.
#[derive(Debug)]
pub(super) struct Places(Vec<Place>);

#[derive(Debug)]
struct Place {
    /// The setting that names it.
    key: &'static str,
    path: PathBuf,
    /// As it was at the start. Held open, so that its inode number is not given to its successor.
    dir: Option<Dir>,
    /// Whether nothing can be served without it.
    is_root: bool,
    /// Whether its change has been logged.
    logged: AtomicBool,
}

/// How a directory differs from what it was at the start.
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
    /// Ends the process.
    pub error: Error,
    /// Whether what runs now runs in a directory that is gone.
    pub is_root: bool,
}

impl Places {
    /// Looks at all directories of the configuration. Comes before they are opened: a change in between is
    /// then seen as one.
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

    /// Errors: a snapshot root is not the one that the daemon has open.
    pub(super) fn health(&self) -> Result<(), String> {
        let lost =
            self.0.iter().filter(|place| place.is_root).find_map(|place| Some((place, place.change()?)));
        lost.map_or(Ok(()), |(place, change)| Err(place.describe(change)))
    }

    /// Returns when the daemon has to start again: because a snapshot root was made anew; and, if it
    /// `loses_no_call` by a restart, because another directory was, once nothing was asked of it for a while.
    /// A change for which it stays is logged once.
    pub(super) async fn stale(&self, loses_no_call: bool, quiet_for: impl Fn() -> Duration) -> Stale {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            // A pull is worth more than a faster pull.
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

    /// Logs once what is out of reach.
    fn log(&self, loses_no_call: bool) {
        for place in &self.0 {
            let Some(change) = place.change() else {
                place.logged.store(false, Relaxed);
                continue;
            };
            let until = match change {
                Change::Gone => "it is there again",
                // The restart is near.
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
            // Not to be looked at is not gone.
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

    /// Places below a directory: a snapshot root, which exists, and a content store, which does not.
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
