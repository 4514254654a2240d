//! Layers put together for tests, and views that watch or alter their calls.

use crate::{
    call::Cancel,
    error::Result,
    format::erofs::writer::{self, Writer},
    tree::{Attributes, Body, Device, Entry, Extent, Timestamp, Xattr},
    view::{At, ErofsView, Node, View},
};

/// The entries of a layer under construction, whiteouts spelled as `.wh.` names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entries(pub(crate) Vec<(Entry, Vec<u8>)>);

impl Entries {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn add(mut self, path: &str, mode: u16, body: Body, data: &[u8]) -> Self {
        let attributes = Attributes { mode, ..Attributes::default() };
        let entry = Entry { path: path.into(), attributes, xattrs: Vec::new(), body };
        self.0.push((entry, data.to_vec()));
        self
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.add(path, 0o755, Body::Directory, b"")
    }

    pub(crate) fn file(self, path: &str, data: &str) -> Self {
        self.bytes(path, data.as_bytes())
    }

    pub(crate) fn bytes(self, path: &str, data: &[u8]) -> Self {
        self.add(path, 0o644, Body::Regular { size_bytes: data.len() as u64, extents: None }, data)
    }

    /// A file whose data is in `extents` only.
    pub(crate) fn sparse(self, path: &str, size_bytes: u64, extents: &[(u64, &[u8])]) -> Self {
        let data: Vec<u8> = extents.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect();
        let extent = |(offset, bytes): &(u64, &[u8])| Extent { offset: *offset, len: bytes.len() as u64 };
        let extents = Some(extents.iter().map(extent).collect());
        self.add(path, 0o644, Body::Regular { size_bytes, extents }, &data)
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.add(path, 0o777, Body::Symlink { target: target.into() }, b"")
    }

    pub(crate) fn link(self, path: &str, target: &str) -> Self {
        self.add(path, 0o644, Body::HardLink { target: target.into() }, b"")
    }

    pub(crate) fn fifo(self, path: &str) -> Self {
        self.add(path, 0o644, Body::Fifo, b"")
    }

    pub(crate) fn char_device(self, path: &str, major: u32, minor: u32) -> Self {
        self.add(path, 0o644, Body::CharDevice(Device { major, minor }), b"")
    }

    pub(crate) fn block_device(self, path: &str, major: u32, minor: u32) -> Self {
        self.add(path, 0o644, Body::BlockDevice(Device { major, minor }), b"")
    }

    pub(crate) fn whiteout(self, path: &str) -> Self {
        let (directory, name) = path.rsplit_once('/').map_or(("", path), |(dir, name)| (dir, name));
        self.file(format!("{directory}/.wh.{name}").trim_start_matches('/'), "")
    }

    pub(crate) fn opaque(self, path: &str) -> Self {
        self.file(&format!("{path}/.wh..wh..opq"), "")
    }

    fn last(mut self, change: impl FnOnce(&mut Entry)) -> Self {
        self.0.last_mut().map(|(entry, _)| change(entry)).expect("there is an entry to change");
        self
    }

    pub(crate) fn mode(self, mode: u16) -> Self {
        self.last(|entry| entry.attributes.mode = mode)
    }

    pub(crate) fn owner(self, uid: u32, gid: u32) -> Self {
        self.last(|entry| (entry.attributes.uid, entry.attributes.gid) = (uid, gid))
    }

    pub(crate) fn time(self, seconds: i64, nanoseconds: u32) -> Self {
        self.last(|entry| entry.attributes.mtime = Timestamp { seconds, nanoseconds })
    }

    pub(crate) fn xattr(self, name: &str, value: &str) -> Self {
        self.last(|entry| entry.xattrs.push(Xattr { name: name.into(), value: value.into() }))
    }

    /// An EROFS image of the entries.
    pub(crate) fn image(&self) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), writer::Options::default());
        for (entry, data) in &self.0 {
            writer.entry(entry).unwrap();
            if let Body::Regular { extents, .. } = &entry.body {
                let whole = vec![Extent { offset: 0, len: data.len() as u64 }];
                let mut rest = data.as_slice();
                for extent in extents.as_ref().unwrap_or(&whole) {
                    let (now, later) = rest.split_at(usize::try_from(extent.len).unwrap());
                    writer.data(extent.offset, now).unwrap();
                    rest = later;
                }
                writer.end_entry().unwrap();
            }
        }
        writer.finish().unwrap().0
    }
}

