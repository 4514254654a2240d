//! Reads the content store's directory directly.
//!
//! This module knows only the layout, `blobs/<algorithm>/<hex>`. The store itself has decided
//! before whether a namespace may see the blob.
//!
//! Source: containerd `plugins/content/local/store.go`.

use std::{fs::File, io, path::Path};

use crate::{descriptor::Descriptor, sys::dir::Dir};

/// Open root directory of a content store.
#[derive(Debug)]
pub(crate) struct ContentRoot {
    dir: Dir,
}

impl ContentRoot {
    /// Opens the root that the store reported or the operator configured.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { dir: Dir::open_root(path)? })
    }

    /// Opens the file of a blob. Errors: it is not a regular file, lies behind a link, or has
    /// another size than the descriptor.
    pub(crate) fn blob(&self, descriptor: &Descriptor) -> io::Result<File> {
        let digest = &descriptor.digest;
        let path = format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex());
        let file = self.dir.open_file_beneath(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() != descriptor.size_bytes {
            let found = metadata.len();
            return Err(io::Error::other(format!(
                "not a regular file of {} bytes ({found} found)",
                descriptor.size_bytes
            )));
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::digest::Digest;

    #[test]
    fn only_a_regular_file_of_the_right_size_beneath_the_root_is_a_blob() {
        let scratch = tempfile::tempdir().unwrap();
        let blobs = scratch.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let root = ContentRoot::open(scratch.path()).unwrap();
        let digest = Digest::sha256(b"blob");
        let descriptor = |size| Descriptor::new("a/b", digest.clone(), size).unwrap();
        let path = blobs.join(digest.hex());
        assert_eq!(root.blob(&descriptor(4)).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&path, "blob").unwrap();
        assert!(root.blob(&descriptor(4)).is_ok());
        assert!(root.blob(&descriptor(3)).is_err());
        fs::rename(&path, scratch.path().join("elsewhere")).unwrap();
        symlink(scratch.path().join("elsewhere"), &path).unwrap();
        assert!(root.blob(&descriptor(4)).is_err());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(root.blob(&descriptor(4)).is_err());
    }
}
