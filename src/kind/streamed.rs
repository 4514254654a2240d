//! The layer types that `plywood stream` turns into a plain tar, for differs that cannot read them.
//!
//! Every one of them is a coding around an unchanged tar, so that the result has the layer's diffID. Those that the differs
//! read anyway are in the table for nodes where Plywood decodes faster. zstd with a table of its frames behind it
//! (seekable, or zstd:chunked) is zstd: the table is in skippable frames.
//!
//! Source: containerd `docs/stream_processors.md`. Only `+gzip` and `+zstd` are types of the OCI specification; the other
//! suffixes follow its pattern with the name of the coding's usual program.

use super::OCI_LAYER_TAR;
use crate::codec::{Coding, foreign::Foreign};

/// One row of [`STREAMED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streamed {
    /// Media type of the input.
    pub media_type: &'static str,
    /// Coding around the tar.
    pub coding: StreamCoding,
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
    Streamed { media_type, coding }
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::LayerType;

    /// A type that Apply takes by itself and one that it leaves to processors must not be the same by accident.
    #[test]
    fn foreign_types_are_no_layer_types_and_the_others_are() {
        for row in STREAMED {
            let known = LayerType::of(row.media_type).map(|known| known.coding);
            match row.coding {
                StreamCoding::Common(coding) => assert_eq!(known, Some(coding), "{}", row.media_type),
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
