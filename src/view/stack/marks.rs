//! Overlayfs's own attributes of the files of a layer.
//!
//! Source: Linux `fs/overlayfs/overlayfs.h` and `Documentation/filesystems/overlayfs.rst`.

use crate::tree::Xattr;

/// The meaning of overlayfs's own attributes of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// This directory hides all lower ones.
    pub opaque: bool,
    /// This directory may hold whiteouts in the form of an attribute.
    pub holds_whiteouts: bool,
    /// This empty file is such a whiteout, if its directory may hold some.
    pub whiteout: bool,
    /// The name under which the layers below are searched, or a path from the root when it begins with a slash.
    pub redirect: Option<Vec<u8>>,
    /// Whether a lower file has the data.
    pub metacopy: Metacopy,
}

/// Whether a lower file has the data of this one: `struct ovl_metacopy`.
///
/// | offset | size | field       | meaning                              |
/// |-------:|-----:|-------------|--------------------------------------|
/// |      0 |    1 | version     | 0                                    |
/// |      1 |    1 | len         | bytes of all, the digest included    |
/// |      2 |    1 | flags       | 0                                    |
/// |      3 |    1 | digest_algo | 0 for none, else one of fs-verity's  |
/// |      4 |      | digest      | of the lower file                    |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Metacopy {
    /// The file has data of its own.
    #[default]
    None,
    /// A lower file has the data. The usual attribute has no value at all.
    Plain,
    /// A lower file has the data, which must have a certain digest.
    Digest,
    /// The kernel writes no such attribute.
    Malformed,
}

impl Metacopy {
    fn read(value: &[u8]) -> Self {
        match value {
            [] => Self::Plain,
            [0, len, 0, 0] if usize::from(*len) == value.len() => Self::Plain,
            [0, len, 0, 1..=u8::MAX, _, ..] if usize::from(*len) == value.len() => Self::Digest,
            _ => Self::Malformed,
        }
    }
}

impl Marks {
    /// Reads the attributes whose names begin with `prefix`.
    pub(crate) fn read(xattrs: &[Xattr], prefix: &[u8]) -> Self {
        let mut marks = Self::default();
        for Xattr { name, value } in xattrs {
            match (name.strip_prefix(prefix), value.as_slice()) {
                (Some(b"opaque"), b"y") => marks.opaque = true,
                (Some(b"opaque"), b"x") => marks.holds_whiteouts = true,
                (Some(b"whiteout"), _) => marks.whiteout = true,
                (Some(b"redirect"), target) => marks.redirect = Some(target.to_vec()),
                (Some(b"metacopy"), value) => marks.metacopy = Metacopy::read(value),
                _ => {}
            }
        }
        marks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_attributes_with_the_layer_s_own_prefix() {
        let xattr = |name: &str, value: &str| Xattr { name: name.into(), value: value.into() };
        let xattrs = [
            xattr("trusted.overlay.opaque", "y"),
            xattr("trusted.overlay.origin", "\0"),
            xattr("user.overlay.metacopy", ""),
            xattr("user.overlay.opaque", "x"),
        ];
        let trusted = Marks { opaque: true, ..Marks::default() };
        assert_eq!(Marks::read(&xattrs, b"trusted.overlay."), trusted);
        let user = Marks { metacopy: Metacopy::Plain, holds_whiteouts: true, ..Marks::default() };
        assert_eq!(Marks::read(&xattrs, b"user.overlay."), user);
        let odd = [xattr("trusted.overlay.opaque", "yes"), xattr("trusted.overlay.opaqu", "y")];
        assert_eq!(Marks::read(&odd, b"trusted.overlay."), Marks::default());
    }

    #[test]
    fn a_metacopy_has_no_value_or_the_kernel_s_header_and_a_digest() {
        for (value, want) in [
            (&b""[..], Metacopy::Plain),
            (&[0, 4, 0, 0], Metacopy::Plain),
            (&[0, 6, 0, 1, 7, 7], Metacopy::Digest),
            (&[0, 5, 0, 1, 7, 7], Metacopy::Malformed),
            (&[0, 4, 0, 1], Metacopy::Malformed),
            (&[1, 4, 0, 0], Metacopy::Malformed),
            (&[0, 4, 1, 0], Metacopy::Malformed),
            (&[0, 4, 0], Metacopy::Malformed),
        ] {
            assert_eq!(Metacopy::read(value), want, "{value:?}");
        }
    }
}
