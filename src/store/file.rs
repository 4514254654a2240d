//! A blob in a file of the host: the store of the command line, and the last step of the direct
//! path.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{Blob, ContentStore, memory::check_size, reason};
use crate::{
    call::{Call, Cancel},
    descriptor::Descriptor,
    error::{Error, Kind, Result},
};

/// Store of one file, which is returned for every blob of its size. Readers compare the digest, as
/// with any store.
#[derive(Clone, Debug)]
pub struct FileStore {
    path: PathBuf,
}

impl FileStore {
    /// Store of the file at `path`, which is opened anew for each blob.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl ContentStore for FileStore {
    fn open(&self, call: &Call, descriptor: &Descriptor) -> Result<Box<dyn Blob>> {
        call.cancel.check()?;
        let blob = open(&self.path, &call.cancel)?;
        check_size(descriptor, blob.size_bytes())?;
        Ok(blob)
    }
}

/// Opens the regular file at `path` as a blob of its present size.
pub fn open(path: &Path, cancel: &Cancel) -> Result<Box<dyn Blob>> {
    let context = |error: Error| error.context(path.display().to_string());
    let file = File::open(path).map_err(|error| {
        let (kind, reason) = match error.kind() {
            io::ErrorKind::NotFound => (Kind::NotFound, reason::NOT_FOUND),
            io::ErrorKind::PermissionDenied => (Kind::Denied, reason::READ),
            _ => (Kind::Unavailable, reason::READ),
        };
        context(Error::from_io(error, kind, reason))
    })?;
    Ok(Box::new(FileBlob::new(file, cancel.clone()).map_err(context)?))
}

/// File of which exactly the present size is read.
pub(crate) struct FileBlob {
    file: File,
    size_bytes: u64,
    read_bytes: u64,
    cancel: Cancel,
}

impl FileBlob {
    /// Takes a file that is open for reading at its start. Errors: it is not a regular file.
    pub(crate) fn new(file: File, cancel: Cancel) -> Result<Self> {
        let metadata =
            file.metadata().map_err(|error| Error::from_io(error, Kind::Unavailable, reason::READ))?;
        if !metadata.is_file() {
            return Err(Error::new(Kind::Malformed, reason::READ, "not a regular file"));
        }
        // A hint, by which the kernel reads further ahead.
        let _hint = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
        Ok(Self { file, size_bytes: metadata.len(), read_bytes: 0, cancel })
    }
}

impl Read for FileBlob {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.cancel.check().map_err(|stop| Error::from(stop).into_io())?;
        let rest = self.size_bytes - self.read_bytes;
        let want = usize::try_from(rest).unwrap_or(usize::MAX).min(buf.len());
        let Some(buf) = buf.get_mut(..want).filter(|buf| !buf.is_empty()) else { return Ok(0) };
        let read = match self.file.read(buf) {
            Ok(0) => {
                let message =
                    format!("the file ended after {} of {} bytes", self.read_bytes, self.size_bytes);
                return Err(Error::new(Kind::DataLoss, reason::SHORT, message).into_io());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => return Err(Error::from_io(error, Kind::DataLoss, reason::READ).into_io()),
            Ok(read) => read,
        };
        self.read_bytes += read as u64;
        Ok(read)
    }
}

impl Blob for FileBlob {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_that_shrinks_while_it_is_read_is_data_loss() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut blob = open(file.path(), &Cancel::new()).unwrap();
        assert_eq!(blob.size_bytes(), 10);
        assert_eq!(blob.read(&mut [0; 4]).unwrap(), 4);
        file.as_file().set_len(6).unwrap();
        let error = blob.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(Error::from_io(error, Kind::Internal, "").reason(), reason::SHORT);
    }

    #[test]
    fn a_file_that_grows_while_it_is_read_ends_where_it_ended() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut blob = open(file.path(), &Cancel::new()).unwrap();
        file.write_all(b"more").unwrap();
        let mut read = Vec::new();
        blob.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"0123456789");
    }

    #[test]
    fn what_is_no_regular_file_is_refused() {
        assert_eq!(open(Path::new("/dev/null"), &Cancel::new()).err().unwrap().kind(), Kind::Malformed);
        assert_eq!(open(Path::new("/nowhere"), &Cancel::new()).err().unwrap().kind(), Kind::NotFound);
    }

    #[test]
    fn the_file_is_handed_out_for_sharing_its_blocks() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"blob").unwrap();
        let store = FileStore::new(file.path());
        let call = Call::new("default".parse().unwrap());
        let descriptor = |size| Descriptor::new("a/b", crate::digest::Digest::sha256(b"blob"), size).unwrap();
        assert!(store.open(&call, &descriptor(4)).unwrap().file().is_some());
        assert_eq!(store.open(&call, &descriptor(5)).err().unwrap().reason(), reason::SIZE);
    }
}
