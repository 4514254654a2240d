//! Merged directories: what a name means where several layers have a directory.
//!
//! As overlayfs does it: the topmost layer that has the name decides, directories continue in the layers
//! below until one is opaque or no directory, whiteouts end the search. The root is the merge of all roots.
//!
//! Source: Linux `fs/overlayfs/namei.c`, `ovl_lookup`; `Documentation/filesystems/overlayfs.rst`.

use super::{ChangesError, xattrs::Control};
use crate::{
    compare::layer::{At, Layer, Node},
    error::Result,
    tree::{Device, FileType, Xattr},
};

/// A file of one of the layers.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Which layer.
    pub layer: usize,
    pub node: Node,
    /// A directory that may hold whiteouts in the form of an attribute.
    pub holds_whiteouts: bool,
}

impl Found {
    /// Whether both are one inode.
    pub fn is(&self, other: &Self) -> bool {
        (self.layer, self.node.volume, self.node.inode) == (other.layer, other.node.volume, other.node.inode)
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

/// What a name means.
#[derive(Clone, Debug, Default)]
pub(super) enum Meaning {
    #[default]
    Nothing,
    File(Found),
    Directory(Merged),
}

/// What a name means in some layers, and whether layers below them have a say as well.
#[derive(Debug, Default)]
pub(super) struct Partial {
    pub meaning: Meaning,
    pub ended: bool,
}

impl Partial {
    /// True when none of the layers has the name, not even to delete it.
    pub fn is_unheard_of(&self) -> bool {
        matches!(self.meaning, Meaning::Nothing) && !self.ended
    }

    /// What the name means when it means `below` in the layers below.
    pub fn over(self, below: impl FnOnce() -> Result<Meaning>) -> Result<Meaning> {
        if self.ended {
            return Ok(self.meaning);
        }
        Ok(match (self.meaning, below()?) {
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
            let mut root = Found { layer: *layer, node, holds_whiteouts: false };
            // That a root is opaque means nothing to overlayfs.
            let (xattrs, control) = self.xattrs(&root, b"")?;
            root.holds_whiteouts = control.holds_whiteouts;
            if merged.parts.is_empty() {
                merged.xattrs = xattrs;
            }
            merged.parts.push(root);
        }
        Ok(merged)
    }

    /// The attributes of `file`, which lies at `path`. Errors when they make its layer incomplete.
    pub fn xattrs(&self, file: &Found, path: &[u8]) -> Result<(Vec<Xattr>, Control)> {
        let layer = self.of(file);
        let xattrs = layer.xattrs(At { path, node: &file.node })?;
        let control = Control::read(&xattrs, layer.control_prefix());
        let (name, path) = (|| layer.name().to_owned(), || path.to_vec());
        if control.redirect {
            return Err(ChangesError::Redirect { layer: name(), path: path() }.into());
        }
        if control.metacopy {
            return Err(ChangesError::Metacopy { layer: name(), path: path() }.into());
        }
        Ok((xattrs, control))
    }

    /// What the last component of `path` means in `parts`, directories at `directory`.
    pub fn resolve(&self, parts: &[Found], directory: &[u8], path: &[u8], name: &[u8]) -> Result<Partial> {
        let mut found = Partial::default();
        for part in parts {
            let layer = self.of(part);
            let Some(node) = layer.lookup(At { path: directory, node: &part.node }, name)? else { continue };
            let mut file = Found { layer: part.layer, node, holds_whiteouts: false };
            if self.is_whiteout(part, &file, path)? {
                found.ended = true;
            } else if file.node.file_type == FileType::Directory {
                let (xattrs, control) = self.xattrs(&file, path)?;
                file.holds_whiteouts = control.holds_whiteouts;
                found.ended = control.opaque;
                match &mut found.meaning {
                    Meaning::Directory(merged) => merged.parts.push(file),
                    meaning => {
                        let merged = Merged { parts: vec![file], xattrs, opaque: control.opaque };
                        *meaning = Meaning::Directory(merged);
                    }
                }
            } else {
                found.ended = true;
                if let Meaning::Nothing = found.meaning {
                    found.meaning = Meaning::File(file);
                }
            }
            if found.ended {
                break;
            }
        }
        Ok(found)
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

/// How many directories at the end of both lists are the same.
pub(super) fn common_tail(a: &[Found], b: &[Found]) -> usize {
    a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a.is(b)).count()
}
