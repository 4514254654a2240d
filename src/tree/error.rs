//! Refusals of entries that have no place in a [`super::Tree`].

use super::{path::PathError, whiteout::WhiteoutError};
use crate::{
    error::{Classify, Kind},
    limits,
};

/// Refusal of an entry by the tree.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// The name is malformed, too long, or leads outside the root.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A marker deletes nothing.
    #[error(transparent)]
    Whiteout(#[from] WhiteoutError),
    /// A directory on the way has a name that begins like a whiteout.
    #[error("directory name {0} begins like a whiteout")]
    Reserved(String),
    /// The root is named by an entry that is no directory.
    #[error("the root is named as something other than a directory")]
    Root,
    /// The parent is a file, device or fifo.
    #[error("parent {0} is neither a directory nor a symbolic link")]
    Parent(String),
    /// Symbolic links of the layer lead more than 4096 directories deep.
    #[error("a directory lies more than {} directories deep", limits::DIRECTORY_DEPTH)]
    Depth,
    /// More than 40 symbolic links are on the way to the parent.
    #[error("more than {} symbolic links lead to the parent", limits::SYMLINK_HOPS)]
    Loop,
    /// The target of a hard link does not exist at this point of the layer.
    #[error("hard link target {0} does not exist at this point of the layer")]
    LinkMissing(String),
    /// The target of a hard link is a directory or a whiteout.
    #[error("hard link target {0} is a {1}")]
    LinkType(String, &'static str),
    /// A symbolic link's target is empty, too long, or holds a NUL.
    #[error(
        "symbolic link target of {len} bytes is not 1 to {} bytes without NUL",
        limits::LINK_TARGET_BYTES
    )]
    SymlinkTarget {
        /// Length of the target in bytes.
        len: usize,
    },
    /// The entries merged into one directory have more than 240 KiB of attributes.
    #[error("extended attributes of one directory exceed {} bytes", limits::XATTR_SUM_BYTES)]
    XattrSum,
    /// The layer has more entries, implied directories and whiteouts than allowed.
    #[error("more than {limit} nodes")]
    Nodes {
        /// Most nodes allowed.
        limit: u64,
    },
    /// The tree needs more memory than allowed.
    #[error("the layer's metadata exceeds {limit} bytes of memory")]
    Memory {
        /// Most memory allowed, in bytes.
        limit: u64,
    },
    /// Following symbolic links in parents takes more steps than any real layer needs.
    #[error("symbolic links in parent directories take too many steps to follow")]
    LinkSteps,
}

impl Classify for TreeError {
    fn kind(&self) -> Kind {
        match self {
            Self::XattrSum | Self::Depth | Self::Nodes { .. } | Self::Memory { .. } | Self::LinkSteps => {
                Kind::Exhausted
            }
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Path(error) => error.reason(),
            Self::Whiteout(error) => error.reason(),
            Self::Reserved(_) => "tree.whiteout.parent",
            Self::Root => "tree.root.type",
            Self::Parent(_) => "tree.parent",
            Self::Loop => "tree.symlink.loop",
            Self::LinkMissing(_) | Self::LinkType(..) => "tree.hardlink.target",
            Self::SymlinkTarget { .. } => "tree.symlink.target",
            Self::XattrSum => "limit.xattr-sum",
            Self::Depth => "limit.depth",
            Self::Nodes { .. } => "limit.nodes",
            Self::Memory { .. } => "limit.metadata",
            Self::LinkSteps => "limit.link-steps",
        }
    }
}
