//! A layer in an EROFS image, read by our own reader.

use std::fs::File;

use super::{At, Extents, Layer, Node};
use crate::{
    call::Cancel,
    error::{Error, Quoted, Result},
    format::{
        ReadAt,
        erofs::{
            Nid,
            inode::Data,
            reader::{self, Image, Place, ReadError},
        },
    },
    tree::{Device, Extent, FileType, Timestamp, Xattr},
};

/// Bytes read at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// A layer in an EROFS image.
#[derive(Debug)]
pub struct ErofsLayer<R> {
    image: Image<R>,
    key: (u64, u64),
    name: String,
    cancel: Cancel,
}

impl ErofsLayer<File> {
    /// Opens `image`, whose device table names `devices`; `name` is for messages.
    ///
    /// Errors: those of [`Image::open_with_devices`].
    pub fn open(
        image: File,
        devices: Vec<File>,
        key: (u64, u64),
        name: String,
        cancel: &Cancel,
    ) -> Result<Self> {
        let opened =
            if devices.is_empty() { Image::open(image) } else { Image::open_with_devices(image, devices) };
        match opened {
            Ok(image) => Ok(Self::new(image, key, name, cancel)),
            Err(error) => Err(Error::from(error).context(name)),
        }
    }
}

impl<R: ReadAt> ErofsLayer<R> {
    /// The layer that an open image holds.
    pub fn new(image: Image<R>, key: (u64, u64), name: String, cancel: &Cancel) -> Self {
        Self { image, key, name, cancel: cancel.clone() }
    }

    fn failed(&self, path: &[u8], error: ReadError) -> Error {
        Error::from(error).context(format!("{} in {}", Quoted(path), self.name))
    }

    fn inode(&self, at: At<'_>) -> Result<reader::Node> {
        self.image.node(Nid(at.node.inode)).map_err(|error| self.failed(at.path, error))
    }
}

fn node(found: &reader::Node) -> Node {
    let inode = &found.inode;
    let sized = matches!(inode.file_type, FileType::Regular | FileType::Symlink);
    Node {
        file_type: inode.file_type,
        attributes: inode.attributes,
        device: if let Data::Device(device) = inode.data { device } else { Device::default() },
        size_bytes: if sized { inode.size_bytes } else { 0 },
        links: inode.nlink.into(),
        inode: found.nid.0,
        volume: 0,
        changed: Timestamp::default(),
    }
}

impl<R: ReadAt> Layer for ErofsLayer<R> {
    fn key(&self) -> (u64, u64) {
        self.key
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn control_prefix(&self) -> &'static [u8] {
        b"trusted.overlay."
    }

    fn root(&self) -> Result<Node> {
        Ok(node(&self.image.root().map_err(|error| self.failed(b"", error))?))
    }

    fn names(&self, directory: At<'_>, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let failed = |error| self.failed(directory.path, error);
        let mut walk = self.image.directory(&self.inode(directory)?).map_err(failed)?;
        while let Some(entry) = walk.next_child().map_err(failed)? {
            each(entry.name)?;
        }
        Ok(())
    }

    fn lookup(&self, directory: At<'_>, name: &[u8]) -> Result<Option<Node>> {
        let failed = |error| self.failed(directory.path, error);
        let Some((nid, _)) = self.image.lookup(&self.inode(directory)?, name).map_err(failed)? else {
            return Ok(None);
        };
        Ok(Some(node(&self.image.node(nid).map_err(failed)?)))
    }

    fn xattrs(&self, at: At<'_>) -> Result<Vec<Xattr>> {
        let mut xattrs = self.image.xattrs(&self.inode(at)?).map_err(|error| self.failed(at.path, error))?;
        xattrs.sort_by(|a, b| a.name.cmp(&b.name));
        xattrs.dedup_by(|later, first| later.name == first.name);
        Ok(xattrs)
    }

    fn symlink_target(&self, at: At<'_>) -> Result<Vec<u8>> {
        self.image.symlink_target(&self.inode(at)?).map_err(|error| self.failed(at.path, error))
    }

    fn extents(&self, at: At<'_>) -> Result<Option<Vec<Extent>>> {
        let mut extents = Extents::new(at.node.size_bytes);
        for extent in self.image.extents(&self.inode(at)?, 0) {
            self.cancel.check()?;
            let extent = extent.map_err(|error| self.failed(at.path, error))?;
            if extent.place != Place::Hole {
                extents.push(extent.offset, extent.len);
            }
        }
        Ok(extents.finish())
    }

    fn read(
        &self,
        at: At<'_>,
        extents: &[Extent],
        each: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let inode = self.inode(at)?;
        let longest = extents.iter().map(|extent| extent.len).max().unwrap_or(0);
        let mut buffer = vec![0; usize::try_from(longest).unwrap_or(usize::MAX).min(BUFFER_BYTES)];
        for extent in extents {
            let (mut offset, mut left) = (extent.offset, extent.len);
            while left > 0 {
                self.cancel.check()?;
                let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                let piece = buffer.get_mut(..want).unwrap_or_default();
                let read = self.image.read_data(&inode, offset, piece);
                read.map_err(|error| self.failed(at.path, error))?;
                each(offset, piece)?;
                offset += want as u64;
                left -= want as u64;
            }
        }
        Ok(())
    }
}