/// The image with every `from` replaced by `to`, of the same length: attributes that our writer never writes.
pub(crate) fn respelled(mut image: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut at = 0;
    while let Some(found) = image[at..].windows(from.len()).position(|window| window == from.as_bytes()) {
        at += found;
        image[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    crate::format::erofs::fixture::seal(&mut image);
    image
}

/// A view of an image in memory, with the key `key`.
pub(crate) fn erofs(image: &[u8], key: u64) -> ErofsView<&[u8]> {
    ErofsView::open(image, Vec::new(), (0, key), format!("image {key}"), &Cancel::new()).unwrap()
}

/// A view that calls `before` with the name and path of each call.
pub(crate) struct Watched<'a, F> {
    inner: &'a dyn View,
    before: F,
}

impl<'a, F: Fn(&'static str, &[u8])> Watched<'a, F> {
    pub(crate) fn new(inner: &'a dyn View, before: F) -> Self {
        Self { inner, before }
    }
}

impl<F: Fn(&'static str, &[u8])> View for Watched<'_, F> {
    fn key(&self) -> (u64, u64) {
        self.inner.key()
    }
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn control_prefix(&self) -> &'static [u8] {
        self.inner.control_prefix()
    }
    fn root(&self) -> Result<Node> {
        (self.before)("root", b"");
        self.inner.root()
    }
    fn names(&self, directory: At<'_>, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        (self.before)("names", directory.path);
        self.inner.names(directory, each)
    }
    fn lookup(&self, directory: At<'_>, name: &[u8]) -> Result<Option<Node>> {
        let slash: &[u8] = if directory.path.is_empty() { b"" } else { b"/" };
        (self.before)("lookup", &[directory.path, slash, name].concat());
        self.inner.lookup(directory, name)
    }
    fn xattrs(&self, at: At<'_>) -> Result<Vec<Xattr>> {
        (self.before)("xattrs", at.path);
        self.inner.xattrs(at)
    }
    fn symlink_target(&self, at: At<'_>) -> Result<Vec<u8>> {
        (self.before)("symlink_target", at.path);
        self.inner.symlink_target(at)
    }
    fn extents(&self, at: At<'_>) -> Result<Option<Vec<Extent>>> {
        (self.before)("extents", at.path);
        self.inner.extents(at)
    }
    fn read(
        &self,
        at: At<'_>,
        extents: &[Extent],
        each: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        (self.before)("read", at.path);
        self.inner.read(at, extents, &mut |offset, bytes| {
            (self.before)("reading", at.path);
            each(offset, bytes)
        })
    }
}

/// A view whose files lie on several file systems, as subvolumes are: `file_system` returns a name's.
pub(crate) struct Subvolumes<'a> {
    pub(crate) inner: &'a dyn View,
    pub(crate) file_system: fn(&[u8]) -> u64,
}

impl View for Subvolumes<'_> {
    fn key(&self) -> (u64, u64) {
        self.inner.key()
    }
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn control_prefix(&self) -> &'static [u8] {
        self.inner.control_prefix()
    }
    fn root(&self) -> Result<Node> {
        self.inner.root()
    }
    fn names(&self, directory: At<'_>, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.inner.names(directory, each)
    }
    fn lookup(&self, directory: At<'_>, name: &[u8]) -> Result<Option<Node>> {
        let found = self.inner.lookup(directory, name)?;
        Ok(found.map(|node| Node { file_system: (self.file_system)(name), ..node }))
    }
    fn xattrs(&self, at: At<'_>) -> Result<Vec<Xattr>> {
        self.inner.xattrs(at)
    }
    fn symlink_target(&self, at: At<'_>) -> Result<Vec<u8>> {
        self.inner.symlink_target(at)
    }
    fn extents(&self, at: At<'_>) -> Result<Option<Vec<Extent>>> {
        self.inner.extents(at)
    }
    fn read(
        &self,
        at: At<'_>,
        extents: &[Extent],
        each: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.inner.read(at, extents, each)
    }
}
