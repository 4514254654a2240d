//! Finds the parent directory of an entry, through symbolic links of the layer itself.
//!
//! Links are followed as in a process with the image as its root: absolute targets begin at the
//! root, `..` at the root stays there, and at most [`limits::SYMLINK_HOPS`] links are followed in
//! all. Missing directories on the way are created. The tree remembers where a link leads until a
//! directory or a link is removed, so a chain of links that every entry uses is followed once.

use super::{
    DirectoryId, FileType, TreeError,
    names::Target,
    nodes::{LastParent, Tree},
    path::PathError,
};
use crate::{error::Quoted, limits};

/// Way from the root to a parent directory: its cleaned components, or the directory if that is
/// known.
pub(super) struct Way<'a> {
    components: Vec<&'a [u8]>,
    known: Option<u32>,
    /// Spelling of the way, by which the next entry recognises it.
    spelling: Option<&'a [u8]>,
}

/// Reason why a parent was not found, when none may be created.
pub(super) enum Missing {
    /// A component does not exist.
    Nothing,
    /// The way cannot be followed.
    Refused(TreeError),
}

/// Link target that is being followed.
struct Frame {
    link: u32,
    /// Byte in the tree's store of targets at which the rest of the target starts.
    offset: u32,
    len: usize,
    /// Number of links followed before this one's target, itself included.
    hops: u32,
}

impl<'a> Way<'a> {
    /// Way to the parent of `name`, and the last component, if the name is spelled plainly and has
    /// the same parent as the last entry.
    pub fn recall(last_parent: &LastParent, name: &'a [u8], generation: u32) -> Option<(Self, &'a [u8])> {
        if !last_parent.is_set || last_parent.generation != generation || name.len() > limits::PATH_BYTES {
            return None;
        }
        let trimmed = name.strip_suffix(b"/").unwrap_or(name);
        let last = trimmed.strip_prefix(last_parent.spelling.as_slice())?;
        let plain = (1..=limits::NAME_BYTES).contains(&last.len())
            && last != b"."
            && last != b".."
            && !last.iter().any(|byte| matches!(byte, b'/' | 0));
        plain.then(|| {
            (Self { components: Vec::new(), known: Some(last_parent.directory), spelling: None }, last)
        })
    }

    /// Way along `components`, the cleaned form of the part of `name` before the last component.
    pub fn new(name: &'a [u8], components: Vec<&'a [u8]>) -> Self {
        let trimmed = name.strip_suffix(b"/").unwrap_or(name);
        let end = trimmed.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let last = trimmed.get(end..).unwrap_or_default();
        // When the last component is `..` or empty, the way is not the part before it.
        let plain = !matches!(last, b"" | b"." | b"..");
        Self { components, known: None, spelling: if plain { trimmed.get(..end) } else { None } }
    }

    /// Directory at the end of the way. Missing directories are created.
    pub fn resolve<P: Copy + Default>(
        self,
        tree: &mut Tree<P>,
        freed: &mut Vec<P>,
    ) -> Result<u32, TreeError> {
        if let Some(known) = self.known {
            return Ok(known);
        }
        let directory = walk(tree, &self.components, Some(freed)).map_err(|missing| match missing {
            Missing::Refused(error) => error,
            Missing::Nothing => TreeError::Parent(Quoted(&self.components.join(&b'/')).to_string()),
        })?;
        if let Some(spelling) = self.spelling {
            tree.last_parent.spelling.clear();
            tree.last_parent.spelling.extend_from_slice(spelling);
            tree.last_parent.directory = directory;
            tree.last_parent.generation = tree.generation;
            tree.last_parent.is_set = true;
        }
        Ok(directory)
    }

    /// Directory at the end of the way. Errors: [`Missing`] when it does not exist or the way
    /// cannot be followed.
    pub fn look_up<P: Copy + Default>(self, tree: &mut Tree<P>) -> Result<u32, Missing> {
        match self.known {
            Some(known) => Ok(known),
            None => walk(tree, &self.components, None),
        }
    }
}

/// Follows `components` from the root. With a list `freed`, missing directories are created, also
/// in place of whiteouts.
fn walk<P: Copy + Default>(
    tree: &mut Tree<P>,
    components: &[&[u8]],
    mut freed: Option<&mut Vec<P>>,
) -> Result<u32, Missing> {
    let root = DirectoryId::ROOT.0;
    let mut directory = root;
    let mut hops = 0;
    let mut frames: Vec<Frame> = Vec::new();
    let mut components = components.iter();
    // The component is copied, because creating a directory may move the store of targets.
    let mut from_target = Vec::new();
    loop {
        let component: &[u8] = match frames.last_mut() {
            Some(frame) if frame.len == 0 => {
                let link = tree.links.get_mut(frame.link);
                link.directory = directory;
                link.hops = u16::try_from(hops - frame.hops).unwrap_or(u16::MAX);
                link.generation = tree.generation;
                frames.pop();
                continue;
            }
            Some(frame) => {
                let rest = tree.targets.get(frame.offset, frame.len);
                let len = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
                from_target.clear();
                from_target.extend_from_slice(rest.get(..len).unwrap_or_default());
                let used = (len + 1).min(frame.len);
                frame.len -= used;
                frame.offset += u32::try_from(used).unwrap_or(u32::MAX);
                &from_target
            }
            None => match components.next() {
                Some(component) => component,
                None => return Ok(directory),
            },
        };
        match component {
            b"" | b"." => continue,
            b".." => {
                directory = tree.parent(DirectoryId(directory)).0;
                continue;
            }
            name if name.len() > limits::NAME_BYTES => {
                return Err(Missing::Refused(PathError::ComponentTooLong { len: name.len() }.into()));
            }
            _ => {}
        }
        let file = match tree.names.find(directory, component).map(|name| tree.names.get(name).target()) {
            Some(Target::Directory(number)) => {
                directory = number;
                continue;
            }
            Some(Target::File(file)) => Some(tree.files.get(file)),
            None => None,
        };
        match file {
            Some(file) if file.file_type == FileType::Symlink => {
                hops += 1;
                let link = tree.links.get(file.link);
                let frame = Frame { link: file.link, offset: link.offset, len: usize::from(link.len), hops };
                // With another name the link may lie in a second directory too, from which it leads
                // elsewhere.
                if link.generation == tree.generation && file.nlink == 1 {
                    hops += u32::from(link.hops);
                    directory = link.directory;
                } else {
                    // Only links that are really followed count; remembered ones cost nothing.
                    let left = tree.link_steps.checked_sub(u64::from(link.len));
                    tree.link_steps = left.ok_or(Missing::Refused(TreeError::LinkSteps))?;
                    if tree.targets.get(frame.offset, frame.len).first() == Some(&b'/') {
                        directory = root;
                    }
                    frames.push(frame);
                }
                if hops > limits::SYMLINK_HOPS {
                    return Err(Missing::Refused(TreeError::Loop));
                }
            }
            Some(file) if !file.whiteout => {
                return Err(Missing::Refused(TreeError::Parent(Quoted(component).to_string())));
            }
            _ => {
                let freed = freed.as_deref_mut().ok_or(Missing::Nothing)?;
                directory = tree.imply(directory, component, freed).map_err(Missing::Refused)?;
            }
        }
    }
}
