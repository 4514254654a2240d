//! Volumes: blocks to read, below the views of images.

use std::{fs::File, io};

use crate::format::ReadAt;

/// Something whose blocks can be read.
// An enum and no trait object: image readers ask for single blocks, and one arm costs nothing.
#[derive(Debug)]
pub enum Volume {
    /// A file that holds the blocks in their order.
    File(File),
}

impl From<File> for Volume {
    fn from(file: File) -> Self {
        Self::File(file)
    }
}

impl ReadAt for Volume {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(offset, buf),
        }
    }

    fn size_bytes(&self) -> u64 {
        match self {
            Self::File(file) => file.size_bytes(),
        }
    }
}
