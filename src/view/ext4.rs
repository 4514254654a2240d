//! A view of an ext4 image that is mounted nowhere, read by our own reader.
//!
//! Directories have no order to find a name by, so what was learned of the last ones is kept.

use std::{cell::RefCell, sync::Arc};

use super::{At, Control, Extents, Node, View, ViewError, pieces::read_in_pieces};
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

/// Most names that are kept, besides those of the last directory, which may have any number.
// At 16 bytes a name, 16 MiB.
const KEPT_NAMES: usize = 1 << 20;
/// Most directories whose names are kept.
// A walk goes depth first, so only in a tree that is deeper are some read twice.
const KEPT_DIRECTORIES: usize = 128;

/// The tree below a directory of an ext4 image on a volume `R`.
#[derive(Debug)]
pub struct Ext4View<R> {
    image: Image<R>,
    root: reader::Node,
    key: (u64, u64),
    name: String,
    control: Control,
    cancel: Cancel,
    /// The last directories that were read, the newest last.
    kept: RefCell<Vec<(InodeNumber, Arc<Names>)>>,
}

impl<R: ReadAt> Ext4View<R> {
    /// Opens `image` at the directory `root`, a path below the file system's own root, empty for that root
    /// itself. `name` is for messages. `None` when the image has no `root`: nothing was written there yet.
    ///
    /// Errors: those of [`Image::open`], and of kind `Malformed` when `root` is not a directory.
    pub fn open(
        image: R,
        root: &[u8],
        key: (u64, u64),
        name: String,
        control: Control,
        cancel: &Cancel,
    ) -> Result<Option<Self>> {
        let found = Image::open(image).and_then(|image| Ok((image.find(root)?, image)));
        let (found, image) = match found {
            Ok((Some(found), image)) => (found, image),
            Ok((None, _)) => return Ok(None),
            Err(error) => return Err(Error::from(error).context(name)),
        };
        if found.inode.file_type != FileType::Directory {
            let root = String::from_utf8_lossy(root);
            let message = format!("{name}: `{root}` is a {:?}, not a directory", found.inode.file_type);
            return Err(Error::new(Kind::Malformed, "ext4.upper", message));
        }
        let (cancel, kept) = (cancel.clone(), RefCell::default());
        Ok(Some(Self { image, root: found, key, name, control, cancel, kept }))
    }

    fn failed(&self, path: &[u8], error: ReadError) -> Error {
        Error::from(error).context(format!("{} in {}", Quoted(path), self.name))
    }

    /// The inode that was looked up. Errors when it is not what it was: the image is in use.
    fn inode(&self, at: At<'_>) -> Result<reader::Node> {
        let number = InodeNumber(u32::try_from(at.node.inode).unwrap_or(u32::MAX));
        let found = self.image.node(number).map_err(|error| self.failed(at.path, error))?;
        if node(&found) != *at.node {
            return Err(ViewError::Changed {
                view: self.name.clone(),
                path: at.path.to_vec(),
                what: "the image is in use".to_owned(),
            }
            .into());
        }
        Ok(found)
    }

    /// The names of a directory: one reading serves all lookups that follow soon.
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
        file_system: 0,
        changed: Timestamp::default(),
    }
}

impl<R: ReadAt> View for Ext4View<R> {
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
        // Also refuses a directory that has a name twice.
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
        // Remembers the place of the last piece, from which the next is found faster.
        let mut data = self.image.extents(&inode, 0);
        let read = |offset, piece: &mut [u8]| {
            data.read(offset, piece).map_err(|error| self.failed(at.path, error))?;
            Ok(piece.len())
        };
        read_in_pieces(extents, &mut Vec::new(), &self.cancel, read, each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system of the kernel's: `upper/`, `work/` and `lost+found/`; tests/fixtures/ext4/README.md.
    fn image() -> Vec<u8> {
        zstd::decode_all(&include_bytes!("../../tests/fixtures/ext4/everything.ext4.zst")[..]).unwrap()
    }

    fn open<'a>(image: &'a [u8], root: &str) -> Result<Option<Ext4View<&'a [u8]>>> {
        let name = "an image".to_owned();
        Ext4View::open(image, root.as_bytes(), (3, 4), name, Control::User, &Cancel::new())
    }

    fn names(view: &dyn View, directory: At<'_>) -> Vec<String> {
        let mut names = Vec::new();
        let mut add = |name: &[u8]| {
            names.push(String::from_utf8_lossy(name).into_owned());
            Ok(())
        };
        view.names(directory, &mut add).unwrap();
        names.sort();
        names
    }

    #[test]
    fn an_image_is_read_from_its_own_root_or_from_a_directory_in_it() {
        let image = image();
        let whole = open(&image, "").unwrap().unwrap();
        let root = whole.root().unwrap();
        let root = At { path: b"", node: &root };
        assert_eq!(names(&whole, root), ["lost+found", "upper", "work"]);
        let upper = whole.lookup(root, b"upper").unwrap().unwrap();
        let at = At { path: b"upper", node: &upper };
        let file = whole.lookup(at, b"file-1").unwrap().unwrap();
        let file = At { path: b"upper/file-1", node: &file };
        assert_eq!(whole.xattrs(file).unwrap().len(), 1);
        let mut data = Vec::new();
        let mut add = |_, bytes: &[u8]| {
            data.extend_from_slice(bytes);
            Ok(())
        };
        whole.read(file, &[Extent { offset: 0, len: 1 }], &mut add).unwrap();
        assert_eq!(data, b"1");

        let part = open(&image, "upper").unwrap().unwrap();
        assert_eq!(part.root().unwrap(), upper);
        let part_root = At { path: b"", node: &upper };
        assert_eq!(names(&part, part_root), names(&whole, at));
        assert_eq!(part.lookup(part_root, b"file-1").unwrap().as_ref(), Some(file.node));
        let deep = open(&image, "upper/dir/sub").unwrap().unwrap();
        assert!(names(&deep, At { path: b"", node: &deep.root().unwrap() }).contains(&"deep".to_owned()));
    }

    #[test]
    fn a_root_that_is_not_there_is_no_view_and_one_that_is_a_file_is_refused() {
        let image = image();
        assert!(open(&image, "none").unwrap().is_none());
        assert!(open(&image, "upper/file-1/below").unwrap().is_none());
        let error = open(&image, "upper/file-1").unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "ext4.upper"));
        let message = error.to_string();
        assert!(message.contains("an image: `upper/file-1` is a Regular, not a directory"), "{message}");
    }
}
