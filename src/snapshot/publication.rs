//! A set of files that appears in a snapshot's directory as a whole.
//!
//! | step | a crash after it leaves |
//! |---|---|
//! | all files are written, checked by the caller, and synced | nothing |
//! | a set of several files: the old file of the last name is removed, its directory synced | no layer; without merged metadata, the old layer |
//! | old files that the new set does without are removed, their directory synced | no layer |
//! | each file but the last gets its name, its directory is synced | no layer, and the first files of the set; before merged metadata, the new layer |
//! | the last file gets its name | the new layer, or the state before if the directory is not on disk yet |
//! | the directories are synced | the new layer |
//!
//! So a layer never stands beside files that belong to another one. A set of one file replaces the old file at
//! once: there is a layer at any instant.
//!
//! Source: docs/formats/containerd.md, "Publishing a layer".

use std::{
    ffi::{CString, OsStr},
    io,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    sync::Arc,
};

use rustix::fs::Mode;
use serde::{Deserialize, Serialize};

use super::{
    error::PublishError,
    layout::{FileSet, LAYER_NAME},
    lock::DirectoryLock,
    new_file::{Naming, NewFile, PRIVATE_MODE, Place},
    space::Reserve,
};
use crate::{
    limits::Limits,
    sys::{
        dir::Dir,
        file::{self, Occupant},
    },
};

/// Mode of a published file: what mkfs.erofs leaves. The snapshotter opens it read-only as root, in
/// a directory of mode 0700.
const PUBLISHED_MODE: Mode = Mode::from_raw_mode(0o644);
/// Mode of a file for the command line, less the umask, like that of any file that a command creates.
const USERS_MODE: Mode = Mode::from_raw_mode(0o666);

/// When a published file is safe on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Before every reply.
    #[default]
    Always,
    /// Before the reply, if the request asked for it.
    Request,
    /// When the kernel writes it back, even if the request asked for more. For tests.
    Never,
}

/// The right to publish one set of files, and the places they get.
///
/// Dropped without [`Publication::commit`], it leaves the directory as it was.
#[derive(Debug)]
pub struct Publication {
    /// The places, in the order in which the files get their names.
    places: Vec<Place>,
    /// The directory of the snapshot, which is locked; for the command line, the directory of the output.
    room: Arc<Dir>,
    /// The directory above, whose entry for the snapshot may not be on disk yet.
    parent: Option<Dir>,
    /// Mode of a new file.
    new_mode: Mode,
    /// Mode set before a file gets its name; `None` keeps what the umask left.
    mode: Option<Mode>,
    reserve: Option<Reserve>,
    pub(super) naming: Naming,
    /// Shared with the files, so that the last of them releases it.
    lock: Option<Arc<DirectoryLock>>,
}

