//! The snapshots of a root by number: from the snapshotter's own records, or, for one that keeps others, from the mounts
//! that it hands out.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    call::Call,
    containerd::Snapshots,
    error::Result,
    snapshot::{Numbered, Records as _, State, Survey, snapshot_id},
};

/// The snapshots of a root.
#[derive(Debug, Default)]
pub(super) struct Numbering {
    by_id: BTreeMap<u64, Numbered>,
    /// The records are all there are: what is not among them is nobody's.
    pub(super) is_complete: bool,
}

impl Numbering {
    /// Reads the records of the root. Without any, asks `snapshots` for a view of each committed snapshot of the
    /// namespaces of `calls`.
    pub(super) fn read(survey: Survey<'_>, snapshots: Option<&Snapshots>, calls: &[Call]) -> Result<Self> {
        if let Some(records) = survey.records()? {
            let by_id = records.into_iter().map(|record| (record.id, record)).collect();
            return Ok(Self { by_id, is_complete: true });
        }
        let mut numbering = Self::default();
        let Some(snapshots) = snapshots else { return Ok(numbering) };
        for call in calls {
            numbering.ask(survey, snapshots, call)?;
        }
        Ok(numbering)
    }

    fn ask(&mut self, survey: Survey<'_>, snapshots: &Snapshots, call: &Call) -> Result<()> {
        let committed = snapshots.committed(call)?;
        let mut numbers = BTreeMap::new();
        for name in committed.keys() {
            let mounts = match snapshots.view(call, name) {
                Ok(mounts) => mounts,
                Err(error) => {
                    // Removed since it was listed, or something below it is damaged.
                    tracing::debug!(name, %error, root = survey.path(), "no view of the snapshot");
                    continue;
                }
            };
            let id = snapshot_id(&mounts).and_then(|id| id.parse::<u64>().ok());
            if let Some(id) = id.filter(|id| survey.is_in(&mounts, *id)) {
                numbers.insert(name, id);
            }
        }
        for (name, parent) in &committed {
            let Some(id) = numbers.get(name).copied() else { continue };
            let parent = parent.as_ref().and_then(|parent| numbers.get(parent).copied());
            let namespace = call.namespace.as_str().to_owned();
            let record = Numbered { id, namespace, name: name.clone(), state: State::Committed, parent };
            self.by_id.insert(id, record);
        }
        Ok(())
    }

    /// All snapshots, in the order of their numbers.
    pub(super) fn all(&self) -> impl Iterator<Item = &Numbered> {
        self.by_id.values()
    }

    /// The snapshot with this number.
    pub(super) fn get(&self, id: u64) -> Option<&Numbered> {
        self.by_id.get(&id)
    }

    /// Numbers of the snapshots below, the nearest first.
    pub(super) fn parents(&self, id: u64) -> Vec<u64> {
        let mut parents = Vec::new();
        let mut at = id;
        while let Some(parent) = self.get(at).and_then(|record| record.parent) {
            // Damaged records could lead in a circle.
            if parents.contains(&parent) {
                break;
            }
            parents.push(parent);
            at = parent;
        }
        parents
    }

    /// Numbers of the snapshots on top, and the snapshot itself.
    pub(super) fn above(&self, id: u64) -> BTreeSet<u64> {
        let mut above = BTreeSet::from([id]);
        loop {
            let is_new = |record: &&Numbered| {
                !above.contains(&record.id) && record.parent.is_some_and(|parent| above.contains(&parent))
            };
            let more: Vec<_> = self.all().filter(is_new).map(|record| record.id).collect();
            if more.is_empty() {
                return above;
            }
            above.extend(more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbering(pairs: &[(u64, Option<u64>)]) -> Numbering {
        let record = |&(id, parent)| {
            let (namespace, name) = ("default".to_owned(), format!("sha256:{id}"));
            (id, Numbered { id, namespace, name, state: State::Committed, parent })
        };
        Numbering { by_id: pairs.iter().map(record).collect(), is_complete: true }
    }

    #[test]
    fn a_snapshot_has_those_below_and_those_on_top() {
        let numbering = numbering(&[(1, None), (2, Some(1)), (3, Some(2)), (4, Some(1)), (5, None)]);
        assert_eq!(numbering.parents(3), [2, 1]);
        assert!(numbering.parents(5).is_empty());
        assert_eq!(numbering.above(1), BTreeSet::from([1, 2, 3, 4]));
        assert_eq!(numbering.above(3), BTreeSet::from([3]));
    }

    #[test]
    fn records_that_lead_in_a_circle_end() {
        let numbering = numbering(&[(1, Some(2)), (2, Some(1))]);
        assert_eq!(numbering.parents(1), [2, 1]);
        assert_eq!(numbering.above(1), BTreeSet::from([1, 2]));
    }
}
