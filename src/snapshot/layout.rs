//! How each snapshotter lays out the directory of a snapshot: one row of data for each snapshotter.
//!
//! This is the only place where the names of files in a snapshot's directory are spelled.
//!
//! Source: docs/formats/containerd.md, "Mount lists" and "Publishing a layer"; containerd
//! `plugins/snapshots/erofs`, `plugins/snapshots/overlay`; accelerated-container-image `pkg/snapshot`.

/// The directory below a root that holds one directory for each snapshot.
pub(super) const SNAPSHOTS: &str = "snapshots";

/// The image of a layer in a snapshot of the EROFS snapshotter.
pub const LAYER_NAME: &str = "layer.erofs";
/// The image with the merged metadata of a layer and all layers below it.
pub const MERGED_NAME: &str = "fsmeta.erofs";

/// The upper directory at the root of the ext4 image in block mode.
pub(super) const UPPER_IN_BLOCK: &str = "upper";

/// The layer of an overlaybd snapshot's device, bare: the snapshotter looks for its magic number.
pub const OVERLAYBD_NAME: &str = "fs/overlaybd.commit";
/// The list of blocks to fetch early that an acceleration layer brings.
pub const TRACE_NAME: &str = "fs/trace";
/// The uncompressed archive into which a layer of a local turboOCI conversion points.
pub const TAR_NAME: &str = "layer.tar";
/// The EROFS image, for mounting without a device driver, whose file data is in [`TAR_NAME`].
pub const TAR_INDEX_NAME: &str = "layer.tar.erofs";
/// Members of a published turboOCI layer, as the snapshot has them: an ext4 and an EROFS file system's metadata, the
/// index of the original's gzip stream, and the marker.
pub const TURBO_EXT4_NAME: &str = "fs/ext4.fs.meta";
/// See [`TURBO_EXT4_NAME`].
pub const TURBO_EROFS_NAME: &str = "fs/erofs.fs.meta";
/// See [`TURBO_EXT4_NAME`].
pub const TURBO_GZIP_NAME: &str = "fs/gzip.meta";
/// See [`TURBO_EXT4_NAME`].
pub const TURBO_MARKER_NAME: &str = "fs/.turbo.ociv1";

/// Where the snapshotter describes the device of a committed snapshot: its layer and all below it.
pub(super) const DEVICE_CONFIG: &str = "block/config.v1.json";
/// The writable layer of a device: its data, and its index.
pub(super) const WRITABLE: [&str; 2] = ["block/writable_data", "block/writable_index"];
/// The writable layer of a device once it is sealed.
pub(super) const SEALED: &str = "fs/overlaybd.sealed";

/// The set of a plain EROFS layer, with merged metadata of it and all layers below on request. The metadata comes last:
/// beside another layer it would show wrong data, and a layer without it is whole.
pub static LAYER: FileSet = FileSet { names: &[LAYER_NAME, MERGED_NAME], optional: &[MERGED_NAME] };
/// Merged metadata alone, beside a layer that stays.
pub static MERGED: FileSet = FileSet::of(&[MERGED_NAME]);
/// The set of a layer of an overlaybd snapshot's device. With the archive it is a turboOCI layer that points into it, and
/// the snapshotter converts the archive itself where nothing else is there. Without it, a native layer.
pub static DEVICE_LAYER: FileSet =
    FileSet { names: &[TAR_NAME, TAR_INDEX_NAME, OVERLAYBD_NAME], optional: &[TAR_NAME, TAR_INDEX_NAME] };
/// The set of an acceleration layer.
pub static TRACE: FileSet = FileSet::of(&[TRACE_NAME]);
/// The set of a published turboOCI layer: the metadata of one file system or of both, and the index if the original is
/// compressed.
pub static TURBO: FileSet = FileSet {
    names: &[TURBO_GZIP_NAME, TURBO_EXT4_NAME, TURBO_EROFS_NAME, TURBO_MARKER_NAME],
    optional: &[TURBO_GZIP_NAME, TURBO_EXT4_NAME, TURBO_EROFS_NAME],
};

/// Files of one snapshot that are published together, by their paths below the snapshot's directory.
///
/// The files get their names in this order. The last name that is not optional commits the set: without that file, the
/// snapshotter must take the directory for one without a layer, or for one whose layer it can complete itself. So after
/// a crash at any point some first files of a set may be there, but never a later one without them. Optional files
/// behind that name complete a layer which is whole without them.
#[derive(Debug, PartialEq, Eq)]
pub struct FileSet {
    pub(super) names: &'static [&'static str],
    /// Those of `names` that a layer may do without; older files of these names are then removed. At least one is not
    /// among them.
    pub(super) optional: &'static [&'static str],
}

