//! The result of a scrub.

use serde::Serialize;

/// State of something that a scrub found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// A committed snapshot without a sound layer.
    Broken,
    /// A snapshot that was broken, and was made anew.
    Repaired,
    /// Something that nobody owns.
    Leftover,
    /// Something that nobody owned, and that is gone.
    Removed,
    /// A snapshot that could not be judged.
    Unchecked,
}

/// Something that is not as it should be, or was not.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What it is.
    pub state: State,
    /// Stable id of the reason.
    pub reason: &'static str,
    /// The reason, in words.
    pub message: String,
    /// The file or directory.
    pub path: String,
    /// Number of the snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<u64>,
    /// Its namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name in containerd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// An image that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Digest of the blob that the layer came in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// What happens to containers that use it, and what is left to do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Commands for what scrub cannot do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
}

/// Numbers of what was looked at and found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Committed snapshots that were looked at.
    pub snapshots: u64,
    /// Those that are sound.
    pub sound: u64,
    /// Those of the sound ones that were compared with their layers.
    pub compared: u64,
    /// Those that are broken.
    pub broken: u64,
    /// Those that were broken, and were made anew.
    pub repaired: u64,
    /// Those that could not be judged.
    pub unchecked: u64,
    /// Active snapshots and views, which are left alone.
    pub in_use: u64,
    /// Directories and files that nobody owns.
    pub leftovers: u64,
    /// Those that were removed.
    pub removed: u64,
}

impl Counts {
    /// Counts a finding.
    pub(super) fn add(&mut self, state: State) {
        let count = match state {
            State::Broken => &mut self.broken,
            State::Repaired => &mut self.repaired,
            State::Leftover => &mut self.leftovers,
            State::Removed => &mut self.removed,
            State::Unchecked => &mut self.unchecked,
        };
        *count += 1;
    }
}

/// A root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RootReport {
    /// Its path.
    pub path: String,
    /// Name of its snapshotter in containerd; `None` where containerd has none with this root.
    pub snapshotter: Option<String>,
}

/// Result of a scrub.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Layers were compared with their blobs.
    pub deep: bool,
    /// What was broken was to be repaired.
    pub repair: bool,
    /// The roots.
    pub roots: Vec<RootReport>,
    /// Numbers.
    pub counts: Counts,
    /// Everything that is not as it should be, or was not.
    pub findings: Vec<Finding>,
    /// Images whose documents could not be read, so that nobody says which layers they have.
    pub unread_images: Vec<String>,
    /// Time that it took, in seconds.
    pub seconds: f64,
}
