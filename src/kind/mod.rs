//! The layer types: one table, from which everything about media types is derived or with which it is compared.
//!
//! A row lists container and compression of a layer, the annotations that mark it where the media type is not its own, the type in Apply's reply, whether Diff writes it, and how the
//! command line and file names spell it. Nothing here looks at bytes: labels in the wild are wrong often enough that
//! a tar layer's compression is detected ([`Coding::detect`]). Files without a label are recognised by [`sniff`].
//!
//! Source: OCI image specification, media-types.md; Docker image manifest V2 schema 2; containerd
//! `core/images/mediatypes.go` and `docs/snapshotters/erofs.md` for the native EROFS types.

pub mod overlaybd;
pub mod route;
pub mod sniff;
pub mod streamed;

use std::{collections::BTreeMap, path::Path};

use self::overlaybd::Mark;
use crate::codec::Coding;

/// Format of a layer's uncompressed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Container {
    /// A tar archive.
    Tar,
    /// An EROFS image.
    Erofs,
    /// A tar archive with one member, a layer of a block device.
    Overlaybd,
    /// A tar archive with the metadata of a file system, whose file data is in another blob.
    Turbo,
}

impl Container {
    /// Label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tar => "tar",
            Self::Erofs => "erofs",
            Self::Overlaybd => "overlaybd",
            Self::Turbo => "turbo",
        }
    }
}

/// Family of tools for whose readers a layer has a table of contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Index {
    /// Those of the stargz snapshotter: eStargz, and their form of zstd:chunked.
    Stargz,
    /// Podman, Buildah, Skopeo and CRI-O: their form of zstd:chunked.
    Containers,
}

/// A layer type: one row of [`TABLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerType {
    /// Media type of the compressed layer.
    pub media_type: &'static str,
    /// Marks that annotations of the descriptor may have; the row then stands for all tar types. Empty: the media type
    /// alone decides.
    pub marks: &'static [Mark],
    /// Format of the uncompressed layer.
    pub container: Container,
    /// Compression that the media type promises. Binding for EROFS images; that of a tar layer is detected.
    pub coding: Coding,
    /// Media type of the uncompressed layer: the one in Apply's reply.
    pub applied: &'static str,
    /// Table of contents behind an archive in members or frames. The row then stands for what Diff writes when asked for
    /// that; readers know such layers by their bytes.
    pub indexed: Option<Index>,
    /// Whether Diff writes layers of this type.
    pub written: bool,
    /// Names for `plywood diff --type`, the first one preferred.
    pub names: &'static [&'static str],
    /// Endings of output names for which `plywood diff` writes this type.
    pub endings: &'static [&'static str],
}

/// Media type of an uncompressed tar layer, in Apply's reply for every tar layer.
pub const OCI_LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";
/// The type that Diff writes when a request names none: clients that commit a container assume it.
pub const DEFAULT: &LayerType = &TABLE[0];

/// Native layers of containerd 2.3 and later.
const EROFS: &str = "application/vnd.erofs.layer.v1";
const EROFS_ZSTD: &str = "application/vnd.erofs.layer.v1+zstd";
/// Native layers of containerd 2.1 and 2.2.
const OLD_EROFS: &str = "application/vnd.oci.image.layer.v1.erofs";
const OLD_EROFS_ZSTD: &str = "application/vnd.oci.image.layer.v1.erofs+zstd";

const fn tar(media_type: &'static str, coding: Coding) -> LayerType {
    LayerType {
        media_type,
        marks: &[],
        container: Container::Tar,
        coding,
        applied: OCI_LAYER_TAR,
        indexed: None,
        written: false,
        names: &[],
        endings: &[],
    }
}

const fn erofs(media_type: &'static str, coding: Coding, applied: &'static str) -> LayerType {
    LayerType {
        media_type,
        marks: &[],
        container: Container::Erofs,
        coding,
        applied,
        indexed: None,
        written: true,
        names: &[],
        endings: &[],
    }
}

