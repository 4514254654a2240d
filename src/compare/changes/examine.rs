//! The meaning of a merged directory's name on both sides, and the entry that follows from it.
//!
//! Examining writes nothing, so it may be done again when a live layer changed under it.

use std::cell::OnceCell;

use super::{error::ChangesError, links::Links, names::Names, options::Options, same::same_file};
use crate::{
    call::Cancel,
    error::{Error, Kind, Result},
    limits::PATH_BYTES,
    tree::{Attributes, Body, Entry, Extent, FileType, Xattr, whiteout},
    view::{
        memory::Memory,
        stack::{Found, Layers, Meaning, Merged, Place, common_tail},
    },
};

/// Most attempts at a file that changes while it is examined.
const ATTEMPTS: u32 = 5;

/// A directory on both sides.
#[derive(Clone, Debug, Default)]
pub(super) struct Pair {
    pub lower: Vec<Found>,
    pub upper: Vec<Found>,
    /// Number of directories that both lists end in.
    pub shared: usize,
}

impl Pair {
    pub fn new(lower: Vec<Found>, upper: Vec<Found>, ends_both: impl Fn(usize) -> bool) -> Self {
        let shared = common_tail(&lower, &upper, ends_both);
        Self { lower, upper, shared }
    }

    /// The directories that only the newer side has, those that only the older side has, and those that both have
    /// below.
    pub fn split(&self) -> (&[Found], &[Found], &[Found]) {
        let at = |list: &[Found]| list.len().saturating_sub(self.shared);
        let (upper, shared) = self.upper.split_at(at(&self.upper));
        let (lower, _) = self.lower.split_at(at(&self.lower));
        (upper, lower, shared)
    }

    /// Whether there can be no difference.
    pub fn is_same(&self) -> bool {
        self.lower.len() == self.shared && self.upper.len() == self.shared
    }

    pub fn memory_bytes(&self) -> usize {
        self.lower.iter().chain(&self.upper).map(Found::memory_bytes).sum()
    }
}

/// The change of a name.
#[derive(Debug)]
pub(super) enum Change {
    /// No change.
    Nothing,
    /// The name was listed, and none of the listed layers has it any more.
    Vanished,
    /// The newer side has no such name.
    Deleted,
    /// The newer side has a socket; `deleted` when the older one has something else.
    Socket { deleted: bool },
    /// A new or changed file that is no directory.
    File(Box<File>),
    /// A directory that has to be walked.
    Directory(Box<Directory>),
}

/// A file to be emitted.
#[derive(Debug)]
pub(super) struct File {
    pub found: Found,
    /// The file that has the data, mostly `found` itself.
    pub data: Found,
    pub entry: Entry,
}

/// A directory to be walked.
#[derive(Debug)]
pub(super) struct Directory {
    pub pair: Pair,
    pub names: Names,
    pub attributes: Attributes,
    pub xattrs: Vec<Xattr>,
    /// The directory is emitted even if nothing in it is.
    pub changed: bool,
    /// The directory hides its contents in the lower layers.
    pub opaque: bool,
}

/// Finds out what changed, one name at a time.
pub(super) struct Examiner<'a> {
    pub layers: Layers<'a>,
    pub options: &'a Options,
    pub cancel: &'a Cancel,
    /// The newer side is the older one and one layer on top, whose entries are emitted as they are.
    pub exact: bool,
    /// The roots of both sides.
    pub roots: Pair,
}

/// Runs `examine` again when a file changed under it, at most [`ATTEMPTS`] times.
pub(super) fn settled<T>(mut examine: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..ATTEMPTS {
        match examine() {
            Err(error) if error.kind() == Kind::Changed => {}
            outcome => return outcome,
        }
    }
    examine()
}

