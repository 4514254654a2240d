//! The choice of a strategy, made before a byte is read: only then may a refusal send the caller to the next differ.

use std::collections::BTreeMap;

use super::options::{OrdinaryLayers, Overlaybd};
use crate::{
    codec::Coding,
    kind::{
        Container, LayerType,
        overlaybd::{CONVERT, FS_TYPE, Flavour, Mark},
    },
    snapshot::{DEVICE_LAYER, FileSet, LAYER, TRACE, TURBO},
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
    /// Unwraps a layer of a device.
    Overlaybd,
    /// Unwraps a list of blocks to fetch early.
    Trace,
    /// Unpacks a turboOCI layer.
    Turbo,
    /// Makes a layer of a device from a tar archive.
    Convert(Conversion),
}

/// The layer of a device that a tar archive becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversion {
    /// File system of the device, if it is a new one.
    pub flavour: Flavour,
    /// Where the data of files is.
    pub data: Data,
}

/// Where the layer of a device has the data of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// In the layer itself.
    Inside,
    /// In the uncompressed archive, which is kept beside it.
    Archive {
        /// Whether there is also an image beside the archive that the kernel can mount.
        kernel_index: bool,
    },
}

impl Strategy {
    /// The files that the strategy publishes.
    pub fn files(self) -> &'static FileSet {
        match self {
            Self::Erofs | Self::Native { .. } => &LAYER,
            Self::Overlaybd | Self::Convert(_) => &DEVICE_LAYER,
            Self::Trace => &TRACE,
            Self::Turbo => &TURBO,
        }
    }

    /// Whether the strategy makes one image that the kernel mounts.
    pub(super) fn is_mountable(self) -> bool {
        matches!(self, Self::Erofs | Self::Native { .. })
    }

    /// Whether the strategy copies the blob's file, where the store has one.
    pub(super) fn copies_the_blob(self) -> bool {
        self == Self::Native { coding: Coding::Plain }
    }
}

/// All that the choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Row of the layer's media type and annotations.
    pub layer_type: &'a LayerType,
    /// Annotations of the layer.
    pub annotations: &'a BTreeMap<String, String>,
    /// Labels of the snapshot, as far as they are known.
    pub labels: &'a BTreeMap<String, String>,
    /// Sets of files that may be published in the directory.
    pub accepted: &'a [&'static FileSet],
    /// Settings for snapshots of devices.
    pub overlaybd: &'a Overlaybd,
}

/// Returns the strategy for a layer. `None`: the snapshotter has no use for such a layer, or is to get it from another
/// differ.
pub fn choose(asked: &Asked<'_>) -> Option<Strategy> {
    let Asked { layer_type, annotations, accepted, .. } = *asked;
    let takes_devices = accepted.contains(&&DEVICE_LAYER);
    let strategy = match layer_type.container {
        Container::Tar if takes_devices => Strategy::Convert(conversion(asked)?),
        Container::Overlaybd if takes_devices => match Mark::of(annotations) {
            Some(Mark::Acceleration) => Strategy::Trace,
            _ => Strategy::Overlaybd,
        },
        Container::Turbo if takes_devices => Strategy::Turbo,
        // Elsewhere the archives of such layers are archives like all others.
        Container::Tar | Container::Overlaybd | Container::Turbo => Strategy::Erofs,
        Container::Erofs => Strategy::Native { coding: layer_type.coding },
    };
    accepted.contains(&strategy.files()).then_some(strategy)
}

