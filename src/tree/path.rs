//! Names of layer entries as paths inside the image: cleaned, never above its root.
//!
//! Bytes, not text. This module reads spelling only; [`super::Tree`] resolves names in a tree that
//! holds symbolic links.
//!
//! Source: OCI image specification, layer.md; Linux `include/uapi/linux/limits.h` for the bounds.

use super::whiteout;
use crate::{
    error::{Classify, Kind},
    limits,
};

/// Refusal of a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The name is longer than [`limits::PATH_BYTES`].
    #[error("a path of {len} bytes is longer than {} bytes", limits::PATH_BYTES)]
    TooLong {
        /// Length of the name as spelled, in bytes.
        len: usize,
    },
    /// A component is longer than [`limits::NAME_BYTES`].
    #[error("a path component of {len} bytes is longer than {} bytes", limits::NAME_BYTES)]
    ComponentTooLong {
        /// Length of the component in bytes.
        len: usize,
    },
    /// A `..` would leave the root.
    #[error("the path climbs out of the root")]
    Climbs,
    /// The name holds a NUL, which file names cannot hold.
    #[error("the path holds a NUL byte")]
    Nul,
}

impl Classify for PathError {
    fn kind(&self) -> Kind {
        Kind::Malformed
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::TooLong { .. } | Self::ComponentTooLong { .. } => "tree.path.length",
            Self::Climbs => "tree.path.climb",
            Self::Nul => "tree.path.nul",
        }
    }
}

/// Splits `path` into components below the root: leading slashes, empty and `.` components are
/// dropped, `..` is resolved lexically. The root itself has none.
///
/// ```
/// use plywood::tree::path::{PathError, clean};
/// assert_eq!(clean(b"/./a//b/../c/"), Ok(vec![&b"a"[..], b"c"]));
/// assert_eq!(clean(b"a/../.."), Err(PathError::Climbs));
/// ```
pub fn clean(path: &[u8]) -> Result<Vec<&[u8]>, PathError> {
    if path.len() > limits::PATH_BYTES {
        return Err(PathError::TooLong { len: path.len() });
    }
    if path.contains(&0) {
        return Err(PathError::Nul);
    }
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop().ok_or(PathError::Climbs)?;
            }
            name if name.len() > longest(name) => {
                return Err(PathError::ComponentTooLong { len: name.len() });
            }
            name => components.push(name),
        }
    }
    Ok(components)
}

/// Components of `path` if aufs bookkeeping is on the way or at its end; `None` for other paths.
///
/// Errors: those of [`clean`], and only for a path in which `.wh.` occurs.
pub(super) fn below_aufs(path: &[u8]) -> Result<Option<Vec<&[u8]>>, PathError> {
    // Nearly every path returns here.
    if !path.windows(whiteout::PREFIX.len()).any(|four| four == whiteout::PREFIX) {
        return Ok(None);
    }
    let components = clean(path)?;
    let first = components.iter().find(|component| whiteout::is_reserved(component));
    Ok(first.is_some_and(|first| whiteout::is_aufs(first)).then_some(components))
}

/// Longest component that begins like `name`, in bytes. A whiteout is longer than others, because
/// the name that it deletes may have full length.
fn longest(name: &[u8]) -> usize {
    limits::NAME_BYTES + if name.starts_with(whiteout::PREFIX) { whiteout::PREFIX.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(path: &str) -> Result<String, PathError> {
        let bytes = clean(path.as_bytes())?.join(&b'/');
        Ok(String::from_utf8(bytes).expect("ASCII in, ASCII out"))
    }

    #[test]
    fn spellings_of_one_name_become_one_name() {
        for (path, want) in [
            ("", ""),
            ("/", ""),
            (".", ""),
            ("./", ""),
            ("a/..", ""),
            ("a", "a"),
            ("/a", "a"),
            ("//a///b//", "a/b"),
            ("./a/./b/.", "a/b"),
            ("a/b/../../c", "c"),
            ("...", "..."),
            ("..a/a..", "..a/a.."),
        ] {
            assert_eq!(joined(path).as_deref(), Ok(want), "{path:?}");
        }
    }

    #[test]
    fn climbing_out_of_the_root_is_refused_even_when_it_comes_back() {
        for path in ["..", "/..", "../a", "a/../..", "a/../../a"] {
            assert_eq!(joined(path), Err(PathError::Climbs), "{path:?}");
        }
    }

    #[test]
    fn lengths_are_bounded_at_the_last_byte_that_fits() {
        assert!(clean(&[b'a'; 255]).is_ok());
        assert_eq!(clean(&[b'a'; 256]), Err(PathError::ComponentTooLong { len: 256 }));
        let whiteout = |len| [b".wh.".to_vec(), vec![b'a'; len]].concat();
        assert!(clean(&whiteout(255)).is_ok(), "the name that it deletes fits");
        assert_eq!(clean(&whiteout(256)), Err(PathError::ComponentTooLong { len: 260 }));
        let mut path = b"a/".repeat(2047);
        path.push(b'a');
        assert_eq!(clean(&path).map(|components| components.len()), Ok(2048));
        path.push(b'/');
        assert_eq!(clean(&path), Err(PathError::TooLong { len: 4096 }));
    }

    #[test]
    fn a_nul_is_refused() {
        assert_eq!(clean(b"a\0b"), Err(PathError::Nul));
    }
}
