//! Merged directories: the meaning of a name where several layers have a directory.
//!
//! As in overlayfs, the topmost layer that has the name decides. Directories continue in the layers below
//! until one is opaque or not a directory; whiteouts end the search. The root is the merge of all roots.
//!
//! A renamed directory is continued under the name in its attribute `redirect`, and a file with `metacopy`
//! has its data in a layer below. A redirect leads into the layers below its own only, so no chain of them
//! is longer than the stack, and none is circular.
//!
//! Source: Linux `fs/overlayfs/namei.c`, `ovl_lookup`; `Documentation/filesystems/overlayfs.rst`.

use std::{borrow::Cow, sync::Arc};

use super::{
    error::StackError,
    marks::{Marks, Metacopy},
};
use crate::{
    error::{Quoted, Result},
    limits::{NAME_BYTES, PATH_BYTES},
    tree::{Device, FileType, Xattr},
    view::{At, Control, Node, View},
};

/// A file of one of the layers.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// Number of the layer in [`Layers`].
    pub layer: usize,
    pub node: Node,
    /// A directory that may hold whiteouts in the form of an attribute.
    pub holds_whiteouts: bool,
    /// Path in the layer, where a renamed directory above makes it differ from that in the merged tree.
    pub own_path: Option<Arc<[u8]>>,
}

impl Found {
    /// Whether both are the same inode.
    pub fn is(&self, other: &Self) -> bool {
        let inode = |found: &Self| (found.layer, found.node.file_system, found.node.inode);
        inode(self) == inode(other)
    }

    /// The file in its layer, given its `path` in the merged tree.
    pub fn at<'a>(&'a self, path: &'a [u8]) -> At<'a> {
        At { path: self.own_path.as_deref().unwrap_or(path), node: &self.node }
    }

    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.own_path.as_ref().map_or(0, |path| path.len())
    }
}

/// A merged directory: the directories of the layers that have one, the newest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Merged {
    pub parts: Vec<Found>,
    /// Extended attributes of the first.
    pub xattrs: Vec<Xattr>,
    /// The first hides the directories of lower layers.
    pub opaque: bool,
}

impl Merged {
    /// Memory in use, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let xattr = |xattr: &Xattr| size_of::<Xattr>() + xattr.name.len() + xattr.value.len();
        let parts = self.parts.iter().map(Found::memory_bytes).sum::<usize>();
        (size_of::<Self>() + parts + self.xattrs.iter().map(xattr).sum::<usize>()) as u64
    }
}

/// The meaning of a name.
#[derive(Clone, Debug, Default)]
pub(crate) enum Meaning {
    #[default]
    Nothing,
    File(Found),
    Directory(Merged),
}

/// A name, and the directories to look for it in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'p> {
    /// The directories, the newest first.
    pub parts: &'p [Found],
    /// The roots of their stack.
    pub roots: &'p [Found],
    /// Path of the merged directory.
    pub directory: &'p [u8],
    /// Path of the name.
    pub path: &'p [u8],
}

impl<'p> Place<'p> {
    /// A new search for the name.
    pub fn search(&self) -> Search<'p> {
        self.search_for(Aim::Anything)
    }

    fn search_for(&self, aim: Aim) -> Search<'p> {
        let name = self.path.rsplit(|byte| *byte == b'/').next().unwrap_or(self.path);
        Search { sought: Cow::Borrowed(name), from_root: false, moved: false, aim, astray: None }
    }

    /// The roots of the layers below the layer of `part`.
    fn below(&self, part: &Found) -> &'p [Found] {
        let last = self.roots.iter().rposition(|root| root.layer == part.layer);
        last.and_then(|last| self.roots.get(last + 1..)).unwrap_or_default()
    }
}

/// The kind of result that a search accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    Anything,
    /// More parts of a directory.
    Directory,
    /// A file that has its own data.
    Data,
}

/// A search on its way through the layers.
#[derive(Clone, Debug)]
pub(crate) struct Search<'p> {
    /// A name in the directories at hand, or with `from_root` a path from the root of each layer.
    sought: Cow<'p, [u8]>,
    from_root: bool,
    /// A redirect was followed, so `sought` is no longer what the search began with.
    moved: bool,
    aim: Aim,
    /// The last redirect, by its layer and path there, until it has led somewhere.
    astray: Option<(usize, Vec<u8>)>,
}

