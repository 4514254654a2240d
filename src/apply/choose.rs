//! The choice of a strategy, made before a byte is read: only then may a refusal send the caller to the next differ.

use crate::{
    codec::Coding,
    kind::{Container, LayerType},
    snapshot::{FileSet, LAYER},
};

/// A way to turn a layer into the files of a snapshot; each has a file in [`super::strategy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Converts a tar archive into an EROFS image.
    Erofs,
    /// Copies a layer that is an EROFS image already.
    Native {
        /// Compression around the image.
        coding: Coding,
    },
}

impl Strategy {
    /// The files that the strategy publishes.
    pub fn files(self) -> &'static FileSet {
        match self {
            Self::Erofs | Self::Native { .. } => &LAYER,
        }
    }

    /// Whether the strategy copies the blob's file, where the store has one.
    pub(super) fn copies_the_blob(self) -> bool {
        self == Self::Native { coding: Coding::Plain }
    }
}

/// Returns the strategy for a layer of type `layer_type` in a directory where the sets `accepted` may be published.
/// `None`: the snapshotter has no use for such a layer.
pub fn choose(layer_type: &LayerType, accepted: &[&'static FileSet]) -> Option<Strategy> {
    let strategy = match layer_type.container {
        Container::Tar => Strategy::Erofs,
        Container::Erofs => Strategy::Native { coding: layer_type.coding },
    };
    accepted.contains(&strategy.files()).then_some(strategy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_type_and_a_snapshot_select_the_strategy() {
        let erofs: &[&FileSet] = &[&LAYER];
        for (media_type, accepted, want) in [
            ("application/vnd.oci.image.layer.v1.tar", erofs, Some(Strategy::Erofs)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", erofs, Some(Strategy::Erofs)),
            ("application/vnd.docker.image.rootfs.diff.tar.zstd", erofs, Some(Strategy::Erofs)),
            ("application/vnd.erofs.layer.v1", erofs, Some(Strategy::Native { coding: Coding::Plain })),
            ("application/vnd.erofs.layer.v1+zstd", erofs, Some(Strategy::Native { coding: Coding::Zstd })),
            (
                "application/vnd.oci.image.layer.v1.erofs",
                erofs,
                Some(Strategy::Native { coding: Coding::Plain }),
            ),
            ("application/vnd.oci.image.layer.v1.tar", &[], None),
            ("application/vnd.erofs.layer.v1", &[], None),
        ] {
            let layer_type = LayerType::of(media_type).unwrap();
            assert_eq!(
                choose(layer_type, accepted),
                want,
                "{media_type} where {accepted:?} may be published"
            );
        }
    }
}
