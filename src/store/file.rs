//! A blob in a file of the host: the last step of the direct path.

use std::{
    fs::File,
    io::{self, Read},
};

use super::{Blob, reason};
use crate::{
    call::Cancel,
    error::{Error, Kind, Result},
};

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

    fn blob(file: File) -> Result<FileBlob> {
        FileBlob::new(file, Cancel::new())
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_read_is_data_loss() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut blob = blob(file.reopen().unwrap()).unwrap();
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
        let mut blob = blob(file.reopen().unwrap()).unwrap();
        file.write_all(b"more").unwrap();
        let mut read = Vec::new();
        blob.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"0123456789");
    }

    #[test]
    fn what_is_no_regular_file_is_refused() {
        assert_eq!(blob(File::open("/dev/null").unwrap()).err().unwrap().kind(), Kind::Malformed);
    }

    #[test]
    fn the_file_is_handed_out_for_sharing_its_blocks() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"blob").unwrap();
        assert!(blob(file.reopen().unwrap()).unwrap().file().is_some());
    }
}