/// The answer of one layer.
enum Step {
    /// The layer has no such name: the layers below decide.
    Absent,
    /// The name does not exist, even if layers below have it.
    End,
    Hit(Hit),
}

struct Hit {
    file: Found,
    xattrs: Vec<Xattr>,
    opaque: bool,
    /// The layers below do not count.
    ends: bool,
}

/// The meaning of a name in the upper layers, before the layers below them are asked.
#[derive(Debug)]
pub(crate) struct Partial<'p> {
    pub meaning: Meaning,
    /// The layers below do not count.
    pub ended: bool,
    search: Search<'p>,
}

impl<'p> Partial<'p> {
    /// True when none of the layers has the name, not even to delete it.
    pub fn is_unheard_of(&self) -> bool {
        matches!(self.meaning, Meaning::Nothing) && !self.ended
    }

    /// The name's meaning in all layers. `below` returns the meaning in the layers below; it gets the search when
    /// a redirect has led that elsewhere.
    pub fn over(self, below: impl FnOnce(Option<Search<'p>>) -> Result<Meaning>) -> Result<Meaning> {
        if self.ended {
            return Ok(self.meaning);
        }
        let moved = Some(self.search).filter(|search| search.moved);
        Ok(match (self.meaning, below(moved)?) {
            (Meaning::Nothing, below) => below,
            (Meaning::Directory(mut upper), Meaning::Directory(lower)) => {
                upper.parts.extend(lower.parts);
                Meaning::Directory(upper)
            }
            (meaning, _) => meaning,
        })
    }
}

/// The layers of one or more stacks, each once. A stack is a list of indexes into them.
#[derive(Clone, Copy)]
pub(crate) struct Layers<'a>(pub &'a [&'a dyn View]);

impl Layers<'_> {
    /// The layer of `file`.
    pub fn of(&self, file: &Found) -> &dyn View {
        self.layer(file.layer)
    }

    fn layer(&self, number: usize) -> &dyn View {
        *self.0.get(number).expect("a layer's number is its place in the list")
    }

    /// The merge of the roots of `stack`, the newest first.
    pub fn root(&self, stack: &[usize]) -> Result<Merged> {
        let mut merged = Merged::default();
        for layer in stack {
            let node = self.layer(*layer).root()?;
            let mut root = Found { layer: *layer, node, holds_whiteouts: false, own_path: None };
            // overlayfs ignores that a root is opaque or redirected.
            let (xattrs, marks) = self.xattrs(&root, b"")?;
            root.holds_whiteouts = marks.holds_whiteouts;
            if merged.parts.is_empty() {
                merged.xattrs = xattrs;
            }
            merged.parts.push(root);
        }
        Ok(merged)
    }

    /// The extended attributes of `file`, which is at `path` in the merged tree, and what overlayfs's own mean.
    pub fn xattrs(&self, file: &Found, path: &[u8]) -> Result<(Vec<Xattr>, Marks)> {
        let layer = self.of(file);
        let xattrs = layer.xattrs(file.at(path))?;
        let marks = Marks::read(&xattrs, layer.control_prefix());
        Ok((xattrs, marks))
    }

    /// Resolves the name at `place` in its directories, for a search that comes from the layers above them.
    pub fn resolve<'p>(&self, place: Place<'p>, search: Search<'p>) -> Result<Partial<'p>> {
        let mut partial = Partial { meaning: Meaning::Nothing, ended: false, search };
        for part in place.parts {
            let step = self.step(part, place, &mut partial.search)?;
            self.add(step, &mut partial)?;
            if partial.ended {
                break;
            }
            if partial.search.from_root {
                for root in place.below(part) {
                    let step = self.step(root, place, &mut partial.search)?;
                    self.add(step, &mut partial)?;
                    if partial.ended {
                        break;
                    }
                }
                self.require_arrived(&partial.search)?;
                partial.ended = true;
                break;
            }
        }
        Ok(partial)
    }

    /// Resolves the name at `place`, whose directories are all that there are.
    pub fn meaning<'p>(&self, place: Place<'p>, search: Search<'p>) -> Result<Meaning> {
        let partial = self.resolve(place, search)?;
        self.require_arrived(&partial.search)?;
        Ok(partial.meaning)
    }

