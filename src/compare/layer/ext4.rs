//! A layer in an ext4 image that is mounted nowhere: its directory `upper`, read by our own reader.
//!
//! Directories have no order to find a name by, so what was learned of the last ones is kept.

use std::{cell::RefCell, fs::File, sync::Arc};

use super::{At, Control, Extents, Layer, LayerError, Node, pieces::read_in_pieces};
use crate::{
    call::Cancel,
    error::{Error, Kind, Quoted, Result},
    format::{
        ReadAt,
        ext4::{
            InodeNumber,
            inode::Content,
            reader::{self, DirEntry, Image, Names, Place, ReadError},
        },
    },
    tree::{Device, Extent, FileType, Timestamp, Xattr},
};

/// Where in the image the layer is: overlayfs's other directory is beside it.
const UPPER: &[u8] = b"upper";
/// Most names that are kept, but for those of the last directory, which has what it has.
const KEPT_NAMES: usize = 1 << 20;
/// Most directories whose names are kept: deeper trees read some twice.
const KEPT_DIRECTORIES: usize = 128;

/// A layer in an ext4 image.
#[derive(Debug)]
pub struct Ext4Layer<R> {
    image: Image<R>,
    root: reader::Node,
    key: (u64, u64),
    name: String,
    control: Control,
    cancel: Cancel,
    /// The last directories that were read, the newest last.
    kept: RefCell<Vec<(InodeNumber, Arc<Names>)>>,
}

impl Ext4Layer<File> {
    /// Opens `image`; `name` is for messages. `None` when it has no directory `upper`: nothing was
    /// written to the layer yet.
    ///
    /// Errors: those of [`Image::open`], and of kind `Malformed` when `upper` is something else.
    pub fn open(
        image: File,
        key: (u64, u64),
        name: String,
        control: Control,
        cancel: &Cancel,
    ) -> Result<Option<Self>> {
        match Image::open(image) {
            Ok(image) => Self::new(image, key, name, control, cancel),
            Err(error) => Err(Error::from(error).context(name)),
        }
    }
}

impl<R: ReadAt> Ext4Layer<R> {
    /// The layer that an open image holds.
    ///
    /// Errors: as for [`Ext4Layer::open`].
    pub fn new(
        image: Image<R>,
        key: (u64, u64),
        name: String,
        control: Control,
        cancel: &Cancel,
    ) -> Result<Option<Self>> {
        let upper = image.find(UPPER).map_err(|error| Error::from(error).context(name.as_str()))?;
        let Some(root) = upper else { return Ok(None) };
        if root.inode.file_type != FileType::Directory {
            let message = format!("{name}: `upper` is a {:?}, not a directory", root.inode.file_type);
            return Err(Error::new(Kind::Malformed, "ext4.upper", message));
        }
        let (cancel, kept) = (cancel.clone(), RefCell::default());
        Ok(Some(Self { image, root, key, name, control, cancel, kept }))
    }

    fn failed(&self, path: &[u8], error: ReadError) -> Error {
        Error::from(error).context(format!("{} in {}", Quoted(path), self.name))
    }

    /// The inode that was looked up, if it is still what it was.
    fn inode(&self, at: At<'_>) -> Result<reader::Node> {
        let number = InodeNumber(u32::try_from(at.node.inode).unwrap_or(u32::MAX));
        let found = self.image.node(number).map_err(|error| self.failed(at.path, error))?;
        if node(&found) != *at.node {
            return Err(LayerError::Changed {
                layer: self.name.clone(),
                path: at.path.to_vec(),
                what: "the image is in use".to_owned(),
            }
            .into());
        }
        Ok(found)
    }

    /// The names of a directory, read once for all that is asked about it soon.
    fn names_of(&self, directory: At<'_>) -> Result<(reader::Node, Arc<Names>)> {
        let inode = self.inode(directory)?;
        let mut kept = self.kept.borrow_mut();
        if let Some(index) = kept.iter().rposition(|(number, _)| *number == inode.number) {
            let found = kept.remove(index);
            let names = Arc::clone(&found.1);
            kept.push(found);
            return Ok((inode, names));
        }
        let names = self.image.names(&inode).map_err(|error| self.failed(directory.path, error))?;
        let names = Arc::new(names);
        let total = |kept: &[(_, Arc<Names>)]| kept.iter().map(|(_, names)| names.len()).sum::<usize>();
        while !kept.is_empty() && (kept.len() >= KEPT_DIRECTORIES || total(&kept) + names.len() > KEPT_NAMES)
        {
            kept.remove(0);
        }
        kept.push((inode.number, Arc::clone(&names)));
        Ok((inode, names))
    }
}

fn node(found: &reader::Node) -> Node {
    let inode = &found.inode;
    let sized = matches!(inode.file_type, FileType::Regular | FileType::Symlink);
    Node {
        file_type: inode.file_type,
        attributes: inode.attributes.of_type(inode.file_type),
        device: if let Content::Device(device) = inode.content() { device } else { Device::default() },
        size_bytes: if sized { inode.size_bytes } else { 0 },
        links: inode.links.into(),
        inode: found.number.0.into(),
        volume: 0,
        changed: Timestamp::default(),
    }
}

impl<R: ReadAt> Layer for Ext4Layer<R> {
    fn key(&self) -> (u64, u64) {
        self.key
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn control_prefix(&self) -> &'static [u8] {
        self.control.prefix()
    }

    fn root(&self) -> Result<Node> {
        Ok(node(&self.root))
    }

    fn names(&self, directory: At<'_>, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        // Also finds out that no name is there twice.
        let (inode, _) = self.names_of(directory)?;
        let failed = |error| self.failed(directory.path, error);
        let mut walk = self.image.directory(&inode).map_err(failed)?;
        while let Some(entry) = walk.next_child().map_err(failed)? {
            each(entry.name)?;
        }
        Ok(())
    }

    fn lookup(&self, directory: At<'_>, name: &[u8]) -> Result<Option<Node>> {
        let (inode, names) = self.names_of(directory)?;
        let failed = |error| self.failed(directory.path, error);
        let Some((found, file_type)) = names.lookup(&self.image, name).map_err(failed)? else {
            return Ok(None);
        };
        let entry = DirEntry { name, inode: found, file_type };
        Ok(Some(node(&self.image.named(inode.number, &entry).map_err(failed)?)))
    }

    fn xattrs(&self, at: At<'_>) -> Result<Vec<Xattr>> {
        self.image.xattrs(&self.inode(at)?).map_err(|error| self.failed(at.path, error))
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
        // Remembers where the last piece was.
        let mut data = self.image.extents(&inode, 0);
        let read = |offset, piece: &mut [u8]| {
            data.read(offset, piece).map_err(|error| self.failed(at.path, error))?;
            Ok(piece.len())
        };
        read_in_pieces(extents, &mut Vec::new(), &self.cancel, read, each)
    }
}
