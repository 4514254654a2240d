//! The layer types that `plywood stream` turns into a plain tar, for differs that cannot read them.
//!
//! Every one of them holds the tar unchanged, so that the result has the layer's diffID. Those that the differs read anyway
//! are in the table for nodes where Plywood decodes faster. zstd with a table of its frames behind it (seekable, or
//! zstd:chunked) is zstd: the table is in skippable frames. EROFS images hold the tar where they are
//! [tar-index images](crate::format::erofs::tar_index); of other images it cannot be made again.
//!
//! Two that hold a tar are missing. A ZFile ends with the table that tells where its blocks are, so that a pipe would have
//! to be kept whole, and nobody has a media type for one with a tar in it. The `layer.tar` beside a turboOCI layer is a
//! plain tar in a snapshot, and never a layer of an image.
//!
//! Source: containerd `docs/stream_processors.md`. Only `+gzip` and `+zstd` are types of the OCI specification; the other
//! suffixes follow its pattern with the name of the coding's usual program.

use super::{Container, EROFS, EROFS_ZSTD, OCI_LAYER_TAR, OLD_EROFS, OLD_EROFS_ZSTD};
use crate::codec::{Coding, foreign::Foreign};

/// One row of [`STREAMED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streamed {
    /// Media type of the input.
    pub media_type: &'static str,
    /// Coding around the container.
    pub coding: StreamCoding,
    /// The tar itself, or an EROFS image with the tar in it.
    pub container: Container,
}

/// Coding of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamCoding {
    /// One that differs read as well.
    Common(Coding),
    /// One that they do not.
    Foreign(Foreign),
}

const fn row(media_type: &'static str, coding: StreamCoding) -> Streamed {
    Streamed { media_type, coding, container: Container::Tar }
}

const fn tar_index(media_type: &'static str, coding: Coding) -> Streamed {
    Streamed { media_type, coding: StreamCoding::Common(coding), container: Container::Erofs }
}

/// Type of the output of every row.
pub const RETURNS: &str = OCI_LAYER_TAR;

/// All types that `plywood stream` accepts.
pub const STREAMED: &[Streamed] = &[
    row("application/vnd.oci.image.layer.v1.tar+xz", StreamCoding::Foreign(Foreign::Xz)),
    row("application/vnd.oci.image.layer.v1.tar+lz4", StreamCoding::Foreign(Foreign::Lz4)),
    row("application/vnd.oci.image.layer.v1.tar+bzip2", StreamCoding::Foreign(Foreign::Bzip2)),
    row("application/vnd.oci.image.layer.v1.tar+brotli", StreamCoding::Foreign(Foreign::Brotli)),
    row("application/vnd.oci.image.layer.v1.tar+gzip", StreamCoding::Common(Coding::Gzip)),
    row("application/vnd.oci.image.layer.v1.tar+zstd", StreamCoding::Common(Coding::Zstd)),
    row("application/vnd.docker.image.rootfs.diff.tar.gzip", StreamCoding::Common(Coding::Gzip)),
    row("application/vnd.docker.image.rootfs.diff.tar.zstd", StreamCoding::Common(Coding::Zstd)),
    tar_index(EROFS, Coding::Plain),
    tar_index(EROFS_ZSTD, Coding::Zstd),
    tar_index(OLD_EROFS, Coding::Plain),
    tar_index(OLD_EROFS_ZSTD, Coding::Zstd),
];

impl Streamed {
    /// Returns the row of `media_type`.
    pub fn of(media_type: &str) -> Option<&'static Self> {
        STREAMED.iter().find(|row| row.media_type == media_type)
    }

    /// Media types that need a stream processor wherever they go.
    pub fn foreign() -> impl Iterator<Item = &'static str> {
        let is_foreign = |row: &&Self| matches!(row.coding, StreamCoding::Foreign(_));
        STREAMED.iter().filter(is_foreign).map(|row| row.media_type)
    }

    /// Media types of EROFS images, which need one where layers are unpacked into directories. In Plywood's own table they
    /// would keep it from using such images as they are.
    pub fn tar_indexes() -> impl Iterator<Item = &'static str> {
        let is_image = |row: &&Self| row.container == Container::Erofs;
        STREAMED.iter().filter(is_image).map(|row| row.media_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::LayerType;

    /// A type that Apply takes by itself and one that it leaves to processors must not be the same by accident.
    #[test]
    fn foreign_types_are_no_layer_types_and_the_others_are() {
        for row in STREAMED {
            let known = LayerType::of(row.media_type).map(|known| (known.coding, known.container));
            match row.coding {
                StreamCoding::Common(coding) => {
                    assert_eq!(known, Some((coding, row.container)), "{}", row.media_type);
                }
                StreamCoding::Foreign(_) => assert_eq!(known, None, "{}", row.media_type),
            }
        }
        assert!(LayerType::of(RETURNS).is_some_and(|row| row.coding == Coding::Plain));
    }

    #[test]
    fn the_documents_list_every_type() {
        let document = include_str!("../../docs/formats/compression.md");
        for row in STREAMED {
            assert!(document.contains(&format!("`{}`", row.media_type)), "{}", row.media_type);
        }
    }
}