impl FileSet {
    /// A set of which every layer has all files.
    pub(super) const fn of(names: &'static [&'static str]) -> Self {
        Self { names, optional: &[] }
    }

    /// The name that commits the set.
    pub(super) fn layer(&self) -> &'static str {
        let required = self.names.iter().rev().find(|name| !self.optional.contains(name));
        required.copied().unwrap_or_default()
    }
}

/// A kind of file or directory that a path in a mount list names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaf {
    /// A directory that holds a layer, which may be the upper directory of an overlay.
    Upper,
    /// The work directory of an overlay.
    Work,
    /// An image that holds one layer.
    Layer,
    /// Merged metadata.
    Merged,
    /// An image that holds one layer, or merged metadata.
    Image,
    /// A writable ext4 image in block mode.
    Block,
}

/// The layout of one snapshotter's directories.
#[derive(Debug)]
pub(super) struct Layout {
    /// The name of an empty file in each directory that waits for a layer or holds one. Directories without it are
    /// refused, except those of views. `None`: the snapshotter marks no directories.
    pub(super) marker: Option<&'static str>,
    /// A layer as a directory, and the upper directory of an overlay.
    pub(super) upper: &'static str,
    /// The directory where the layers of a snapshot are mounted as one device, for a snapshotter that does that.
    pub(super) device: Option<&'static str>,
    /// Paths that a list may name in the place of an upper directory: `upper`, and `device`.
    pub(super) uppers: &'static [&'static str],
    /// The work directory of an overlay.
    pub(super) work: &'static str,
    /// A layer as an image.
    pub(super) layer: &'static str,
    /// Merged metadata.
    pub(super) merged: &'static str,
    /// All names of EROFS images.
    pub(super) images: &'static [&'static str],
    /// A writable ext4 image.
    pub(super) block: &'static str,
    /// The kinds in which the snapshotter keeps layers. A list that names another kind is refused.
    pub(super) keeps: &'static [Leaf],
    /// The sets that Apply, or a repair, may publish. Empty: snapshots of this snapshotter are only read.
    pub(super) publishes: &'static [&'static FileSet],
}

/// containerd's EROFS snapshotter.
pub(super) static EROFS: Layout = Layout {
    marker: Some(".erofslayer"),
    keeps: &[Leaf::Upper, Leaf::Layer, Leaf::Block],
    publishes: &[&LAYER, &MERGED],
    ..NAMES
};

/// containerd's overlayfs snapshotter.
pub(super) static OVERLAYFS: Layout = Layout { keeps: &[Leaf::Upper], ..NAMES };

/// The overlaybd snapshotter of accelerated-container-image. Its device config stands in for a marker.
pub(super) static OVERLAYBD_DEVICE: Layout = Layout {
    device: Some(DEVICE),
    uppers: &[NAMES.upper, DEVICE],
    keeps: &[Leaf::Upper],
    publishes: &[&DEVICE_LAYER, &TRACE, &TURBO],
    ..NAMES
};
/// Where an overlaybd snapshot's device is mounted.
pub(super) const DEVICE: &str = "block/mountpoint";

/// The names that both snapshotters use. The overlayfs snapshotter keeps no images, but its row has their names
/// too: a list with an image below its root is then refused for the image and not for the spelling of its path.
const NAMES: Layout = Layout {
    marker: None,
    upper: "fs",
    device: None,
    uppers: &["fs"],
    work: "work",
    layer: LAYER_NAME,
    merged: MERGED_NAME,
    images: &[LAYER_NAME, MERGED_NAME],
    block: "rwlayer.img",
    keeps: &[],
    publishes: &[],
};

/// Whether an image of this path is merged metadata, below whatever root it lies.
pub(super) fn is_merged(path: &str) -> bool {
    path.rsplit('/').next() == Some(MERGED_NAME)
}

impl Layout {
    /// The names that an entry of this kind may have. A name may be a path of several components.
    pub(super) fn names(&'static self, leaf: Leaf) -> &'static [&'static str] {
        let one = std::slice::from_ref;
        match leaf {
            Leaf::Upper => self.uppers,
            Leaf::Work => one(&self.work),
            Leaf::Layer => one(&self.layer),
            Leaf::Merged => one(&self.merged),
            Leaf::Image => self.images,
            Leaf::Block => one(&self.block),
        }
    }
}
