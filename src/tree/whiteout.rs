//! Names that delete: the spelling of whiteouts and opaque directories in layers.
//!
//! This module reads names. [`super::Tree`] applies markers to a tree, and formats store them in an
//! image.
//!
//! Source: OCI image specification, layer.md, "Whiteouts"; the `.wh..wh.` prefix of other names is aufs's.

use crate::error::{Classify, Kind};

/// Prefix of every marker's name.
pub const PREFIX: &[u8] = b".wh.";
/// Name that makes its directory opaque.
pub const OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of the names of aufs's own files.
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// Meaning of the last component of an entry's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker<'a> {
    /// Ordinary name, which marks nothing.
    Ordinary,
    /// Whiteout of the contained name: it disappears from lower layers.
    Whiteout(&'a [u8]),
    /// Opaque mark: the directory that holds it hides everything lower layers have in it.
    Opaque,
    /// Bookkeeping of aufs, which has no meaning for others.
    Ignored,
}

/// Marker for a name that no file can have: empty, `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("whiteout {0:?} names no file")]
pub struct WhiteoutError(pub String);

impl Classify for WhiteoutError {
    fn kind(&self) -> Kind {
        Kind::Malformed
    }

    fn reason(&self) -> &'static str {
        "tree.whiteout.name"
    }
}

/// True when `component` may not be a directory on the way to another entry.
pub fn is_reserved(component: &[u8]) -> bool {
    component.starts_with(PREFIX)
}

/// True when `component` names bookkeeping of aufs, or the directory that holds some.
pub fn is_aufs(component: &[u8]) -> bool {
    component.starts_with(AUFS_PREFIX) && component != OPAQUE
}

/// Reads the last component of an entry's name.
///
/// ```
/// use plywood::tree::whiteout::{Marker, parse};
/// assert_eq!(parse(b".wh.old"), Ok(Marker::Whiteout(b"old")));
/// assert_eq!(parse(b".wh..wh..opq"), Ok(Marker::Opaque));
/// ```
pub fn parse(name: &[u8]) -> Result<Marker<'_>, WhiteoutError> {
    if name == OPAQUE {
        return Ok(Marker::Opaque);
    }
    if is_aufs(name) {
        return Ok(Marker::Ignored);
    }
    match name.strip_prefix(PREFIX) {
        None => Ok(Marker::Ordinary),
        Some(b"" | b"." | b"..") => Err(WhiteoutError(name.escape_ascii().to_string())),
        Some(target) => Ok(Marker::Whiteout(target)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_markers() {
        for (name, want) in [
            ("a", Marker::Ordinary),
            (".wh", Marker::Ordinary),
            ("a.wh.b", Marker::Ordinary),
            (".WH.a", Marker::Ordinary),
            (".wh.a", Marker::Whiteout(b"a")),
            (".wh.....", Marker::Whiteout(b"....")),
            (".wh..a", Marker::Whiteout(b".a")),
            (".wh..wh", Marker::Whiteout(b".wh")),
            (".wh..wh..opq", Marker::Opaque),
            (".wh..wh..opq2", Marker::Ignored),
            (".wh..wh.", Marker::Ignored),
            (".wh..wh.plnk", Marker::Ignored),
        ] {
            assert_eq!(parse(name.as_bytes()), Ok(want), "{name}");
        }
    }

    #[test]
    fn markers_for_no_name_are_refused() {
        for name in [".wh.", ".wh..", ".wh..."] {
            assert_eq!(parse(name.as_bytes()), Err(WhiteoutError(name.to_owned())), "{name}");
        }
    }
}
