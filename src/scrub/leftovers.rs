//! Directories and files that nobody owns: what a crash of the snapshotter or of the daemon leaves.
//!
//! A snapshotter makes a directory before its record is on disk, and removes it after the record is gone. So what seems to
//! be nobody's is looked at again a moment later, and counts only if it is still there and still nobody's.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread::sleep,
    time::{Duration, Instant},
};

use super::{
    numbering::Numbering,
    report::{Finding, State},
    subject::Root,
};
use crate::{
    error::Result,
    snapshot::{Listed, Records as _, State as Kind},
};

/// Time between the two looks. A record is on disk after some milliseconds, on a busy disk after some hundred.
const SETTLE: Duration = Duration::from_secs(2);
/// Longest time for which the snapshotter's own removal is waited for: containerd removes in the background.
const REMOVAL: Duration = Duration::from_secs(15);
/// Time between two looks at that.
const POLL: Duration = Duration::from_millis(200);
/// Time for the removal of our temporary files. There are few.
const SWEEP: Duration = Duration::from_secs(60);

/// Something that nobody owns: its path, and whether it is one of our temporary files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stray {
    path: String,
    kind: Sort,
    snapshot: Option<u64>,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Sort {
    Directory,
    Temporary,
    Record,
}

impl Sort {
    fn reason(self) -> &'static str {
        match self {
            Self::Directory => "scrub.orphan",
            Self::Temporary => "scrub.temporary",
            Self::Record => "scrub.unknown",
        }
    }
}

impl Root<'_> {
    /// Looks for leftovers. With `repair`, lets those who can remove them.
    pub(super) fn leftovers(&self, repair: bool) -> Result<Vec<Finding>> {
        let first = self.strays()?;
        if first.is_empty() {
            return Ok(Vec::new());
        }
        self.pause(SETTLE)?;
        let second = self.strays()?;
        let strays: Vec<_> = first.intersection(&second).cloned().collect();
        if strays.is_empty() {
            return Ok(Vec::new());
        }
        let left = match repair {
            true => self.remove(&strays)?,
            false => strays.iter().cloned().collect(),
        };
        Ok(strays.into_iter().map(|stray| self.stray_finding(stray, &left)).collect())
    }

    fn stray_finding(&self, stray: Stray, left: &BTreeSet<Stray>) -> Finding {
        let state = if left.contains(&stray) { State::Leftover } else { State::Removed };
        let note = match (state, stray.kind) {
            (State::Removed, _) => None,
            (_, Sort::Temporary) => Some("the daemon removes it at its next start; so does --repair"),
            (_, Sort::Directory) => {
                Some("the snapshotter removes it together with the next snapshot; --repair makes it")
            }
            (_, Sort::Record) => Some("containerd removes it at its next garbage collection"),
        };
        let Stray { path, kind, snapshot, text } = stray;
        Finding {
            state,
            reason: kind.reason(),
            message: text,
            path,
            snapshot,
            namespace: None,
            name: None,
            image: None,
            layer: None,
            notes: note.into_iter().map(str::to_owned).collect(),
            commands: Vec::new(),
        }
    }

    /// Everything below the root that nobody owns at present.
    fn strays(&self) -> Result<BTreeSet<Stray>> {
        let survey = self.survey;
        // In this order: a directory that is made meanwhile is in neither, or has its record.
        let listed = survey.list()?;
        let numbering = Numbering::read(survey, self.snapshots.as_ref(), self.calls)?;
        let mut strays = BTreeSet::new();
        for Listed { name, id, what, .. } in &listed {
            let path = format!("{}/snapshots/{name}", survey.path());
            let is_known = id.is_some_and(|id| numbering.get(id).is_some());
            if numbering.is_complete && !is_known {
                let text = format!("{what} without a snapshot");
                strays.insert(Stray { path: path.clone(), kind: Sort::Directory, snapshot: *id, text });
            }
            let Some(id) = id else { continue };
            for temporary in survey.temporaries(*id).unwrap_or_default() {
                if !temporary.is_live {
                    let path = format!("{path}/{}", temporary.name);
                    let text = "a temporary file of a process that was killed".to_owned();
                    strays.insert(Stray { path, kind: Sort::Temporary, snapshot: Some(*id), text });
                }
            }
        }
        self.unknown(&numbering, &mut strays)?;
        Ok(strays)
    }

    /// Adds committed snapshots of the snapshotter that containerd does not know any more.
    fn unknown(&self, numbering: &Numbering, strays: &mut BTreeSet<Stray>) -> Result<()> {
        let Some(snapshots) = self.snapshots.as_ref().filter(|_| numbering.is_complete) else {
            return Ok(());
        };
        let mut known = BTreeMap::new();
        for call in self.calls {
            known.insert(call.namespace.as_str(), snapshots.committed(call)?);
        }
        for record in numbering.all().filter(|record| record.state == Kind::Committed) {
            let is_known =
                known.get(record.namespace.as_str()).is_some_and(|names| names.contains_key(&record.name));
            if !is_known {
                let path = self.survey.directory(record.id).display().to_string();
                let text = "a snapshot of the snapshotter that containerd does not know".to_owned();
                strays.insert(Stray { path, kind: Sort::Record, snapshot: Some(record.id), text });
            }
        }
        Ok(())
    }

    /// Lets the snapshotter remove its directories, and removes our files. Returns what is left.
    fn remove(&self, strays: &[Stray]) -> Result<BTreeSet<Stray>> {
        let has = |kind| strays.iter().any(|stray| stray.kind == kind);
        if has(Sort::Temporary) {
            let swept = self.scrub.roots.sweep().run(SWEEP);
            tracing::debug!(?swept, "swept the snapshots");
        }
        let wanted: BTreeSet<_> = strays.iter().cloned().collect();
        let still = |root: &Self| -> Result<BTreeSet<Stray>> {
            Ok(root.strays()?.intersection(&wanted).cloned().collect())
        };
        if !has(Sort::Directory) || !self.ask_for_removal()? {
            return still(self);
        }
        let end = Instant::now() + REMOVAL;
        loop {
            let left = still(self)?;
            if !left.iter().any(|stray| stray.kind == Sort::Directory) || Instant::now() >= end {
                return Ok(left);
            }
            self.pause(POLL)?;
        }
    }

    /// Asks the snapshotter to remove what it has no record of. One that cannot be asked, as in containerd 2.1, does so
    /// whenever a snapshot is removed: a view of ours, then. Returns whether it was asked.
    fn ask_for_removal(&self) -> Result<bool> {
        let (Some(snapshots), Some(call)) = (&self.snapshots, self.calls.first()) else { return Ok(false) };
        if snapshots.clean_up(call)? {
            return Ok(true);
        }
        for call in self.calls {
            for (name, parent) in snapshots.committed(call)? {
                // A lowest one, whose view mounts nothing on the way.
                if parent.is_none() && snapshots.view(call, &name).is_ok() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn pause(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.cancel.check()?;
            sleep(left.min(crate::call::Cancel::POLL));
        }
        Ok(())
    }
}