    /// The file that has the data of `file`, which is found at `place`.
    pub fn data(&self, place: Place<'_>, file: &Found, marks: &Marks) -> Result<Found> {
        if file.node.file_type != FileType::Regular || marks.metacopy == Metacopy::None {
            return Ok(file.clone());
        }
        let Meaning::File(data) = self.meaning(place, place.search_for(Aim::Data))? else {
            return Err(self.no_data(file, place.path, "no layer below has the file").into());
        };
        if data.node.size_bytes != file.node.size_bytes {
            let why =
                format!("it has {} bytes, the data below {}", file.node.size_bytes, data.node.size_bytes);
            return Err(self.no_data(file, place.path, why).into());
        }
        Ok(data)
    }

    /// Adds the answer of one layer.
    fn add(&self, step: Step, partial: &mut Partial<'_>) -> Result<()> {
        let Hit { file, xattrs, opaque, ends } = match step {
            Step::Absent => return Ok(()),
            Step::End => {
                partial.ended = true;
                return self.require_arrived(&partial.search);
            }
            Step::Hit(hit) => hit,
        };
        partial.ended = ends;
        match (&mut partial.meaning, file.node.file_type) {
            (Meaning::Directory(merged), _) => merged.parts.push(file),
            (meaning, FileType::Directory) => {
                partial.search.aim = Aim::Directory;
                *meaning = Meaning::Directory(Merged { parts: vec![file], xattrs, opaque });
            }
            // A file without data leads to the one that has it.
            (meaning, _) if ends => *meaning = Meaning::File(file),
            (_, _) => {}
        }
        Ok(())
    }

    /// Looks for `search` in the layer of `base`, a directory at hand or the layer's root.
    fn step(&self, base: &Found, place: Place<'_>, search: &mut Search<'_>) -> Result<Step> {
        let merged = if search.from_root { b"" } else { place.directory };
        let renamed = base.own_path.is_some() || search.moved;
        let (mut inner, mut start, mut ends) = (None, 0, false);
        loop {
            let directory = inner.as_ref().unwrap_or(base);
            let rest = search.sought.get(start..).unwrap_or_default();
            let name = rest.split(|byte| *byte == b'/').next().unwrap_or_default();
            let end = start + name.len();
            let is_last = name.len() == rest.len();
            let at = directory.at(merged);
            let Some(node) = self.of(directory).lookup(at, name)? else {
                return Ok(if ends { Step::End } else { Step::Absent });
            };
            let own_path = renamed.then(|| join(at.path, name).into());
            let mut file = Found { layer: base.layer, node, holds_whiteouts: false, own_path };
            if self.is_whiteout(directory, &file, place.path)? {
                return Ok(Step::End);
            }
            let is_directory = file.node.file_type == FileType::Directory;
            let fits = match search.aim {
                _ if !is_last => is_directory,
                Aim::Anything => true,
                Aim::Directory => is_directory,
                Aim::Data => file.node.file_type == FileType::Regular,
            };
            if !fits {
                return Ok(Step::End);
            }
            if !is_directory && search.aim == Aim::Anything {
                // Whether its data is in a lower layer matters only when it is read: see `data`.
                search.astray = None;
                return Ok(Step::Hit(Hit { file, xattrs: Vec::new(), opaque: false, ends: true }));
            }
            let (xattrs, marks) = self.xattrs(&file, place.path)?;
            file.holds_whiteouts = marks.holds_whiteouts;
            if is_last {
                search.astray = None;
            }
            if is_directory {
                ends |= marks.opaque;
            } else {
                ends = self.require_metacopy(&file, place.path, &marks)? == Metacopy::None;
            }
            let leads_on = if is_directory { !marks.opaque } else { !ends };
            if leads_on && let Some(target) = &marks.redirect {
                self.require_followed(&file, place.path, target)?;
                let rest = search.sought.get(end..).unwrap_or_default();
                let (head, target) = match target.strip_prefix(b"/") {
                    Some(path) => {
                        // Also out of a directory that hides what is below it.
                        (search.from_root, ends) = (true, false);
                        (&b""[..], path)
                    }
                    None => (search.sought.get(..start).unwrap_or_default(), target.as_slice()),
                };
                let next = head.len() + target.len();
                let sought = [head, target, rest].concat();
                if sought.len() > PATH_BYTES {
                    return Err(self.no_redirect(&file, place.path, "it makes too long a path").into());
                }
                search.moved = true;
                if is_last {
                    search.astray = Some((file.layer, file.at(place.path).path.to_vec()));
                }
                search.sought = Cow::Owned(sought);
                start = next + 1;
            } else {
                start = end + 1;
            }
            if is_last {
                return Ok(Step::Hit(Hit { file, xattrs, opaque: marks.opaque, ends }));
            }
            inner = Some(file);
        }
    }

