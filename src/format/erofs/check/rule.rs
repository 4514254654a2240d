//! Rules for images beyond being readable, each with a stable reason id.
//!
//! Listed with their reasons in `docs/formats/erofs.md`.

use crate::{
    error::{Classify, Kind},
    format::erofs::{Nid, reader::ReadError},
};

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $reason:literal,)*) => {
        /// Rule for images. A broken lint is legal for the kernel but not what a good writer does.
        /// Any other broken rule refuses the image.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Rule {
            $($(#[$doc])* $name,)*
        }

        impl Rule {
            /// All rules, in the order of the table in the document.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Reason id, which never changes between versions.
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
    /// The block size is larger than the policy allows.
    BlockSize = "erofs.policy.block-size",
    /// A feature bit is not on the policy's list.
    Feature = "erofs.policy.feature",
    /// A field of the superblock contradicts its features.
    Field = "erofs.superblock.field",
    /// The image refers to extra devices, which the policy refuses.
    Devices = "erofs.policy.devices",
    /// A device overlaps the image or ends outside its file.
    DeviceRange = "erofs.device.range",
    /// A directory without `.`, or whose `.` leads elsewhere.
    Dot = "erofs.directory.dot",
    /// A directory without `..`, or whose `..` does not lead to its parent.
    DotDot = "erofs.directory.dotdot",
    /// A directory is listed twice, or below itself.
    Twice = "erofs.directory.twice",
    /// Directories nest deeper than 4096 levels.
    Depth = "erofs.directory.depth",
    /// The inode has a short form that came with 48-bit addresses, which the image does not have.
    Format = "erofs.inode.format",
    /// The size is above 2^63 - 4096: the kernel cannot count its blocks.
    Size = "erofs.inode.size",
    /// The owner or group is 2^32 - 1, which stands for none.
    Owner = "erofs.inode.owner",
    /// A directory, symbolic link or special file has a data layout or a hole that no writer gives it.
    Layout = "erofs.inode.layout",
    /// The packed file is not a regular file.
    Packed = "erofs.packed",
    /// A record's type is not that of its inode, or two records disagree.
    EntryType = "erofs.dirent.mismatch",
    /// An inline file ends on a block boundary, where readers disagree.
    WholeTail = "erofs.inode.whole-tail",
    /// Some bytes are in use twice.
    Overlap = "erofs.overlap",
    /// Bytes in use lie outside the blocks that the superblock or the device slot declares.
    Undeclared = "erofs.undeclared",
    /// The name filter denies an attribute that exists.
    XattrFilter = "erofs.xattr.filter",
    /// One attribute name occurs twice on an inode.
    XattrTwice = "erofs.xattr.twice",
    /// An attribute that files of this type cannot have: the kernel lists it but does not return
    /// it.
    XattrType = "erofs.xattr.type",
    /// The kernel cannot read an access-control list or capability.
    XattrValue = "erofs.xattr.value",
    /// An attribute steers overlayfs in a way the policy refuses.
    Overlay = "erofs.policy.overlay",

    /// Lint: the link count differs from the number of names.
    Links = "erofs.lint.links",
    /// Lint: the superblock counts other inodes than were found.
    Inos = "erofs.lint.inos",
    /// Lint: reserved bytes are not zero.
    Reserved = "erofs.lint.reserved",
    /// Lint: bytes between records are not zero.
    Padding = "erofs.lint.padding",
    /// Lint: bytes after the names of a directory block, or reserved ones of a record, are not zero.
    Fill = "erofs.lint.directory-fill",
    /// Lint: nanoseconds of a time are 10^9 or more.
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
    /// Lint: an attribute prefix that no kernel reads.
    Prefix = "erofs.lint.xattr-prefix",
    /// Lint: compressed data, which was not decoded.
    Unchecked = "erofs.lint.unchecked",
}

/// Refusal of an image, or failure to read it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The reader cannot read the image.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A rule for the image as a whole is broken.
    #[error("{detail}")]
    Image {
        /// Rule for the whole image; never a lint.
        rule: Rule,
        /// Values that were compared.
        detail: String,
    },
    /// A rule for one inode is broken.
    #[error("inode {nid}: {detail}")]
    Inode {
        /// Rule for one inode; never a lint.
        rule: Rule,
        /// Number of the inode that breaks it.
        nid: Nid,
        /// Values that were compared.
        detail: String,
    },
    /// The image has more directory records than the policy allows.
    #[error("the image has more than {limit} directory records")]
    Nodes {
        /// Most records that the policy allows.
        limit: u64,
    },
    /// The check needs more memory than the policy allows.
    #[error("checking the image takes more than {limit} bytes of memory")]
    Memory {
        /// Most memory that the policy allows, in bytes.
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
