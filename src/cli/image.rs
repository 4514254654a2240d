//! Images named on the command line: opened, and when they are none, what they are instead.

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Kind, Result},
    format::{
        ReadAt,
        erofs::{
            reader::{Image, ReadError},
            superblock::SuperblockError,
        },
    },
};

/// A file or block device, and its size in bytes.
#[derive(Debug)]
pub struct ImageFile {
    file: File,
    size_bytes: u64,
}

impl ReadAt for ImageFile {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(offset, buf)
    }
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

/// Opens `path` for reading.
pub fn open_file(path: &Path) -> Result<ImageFile> {
    let opened = File::open(path).and_then(|mut file| {
        if file.metadata()?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        // Block devices tell their size only this way.
        let size_bytes = file.seek(SeekFrom::End(0))?;
        Ok(ImageFile { file, size_bytes })
    });
    opened.map_err(|error| {
        let kind = if error.kind() == io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Unavailable };
        Error::new(kind, "image.open", error.to_string())
    })
}

/// Opens the image at `path`, with its devices if they are files of their own. A wrong checksum is no
/// error here.
pub fn open(path: &Path, devices: &[PathBuf]) -> Result<Image<ImageFile>> {
    let devices = devices.iter().map(|device| {
        open_file(device).map_err(|error| error.context(format!("device {}", device.display())))
    });
    let devices = devices.collect::<Result<Vec<_>>>()?;
    let file = open_file(path)?;
    let found = what_it_is(&file);
    Image::open_despite_checksum(file, devices).map_err(|error| match (&error, found) {
        (ReadError::Truncated { .. } | ReadError::Superblock(SuperblockError::Magic { .. }), Some(what)) => {
            Error::from(error).context(format!("not an EROFS image, but {what}"))
        }
        (ReadError::Truncated { .. } | ReadError::Superblock(SuperblockError::Magic { .. }), None) => {
            Error::from(error).context("not an EROFS image")
        }
        _ => error.into(),
    })
}

/// What a file that is no EROFS image looks like, by the bytes at its beginning.
fn what_it_is(file: &ImageFile) -> Option<&'static str> {
    let starts = |offset: u64, magic: &[u8]| {
        let mut found = vec![0; magic.len()];
        file.read_exact_at(offset, &mut found).is_ok() && found == magic
    };
    [
        (0, &[0x1f, 0x8b][..], "a gzip stream; `plywood apply` makes an image of a compressed layer"),
        (0, &[0x28, 0xb5, 0x2f, 0xfd], "a zstd stream; `plywood apply` makes an image of a compressed layer"),
        (257, b"ustar", "a tar archive; `plywood apply` makes an image of it"),
        (0, b"hsqs", "a SquashFS image"),
        (1080, &[0x53, 0xef], "an ext2, ext3 or ext4 image"),
        (0, b"XFSB", "an XFS image"),
        (0, b"LSMT", "an overlaybd layer"),
        (0, b"ZFile", "a compressed overlaybd layer"),
    ]
    .into_iter()
    .find_map(|(offset, magic, what)| starts(offset, magic).then_some(what))
}
