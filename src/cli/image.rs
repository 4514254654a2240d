//! Opens the images named on the command line, and names the format of a file that is none.

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom},
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

use super::output;
use crate::{
    error::{Error, Result},
    format::{
        ReadAt,
        erofs::{
            device::DeviceSlot,
            reader::{Image, ReadError},
            superblock::SuperblockError,
        },
        magic,
        rafs::is_rafs,
    },
    sys::file,
};

/// A file or block device, and its size in bytes.
#[derive(Debug)]
pub struct ImageFile {
    /// `None`: a data device that is not there.
    file: Option<File>,
    size_bytes: u64,
}

impl ReadAt for ImageFile {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match &self.file {
            Some(file) => file.read_exact_at(offset, buf),
            None => Err(io::Error::other("the data device is not given")),
        }
    }
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn will_need(&self, offset: u64, len: u64) {
        if let Some(file) = &self.file {
            file.will_need(offset, len);
        }
    }
}

/// Opens a file or block device for reading. Errors: `image.open`.
pub fn open_file(path: &Path) -> Result<ImageFile> {
    let opened = file::open_without_waiting(path).and_then(|mut file| {
        let found = file.metadata()?.file_type();
        if found.is_dir() {
            return Err(io::Error::other("an image is a file or a block device, and this is a directory"));
        }
        if !found.is_file() && !found.is_block_device() {
            return Err(io::Error::other("an image is a file or a block device, and this is neither"));
        }
        // The size in the metadata of a block device is 0.
        let size_bytes = file.seek(SeekFrom::End(0))?;
        Ok(ImageFile { file: Some(file), size_bytes })
    });
    opened.map_err(|error| output::unreadable(&error, "image.open"))
}

/// Opens the image at `path`, with its extra `devices`. A wrong checksum is no error here. The devices of RAFS metadata
/// need not be given: all but data can be read without them, and the data too if it is in the same file.
pub fn open(path: &Path, devices: &[PathBuf]) -> Result<Image<ImageFile>> {
    let image = open_with(path, devices)?;
    let has_devices = !devices.is_empty() || image.slots().is_empty() || image.holds_devices();
    if !is_rafs(&image) || has_devices {
        return Ok(image);
    }
    let size = |blocks: u64| blocks.saturating_mul(image.superblock().block_bits.size());
    let absent = |slot: &DeviceSlot| ImageFile { file: None, size_bytes: size(slot.blocks) };
    let devices = image.slots().iter().map(absent).collect();
    Ok(Image::open_despite_checksum(open_file(path)?, devices)?)
}

fn open_with(path: &Path, devices: &[PathBuf]) -> Result<Image<ImageFile>> {
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

/// Names the format of a file that is no EROFS image, and for a layer the command that reads it.
fn what_it_is(file: &ImageFile) -> Option<String> {
    let starts = |offset: u64, magic: &[u8]| {
        let mut found = vec![0; magic.len()];
        file.read_exact_at(offset, &mut found).is_ok() && found == magic
    };
    magic::recognise(starts).map(|found| match found.is_layer {
        true => format!("{}; `plywood apply` makes an image of a layer", found.name),
        false => found.name.to_owned(),
    })
}
