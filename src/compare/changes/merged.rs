//! Merged directories: what a name means where several layers have a directory.
//!
//! As overlayfs does it: the topmost layer that has the name decides, directories continue in the layers
//! below until one is opaque or no directory, whiteouts end the search. The root is the merge of all roots.
//!
//! A renamed directory is continued under the name in its attribute `redirect`, and a file with `metacopy`
//! has its data in a layer below. A redirect leads into the layers below its own only, so no chain of them
//! is longer than the stack, and none is circular.
//!
//! Source: Linux `fs/overlayfs/namei.c`, `ovl_lookup`; `Documentation/filesystems/overlayfs.rst`.

use std::{borrow::Cow, sync::Arc};

use super::{
    ChangesError,
    xattrs::{Control, Metacopy},
};
use crate::{
    compare::layer::{At, Layer, Node},
    error::{Quoted, Result},
    limits::{NAME_BYTES, PATH_BYTES},
    tree::{Device, FileType, Xattr},
};

/// Begins the names of the attributes that the kernel follows: mounted with `userxattr`, it refuses to.
const TRUSTED: &[u8] = b"trusted.overlay.";

/// A file of one of the layers.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Which layer.
    pub layer: usize,
    pub node: Node,
    /// A directory that may hold whiteouts in the form of an attribute.
    pub holds_whiteouts: bool,
    /// Path in its layer, where a renamed directory above makes it another than in the merged tree.
    pub own_path: Option<Arc<[u8]>>,
}

impl Found {
    /// Whether both are one inode.
    pub fn is(&self, other: &Self) -> bool {
        (self.layer, self.node.volume, self.node.inode) == (other.layer, other.node.volume, other.node.inode)
    }

    /// The file in its layer; `path` is that in the merged tree.
    pub fn at<'a>(&'a self, path: &'a [u8]) -> At<'a> {
        At { path: self.own_path.as_deref().unwrap_or(path), node: &self.node }
    }

    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.own_path.as_ref().map_or(0, |path| path.len())
    }
}

/// A merged directory: the directories of the layers that have one, the newest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Merged {
    pub parts: Vec<Found>,
    /// Attributes of the first.
    pub xattrs: Vec<Xattr>,
    /// The first hides those of lower layers.
    pub opaque: bool,
}

impl Merged {
    /// Memory it holds, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let xattr = |xattr: &Xattr| size_of::<Xattr>() + xattr.name.len() + xattr.value.len();
        let parts = self.parts.iter().map(Found::memory_bytes).sum::<usize>();
        (size_of::<Self>() + parts + self.xattrs.iter().map(xattr).sum::<usize>()) as u64
    }
}

/// What a name means.
#[derive(Clone, Debug, Default)]
pub(super) enum Meaning {
    #[default]
    Nothing,
    File(Found),
    Directory(Merged),
}

/// A name, and where it is looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'p> {
    /// Directories that are merged, the newest first.
    pub parts: &'p [Found],
    /// The roots of the stack that they are in.
    pub roots: &'p [Found],
    /// Path of the merged directory.
    pub directory: &'p [u8],
    /// Path of the name.
    pub path: &'p [u8],
}

impl<'p> Place<'p> {
    /// A search for the name that has not begun.
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
pub(super) struct Search<'p> {
    /// A name in the directories at hand, or a path from the root of each layer.
    sought: Cow<'p, [u8]>,
    from_root: bool,
    /// A redirect was followed: what is sought is not what the search began with.
    moved: bool,
    aim: Aim,
    /// The last redirect, until it has led somewhere: its layer and the path there.
    astray: Option<(usize, Vec<u8>)>,
}

/// The answer of one layer.
enum Step {
    /// Nothing: the layers below are asked.
    Absent,
    /// Nothing, and layers below do not count.
    End,
    Hit(Hit),
}

struct Hit {
    file: Found,
    xattrs: Vec<Xattr>,
    opaque: bool,
    /// Layers below do not count.
    ends: bool,
}

/// What a name means in some layers, and whether layers below them have a say as well.
#[derive(Debug)]
pub(super) struct Partial<'p> {
    pub meaning: Meaning,
    pub ended: bool,
    search: Search<'p>,
}

impl<'p> Partial<'p> {
    /// True when none of the layers has the name, not even to delete it.
    pub fn is_unheard_of(&self) -> bool {
        matches!(self.meaning, Meaning::Nothing) && !self.ended
    }