    /// Whether the kernel follows redirects and `metacopy` of `file`: mounted with `userxattr`, it refuses to.
    fn follows(&self, file: &Found) -> bool {
        self.of(file).control_prefix() == Control::Trusted.prefix()
    }

    /// Errors when a redirect cannot be followed.
    fn require_followed(&self, file: &Found, path: &[u8], target: &[u8]) -> Result<()> {
        let names = target.strip_prefix(b"/").unwrap_or(target);
        let why = if !self.follows(file) {
            "the kernel follows none in user.overlay."
        } else if target.len() > PATH_BYTES
            || names.split(|byte| *byte == b'/').any(|name| name.len() > NAME_BYTES)
        {
            "it is too long"
        } else if names.contains(&0)
            || names.split(|byte| *byte == b'/').any(|name| matches!(name, b"" | b"." | b".."))
        {
            "it is no path"
        } else if !target.starts_with(b"/") && names.contains(&b'/') {
            "it is neither a name nor a path from the root"
        } else {
            return Ok(());
        };
        Err(self.no_redirect(file, path, why).into())
    }

    /// The attribute `metacopy` of `file`. Errors when it cannot be followed.
    fn require_metacopy(&self, file: &Found, path: &[u8], marks: &Marks) -> Result<Metacopy> {
        let why = match marks.metacopy {
            Metacopy::None => return Ok(Metacopy::None),
            _ if !self.follows(file) => "the kernel follows none in user.overlay.",
            Metacopy::Plain => return Ok(Metacopy::Plain),
            Metacopy::Digest => "it has an fs-verity digest, which is not compared with the data",
            Metacopy::Malformed => "its value is malformed",
        };
        Err(self.no_data(file, path, why).into())
    }

    /// Errors when the last redirect led nowhere: the layers are not those that it was made on.
    fn require_arrived(&self, search: &Search<'_>) -> Result<()> {
        let Some((layer, path)) = &search.astray else { return Ok(()) };
        let why = format!("no layer below has {}", Quoted(&search.sought));
        let layer = self.layer(*layer).name().to_owned();
        Err(StackError::Redirect { layer, path: path.clone(), why }.into())
    }

    fn no_redirect(&self, file: &Found, path: &[u8], why: &str) -> StackError {
        let layer = self.of(file).name().to_owned();
        StackError::Redirect { layer, path: file.at(path).path.to_vec(), why: why.to_owned() }
    }

    fn no_data(&self, file: &Found, path: &[u8], why: impl Into<String>) -> StackError {
        let layer = self.of(file).name().to_owned();
        StackError::Metacopy { layer, path: file.at(path).path.to_vec(), why: why.into() }
    }

    /// Whether `file` is a whiteout: its name is deleted.
    fn is_whiteout(&self, directory: &Found, file: &Found, path: &[u8]) -> Result<bool> {
        let node = &file.node;
        Ok(match node.file_type {
            FileType::CharDevice => node.device == Device::WHITEOUT,
            FileType::Regular if directory.holds_whiteouts && node.size_bytes == 0 => {
                self.xattrs(file, path)?.1.whiteout
            }
            _ => false,
        })
    }
}

/// Number of directories that both lists end in. They must be in layers that both stacks end in, because a redirect
/// from another layer leads into different ones.
pub(crate) fn common_tail(a: &[Found], b: &[Found], ends_both: impl Fn(usize) -> bool) -> usize {
    a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a.is(b) && ends_both(a.layer)).count()
}

/// `name` in `directory`.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}