/// Returns what becomes of an ordinary tar layer in the snapshot of a device. Labels of the snapshot and annotations, of
/// which the snapshotter makes labels, come before the configuration.
fn conversion(asked: &Asked<'_>) -> Option<Conversion> {
    let Asked { annotations, labels, overlaybd, .. } = *asked;
    let find = |name: &str| labels.get(name).or_else(|| annotations.get(name));
    let archive = Data::Archive { kernel_index: overlaybd.kernel_index };
    let data = match overlaybd.layers {
        _ if find(CONVERT).is_some() => archive,
        OrdinaryLayers::Turbo => archive,
        OrdinaryLayers::Native => Data::Inside,
        OrdinaryLayers::AsLabelled => return None,
    };
    let flavour = match find(FS_TYPE) {
        Some(value) => Flavour::of_annotation(value)?,
        None => overlaybd.flavour,
    };
    Some(Conversion { flavour, data })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::overlaybd::BLOB_DIGEST;

    const ACCELERATION: &str = "containerd.io/snapshot/overlaybd/acceleration-layer";
    const TURBO_TARGETS: [&str; 2] = [
        "containerd.io/snapshot/overlaybd/turbo-oci/target-digest",
        "containerd.io/snapshot/overlaybd/fastoci/target-digest",
    ];
    const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    const EROFS: &str = "application/vnd.erofs.layer.v1";
    static IMAGES: &[&FileSet] = &[&LAYER];
    static DEVICES: &[&FileSet] = &[&DEVICE_LAYER, &TRACE, &TURBO];

    fn strategy(
        media_type: &str,
        annotations: &[(&str, &str)],
        labels: &[(&str, &str)],
        accepted: &[&'static FileSet],
        overlaybd: &Overlaybd,
    ) -> Option<Strategy> {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let (annotations, labels) = (map(annotations), map(labels));
        let layer_type = LayerType::of_blob(media_type, &annotations).unwrap();
        choose(&Asked { layer_type, annotations: &annotations, labels: &labels, accepted, overlaybd })
    }

    #[test]
    fn a_layer_type_and_a_snapshot_select_the_strategy() {
        for (media_type, accepted, want) in [
            (TAR, IMAGES, Some(Strategy::Erofs)),
            (GZIP, IMAGES, Some(Strategy::Erofs)),
            ("application/vnd.docker.image.rootfs.diff.tar.zstd", IMAGES, Some(Strategy::Erofs)),
            (EROFS, IMAGES, Some(Strategy::Native { coding: Coding::Plain })),
            ("application/vnd.erofs.layer.v1+zstd", IMAGES, Some(Strategy::Native { coding: Coding::Zstd })),
            (
                "application/vnd.oci.image.layer.v1.erofs",
                IMAGES,
                Some(Strategy::Native { coding: Coding::Plain }),
            ),
            (TAR, &[], None),
            (EROFS, &[], None),
            (EROFS, DEVICES, None),
        ] {
            let found = strategy(media_type, &[], &[], accepted, &Overlaybd::default());
            assert_eq!(found, want, "{media_type} where {accepted:?} may be published");
        }
    }

    /// Annotations, snapshot labels, layout and configuration against the strategy.
    #[test]
    fn annotations_labels_and_configuration_select_the_strategy_for_a_device() {
        let with = |layers| Overlaybd { layers, ..Overlaybd::default() };
        let [as_labelled, turbo, native] =
            [OrdinaryLayers::AsLabelled, OrdinaryLayers::Turbo, OrdinaryLayers::Native].map(with);
        let indexed = Overlaybd { kernel_index: true, ..turbo.clone() };
        let ext4 = Overlaybd { flavour: Flavour::Ext4, ..native.clone() };
        let convert = |flavour, data| Some(Strategy::Convert(Conversion { flavour, data }));
        let archive = |kernel_index| Data::Archive { kernel_index };
        let (blob, [target, old]) = ((BLOB_DIGEST, "sha256:x"), TURBO_TARGETS.map(|name| (name, "sha256:y")));
        let convert_label = (CONVERT, "");
        let erofs = Flavour::Erofs;
        type Pairs<'p> = &'p [(&'p str, &'p str)];
        let rows: [(&str, Pairs<'_>, Pairs<'_>, &Overlaybd, Option<Strategy>); 18] = [
            (TAR, &[blob], &[], &as_labelled, Some(Strategy::Overlaybd)),
            (TAR, &[blob], &[], &native, Some(Strategy::Overlaybd)),
            (TAR, &[blob], &[convert_label], &turbo, Some(Strategy::Overlaybd)),
            (TAR, &[blob, (ACCELERATION, "yes")], &[], &as_labelled, Some(Strategy::Trace)),
            (GZIP, &[blob, target], &[], &as_labelled, Some(Strategy::Turbo)),
            (GZIP, &[old], &[], &native, Some(Strategy::Turbo)),
            (GZIP, &[], &[], &as_labelled, None),
            (TAR, &[], &[], &as_labelled, None),
            (GZIP, &[], &[convert_label], &as_labelled, convert(erofs, archive(false))),
            (GZIP, &[convert_label], &[], &as_labelled, convert(erofs, archive(false))),
            (GZIP, &[], &[convert_label], &native, convert(erofs, archive(false))),
            (
                GZIP,
                &[],
                &[convert_label, (FS_TYPE, "ext4")],
                &as_labelled,
                convert(Flavour::Ext4, archive(false)),
            ),
            (GZIP, &[], &[convert_label, (FS_TYPE, "ntfs")], &as_labelled, None),
            (GZIP, &[], &[], &turbo, convert(erofs, archive(false))),
            (GZIP, &[], &[], &indexed, convert(erofs, archive(true))),
            (GZIP, &[], &[], &native, convert(erofs, Data::Inside)),
            (TAR, &[], &[], &ext4, convert(Flavour::Ext4, Data::Inside)),
            (EROFS, &[blob], &[], &native, None),
        ];
        for (media_type, annotations, labels, overlaybd, want) in rows {
            let found = strategy(media_type, annotations, labels, DEVICES, overlaybd);
            assert_eq!(found, want, "{media_type} {annotations:?} {labels:?} {overlaybd:?}");
            // The EROFS snapshotter has its own idea of these layers.
            if media_type != EROFS {
                assert_eq!(
                    strategy(media_type, annotations, labels, IMAGES, overlaybd),
                    Some(Strategy::Erofs)
                );
            }
        }
    }
}
