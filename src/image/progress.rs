//! Progress of loading and unpacking, object by object, in the words of containerd's transfer service.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::call::Progress;

/// State of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not begun.
    Waiting,
    /// Bytes are being moved.
    Downloading,
    /// It is in the target.
    Complete,
    /// It was in the target before.
    AlreadyExists,
    /// A layer is being unpacked.
    Extracting,
    /// A layer is unpacked.
    Extracted,
    /// The image is recorded.
    Saved,
}

impl State {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Downloading => "downloading",
            Self::Complete => "complete",
            Self::AlreadyExists => "already exists",
            Self::Extracting => "extracting",
            Self::Extracted => "extracted",
            Self::Saved => "saved",
        }
    }
}

/// One object: an image, a manifest, a configuration or a layer.
#[derive(Clone, Debug)]
pub struct Row {
    /// `layer (0123456789ab)`, or the name of an image.
    pub name: String,
    /// State of the object.
    pub state: State,
    /// Bytes done.
    pub progress: Progress,
    /// Size in bytes; 0 where it has none.
    pub total_bytes: u64,
}

/// The rows of one command. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<Vec<Row>>>);

impl Board {
    fn rows(&self) -> MutexGuard<'_, Vec<Row>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a row. Returns its number.
    pub(super) fn add(&self, name: String, state: State, total_bytes: u64) -> usize {
        let mut rows = self.rows();
        rows.push(Row { name, state, progress: Progress::default(), total_bytes });
        rows.len() - 1
    }

    /// Returns the number of the row called `name`, which is added where there is none.
    pub(super) fn row(&self, name: String, state: State, total_bytes: u64) -> usize {
        let found = self.rows().iter().position(|row| row.name == name);
        found.unwrap_or_else(|| self.add(name, state, total_bytes))
    }

    /// Sets the state of a row. Returns its counter.
    pub(super) fn set(&self, number: usize, state: State) -> Progress {
        let mut rows = self.rows();
        match rows.get_mut(number) {
            Some(row) => {
                row.state = state;
                row.progress.clone()
            }
            None => Progress::default(),
        }
    }

    /// The rows as they are now.
    pub fn look(&self) -> Vec<Row> {
        self.rows().clone()
    }
}
