//! The walk over two stacks of layers, and the entries it writes.

use super::{
    ChangesError, Counts, Options, RootEntry,
    examine::{Change, Directory, Examiner, File, Pair, data_of, last_component, require_plain, settled},
    links::Links,
    merged::{Layers, Merged, join},
    names::{Memory, Names},
};
use crate::{
    call::Cancel,
    compare::output::Output,
    error::Result,
    tree::{Attributes, Body, Entry, FileType, Timestamp, Xattr, whiteout},
};

/// The root of a stack without layers, as a tar implies it.
const NO_ROOT: Attributes =
    Attributes { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp { seconds: 0, nanoseconds: 0 } };

/// A walk.
pub(super) struct Walk<'a> {
    examiner: Examiner<'a>,
    memory: Memory<'a>,
    links: Links,
    frames: Vec<Frame>,
    /// Names looked at.
    nodes: u64,
    told: Told<'a>,
}

/// What has to be told about a name: [`Examiner::examine`] or [`Examiner::examine_link`].
type Examine<'a> = fn(&Examiner<'a>, &Pair, &[u8], &[u8], &Links, &mut Memory<'_>) -> Result<Change>;

/// A directory that is being walked.
struct Frame {
    path: Vec<u8>,
    pair: Pair,
    names: Names,
    next: usize,
    /// Indexes of names that were gone when their turn came.
    vanished: Vec<usize>,
    /// Its entry, until that is written; never one for the root.
    pending: Option<(Attributes, Vec<Xattr>)>,
    /// Memory charged for it besides its names.
    charged: usize,
}

impl Frame {
    fn new(path: Vec<u8>, pair: Pair, names: Names, pending: Option<(Attributes, Vec<Xattr>)>) -> Self {
        let xattr_bytes = |xattr: &Xattr| size_of::<Xattr>() + xattr.name.len() + xattr.value.len();
        let held = pending.as_ref().map_or(0, |(_, xattrs)| xattrs.iter().map(xattr_bytes).sum());
        let charged = size_of::<Self>() + path.len() + pair.memory_bytes() + held;
        Self { path, pair, names, next: 0, vanished: Vec::new(), pending, charged }
    }
}

/// What has been written.
struct Told<'a> {
    output: &'a mut dyn Output,
    counts: Counts,
    /// Sizes of all files, in bytes.
    size_bytes: u64,
}

impl<'a> Walk<'a> {
    pub fn new(
        layers: Layers<'a>,
        options: &'a Options,
        cancel: &'a Cancel,
        charge: &'a mut dyn FnMut(u64) -> Result<()>,
        output: &'a mut dyn Output,
    ) -> Self {
        Self {
            examiner: Examiner { layers, options, cancel, exact: false, roots: Pair::default() },
            memory: Memory::new(charge),
            links: Links::default(),
            frames: Vec::new(),
            nodes: 0,
            told: Told { output, counts: Counts::default(), size_bytes: 0 },
        }
    }

    /// Walks both stacks, given as numbers of layers, the newest first.
    pub fn run(mut self, lower: &[usize], upper: &[usize]) -> Result<Counts> {
        let on_top = upper.split_first().filter(|(_, rest)| *rest == lower);
        self.examiner.exact = on_top.is_some();
        self.links = Links::new(on_top.map(|(top, _)| *top));
        self.root(lower, upper)?;
        self.descend(Examiner::examine)?;
        if self.links.lack_some() {
            self.join_links(upper)?;
        }
        Ok(self.told.counts)
    }

    /// Tells the names of inodes that were told under others and that are the same on both sides, or were
    /// not even listed. Looks through all of the newer side, which only arbitrary pairs and renamed directories
    /// can make necessary.
    fn join_links(&mut self, upper: &[usize]) -> Result<()> {
        let (examiner, memory) = (&self.examiner, &mut self.memory);
        let (pair, names) = settled(|| {
            let pair = Pair::new(Vec::new(), examiner.layers.root(upper)?.parts, |_| true);
            let names = examiner.names(&pair, b"", memory)?;
            Ok((pair, names))
        })?;
        self.enter(Frame::new(Vec::new(), pair, names, None))?;
        self.descend(Examiner::examine_link)
    }