impl Publication {
    /// Locks the directory `dir` of a snapshot, which is at `path` below `parent`, for the files of `set`.
    pub(super) fn in_snapshot(
        dir: &Arc<Dir>,
        parent: Dir,
        path: &Path,
        set: &FileSet,
        limits: &Limits,
    ) -> Result<Self, PublishError> {
        let last = path.join(set.layer());
        let io = |what| {
            let path = last.clone();
            move |source| PublishError::Io { what, path, source }
        };
        let lock = DirectoryLock::take(dir)
            .map_err(io("lock the directory"))?
            .ok_or_else(|| PublishError::Busy(last.clone()))?;
        let place = |declared: &&'static str| {
            let (below, name) = declared.rsplit_once('/').unwrap_or(("", declared));
            // The container may write below a snapshot's directory, but cannot replace the directories in it.
            let dir = match below {
                "" => Arc::clone(dir),
                below => Arc::new(dir.open_beneath(below).map_err(io("open its directory"))?),
            };
            let name = CString::new(name).map_err(|error| io("use its name")(error.into()))?;
            let replaces = |found| found != Occupant::Directory;
            let is_optional = set.optional.contains(declared);
            Ok(Place { declared, is_optional, dir, name, path: path.join(declared), replaces })
        };
        Ok(Self {
            places: set.names.iter().map(place).collect::<Result<_, PublishError>>()?,
            room: Arc::clone(dir),
            parent: Some(parent),
            new_mode: PRIVATE_MODE,
            mode: Some(PUBLISHED_MODE),
            reserve: Some(Reserve::of(limits)),
            naming: Naming::Preferred,
            lock: Some(Arc::new(lock)),
        })
    }

    /// Begins files of `set` that are never published. They need neither a lock nor free names, and no mark that forbids
    /// to replace a file is in their way.
    pub(super) fn rehearsal(dir: &Arc<Dir>, path: &Path, set: &FileSet, limits: &Limits) -> Self {
        let place = |declared: &&'static str| Place {
            declared,
            is_optional: set.optional.contains(declared),
            dir: Arc::clone(dir),
            // A name that no file can have.
            name: CString::default(),
            path: path.join(declared),
            replaces: |found| found == Occupant::Free,
        };
        Self {
            places: set.names.iter().map(place).collect(),
            room: Arc::clone(dir),
            parent: None,
            new_mode: PRIVATE_MODE,
            mode: None,
            reserve: Some(Reserve::of(limits)),
            naming: Naming::Preferred,
            lock: None,
        }
    }

    /// Begins a publication for the command line: one file, the layer, which gets the name `path`.
    ///
    /// It appears like a file in a snapshot, but its directory is the user's: it is not locked, no space is kept
    /// free, and the mode follows the umask. Errors: `path` is something else than a file, or its directory
    /// cannot be opened.
    pub fn beside(path: &Path) -> Result<Self, PublishError> {
        let name = path
            .file_name()
            .and_then(|name: &OsStr| CString::new(name.as_bytes()).ok())
            .ok_or_else(|| PublishError::Occupied(path.to_owned()))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let dir = Arc::new(Dir::open(parent).map_err(|source| PublishError::Io {
            what: "open its directory",
            path: path.to_owned(),
            source,
        })?);
        // Nobody means to replace /dev/null by a file.
        let replaces = |found| matches!(found, Occupant::Free | Occupant::File);
        let place = Place {
            declared: LAYER_NAME,
            is_optional: false,
            dir: Arc::clone(&dir),
            name,
            path: path.to_owned(),
            replaces,
        };
        Ok(Self {
            places: vec![place],
            room: dir,
            parent: None,
            new_mode: USERS_MODE,
            mode: None,
            reserve: None,
            naming: Naming::Preferred,
            lock: None,
        })
    }

    /// Begins the file that the set declares as `declared`.
    ///
    /// Errors: the name is taken by something that cannot be replaced; too little free space. Panics when the set
    /// declares no such file.
    pub fn file(&self, declared: &str) -> Result<NewFile, PublishError> {
        let place = self.places.iter().find(|place| place.declared == declared);
        let place = place.expect("a publication is asked for files of its own set");
        let lock = self.lock.clone();
        let mut file = NewFile::create(place, &self.room, self.new_mode, self.naming, lock)
            .map_err(|source| place.io("create a file", source))?;
        place.check()?;
        if let Some(reserve) = self.reserve {
            file.keep_free(reserve)?;
        }
        Ok(file)
    }

    /// Begins a file that is never published, where the files of the set are: room for what becomes one of them. It has
    /// no name, so that nothing is left of it, even after a crash.
    pub fn scratch(&self) -> Result<NewFile, PublishError> {
        let path = self.places.last().map_or(Path::new(""), |place| &place.path);
        NewFile::scratch_in(&self.room, path, self.reserve)
    }

    /// Publishes `files`, which are all files of the set but optional ones: trims them, syncs them as `durability` says,
    /// and gives them their names in the order of the set.
    ///
    /// With `sync_fs` the whole file system is synced as well. After an error none of `files` is left, with one
    /// exception: a single file that replaced another one before the directory could not be synced stays. Older
    /// files of the same names are left as they were, except that a set of several files may have lost the last
    /// one, and those that were replaced before it. Panics when a file is missing that is not optional.
    pub fn commit(
        self,
        files: impl IntoIterator<Item = NewFile>,
        durability: Durability,
        sync_fs: bool,
    ) -> Result<(), PublishError> {
        let sync = match durability {
            Durability::Always => true,
            Durability::Request => sync_fs,
            Durability::Never => false,
        };
        let mut files: Vec<_> = files.into_iter().collect();
        let (mut settled, mut absent) = (Vec::new(), Vec::new());
        for place in &self.places {
            let at = files.iter().position(|file| file.declared() == place.declared);
            match at.map(|at| files.swap_remove(at)) {
                Some(file) => settled.push((place, file)),
                None if place.is_optional => absent.push(place),
                None => panic!("{} of the set is not handed over", place.declared),
            }
        }
        let mut files = settled;
        for (_, file) in &mut files {
            file.settle(self.mode, sync)?;
        }
        let mut given = Vec::new();
        let outcome = self.give_names(files, &absent, sync, sync_fs, &mut given);
        if outcome.is_err() {
            // The last name goes first: a later file never stands without the earlier ones.
            for place in given.iter().rev() {
                // A file whose directory could not be synced may not survive a power cut, and nobody knows of
                // it yet.
                let _best_effort = file::remove(&*place.dir, &place.name);
            }
        }
        outcome
    }

    /// Gives the files their names and the `absent` ones none, and collects in `given` those to be taken back after an
    /// error.
    fn give_names<'p>(
        &'p self,
        mut files: Vec<(&'p Place, NewFile)>,
        absent: &[&Place],
        sync: bool,
        sync_fs: bool,
        given: &mut Vec<&'p Place>,
    ) -> Result<(), PublishError> {
        let Some(((last, last_file), first)) = files.split_last_mut() else { return Ok(()) };
        let mut stale = Vec::new();
        for place in absent {
            if place.check()? != Occupant::Free {
                stale.push(*place);
            }
        }
        let rank = |place: &Place| self.places.iter().position(|other| std::ptr::eq(other, place));
        let (behind, stale): (Vec<_>, Vec<_>) = stale.into_iter().partition(|place| rank(place) > rank(last));
        let is_alone = first.is_empty() && stale.is_empty();
        if !(is_alone && behind.is_empty()) {
            // All names are looked at before anything is changed.
            for place in &self.places {
                place.check()?;
            }
        }
        // A file that completed an older layer stands neither without it nor beside the new one.
        for place in behind {
            place.clear(sync)?;
        }
        if !is_alone {
            make_way(last, sync)?;
        }
        for place in stale {
            place.clear(sync)?;
        }
        for (place, file) in first {
            file.give_name(place)?;
            given.push(place);
            if sync {
                // On disk before the last name: the file system may write two directories in any order.
                file::sync(&*place.dir).map_err(|source| place.io("sync its directory", source))?;
            }
        }
        let replaced = last_file.give_name(last)?;
        // A layer in the place of an older one is of use, unless files beside it are taken back.
        if !(is_alone && replaced) {
            given.push(last);
        }
        if sync {
            self.sync_directories(last, sync_fs).map_err(|source| last.io("sync its directory", source))?;
        }
        Ok(())
    }

    fn sync_directories(&self, last: &Place, sync_fs: bool) -> io::Result<()> {
        file::sync(&*last.dir)?;
        if !Arc::ptr_eq(&last.dir, &self.room) {
            file::sync(&*self.room)?;
        }
        if let Some(parent) = &self.parent {
            file::sync(parent)?;
        }
        if sync_fs {
            file::sync_file_system(&*self.room)?;
        }
        Ok(())
    }
}

/// Makes an older set invalid before its first files are replaced: removes its last file.
fn make_way(last: &Place, sync: bool) -> Result<(), PublishError> {
    if last.check()? == Occupant::Free {
        return Ok(());
    }
    last.clear(sync)
}

#[cfg(test)]
#[path = "publication_tests.rs"]
mod tests;
