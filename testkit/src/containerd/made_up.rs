//! Snapshots whose mounts the test makes up, whatever is in their directories.

use std::collections::HashMap;

use containerd_client::types::Mount;
use tonic::Status;

use super::FakeContainerd;
use crate::snapshots::{Info, Kind, ViewSnapshotRequest};

/// A snapshot.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub name: String,
    /// Empty for a lowest one.
    pub parent: String,
    pub labels: HashMap<String, String>,
    pub is_committed: bool,
    /// Those of the snapshot itself, or of a view of it. `None`: the snapshotter fails when it is asked.
    pub mounts: Option<Vec<Mount>>,
}

/// All of them, and the views that have not been removed.
#[derive(Default)]
pub(super) struct Snapshots {
    known: Vec<Snapshot>,
    views: Vec<ViewSnapshotRequest>,
}

impl FakeContainerd {
    /// Adds a snapshot, or replaces the one of that name.
    pub fn add_snapshot(&self, snapshot: Snapshot) {
        let mut state = self.state.lock().unwrap();
        state.made_up.known.retain(|known| known.name != snapshot.name);
        state.made_up.known.push(snapshot);
    }

    /// The views that have not been removed.
    pub fn views(&self) -> Vec<ViewSnapshotRequest> {
        self.state.lock().unwrap().made_up.views.clone()
    }
}

impl Snapshots {
    /// Those that are not committed.
    pub(super) fn active(&self) -> Vec<Info> {
        let active = self.known.iter().filter(|known| !known.is_committed);
        let info = |Snapshot { name, parent, labels, .. }: &Snapshot| Info {
            name: name.clone(),
            parent: parent.clone(),
            labels: labels.clone(),
            kind: Kind::Active.into(),
            ..Info::default()
        };
        active.map(info).collect()
    }

    /// The mounts of one. `None`: it is not among these.
    pub(super) fn mounts(&self, name: &str) -> Option<Result<Vec<Mount>, Status>> {
        let found = self.known.iter().find(|known| known.name == name)?;
        Some(found.mounts.clone().ok_or_else(|| Status::unknown("failed to attach and mount")))
    }

    /// The mounts of a new view.
    pub(super) fn view(&mut self, view: ViewSnapshotRequest) -> Result<Vec<Mount>, Status> {
        let mounts =
            self.mounts(&view.parent).unwrap_or_else(|| Err(Status::not_found(view.parent.clone())))?;
        self.views.push(view);
        Ok(mounts)
    }

    /// Removes a view. Returns whether there was one.
    pub(super) fn remove(&mut self, key: &str) -> bool {
        let before = self.views.len();
        self.views.retain(|view| view.key != key);
        self.views.len() < before
    }
}
