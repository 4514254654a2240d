//! Checks of extended attributes: every name once, findable through the filter, and none that
//! reaches into other layers.
//!
//! Source: Linux `fs/erofs/xattr.c`, `fs/overlayfs/overlayfs.h`.

use std::collections::HashSet;

use super::{CheckError, Notes, Policy, Rule};
use crate::{
    error::Quoted,
    format::{
        ReadAt,
        erofs::{
            reader::{Image, Node, XattrEntry},
            superblock::{Superblock, compat},
            xattr::{BodyHeader, EntryHeader, Prefix, filter_bit},
        },
    },
    tree::{FileType, xattr},
};

/// State of the attribute check, kept from inode to inode.
pub(super) struct XattrCheck {
    /// True when the superblock promises name filters.
    filtered: bool,
    /// Ids of the shared entries in use.
    shared: HashSet<u32>,
    /// Names of the current inode, joined, and the range of each.
    names: Vec<u8>,
    spans: Vec<(usize, usize)>,
    name: Vec<u8>,
}

impl XattrCheck {
    pub(super) fn new(superblock: &Superblock) -> Self {
        Self {
            filtered: superblock.has_compat(compat::XATTR_FILTER) && superblock.xattr_filter_reserved == 0,
            shared: HashSet::new(),
            names: Vec::new(),
            spans: Vec::new(),
            name: Vec::new(),
        }
    }

    /// Memory held by the check, in bytes.
    pub(super) fn memory_bytes(&self) -> u64 {
        // A set entry takes its key and one control byte.
        (self.shared.capacity() * (size_of::<u32>() + 1) + self.names.capacity()) as u64
    }

    /// Ids of all shared entries in use, ascending.
    pub(super) fn shared_ids(&mut self) -> Vec<u32> {
        let mut ids: Vec<u32> = std::mem::take(&mut self.shared).into_iter().collect();
        ids.sort_unstable();
        ids
    }

    /// Checks the attributes of one inode. Returns true when it has any.
    pub(super) fn check<R: ReadAt>(
        &mut self,
        image: &Image<R>,
        policy: &Policy,
        node: &Node,
        notes: &mut Notes,
    ) -> Result<bool, CheckError> {
        self.names.clear();
        self.spans.clear();
        let mut walk = image.xattr_entries(node)?;
        let mut header = [0; BodyHeader::LEN];
        image.read_at(node.xattr_start(), &mut header, "xattr body")?;
        if BodyHeader::decode(&header).encode() != header {
            notes.lint(Rule::Reserved, Some(node.nid), || {
                "reserved bytes of the attributes are not zero".into()
            });
        }
        while let Some(entry) = walk.next_entry()? {
            if let Some(id) = entry.shared {
                self.shared.insert(id);
            }
            padding(image, node, &entry, notes)?;
            let name = image.xattr_name(node.nid, &entry, &mut self.name)?;
            let after_base = self.name.get(name.base_len..).unwrap_or_default();
            if self.filtered && walk.name_filter() & filter_bit(name.base.index(), after_base) != 0 {
                let detail = format!("the filter {:#010x} hides {}", walk.name_filter(), self.text());
                return Err(CheckError::inode(Rule::XattrFilter, node.nid, detail));
            }
            if name.base == Prefix::Lustre {
                notes.lint(Rule::Prefix, Some(node.nid), || format!("no kernel reads {}", self.text()));
            }
            self.readable(image, node, &entry)?;
            if !policy.overlay_control {
                self.overlay(image, node, &entry)?;
            }
            let start = self.names.len();
            self.names.extend_from_slice(&self.name);
            self.spans.push((start, self.names.len()));
        }
        self.each_once(node)?;
        Ok(!self.spans.is_empty())
    }

    /// Refuses attributes that a kernel lists but does not return: copying such a file would fail.
    fn readable<R: ReadAt>(
        &self,
        image: &Image<R>,
        node: &Node,
        entry: &XattrEntry,
    ) -> Result<(), CheckError> {
        let file_type = node.inode.file_type;
        // For other attributes only the name matters.
        let value = match self.name.as_slice() {
            b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => {
                image.xattr_value(entry)?
            }
            _ => Vec::new(),
        };
        let (rule, detail) = match xattr::is_settable(&self.name, &value, file_type) {
            Ok(true) => return Ok(()),
            // The list has no entries, or another version.
            Ok(false) if !value.is_empty() && file_type != FileType::Symlink => {
                (Rule::XattrValue, format!("no kernel reads {} with {} bytes", self.text(), value.len()))
            }
            Ok(false) => (Rule::XattrType, format!("{file_type:?} with the attribute {}", self.text())),
            Err(error) => (Rule::XattrValue, error.to_string()),
        };
        Err(CheckError::inode(rule, node.nid, detail))
    }

    /// Refuses attributes by which a layer could make overlayfs look into another layer.
    ///
    /// Two are allowed on directories: an opaque mark, which hides lower layers, and an empty
    /// origin, which only says that the directory holds whiteouts.
    fn overlay<R: ReadAt>(
        &self,
        image: &Image<R>,
        node: &Node,
        entry: &XattrEntry,
    ) -> Result<(), CheckError> {
        let scoped = self.name.strip_prefix(b"trusted.").or_else(|| self.name.strip_prefix(b"user."));
        let Some(control) = scoped.and_then(|rest| rest.strip_prefix(b"overlay.")) else { return Ok(()) };
        let allowed = node.inode.file_type == FileType::Directory
            && match control {
                b"opaque" => entry.header.value_size == 1 && image.xattr_value(entry)? == b"y",
                b"origin" => entry.header.value_size == 0,
                _ => false,
            };
        if allowed {
            return Ok(());
        }
        let detail = format!("{} with {} bytes is not allowed", self.text(), entry.header.value_size);
        Err(CheckError::inode(Rule::Overlay, node.nid, detail))
    }

    fn each_once(&mut self, node: &Node) -> Result<(), CheckError> {
        let names = &self.names;
        let bytes = |span: &(usize, usize)| names.get(span.0..span.1).unwrap_or_default();
        self.spans.sort_unstable_by(|a, b| bytes(a).cmp(bytes(b)));
        let twice = self.spans.windows(2).find_map(|pair| match pair {
            [a, b] if bytes(a) == bytes(b) => Some(bytes(a)),
            _ => None,
        });
        match twice {
            None => Ok(()),
            Some(name) => {
                let detail = format!("the attribute {} is there twice", Quoted(name));
                Err(CheckError::inode(Rule::XattrTwice, node.nid, detail))
            }
        }
    }

    fn text(&self) -> Quoted<'_> {
        Quoted(&self.name)
    }
}

/// Lints the padding after an inode's own entry.
fn padding<R: ReadAt>(
    image: &Image<R>,
    node: &Node,
    entry: &XattrEntry,
    notes: &mut Notes,
) -> Result<(), CheckError> {
    let len = entry.header.entry_len();
    let count = usize::try_from(len.padded - len.exact).unwrap_or(0);
    if entry.shared.is_some() || count == 0 {
        return Ok(());
    }
    let mut bytes = [0; EntryHeader::LEN - 1];
    let bytes = bytes.get_mut(..count).unwrap_or_default();
    image.read_at(entry.position + len.exact, bytes, "xattr padding")?;
    if bytes.iter().any(|byte| *byte != 0) {
        notes.lint(Rule::Padding, Some(node.nid), || "bytes after an attribute are not zero".into());
    }
    Ok(())
}
