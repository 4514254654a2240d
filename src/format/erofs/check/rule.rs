//! The rules an image is held to beyond being readable, each with its stable reason id.
//!
//! Listed with their reasons in `docs/formats/erofs.md`.

use crate::{
    error::{Classify, Kind},
    format::erofs::{Nid, reader::ReadError},
};

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $reason:literal,)*) => {
        /// A rule. Breaking a lint is legal for the kernel but not what a good writer does; breaking any
        /// other refuses the image.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Rule {
            $($(#[$doc])* $name,)*
        }

        impl Rule {
            /// Every rule.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The stable reason id.
            pub fn reason(self) -> &'static str {
                match self {
                    $(Self::$name => $reason,)*
                }
            }
        }
    };
}

rules! {
    /// The file is shorter than the blocks the superblock declares.
    Blocks = "erofs.superblock.blocks",
    /// The block size is not one that the policy allows.
    BlockSize = "erofs.policy.block-size",
    /// A feature bit is not on the policy's list.
    Feature = "erofs.policy.feature",
    /// A field of the superblock contradicts its features.
    Field = "erofs.superblock.field",
    /// The image refers to extra devices and the policy refuses that.
    Devices = "erofs.policy.devices",
    /// A device overlaps the image or ends outside its file.
    DeviceRange = "erofs.device.range",
    /// A directory has no `.`, or one that leads elsewhere.
    Dot = "erofs.directory.dot",
    /// A directory has no `..`, or one that does not lead to its parent.
    DotDot = "erofs.directory.dotdot",
    /// A directory is listed twice, or below itself.
    Twice = "erofs.directory.twice",
    /// Directories nest too deep.
    Depth = "erofs.directory.depth",
    /// The inode is in a short form that came with 48-bit addresses, which the image does not have.
    Format = "erofs.inode.format",
    /// The size is one whose blocks a kernel cannot count.
    Size = "erofs.inode.size",
    /// The owner or group is one that means "none".
    Owner = "erofs.inode.owner",
    /// A directory, symbolic link or special file is stored as no writer stores one.
    Layout = "erofs.inode.layout",
    /// The packed file is no regular file.
    Packed = "erofs.packed",
    /// A record's type is not that of its inode, or two records disagree.
    EntryType = "erofs.dirent.mismatch",
    /// An inline file ends on a block boundary, where readers disagree.
    WholeTail = "erofs.inode.whole-tail",
    /// Two uses of the same bytes.
    Overlap = "erofs.overlap",
    /// Something lies outside the blocks that the superblock or the device slot declares.
    Undeclared = "erofs.undeclared",
    /// The name filter denies an attribute that is there.
    XattrFilter = "erofs.xattr.filter",
    /// An attribute is there twice.
    XattrTwice = "erofs.xattr.twice",
    /// An attribute that files of this type cannot have: listed, but not to be read.
    XattrType = "erofs.xattr.type",
    /// An access-control list or capability that a kernel does not read.
    XattrValue = "erofs.xattr.value",
    /// An attribute steers overlayfs in a way that the policy refuses.
    Overlay = "erofs.policy.overlay",

    /// Lint: the link count is not the number of names.
    Links = "erofs.lint.links",
    /// Lint: the superblock's number of inodes is wrong.
    Inos = "erofs.lint.inos",
    /// Lint: reserved bytes are not zero.
    Reserved = "erofs.lint.reserved",
    /// Lint: bytes between records are not zero.
    Padding = "erofs.lint.padding",
    /// Lint: bytes after the names of a directory block, or reserved ones of a record, are not zero.
    Fill = "erofs.lint.directory-fill",
    /// Lint: nanoseconds above a second.
    Time = "erofs.lint.time",
    /// Lint: a special file with a size or a data layout.
    Special = "erofs.lint.special",
    /// Lint: a whiteout with attributes, which overlayfs ignores.
    Whiteout = "erofs.lint.whiteout",
    /// Lint: two files share data blocks.
    Shared = "erofs.lint.shared-data",
    /// Lint: a hole in a flat file, which kernels before 6.15 do not know.
    FlatHole = "erofs.lint.flat-hole",
    /// Lint: a feature bit that nothing uses, or a use without its bit.
    Unused = "erofs.lint.feature",
    /// Lint: an attribute whose prefix no kernel reads.
    Prefix = "erofs.lint.xattr-prefix",
    /// Lint: compressed data, which was not decoded.
    Unchecked = "erofs.lint.unchecked",
}

impl Rule {
    /// True for rules that only advise.
    pub fn is_lint(self) -> bool {
        self >= Self::Links
    }
}

/// Why an image is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// It cannot even be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A rule about the whole image is broken.
    #[error("{detail}")]
    Image {
        /// The rule.
        rule: Rule,
        /// What was found.
        detail: String,
    },
    /// A rule about one inode is broken.
    #[error("inode {nid}: {detail}")]
    Inode {
        /// The rule.
        rule: Rule,
        /// The inode.
        nid: Nid,
        /// What was found.
        detail: String,
    },
    /// More records than the policy allows.
    #[error("the image has more than {limit} directory records")]
    Nodes {
        /// The limit.
        limit: u64,
    },
    /// The check would need more memory than the policy allows.
    #[error("checking the image takes more than {limit} bytes of memory")]
    Memory {
        /// The limit in bytes.
        limit: u64,
    },
}

impl CheckError {
    pub(super) fn image(rule: Rule, detail: impl Into<String>) -> Self {
        Self::Image { rule, detail: detail.into() }
    }

    pub(super) fn inode(rule: Rule, nid: Nid, detail: impl Into<String>) -> Self {
        Self::Inode { rule, nid, detail: detail.into() }
    }
}

impl Classify for CheckError {
    fn kind(&self) -> Kind {
        match self {
            Self::Read(error) => error.kind(),
            Self::Image { .. } | Self::Inode { .. } => Kind::Malformed,
            Self::Nodes { .. } | Self::Memory { .. } => Kind::Exhausted,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Read(error) => error.reason(),
            Self::Image { rule, .. } | Self::Inode { rule, .. } => rule.reason(),
            Self::Nodes { .. } => "limit.nodes",
            Self::Memory { .. } => "limit.metadata",
        }
    }
}
