//! Layer media types: which ones we take, and what they promise about the bytes.
//!
//! Source: OCI image specification, media-types.md; Docker image manifest V2 schema 2; containerd
//! `core/images/mediatypes.go` and `docs/snapshotters/erofs.md` for the native EROFS types.

/// Media type of the uncompressed tar that an applied tar layer stands for.
pub const OCI_LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// What the media type of a layer says it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerType {
    /// A tar archive. How it is compressed is read from the bytes: labels in the wild lie.
    Tar,
    /// A ready EROFS image.
    NativeErofs {
        /// Wrapped in zstd frames; the label is trusted, because an image has no other wrapping.
        zstd: bool,
        /// The media type without its `+zstd`, which is what the applied blob is.
        base: &'static str,
    },
}

const TAR_TYPES: [&str; 11] = [
    OCI_LAYER_TAR,
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// containerd 2.1 and 2.2 know the first, 2.3 and later the second.
const EROFS_TYPES: [&str; 2] = ["application/vnd.oci.image.layer.v1.erofs", "application/vnd.erofs.layer.v1"];

impl LayerType {
    /// The layer type that `media_type` names; `None` for one that another differ may know.
    ///
    /// ```
    /// use plywood::kind::LayerType;
    /// assert_eq!(LayerType::of("application/vnd.oci.image.layer.v1.tar+gzip"), Some(LayerType::Tar));
    /// assert_eq!(LayerType::of("application/vnd.erofs.layer.v1+gzip"), None); // only zstd may wrap an image
    /// ```
    pub fn of(media_type: &str) -> Option<Self> {
        if TAR_TYPES.contains(&media_type) {
            return Some(Self::Tar);
        }
        let (plain, zstd) = match media_type.strip_suffix("+zstd") {
            Some(plain) => (plain, true),
            None => (media_type, false),
        };
        EROFS_TYPES.into_iter().find(|base| *base == plain).map(|base| Self::NativeErofs { zstd, base })
    }

    /// Media type of what the layer is once it is uncompressed: the reply's media type.
    pub fn applied(self) -> &'static str {
        match self {
            Self::Tar => OCI_LAYER_TAR,
            Self::NativeErofs { base, .. } => base,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_type_selects_the_layer_type() {
        let erofs = |zstd, base| Some(LayerType::NativeErofs { zstd, base });
        for (media_type, want) in [
            ("application/vnd.oci.image.layer.v1.tar", Some(LayerType::Tar)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(LayerType::Tar)),
            ("application/vnd.oci.image.layer.v1.erofs", erofs(false, EROFS_TYPES[0])),
            ("application/vnd.oci.image.layer.v1.erofs+zstd", erofs(true, EROFS_TYPES[0])),
            ("application/vnd.erofs.layer.v1", erofs(false, EROFS_TYPES[1])),
            ("application/vnd.erofs.layer.v1+zstd", erofs(true, EROFS_TYPES[1])),
            ("application/vnd.erofs.layer.v1+gzip", None),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None),
            ("application/vnd.oci.image.layer.v1.tar;charset=x", None),
            ("", None),
        ] {
            assert_eq!(LayerType::of(media_type), want, "{media_type}");
        }
    }
}
