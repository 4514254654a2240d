//! A view of an EROFS image, read by our own reader.

use super::{At, Control, Extents, Node, View, pieces::read_in_pieces};
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

/// The tree of an EROFS image on a volume `R`.
#[derive(Debug)]
pub struct ErofsView<R> {
    image: Image<R>,
    key: (u64, u64),
    name: String,
    cancel: Cancel,
}

impl<R: ReadAt> ErofsView<R> {
    /// Opens `image`, whose device table names `devices`; `name` is for messages.
    ///
    /// Errors: those of [`Image::open_with_devices`].
    pub fn open(image: R, devices: Vec<R>, key: (u64, u64), name: String, cancel: &Cancel) -> Result<Self> {
        let opened =
            if devices.is_empty() { Image::open(image) } else { Image::open_with_devices(image, devices) };
        match opened {
            Ok(image) => Ok(Self { image, key, name, cancel: cancel.clone() }),
            Err(error) => Err(Error::from(error).context(name)),
        }
    }

    /// The image itself, for what a view does not show: inode numbers, and where data is stored.
    pub fn image(&self) -> &Image<R> {
        &self.image
    }

    /// The file with the inode number `nid`, found at `path`, as the view shows it.
    pub fn file(&self, path: &[u8], nid: Nid) -> Result<Node> {
        Ok(node(&self.image.node(nid).map_err(|error| self.failed(path, error))?))
    }

    /// The error of reading the file at `path`, with the names of file and image.
    pub fn failed(&self, path: &[u8], error: ReadError) -> Error {
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
        attributes: inode.attributes.of_type(inode.file_type),
        device: if let Data::Device(device) = inode.data { device } else { Device::default() },
        size_bytes: if sized { inode.size_bytes } else { 0 },
        links: inode.nlink.into(),
        inode: found.nid.0,
        file_system: 0,
        changed: Timestamp::default(),
    }
}

impl<R: ReadAt> View for ErofsView<R> {
    fn key(&self) -> (u64, u64) {
        self.key
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn control_prefix(&self) -> &'static [u8] {
        // The spelling of mkfs.erofs and of our own writer, also where a mount has `userxattr`.
        Control::Trusted.prefix()
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
        let read = |offset, piece: &mut [u8]| {
            self.image.read_data(&inode, offset, piece).map_err(|error| self.failed(at.path, error))?;
            Ok(piece.len())
        };
        read_in_pieces(extents, &mut Vec::new(), &self.cancel, read, each)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::{
        error::Kind,
        view::{Volume, fixture::Entries},
    };

    fn volume(bytes: &[u8]) -> Volume {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.into()
    }

    fn open(image: &[u8], devices: Vec<Volume>) -> Result<ErofsView<Volume>> {
        ErofsView::open(volume(image), devices, (3, 4), "a layer".to_owned(), &Cancel::new())
    }

    #[test]
    fn an_image_is_looked_up_and_read_by_inode() {
        let entries = Entries::new()
            .dir("d")
            .file("d/f", "hello")
            .xattr("user.b", "2")
            .xattr("user.a", "1")
            .link("g", "d/f")
            .symlink("s", "target")
            .block_device("sda", 8, 300);
        let view = open(&entries.image(), Vec::new()).unwrap();
        assert_eq!((view.key(), view.name()), ((3, 4), "a layer"));
        let root = view.root().unwrap();
        let root = At { path: b"", node: &root };
        let mut names = Vec::new();
        view.names(root, &mut |name| {
            names.push(String::from_utf8_lossy(name).into_owned());
            Ok(())
        })
        .unwrap();
        assert_eq!(names, ["d", "g", "s", "sda"]);
        let found = |name: &str| view.lookup(root, name.as_bytes()).unwrap();
        assert_eq!(found("none"), None);
        assert_eq!(found("sda").unwrap().device, Device { major: 8, minor: 300 });
        let link = found("s").unwrap();
        assert_eq!(view.symlink_target(At { path: b"s", node: &link }).unwrap(), b"target");
        let directory = found("d").unwrap();
        let node = view.lookup(At { path: b"d", node: &directory }, b"f").unwrap().unwrap();
        assert_eq!(
            (node.links, node.size_bytes, Some(node.inode)),
            (2, 5, found("g").map(|node| node.inode))
        );
        let at = At { path: b"d/f", node: &node };
        let xattrs: Vec<_> = view.xattrs(at).unwrap().into_iter().map(|xattr| xattr.value).collect();
        assert_eq!(xattrs, [b"1", b"2"]);
        let mut pieces = Vec::new();
        let part = [Extent { offset: 1, len: 2 }, Extent { offset: 4, len: 1 }];
        view.read(at, &part, &mut |offset, bytes| {
            pieces.push((offset, bytes.to_vec()));
            Ok(())
        })
        .unwrap();
        assert_eq!(pieces, [(1, b"el".to_vec()), (4, b"o".to_vec())]);
        assert_eq!(view.extents(at).unwrap(), None);
    }

    #[test]
    fn an_error_names_the_view_and_the_file() {
        let error = open(&[0; 8192], Vec::new()).unwrap_err();
        assert_eq!(error.kind(), Kind::Malformed);
        assert!(error.to_string().starts_with("a layer: "), "{error}");
        // More devices than the image names.
        let image = Entries::new().file("f", "x").image();
        let error = open(&image, vec![volume(b"")]).unwrap_err();
        assert_eq!(error.reason(), "erofs.device.count", "{error}");
        let view = open(&image, Vec::new()).unwrap();
        let outside = Node { inode: 1 << 40, ..view.root().unwrap() };
        let error = view.xattrs(At { path: b"d/f", node: &outside }).unwrap_err();
        assert!(error.to_string().starts_with("\"d/f\" in a layer: "), "{error}");
    }
}
