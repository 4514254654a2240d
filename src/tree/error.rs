//! Why an entry has no place in a [`super::Tree`].

use super::{path::PathError, whiteout::WhiteoutError};
use crate::{
    error::{Classify, Kind},
    limits,
};

/// Why an entry is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// The name is not one inside the root.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A marker that deletes nothing.
    #[error(transparent)]
    Whiteout(#[from] WhiteoutError),
    /// A marker's name where a directory's should be.
    #[error("directory name {0} begins like a whiteout")]
    Reserved(String),
    /// Only a directory can be the root.
    #[error("the root is named as something other than a directory")]
    Root,
    /// The parent is a file, device or fifo.
    #[error("parent {0} is neither a directory nor a symbolic link")]
    Parent(String),
    /// Links of the layer lead to directories deeper than any reader follows.
    #[error("a directory lies more than {} directories deep", limits::DIRECTORY_DEPTH)]
    Depth,
    /// Too many symbolic links on the way to the parent.
    #[error("more than {} symbolic links lead to the parent", limits::SYMLINK_HOPS)]
    Loop,
    /// The target of a hard link is not there.
    #[error("hard link target {0} does not exist at this point of the layer")]
    LinkMissing(String),
    /// The target of a hard link is a directory or a whiteout.
    #[error("hard link target {0} is a {1}")]
    LinkType(String, &'static str),
    /// A symbolic link's target is empty, too long, or holds NUL.
    #[error(
        "symbolic link target of {len} bytes is not 1 to {} bytes without NUL",
        limits::LINK_TARGET_BYTES
    )]
    SymlinkTarget {
        /// Its length in bytes.
        len: usize,
    },
    /// The entries merged into one directory have too many attributes.
    #[error("extended attributes of one directory exceed {} bytes", limits::XATTR_SUM_BYTES)]
    XattrSum,
    /// Too many names.
    #[error("more than {limit} nodes")]
    Nodes {
        /// The limit.
        limit: u64,
    },
    /// Too much memory.
    #[error("the layer's metadata exceeds {limit} bytes of memory")]
    Memory {
        /// The limit in bytes.
        limit: u64,
    },
    /// Symbolic links in parents cost more than any layer's worth of following.
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
