//! The walk over two stacks of layers, and the entries it writes.

use super::{
    error::ChangesError,
    examine::{Change, Directory, Examiner, File, Pair, data_of, last_component, require_plain, settled},
    links::Links,
    names::Names,
    options::{Counts, Options, RootEntry},
};
use crate::{
    call::Cancel,
    compare::output::Output,
    error::Result,
    tree::{Attributes, Body, Entry, FileType, Timestamp, Xattr, whiteout},
    view::{
        View,
        memory::Memory,
        stack::{Layers, Merged, join},
    },
};

/// The root of a stack without layers, as a tar implies it.
const NO_ROOT: Attributes =
    Attributes { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp { seconds: 0, nanoseconds: 0 } };

/// Writes to `output` the entries that turn the stack `lower` into the stack `upper`, both the newest layer first.
///
/// `charge` gets in steps the memory that the walk is about to use in all, and may refuse it.
///
/// Errors: [`ChangesError`], those of the layers, of `charge` and of `output`; kind `Changed` when a live
/// layer changed in a way that could make the result wrong. The caller then throws away what was written.
pub fn write(
    lower: &[&dyn View],
    upper: &[&dyn View],
    options: &Options,
    cancel: &Cancel,
    charge: &mut dyn FnMut(u64) -> Result<()>,
    output: &mut dyn Output,
) -> Result<Counts> {
    // A layer that is in both stacks has one number, and is read through one reader.
    let mut layers: Vec<&dyn View> = Vec::new();
    let lower = number(lower, &mut layers);
    let upper = number(upper, &mut layers);
    Walk::new(Layers(&layers), options, cancel, charge, output).run(&lower, &upper)
}

/// Adds the layers of `stack` to `layers`, without those already in it, and returns their numbers.
fn number<'a>(stack: &[&'a dyn View], layers: &mut Vec<&'a dyn View>) -> Vec<usize> {
    let mut numbers = Vec::with_capacity(stack.len());
    for layer in stack {
        let known = layers.iter().position(|known| known.key() == layer.key());
        numbers.push(known.unwrap_or(layers.len()));
        if known.is_none() {
            layers.push(*layer);
        }
    }
    numbers
}

/// A walk.
struct Walk<'a> {
    examiner: Examiner<'a>,
    memory: Memory<'a>,
    links: Links,
    frames: Vec<Frame>,
    /// Names looked at.
    nodes: u64,
    emitted: Emitted<'a>,
}

/// The question about each name: [`Examiner::examine`] or [`Examiner::examine_link`].
type Examine<'a> = fn(&Examiner<'a>, &Pair, &[u8], &[u8], &Links, &mut Memory<'_>) -> Result<Change>;

/// A directory that is being walked.
struct Frame {
    path: Vec<u8>,
    pair: Pair,
    names: Names,
    next: usize,
    /// Indexes of names that were gone when their turn came.
    vanished: Vec<usize>,
    /// Attributes of the directory's entry, until that is written; never any for the root.
    pending: Option<(Attributes, Vec<Xattr>)>,
    /// Bytes charged for this frame besides those of its names.
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

/// The output, and what has been written to it.
struct Emitted<'a> {
    output: &'a mut dyn Output,
    counts: Counts,
    /// Sum of the sizes of all files, in bytes.
    size_bytes: u64,
}

