//! Layers put together for tests, and the change stream as text.

use std::fmt::Write as _;

use crate::{
    call::Cancel,
    compare::{
        changes::{self, Counts, Options},
        layer::{At, ErofsLayer, Layer, Node},
        output::Output,
    },
    error::Result,
    format::erofs::{
        reader::Image,
        writer::{self, Writer},
    },
    tree::{Attributes, Body, Device, Entry, Extent, Timestamp, Xattr},
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

/// The image with every `from` in it spelled `to`, which has the same length: what our writer never writes.
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

/// An image in memory as a layer; `key` is the layer's.
pub(crate) fn erofs(image: &[u8], key: u64) -> ErofsLayer<&[u8]> {
    ErofsLayer::new(Image::open(image).unwrap(), (0, key), format!("image {key}"), &Cancel::new())
}

/// Everything that reached the output.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorded {
    pub(crate) entries: Vec<(Entry, Vec<u8>)>,
    open: bool,
}

impl Output for Recorded {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        assert!(!self.open, "the last file was not ended before {:?}", entry.path.escape_ascii().to_string());
        self.open = matches!(entry.body, Body::Regular { .. });
        self.entries.push((entry.clone(), Vec::new()));
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        assert!(self.open && !bytes.is_empty());
        let (entry, data) = self.entries.last_mut().unwrap();
        let Body::Regular { size_bytes, extents } = &entry.body else { panic!("data of {entry:?}") };
        let whole = vec![Extent { offset: 0, len: *size_bytes }];
        let mut before = 0;
        // The data comes in order: what came so far tells where the next byte belongs.
        let next = extents.as_ref().unwrap_or(&whole).iter().find_map(|extent| {
            let inside = (data.len() as u64).checked_sub(before).filter(|inside| *inside < extent.len);
            before += extent.len;
            inside.map(|inside| (extent.offset + inside, extent.len - inside))
        });
        let (want, room) = next.expect("no more data than extents");
        assert_eq!(offset, want);
        assert!(bytes.len() as u64 <= room);
        data.extend_from_slice(bytes);
        Ok(())
    }

    fn end_entry(&mut self) -> Result<()> {
        assert!(std::mem::take(&mut self.open));
        let (entry, data) = self.entries.last().unwrap();
        let Body::Regular { size_bytes, extents } = &entry.body else { panic!("end of {entry:?}") };
        let want = extents.as_ref().map_or(*size_bytes, |list| list.iter().map(|extent| extent.len).sum());
        assert_eq!(data.len() as u64, want);
        Ok(())
    }
}

impl Recorded {
    /// One line per entry; what is as usual is left out.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        for (entry, data) in &self.entries {
            let show = |bytes: &[u8]| bytes.escape_ascii().to_string();
            let Attributes { mode, uid, gid, mtime } = entry.attributes;
            let path = show(&entry.path);
            let (line, usual) = match &entry.body {
                Body::Directory => (format!("dir {path}"), 0o755),
                Body::Regular { size_bytes: 0, .. } if mode == 0 => (format!("mark {path}"), 0),
                Body::Regular { extents: None, .. } => (format!("file {path} {:?}", show(data)), 0o644),
                Body::Regular { size_bytes, extents: Some(extents) } => {
                    let list = extents.iter().map(|extent| format!("{}+{}", extent.offset, extent.len));
                    let list = list.collect::<Vec<_>>().join(",");
                    (format!("sparse {path} {size_bytes} [{list}] {:?}", show(data)), 0o644)
                }
                Body::Symlink { target } => (format!("symlink {path} {}", show(target)), 0o777),
                Body::HardLink { target } => (format!("link {path} {}", show(target)), 0o644),
                Body::CharDevice(device) => (format!("char {path} {}:{}", device.major, device.minor), 0o644),
                Body::BlockDevice(device) => {
                    (format!("block {path} {}:{}", device.major, device.minor), 0o644)
                }
                Body::Fifo => (format!("fifo {path}"), 0o644),
            };
            out += &line;
            if mode != usual {
                write!(out, " {mode:o}").unwrap();
            }
            if (uid, gid) != (0, 0) {
                write!(out, " {uid}:{gid}").unwrap();
            }
            if mtime != Timestamp::default() {
                write!(out, " @{}.{}", mtime.seconds, mtime.nanoseconds).unwrap();
            }
            for xattr in &entry.xattrs {
                write!(out, " {}={}", show(&xattr.name), show(&xattr.value)).unwrap();
            }
            out.push('\n');
        }
        out
    }
}

/// Compares two stacks, the newest layer first.
pub(crate) fn compare(
    lower: &[&dyn Layer],
    upper: &[&dyn Layer],
    options: &Options,
) -> Result<(Recorded, Counts)> {
    let mut recorded = Recorded::default();
    let counts = changes::write(lower, upper, options, &Cancel::new(), &mut |_| Ok(()), &mut recorded)?;
    assert!(!recorded.open);
    Ok((recorded, counts))
}

/// What one layer on top of others changes, all in images; the newest layer first.
pub(crate) fn on_top(layers: &[&Entries]) -> Result<String> {
    // Overlayfs's marks on directories are written by the writer itself; tests want others.
    let image = |entries: &&Entries| respelled(entries.image(), "overlaX.", "overlay.");
    let images: Vec<_> = layers.iter().map(image).collect();
    let layers: Vec<_> = (0..).zip(&images).map(|(key, image)| erofs(image, key)).collect();
    let layers: Vec<&dyn Layer> = layers.iter().map(|layer| layer as &dyn Layer).collect();
    let (_, lower) = layers.split_first().unwrap();
    Ok(compare(lower, &layers, &Options::default())?.0.text())
}

/// A layer that says so before each call it gets: which, and for what path.
pub(crate) struct Watched<'a, F> {
    inner: &'a dyn Layer,
    before: F,
}

impl<'a, F: Fn(&'static str, &[u8])> Watched<'a, F> {
    pub(crate) fn new(inner: &'a dyn Layer, before: F) -> Self {
        Self { inner, before }
    }
}

impl<F: Fn(&'static str, &[u8])> Layer for Watched<'_, F> {
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

/// A layer whose files lie on several file systems, as subvolumes are: `volume` tells which, by name.
pub(crate) struct Volumes<'a> {
    pub(crate) inner: &'a dyn Layer,
    pub(crate) volume: fn(&[u8]) -> u64,
}

impl Layer for Volumes<'_> {
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
        Ok(found.map(|node| Node { volume: (self.volume)(name), ..node }))
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