    /// Goes through the directories that were entered, and those in them.
    fn descend(&mut self, examine: Examine<'a>) -> Result<()> {
        while let Some(frame) = self.frames.last_mut() {
            self.examiner.cancel.check()?;
            let Some(name) = frame.names.get(frame.next) else {
                self.leave()?;
                continue;
            };
            let path = join(&frame.path, name);
            frame.next += 1;
            self.nodes += 1;
            let limit = self.examiner.options.limits.nodes;
            if self.nodes > limit {
                return Err(ChangesError::Nodes { limit }.into());
            }
            let (examiner, links, memory) = (&self.examiner, &self.links, &mut self.memory);
            let change = settled(|| examine(examiner, &frame.pair, &frame.path, &path, links, memory))?;
            self.tell(change, path)?;
        }
        Ok(())
    }

    fn root(&mut self, lower: &[usize], upper: &[usize]) -> Result<()> {
        let (examiner, memory) = (&self.examiner, &mut self.memory);
        let (lower, upper, pair, names) = settled(|| {
            let (lower, upper) = (examiner.layers.root(lower)?, examiner.layers.root(upper)?);
            let pair = Pair::new(lower.parts.clone(), upper.parts.clone(), |_| true);
            let names = if pair.is_same() { Names::default() } else { examiner.names(&pair, b"", memory)? };
            Ok((lower, upper, pair, names))
        })?;
        let filter = &examiner.options.xattrs;
        let attributes = |root: &Merged| root.parts.first().map_or(NO_ROOT, |part| part.node.attributes);
        let shown = |root: &Merged| {
            let Attributes { mode, uid, gid, mtime: _ } = attributes(root);
            (mode, uid, gid, filter.kept(&root.xattrs, FileType::Directory))
        };
        // Nothing has no root: one is made up for it only where there has to be one.
        let changed = !upper.parts.is_empty() && shown(&lower) != shown(&upper);
        if changed || examiner.options.root == RootEntry::Always {
            let attributes = examiner.lowered(attributes(&upper));
            let xattrs = filter.kept(&upper.xattrs, FileType::Directory);
            self.told.output.entry(&Entry { path: Vec::new(), attributes, xattrs, body: Body::Directory })?;
            let counts = &mut self.told.counts;
            *(if changed { &mut counts.changed } else { &mut counts.parents }) += 1;
        }
        if !pair.is_same() {
            self.examiner.roots = pair.clone();
            self.enter(Frame::new(Vec::new(), pair, names, None))?;
        }
        Ok(())
    }

    fn tell(&mut self, change: Change, path: Vec<u8>) -> Result<()> {
        match change {
            Change::Nothing => Ok(()),
            Change::Vanished => {
                let Some(frame) = self.frames.last_mut() else { return Ok(()) };
                self.memory.add(size_of::<usize>())?;
                frame.vanished.push(frame.next.saturating_sub(1));
                Ok(())
            }
            Change::Deleted => self.delete(&path),
            Change::Socket { deleted } => {
                self.told.counts.sockets += 1;
                if deleted { self.delete(&path) } else { Ok(()) }
            }
            Change::File(file) => self.file(&file),
            Change::Directory(directory) => self.directory(*directory, path),
        }
    }

    /// Writes the entries of the directories on the way, those that were not written yet.
    fn parents(&mut self) -> Result<()> {
        for frame in &mut self.frames {
            if let Some((attributes, xattrs)) = frame.pending.take() {
                require_plain(&frame.path)?;
                let path = frame.path.clone();
                self.told.output.entry(&Entry { path, attributes, xattrs, body: Body::Directory })?;
                self.told.counts.parents += 1;
            }
        }
        Ok(())
    }