    /// The name's meaning in all layers, given its meaning `below` in the layers below. A search that a
    /// redirect has led elsewhere is handed on.
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

/// All layers of both sides, each once.
#[derive(Clone, Copy)]
pub(super) struct Layers<'a>(pub &'a [&'a dyn Layer]);

impl Layers<'_> {
    /// The layer that has `file`.
    pub fn of(&self, file: &Found) -> &dyn Layer {
        self.layer(file.layer)
    }

    fn layer(&self, number: usize) -> &dyn Layer {
        *self.0.get(number).expect("a layer's number is its place in the list")
    }

    /// The merge of the roots of `stack`, the newest first.
    pub fn root(&self, stack: &[usize]) -> Result<Merged> {
        let mut merged = Merged::default();
        for layer in stack {
            let node = self.layer(*layer).root()?;
            let mut root = Found { layer: *layer, node, holds_whiteouts: false, own_path: None };
            // That a root is opaque or redirected means nothing to overlayfs.
            let (xattrs, control) = self.xattrs(&root, b"")?;
            root.holds_whiteouts = control.holds_whiteouts;
            if merged.parts.is_empty() {
                merged.xattrs = xattrs;
            }
            merged.parts.push(root);
        }
        Ok(merged)
    }

    /// The attributes of `file`, which is at `path` in the merged tree.
    pub fn xattrs(&self, file: &Found, path: &[u8]) -> Result<(Vec<Xattr>, Control)> {
        let layer = self.of(file);
        let xattrs = layer.xattrs(file.at(path))?;
        let control = Control::read(&xattrs, layer.control_prefix());
        Ok((xattrs, control))
    }

    /// Resolves the name at `place` in its parts, for a search that comes from the layers above them.
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

    /// Resolves the name at `place` when there are no layers below.
    pub fn meaning<'p>(&self, place: Place<'p>, search: Search<'p>) -> Result<Meaning> {
        let partial = self.resolve(place, search)?;
        self.require_arrived(&partial.search)?;
        Ok(partial.meaning)
    }

    /// The file that has the data of the file at `place`, whose metadata are those of `file`.
    pub fn data(&self, place: Place<'_>, file: &Found, control: &Control) -> Result<Found> {
        if file.node.file_type != FileType::Regular || control.metacopy == Metacopy::None {
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

    /// Adds what one layer says.
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
                // Whether its data are elsewhere is found out when they are asked for.
                search.astray = None;
                return Ok(Step::Hit(Hit { file, xattrs: Vec::new(), opaque: false, ends: true }));
            }
            let (xattrs, control) = self.xattrs(&file, place.path)?;
            file.holds_whiteouts = control.holds_whiteouts;
            if is_last {
                search.astray = None;
            }
            if is_directory {
                ends |= control.opaque;
            } else {
                ends = self.require_metacopy(&file, place.path, &control)? == Metacopy::None;
            }
            let leads_on = if is_directory { !control.opaque } else { !ends };
            if leads_on && let Some(target) = &control.redirect {
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
                return Ok(Step::Hit(Hit { file, xattrs, opaque: control.opaque, ends }));
            }
            inner = Some(file);
        }
    }

    /// Errors when a redirect cannot be followed.
    fn require_followed(&self, file: &Found, path: &[u8], target: &[u8]) -> Result<()> {
        let names = target.strip_prefix(b"/").unwrap_or(target);
        let why = if self.of(file).control_prefix() != TRUSTED {
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

    /// Errors when the attribute metacopy cannot be followed.
    fn require_metacopy(&self, file: &Found, path: &[u8], control: &Control) -> Result<Metacopy> {
        let why = match control.metacopy {
            Metacopy::None => return Ok(Metacopy::None),
            _ if self.of(file).control_prefix() != TRUSTED => "the kernel follows none in user.overlay.",
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
        Err(ChangesError::Redirect { layer, path: path.clone(), why }.into())
    }

    fn no_redirect(&self, file: &Found, path: &[u8], why: &str) -> ChangesError {
        let layer = self.of(file).name().to_owned();
        ChangesError::Redirect { layer, path: file.at(path).path.to_vec(), why: why.to_owned() }
    }

    fn no_data(&self, file: &Found, path: &[u8], why: impl Into<String>) -> ChangesError {
        let layer = self.of(file).name().to_owned();
        ChangesError::Metacopy { layer, path: file.at(path).path.to_vec(), why: why.into() }
    }

    /// Whether `file` says that its name is deleted.
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

/// How many directories at the end of both lists are the same, in layers that both stacks end in: a redirect
/// from another layer leads into different ones.
pub(super) fn common_tail(a: &[Found], b: &[Found], ends_both: impl Fn(usize) -> bool) -> usize {
    a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a.is(b) && ends_both(a.layer)).count()
}

/// `name` in `directory`.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}
