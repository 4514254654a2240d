//! Records of a snapshotter about a snapshot, for facts that the mounts do not show.

use std::collections::BTreeMap;

use super::mount::Mount;
use crate::{call::Call, error::Result};

/// A snapshot as its snapshotter has it on record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Name of the snapshot below. `None` for a lowest one.
    pub parent: Option<String>,
    /// Labels of the snapshot.
    pub labels: BTreeMap<String, String>,
}

/// The records of one snapshotter.
pub trait Records: Send + Sync {
    /// Finds the active snapshot whose mounts are `mounts`. `None` when there is none, or no longer.
    fn find(&self, call: &Call, mounts: &[Mount]) -> Result<Option<Record>>;

    /// Returns the mounts of a view of the committed snapshot `name`. The view itself does not stay.
    fn view(&self, call: &Call, name: &str) -> Result<Vec<Mount>>;
}