    fn delete(&mut self, path: &[u8]) -> Result<()> {
        require_plain(path)?;
        self.parents()?;
        let name = last_component(path);
        let directory = path.get(..path.len() - name.len()).unwrap_or_default();
        self.told.marker([directory, whiteout::PREFIX, name].concat())?;
        self.told.counts.deleted += 1;
        Ok(())
    }

    fn file(&mut self, file: &File) -> Result<()> {
        let File { found, data, entry } = file;
        require_plain(&entry.path)?;
        self.told.require_room(entry, self.examiner.options.limits.stream_bytes)?;
        self.parents()?;
        self.links.written(found, &entry.path, &mut self.memory)?;
        self.told.output.entry(entry)?;
        self.told.counts.changed += 1;
        let Some(extents) = data_of(entry) else { return Ok(()) };
        let (layer, cancel, told) = (self.examiner.layers.of(data), self.examiner.cancel, &mut self.told);
        layer.read(data.at(&entry.path), &extents, &mut |offset, bytes| {
            cancel.check()?;
            told.counts.data_bytes += bytes.len() as u64;
            told.output.data(offset, bytes)
        })?;
        self.told.output.end_entry()
    }

    fn directory(&mut self, directory: Directory, path: Vec<u8>) -> Result<()> {
        let Directory { pair, names, attributes, xattrs, changed, opaque } = directory;
        let pending = Some((attributes, xattrs));
        let marker = join(&path, whiteout::OPAQUE);
        self.enter(Frame::new(path, pair, names, pending))?;
        if changed {
            self.parents()?;
            self.told.counts.parents -= 1;
            self.told.counts.changed += 1;
        }
        if opaque {
            self.told.marker(marker)?;
            self.told.counts.opaque += 1;
        }
        Ok(())
    }

    fn enter(&mut self, frame: Frame) -> Result<()> {
        self.memory.add(frame.charged)?;
        self.frames.push(frame);
        Ok(())
    }

    /// Ends the innermost directory.
    fn leave(&mut self) -> Result<()> {
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        if !frame.vanished.is_empty() {
            settled(|| self.look_again(&frame))?;
        }
        let vanished = frame.vanished.len() * size_of::<usize>();
        self.memory.release(frame.charged + frame.names.memory_bytes() + vanished);
        Ok(())
    }

    /// Errors when a directory in which names vanished has got others, or got them back: what was renamed
    /// then may have been told under neither name.
    fn look_again(&self, frame: &Frame) -> Result<()> {
        let (upper, lower, _) = frame.pair.split();
        for part in upper.iter().chain(lower) {
            let layer = self.examiner.layers.of(part);
            layer.names(part.at(&frame.path), &mut |name| {
                self.examiner.cancel.check()?;
                match frame.names.find(name) {
                    Some(index) if frame.vanished.binary_search(&index).is_err() => Ok(()),
                    _ => {
                        let (layer, path) = (layer.name().to_owned(), frame.path.clone());
                        Err(ChangesError::Renamed { layer, path }.into())
                    }
                }
            })?;
        }
        Ok(())
    }
}

impl Told<'_> {
    /// An empty file whose name says something: owned by root, of no permissions and no time.
    fn marker(&mut self, path: Vec<u8>) -> Result<()> {
        let body = Body::Regular { size_bytes: 0, extents: None };
        let entry = Entry { path, attributes: Attributes::default(), xattrs: Vec::new(), body };
        self.output.entry(&entry)?;
        self.output.end_entry()
    }

    /// Errors when the files, holes included, become larger than `limit`.
    fn require_room(&mut self, entry: &Entry, limit: u64) -> Result<()> {
        if let Body::Regular { size_bytes, .. } = entry.body {
            self.size_bytes = self.size_bytes.saturating_add(size_bytes);
            if self.size_bytes > limit {
                return Err(ChangesError::Stream { path: entry.path.clone(), size_bytes, limit }.into());
            }
        }
        Ok(())
    }
}
