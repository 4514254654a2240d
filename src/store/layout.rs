//! A directory in the OCI image layout: blobs by digest, and an index that is replaced last.
//!
//! Source: OCI image specification, image-layout.md.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::Mode;

use super::{Ingest, Stored, reason};
use crate::{
    call::Cancel,
    digest::{Algorithm, Digest, Hasher},
    error::{Error, Kind, Result},
    sys::{dir::Dir, file},
};

/// Mode of new directories, less the umask.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o777);
/// Mode of new files, less the umask.
const FILE_MODE: Mode = Mode::from_raw_mode(0o666);
/// Contents of the file that marks a layout.
const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// An open layout.
#[derive(Debug)]
pub(crate) struct OciDirectory {
    root: Dir,
    path: PathBuf,
}

impl OciDirectory {
    /// Opens a directory, whatever is in it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { root: Dir::open(path)?, path: path.to_owned() })
    }

    /// Opens a layout to write to it; makes one where nothing is, or an empty directory. Errors: `store.locked` while
    /// another process writes to it; `store.refused` for a directory with something else.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let at = |error| Error::disk(error).context(path.display().to_string());
        match std::fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(error)),
            _ => {}
        }
        let layout = Self::open(path).map_err(at)?;
        if !file::lock_exclusive(&layout.root).map_err(at)? {
            return Err(Error::new(Kind::Conflict, reason::LOCKED, "another process writes to this layout")
                .context(path.display().to_string()));
        }
        if layout.root.status_of("oci-layout").is_err() {
            if layout.root.names().map_err(at)?.next().is_some() {
                let message = "the directory is not empty, and no OCI layout";
                return Err(
                    Error::new(Kind::Conflict, reason::REFUSED, message).context(path.display().to_string())
                );
            }
            layout.replace("oci-layout", MARKER)?;
        }
        Ok(layout)
    }

    /// Opens a file directly in the layout.
    pub(crate) fn file(&self, name: &str) -> io::Result<File> {
        self.root.open_file_beneath(name)
    }

    /// Opens the file of a blob; `None` when there is none.
    pub(crate) fn blob(&self, digest: &Digest) -> io::Result<Option<File>> {
        match self.root.open_file_beneath(blob_path(digest)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a blob.
    pub(crate) fn remove(&self, digest: &Digest) -> io::Result<()> {
        let parent = self.root.open_beneath(format!("blobs/{}", digest.algorithm().as_str()))?;
        file::remove(&parent, digest.hex())
    }

    /// Begins a blob. It gets its name when it is committed, and has been synced before.
    pub(crate) fn ingest(&self, cancel: &Cancel) -> Result<Box<dyn Ingest>> {
        let at = |error| self.disk(error);
        make(&self.root, "blobs").map_err(at)?;
        // The directory of the algorithm is known at the end only.
        let blobs = self.root.open_beneath("blobs").map_err(at)?;
        let (file, temporary) = new_file(&blobs).map_err(at)?;
        let hasher = Hasher::new(Algorithm::Sha256);
        let (cancel, path) = (cancel.clone(), self.path.clone());
        Ok(Box::new(Writing { blobs, file, temporary, hasher, size_bytes: 0, cancel, path }))
    }

    /// Replaces the index. Everything before it is on disk then.
    pub(crate) fn set_index(&self, bytes: &[u8]) -> Result<()> {
        self.replace("index.json", bytes)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let replace = || {
            let temporary = temporary_name()?;
            let mut file = file::create_new(&self.root, &temporary, FILE_MODE)?;
            let written = file
                .write_all(bytes)
                .and_then(|()| file::sync(&file))
                .and_then(|()| file::rename_over(&self.root, &temporary, &self.root, name));
            if written.is_err() {
                // What went wrong before is what is reported.
                let _left = file::remove(&self.root, &temporary);
            }
            written.and_then(|()| file::sync(&self.root))
        };
        replace().map_err(|error| self.disk(error).context(name.to_owned()))
    }

    fn disk(&self, error: io::Error) -> Error {
        Error::disk(error).context(self.path.display().to_string())
    }
}

fn make(dir: &Dir, name: &str) -> io::Result<()> {
    match rustix::fs::mkdirat(dir, name, DIRECTORY_MODE) {
        Err(rustix::io::Errno::EXIST) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

fn temporary_name() -> io::Result<CString> {
    CString::new(format!(".plywood-{}.tmp", file::random_hex()?)).map_err(io::Error::other)
}

/// A file without a name, or with one that is temporary where the file system has no such files.
fn new_file(dir: &Dir) -> io::Result<(File, Option<CString>)> {
    match file::create_unnamed(dir, FILE_MODE) {
        Ok(file) => Ok((file, None)),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            let name = temporary_name()?;
            Ok((file::create_new(dir, &name, FILE_MODE)?, Some(name)))
        }
        Err(error) => Err(error),
    }
}

/// A blob that is being written.
struct Writing {
    blobs: Dir,
    file: File,
    temporary: Option<CString>,
    hasher: Hasher,
    size_bytes: u64,
    cancel: Cancel,
    path: PathBuf,
}

impl Ingest for Writing {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.cancel.check()?;
        self.hasher.update(bytes);
        self.size_bytes += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|error| self.disk(error))
    }

    fn commit(mut self: Box<Self>, digest: &Digest, _: &BTreeMap<String, String>) -> Result<Stored> {
        self.cancel.check()?;
        let found = self.digest(digest.algorithm()).map_err(|error| self.disk(error))?;
        if found != *digest {
            let message = format!("the bytes written have digest {found} instead of {digest}");
            return Err(Error::new(Kind::DataLoss, reason::DIGEST, message));
        }
        self.publish(digest).map_err(|error| self.disk(error))?;
        Ok(Stored { digest: digest.clone(), size_bytes: self.size_bytes })
    }
}