/// All layer types.
///
/// Diff writes no Docker types: containerd's own differs decline them as well, and its clients rename the types of
/// the layers they receive. Only zstd wraps a native image. A name that is a compression alone (`gzip`) means a tar,
/// the only container that comes in every compression.
pub const TABLE: &[LayerType] = &[
    LayerType {
        written: true,
        names: &["tar+gzip", "gzip"],
        endings: &[".tar.gz", ".tgz"],
        ..tar("application/vnd.oci.image.layer.v1.tar+gzip", Coding::Gzip)
    },
    LayerType {
        written: true,
        names: &["tar+zstd", "zstd"],
        endings: &[".tar.zst", ".tzst", ".tar.zstd"],
        ..tar("application/vnd.oci.image.layer.v1.tar+zstd", Coding::Zstd)
    },
    LayerType { written: true, names: &["tar"], endings: &[".tar"], ..tar(OCI_LAYER_TAR, Coding::Plain) },
    LayerType {
        indexed: Some(Index::Stargz),
        written: true,
        names: &["estargz"],
        endings: &[".esgz"],
        ..tar("application/vnd.oci.image.layer.v1.tar+gzip", Coding::Gzip)
    },
    // Both families call their form zstd:chunked. Options spell it so for `skopeo copy`, `podman push` and `buildah push`,
    // and zstdchunked for `nerdctl image convert` and `ctr-remote images convert`: the same spelling has the same meaning
    // here.
    LayerType {
        indexed: Some(Index::Containers),
        written: true,
        names: &["zstd:chunked"],
        endings: &[".zst-chunked"],
        ..tar("application/vnd.oci.image.layer.v1.tar+zstd", Coding::Zstd)
    },
    LayerType {
        indexed: Some(Index::Stargz),
        written: true,
        names: &["zstdchunked"],
        ..tar("application/vnd.oci.image.layer.v1.tar+zstd", Coding::Zstd)
    },
    LayerType { names: &["erofs"], endings: &[".erofs"], ..erofs(EROFS, Coding::Plain, EROFS) },
    LayerType {
        names: &["erofs+zstd"],
        endings: &[".erofs.zst", ".erofs.zstd"],
        ..erofs(EROFS_ZSTD, Coding::Zstd, EROFS)
    },
    erofs(OLD_EROFS, Coding::Plain, OLD_EROFS),
    erofs(OLD_EROFS_ZSTD, Coding::Zstd, OLD_EROFS),
    tar("application/vnd.oci.image.layer.nondistributable.v1.tar", Coding::Plain),
    tar("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Coding::Gzip),
    tar("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", Coding::Zstd),
    tar("application/vnd.docker.image.rootfs.diff.tar", Coding::Plain),
    tar("application/vnd.docker.image.rootfs.diff.tar.gzip", Coding::Gzip),
    tar("application/vnd.docker.image.rootfs.diff.tar.zstd", Coding::Zstd),
    tar("application/vnd.docker.image.rootfs.foreign.diff.tar", Coding::Plain),
    tar("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Coding::Gzip),
    LayerType {
        marks: &[Mark::Native, Mark::Acceleration],
        container: Container::Overlaybd,
        ..tar(OCI_LAYER_TAR, Coding::Plain)
    },
    LayerType {
        marks: &[Mark::Turbo],
        container: Container::Turbo,
        ..tar("application/vnd.oci.image.layer.v1.tar+gzip", Coding::Gzip)
    },
];

impl LayerType {
    /// Returns the row of a blob; `None` for a type that another differ may know. Annotations count where the media type
    /// is that of a tar.
    pub fn of_blob(media_type: &str, annotations: &BTreeMap<String, String>) -> Option<&'static Self> {
        Some(Self::of(media_type)?.marked(annotations))
    }

    /// Returns the row of a tar of this type with `annotations`. All other types stay as they are.
    pub fn marked(&'static self, annotations: &BTreeMap<String, String>) -> &'static Self {
        let mark = Mark::of(annotations).filter(|_| self.container == Container::Tar);
        mark.and_then(|mark| TABLE.iter().find(|row| row.marks.contains(&mark))).unwrap_or(self)
    }

    /// Returns the row of `media_type`, whatever the annotations; `None` for a type that another differ may know.
    ///
    /// ```
    /// use plywood::kind::{Container, LayerType};
    /// let tar = LayerType::of("application/vnd.oci.image.layer.v1.tar+gzip");
    /// assert_eq!(tar.map(|row| row.container), Some(Container::Tar));
    /// assert_eq!(LayerType::of("application/vnd.erofs.layer.v1+gzip"), None);
    /// ```
    pub fn of(media_type: &str) -> Option<&'static Self> {
        TABLE.iter().find(|row| row.media_type == media_type && row.marks.is_empty() && row.indexed.is_none())
    }

    /// Returns the type that Diff writes for `media_type`; [`DEFAULT`] for an empty one, `None` for one that Diff does
    /// not write.
    ///
    /// ```
    /// use plywood::kind::{self, LayerType};
    /// assert_eq!(LayerType::to_write(""), Some(kind::DEFAULT));
    /// assert_eq!(LayerType::to_write("application/vnd.docker.image.rootfs.diff.tar.gzip"), None);
    /// ```
    pub fn to_write(media_type: &str) -> Option<&'static Self> {
        if media_type.is_empty() {
            return Some(DEFAULT);
        }
        Self::of(media_type).filter(|row| row.written)
    }

    /// Returns the row of the same media type with a table of contents of this kind; `None` where there is none.
    pub fn with_index(&self, index: Index) -> Option<&'static Self> {
        TABLE.iter().find(|row| row.media_type == self.media_type && row.indexed == Some(index))
    }

    /// Returns the type that `plywood diff` writes for `name`, which is a short name or a media type.
    pub fn of_name(name: &str) -> Option<&'static Self> {
        let row = TABLE.iter().find(|row| row.names.contains(&name) || row.media_type == name);
        row.filter(|row| row.written)
    }

    /// Returns the type that `plywood diff` writes to `path`, by the ending of its name.
    pub fn of_file(path: &Path) -> Option<&'static Self> {
        let name = path.file_name()?.to_string_lossy();
        TABLE.iter().find(|row| row.endings.iter().any(|ending| name.ends_with(ending)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_media_type_selects_its_row() {
        let found =
            |media_type| LayerType::of(media_type).map(|row| (row.container, row.coding, row.applied));
        for (media_type, want) in [
            ("application/vnd.oci.image.layer.v1.tar", Some((Container::Tar, Coding::Plain, OCI_LAYER_TAR))),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                Some((Container::Tar, Coding::Gzip, OCI_LAYER_TAR)),
            ),
            ("application/vnd.oci.image.layer.v1.erofs", Some((Container::Erofs, Coding::Plain, OLD_EROFS))),
            (
                "application/vnd.oci.image.layer.v1.erofs+zstd",
                Some((Container::Erofs, Coding::Zstd, OLD_EROFS)),
            ),
            ("application/vnd.erofs.layer.v1", Some((Container::Erofs, Coding::Plain, EROFS))),
            ("application/vnd.erofs.layer.v1+zstd", Some((Container::Erofs, Coding::Zstd, EROFS))),
            ("application/vnd.erofs.layer.v1+gzip", None),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None),
            ("application/vnd.oci.image.layer.v1.tar;charset=x", None),
            ("", None),
        ] {
            assert_eq!(found(media_type), want, "{media_type}");
        }
    }

    #[test]
    fn annotations_select_a_row_where_the_media_type_is_a_tars() {
        let marked = BTreeMap::from([(overlaybd::BLOB_DIGEST.to_owned(), "sha256:x".to_owned())]);
        let unmarked = BTreeMap::new();
        let turbo = BTreeMap::from([(
            "containerd.io/snapshot/overlaybd/turbo-oci/target-digest".to_owned(),
            "sha256:x".to_owned(),
        )]);
        let found =
            |media_type, annotations| LayerType::of_blob(media_type, annotations).map(|row| row.container);
        for media_type in [
            OCI_LAYER_TAR,
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar",
        ] {
            assert_eq!(found(media_type, &unmarked), Some(Container::Tar), "{media_type}");
            assert_eq!(found(media_type, &marked), Some(Container::Overlaybd), "{media_type}");
            assert_eq!(found(media_type, &turbo), Some(Container::Turbo), "{media_type}");
        }
        assert_eq!(found(EROFS, &marked), Some(Container::Erofs));
        assert_eq!(found("a/b", &marked), None);
    }

    #[test]
    fn names_and_endings_lead_to_one_row_each() {
        let mut seen = BTreeSet::new();
        for row in TABLE {
            let media_type = (row.marks.is_empty() && row.indexed.is_none()).then_some(row.media_type);
            for text in row.names.iter().chain(row.endings).copied().chain(media_type) {
                assert!(seen.insert(text), "{text} stands twice");
            }
            assert!(row.written || (row.names.is_empty() && row.endings.is_empty()), "{}", row.media_type);
            for name in row.names {
                assert_eq!(LayerType::of_name(name), Some(row), "{name}");
            }
            for ending in row.endings {
                assert_eq!(LayerType::of_file(Path::new(&format!("a{ending}"))), Some(row), "{ending}");
            }
            assert!(LayerType::of(row.applied).is_some_and(|applied| applied.coding == Coding::Plain));
        }
    }

    /// The documents list the layer types as well: a row added here has to be added there.
    #[test]
    fn the_documents_list_every_row() {
        let mut table = String::from(
            "| media type | bytes | `applied.media_type` | Diff writes it |\n|---|---|---|---|\n",
        );
        for row in TABLE {
            let bytes = match (row.container, row.coding) {
                (Container::Tar, coding) if row.indexed.is_some() => match (row.indexed, coding) {
                    (Some(Index::Containers), _) => {
                        "tar, as [zstd:chunked](stargz.md) of the containers tools"
                    }
                    (_, Coding::Zstd) => "tar, as [zstd:chunked](stargz.md) of the stargz tools",
                    _ => "tar, as [eStargz](stargz.md)",
                },
                (Container::Tar, _) => "tar, compressed as the bytes say",
                (Container::Erofs, Coding::Plain) => "an EROFS image",
                (Container::Erofs, _) => "an EROFS image in zstd frames",
                (Container::Overlaybd, _) => "a tar with a layer of an [overlaybd](overlaybd.md) device",
                (Container::Turbo, _) => "a tar with the files of a [turboOCI](overlaybd.md) layer",
            };
            let marked = if row.marks.is_empty() { "" } else { ", or another tar type, with annotations" };
            let written = match row.written {
                true if row.indexed.is_some() => "when asked for",
                true => "yes",
                false => "no",
            };
            table += &format!("| `{}`{marked} | {bytes} | `{}` | {written} |\n", row.media_type, row.applied);
        }
        let document = include_str!("../../docs/formats/containerd.md");
        assert!(document.contains(&table), "docs/formats/containerd.md should have this table:\n{table}");
        let readme = include_str!("../../README.md");
        for row in TABLE.iter().filter(|row| row.written) {
            let base = row.media_type.trim_end_matches("+gzip").trim_end_matches("+zstd");
            assert!(readme.contains(&format!("`{base}`")), "README.md does not name {base}");
        }
    }

    #[test]
    fn a_type_that_is_not_written_is_left_to_others() {
        for media_type in [
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zip",
            "application/vnd.erofs.layer.v1+gzip",
            " ",
        ] {
            assert_eq!(LayerType::to_write(media_type), None, "{media_type}");
            assert_eq!(LayerType::of_name(media_type), None, "{media_type}");
        }
        assert_eq!(LayerType::of_name(""), None);
    }
}
