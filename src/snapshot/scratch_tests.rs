//! A snapshot's directory alone, for the tests of files and publications.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{LAYER, LAYER_NAME, NewFile, Publication, PublishError, layout::FileSet};
use crate::{limits::Limits, sys::dir::Dir};

/// Limits that leave the test machine's disk alone.
pub(super) fn limits() -> Limits {
    Limits::without_reserve()
}

pub(super) struct Scratch {
    _dir: tempfile::TempDir,
    pub(super) dir: Arc<Dir>,
    pub(super) path: PathBuf,
}

pub(super) fn scratch() -> Scratch {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("1");
    fs::create_dir(&path).unwrap();
    Scratch { dir: Arc::new(Dir::open(&path).unwrap()), path, _dir: root }
}

impl Scratch {
    pub(super) fn publish(&self, set: &FileSet, limits: &Limits) -> Result<Publication, PublishError> {
        let parent = Dir::open(self.path.parent().unwrap()).unwrap();
        Publication::in_snapshot(&self.dir, parent, &self.path, set, limits)
    }

    /// The only file of a plain layer.
    pub(super) fn begin(&self) -> Result<(Publication, NewFile), PublishError> {
        let publication = self.publish(&LAYER, &limits())?;
        let file = publication.file(LAYER_NAME)?;
        Ok((publication, file))
    }

    pub(super) fn layer(&self) -> PathBuf {
        self.path.join("layer.erofs")
    }

    pub(super) fn names(&self) -> Vec<String> {
        names(&self.path)
    }
}

pub(super) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