impl Writing {
    fn digest(&self, algorithm: Algorithm) -> io::Result<Digest> {
        if algorithm == Algorithm::Sha256 {
            return Ok(self.hasher.clone().finish());
        }
        // Rare enough to read the file once more.
        let mut hasher = Hasher::new(algorithm);
        let mut buffer = vec![0; 1 << 20];
        let mut position = 0;
        loop {
            let read = self.file.read_at(&mut buffer, position)?;
            if read == 0 {
                return Ok(hasher.finish());
            }
            hasher.update(buffer.get(..read).unwrap_or_default());
            position += read as u64;
        }
    }

    fn publish(&mut self, digest: &Digest) -> io::Result<()> {
        file::sync(&self.file)?;
        let algorithm = digest.algorithm().as_str();
        make(&self.blobs, algorithm)?;
        let dir = self.blobs.open_beneath(algorithm)?;
        let named = match &self.temporary {
            None => file::link_unnamed(&self.file, &dir, digest.hex()),
            Some(temporary) => file::rename_over(&self.blobs, temporary, &dir, digest.hex()),
        };
        match named {
            // Another writer of the same bytes was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            outcome => outcome?,
        }
        self.temporary = None;
        file::sync(&dir)?;
        file::sync(&self.blobs)
    }

    fn disk(&self, error: io::Error) -> Error {
        Error::disk(error).context(self.path.display().to_string())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Nobody waits for the answer.
            let _left = file::remove(&self.blobs, temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(path: &Path) -> OciDirectory {
        OciDirectory::create(path).unwrap()
    }

    #[test]
    fn a_blob_is_there_whole_or_not_at_all() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("layout");
        let layout = layout(&path);
        let digest = Digest::sha256(b"whole");
        let mut half = layout.ingest(&Cancel::new()).unwrap();
        half.write(b"who").unwrap();
        drop(half);
        let mut wrong = layout.ingest(&Cancel::new()).unwrap();
        wrong.write(b"other").unwrap();
        assert_eq!(wrong.commit(&digest, &BTreeMap::new()).unwrap_err().reason(), reason::DIGEST);
        assert!(layout.blob(&digest).unwrap().is_none());
        for _ in 0..2 {
            let mut whole = layout.ingest(&Cancel::new()).unwrap();
            whole.write(b"whole").unwrap();
            whole.commit(&digest, &BTreeMap::new()).unwrap();
        }
        assert_eq!(std::fs::read(path.join(blob_path(&digest))).unwrap(), b"whole");
        layout.remove(&digest).unwrap();
        assert_eq!(std::fs::read_dir(path.join("blobs/sha256")).unwrap().count(), 0);
    }

    #[test]
    fn other_algorithms_have_directories_of_their_own() {
        let scratch = tempfile::tempdir().unwrap();
        let layout = layout(scratch.path());
        let mut hasher = Hasher::new(Algorithm::Sha512);
        hasher.update(b"x");
        let digest = hasher.finish();
        let mut blob = layout.ingest(&Cancel::new()).unwrap();
        blob.write(b"x").unwrap();
        blob.commit(&digest, &BTreeMap::new()).unwrap();
        assert!(scratch.path().join("blobs/sha512").join(digest.hex()).is_file());
    }

    #[test]
    fn a_layout_is_written_by_one_process_at_a_time_and_nothing_else_is_overwritten() {
        let scratch = tempfile::tempdir().unwrap();
        let held = layout(scratch.path());
        assert_eq!(OciDirectory::create(scratch.path()).unwrap_err().reason(), reason::LOCKED);
        held.set_index(b"{}").unwrap();
        assert_eq!(std::fs::read(scratch.path().join("index.json")).unwrap(), b"{}");
        drop(held);
        assert!(OciDirectory::create(scratch.path()).is_ok());
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("precious"), "").unwrap();
        assert_eq!(OciDirectory::create(other.path()).unwrap_err().reason(), reason::REFUSED);
    }
}
