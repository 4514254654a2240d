//! Why a stack cannot be merged.

use crate::error::{Classify, Kind, Quoted};

/// Why a stack cannot be merged. Paths begin at the root of the layer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StackError {
    /// The lower content of a renamed directory or file cannot be found.
    #[error(
        "{} in {layer} has overlayfs's attribute redirect, which cannot be followed: {why}",
        Quoted(path)
    )]
    Redirect {
        /// Name of the layer.
        layer: String,
        /// The directory or file.
        path: Vec<u8>,
        /// The obstacle.
        why: String,
    },
    /// The data of a file whose attributes alone were copied cannot be found.
    #[error(
        "{} in {layer} has overlayfs's attribute metacopy, which cannot be followed: {why}",
        Quoted(path)
    )]
    Metacopy {
        /// Name of the layer.
        layer: String,
        /// The file.
        path: Vec<u8>,
        /// The obstacle.
        why: String,
    },
    /// The layer has very many directories and lies on top of very many layers.
    #[error("more than {limit} names had to be looked up in the layers below")]
    Lookups {
        /// Most lookups: [`crate::limits::PARENT_LOOKUPS`].
        limit: u64,
    },
}

impl Classify for StackError {
    fn kind(&self) -> Kind {
        match self {
            Self::Redirect { .. } | Self::Metacopy { .. } => Kind::Conflict,
            Self::Lookups { .. } => Kind::Exhausted,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Redirect { .. } => "compare.redirect",
            Self::Metacopy { .. } => "compare.metacopy",
            Self::Lookups { .. } => "limit.parent-lookups",
        }
    }
}