impl Examiner<'_> {
    /// The change at `path`, in the directory `pair`, which is at `directory`.
    pub fn examine(
        &self,
        pair: &Pair,
        directory: &[u8],
        path: &[u8],
        links: &Links,
        memory: &mut Memory<'_>,
    ) -> Result<Change> {
        if path.len() > PATH_BYTES {
            return Err(ChangesError::Path { path: path.to_vec() }.into());
        }
        let Pair { lower: lower_roots, upper: upper_roots, .. } = &self.roots;
        let place = |parts, roots| Place { parts, roots, directory, path };
        let (upper, lower, shared) = pair.split();
        let (upper, lower) = (place(upper, upper_roots), place(lower, lower_roots));
        // Below layers that both stacks end in, the roots are the same as well.
        let shared = place(shared, upper_roots);
        let upper = self.layers.resolve(upper, upper.search())?;
        let lower = self.layers.resolve(lower, lower.search())?;
        if upper.is_unheard_of() && lower.is_unheard_of() {
            return Ok(Change::Vanished);
        }
        // The shared layers are searched once at most, and only when they matter.
        let cell = OnceCell::new();
        let below = |moved| {
            if let Some(search) = moved {
                return self.layers.meaning(shared, search);
            }
            if let Some(meaning) = cell.get() {
                return Ok(Meaning::clone(meaning));
            }
            let meaning = self.layers.meaning(shared, shared.search())?;
            Ok(cell.get_or_init(|| meaning).clone())
        };
        match upper.over(below)? {
            Meaning::Nothing => match lower.over(below)? {
                Meaning::Nothing => Ok(Change::Nothing),
                _ => Ok(Change::Deleted),
            },
            Meaning::File(file) if file.node.file_type == FileType::Socket => match lower.over(below)? {
                Meaning::File(lower) if lower.is(&file) => Ok(Change::Nothing),
                Meaning::Nothing => Ok(Change::Socket { deleted: false }),
                _ => Ok(Change::Socket { deleted: true }),
            },
            Meaning::File(file) => {
                let place = place(&pair.upper, upper_roots);
                if !self.exact
                    && let Meaning::File(lower) = lower.over(below)?
                {
                    let lower_place = Place { parts: &pair.lower, roots: lower_roots, ..place };
                    let sides = [(&lower, lower_place), (&file, place)];
                    let options = self.options;
                    if lower.is(&file) || same_file(self.layers, sides, &options.xattrs, self.cancel)? {
                        return Ok(Change::Nothing);
                    }
                }
                Ok(Change::File(Box::new(self.file(file, place, links)?)))
            }
            Meaning::Directory(upper) => {
                let lower = match lower.over(below)? {
                    Meaning::Directory(lower) => lower,
                    _ => Merged::default(),
                };
                match self.directory(lower, upper, path, memory)? {
                    Some(directory) => Ok(Change::Directory(Box::new(directory))),
                    None => Ok(Change::Nothing),
                }
            }
        }
    }

    /// Like `examine`, but looks for further names of emitted inodes only.
    pub fn examine_link(
        &self,
        pair: &Pair,
        directory: &[u8],
        path: &[u8],
        links: &Links,
        memory: &mut Memory<'_>,
    ) -> Result<Change> {
        let place = Place { parts: &pair.upper, roots: &self.roots.upper, directory, path };
        match self.layers.meaning(place, place.search())? {
            Meaning::File(file) if links.lacks(&file, path) => {
                Ok(Change::File(Box::new(self.file(file, place, links)?)))
            }
            Meaning::Directory(upper) => {
                let directory = self.directory(Merged::default(), upper, path, memory)?;
                let on_the_way = directory.map(|directory| Directory { changed: false, ..directory });
                Ok(on_the_way.map_or(Change::Nothing, |directory| Change::Directory(Box::new(directory))))
            }
            Meaning::Nothing | Meaning::File(_) => Ok(Change::Nothing),
        }
    }

    /// The entry of `found`, which is no directory.
    fn file(&self, found: Found, place: Place<'_>, links: &Links) -> Result<File> {
        let (node, path) = (&found.node, place.path);
        let attributes = self.lowered(node.attributes);
        if node.links > 1
            && let Some(first) = links.first(&found, path)?
        {
            let body = Body::HardLink { target: first.to_vec() };
            let entry = Entry { path: path.to_vec(), attributes, xattrs: Vec::new(), body };
            return Ok(File { data: found.clone(), found, entry });
        }
        let (xattrs, marks) = self.layers.xattrs(&found, path)?;
        let data = self.layers.data(place, &found, &marks)?;
        let (layer, at) = (self.layers.of(&data), data.at(path));
        let xattrs = self.options.xattrs.kept(&xattrs, node.file_type);
        let body = match node.file_type {
            FileType::Regular => {
                self.require_size(node.size_bytes, path)?;
                Body::Regular { size_bytes: node.size_bytes, extents: layer.extents(at)? }
            }
            FileType::Symlink => Body::Symlink { target: layer.symlink_target(at)? },
            FileType::CharDevice => Body::CharDevice(node.device),
            FileType::BlockDevice => Body::BlockDevice(node.device),
            FileType::Fifo => Body::Fifo,
            FileType::Directory | FileType::Socket => {
                let message = format!("a {:?} has no entry of its own", node.file_type);
                return Err(Error::new(Kind::Internal, "compare.entry", message));
            }
        };
        let entry = Entry { path: path.to_vec(), attributes, xattrs, body };
        Ok(File { found, data, entry })
    }

    /// Errors when one file alone passes the limit of all, before its data is looked at.
    fn require_size(&self, size_bytes: u64, path: &[u8]) -> Result<(), ChangesError> {
        let limit = self.options.limits.stream_bytes;
        if size_bytes > limit {
            return Err(ChangesError::Stream { path: path.to_vec(), size_bytes, limit });
        }
        Ok(())
    }

    /// The directory that is merged from `upper` and was merged from `lower`; `None` when nothing in it can differ.
    fn directory(
        &self,
        mut lower: Merged,
        upper: Merged,
        path: &[u8],
        memory: &mut Memory<'_>,
    ) -> Result<Option<Directory>> {
        let kept = |merged: &Merged| self.options.xattrs.kept(&merged.xattrs, FileType::Directory);
        let xattrs = kept(&upper);
        let attributes = |parts: &[Found]| parts.first().map(|part| part.node.attributes);
        let changed = attributes(&lower.parts) != attributes(&upper.parts) || kept(&lower) != xattrs;
        // On top of the very stack that it hides, one marker replaces a whiteout for each name below.
        let opaque = self.exact && upper.opaque && !lower.parts.is_empty();
        if opaque {
            lower.parts.clear();
        }
        let attributes = self.lowered(attributes(&upper.parts).unwrap_or_default());
        let pair = Pair::new(lower.parts, upper.parts, |layer| self.ends_both(layer));
        if pair.is_same() {
            return Ok(None);
        }
        let names = self.names(&pair, path, memory)?;
        Ok(Some(Directory { pair, names, attributes, xattrs, changed: changed || opaque, opaque }))
    }

    /// The names that can differ: those in the directories that only one side has.
    pub fn names(&self, pair: &Pair, path: &[u8], memory: &mut Memory<'_>) -> Result<Names> {
        let mut names = Names::default();
        let (upper, lower, _) = pair.split();
        let limit = self.options.limits.nodes;
        let listed = upper.iter().chain(lower).try_for_each(|part| {
            let mut left = limit;
            self.layers.of(part).names(part.at(path), &mut |name| {
                self.cancel.check()?;
                left = left.checked_sub(1).ok_or(ChangesError::Nodes { limit })?;
                names.push(name, memory)
            })
        });
        if let Err(error) = listed {
            memory.release(names.memory_bytes());
            return Err(error);
        }
        names.sort();
        Ok(names)
    }

    /// Whether both stacks end in `layer` and what is below it.
    fn ends_both(&self, layer: usize) -> bool {
        self.roots.split().2.iter().any(|root| root.layer == layer)
    }

    /// `attributes` as they are emitted: with a time not later than the epoch.
    pub fn lowered(&self, attributes: Attributes) -> Attributes {
        let mtime = self.options.epoch.map_or(attributes.mtime, |epoch| attributes.mtime.min(epoch));
        Attributes { mtime, ..attributes }
    }
}

/// Extents of a regular file's data; `None` for other entries.
pub(super) fn data_of(entry: &Entry) -> Option<Vec<Extent>> {
    match &entry.body {
        Body::Regular { extents: Some(extents), .. } => Some(extents.clone()),
        Body::Regular { size_bytes: 0, .. } => Some(Vec::new()),
        Body::Regular { size_bytes, extents: None } => Some(vec![Extent { offset: 0, len: *size_bytes }]),
        _ => None,
    }
}

/// The part of `path` behind its last slash.
pub(super) fn last_component(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

/// Errors when the name of `path` would be a whiteout in a layer.
pub(super) fn require_plain(path: &[u8]) -> Result<(), ChangesError> {
    if whiteout::is_reserved(last_component(path)) {
        return Err(ChangesError::Reserved { path: path.to_vec() });
    }
    Ok(())
}