impl<'a> Walk<'a> {
    fn new(
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
            emitted: Emitted { output, counts: Counts::default(), size_bytes: 0 },
        }
    }

    /// Walks both stacks, lists of layers' numbers, the newest first.
    fn run(mut self, lower: &[usize], upper: &[usize]) -> Result<Counts> {
        let on_top = upper.split_first().filter(|(_, rest)| *rest == lower);
        self.examiner.exact = on_top.is_some();
        self.links = Links::new(on_top.map(|(top, _)| *top));
        self.root(lower, upper)?;
        self.descend(Examiner::examine)?;
        if self.links.lack_some() {
            self.join_links(upper)?;
        }
        Ok(self.emitted.counts)
    }

    /// Emits the hard links still missing: names whose inode was already emitted under another name. Looks
    /// through all of the newer side, which only arbitrary pairs and renamed directories can make necessary.
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

    /// Walks the directories that were entered, and those in them.
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
            self.emit(change, path)?;
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
        // An empty stack has no root: one is made up only where there has to be an entry.
        let changed = !upper.parts.is_empty() && shown(&lower) != shown(&upper);
        if changed || examiner.options.root == RootEntry::Always {
            let attributes = examiner.lowered(attributes(&upper));
            let xattrs = filter.kept(&upper.xattrs, FileType::Directory);
            self.emitted.output.entry(&Entry {
                path: Vec::new(),
                attributes,
                xattrs,
                body: Body::Directory,
            })?;
            let counts = &mut self.emitted.counts;
            *(if changed { &mut counts.changed } else { &mut counts.parents }) += 1;
        }
        if !pair.is_same() {
            self.examiner.roots = pair.clone();
            self.enter(Frame::new(Vec::new(), pair, names, None))?;
        }
        Ok(())
    }

    fn emit(&mut self, change: Change, path: Vec<u8>) -> Result<()> {
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
                self.emitted.counts.sockets += 1;
                if deleted { self.delete(&path) } else { Ok(()) }
            }
            Change::File(file) => self.file(&file),
            Change::Directory(directory) => self.directory(*directory, path),
        }
    }

    /// Writes the entries of the directories on the way that were not written yet.
    fn parents(&mut self) -> Result<()> {
        for frame in &mut self.frames {
            if let Some((attributes, xattrs)) = frame.pending.take() {
                require_plain(&frame.path)?;
                let path = frame.path.clone();
                self.emitted.output.entry(&Entry { path, attributes, xattrs, body: Body::Directory })?;
                self.emitted.counts.parents += 1;
            }
        }
        Ok(())
    }

    fn delete(&mut self, path: &[u8]) -> Result<()> {
        require_plain(path)?;
        self.parents()?;
        let name = last_component(path);
        let directory = path.get(..path.len() - name.len()).unwrap_or_default();
        self.emitted.marker([directory, whiteout::PREFIX, name].concat())?;
        self.emitted.counts.deleted += 1;
        Ok(())
    }

    fn file(&mut self, file: &File) -> Result<()> {
        let File { found, data, entry } = file;
        require_plain(&entry.path)?;
        self.emitted.require_room(entry, self.examiner.options.limits.stream_bytes)?;
        self.parents()?;
        self.links.written(found, &entry.path, &mut self.memory)?;
        self.emitted.output.entry(entry)?;
        self.emitted.counts.changed += 1;
        let Some(extents) = data_of(entry) else { return Ok(()) };
        let (layer, cancel, emitted) =
            (self.examiner.layers.of(data), self.examiner.cancel, &mut self.emitted);
        layer.read(data.at(&entry.path), &extents, &mut |offset, bytes| {
            cancel.check()?;
            emitted.counts.data_bytes += bytes.len() as u64;
            emitted.output.data(offset, bytes)
        })?;
        self.emitted.output.end_entry()
    }

    fn directory(&mut self, directory: Directory, path: Vec<u8>) -> Result<()> {
        let Directory { pair, names, attributes, xattrs, changed, opaque } = directory;
        let pending = Some((attributes, xattrs));
        let marker = join(&path, whiteout::OPAQUE);
        self.enter(Frame::new(path, pair, names, pending))?;
        if changed {
            self.parents()?;
            self.emitted.counts.parents -= 1;
            self.emitted.counts.changed += 1;
        }
        if opaque {
            self.emitted.marker(marker)?;
            self.emitted.counts.opaque += 1;
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

    /// Errors when a directory in which names vanished has new ones, or has them again: a renamed file may have
    /// been emitted under neither name.
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

impl Emitted<'_> {
    /// Writes a whiteout or opaque marker: an empty file of root's, without permissions and time.
    fn marker(&mut self, path: Vec<u8>) -> Result<()> {
        let body = Body::Regular { size_bytes: 0, extents: None };
        let entry = Entry { path, attributes: Attributes::default(), xattrs: Vec::new(), body };
        self.output.entry(&entry)?;
        self.output.end_entry()
    }

    /// Errors when the files, holes included, pass `limit` bytes.
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
